"""Scheduler steps are counted for every sampler of the host, and a step's calls stay together."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import helpers
import pytest
import runs
import torch
from hosting import module
from runs import OWN_LEVELS, STEPS, sr_model

steps_module = module("srd_core.steps")


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


@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_call_is_counted_to_its_step_also_where_levels_are_not_read(
    sampler: str, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter's opinion at the time of each call.

    The truth: in the host's samplers a step's callback follows its first call, so the calls between two callbacks, but
    for the last, belong to the earlier step. Beside it: counters that stop reading levels once it is seen that every
    step is one call, from the start and from the middle of the run, as TeaCache counts on the render.
    """
    told: list[int] = []
    calls_between, made = [0], []
    frugal: dict[int, Any] = {}  # by the step that it begins at
    opinions: dict[int, list[tuple[int, int]]] = {0: [], 2: []}
    read: dict[int, list[bool]] = {0: [], 2: []}
    on_call, on_callback = steps_module.StepCounter.on_call, steps_module.StepCounter.on_callback

    def spy_call(self: Any, sigma: float) -> bool:
        new = on_call(self, sigma)
        told.append(self.step)
        calls_between[-1] += 1
        for first in opinions:
            counter = frugal.setdefault(first, steps_module.StepCounter(self.sigmas, self.look_ahead))
            if self.step >= first or counter.step >= 0:
                read[first].append(counter.needs_sigma)
                on_call(counter, sigma if counter.needs_sigma else None)
                opinions[first].append((counter.step, self.step))
        return new

    def spy_callback(self: Any, i: int) -> None:
        made.append(i)
        calls_between.append(0)
        for counter in (self, *frugal.values()):
            on_callback(counter, i)

    monkeypatch.setattr(steps_module.StepCounter, "on_call", spy_call)
    monkeypatch.setattr(steps_module.StepCounter, "on_callback", spy_callback)
    helpers.ksampler(sr_model(wan(), wan(), 99), STEPS, sampler_name=sampler, cfg=1.0)

    if sampler not in OWN_LEVELS:
        truth = []
        for i, count in enumerate(calls_between):
            truth += [max(i - 1, 0)] * max(count - 1, 0) + ([min(i, STEPS - 1)] if count else [])
        assert made == list(range(STEPS)) and told == truth
    for first, seen in opinions.items():
        one_call = len(seen) == STEPS - first and sampler not in OWN_LEVELS
        assert not one_call or read[first] == [True] * 3 + [False] * (STEPS - first - 3)
        if one_call or not all(read[first]):
            assert all(ours == theirs for ours, theirs in seen)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "ddim", "euler_ancestral"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_level_that_comes_twice_is_two_steps(at: int, sampler: str, wan: Any) -> None:
    levels = runs.levels_of(wan(), 5)
    sigmas = torch.cat([levels[: at + 1], levels[at:]])  # as where two schedules are joined
    for step in range(1, 5):
        report = runs.Report()
        runs.sampled(sr_model(wan(), wan(seed=1), step, report), sampler, sigmas)
        assert [s.stage for s in report.steps] == ["sketch"] * step + ["render"] * (6 - step)
