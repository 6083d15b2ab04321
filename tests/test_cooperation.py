"""The invariants of the hand-over (design section 4), against the real host, bit for bit."""

from __future__ import annotations

import time
from typing import Any

import comfy.samplers
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    DisableNoise,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
    SamplerSEEDS2,
)
from hosting import module
from nodes import KSamplerAdvanced

cooperation, criterion = module("srd_core.pair"), module("srd_core.route")
report_module, sampler_nodes = module("srd_core.report.data"), module("nodes.sampler")
RenderSettings, Report, Switch = cooperation.RenderSettings, report_module.Report, criterion.Switch

SAMPLERS = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS
STEPS = 6
SWITCHING: dict[str, Any] = {
    "switch_mode": "step",
    "delta": 0.01,
    "fix_step": 5,
    "max_step": 0,
    "switch_step": 3,
    "switch_sigma": 0.875,
    "render_cfg": 0.0,
    "teacache": 0.0,
    "offload_sketch": "auto",
}


def sr_model(sketch: Any, render: Any, step: int = 3, report: Any = None, **settings: Any) -> Any:
    """A Sketch-Render MODEL that switches after ``step`` steps."""
    switch = Switch(mode="step", switch_step=step)
    return cooperation.cooperate(sketch, render, switch, RenderSettings(**settings), report or Report())


def sr_sampler(sketch: Any, render: Any, steps: int = STEPS, **how: Any) -> torch.Tensor:
    """The SR Sampler node."""
    call: dict[str, Any] = {
        "positive": helpers.prompt(1),
        "negative": helpers.prompt(2),
        "latent": helpers.empty_latent(),
        "seed": 7,
        "steps": steps,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        **SWITCHING,
    } | how
    return sampler_nodes.SRSampler.execute(sketch, render, **call).args[0]["samples"]


# --- 1 to 4, for every sampler and scheduler --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_for_every_sampler_the_hand_over_itself_changes_nothing(sampler: str, wan: Any) -> None:
    """Invariants 1, 2 and 4: with the same weights in both stages every switch step gives the plain run; a switch that
    never comes is the plain sketch; a switch at step 0 is the plain render; calls are neither skipped nor repeated.
    """
    sketch, same, render = wan(), wan(), wan(seed=1)
    counted, calls = helpers.count_calls(sketch)
    plain, plain_render = (helpers.ksampler(m, STEPS, sampler_name=sampler) for m in (counted, render))
    assert not torch.equal(plain, plain_render)
    for step in (STEPS, 0, 1, 3):
        report = Report()
        latent = helpers.ksampler(sr_model(sketch, same, step, report), STEPS, sampler_name=sampler)
        assert torch.equal(latent, plain), f"switch after step {step}"
        assert sum(stage.calls for stage in report.stages) == len(calls)
        assert bool(report.hand_overs) == (step < STEPS)
    assert torch.equal(helpers.ksampler(sr_model(sketch, render, 0), STEPS, sampler_name=sampler), plain_render)
    mixed = helpers.ksampler(sr_model(sketch, render, 3), STEPS, sampler_name=sampler)
    assert not torch.equal(mixed, plain) and not torch.equal(mixed, plain_render)
    assert torch.equal(sr_sampler(sketch, render, sampler_name=sampler), mixed)
    assert torch.equal(helpers.ksampler(sketch, STEPS, sampler_name=sampler), plain)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_for_every_scheduler_the_hand_over_itself_changes_nothing(scheduler: str, wan: Any) -> None:
    sketch, same, render = wan(), wan(), wan(seed=1)
    plain = helpers.ksampler(sketch, STEPS, scheduler=scheduler)
    assert torch.equal(helpers.ksampler(sr_model(sketch, same, 2), STEPS, scheduler=scheduler), plain)
    mixed = helpers.ksampler(sr_model(sketch, render, 2), STEPS, scheduler=scheduler)
    assert torch.equal(sr_sampler(sketch, render, scheduler=scheduler, switch_step=2), mixed)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in ("dpm_fast", "dpm_adaptive")])
def test_for_every_sampler_the_sketch_runs_exactly_switch_step_steps(sampler: str, wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 2, report), STEPS, sampler_name=sampler)
    assert [s.stage for s in report.steps] == ["sketch"] * 2 + ["render"] * 4
    assert [s.step for s in report.steps] == list(range(1, STEPS + 1))
    assert report.hand_overs[0].after_step == 2


# --- every way the host samples -----------------------------------------------------------------------------------------


def sampler_custom(model: Any, sampler: Any = None) -> torch.Tensor:
    return SamplerCustom.execute(
        model,
        True,
        7,
        3.0,
        helpers.prompt(1),
        helpers.prompt(2),
        sampler or KSamplerSelect.execute("euler").args[0],
        BasicScheduler.execute(model, "simple", STEPS, 1.0).args[0],
        helpers.empty_latent(),
    ).args[0]["samples"]


def advanced(guider_of: Any) -> Any:
    def run(model: Any) -> torch.Tensor:
        return SamplerCustomAdvanced.execute(
            RandomNoise.execute(7).args[0],
            guider_of(model),
            KSamplerSelect.execute("res_multistep").args[0],
            BasicScheduler.execute(model, "simple", STEPS, 1.0).args[0],
            helpers.empty_latent(),
        ).args[0]["samples"]

    return run


def ksampler_advanced(model: Any) -> torch.Tensor:
    """Two KSamplerAdvanced in a row, with leftover noise between them."""
    first, second = KSamplerAdvanced(), KSamplerAdvanced()
    call = ("euler", "simple", helpers.prompt(1), helpers.prompt(2))
    (half,) = first.sample(model, "enable", 7, 8, 3.0, *call, helpers.empty_latent(), 0, 4, "enable")
    (whole,) = second.sample(model, "disable", 7, 8, 3.0, *call, half, 4, 8, "disable")
    return whole["samples"]


WAYS = {
    "KSampler": lambda model: helpers.ksampler(model, STEPS, sampler_name="uni_pc"),
    "KSamplerAdvanced": ksampler_advanced,
    "SamplerCustom": sampler_custom,
    "CFGGuider": advanced(lambda m: CFGGuider.execute(m, helpers.prompt(1), helpers.prompt(2), 3.0).args[0]),
    "BasicGuider": advanced(lambda m: BasicGuider.execute(m, helpers.prompt(1)).args[0]),
    "DualCFGGuider": advanced(
        lambda m: DualCFGGuider.execute(
            m, helpers.prompt(1), helpers.prompt(3), helpers.prompt(2), 3.0, 2.0, "regular"
        ).args[0]
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_sampling_is_bit_identical_with_the_same_weights_in_both_stages(way: str, wan: Any) -> None:
    sketch, same, render = wan(), wan(), wan(seed=1)
    plain = WAYS[way](sketch)
    for step in (0, 1, 3, 99):
        assert torch.equal(WAYS[way](sr_model(sketch, same, step)), plain), f"switch after step {step}"
    assert torch.equal(WAYS[way](sr_model(sketch, render, 0)), WAYS[way](render))
    assert not torch.equal(WAYS[way](sr_model(sketch, render, 2)), plain)
    assert torch.equal(WAYS[way](sketch), plain)


def listed(sketch: Any, render: Any, steps: str, report: Any = None, **settings: Any) -> Any:
    return cooperation.cooperate(
        sketch, render, Switch("listed", sketch_steps=steps), RenderSettings(**settings), report or Report()
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_route_that_returns_to_the_sketch_is_bit_identical_for_every_sampler(sampler: str, wan: Any) -> None:
    sketch, report = wan(), Report()
    plain = helpers.ksampler(sketch, STEPS, sampler_name=sampler)
    assert torch.equal(helpers.ksampler(listed(sketch, wan(), "1, 4-5", report), STEPS, sampler_name=sampler), plain)
    if sampler not in ("dpm_fast", "dpm_adaptive"):
        assert [s.stage for s in report.steps] == ["sketch", "render", "render", "sketch", "sketch", "render"]
        assert [(h.after_step, h.to) for h in report.hand_overs] == [(1, "render"), (3, "sketch"), (5, "render")]


@pytest.mark.parametrize("way", WAYS)
def test_a_listed_route_and_three_stages_are_bit_identical_under_every_way_of_sampling(way: str, wan: Any) -> None:
    sketch, plain = wan(), WAYS[way](wan())
    assert torch.equal(WAYS[way](listed(sketch, wan(), "1, 3")), plain)
    assert torch.equal(WAYS[way](sr_model(sr_model(sketch, wan(), 1), wan(), 3)), plain)


def test_the_same_model_object_and_a_clone_serve_as_their_own_render(wan: Any) -> None:
    sketch = wan()
    plain = helpers.ksampler(sketch)
    for render in (sketch, sketch.clone()):
        assert torch.equal(helpers.ksampler(sr_model(sketch, render)), plain)
    assert torch.equal(helpers.ksampler(sketch), plain)


# --- the adaptive rule in a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_an_adaptive_run_of_any_length_renders(steps: int, wan: Any) -> None:
    report = Report()
    model = cooperation.cooperate(wan(), wan(seed=1), Switch(), RenderSettings(), report)
    helpers.ksampler(model, steps)
    assert report.count("render") >= 1 and report.count("sketch") >= 1
    (hand_over,) = report.hand_overs
    assert min(report.earliest, report.latest) <= hand_over.after_step <= report.latest
    assert hand_over.reason in ("criterion", "earliest", "latest")
    if hand_over.reason != "latest":
        assert 0 < hand_over.fall < 0.01


def test_the_criterion_reads_the_guided_prediction_that_the_sampler_gets(wan: Any) -> None:
    """D of the report against D from the host's own callback, in a plain run."""
    seen: list[torch.Tensor] = []
    sketch, report = wan(), Report()
    sampler = comfy.samplers.KSampler(sketch, 8, "cpu", "euler", "simple", 1.0, sketch.model_options)
    noise = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(7))
    sampler.sample(
        noise,
        helpers.prompt(1),
        helpers.prompt(2),
        3.0,
        torch.zeros_like(noise),
        seed=7,
        disable_pbar=True,
        callback=lambda i, denoised, x, total: seen.append(denoised.clone()),
    )
    never = cooperation.cooperate(sketch, wan(), Switch(mode="step", switch_step=99), RenderSettings(), report)
    helpers.ksampler(never, 8)
    expected = [float(module("srd_core.criterion").relative_change(b, a)) for a, b in zip(seen, seen[1:])]
    assert [s.d for s in report.steps[1:]] == pytest.approx(expected, rel=1e-6)


def test_switch_sigma_hands_over_at_the_first_step_below_it(wan: Any) -> None:
    report = Report()
    switch = Switch(mode="sigma", switch_sigma=0.9)
    helpers.ksampler(cooperation.cooperate(wan(), wan(seed=1), switch, RenderSettings(), report), 20)
    assert {s.stage for s in report.steps if s.sigma >= 0.9} == {"sketch"}
    assert {s.stage for s in report.steps if s.sigma < 0.9} == {"render"}


def test_switch_step_beyond_the_run_reports_never(wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 99, report))
    assert not report.hand_overs and "never" in module("srd_core.report.text").summarize(report)


@pytest.mark.parametrize(("sampler", "calls"), [("heun", 2 * 8 - 1), ("dpm_2", 2 * 8 - 1), ("euler", 8)])
def test_samplers_with_two_calls_count_scheduler_steps(sampler: str, calls: int, wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3, report), 8, sampler_name=sampler)
    assert sum(stage.calls for stage in report.stages) == calls
    assert (report.count("sketch"), report.count("render")) == (3, 5)
    assert report.stage("sketch").calls == 3 * (1 if sampler == "euler" else 2)


def test_seconds_of_the_stages_add_up_to_the_run(wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3, report), 8)
    loading = sum(h.seconds for h in report.hand_overs)
    assert 0 < sum(stage.seconds for stage in report.stages) + loading <= report.total_seconds
    assert all(s.seconds and s.seconds > 0 for s in report.steps)


def test_what_the_device_still_does_when_the_sampler_has_counted_its_last_step_belongs_to_that_step(
    wan: Any, monkeypatch: Any
) -> None:
    euler = comfy.k_diffusion.sampling.sample_euler

    def ahead_of_its_device(*args: Any, **kwargs: Any) -> torch.Tensor:
        latent = euler(*args, **kwargs)
        time.sleep(0.5)
        return latent

    monkeypatch.setattr(comfy.k_diffusion.sampling, "sample_euler", ahead_of_its_device)
    report = Report()
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3, report), STEPS)
    assert report.steps[-1].seconds >= 0.5 and report.stage("render").seconds == pytest.approx(
        sum(s.seconds for s in report.steps[3:]), abs=0.3
    )


def test_loading_is_not_counted_to_any_step(wan: Any) -> None:
    """Half a second for each model, by a wrapper of the host around its loading."""

    def slowly(model: Any) -> Any:
        model = model.clone()
        wait = lambda executor, *args, **kwargs: (time.sleep(0.5), executor(*args, **kwargs))[1]  # noqa: E731
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "slow", wait)
        return model

    report = Report()
    helpers.ksampler(sr_model(slowly(wan()), slowly(wan(seed=1)), 3, report), STEPS)
    assert max(s.seconds for s in report.steps) < 0.4 and sum(stage.seconds for stage in report.stages) < 0.9
    assert report.hand_overs[0].seconds >= 0.5 and report.total_seconds >= 1.0


def test_samplers_with_levels_of_their_own_say_so_in_the_report(wan: Any) -> None:
    for sampler in ("dpm_fast", "dpm_adaptive"):
        report = Report()
        helpers.ksampler(sr_model(wan(), wan(seed=1), 2, report), STEPS, sampler_name=sampler)
        assert any("its own noise levels" in note for note in report.notes)
        assert len({s.step for s in report.steps}) == len(report.steps) <= STEPS


@pytest.mark.parametrize(
    ("sampler", "options", "sketch_calls"),
    [
        (SamplerSEEDS2, {"solver_type": "phi_1", "eta": 1.0, "s_noise": 1.0, "r": 1.0}, 2),
        (SamplerSEEDS2, {"solver_type": "phi_1", "eta": 1.0, "s_noise": 1.0, "r": 0.5}, 2),
    ],
    ids=["seeds_2 r=1", "seeds_2 r=0.5"],
)
def test_the_hand_over_never_falls_inside_a_step_whatever_the_samplers_options(
    sampler: Any, options: dict[str, Any], sketch_calls: int, wan: Any
) -> None:
    report = Report()
    model = sr_model(wan(), wan(seed=1), 1, report)
    sampler_custom(model, sampler.execute(**options).args[0])
    assert report.stage("sketch").calls == sketch_calls and report.count("sketch") == 1


def test_ancestral_samplers_with_another_eta_hand_over_at_the_same_step(wan: Any) -> None:
    for eta in (1.0, 0.5):
        report = Report()
        sampler = comfy.samplers.ksampler("dpm_2_ancestral", {"eta": eta})
        sampler_custom(sr_model(wan(), wan(seed=1), 1, report), sampler)
        assert report.stage("sketch").calls == 2 and [s.step for s in report.steps] == list(range(1, STEPS + 1))


def test_the_hand_over_is_one_log_line(wan: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        helpers.ksampler(sr_model(wan(), wan(seed=1), 3))
    (line,) = [r.getMessage() for r in caplog.records if "SRDiffusion" in r.getMessage()]
    assert "switched to the render after step 3 of 6" in line


def test_progress_goes_through_the_hosts_own_callback_once_per_step(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview

    seen = []
    monkeypatch.setattr(latent_preview, "prepare_callback", lambda model, steps: lambda i, *rest: seen.append(i))
    helpers.ksampler(sr_model(wan(), wan(seed=1), 3), 6)
    assert seen == list(range(6))


def test_noise_can_be_left_out(wan: Any) -> None:
    """SamplerCustomAdvanced with DisableNoise on a latent: the same as plain."""
    sketch = wan()

    def run(model: Any) -> torch.Tensor:
        latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))}
        guider = CFGGuider.execute(model, helpers.prompt(1), helpers.prompt(2), 3.0).args[0]
        sigmas = BasicScheduler.execute(model, "simple", STEPS, 1.0).args[0][3:]
        return SamplerCustomAdvanced.execute(
            DisableNoise.execute().args[0], guider, KSamplerSelect.execute("euler").args[0], sigmas, latent
        ).args[0]["samples"]

    assert torch.equal(run(sr_model(sketch, wan(), 1)), run(sketch))


def test_a_prediction_that_is_not_finite_is_told_of_the_step_it_belongs_to_in_samplers_with_two_calls_a_step(
    wan: Any,
) -> None:
    model, calls = wan().clone(), []

    def spoil(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return executor(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spoil", spoil)
    report = Report()
    with pytest.raises(RuntimeError, match=f"not finite .* at step 2 of {STEPS} "):
        helpers.ksampler(sr_model(model, wan(seed=1), STEPS - 1, report), STEPS, cfg=1.0, sampler_name="heun")
    assert report.steps[-1].step == 2
