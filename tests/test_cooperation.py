"""A Sketch-Render run in every way that the host samples, bit for bit; test_every_sampler.py has each sampler."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.samplers
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom, SamplerSEEDS2
from hosting import module
from nodes import KSamplerAdvanced
from runs import GUIDERS, STEPS, Report, Switch, levels_of, predictions_of, sampled, sr_model, sr_sampler, wrapped

SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS


@pytest.fixture(scope="module")
def models(wan: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A sketch, another model of the same weights, a render."""
    return wan(), wan(), wan(seed=1)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_for_every_scheduler_the_switch_itself_changes_nothing(scheduler: str, models: Any) -> None:
    sketch, same, _ = models
    plain = helpers.ksampler(sketch, STEPS, scheduler=scheduler)
    assert torch.equal(sr_sampler(sketch, same, scheduler=scheduler, switch_step=2), plain)


# --- every way the host samples ---------------------------------------------------------------------------------------


def sampler_custom(model: Any, sampler: Any = None) -> torch.Tensor:
    sampler, prompts = sampler or KSamplerSelect.execute("euler").args[0], (helpers.prompt(1), helpers.prompt(2))
    sampling = (model, True, 7, 3.0, *prompts, sampler, levels_of(model), helpers.empty_latent())
    return SamplerCustom.execute(*sampling).args[0]["samples"]


def ksampler_advanced(model: Any) -> torch.Tensor:
    """Two KSamplerAdvanced in a row, with leftover noise between them."""
    first, second = KSamplerAdvanced(), KSamplerAdvanced()
    call = ("euler", "simple", helpers.prompt(1), helpers.prompt(2))
    (half,) = first.sample(model, "enable", 7, 8, 3.0, *call, helpers.empty_latent(), 0, 4, "enable")
    (whole,) = second.sample(model, "disable", 7, 8, 3.0, *call, half, 4, 8, "disable")
    return whole["samples"]


WAYS: dict[str, Callable[[Any], torch.Tensor]] = {
    "KSampler": lambda model: helpers.ksampler(model, STEPS, sampler_name="uni_pc"),
    "KSamplerAdvanced": ksampler_advanced,
    "SamplerCustom": sampler_custom,
    **{name: partial(sampled, sampler="res_multistep", guider=name) for name in GUIDERS},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sampling_is_bit_identical_with_the_same_weights(way: str, models: Any) -> None:
    """With a switch at any step, a route that returns, and three stages."""
    (sketch, same, render), run = models, WAYS[way]
    plain = run(sketch)
    for switch in (0, 3, 99, "1, 3"):
        assert torch.equal(run(sr_model(sketch, same, switch)), plain), f"switch: {switch}"
    assert torch.equal(run(sr_model(sr_model(sketch, same, 1), sketch, 3)), plain)
    assert torch.equal(run(sr_model(sketch, render, 0)), run(render))
    assert not torch.equal(run(sr_model(sketch, render, 2)), plain)
    assert torch.equal(run(sketch), plain)


def test_the_same_model_object_and_a_clone_serve_as_their_own_render(wan: Any) -> None:
    sketch = wan()
    plain = helpers.ksampler(sketch)
    for render in (sketch, sketch.clone()):
        assert torch.equal(helpers.ksampler(sr_model(sketch, render)), plain)
    assert torch.equal(helpers.ksampler(sketch), plain)


# --- the adaptive rule in a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "delta"), [(4, 0.01), (8, 1.0), (20, 0.01), (50, 0.01)])
def test_an_adaptive_run_switches_where_its_recorded_fall_of_d_says(steps: int, delta: float, models: Any) -> None:
    report, (sketch, _, render) = Report(), models
    helpers.ksampler(sr_model(sketch, render, Switch(delta=delta), report), steps, cfg=1.0)
    falls, allowed = [step.fall for step in report.steps], range(report.earliest, report.latest)
    settled = [k for k in allowed if falls[k - 1] is not None and 0 < falls[k - 1] < delta]
    (hand_over,) = report.hand_overs
    assert hand_over.after_step == (settled or [report.latest])[0] and report.count("render") >= 1
    assert (hand_over.reason == "latest") == (not settled)


def test_the_criterion_reads_the_guided_prediction_that_the_sampler_gets(wan: Any) -> None:
    """D of the report against D of what the host's own guider gives in a plain run."""
    (sketch, seen), report = predictions_of(wan()), Report()
    helpers.ksampler(sketch, 8)
    helpers.ksampler(sr_model(wan(), wan(), 99, report), 8)
    expected = [
        float(module("srd_core.criterion").relative_change(b, a)) for (_, a), (_, b) in itertools.pairwise(seen)
    ]
    assert [s.d for s in report.steps[1:]] == pytest.approx(expected, rel=1e-6)


def test_seconds_of_the_stages_add_up_to_the_run(wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3, report), 8)
    loading = sum(h.seconds for h in report.hand_overs)
    assert 0 < sum(stage.seconds for stage in report.stages) + loading <= report.total_seconds
    assert all(s.seconds and s.seconds > 0 for s in report.steps)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass on a clock that stands still else."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_seconds(seconds: float) -> None:
        now[0] += seconds

    return pass_seconds


def test_what_the_device_does_after_the_last_callback_belongs_to_the_last_step(
    passes: Callable[[float], None], wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    euler = comfy.k_diffusion.sampling.sample_euler

    def ahead_of_its_device(*args: Any, **kwargs: Any) -> torch.Tensor:
        latent = euler(*args, **kwargs)
        passes(0.5)
        return latent

    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_euler", ahead_of_its_device)
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3, report), STEPS)
    assert [step.seconds for step in report.steps] == [0] * (STEPS - 1) + [0.5]
    assert report.stage("render").seconds == 0.5


def test_loading_is_not_counted_to_any_step(passes: Callable[[float], None], wan: Any) -> None:
    """A quarter of a second for each model, by a wrapper of the host around its loading."""

    def slowly(executor: Any, *args: Any, **kwargs: Any) -> Any:
        passes(0.25)
        return executor(*args, **kwargs)

    sketch, render = (wrapped(wan(seed=seed), slowly, WrappersMP.PREPARE_SAMPLING) for seed in (0, 1))
    report = Report()
    helpers.ksampler(sr_model(sketch, render, 3, report), STEPS)
    assert not any(step.seconds for step in report.steps) and not any(stage.seconds for stage in report.stages)
    assert report.hand_overs[0].seconds == report.stage("render").load_seconds == 0.25


OPTIONS = {
    "seeds_2, r 1": SamplerSEEDS2.execute(solver_type="phi_1", eta=1.0, s_noise=1.0, r=1.0).args[0],
    "seeds_2, r 0.5": SamplerSEEDS2.execute(solver_type="phi_1", eta=1.0, s_noise=1.0, r=0.5).args[0],
    "dpm_2_ancestral, eta 0.5": comfy.samplers.ksampler("dpm_2_ancestral", {"eta": 0.5}),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_switch_never_falls_inside_a_step_whatever_the_samplers_options(options: str, models: Any) -> None:
    report, (sketch, _, render) = Report(), models
    sampler_custom(sr_model(sketch, render, 1, report), OPTIONS[options])
    assert report.stage("sketch").calls == 2 and [s.step for s in report.steps] == list(range(1, STEPS + 1))


def test_the_hand_over_is_one_log_line(wan: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        helpers.ksampler(sr_model(wan(), wan(seed=1), 3))
    (line,) = [r.getMessage() for r in caplog.records if "SRDiffusion" in r.getMessage()]
    assert "switched to the render after step 3 of 6" in line


def test_a_bad_prediction_of_a_second_call_is_told_of_the_step_it_belongs_to(wan: Any) -> None:
    calls: list[Any] = []
    report = Report()

    def spoil(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return executor(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1)

    model = sr_model(wrapped(wan(), spoil), wan(seed=1), STEPS - 1, report)
    with pytest.raises(RuntimeError, match=f"not finite .* at step 2 of {STEPS} "):
        helpers.ksampler(model, STEPS, cfg=1.0, sampler_name="heun")
    assert report.steps[-1].step == 2
