"""The figures that people read off a report: seconds, speed-up, time left, and what another delta would have done.

One place for node, chart, picture and demo. Seconds of a step are medians, so that one slow step changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Any

from ..route import LISTED, read_steps
from ..teacache.plan import RET_STEPS, reuse_plan
from .data import Report, StageReport

WARM = 3  # with so many steps more, the first step of a stage (it compiles, tunes, fills caches) is left out
MOST_PLANNED = 1000  # steps of a run for which TeaCache's plan is made anew for every other delta

Medians = dict[tuple[str, bool], float]  # (stage, whether a cache reused the step) -> seconds


@dataclass(frozen=True)
class Left:
    """Time until a running run ends."""

    seconds: float
    bound: bool  # it is what the present stage alone would take; a faster one is still to come


def medians(report: Report) -> Medians:
    """Seconds of a step of each kind that ran."""
    found: dict[tuple[str, bool], list[float]] = {}
    for step in report.steps:
        if step.seconds is not None:
            found.setdefault((step.stage, step.reused), []).append(step.seconds)
    return {kind: median(s[1:] if not kind[1] and len(s) > WARM else s) for kind, s in found.items()}


def step_seconds(report: Report, stage: str) -> float | None:
    """Median seconds of a step that ``stage`` computed; None where there was none."""
    return medians(report).get((stage, False))


def total_steps(report: Report) -> int:
    """Of the run's schedule."""
    return max(len(report.sigmas) - 1, 0)


def in_charge(report: Report) -> StageReport | None:
    """The stage that runs the next step; None where the report has no stages."""
    return report.stage(report.hand_overs[-1].to) if report.hand_overs else next(iter(report.stages), None)


def remaining(report: Report) -> Left | None:
    """Of a running run; None while the stage in charge has computed no step."""
    stage, each = in_charge(report), medians(report)
    if stage is None or (stage.name, False) not in each:
        return None
    if report.small_shape and not report.count(report.stages[-1].name):
        return None  # nothing is known yet of steps at the full size
    reuses, seconds = len(still_reused(report)), 0.0
    to_come = _to_come(report, stage.name)
    for name, steps in to_come.items():
        own = reuses if name == stage.name else 0
        computed = each.get((name, False), each[stage.name, False])  # a stage that has not run: as the present one
        seconds += max(steps - own, 0) * computed + own * each.get((name, True), 0.0)
    known = len(to_come) > 1 and all((name, False) in each for name in to_come)
    return Left(seconds, bound=not known and stage is not report.stages[-1])


def _to_come(report: Report, present: str) -> dict[str, int]:
    """Steps to come by stage: of a list of steps as it says, else all of the ``present`` stage."""
    done, total = sum(s.seconds is not None for s in report.steps), total_steps(report)
    if report.switch.get("mode") != LISTED or len(report.stages) != 2:
        return {present: total - done}
    listed = sum(done < step <= total for step in read_steps(report.switch["sketch_steps"]))
    first, then = (stage.name for stage in report.stages)
    return {first: listed, then: total - done - listed}


def speed_up(report: Report) -> float | None:
    """How many times as fast as its first stage alone, from the run's own steps; while it runs: will be.

    None while only one stage has run, or more than the last one is still to come, and where what the first one would
    take alone is not known: it ran on fewer pixels, or a cache of another pack reuses its steps.
    """
    each, done = medians(report), [s for s in report.steps if s.seconds is not None]
    if not report.stages or len({s.stage for s in done}) < 2 or report.small_shape:
        return None
    seconds, steps = sum(each[s.stage, s.reused] for s in done), len(done)
    if report.status == "running":
        left = remaining(report)
        if left is None or left.bound:
            return None
        seconds, steps = seconds + left.seconds, total_steps(report)
    alone = _alone(report, each, _given(report, steps))
    return alone / seconds if alone and seconds > 0 else None


def _alone(report: Report, each: Medians, steps: float) -> float | None:
    """Seconds of so many steps of the first stage, with the steps that it would reuse; None if not known."""
    stage, reused = report.stages[0], 0
    if planned_reuses(report, stage):
        if steps != total_steps(report) or total_steps(report) > MOST_PLANNED:  # its plan is for other levels
            return None
        reused = sum(_plan_for(report, {stage.name}, stage, 0, total_steps(report)) or [])
    elif report.reused(stage.name):
        return None
    kinds = {kind: seconds for kind in (False, True) if (seconds := each.get((stage.name, kind))) is not None}
    if False not in kinds or (reused and True not in kinds):
        return None
    return (steps - reused) * kinds[False] + reused * kinds.get(True, 0.0)


def _given(report: Report, steps: int) -> float:
    """How many steps of the schedule that the sampler was given the first ``steps`` of the run stand for."""
    total = total_steps(report)
    k = report.hand_overs[-1].after_step if report.hand_overs else total
    if not report.given_steps or report.given_steps == total or steps <= k or total <= k:
        return steps
    return k + (steps - k) * (report.given_steps - k) / (total - k)


def planned_reuses(report: Report, stage: StageReport) -> set[int]:
    """The steps (1-based) that TeaCache will reuse or has reused in ``stage``; none if its plan is not followed."""
    plan = stage.teacache
    if not plan.get("table"):
        return set()
    planned = {plan.get("first_step", 0) + i + 1 for i, reuse in enumerate(plan.get("reuse", [])) if reuse}
    if report.switch.get("mode") == LISTED and len(report.stages) == 2:
        listed = read_steps(report.switch["sketch_steps"])
        planned = planned & listed if stage is report.stages[0] else planned - listed
    before = {s.step + 1: s.stage for s in report.steps}  # after another stage's step there is nothing to reuse
    own = [s for s in report.steps if s.stage == stage.name == before.get(s.step)]
    ran = {s.step for s in own if s.seconds is not None and not s.reused}
    return set() if planned & ran else planned


def still_reused(report: Report) -> list[int]:
    """The steps (1-based) to come that TeaCache will reuse in the stage in charge, in order."""
    stage, done = in_charge(report), sum(s.seconds is not None for s in report.steps)
    planned = planned_reuses(report, stage) if stage and report.status == "running" else set()
    return sorted(step for step in planned if done < step <= total_steps(report))


def what_if(report: Report) -> list[dict[str, Any]]:
    """Where an adaptive run would have handed over with another delta, as far as its curve tells.

    Rows by falling delta, each for deltas above its ``delta``: {delta, after, reason, seconds}. ``after`` is None where
    the first stage would run on past the recorded curve; ``seconds``, of the whole run, is None where they are not
    known.
    """
    own = list(takewhile(lambda s: s.stage == report.stages[0].name, report.steps))
    if report.switch.get("mode") != "adaptive" or len(report.stages) < 2 or not own:
        return []
    each, ran, total = medians(report), len(own), report.given_steps or total_steps(report)
    rows: list[tuple[float, int | None, str]] = []
    lowest = before = math.inf
    fall = low = 0.0
    for s in own:
        if s.step >= min(report.latest, total):
            break
        if s.fall is not None:  # a step that was not looked at keeps what the one before has shown
            fall, low = s.fall, s.fall if s.fall_low is None else s.fall_low
        if low <= 0:
            continue
        if s.step < report.earliest:
            before = min(before, fall)
        elif fall < lowest:
            # With a delta above ``before`` the rule held already when it was not allowed yet.
            at_earliest = s.step == report.earliest
            if at_earliest and fall < before < math.inf:
                rows.append((before, s.step, "earliest"))
            lowest = fall
            rows.append((lowest, s.step, "earliest" if at_earliest and before <= fall else "criterion"))
    last = next((s.step for s in own if report.latest <= s.step < total), None)
    rows.append((0.0, last, "latest" if last else ""))
    followed = {stage.name for stage in report.stages if planned_reuses(report, stage)}
    return [
        {
            "delta": delta,
            "after": after,
            "reason": reason,
            "seconds": _cost(report, each, followed, min(after or ran + 1, total)),
        }
        for delta, after, reason in rows
    ]


def _cost(report: Report, each: Medians, followed: set[str], first_steps: int) -> float | None:
    """Seconds of a run whose first stage runs so many steps and the second the rest; None if not known."""
    if len(report.stages) > 2 or len(report.hand_overs) > 1:
        return None
    if any(report.reused(stage.name) and stage.name not in followed for stage in report.stages):
        return None  # which steps another cache would reuse is not known
    rest = report.render_steps or (report.given_steps or total_steps(report)) - first_steps
    if report.render_steps and report.stages[1].teacache.get("table"):  # its plan is for other levels
        return None
    total, cost = first_steps + rest, 0.0
    for stage, begin, end in zip(report.stages, (0, first_steps), (first_steps, total)):
        plan = _plan_for(report, followed, stage, begin, end)
        if plan is None:
            return None
        reused = sum(plan)
        for kind, steps in ((True, reused), (False, end - begin - reused)):
            if steps > 0 and (stage.name, kind) not in each:
                return None
            cost += steps * each[stage.name, kind] if steps > 0 else 0.0
    return cost


def _plan_for(report: Report, followed: set[str], stage: StageReport, begin: int, end: int) -> list[bool] | None:
    """Which of the steps ``begin`` to ``end`` - 1 (0-based) TeaCache would reuse in a ``stage`` from ``begin`` on.

    ``followed``: stages whose plan the run followed. The last steps may be missing where it reuses none. None: the run
    is too long to plan it again.
    """
    plan, total = stage.teacache, total_steps(report)
    growth = plan.get("growth") or []
    if len(growth) < total or stage.name not in followed:
        return []
    if total > MOST_PLANNED:
        return None
    computed_first = max(RET_STEPS - begin, 1) if plan.get("form") == "e0" else 1
    return reuse_plan(growth[begin + 1 : total], plan["threshold"], computed_first)[: end - begin]


@dataclass(frozen=True)
class Panel:
    """One of the curves that the chart in the page and the picture show, over the steps."""

    field: str  # of a Step
    low: float  # what is shown of it
    high: float
    delta: float = 0.0  # the rule holds from 0 to it; 0: it is not about this curve
    earliest: int = 0  # in the steps before this one the rule may not decide yet


def panels(report: Report) -> list[Panel]:
    """All of them, from the top."""
    adaptive, found = report.switch.get("mode") == "adaptive", []
    for name in ("d", "fall", "seconds"):
        values = [value for s in report.steps if math.isfinite(value := getattr(s, name) or 0.0)]
        low, high = min([*values, 0.0]), max([*values, 1e-9 if name == "seconds" else 1e-6])
        delta = float(report.switch.get("delta", 0)) if adaptive and name == "fall" else 0.0
        if delta:  # the band decides: it is kept readable beside the first steps' large values
            low, high = max(min(low, -delta), -4 * delta), min(max(high, 2 * delta), 8 * delta)
        found.append(Panel(name, low, high, delta, report.earliest if adaptive and name != "seconds" else 0))
    return found


def figures(report: Report) -> dict[str, Any]:
    """All of these as plain data, for the page."""
    left, each = remaining(report) if report.status == "running" else None, medians(report)
    return {
        "speed_up": speed_up(report),
        "left": vars(left) if left else None,
        "seconds": sum(stage.seconds for stage in report.stages),
        "step_seconds": {stage.name: each.get((stage.name, False)) for stage in report.stages},
        "planned": still_reused(report),
        "what_if": what_if(report),
        "panels": [vars(panel) for panel in panels(report)],
    }
