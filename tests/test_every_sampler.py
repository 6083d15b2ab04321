"""For every sampler of the host, in each kind of run: the switch itself changes no bit, and steps are whole.

Guidance is off, so that a step is one call of the model; test_cooperation.py has it. The tiny models are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import helpers
import pytest
import runs
import torch
from hosting import module
from runs import OWN_LEVELS, Report, sr_model

rest = module("srd_core.rest")

pytestmark = pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
STEPS = 5
ADAPTIVE = {"switch_mode": "adaptive", "delta": 1e9, "switch_sigma": 0.0, "max_step": 5}
FADED = {"fade": 1.1, "render_steps": 3}


@pytest.fixture(scope="module")
def models(wan: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A sketch, another model of the same weights, a render."""
    return wan(), wan(), wan(seed=1)


def ran(model: Any, sampler: str, steps: int = STEPS, **how: Any) -> torch.Tensor:
    return helpers.ksampler(model, steps, sampler_name=sampler, cfg=1.0, **how)


def test_the_switch_itself_changes_nothing(sampler: str, models: Any) -> None:
    """Invariants 1, 2 and 3 of the design.

    The same weights in all stages give the plain run, on a route that returns and with three stages; a switch that
    never comes is the plain sketch, one at step 0 the plain render; calls are neither skipped nor repeated.
    """
    sketch, same, render = models
    counted, calls = helpers.count_calls(sketch)
    plain, plain_render = ran(counted, sampler), ran(render, sampler)
    assert not torch.equal(plain, plain_render)
    returning, three = Report(), Report()
    assert torch.equal(ran(sr_model(sketch, same, "1, 4", returning), sampler), plain)
    assert torch.equal(ran(sr_model(sr_model(sketch, same, 1), sketch, 3, three), sampler), plain)
    for report in (returning, three):
        assert sum(stage.calls for stage in report.stages) == len(calls)
    if sampler not in OWN_LEVELS:
        assert [s.stage for s in returning.steps] == ["sketch", "render", "render", "sketch", "render"]
        assert [(h.after_step, h.to) for h in returning.hand_overs] == [(1, "render"), (3, "sketch"), (4, "render")]
    for step, expected in ((0, plain_render), (STEPS, plain)):
        report = Report()
        assert torch.equal(ran(sr_model(sketch, render, step, report), sampler), expected)
        assert bool(report.hand_overs) == (step == 0)
    assert torch.equal(ran(sketch, sampler), plain)


def test_both_halves_through_a_file_are_one_run(sampler: str, models: Any, tmp_path: Path) -> None:
    """And SR Sampler is KSampler fed by Sketch-Render Model: invariant 4."""
    (sketch, _, render), whole = models, Report()
    how: dict[str, Any] = {"steps": STEPS, "sampler_name": sampler, "cfg": 1.0}
    one = ran(sr_model(sketch, render, report=whole), sampler)
    if sampler not in OWN_LEVELS:
        names = ["sketch"] * 3 + ["render"] * 2
        assert [(s.step, s.stage) for s in whole.steps] == list(enumerate(names, 1))
    assert torch.equal(runs.sr_sampler(sketch, render, **how), one)
    record = runs.sketched(sketch, **how)[0]
    latent, report = runs.rendered(runs.through_a_file(record, tmp_path), render)
    assert torch.equal(latent["samples"], one)
    for notes in (whole.notes, report.notes):
        assert ["its own noise levels" in note for note in notes] == [True] * (sampler in OWN_LEVELS)
    assert report.status == "done" and report.stage("sketch").calls == len(record.calls)


def test_a_rest_in_fewer_steps_is_the_plain_run_over_those_levels(sampler: str, models: Any) -> None:
    (sketch, same, _), report = models, Report()
    levels = comfy.samplers.KSampler(sketch, 6, "cpu", sampler, "simple").sigmas.tolist()
    sigmas = torch.tensor([*levels[:2], *rest.resampled(levels[2:], 2)])
    latent, prompts = helpers.empty_latent()["samples"], (helpers.prompt(1), helpers.prompt(2))
    how = (comfy.sample.prepare_noise(latent, 7), 1.0, comfy.samplers.sampler_object(sampler), sigmas, *prompts, latent)
    expected = comfy.sample.sample_custom(sketch, *how, seed=7, disable_pbar=True)
    assert torch.equal(ran(sr_model(sketch, same, 2, report, render_steps=2), sampler, 6), expected)
    if sampler not in OWN_LEVELS:
        assert [s.stage for s in report.steps] == ["sketch"] * 2 + ["render"] * 2


def test_a_small_sketch_and_a_faded_rest_begin_anew_in_both_halves(sampler: str, models: Any) -> None:
    """The render begins anew at its size, in its own steps; the report has each step once; two halves are one run."""
    how: dict[str, Any] = {"steps": 6, "sampler_name": sampler, "cfg": 1.0, "sketch_scale": 0.5, **ADAPTIVE}
    sketch, small = runs.shapes_of(models[0])
    render, large = runs.shapes_of(models[2])
    one, report = runs.sr_outputs(sketch, render, **how, **FADED)
    assert one["samples"].shape == (1, 16, 2, 8, 8) and torch.isfinite(one["samples"]).all()
    assert {shape[-2:] for shape in small} == {(4, 4)} and {shape[-2:] for shape in large} == {(8, 8)}
    assert report.status == "done" and any("begins anew after step" in note for note in report.notes)
    assert report.stage("sketch").calls == len(small)
    (hand_over,) = report.hand_overs
    k = hand_over.after_step
    if sampler not in OWN_LEVELS:
        names = ["sketch"] * k + ["render"] * 3
        assert [(s.step, s.stage) for s in report.steps] == list(enumerate(names, 1))
        assert [s.sigma for s in report.steps] == report.sigmas[:-1] and len(hand_over.fade) == 3
        assert report.given_steps == 6
    record, preview, _ = runs.sketched(models[0], **how)
    assert preview["samples"].shape[-2:] == record.x.shape[-2:] == (4, 4)
    latent, half = runs.rendered(record, models[2], **FADED)
    assert torch.equal(latent["samples"], one["samples"]) and not any("noise differs" in note for note in half.notes)
