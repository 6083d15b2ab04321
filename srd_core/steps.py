"""Which scheduler step a model call belongs to: by the sampler's callbacks, and its noise levels between."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Samplers whose steps end with calls at the *next* noise levels: offsets in steps, and the option (with its default and
# the value) at which they do. Any other sampler of this kind is learned from the calls of its first step.
LOOK_AHEAD: dict[str, tuple[tuple[int, ...], tuple[str, float, float] | None]] = {
    "sample_heun": ((1,), None),
    "sample_heunpp2": ((1, 2), None),
    "sample_exp_heun_2_x0": ((1,), None),
    "sample_exp_heun_2_x0_sde": ((1,), None),
    "sample_seeds_2": ((1,), ("r", 0.5, 1.0)),
    "sample_dpm_2_ancestral": ((1,), ("eta", 1.0, 1.0)),  # its midpoint is then the next level
    "sample_dpmpp_2s_ancestral_cfg_pp": ((1,), ("eta", 1.0, 1.0)),
}
# Calls of every step but the last, of samplers that make further calls between two levels.
CALLS = {
    "sample_dpm_2": 2,
    "sample_dpm_2_ancestral": 2,
    "sample_dpmpp_2s_ancestral": 2,
    "sample_dpmpp_2s_ancestral_cfg_pp": 2,
    "sample_dpmpp_sde": 2,
    "sample_dpmpp_sde_gpu": 2,
    "sample_seeds_2": 2,
    "sample_seeds_3": 3,
}
# They take only the first and the last level of the schedule.
OWN_LEVELS = ("dpm_fast_function", "dpm_adaptive_function")

# So many whole intervals between callbacks have to be one call before every step is taken to be one. Some samplers
# (sa_solver_pece) begin with a step that is.
SINGLE_CALLS = 2


def look_ahead(sampler: str, options: Mapping[str, Any]) -> tuple[int, ...]:
    """The offsets at which every step of a host's sampler function makes further calls, as far as they are known."""
    offsets, condition = LOOK_AHEAD.get(sampler, ((), None))
    if condition is None:
        return offsets
    option, default, value = condition
    return offsets if options.get(option, default) == value else ()


def sampler_name(sampler: Any) -> str:
    """The name of a host's sampler object: its function's, sample_euler, or its class's."""
    return getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)


def innermost(sampler: Any) -> Any:
    """The sampler that another one is wrapped around (Detail Daemon keeps it among its options); else itself."""
    inner = [value for value in getattr(sampler, "extra_options", {}).values() if hasattr(value, "sampler_function")]
    return innermost(inner[0]) if inner else sampler


def is_padded(sigmas: Sequence[float]) -> bool:
    """Whether a level 0 stands in front: other packs' samplers drop it, and it keeps the host from adding noise."""
    return len(sigmas) > 2 and sigmas[0] == 0 < sigmas[1]


def counter_for(sampler: Any, sigmas: Iterable[Any]) -> StepCounter:
    """The counter of a run of a host's sampler object over ``sigmas``, a tensor [steps + 1] or numbers.

    The levels are copied: uni_pc writes 0.001 into the last sigma of the host's tensor.
    """
    sampler, levels = innermost(sampler), [float(s) for s in sigmas]
    name, padded = sampler_name(sampler), is_padded(levels)
    if padded:
        levels = levels[1:-1] if levels[-1] == 0 else levels[1:]
    ahead = look_ahead(name, getattr(sampler, "extra_options", {}))
    return StepCounter(levels, ahead, CALLS.get(name, 0), own_levels=name in OWN_LEVELS, padded=padded)


@dataclass
class StepCounter:
    """Follows a sampler through its steps. A step ends no earlier than its callback, so the next one begins after it.

    The host's samplers call back after a step's first call. What follows until the next step's first call is told from
    it by the noise level, where that is one of the schedule, else by the number of calls of the step before: nodes
    around a sampler (Detail Daemon) tell the model other levels. Other packs' samplers (RES4LYF) call back after a
    step's last call. dpm_fast and dpm_adaptive choose their own levels: there a step is an interval of the schedule.
    """

    sigmas: Sequence[float]  # of the run, falling, length steps + 1
    look_ahead: tuple[int, ...] = ()  # offsets at which every step makes further calls
    calls_a_step: int = 0  # of the step before, or of every step where that is known; 0: unknown
    own_levels: bool = False  # the sampler takes only the ends of the schedule
    # a level in front was dropped: the run may begin at a later step, and callbacks are numbered otherwise
    padded: bool = False
    step: int = -1  # 0-based, of the newest call; -1 before the first
    needs_sigma: bool = True  # False once every step is known to be one call: callbacks then count the steps
    callbacks: int = 0
    _completed: int = -1  # the step of the last callback
    _number: int = -1  # that the sampler gave it
    _calls: list[tuple[int, bool]] = field(default_factory=list)  # since it: (index in the schedule, on a level)
    _first_calls: int = 0  # before the first callback
    _at_end: bool = False  # the sampler calls back after a step's last call
    _single: int = 0  # intervals in a row that were one call
    # the sampler has come two levels further without a callback: the levels alone count its steps
    _silent: bool = False
    _expected: list[int] = field(default_factory=list)  # look_ahead calls that this step has still to make
    _elsewhere: bool = False  # a step began on another step's level

    @property
    def steps(self) -> int:
        """Of the schedule."""
        return len(self.sigmas) - 1

    @property
    def other_steps(self) -> bool:
        """At the end of a run: whether the sampler's steps were others than those of the schedule."""
        as_many = self.callbacks in (0, self.steps)
        return self.own_levels or (self._elsewhere and not as_many and not self.padded)

    def on_call(self, sigma: float | None) -> bool:
        """Note a model call at ``sigma`` (None unless ``needs_sigma``); True when it begins a new ``step``."""
        place = (self.step, False) if sigma is None else self._locate(sigma)
        self._calls.append(place)
        begins = self._begins(sigma, place)
        self._elsewhere |= begins and place[1] and place[0] != self.step
        return begins

    def _begins(self, sigma: float | None, place: tuple[int, bool]) -> bool:
        if self.step < 0:
            return self._begin(place[0] if self.padded and place[1] else 0)
        if self.own_levels:
            return place[0] > self.step and self._begin(place[0])
        self._silent |= self.callbacks == 0 and place[1] and place[0] > self.step + 1
        if self._silent:
            return place[1] and place[0] > self.step and self._begin(place[0])
        if self._completed < self.step or self.step + 1 >= self.steps:
            return False
        return self._next_step(sigma, *place) and self._begin(self._completed + 1)

    def forget_call(self) -> None:
        """The newest call failed and will be made again."""
        self._calls.pop()

    def on_callback(self, number: int) -> None:
        """Note the sampler's callback, with the number that it gives the step. A repeated number is the same step."""
        if number == self._number:
            return
        self.callbacks += 1
        calls, self._calls = self._calls, []
        self._number = number
        if self.own_levels or not calls:  # nobody told of the calls: one step further
            self.step = self._completed = min(self.step + (not calls or self.step < 0), self.steps - 1)
            return
        self._completed = max(self._completed + 1, self.step if self.padded else min(number, self.steps - 1))
        if self.callbacks == 1:
            self._first_calls, self._silent = len(calls), False
        else:
            self._learn(calls)
        self.step = max(self.step, self._completed)

    def interval(self, sigma: float) -> int:
        """The step (0-based) whose part of the schedule ``sigma`` lies in."""
        return self._locate(sigma)[0]

    def _begin(self, step: int) -> bool:
        self.step, self._expected = step, list(self.look_ahead)
        return True

    def _next_step(self, sigma: float | None, index: int, on_level: bool) -> bool:
        """Whether a call after the step's callback belongs to the next step."""
        if sigma is None or self._at_end:
            return True
        early = not self.calls_a_step or len(self._calls) < self.calls_a_step
        # The call that is expected comes before the next step's, whatever level it is told.
        if early and self._expected and not (on_level and index == self.step + 1 < self.step + self._expected[0]):
            self._expected.pop(0)
            return False
        if on_level:
            twice = index == self.step and self.sigmas[index] == self.sigmas[index + 1]  # joined schedules have such
            return index > self.step or (twice and len(self._calls) >= self.calls_a_step)
        if self.calls_a_step:
            return not early
        return not self.sigmas[self.step + 1] <= sigma <= self.sigmas[self.step]

    def _learn(self, calls: list[tuple[int, bool]]) -> None:
        """From the calls between the last two callbacks: how this sampler's steps end."""
        self._single = self._single + 1 if len(calls) == 1 else 0
        self.needs_sigma = self._single < SINGLE_CALLS
        *closing, newest = calls
        if self.calls_a_step == 0 and len(calls) > 1:
            starts_last = newest == (self._completed, True)  # the host's way: the newest call is the step's first
            starts_first = calls[0] == (self._completed, True)
            self._at_end = not starts_last and (starts_first or self._first_calls == len(calls))
            if not self._at_end and any(on_level for _, on_level in calls):
                ahead = tuple(i - self._completed + 1 for i, on_level in closing if on_level and i >= self._completed)
                if ahead != self.look_ahead:
                    self.look_ahead, self._expected = ahead, list(ahead)
        elif self.calls_a_step == 0:
            self.look_ahead = ()
        self.calls_a_step = len(calls)

    def _locate(self, sigma: float) -> tuple[int, bool]:
        """(i with sigmas[i] >= sigma > sigmas[i+1], whether sigma is sigmas[i] up to rounding)."""
        for i, level in enumerate(self.sigmas[:-1]):
            if math.isclose(sigma, level, rel_tol=1e-5, abs_tol=1e-7):
                return i, True
            if sigma > level:
                return max(i - 1, 0), False
        return self.steps - 1, False
