"""Who runs which step. A route is a row of legs: a stage, and the rule that ends its leg. Torch only, through criterion.py.

The paper's route is two legs: the sketch until the rule holds, then the render.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .criterion import PAPER_STEPS, Criterion

SKETCH = "sketch"
RENDER = "render"

MODES = ("adaptive", "step", "sigma")
ROUNDING = 2e-3  # of a place: schedulers pick whole timesteps of 1000


@dataclass(frozen=True)
class Switch:
    """What ends a leg. Steps are scheduler steps of the run, counted from 1."""

    mode: str = "adaptive"  # adaptive: the paper's rule; step: after switch_step; sigma: below switch_sigma
    delta: float = 0.01  # adaptive: the fall of D must lie in (0, delta), as for 50 uniform timesteps
    fix_step: int = 5  # adaptive: the leg has more than this many of 50 uniform timesteps: a noise level, see ``earliest``
    max_step: int = 0  # adaptive: the leg ends after this step at the latest; 0: below switch_sigma
    switch_step: int = 10  # step: the leg ends after this step; 0: it has no step
    switch_sigma: float = 0.875  # sigma: the leg has the steps that start at this noise level or above; adaptive: see max_step

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run could follow."""
        if self.mode not in MODES:
            raise ValueError(f"switch_mode is {self.mode!r}; choose one of {', '.join(MODES)}.")
        if self.mode == "adaptive" and not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is {self.delta}; it must be above 0 (the paper uses 0.002 to 0.03, default 0.01).")
        if self.mode != "step" and math.isnan(self.switch_sigma):
            raise ValueError("switch_sigma is not a number; Wan 2.2 uses 0.875 for text-to-video.")
        for name in ("fix_step", "max_step", "switch_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")

    def earliest(self, places: Sequence[float]) -> int:
        """adaptive: after this many steps the rule may end the leg, in a run whose steps begin at ``places``: when the last
        of them began at 1 - fix_step / 50 or below. Without such a step: one more than the run has."""
        bound = 1 - self.fix_step / PAPER_STEPS + ROUNDING
        return next((step + 1 for step, place in enumerate(places) if place <= bound), len(places) + 1)

    def latest(self, sigmas: Sequence[float]) -> int:
        """adaptive: after this many steps the leg ends whatever the rule says, in a run whose steps begin at ``sigmas``."""
        if self.max_step:
            return self.max_step
        return next((step for step, sigma in enumerate(sigmas) if sigma < self.switch_sigma), len(sigmas))


@dataclass(frozen=True)
class Leg:
    """The steps in a row that one stage runs."""

    stage: str
    until: Switch | None = None  # None: to the end of the run


def two_legs(switch: Switch) -> tuple[Leg, ...]:
    """The paper's route: the sketch until ``switch``, then the render."""
    return Leg(SKETCH, switch), Leg(RENDER)


@dataclass
class Route:
    """One run's way through its legs: asked for the stage before every step, told of the prediction after it."""

    legs: tuple[Leg, ...]
    sigmas: Sequence[float]  # noise level at which each step begins
    places: Sequence[float]  # where these lie in the model's uniform timesteps: 1 pure noise, 0 none
    criterion: Criterion = field(default_factory=Criterion)
    _at: int = 0  # index of the present leg
    _held: bool = False  # the rule held already before it was allowed to end the leg

    @property
    def final(self) -> bool:
        """Whether the present stage runs the rest of the run."""
        return self.legs[self._at].until is None

    def start(self) -> tuple[str, bool]:
        """(the stage of the run's first step, whether it runs all of them)."""
        if not self.sigmas:
            return self.legs[0].stage, True
        ahead = Route(self.legs, self.sigmas, self.places)
        name, _ = ahead.stage(0)
        return name, ahead.final

    def observe(self, step: int, prediction: torch.Tensor, mask: torch.Tensor | None = None) -> bool:
        """Take in the guided x0 prediction [B, ...] of ``step`` (0-based), made by the present leg's stage. Returns whether the
        criterion looked at it."""
        looked = self.criterion.observe(prediction, self.places[step], mask)
        self._look(step)
        return looked

    def note(self, step: int, d: list[float] | None) -> None:
        """The same from a recorded D, one value per sample."""
        self.criterion.note(d, self.places[step])
        self._look(step)

    def _look(self, step: int) -> None:
        switch = self.legs[self._at].until
        if switch is not None and step + 1 < switch.earliest(self.places):
            self._held |= self.criterion.settled(switch.delta)

    def stage(self, step: int) -> tuple[str, str]:
        """(stage, reason) of ``step`` (0-based), before it runs; the reason is empty while the leg continues."""
        reason = ""
        while (until := self.legs[self._at].until) and (ended := self._ended(until, step)):
            reason, self._held = ended, False
            self._at += 1
            self.criterion.forget()
        return self.legs[self._at].stage, reason

    def _ended(self, switch: Switch, step: int) -> str:
        """Why the leg ends before ``step`` (0-based); "" if it does not."""
        if switch.mode == "step":
            return "step" if step >= switch.switch_step else ""
        if switch.mode == "sigma":
            return "sigma" if self.sigmas[step] < switch.switch_sigma else ""
        if step >= switch.latest(self.sigmas):
            return "latest"
        earliest = switch.earliest(self.places)
        if step < earliest or not self.criterion.settled(switch.delta):
            return ""
        return "earliest" if step == earliest and self._held else "criterion"
