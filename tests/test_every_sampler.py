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
from runs import OWN_LEVELS, STEPS, Report, sr_model

rest = module("srd_core.rest")

pytestmark = pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
ADAPTIVE = {"switch_mode": "adaptive", "delta": 1e9, "switch_sigma": 0.0, "max_step": 9}  # runs.ADAPTIVE, as inputs
FADED = {"fade": 1.1, "render_steps": 3}


@pytest.fixture(scope="module")
def models(wan: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A sketch, another model of the same weights, a render."""
    return wan(), wan(), wan(seed=1)


@pytest.fixture(scope="module")
def plain(models: Any) -> Callable[[str], torch.Tensor]:
    """A function of the sampler: the sketch's own run."""
    found: dict[str, torch.Tensor] = {}
    return lambda sampler: found[sampler] if sampler in found else found.setdefault(sampler, ran(models[0], sampler))


def ran(model: Any, sampler: str, steps: int = STEPS, **how: Any) -> torch.Tensor:
    return helpers.ksampler(model, steps, sampler_name=sampler, cfg=1.0, **how)


def test_the_switch_itself_changes_nothing(sampler: str, models: Any) -> None:
    """Invariants 1, 2 and 4 of the design.

    The same weights in both stages give the plain run, after any step; a switch that never comes is the plain sketch,
    one at step 0 the plain render; calls are neither skipped nor repeated.
    """
    sketch, same, render = models
    counted, calls = helpers.count_calls(sketch)
    plain, plain_render = ran(counted, sampler), ran(render, sampler)
    assert not torch.equal(plain, plain_render)
    for step in (1, 3):
        report = Report()
        assert torch.equal(ran(sr_model(sketch, same, step, report), sampler), plain), f"switch after step {step}"
        assert sum(stage.calls for stage in report.stages) == len(calls) and len(report.hand_overs) == 1
    for step, expected in ((0, plain_render), (STEPS, plain)):
        report = Report()
        assert torch.equal(ran(sr_model(sketch, render, step, report), sampler), expected)
        assert bool(report.hand_overs) == (step == 0)
    report = Report()
    mixed = ran(sr_model(sketch, render, 2, report), sampler)
    assert not torch.equal(mixed, plain) and not torch.equal(mixed, plain_render)
    if sampler not in OWN_LEVELS:
        assert [s.stage for s in report.steps] == ["sketch"] * 2 + ["render"] * 4
        assert [s.step for s in report.steps] == list(range(1, STEPS + 1)) and report.hand_overs[0].after_step == 2
    assert torch.equal(ran(sketch, sampler), plain)


def test_a_route_that_returns_and_three_stages_change_nothing(sampler: str, models: Any, plain: Any) -> None:
    (sketch, same, _), report = models, Report()
    assert torch.equal(ran(sr_model(sketch, same, "1, 4-5", report), sampler), plain(sampler))
    if sampler not in OWN_LEVELS:
        assert [s.stage for s in report.steps] == ["sketch", "render", "render", "sketch", "sketch", "render"]
        assert [(h.after_step, h.to) for h in report.hand_overs] == [(1, "render"), (3, "sketch"), (5, "render")]
    assert torch.equal(ran(sr_model(sr_model(sketch, same, 1), sketch, 3), sampler), plain(sampler))


def test_both_halves_through_a_file_are_one_run(sampler: str, models: Any, tmp_path: Path) -> None:
    sketch, _, render = models
    record = runs.sketched(sketch, sampler_name=sampler, cfg=1.0)[0]
    latent, report = runs.rendered(runs.through_a_file(record, tmp_path), render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, sampler_name=sampler, cfg=1.0))
    assert torch.equal(latent["samples"], ran(sr_model(sketch, render), sampler))
    assert not report.notes or "its own noise levels" in report.notes[0]
    assert report.status == "done" and report.stage("sketch").calls == len(record.calls)


def test_a_rest_in_fewer_steps_is_the_plain_run_over_those_levels(sampler: str, models: Any) -> None:
    (sketch, same, _), report = models, Report()
    levels = comfy.samplers.KSampler(sketch, 8, "cpu", sampler, "simple").sigmas.tolist()
    sigmas = torch.tensor([*levels[:3], *rest.resampled(levels[3:], 2)])
    latent, prompts = helpers.empty_latent()["samples"], (helpers.prompt(1), helpers.prompt(2))
    how = (comfy.sample.prepare_noise(latent, 7), 1.0, comfy.samplers.sampler_object(sampler), sigmas, *prompts, latent)
    expected = comfy.sample.sample_custom(sketch, *how, seed=7, disable_pbar=True)
    assert torch.equal(ran(sr_model(sketch, same, 3, report, render_steps=2), sampler, 8), expected)
    if sampler not in OWN_LEVELS:
        assert [s.stage for s in report.steps] == ["sketch"] * 3 + ["render"] * 2


def test_a_small_sketch_and_a_faded_rest_begin_anew_in_both_halves(sampler: str, models: Any, tmp_path: Path) -> None:
    """The render begins anew at its size, in its own steps; the report has each step once; two halves are one run."""
    sketch, small = runs.shapes_of(models[0])
    render, large = runs.shapes_of(models[2])
    report = Report()
    one = ran(sr_model(sketch, render, runs.ADAPTIVE, report, sketch_scale=0.5, **FADED), sampler, 10)
    assert one.shape == (1, 16, 2, 8, 8) and torch.isfinite(one).all() and report.status == "done"
    assert {shape[-2:] for shape in small} == {(4, 4)} and {shape[-2:] for shape in large} == {(8, 8)}
    assert any("begins anew after step" in note for note in report.notes)
    (hand_over,) = report.hand_overs
    k = hand_over.after_step
    if sampler not in OWN_LEVELS:
        names = ["sketch"] * k + ["render"] * 3
        assert [(s.step, s.stage) for s in report.steps] == [(i + 1, name) for i, name in enumerate(names)]
        assert [s.sigma for s in report.steps] == report.sigmas[:-1] and len(hand_over.fade) == 3
    record, preview, _ = runs.sketched(models[0], steps=10, sampler_name=sampler, cfg=1.0, sketch_scale=0.5, **ADAPTIVE)
    assert preview["samples"].shape[-2:] == record.x.shape[-2:] == (4, 4)
    latent, half = runs.rendered(runs.through_a_file(record, tmp_path), models[2], **FADED)
    assert torch.equal(latent["samples"], one) and not any("noise differs" in note for note in half.notes)
