"""Samplers of other packs: the switch comes between two steps, after the one asked for, whatever they tell us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers
import pytest
import runs
import torch
from comfy.samplers import KSAMPLER
from runs import OWN_LEVELS, Report, Switch, sr_model

STEPS = 8


@pytest.fixture(scope="module")
def models(wan: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A sketch, another model of the same weights, a render."""
    return wan(), wan(), wan(seed=1)


def sampled(model: Any, sampler: Any, padded: bool = False, rising: bool = False) -> torch.Tensor:
    """SamplerCustomAdvanced without guidance. padded: with a level 0 in front; rising: with levels that rise."""
    sigmas = runs.levels_of(model, STEPS)
    if padded:
        sigmas = torch.cat([torch.zeros(1), sigmas, torch.zeros(1)])
    if rising:
        sigmas = torch.cat([sigmas.flip(0), torch.zeros(1)])
    return runs.sampled(model, sampler, sigmas, cfg=1.0)


def handed_over(sampler: Any, after: int, models: Any, **how: Any) -> Any:
    """The report of a run that is to switch after so many steps."""
    report = Report()
    sampled(sr_model(models[0], models[2], after, report), sampler, **how)
    return report


# --- another noise level than the schedule's --------------------------------------------------------------------------


def lying(name: str, factor: float, window: tuple[int, int], told: bool = True) -> KSAMPLER:
    """As Detail Daemon and Lying Sigma do: in the window's steps the model is told sigma times ``factor``.

    told: the wrapped sampler stands among the options, as there; else nobody can know it.
    """
    inner = comfy.samplers.sampler_object(name)

    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> torch.Tensor:
        high, low = float(sigmas[window[0]]), float(sigmas[window[1]])

        def lie(x: torch.Tensor, sigma: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            inside = low < float(sigma[0]) <= high
            return model(x, sigma * factor if inside else sigma, **kwargs)

        lie.inner_model = model.inner_model  # type: ignore[attr-defined]
        lie.__dict__.update({"model_patcher": getattr(model, "model_patcher", None)})
        return inner.sampler_function(
            lie, x, sigmas, extra_args=extra_args, callback=callback, disable=True, **inner.extra_options
        )

    return KSAMPLER(sample, {"dds_wrapped_sampler": inner} if told else {})


WINDOWS = [(0, 3), (3, 6), (6, 8), (0, 8)]
FACTORS = [0.9, 0.98, 1.02, 1.1]
NAMES = ["euler", "heun", "dpmpp_2m", "uni_pc"]
# Every name with every window and with every factor, every window with every factor.
SQUARE = [(NAMES[i], WINDOWS[j], FACTORS[(i + j) % 4]) for i in range(4) for j in range(4)]


@pytest.mark.parametrize(("name", "window", "factor"), SQUARE, ids=lambda value: str(value).replace(", ", "-"))
def test_a_sampler_that_tells_other_levels_switches_after_the_step_asked_for(
    name: str, window: tuple[int, int], factor: float, models: Any
) -> None:
    calls = 2 if name == "heun" else 1
    for after in (2, 6):
        report = handed_over(lying(name, factor, window), after, models)
        assert (report.count("sketch"), report.count("render")) == (after, STEPS - after)
        assert report.stage("sketch").calls == after * calls
        assert report.notes == []


@pytest.mark.parametrize(("name", "factor"), [("euler", 0.9), ("heun", 1.1)])
def test_the_same_for_a_wrapper_that_does_not_tell_what_it_wraps(name: str, factor: float, models: Any) -> None:
    report = handed_over(lying(name, factor, (3, 6), told=False), 4, models)
    assert (report.count("sketch"), report.stage("sketch").calls) == (4, 4 * (2 if name == "heun" else 1))


@pytest.mark.parametrize("name", [s for s in comfy.samplers.KSampler.SAMPLERS if s not in OWN_LEVELS])
def test_for_every_sampler_with_other_levels_the_invariants_hold(name: str, models: Any) -> None:
    """The same weights in both stages give the plain run, and the sketch runs the steps that were asked for."""
    sampler, (sketch, same, _), report = lying(name, 0.95, (2, 6)), models, Report()
    plain = sampled(sketch, sampler)
    assert torch.equal(sampled(sr_model(sketch, same, 4, report), sampler), plain)
    assert report.count("sketch") == 4 and report.notes == []


def test_with_other_levels_the_rule_sees_every_step(models: Any) -> None:
    report, never = Report(), Switch(switch_sigma=0.0, delta=1e-9)
    sampled(sr_model(models[0], models[2], never, report), lying("euler", 0.9, (0, 8)))
    assert [step.d is not None for step in report.steps] == [False] + [True] * (STEPS - 1)


# --- callbacks at the end of a step -----------------------------------------------------------------------------------


def at_end(fractions: Sequence[float], warm: int = 0) -> KSAMPLER:
    """A sampler as RES4LYF's: several calls a step, then the callback.

    fractions: where in the step each further call lies (1: the next level). warm: so many steps have the first alone.
    """

    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> torch.Tensor:
        ones = x.new_ones([x.shape[0]])
        for i in range(len(sigmas) - 1):
            now, following = sigmas[i], sigmas[i + 1]
            denoised = model(x, now * ones, **extra_args)
            slope = (x - denoised) / now
            if following > 0 and i >= warm:
                for fraction in fractions:
                    between = now + fraction * (following - now)
                    slope = (x - model(x + slope * (between - now), between * ones, **extra_args)) / now
            x = x + slope * (following - now)
            callback({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        return x

    return KSAMPLER(sample)


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("fractions", [(), (0.5,), (1.0,), (0.67,), (0.33, 0.67), (0.5, 1.0), (0.2, 0.8)], ids=str)
def test_a_sampler_that_calls_back_after_its_step_hands_over_between_steps(
    fractions: Any, warm: int, models: Any
) -> None:
    for after in (1, 6):
        report = handed_over(at_end(fractions, warm), after, models)
        assert [step.stage for step in report.steps] == ["sketch"] * after + ["render"] * (STEPS - after)
        each = [1 + (len(fractions) if warm <= i < STEPS - 1 else 0) for i in range(STEPS)]
        assert report.stage("sketch").calls == sum(each[:after])
        assert report.notes == []


# --- no callbacks, and calls outside the steps ------------------------------------------------------------------------


def euler_with(before_step: Callable[[Any, Any, Any], None], calls_back: bool = True) -> KSAMPLER:
    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> torch.Tensor:
        ones = x.new_ones([x.shape[0]])
        for i in range(len(sigmas) - 1):
            denoised = model(x, sigmas[i] * ones, **extra_args)
            if calls_back:
                callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
            before_step(lambda level, x=x: model(x, level * ones, **extra_args), sigmas[i], sigmas[i + 1])
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    return KSAMPLER(sample)


def test_a_sampler_without_callbacks_is_counted_by_its_levels(models: Any) -> None:
    report = handed_over(euler_with(lambda *_: None, calls_back=False), 5, models)
    assert report.stage("sketch").calls == 5


@pytest.mark.parametrize("where", [0.3, 0.97], ids=["in the step", "beside its level"])
def test_calls_outside_the_steps_begin_none(where: float, models: Any) -> None:
    def more(call: Any, now: Any, following: Any) -> None:
        call(now + where * (following - now))

    for after in (1, 4, 7):
        report = handed_over(euler_with(more), after, models)
        assert (report.count("sketch"), report.stage("sketch").calls) == (after, 2 * after)


def test_only_a_sampler_with_steps_of_its_own_is_said_to_choose_them(models: Any) -> None:
    def half_as_many(model: Any, x: Any, sigmas: Any, **how: Any) -> torch.Tensor:
        return comfy.samplers.sampler_object("euler").sampler_function(model, x, sigmas[::2], **how)

    report = handed_over(KSAMPLER(half_as_many), 3, models)
    (note,) = report.notes
    assert "its own noise levels" in note


# --- a level 0 in front -----------------------------------------------------------------------------------------------


def resampling(start: int = 0) -> KSAMPLER:
    """As RES4LYF's samplers in resample mode: they drop the 0 at each end of the schedule.

    The first 0 keeps the host from adding noise. start: the step at which a chain's next sampler continues. Callbacks
    count along the padded schedule.
    """

    def sample(model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any) -> torch.Tensor:
        assert float(sigmas[0]) == float(sigmas[-1]) == 0
        inner, ones = sigmas[1:-1], x.new_ones([x.shape[0]])
        for i in range(start, len(inner) - 1):
            denoised = model(x, inner[i] * ones, **extra_args)
            x = x + (x - denoised) / inner[i] * (inner[i + 1] - inner[i])
            number = round(i / (len(inner) - 1) * (len(sigmas) - 1))
            callback({"x": x, "i": number, "sigma": inner[i], "sigma_hat": inner[i], "denoised": denoised})
        return x

    return KSAMPLER(sample)


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_level_0_in_front_that_the_sampler_drops_is_no_step(after: int, models: Any) -> None:
    report = handed_over(resampling(), after, models, padded=True)
    assert [step.stage for step in report.steps] == ["sketch"] * after + ["render"] * (STEPS - after)
    assert report.stage("sketch").calls == after and report.notes == []
    assert len(report.sigmas) == STEPS + 1 and report.sigmas[0] == 1.0
    same = sr_model(models[0], models[1], after)
    assert torch.equal(sampled(same, resampling(), padded=True), sampled(models[0], resampling(), padded=True))


@pytest.mark.parametrize(("start", "after"), [(2, 4), (6, 4)])
def test_a_sampler_that_continues_a_chain_counts_from_where_it_starts(start: int, after: int, models: Any) -> None:
    report = handed_over(resampling(start), after, models, padded=True)
    assert [step.step for step in report.steps] == list(range(start + 1, STEPS + 1))
    assert report.count("sketch") == max(after - start, 0) and report.notes == []


def test_a_level_0_in_front_of_a_sampler_that_starts_there_is_refused(models: Any) -> None:
    for sampler in (comfy.samplers.sampler_object("euler"), lying("euler", 0.9, (0, 4))):
        with pytest.raises(ValueError, match="begins at noise level 0.*resample") as error:
            handed_over(sampler, 6, models, padded=True)
        assert "0.9" not in str(error.value) and len(str(error.value)) < 300


def test_levels_that_rise_are_refused_by_what_makes_them(models: Any) -> None:
    with pytest.raises(ValueError, match="rises.*unsample") as error:
        handed_over(resampling(), 3, models, rising=True)
    assert len(str(error.value)) < 300


# --- levels that coincide with others of the schedule -----------------------------------------------------------------

# Wrappers multiply a level; where the product is the next level, only the number of calls tells the steps apart.
SEVERAL_CALLS = {
    "heun": 2,
    "exp_heun_2_x0": 2,
    "dpm_2": 2,
    "dpm_2_ancestral": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "seeds_2": 2,
    "seeds_3": 3,
}


@pytest.mark.parametrize("name", SEVERAL_CALLS)
def test_a_told_level_that_is_another_steps_begins_no_step(name: str, models: Any) -> None:
    levels = runs.levels_of(models[0], STEPS)
    for after, at in ((1, 0), (4, 3), (6, 4)):
        sampler = lying(name, float(levels[at + 1] / levels[at]), (at, at + 1))
        report = handed_over(sampler, after, models)
        assert report.stage("sketch").calls == after * SEVERAL_CALLS[name], (after, at)


def test_a_closing_callback_does_not_make_other_steps(models: Any) -> None:
    """RES4LYF calls back once more, with the number of steps, when it has ended."""
    inner = at_end((0.5,))

    def sample(model: Any, x: Any, sigmas: Any, callback: Any = None, **how: Any) -> torch.Tensor:
        x = inner.sampler_function(model, x, sigmas, callback=callback, **how)
        callback({"x": x, "i": len(sigmas) - 1, "sigma": sigmas[-1], "sigma_hat": sigmas[-1], "denoised": x})
        return x

    report = handed_over(KSAMPLER(sample), 5, models)
    assert report.notes == [] and report.count("sketch") == 5
