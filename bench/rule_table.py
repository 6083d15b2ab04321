"""The recorded changes of bench/rule.py, replayed for each form of the adaptive rule: tables for bench/results/rule.md."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LAGS = 3  # a prediction is compared with the last three: what a rule sees where some are missing
DIGITS = 1e6  # changes are kept as whole numbers of millionths
PAPER_STEPS, FIX_STEP, WAN, NEAR = 50, 5, 5.0, 3  # the paper's on Wan; NEAR: steps that the promise allows
EARLY = 0.85  # schedules without a level there, or less than three steps above it, are left out of the second spread
LEAST = 0.9  # of a reference step between two observations, in the forms with a dash

Row = dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """The noise levels of one run: a scheduler's, or a part of them."""

    scheduler: str
    steps: int
    shift: float
    part: str = ""  # "": all; else the part that a KSampler Advanced, a denoise or a SplitSigmas leaves

    def levels(self, sigmas: Any) -> Any:
        """That part of the whole schedule, sigmas [n + 1]."""
        ranges = {
            "": slice(None),
            "0-20": slice(21),
            "denoise 0.8": slice(-(self.steps + 1), None),
            "from 5": slice(5, None),
        }
        return sigmas[ranges[self.part]]

    def drawn(self) -> int:
        """How many steps the whole schedule has: with denoise the host draws more of them than it runs."""
        return int(self.steps / 0.8) if self.part.startswith("denoise") else self.steps

    def __str__(self) -> str:
        return f"{self.scheduler} {self.steps}, shift {self.shift:g}" + (f", {self.part}" if self.part else "")


@dataclass(frozen=True)
class Form:
    """A way to compare the fall of D with delta; all but D need the place u of a level in a reference schedule."""

    kind: str  # A to E: see bench/results/rule.md
    least: float = 0.0  # steps of the reference that must lie between two observations; 0: every step is observed

    def __str__(self) -> str:
        return self.kind + ("'" if self.least else "")

    def falls(self, row: Row, prompt: int, seen: Sequence[int], shift: float) -> Iterator[tuple[int, float]]:
        """(step, what is compared with delta) for all steps in ``seen`` that have two before them."""
        at = [PAPER_STEPS * u(sigma, shift) for sigma in row["sigmas"]]
        for h, j, i in zip(seen, seen[1:], seen[2:]):
            before, now = (row["changes"][b - a - 1][b][prompt] / DIGITS for a, b in ((h, j), (j, i)))
            long, own = at[h] - at[j], at[j] - at[i]
            if self.kind in "BC":
                before, now = (before, now) if self.kind == "C" else (math.tanh(before), math.tanh(now))
                yield i, (before / long - now / own) / ((long + own) / 2)
            else:
                square = {"A": (at[i] - at[i + 1]) ** 2, "E": long * own, "D": (PAPER_STEPS / (len(at) - 1)) ** 2}
                yield i, (math.tanh(before) - math.tanh(now)) / square[self.kind]

    def hand_over(
        self,
        row: Row,
        prompt: int,
        delta: float,
        shift: float,
        fix: float = FIX_STEP,
        gaps: bool = False,
        skip: int = 0,
    ) -> int | None:
        """Completed steps at the hand-over; None: never. gaps: of every two steps one, at random, is not observed. skip: so
        many of a run's first falls do not count.
        """
        seen, sigmas, steps = observed(row, prompt, shift, self.least, gaps), row["sigmas"], len(row["sigmas"]) - 1
        for step, fall in [*self.falls(row, prompt, seen, shift)][skip:]:
            early = step < min(FIX_STEP, max(steps // 2 - 1, 0))  # D: more than fix_step completed ones
            if self.kind != "D":
                early = u(sigmas[step], shift) > 1 - fix / PAPER_STEPS + 1e-4
            if not early and 0 < fall < delta and step + 1 < steps:
                return step + 1
        return None


def u(sigma: float, shift: float) -> float:
    """Where a noise level of a flow lies in uniform timesteps of that shift, 1 to 0."""
    return sigma / (shift - (shift - 1) * sigma)


def observed(row: Row, prompt: int, shift: float, least: float, gaps: bool) -> list[int]:
    """The steps whose prediction a rule takes in; never more than LAGS apart, since farther ones were not compared."""
    rng, at, seen = random.Random(prompt), [PAPER_STEPS * u(sigma, shift) for sigma in row["sigmas"]], [0]
    count = len(row["changes"][0])
    steps = [first + rng.randrange(2) for first in range(1, count - 1, 2)] if gaps else range(1, count)
    for step, after in zip(steps, [*steps[1:], count]):
        if at[seen[-1]] - at[step] >= least or after - seen[-1] > LAGS:
            seen.append(step)
    return seen


def place(row: Row, sigma: float) -> float:
    """That noise level in steps of the row's own schedule."""
    sigmas = row["sigmas"]
    after = next((i for i, level in enumerate(sigmas) if level <= sigma), len(sigmas) - 1)
    return after - (sigma - sigmas[after]) / (sigmas[after - 1] - sigmas[after]) if after else 0.0


@dataclass
class Found:
    """Hand-overs of one form with one setting: noise levels of every prompt by schedule; never: its last."""

    rows: list[Row]
    levels: list[list[float]]

    def median(self, row: Row) -> float:
        return statistics.median(self.levels[self.rows.index(row)])

    def cell(self, row: Row) -> str:
        """Median sigma with the second lowest and highest of twelve, and the place in 50 steps of shift 5."""
        found, middle = sorted(self.levels[self.rows.index(row)]), self.median(row)
        end = row["sigmas"][-1]
        low, high = (f"{x:.2f}" if x > end else "never" for x in (found[1], found[-2]))
        return (
            f"{middle:.3f} ({low}-{high}), {PAPER_STEPS * (1 - u(middle, WAN)):.1f}"
            if middle > end
            else f"never (to {high})"
        )

    def broken(self, shift: float | None = None) -> list[str]:
        """Schedules whose median is farther from the 50 steps of that shift (None: their own) than the promise."""
        missed = []
        for row in self.rows:
            whole = next(r for r in self.rows if str(of(r)) == f"simple 50, shift {shift or row['shift']:g}")
            ours, theirs = self.median(row), max(self.median(whole), row["sigmas"][-1])  # a part may end before it
            own, reference = (abs(place(r, ours) - place(r, theirs)) for r in (row, whole))
            if min(own, reference) > NEAR + 1e-6:
                missed.append(f"{of(row)} ({ours:.3f}, not {theirs:.3f})")
        return missed

    def line(self) -> str:
        """Cells of the overview."""
        middles = [self.median(row) for row in self.rows]
        more = [m for m, row in zip(middles, self.rows) if row["sigmas"][3] >= EARLY > row["sigmas"][-1]]
        shown = [f"{min(m):.3f}-{max(m):.3f} ({max(m) - min(m):.3f})" for m in (middles, more)]
        kept = [len(self.rows) - len(self.broken(shift)) for shift in (None, WAN)]
        return " | ".join([*shown, f"{statistics.pstdev(middles):.3f}", *map(str, kept)])


def of(row: Row) -> Schedule:
    """The schedule that a row was recorded in."""
    return Schedule(row["scheduler"], row["steps"], row["shift"], row["part"])


def replay(rows: list[Row], form: Form, delta: float, shift: float, latest: float = 0.0, **how: Any) -> Found:
    """All prompts in all schedules. latest: hand over below that noise level in any case."""
    levels = []
    for row in rows:
        steps = [form.hand_over(row, prompt, delta, shift, **how) for prompt in range(len(row["changes"][0][1]))]
        bound = next((sigma for sigma in row["sigmas"] if sigma < latest), row["sigmas"][-1])
        levels.append([bound if step is None else max(bound, row["sigmas"][step]) for step in steps])
    return Found(rows, levels)


# --- the report -------------------------------------------------------------------------------------------------------

FORMS = [
    Form("D"),
    Form("A"),
    Form("B"),
    Form("C"),
    Form("E"),
    Form("A", LEAST),
    Form("B", LEAST),
    Form("C", LEAST),
    Form("E", LEAST),
]
SETTINGS = [(WAN, 0.01), (WAN, 0.005), (WAN, 0.002), (WAN, 0.001), (2.0, 0.01)]
CHOSEN = Form("E", LEAST)
OWN = (0.003, 10.0, 0.82)  # the tiny family's workflow: delta, fix_step, switch_sigma
MARKS = ("<!-- tables: made by python3 bench/rule.py -->", "<!-- end of the tables -->")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return ["| " + " | ".join(words) + " |" for words in (head, ["---"] * len(head), *lines)] + [""]


def report(recorded: dict[str, Any]) -> list[str]:
    """The tables, as lines of Markdown."""
    rows = recorded["schedules"]
    facts = ("date", "machine", "host", "versions", "command")
    parts = [
        ", ".join(recorded[fact] for fact in facts[:-1]) + f", `{recorded['command']}`; cfg {recorded['cfg']:g}.",
        "",
    ]
    parts += ["## Before and after", "", *before_and_after(rows), "## How far the schedules lie apart", ""]
    total = dict.fromkeys(map(str, FORMS), 0)
    for shift, delta in SETTINGS:
        found = {str(form): replay(rows, form, delta, shift) for form in FORMS}
        for name, f in found.items():
            total[name] += 2 * len(rows) - len(f.broken()) - len(f.broken(WAN))
        blind = {str(form): replay(rows, form, delta, shift, gaps=True) for form in FORMS}
        later = {str(form): replay(rows, form, delta, shift, skip=1) for form in FORMS}
        moved = {
            name: statistics.fmean(abs(f.median(r) - blind[name].median(r)) for r in rows) for name, f in found.items()
        }
        parts += [f"Reference shift {shift:g}, delta {delta:g}:", ""]
        fine = sum(row["sigmas"][3] >= EARLY > row["sigmas"][-1] for row in rows)
        head = [
            "form",
            "sigma, all schedules",
            f"{fine} around {EARLY}",
            "sd",
            f"kept of {len(rows)}, own shift",
            "shift 5",
            "moved by gaps",
            "kept without the first fall",
        ]
        kept = {name: ", ".join(f.line().split(" | ")[-2:]) for name, f in later.items()}
        lines = [[name, *f.line().split(" | "), f"{moved[name]:.3f}", kept[name]] for name, f in found.items()]
        parts += table(head, lines)
    sums = ", ".join(f"{name} {count}" for name, count in total.items())
    parts += [
        f"Kept in all five tables together, of {2 * len(rows) * len(SETTINGS)}: {sums}.",
        "",
        "## Every schedule",
        "",
    ]
    for shift, delta in SETTINGS:
        found = {str(form): replay(rows, form, delta, shift) for form in (*FORMS[:5], CHOSEN)}
        parts += [f"Reference shift {shift:g}, delta {delta:g}:", ""]
        parts += table(["schedule", *found], [[str(of(r)), *(f.cell(r) for f in found.values())] for r in rows])
    return parts


def before_and_after(rows: list[Row]) -> list[str]:
    """Today's rule beside the chosen one, with what is left out of the promise."""
    before, *after = [
        replay(rows, form, delta, WAN) for form, delta in ((Form("D"), 0.01), (CHOSEN, 0.01), (CHOSEN, 0.002))
    ]
    head = ["schedule", "before: D, delta 0.01", f"after: {CHOSEN}, delta 0.01", f"after: {CHOSEN}, delta 0.002"]
    parts = table(head, [[str(of(row)), *(f.cell(row) for f in (before, *after))] for row in rows])
    for name, found in zip(head[1:], (before, *after)):
        for what, shift in (("the same shift", None), ("shift 5", WAN)):
            parts.append(f"- {name}, beside 50 steps of {what}: {'; '.join(found.broken(shift)) or 'no exception'}.")
    how = dict(zip(("delta", "fix", "latest"), OWN))
    before, now = replay(rows, Form("D"), 0.01, WAN), replay(rows, CHOSEN, shift=WAN, **how)
    parts += [
        "",
        "With what the tiny family's own workflow should set (delta {delta:g}, fix_step {fix:g}, switch_sigma "
        "{latest:g}), mean sigma over prompts (a run that never hands over counts with its end):".format(**how),
        "",
    ]
    lines = [[str(of(r)), *(f"{statistics.fmean(f.levels[i]):.3f}" for f in (before, now))] for i, r in enumerate(rows)]
    return [*parts, *table(["schedule", head[1], f"after: {CHOSEN}, these"], lines)]
