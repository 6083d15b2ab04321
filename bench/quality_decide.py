"""The open choices of the switching rule, answered from the changes that every sketch-only run left.

Nothing is sampled here: a rule is replayed on the recorded curves, and what it would give is read off the fixed rows of
the same prompt and seed (linear between the steps that were sampled). criterion.py is not changed by this; people are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from quality_host import READINGS
from quality_rows import DELTAS, PAPER_STEPS
from quality_table import Line, Results, Stat, attribute, field, place, run_of, stat

FIX_STEP = 5
DEFAULT_DELTA = 0.01
PERCENT = 100
BEYOND = 0.05  # share of runs whose step may lie beyond the sampled ones (they count as the nearest)
MANY = 5  # sampled hand-over steps of a run, to read values off between them: fewer make long straight lines
EDGE = 1e-3  # pure noise and no noise have no log-SNR: sigmas are kept this far from 0 and 1

UNITS = ("step", "50/steps", "(50/steps)^2", "sigma", "log-SNR")
SCALED = {"50/steps": 1, "(50/steps)^2": 2}

Curve = Sequence[float | None]


@dataclass(frozen=True)
class Rule:
    """A way to read one curve of D. ``unit`` is what a change is taken per."""

    reading: str = "x0"
    unit: str = "step"  # see falls
    delta: float = DEFAULT_DELTA
    patience: int = 1  # steps in a row on which the rule must hold
    fix_share: bool = False  # FIX_STEP as a share of the steps (5 of 50), not as a number of them
    forwards: bool = True  # previous minus current; False: the printed sign

    def first(self, line: Line) -> int | None:
        """Completed steps at the hand-over on a sketch-only line; None: never."""
        steps, held = line["steps"], 0
        for step, fall in enumerate(falls(self, line["curves"][self.reading], line["sigmas"], steps), 1):
            held = held + 1 if fall is not None and 0 < fall < self.delta else 0
            if step > fixed_steps(self, steps) and held >= self.patience and step < steps:
                return step
        return None


def fixed_steps(rule: Rule, steps: int) -> int:
    """Steps that the sketch runs in any case."""
    return round(FIX_STEP * steps / PAPER_STEPS) if rule.fix_share else min(FIX_STEP, max(steps // 2 - 1, 0))


def falls(rule: Rule, curve: Curve, sigmas: Sequence[float], steps: int) -> list[float | None]:
    """What the rule compares with delta after each step: how much D fell, in the rule's unit.

    step: as the paper's. 50/steps, (50/steps)^2: delta grows so with longer steps (D grows with a step's length, its fall
    with the square). sigma, log-SNR: D is divided by the length of the step that it spans, its fall again by that length,
    and both are given back in the mean step of a run of 50, so that delta keeps its size.
    """
    level = {"sigma": lambda s: s, "log-SNR": log_snr}.get(rule.unit)
    rates = list(curve)
    lengths = [1.0] * len(curve)
    if level is not None:
        whole = abs(level(sigmas[0]) - level(sigmas[-2])) / (steps - 1) * steps / PAPER_STEPS
        # D after step i compares what the calls at sigmas[i - 2] and sigmas[i - 1] said.
        lengths = [1.0] + [max(abs(level(a) - level(b)), 1e-9) / whole for a, b in zip(sigmas, sigmas[1:-1])]
        rates = [None if d is None else math.atanh(min(d, 1 - 1e-6)) / length for d, length in zip(curve, lengths)]
    if rule.unit in SCALED:
        lengths = [(PAPER_STEPS / steps) ** SCALED[rule.unit]] * len(curve)
    found: list[float | None] = [None]
    for i in range(1, len(rates)):
        before, now = rates[i - 1], rates[i]
        fall = None if before is None or now is None else (before - now if rule.forwards else now - before)
        found.append(None if fall is None else fall / lengths[i])
    return found


def log_snr(sigma: float) -> float:
    """Of a flow: signal 1 - sigma, noise sigma."""
    sigma = min(max(sigma, EDGE), 1 - EDGE)
    return 2 * math.log((1 - sigma) / sigma)


# --- what a rule gives ------------------------------------------------------------------------------------------------


class Replay:
    """The sketch-only lines of one run, with what the fixed rows say about every step."""

    def __init__(self, results: Results, run: tuple[int, str]) -> None:
        self.results, self.run = results, run
        self.lines = [line for line in results.references.values() if run_of(line) == run and line["curves"]]
        self.known: dict[tuple[Any, ...], dict[int, Line]] = {}
        for line in results.scored:
            if run_of(line) == run and line["row"].startswith(("fixed", "render only", "sketch only")):
                alone = {"sketch only": line["steps"], "render only": 0}
                step: int = alone[line["row"]] if line["row"] in alone else line["switch_step"]
                self.known.setdefault(place(line), {})[step] = line

    def steps(self, rule: Rule, limit: int | None = None) -> list[int]:
        """Sketch steps on every line; runs on which the rule never holds get the limit, or all steps."""
        last = limit or self.run[0]
        return [min(rule.first(line) or last, last) for line in self.lines]

    def never(self, rule: Rule) -> float:
        """Share of the runs on which the rule never holds."""
        return statistics.fmean(rule.first(line) is None for line in self.lines)

    def estimate(self, steps: Sequence[int], value: Callable[[Line], float | None]) -> Stat | None:
        """Mean of a value at those steps, read off each prompt's own rows (straight lines between them) where those are many;
        None where too many steps lie beyond them.
        """
        found: dict[int, list[float]] = {}
        beyond = asked = 0
        for line, step in zip(self.lines, steps):
            points = {k: value(other) for k, other in self.known.get(place(line), {}).items()}
            known = sorted((k, v) for k, v in points.items() if v is not None)
            if len(known) >= MANY:
                asked += 1
                beyond += not known[0][0] <= step <= known[-1][0]
                estimated = float(np.interp(step, [k for k, _ in known], [v for _, v in known]))
                found.setdefault(line["number"], []).append(estimated)
        if beyond > BEYOND * asked:
            return None
        return stat({number: statistics.fmean(values) for number, values in found.items()})

    def well_known(self) -> int:
        """Runs of which enough steps were sampled to read a value off between them."""
        return sum(len(self.known.get(place(line), {})) >= MANY for line in self.lines)

    def sigma(self, steps: Sequence[int]) -> float:
        """Mean noise level at which the render takes over."""
        return statistics.fmean(line["sigmas"][step] for line, step in zip(self.lines, steps))


def calibrated(replay: Replay, rule: Rule, steps: float) -> Rule:
    """The same rule with the delta that switches after so many steps on average (by bisection on 50 steps)."""
    low, high = 1e-6, 10.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        later = statistics.fmean(replay.steps(replace(rule, delta=middle))) > steps
        low, high = (middle, high) if later else (low, middle)
    return replace(rule, delta=math.sqrt(low * high))


# --- the document -----------------------------------------------------------------------------------------------------


def markdown(lines: Sequence[Line]) -> str:
    """The answers, as far as the lines go."""
    results = Results(lines)
    replays = {run: Replay(results, run) for run in results.runs() if run[1] == "euler"}
    fifty = replays.get((PAPER_STEPS, "euler"))
    parts = ["# What the rule should read, and when it should fire", ""]
    if fifty is None or len(fifty.lines) < 2:
        return "\n".join([*parts, "Needs sketch only at 50 steps with euler.", ""])
    parts += [
        f"Replayed on {len(fifty.lines)} recorded sketch-only runs of {PAPER_STEPS} steps. Score and PSNR are read off "
        f"the fixed rows of the same prompt and seed, for the {fifty.well_known()} runs that have {MANY} or more of them.",
        "",
    ]
    parts += ["## Which prediction", "", *readings(fifty), "", "## Patience", "", *patience(fifty), ""]
    parts += ["## Where it fires", "", *where(fifty), ""]
    parts += ["## The latest step", "", *latest(fifty), "", "## Fewer steps", "", *fewer(replays, fifty), ""]
    return "\n".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _columns(replay: Replay, rule: Rule) -> list[str]:
    """Steps, spread, never, score, PSNR of a rule."""
    steps = replay.steps(rule)
    score, psnr = replay.estimate(steps, attribute("mean")), replay.estimate(steps, field("psnr"))
    return [
        f"{statistics.fmean(steps):.1f}",
        f"{np.std(steps):.1f}",
        f"{replay.never(rule):.0%}",
        score.text() if score else "-",
        psnr.text(".2f") if psnr else "-",
    ]


HEADS = ("mean sketch steps", "sd", "never", "score there", "PSNR there, dB")


def readings(replay: Replay) -> list[str]:
    """Every tensor and both signs at the paper's deltas: a reading is of use if delta moves the step, with a small
    spread, and if the rule fires.
    """
    rows = []
    for reading in READINGS:
        for forwards in (True, False):
            for delta in sorted(DELTAS):
                rule = Rule(reading, delta=delta, forwards=forwards)
                sign = "previous - current" if forwards else "current - previous"
                rows.append([f"{reading}, {sign}, delta {delta}", *_columns(replay, rule)])
    return [*_table(["rule", *HEADS], rows), "", *follows_delta(replay)]


def follows_delta(replay: Replay) -> list[str]:
    """One sentence: of which readings the step follows delta."""
    told = []
    for reading in READINGS:
        means = [statistics.fmean(replay.steps(Rule(reading, delta=delta))) for delta in sorted(DELTAS)]
        told.append(f"{reading} {means[0]:.1f} to {means[-1]:.1f} ({means[0] - means[-1]:+.1f})")
    return [f"From the smallest delta to the largest the mean step goes: {'; '.join(told)}."]


def patience(replay: Replay) -> list[str]:
    """One step against two and three, at equal delta and at equal mean step."""
    base = Rule()
    mean = statistics.fmean(replay.steps(base))
    rows = []
    for count in (1, 2, 3):
        same_delta = replace(base, patience=count)
        rows.append([f"{count}, delta {DEFAULT_DELTA}", *_columns(replay, same_delta)])
        if count > 1:
            equal = calibrated(replay, same_delta, mean)
            reached = abs(statistics.fmean(replay.steps(equal)) - mean) < 1
            name = f"{count}, delta {equal.delta:.4f} (as many steps as 1)"
            rows.append(
                [name, *_columns(replay, equal)] if reached else [f"{count}: no delta is that early", *["-"] * 5]
            )
    fixed = [round(mean)] * len(replay.lines)
    score, psnr = replay.estimate(fixed, attribute("mean")), replay.estimate(fixed, field("psnr"))
    rows.append(
        [
            f"no rule: always step {round(mean)}",
            f"{round(mean)}",
            "0.0",
            "0%",
            score.text() if score else "-",
            psnr.text(".2f") if psnr else "-",
        ]
    )
    return _table(["steps in a row", *HEADS], rows)


def where(replay: Replay) -> list[str]:
    """The runs of the default rule by the step that it fired at: early and late ones beside fixed step 10 on the same prompts."""
    results, steps = replay.results, replay.steps(Rule())
    rows = results.rows(replay.run)
    ends = {
        name: {place(line): line for line in rows.get(name, [])}
        for name in ("fixed, step 10", "render only", "sketch only")
    }
    own = {place(line): line for line in rows.get(f"adaptive, delta {DEFAULT_DELTA}", [])}
    out = []
    for low, high in ((0, 9), (9, PAPER_STEPS + 1)):
        chosen = [place(line) for line, step in zip(replay.lines, steps) if low < step <= high]
        chosen = [at for at in chosen if at in own and all(at in lines for lines in ends.values())]
        if not chosen:
            continue
        mean = {
            name: statistics.fmean(lines[at]["scores"]["mean"] for at in chosen)
            for name, lines in (ends | {"own": own}).items()
        }
        gap = mean["sketch only"] - mean["render only"]
        found = [
            [
                f"{(mean[name] - mean['render only']) / gap:.2f}" if gap > 0 else "-",
                f"{statistics.fmean(lines[at]['psnr'] for at in chosen if lines[at]['psnr'] is not None):.2f}",
            ]
            for name, lines in (("own", own), ("fixed, step 10", ends["fixed, step 10"]))
        ]
        asked = [step for line, step in zip(replay.lines, steps) if low < step <= high]
        out.append([f"step {min(asked)} to {max(asked)}", str(len(chosen)), *found[0], *found[1]])
    heads = ["hand-over", "runs", "share of the gain", "PSNR, dB", "fixed step 10 there", "its PSNR, dB"]
    return [*_table(heads, out), "", rises(replay)]


def rises(replay: Replay) -> str:
    """How often D rises instead of falling: ripples of D decide between the early and the late hand-overs."""
    curves = [line["curves"]["x0"] for line in replay.lines]
    shares = {
        i + 1: statistics.fmean(curve[i] > curve[i - 1] for curve in curves if curve[i - 1] is not None)
        for i in range(3, 20)
    }
    often = ", ".join(f"{step}: {share:.0%}" for step, share in shares.items() if share >= 0.5)
    return f"D does not fall smoothly: it rises at these steps in more than half of the runs: {often or 'none'}."


def latest(replay: Replay) -> list[str]:
    """The hand-over's distribution, and what every further sketch step still brings."""
    out = []
    for delta in sorted(DELTAS):
        fired = sorted(step for line in replay.lines if (step := Rule(delta=delta).first(line)) is not None)
        if fired:
            late = [fired[min(int(q * len(fired)), len(fired) - 1)] for q in (0.5, 0.9, 0.95, 0.99)]
            out.append(
                f"- delta {delta}: fires on {len(fired) / len(replay.lines):.0%} of the runs; half by step {late[0]}, "
                f"90 % by {late[1]}, 95 % by {late[2]}, 99 % by {late[3]}."
            )
    scores = {
        k: replay.estimate([k] * len(replay.lines), attribute("mean")) for k in (0, *range(5, PAPER_STEPS + 1, 5))
    }
    if all(scores.values()):
        known = {k: score.mean for k, score in scores.items() if score}
        gap = known[PAPER_STEPS] - known[0]
        shares = ", ".join(f"{k}: {(score - known[0]) / gap:.0%}" for k, score in known.items()) if gap else "no gain"
        out.append(f"- Share of the gain in score after so many sketch steps: {shares}.")
    return out


def fewer(replays: dict[tuple[int, str], Replay], fifty: Replay) -> list[str]:
    """Whether one delta means the same noise level at any step count, for each unit. The deltas of the other units are
    those that switch after as many steps of 50 as the default.
    """
    mean = statistics.fmean(fifty.steps(Rule()))
    wanted = fifty.sigma(fifty.steps(Rule()))
    rows, worst = [], {}
    for unit in UNITS:
        for fix_share in (False, True):
            rule = calibrated(fifty, Rule(unit=unit, fix_share=fix_share), mean)
            rule = rule if unit in ("sigma", "log-SNR") else Rule(unit=unit, fix_share=fix_share)
            cells, misses = [], []
            for run, replay in replays.items():
                steps = replay.steps(rule)
                sigma = replay.sigma(steps)
                misses.append(abs(sigma - wanted))
                cells.append(
                    f"{statistics.fmean(steps):.1f} ({statistics.fmean(steps) / run[0]:.0%}, sigma {sigma:.3f}, "
                    f"never {replay.never(rule):.0%})"
                )
            fix = f"{PERCENT * FIX_STEP / PAPER_STEPS:.0f} % of the steps" if fix_share else "as it is"
            rows.append([f"per {unit}, delta {rule.delta:.4f}, fix_step {fix}", *cells])
            worst[f"per {unit}, fix_step {fix}"] = max(misses)
    best = min(worst, key=lambda name: worst[name])
    heads = ["rule", *(f"{run[0]} steps" for run in replays)]
    return [
        *_table(heads, rows),
        "",
        f"The default hands over at sigma {wanted:.3f} on average at {PAPER_STEPS} steps. Nearest "
        f"to that at every step count: {best} (off by at most {worst[best]:.3f}).",
    ]
