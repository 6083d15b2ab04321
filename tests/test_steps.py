"""Scheduler steps are counted for every sampler of the host, and a step's calls stay together."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import helpers
import pytest
from hosting import module

steps_module, cooperation = module("srd_core.steps"), module("srd_core.pair")
criterion, report_module = module("srd_core.route"), module("srd_core.report.data")

# These two choose their own noise levels: they take only the first and the last of the schedule.
OWN_SCHEDULE = {"dpm_fast", "dpm_adaptive"}
STEPS = 6


def run_with_spies(on_call: Any, on_callback: Any, sampler: str, wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the sketch alone in which the counter's methods are these."""
    monkeypatch.setattr(steps_module.StepCounter, "on_call", on_call)
    monkeypatch.setattr(steps_module.StepCounter, "on_callback", on_callback)
    never = criterion.Switch(mode="step", switch_step=99)
    model = cooperation.cooperate(wan(), wan(), never, cooperation.RenderSettings(), report_module.Report())
    helpers.ksampler(model, steps=STEPS, sampler_name=sampler)


def test_the_counter_follows_heun_with_and_without_knowing_it() -> None:
    sigmas = [1.0, 0.8, 0.5, 0.0]
    calls = [(1.0, 0), (0.8, None), (0.8, 1), (0.5, None), (0.5, 2)]  # (sigma, callback after the call)
    for look_ahead, expected in (((1,), [0, 0, 1, 1, 2]), ((), [0, 1, 1, 1, 2])):
        counter = steps_module.StepCounter(sigmas, look_ahead)
        seen = []
        for sigma, callback in calls:
            counter.on_call(sigma)
            seen.append(counter.step)
            if callback is not None:
                counter.on_callback(callback)
        assert seen == expected  # unknown: the first step's corrector looks like step 1; from then on it is learned


@pytest.mark.parametrize("sampler", [s for s in comfy.samplers.KSampler.SAMPLERS if s not in OWN_SCHEDULE])
def test_every_call_is_counted_to_the_step_that_makes_it(
    sampler: str, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth: in the host's samplers a step's callback follows its first call, so the calls between two callbacks,
    but for the last, belong to the earlier step. Only the counter's own opinion at the time of the call is compared.
    """
    told, calls_between, made = [], [0], []
    on_call, on_callback = steps_module.StepCounter.on_call, steps_module.StepCounter.on_callback

    def spy_call(self: Any, sigma: float) -> bool:
        new = on_call(self, sigma)
        told.append(self.step)
        calls_between[-1] += 1
        return new

    def spy_callback(self: Any, i: int) -> None:
        made.append(i)
        calls_between.append(0)
        on_callback(self, i)

    run_with_spies(spy_call, spy_callback, sampler, wan, monkeypatch)

    truth = []
    for i, count in enumerate(calls_between):
        truth += [max(i - 1, 0)] * max(count - 1, 0) + ([min(i, STEPS - 1)] if count else [])
    assert made == list(range(STEPS))
    assert told == truth


@pytest.mark.parametrize("first", [0, 2], ids=["from the start", "from the middle of the run"])
@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_noise_levels_need_not_be_read_once_it_is_seen_that_every_step_is_one_call(
    sampler: str, first: int, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opinion of a counter that stops reading, against one that reads every call. TeaCache counts like this: on the
    render from the hand-over on.
    """
    frugal: Any = None
    opinions: list[tuple[int, int]] = []
    read: list[bool] = []
    on_call, on_callback = steps_module.StepCounter.on_call, steps_module.StepCounter.on_callback

    def spy_call(self: Any, sigma: float) -> bool:
        nonlocal frugal
        if frugal is None:
            frugal = steps_module.StepCounter(self.sigmas, self.look_ahead)
        new = on_call(self, sigma)
        if self.step >= first or frugal.step >= 0:
            read.append(frugal.needs_sigma)
            on_call(frugal, sigma if frugal.needs_sigma else None)
            opinions.append((frugal.step, self.step))
        return new

    def spy_callback(self: Any, i: int) -> None:
        on_callback(self, i)
        if frugal is not None:
            on_callback(frugal, i)

    run_with_spies(spy_call, spy_callback, sampler, wan, monkeypatch)
    one_call = len(opinions) == STEPS - first and sampler not in OWN_SCHEDULE
    if one_call:
        assert read == [True] * 3 + [False] * (STEPS - first - 3)
    if one_call or not all(read):
        assert all(ours == truth for ours, truth in opinions)
