"""Own steps for the render: the rest of the schedule walked in another number of steps."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import helpers
import pytest
import runs
import torch
from hosting import module
from nodes import KSamplerAdvanced

route, rest, figures = module("srd_core.route"), module("srd_core.rest"), module("srd_core.report.figures")
RULES = {
    "step": runs.Switch("step", switch_step=4),
    "sigma": runs.Switch("sigma", switch_sigma=0.95),
    "listed": runs.Switch("listed", sketch_steps="1-2, 4"),
    "adaptive": runs.ADAPTIVE,
}


def shortened(sketch: Any, render: Any, steps: int, switch: Any, report: Any = None, **settings: Any) -> Any:
    return runs.sr_model(sketch, render, switch, report, render_steps=steps, **settings)


# --- the levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (4, [8, 6, 4, 2, 0]),
        (2, [8, 4, 0]),
        (1, [8, 0]),
        (3, [8, 8 - 8 / 3, 8 - 16 / 3, 0]),
        (8, [8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_the_rest_is_walked_evenly_in_index(steps: int, expected: list[float]) -> None:
    assert rest.resampled([8.0, 7, 6, 5, 4, 3, 2, 1, 0], steps) == pytest.approx(expected)


def test_a_divisor_takes_the_schedules_own_levels_bit_for_bit() -> None:
    levels = torch.rand(41).sort(descending=True).values.tolist()
    assert rest.resampled(levels, 20) == levels[::2]


@pytest.mark.parametrize("name", ["step", "sigma", "listed"])
def test_a_rest_that_is_known_is_set_before_the_run(name: str) -> None:
    levels = [1.0, 0.99, 0.98, 0.96, 0.9, 0.7, 0.5, 0.3, 0.0]
    found, walked = rest.known(route.Pair("a", "b", RULES[name], render_steps=2), levels, lambda levels: levels)
    assert found == [1.0, 0.99, 0.98, 0.96, 0.9, 0.5, 0.0] and len(walked) == 1


def test_an_adaptive_rest_is_not_known_before() -> None:
    levels = [1.0, 0.9, 0.5, 0.0]
    assert rest.known(
        route.Pair("a", "b", runs.Switch(switch_sigma=0.0), render_steps=1), levels, lambda levels: levels
    ) == (levels, set())


def test_an_outer_rule_counts_the_steps_that_really_run() -> None:
    inner = route.Pair("high", "low", runs.Switch("step", switch_step=2), render_steps=3)
    levels = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.0]
    whole = route.Pair(inner, "small", runs.Switch("step", switch_step=4), render_steps=2)
    found, _ = rest.known(whole, levels, lambda levels: levels)
    assert found == pytest.approx([1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guider", "sampler"), zip(runs.GUIDERS, ["uni_pc", "euler", "dpmpp_2m_sde"]))
def test_under_any_guider_a_known_rest_is_the_plain_run_over_those_levels(guider: str, sampler: str, wan: Any) -> None:
    sketch = wan()
    levels, how = runs.levels_of(sketch, 10).tolist(), {"guider": guider}
    plain = runs.sampled(sketch, sampler, torch.tensor([*levels[:4], *rest.resampled(levels[4:], 3)]), **how)
    for rule in ("step", "listed"):
        model = shortened(sketch, wan(), 3, RULES[rule])
        assert torch.equal(runs.sampled(model, sampler, torch.tensor(levels), **how), plain), rule


def test_under_ksampler_advanced_the_rest_of_its_own_steps_is_walked(wan: Any) -> None:
    prompts = (helpers.prompt(1), helpers.prompt(2))

    def half(model: Any) -> torch.Tensor:
        how = (12, 3.0, "euler", "simple", *prompts, helpers.empty_latent(), 2, 10, "enable")
        return KSamplerAdvanced().sample(model, "enable", 7, *how)[0]["samples"]

    report = runs.Report()
    half(shortened(wan(), wan(seed=1), 2, 3, report))
    assert (report.given_steps, len(report.sigmas) - 1) == (8, 5)
    assert [s.stage for s in report.steps] == ["sketch"] * 3 + ["render"] * 2
    assert torch.equal(half(shortened(wan(), wan(), 5, 3)), half(wan()))


def test_begun_anew_euler_is_the_run_over_the_walked_levels(wan: Any) -> None:
    """Euler has no history: ending and beginning changes only the rounding."""
    report, sketch, render = runs.Report(), wan(), wan(seed=1)
    latent = helpers.ksampler(shortened(sketch, render, 4, runs.ADAPTIVE, report), 20)
    k = report.hand_overs[0].after_step
    expected = helpers.ksampler(shortened(sketch, render, 4, k), 20)
    assert runs.distance(latent, expected) < 1e-5


@pytest.mark.parametrize("noisy", [False, True])
def test_masked_runs_keep_what_they_should_when_the_sampler_begins_anew(noisy: bool, wan: Any) -> None:
    given = runs.a_video()
    latent = {"samples": given, "noise_mask": runs.right_half()}
    model = shortened(wan(), wan(seed=1), 4, runs.ADAPTIVE)
    out = helpers.ksampler(model, 20, latent=latent, sampler_name="euler_ancestral" if noisy else "euler")
    assert torch.allclose(out[..., :4], given[..., :4], atol=1e-4)


def test_progress_counts_the_steps_that_really_run(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview

    told: list[tuple[int, int]] = []
    tell = lambda model, steps: lambda step, x0, x, total: told.append((step, total))  # noqa: E731
    monkeypatch.setattr(latent_preview, "prepare_callback", tell)
    for rule in ("step", "adaptive"):
        report = runs.Report()
        told.clear()
        helpers.ksampler(shortened(wan(), wan(seed=1), 3, RULES[rule], report), 20)
        k = report.hand_overs[0].after_step
        assert [step for step, _ in told] == list(range(k + 3))
        assert {total for step, total in told if step >= k} == {k + 3}


def test_the_render_with_teacache_plans_the_steps_that_really_run() -> None:
    for rule in ("step", "adaptive"):
        report = runs.Report()
        helpers.ksampler(
            shortened(runs.slow_wan(), runs.slow_wan(1), 12, RULES[rule], report, teacache=runs.THRESHOLD), 20
        )
        plan, k = report.stage("render").teacache, report.hand_overs[0].after_step
        assert plan["first_step"] == k and len(plan["reuse"]) <= 12
        assert report.reused("render") == sum(plan["reuse"]) > 0


def test_the_speed_up_is_over_all_the_steps_that_a_few_stand_for(wan: Any) -> None:
    report = runs.Report()
    helpers.ksampler(shortened(wan(), wan(seed=1), 4, 10, report), 50, cfg=1.0)
    each = figures.medians(report)
    expected = 50 * each["sketch", False] / (10 * each["sketch", False] + 4 * each["render", False])
    assert (report.given_steps, len(report.steps)) == (50, 14) and figures.speed_up(report) == pytest.approx(expected)


def test_what_if_reckons_with_the_renders_own_steps(wan: Any) -> None:
    report = runs.Report()
    helpers.ksampler(shortened(wan(), wan(seed=1), 4, runs.Switch(switch_sigma=0.5), report), 20)
    each = figures.medians(report)
    rows = [row for row in figures.what_if(report) if row["after"] is not None and row["seconds"] is not None]
    assert rows
    for row in rows:
        assert row["seconds"] == pytest.approx(row["after"] * each["sketch", False] + 4 * each["render", False])


def test_a_render_that_has_no_rest_is_refused_before_any_step(wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match="the sketch runs the last step"):
        helpers.ksampler(shortened(sketch, wan(seed=1), 4, "1-3, 10"), 10)
    assert not calls


@runs.FAULTS
def test_after_a_fault_in_a_rest_that_began_anew_plain_runs_are_as_before(fault: Any, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), runs.Report()
    model = shortened(sketch, fault(render, 3), 4, runs.ADAPTIVE, report, fade=1.1)
    with runs.left_as_before(sketch, render):
        helpers.ksampler(model, 20, sampler_name="uni_pc")
    assert report.status == ("failed" if fault is runs.failing else "interrupted")
    assert [step.stage for step in report.steps if step.seconds is not None][-2:] == ["render"] * 2


@pytest.mark.parametrize("call", [1, 3])
def test_a_shortage_in_a_rest_that_began_anew_gets_a_second_try(call: int, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), runs.Report()
    how = {"sampler_name": "uni_pc"}
    plain = helpers.ksampler(shortened(sketch, render, 4, runs.ADAPTIVE, fade=1.1), 20, **how)
    model = shortened(sketch, runs.out_of_memory(render, call), 4, runs.ADAPTIVE, report, fade=1.1)
    assert torch.equal(helpers.ksampler(model, 20, **how), plain)
    assert any(note.startswith("Out of memory in the render") for note in report.notes)


def test_without_a_history_the_halves_of_a_known_rest_are_one_run_too(wan: Any) -> None:
    record = runs.sketched(wan(), steps=10, switch_mode="step", switch_step=4)[0]
    one = helpers.ksampler(shortened(wan(), wan(seed=1), 3, RULES["step"]), 10)
    latent = runs.rendered(record, wan(seed=1), render_steps=3)[0]["samples"]
    assert runs.distance(latent, one) < 1e-5


def test_a_run_that_begins_as_the_renders_is_walked_before_it_begins(wan: Any) -> None:
    """With a first level below switch_sigma: bit for bit the render over those levels; nothing begins anew."""
    report, render = runs.Report(), wan(seed=1)
    latent = helpers.ksampler(
        shortened(wan(), render, 10, runs.Switch(), report), 10, denoise=0.4, sampler_name="euler_ancestral"
    )
    assert torch.equal(latent, helpers.ksampler(render, 10, denoise=0.4, sampler_name="euler_ancestral"))
    assert not report.notes


def test_the_last_seeds_have_a_next_one(wan: Any) -> None:
    model = shortened(wan(), wan(seed=1), 3, runs.ADAPTIVE)
    assert torch.isfinite(helpers.ksampler(model, 10, seed=2**64 - 2, sampler_name="euler_ancestral")).all()


def test_a_sampler_that_enlarges_the_video_before_the_hand_over_is_not_begun_anew(wan: Any) -> None:
    report = runs.Report()
    model = shortened(wan(), wan(seed=1), 3, runs.ADAPTIVE, report, fade=1.1)
    out = runs.sampled(model, comfy.samplers.KSAMPLER(runs.growing), runs.levels_of(model, 20))
    assert out.shape[-1] == 16 and any("render_steps is not followed" in note for note in report.notes)


def test_a_list_that_render_steps_cut_short_is_refused_with_the_reason(wan: Any) -> None:
    inner = shortened(wan(seed=1), wan(seed=2), 4, 6)
    outer = runs.sr_model(wan(), inner, "1-3, 18")
    with pytest.raises(ValueError, match="the run has 10 steps, because render_steps makes them of 20"):
        helpers.ksampler(outer, 20)


def test_differential_diffusion_goes_by_the_whole_run_also_where_the_sampler_begins_anew(wan: Any) -> None:
    how, cut = {"latent": runs.softly_masked()}, runs.Report()
    helpers.ksampler(runs.sr_model(runs.soft(wan()), wan(), runs.ADAPTIVE, cut), 20, **how)
    left = 20 - cut.hand_overs[0].after_step
    anew = helpers.ksampler(shortened(runs.soft(wan()), wan(), left, runs.ADAPTIVE), 20, **how)
    assert runs.distance(anew, helpers.ksampler(runs.soft(wan()), 20, **how)) < 1e-5


def test_a_listed_step_beyond_the_run_is_refused_however_many_steps_the_render_takes(wan: Any) -> None:
    with pytest.raises(ValueError, match="sketch_steps names step 12, but the run has 10 steps. Name"):
        helpers.ksampler(shortened(wan(), wan(seed=1), 20, "1-3, 12"), 10)


def test_more_own_steps_than_a_run_may_have_are_refused_before_a_list_is_made_of_them(wan: Any) -> None:
    with pytest.raises(ValueError, match="render_steps is 1000000000; it must be from 0 to 10000"):
        shortened(wan(), wan(seed=1), 10**9, runs.ADAPTIVE)


def test_own_steps_are_those_of_sr_render_where_max_step_is_the_earliest_step(wan: Any) -> None:
    how: dict[str, Any] = {"steps": 20, "switch_mode": "adaptive", "max_step": 5, "sampler_name": "uni_pc"}
    one = runs.sr_sampler(wan(), wan(seed=1), render_steps=6, **how)
    record = runs.sketched(wan(), **how)[0]
    assert torch.equal(runs.rendered(record, wan(seed=1), render_steps=6)[0]["samples"], one)
