"""Which scheduler step a model call belongs to, for any sampler: counted from the noise level of each call."""

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


def counter_for(sampler: Any, sigmas: Iterable[Any]) -> StepCounter:
    """The counter of a run of a host's sampler object over ``sigmas``, a tensor [steps + 1] or numbers.

    The levels are copied: uni_pc writes 0.001 into the last sigma of the host's tensor.
    """
    ahead = look_ahead(sampler_name(sampler), getattr(sampler, "extra_options", {}))
    return StepCounter([float(s) for s in sigmas], ahead)


@dataclass
class StepCounter:
    """Follows a sampler through its sigma list. A step begins with a call at its own noise level, sigmas[i].

    dpm_2, the sde samplers and seeds make further calls at levels between those of the schedule; heun calls again at
    sigmas[i+1], where only counting tells its second call from the next step's first. dpm_fast and dpm_adaptive choose
    their own levels: there a step is an interval of the schedule.
    """

    sigmas: Sequence[float]  # of the run, falling, length steps + 1
    look_ahead: tuple[int, ...] = ()  # offsets at which every step makes further calls
    step: int = -1  # 0-based; -1 before the first call
    own_levels: bool = False  # the sampler does not begin its steps at the schedule's levels
    needs_sigma: bool = True  # False once it is known that every step is one call: callbacks then count the steps
    _completed: int = -1  # the last callback's step
    _single: int = -1  # intervals in a row that were one call; -1 while no whole interval has been seen
    _expected: list[int] = field(default_factory=list)  # look_ahead calls that this step has still to make
    _calls: list[tuple[int, bool]] = field(default_factory=list)  # since the last callback: (index, on the schedule)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def on_call(self, sigma: float | None) -> bool:
        """Note a model call at ``sigma`` (None where ``needs_sigma`` is False); True when it begins a new step (then
        ``step`` is its index)."""
        if sigma is None:
            begins = self.step != self._completed + 1
            self.step = self._completed + 1
            return begins
        index, on_schedule = self._locate(sigma)
        self._calls.append((index, on_schedule))
        if self.step >= 0:
            if index <= self.step or not (on_schedule or self.own_levels):
                return False
            if self._expected and index == self.step + self._expected[0]:
                self._expected.pop(0)
                return False
        self.step = index
        self._expected = list(self.look_ahead)
        return True

    def on_callback(self, i: int) -> None:
        """Note the sampler's callback for step ``i``. It follows that step's first call: the calls since the callback
        before, but for the newest, closed step i - 1 and show how this sampler's steps end."""
        calls, self._calls = self._calls, []
        if self.needs_sigma and calls:  # the first calls that are seen may be the rest of an interval
            self._single = self._single + 1 if self._single < 0 or calls == [(i, True)] else 0
            self.needs_sigma = self._single < SINGLE_CALLS
        self._completed = i
        if i != 1 or not calls:
            return
        *closing, (_, begins_on_schedule) = calls
        self.own_levels = not begins_on_schedule
        ahead = tuple(index for index, on_schedule in closing if on_schedule and index > 0)
        if ahead and ahead != self.look_ahead:
            self.step, self._expected = 1, list(ahead)
        self.look_ahead = ahead

    def interval(self, sigma: float) -> int:
        """The step (0-based) whose part of the schedule ``sigma`` lies in."""
        return self._locate(sigma)[0]

    def _locate(self, sigma: float) -> tuple[int, bool]:
        """(i with sigmas[i] >= sigma > sigmas[i+1], whether sigma is sigmas[i] up to rounding)."""
        for i, level in enumerate(self.sigmas[:-1]):
            if math.isclose(sigma, level, rel_tol=1e-5, abs_tol=1e-7):
                return i, True
            if sigma > level:
                return max(i - 1, 0), False
        return self.steps - 1, False
