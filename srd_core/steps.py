"""Which scheduler step a model call belongs to, for any sampler: counted from the noise level of each call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# Samplers whose steps end with calls at the *next* noise levels (offsets in steps). Any other sampler of this kind is
# learned from the calls of its first step; the table makes the first step exact too.
LOOK_AHEAD: dict[str, tuple[int, ...]] = {
    "sample_heun": (1,),
    "sample_heunpp2": (1, 2),
    "sample_exp_heun_2_x0": (1,),
    "sample_exp_heun_2_x0_sde": (1,),
}


@dataclass
class StepCounter:
    """Follows a sampler through its sigma list. A step ends when a call comes that can't belong to it.

    One-call samplers call at sigmas[i]; dpm_2, sde and seeds also between sigmas[i] and sigmas[i+1]; heun also at
    sigmas[i+1], where only counting tells its second call from the next step's first.
    """

    sigmas: Sequence[float]  # of the run, falling, length steps + 1
    look_ahead: tuple[int, ...] = ()  # offsets at which every step makes further calls
    step: int = -1  # 0-based; -1 before the first call
    _expected: list[int] = field(default_factory=list)
    _offsets: list[tuple[int, bool]] = field(default_factory=list)  # calls since the last callback: (index, on the grid)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def on_call(self, sigma: float) -> bool:
        """Note a model call at ``sigma``; True when it starts a new step (then ``step`` is its index)."""
        index, on_grid = self._locate(sigma)
        self._offsets.append((index, on_grid))
        if self.step >= 0:
            if index <= self.step:
                return False
            if on_grid and self._expected and index == self.step + self._expected[0]:
                self._expected.pop(0)
                return False
        self.step = index
        self._expected = list(self.look_ahead)
        return True

    def on_callback(self, i: int) -> None:
        """Note the sampler's callback for step ``i``: it follows that step's first call, so the calls since the last
        callback, but for the newest one, closed step i - 1 and show the sampler's pattern."""
        closing, self._offsets = self._offsets[:-1], []
        if i == 1:
            ahead = tuple(index for index, on_grid in closing if on_grid and index > 0)
            if ahead and ahead != self.look_ahead:
                self.step, self._expected = 1, list(ahead)
            self.look_ahead = ahead

    def _locate(self, sigma: float) -> tuple[int, bool]:
        """(index i with sigmas[i] >= sigma > sigmas[i+1], whether sigma is sigmas[i] up to rounding)."""
        for i, level in enumerate(self.sigmas[:-1]):
            if math.isclose(sigma, level, rel_tol=1e-5, abs_tol=1e-7):
                return i, True
            if sigma > level:
                return max(i - 1, 0), False
        return self.steps - 1, False
