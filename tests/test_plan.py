"""What the page is told of a sampler's settings before the run, against what the run then does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy_extras.nodes_model_advanced as advanced
import helpers
import pytest
from hosting import module
from runs import Report, sr_model

plan, sampler = module("nodes.plan"), module("nodes.sampler")

SETTINGS = helpers.SAMPLING | helpers.RULE | {"steps": 20, "switch_mode": "adaptive", "switch_step": 10}
SHIFT_5 = [{"type": "LoraLoaderModelOnly", "values": {}}, {"type": "ModelSamplingSD3", "values": {"shift": 5.0}}]


def report_of(settings: dict[str, Any], wan: Callable[..., Any], shift: float) -> Any:
    """The report of SR Sampler's run with these settings."""
    (sketch,) = advanced.ModelSamplingSD3().patch(wan(seed=0), shift)
    inputs = helpers.sampling_inputs(**settings, **helpers.RENDERING)
    return sampler.SRSampler.execute(sketch, wan(seed=1), **inputs).args[1]


@pytest.mark.parametrize(
    ("shift", "change"),
    [
        (5.0, {}),
        (2.0, {"steps": 8}),
        (5.0, {"scheduler": "normal"}),
        (2.0, {"sampler_name": "uni_pc"}),
        (5.0, {"denoise": 0.6, "switch_sigma": 0.5}),
        (2.0, {"fix_step": 2}),
        (5.0, {"max_step": 7}),
        (2.0, {"switch_mode": "sigma"}),
        (5.0, {"switch_mode": "sigma", "scheduler": "karras"}),
        (2.0, {"switch_mode": "step", "switch_step": 4}),
    ],
    ids=lambda value: ",".join(value) or "defaults" if isinstance(value, dict) else "",
)
def test_the_plan_says_what_the_run_does(change: dict[str, Any], shift: float, wan: Callable[..., Any]) -> None:
    settings = SETTINGS | change
    told = plan.plan(settings, [{"type": "ModelSamplingSD3", "values": {"shift": shift}}])
    report = report_of(settings, wan, shift)
    assert told["steps"] == settings["steps"] == len(report.steps)
    after = report.hand_overs[0].after_step if report.hand_overs else len(report.steps)
    if "problem" in told:
        assert f"Always switches after step {after}:" in told["problem"]
    elif settings["switch_mode"] == "adaptive":
        assert told["latest"] == min(report.latest, len(report.steps))
        assert told["earliest"] == min(report.earliest, told["latest"])
        assert told["earliest"] <= after <= told["latest"]
    else:
        assert told["latest"] == after
    if "sigma" in told and told["latest"] < len(report.steps):
        assert told["sigma"] == pytest.approx(report.sigmas[told["latest"]], rel=1e-5)


@pytest.mark.parametrize(
    "change", [{"steps": 1}, {"steps": 8, "fix_step": 50, "switch_sigma": 0.0}], ids=["one step", "fix_step 50"]
)
def test_a_rule_that_can_only_hold_after_the_last_step_is_told(change: dict[str, Any], wan: Callable[..., Any]) -> None:
    assert plan.plan(SETTINGS | change, SHIFT_5)["problem"].startswith("Never switches")
    assert not report_of(SETTINGS | change, wan, 5.0).hand_overs


def test_a_run_below_switch_sigma_is_the_render_s_alone(wan: Callable[..., Any]) -> None:
    settings = SETTINGS | {"denoise": 0.3}
    told, report = plan.plan(settings, SHIFT_5), report_of(settings, wan, 5.0)
    assert told["latest"] == 0 and "problem" not in told
    assert {step.stage for step in report.steps} == {"render"}


def test_a_sketch_of_all_steps_leaves_the_render_none_of_its_own(wan: Callable[..., Any]) -> None:
    settings = SETTINGS | {"switch_mode": "step", "steps": 8, "switch_step": 8, "render_steps": 4}
    report = report_of(settings, wan, 5.0)
    assert plan.plan(settings, []) == {"mode": "step", "steps": 8, "latest": 8}
    assert [step.stage for step in report.steps] == ["sketch"] * 8


def test_a_list_of_steps_and_steps_of_the_render_s_own_are_counted() -> None:
    told = plan.plan(SETTINGS | {"sketch_steps": "1-6, 19-20"}, [])
    assert told == {"mode": "listed", "steps": 20, "latest": 8}
    told = plan.plan(SETTINGS | {"switch_mode": "step", "render_steps": 4}, [])
    assert told == {"mode": "step", "steps": 20, "latest": 10, "rest": 4}


def test_the_renders_steps_between_listed_ones_are_counted_as_the_run_counts_them(wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), "1-2, 5-6", report, render_steps=2), 8)
    told = plan.plan(SETTINGS | {"steps": 8, "sketch_steps": "1-2, 5-6", "render_steps": 2}, [])
    assert (told["latest"], told["rest"]) == (4, 4)
    assert [sum(step.stage == name for step in report.steps) for name in ("sketch", "render")] == [4, 4]


def test_what_is_not_known_is_not_told() -> None:
    assert plan.plan(SETTINGS, []) == plan.plan(SETTINGS, [{"type": "Foreign", "values": {}}, *SHIFT_5])
    assert plan.plan(SETTINGS, []) == {"mode": "adaptive", "steps": 20}
    assert plan.plan(SETTINGS, SHIFT_5)["latest"] == plan.plan(SETTINGS, SHIFT_5[1:])["latest"] > 2
    without_steps = {name: value for name, value in SETTINGS.items() if name != "steps"}
    assert plan.plan(without_steps, SHIFT_5) == {"mode": "adaptive", "steps": None}
    linked = {name: value for name, value in SETTINGS.items() if name != "fix_step"}
    assert plan.plan(linked, SHIFT_5) == {"mode": "adaptive"}


def test_a_schedule_of_more_levels_than_a_run_may_have_is_not_reckoned() -> None:
    assert plan.plan(SETTINGS | {"denoise": 0.0001}, SHIFT_5) == {"mode": "adaptive", "steps": 20}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"switch_mode": "step", "switch_step": 60}, "switch_step is 60, but the run has 20 steps"),
        ({"max_step": 1}, "max_step is 1"),
        ({"fix_step": 25}, "Always switches after step"),
        ({"max_step": 3}, "Always switches after step 3"),
        ({"sketch_steps": "1-30"}, "sketch_steps names step 30"),
        ({"sketch_steps": "soon"}, "which names no steps"),
        ({"delta": -1.0}, "delta is -1.0"),
        ({"denoise": 0.0}, "denoise is 0"),
        ({"sketch_scale": 0.5, "max_step": 20}, "Lower max_step."),
        ({"sketch_scale": 0.5, "switch_mode": "step", "switch_step": 20}, "Lower switch_step."),
        ({"sketch_scale": 0.5, "switch_mode": "sigma", "switch_sigma": 0.0}, "Raise switch_sigma."),
        ({"sketch_scale": 0.5, "sketch_steps": "1-3, 5"}, "List the sketch's steps from 1 on"),
    ],
    ids=[
        *("switch_step", "max_step 1", "fix_step", "max_step 3", "step 30", "no steps", "delta", "denoise"),
        *("small max_step", "small step", "small sigma", "small listed"),
    ],
)
def test_settings_that_contradict_each_other_have_a_sentence(change: dict[str, Any], words: str) -> None:
    assert words in plan.plan(SETTINGS | change, SHIFT_5)["problem"]
