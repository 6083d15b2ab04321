"""Who runs which step.

A route is a row of legs: each has a stage, and a rule ends it. Torch only, through criterion.py.

The paper's route is two legs: the sketch until the rule holds, then the render. A leg may be a pair (Wan 2.2's high
and low noise models), and steps may be listed freely.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

import torch

from .criterion import PAPER_STEPS, Criterion

SKETCH = "sketch"
RENDER = "render"

MODES = ("adaptive", "step", "sigma")
LISTED = "listed"  # the mode of a Switch with sketch_steps
ROUNDING = 2e-3  # of a place: schedulers pick whole timesteps of 1000
MOST_STEPS = 10_000  # of a run, as the host takes them
TYPED = str.maketrans("，、–－０１２３４５６７８９", ",,--0123456789")  # what Chinese keyboards write, and a dash
FULL_SIZE, SMALLEST = 1.0, 0.5  # of sketch_scale


@dataclass(frozen=True)
class Switch:
    """What ends a leg. Steps are scheduler steps of the run, counted from 1."""

    # adaptive: the paper's rule; step: after switch_step; sigma: below switch_sigma; listed: as listed
    mode: str = "adaptive"
    delta: float = 0.01  # adaptive: the fall of D must lie in (0, delta), as for 50 uniform timesteps
    # adaptive: the leg has more than this many of 50 uniform timesteps: a noise level, see ``earliest``
    fix_step: int = 5
    max_step: int = 0  # adaptive: the leg ends after this step at the latest; 0: below switch_sigma
    switch_step: int = 10  # step: the leg ends after this step; 0: it has no step
    # sigma: the leg has the steps that start at this noise level or above; adaptive: see max_step
    switch_sigma: float = 0.875
    sketch_steps: str = ""  # listed: the steps of the leg, as "1-10, 46-50"

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run could follow."""
        if self.mode not in (*MODES, LISTED):
            raise ValueError(f"switch_mode is {self.mode!r}; choose one of {', '.join(MODES)}.")
        if self.mode == "adaptive" and not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is {self.delta}; it must be above 0 (the paper uses 0.002 to 0.03, default 0.01).")
        for name in ("delta", "switch_sigma"):  # also where the mode does not use them: they go into the report
            if not math.isfinite(getattr(self, name)):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be a number (delta: 0.002 to 0.03, switch_sigma: 0.875)."
                )
        for name in ("fix_step", "max_step", "switch_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.mode == LISTED and not self.listed:
            raise ValueError('sketch_steps names no step. Write for example "1-10, 46-50", or leave it empty.')

    @cached_property
    def listed(self) -> frozenset[int]:
        """listed: the steps of the leg. Raises ValueError for a text that lists none."""
        return read_steps(self.sketch_steps)

    def changes(self, steps: int) -> int:
        """How often the stage changes in a run of so many steps, at most."""
        if self.mode != LISTED:
            return 1
        runs = [True, *(step + 1 in self.listed for step in range(steps))]
        return sum(a != b for a, b in pairwise(runs))

    def settings(self) -> dict[str, Any]:
        """As plain data, for the report."""
        set_to = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in set_to.items() if name != "sketch_steps" or value}

    def earliest(self, places: Sequence[float]) -> int:
        """adaptive: after this many steps the rule may end the leg, in a run whose steps begin at ``places``.

        That is when the last of them began at 1 - fix_step / 50 or below. Without such a step: one more than the run
        has.
        """
        bound = 1 - self.fix_step / PAPER_STEPS + ROUNDING
        return next((step + 1 for step, place in enumerate(places) if place <= bound), len(places) + 1)

    def latest(self, sigmas: Sequence[float]) -> int:
        """adaptive: after this many steps the leg ends in any case; the steps begin at ``sigmas``."""
        if self.max_step:
            return self.max_step
        return next((step for step, sigma in enumerate(sigmas) if sigma < self.switch_sigma), len(sigmas))


def read_steps(text: str) -> frozenset[int]:
    """The steps that a text like "1-10, 46-50" names, counted from 1. Raises ValueError for any other text."""
    steps: set[int] = set()
    for part in filter(None, (part.strip() for part in text.translate(TYPED).split(","))):
        first, _, last = (word.strip() for word in part.partition("-"))
        ends = [first, last] if "-" in part else [first, first]
        low, high = (int(end) if end.isascii() and end.isdigit() and len(end) < 8 else 0 for end in ends)
        if not 1 <= low <= high <= MOST_STEPS:
            raise ValueError(
                f"sketch_steps has {part[:40]!r}, which names no steps. Write steps from 1 and ranges, with commas "
                'between them: "1-10, 46-50".'
            )
        steps.update(range(low, high + 1))
    return frozenset(steps)


@dataclass(frozen=True, eq=False, kw_only=True)  # a Pair inherits what makes it equal to another: nothing
class TakeOver:
    """How the second part of a pair takes over from the first."""

    fade: float = 0.0  # width of the fade at a hand-over to the second, see fade.py; 0: a cut
    render_steps: int = 0  # steps for the rest of the schedule after the last hand-over, see rest.py; 0: its own
    anew: bool = False  # the sampler begins anew on that rest, also where it is known before the run
    offload_sketch: str = "auto"  # what happens to the memory of the part that leaves, see memory.py
    sketch_scale: float = FULL_SIZE  # share of height and width that the first part runs at, see smaller.py; 1: all
    sketch_size: tuple[int, int] | None = None  # height and width that it ran at elsewhere, in place of the share


@dataclass(frozen=True, eq=False)
class Pair(TakeOver):
    """Two parts of a route, each a stage or a pair."""

    first: Part
    then: Part
    switch: Switch


Part = str | Pair  # a stage's name, or a pair


def stages_of(part: Part) -> list[str]:
    """The names of a part's stages, in the order of the route."""
    return [part] if isinstance(part, str) else [*stages_of(part.first), *stages_of(part.then)]


def pairs_of(part: Part) -> Iterator[Pair]:
    """A part's pairs, the outer ones first."""
    if isinstance(part, Pair):
        yield part
        yield from pairs_of(part.first)
        yield from pairs_of(part.then)


@dataclass(frozen=True)
class Turn:
    """One change of the stage in charge."""

    to: str
    reason: str  # criterion, earliest, latest, step, sigma or listed
    pair: Pair  # whose rule it was
    fade: float  # width of the fade; 0: a cut, as where a part comes back
    walker: Pair | None  # whose own steps the rest of the schedule has from here on


@dataclass
class Route:
    """One run's way through its legs: asked for a change before every step, told of the prediction after it."""

    whole: Part
    sigmas: Sequence[float]  # noise level at which each step begins
    places: Sequence[float]  # where these lie in the model's uniform timesteps: 1 pure noise, 0 none
    criterion: Criterion = field(default_factory=Criterion)
    in_charge: str = ""  # the stage of the newest step; before the first: the first part's
    _step: int = -1  # the newest, 0-based
    _over: set[Pair] = field(default_factory=set)  # whose second part is in charge
    _held: set[Pair] = field(default_factory=set)  # whose rule held already before it was allowed to end the leg

    def __post_init__(self) -> None:
        self.in_charge = self.in_charge or stages_of(self.whole)[0]

    @property
    def final(self) -> bool:
        """Whether the present stage runs the rest of the run."""
        return all(self._settled(pair) for pair in self._path())

    def start(self) -> tuple[str, bool]:
        """(the stage of the run's first step, whether it runs all of them)."""
        ahead = Route(self.whole, self.sigmas, self.places)
        if self.sigmas:
            ahead.turn(0)
        return ahead.in_charge, ahead.final or not self.sigmas

    def observe(self, step: int, prediction: torch.Tensor, mask: torch.Tensor | None = None) -> bool:
        """Take in the guided x0 prediction [B, ...] of ``step`` (0-based), made by the present leg's stage.

        Returns whether the criterion looked at it.
        """
        looked = self.criterion.observe(prediction, self.places[step], mask)
        self._look(step)
        return looked

    def note(self, step: int, d: list[float] | None) -> None:
        """The same from a recorded D, one value per sample."""
        self.criterion.note(d, self.places[step])
        self._look(step)

    def _look(self, step: int) -> None:
        for pair in self._path():
            if step + 1 < pair.switch.earliest(self.places) and self.criterion.settled(pair.switch.delta):
                self._held.add(pair)

    def turn(self, step: int) -> Turn | None:
        """The change of stage before ``step`` (0-based); None: the stage in charge continues."""
        self._step = step
        part, changed = self.whole, list[tuple[Pair, str]]()
        while isinstance(part, Pair):
            if reason := self._reason(part, step):
                self._over ^= {part}
                self.criterion.forget()  # a part that comes in is not judged by what another has shown
                changed.append((part, reason))
            part = part.then if part in self._over else part.first
        if not changed or part == self.in_charge:
            return None
        self.in_charge, (pair, reason) = part, changed[0]
        # of several that change at once, each may say how: the outer ones first, none inside one that comes back
        forward = list(takewhile(self._over.__contains__, (pair for pair, _ in changed)))
        fade = next((pair.fade for pair in forward if pair.fade), 0.0)
        walker = next((pair for pair in forward if pair.render_steps and self._settled(pair)), None)
        return Turn(part, reason, pair, fade, walker)

    def waits(self, step: int) -> bool:
        """Whether a change before ``step`` (0-based) hangs on predictions."""
        rules = (pair.switch for pair in self._path() if pair.switch.mode == "adaptive" and pair not in self._over)
        return any(rule.earliest(self.places) <= step < rule.latest(self.sigmas) for rule in rules)

    def follow(self, sigmas: Sequence[float], places: Sequence[float]) -> None:
        """The rest of the run has other steps: these levels, for all steps from the first."""
        self.sigmas, self.places = sigmas, places

    def _path(self) -> Iterator[Pair]:
        """The pairs that the present stage is part of, the outer ones first."""
        part = self.whole
        while isinstance(part, Pair):
            yield part
            part = part.then if part in self._over else part.first

    def _settled(self, pair: Pair) -> bool:
        """Whether the part of ``pair`` that is in charge runs the rest of the run, as far as the pair decides it."""
        over = pair in self._over
        if pair.switch.mode != LISTED:
            return over
        return all((step + 1 not in pair.switch.listed) == over for step in range(self._step + 1, len(self.sigmas)))

    def _reason(self, pair: Pair, step: int) -> str:
        """Why ``pair`` changes before ``step`` (0-based); "" if it does not."""
        switch, over = pair.switch, pair in self._over
        if switch.mode == LISTED:
            return LISTED if (step + 1 not in switch.listed) != over else ""
        if over:
            return ""
        if switch.mode == "step":
            return "step" if step >= switch.switch_step else ""
        if switch.mode == "sigma":
            return "sigma" if self.sigmas[step] < switch.switch_sigma else ""
        if step >= switch.latest(self.sigmas):
            return "latest"
        earliest = switch.earliest(self.places)
        if step < earliest or not self.criterion.settled(switch.delta):
            return ""
        return "earliest" if step == earliest and pair in self._held else "criterion"
