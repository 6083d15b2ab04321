"""A preset is a name for a table of widget values: on the server the same as these values typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import serving
import torch
from hosting import module

presets, sampler, plan = module("nodes.presets"), module("nodes.sampler"), module("nodes.plan")

# What the widgets are before a preset is chosen: none of these is what any preset says.
OTHERS: dict[str, Any] = {"steps": 9, "switch_mode": "sigma", "delta": 0.02, "fix_step": 2, "max_step": 4}
OTHERS |= {"switch_step": 3, "switch_sigma": 0.5, "render_cfg": 2.0, "teacache": 0.5, "fade": 0.4}
OTHERS |= {"sketch_steps": "1-2, 5", "render_steps": 3}


@pytest.fixture
def run(wan: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, Any]]:
    """SR Sampler's latent and report with these values."""
    sketch, render = wan(seed=0), wan(seed=1)

    def run(**values: Any) -> tuple[torch.Tensor, Any]:
        latent, report = sampler.SRSampler.execute(sketch, render, **helpers.sampling_inputs(**values)).args
        return latent["samples"], report

    return run


@pytest.mark.parametrize("node", [sampler.SRSampler, sampler.SRModel], ids=lambda node: node.__name__)
def test_what_a_preset_sets_are_widgets_of_the_node_and_the_page_gets_the_table(node: Any) -> None:
    inputs = {i.id: i for i in node.GET_SCHEMA().inputs}
    assert (
        inputs["preset"].options
        == ["custom", *presets.PRESETS]
        == ["custom", "paper", "quality", "balanced", "fast", "few-step render"]
    )
    for table in presets.PRESETS.values():
        for name, value in table.items():
            if name == "steps" and node is sampler.SRModel:
                continue  # the sampler node has them
            widget = inputs[name]
            assert isinstance(value, type(widget.default)), name
            if options := getattr(widget, "options", None):
                assert value in options
            elif not isinstance(value, str):
                assert widget.min <= value <= widget.max
    assert inputs["preset"].as_dict()[presets.PRESETS_KEY] == json.loads(json.dumps(presets.PRESETS))


def test_paper_is_the_widgets_defaults() -> None:
    inputs = {i.id: i for i in sampler.SRSampler.GET_SCHEMA().inputs}
    assert all(inputs[name].default == value for name, value in presets.PRESETS["paper"].items())


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_its_values_typed_by_hand(name: str, run: Callable[..., Any]) -> None:
    latent, report = run(**OTHERS, preset=name)
    typed, by_hand = run(**OTHERS | presets.PRESETS[name])
    assert torch.equal(latent, typed)
    assert [step.stage for step in report.steps] == [
        step.stage for step in by_hand.steps
    ] and report.switch == by_hand.switch
    if not presets.PRESETS[name]["render_steps"]:
        assert len(report.steps) == presets.PRESETS[name]["steps"]


def test_sketch_render_model_takes_a_preset_too(wan: Callable[..., Any]) -> None:
    own = {key: value for key, value in OTHERS.items() if key != "steps"}
    table = {key: value for key, value in presets.PRESETS["few-step render"].items() if key != "steps"}
    named, typed = (
        sampler.SRModel.execute(wan(), wan(seed=1), **values).args[0]
        for values in (own | {"preset": "few-step render"}, own | table)
    )
    assert torch.equal(helpers.ksampler(named, 12), helpers.ksampler(typed, 12))


def test_custom_and_a_missing_preset_leave_the_widgets_as_they_are(run: Callable[..., Any]) -> None:
    values = OTHERS | {"sketch_steps": "", "teacache": 0.0}
    latent, report = run(**values, preset="custom")
    assert torch.equal(latent, run(**values)[0]) and report.switch["switch_sigma"] == 0.5


def test_a_preset_is_checked_and_planned_by_its_own_values(run: Callable[..., Any]) -> None:
    contradicting = OTHERS | {"sketch_steps": "", "switch_mode": "step", "switch_step": 60, "steps": 8}
    with pytest.raises(ValueError, match="switch_step is 60"):
        run(**contradicting)
    run(**contradicting, preset="balanced")
    shift = [{"type": "ModelSamplingSD3", "values": {"shift": 5.0}}]
    settings = helpers.SAMPLING | contradicting
    assert "switch_step is 60" in plan.plan(settings, shift)["problem"]
    told = plan.plan(settings | {"preset": "balanced"}, shift)
    assert told == plan.plan(settings | presets.PRESETS["balanced"], shift) and told["steps"] == 20
    linked = {key: value for key, value in settings.items() if key != "steps"} | {"preset": "balanced"}
    assert plan.plan(linked, shift)["steps"] is None  # a link sets them


def test_a_preset_that_is_not_there_gets_a_sentence(run: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="preset is 'best'; choose one of custom, paper, quality"):
        run(**OTHERS, preset="best")


def test_an_input_that_is_connected_keeps_what_its_link_gives(server: Any) -> None:
    """The server sees the links in the prompt; by hand: the preset's values, with the link's in one place."""
    graph = serving.cooperating(run=1, switching={"preset": "fast"})
    graph["number"] = {"class_type": "PrimitiveInt", "inputs": {"value": 7}}
    graph["sampler"]["inputs"]["steps"] = ["number", 0]
    typed = serving.cooperating(run=1, switching=presets.PRESETS["fast"] | {"steps": 7})
    assert serving.digest_of(server.run(graph, timeout=120)) == serving.digest_of(server.run(typed, timeout=120))
