"""The figures that people read off a report: seconds, speed-up, time left, and what another delta would have done.

One place for node, chart, picture and demo. Seconds of a step are medians, so that one slow step changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from ..teacache.plan import RET_STEPS, reuse_plan
from .data import Report, StageReport

WARM = 3  # with so many steps more, the first step of a stage (it compiles, tunes, fills caches) is left out


@dataclass(frozen=True)
class Left:
    """Time until a running run ends."""

    seconds: float
    bound: bool  # it is what the present stage alone would take; a faster one is still to come


def step_seconds(report: Report, stage: str, reused: bool = False) -> float | None:
    """Median seconds of a step that ``stage`` computed (``reused``: of one that TeaCache reused); None where there was none."""
    found = [s.seconds for s in report.steps if s.stage == stage and s.reused == reused and s.seconds is not None]
    if not reused and len(found) > WARM:
        found = found[1:]
    return median(found) if found else None


def run_seconds(report: Report) -> float | None:
    """Of the steps that ran, from the median step of each kind; None where no step has ended."""
    done = [s for s in report.steps if s.seconds is not None]
    return sum(step_seconds(report, s.stage, s.reused) or 0.0 for s in done) if done else None


def remaining(report: Report) -> Left | None:
    """Of a running run; None while the stage in charge has computed no step."""
    if not report.stages:
        return None
    name = report.hand_overs[-1].to if report.hand_overs else report.stages[0].name
    computed = step_seconds(report, name)
    if computed is None:
        return None
    stage, total = report.stage(name), len(report.sigmas) - 1
    done = sum(s.seconds is not None for s in report.steps)
    planned, saved = planned_reuses(report, stage), step_seconds(report, name, reused=True) or 0.0
    seconds = sum(saved if step in planned else computed for step in range(done + 1, total + 1))
    return Left(seconds, bound=stage is not report.stages[-1])


def speed_up(report: Report) -> float | None:
    """How many times as fast as its first stage alone, estimated from the run's own steps; of a running run what it will be.

    None while only one stage has run, or more than the last one is still to come.
    """
    ran = {s.stage for s in report.steps if s.seconds is not None}
    alone = step_seconds(report, report.stages[0].name) if report.stages else None
    seconds, steps = run_seconds(report), sum(s.seconds is not None for s in report.steps)
    if alone is None or seconds is None or len(ran) < 2:
        return None
    if report.status == "running":
        left = remaining(report)
        if left is None or left.bound:
            return None
        seconds, steps = seconds + left.seconds, len(report.sigmas) - 1
    return steps * alone / seconds if seconds else None


def planned_reuses(report: Report, stage: StageReport) -> set[int]:
    """The steps (1-based) that TeaCache will reuse or has reused in ``stage``; none where the run does not follow its plan."""
    plan = stage.teacache
    if not plan.get("table"):
        return set()
    planned = {plan.get("first_step", 0) + i + 1 for i, reuse in enumerate(plan.get("reuse", [])) if reuse}
    ran = {s.step for s in report.steps if s.stage == stage.name and s.seconds is not None and not s.reused}
    return set() if planned & ran else planned


def what_if(report: Report) -> list[dict[str, Any]]:
    """Where an adaptive run would have handed over with another delta, as far as its curve tells.

    Rows by falling delta, each for deltas above its ``delta``: {delta, after, reason, seconds}. ``after`` is None where the
    first stage would run on past the recorded curve; ``seconds``, of the whole run, is None where they are not known.
    """
    if report.switch.get("mode") != "adaptive" or len(report.stages) < 2 or not report.steps:
        return []
    first, total = report.stages[0].name, len(report.sigmas) - 1
    rows: list[tuple[float, int | None, str]] = []
    lowest, before = float("inf"), float("inf")
    end: tuple[float, int | None, str] = (0.0, None, "")
    for s in report.steps:
        if s.stage != first or s.step >= total:
            break
        if s.step >= report.latest:
            end = (0.0, s.step, "latest")
            break
        if s.fall is None or (s.fall if s.fall_low is None else s.fall_low) <= 0:
            continue
        if s.step < report.earliest:
            before = min(before, s.fall)
        elif s.fall < lowest:
            lowest = s.fall
            rows.append((lowest, s.step, "earliest" if s.step == report.earliest and before <= s.fall else "criterion"))
    ran = next((i for i, s in enumerate(report.steps) if s.stage != first), len(report.steps))
    return [
        {"delta": delta, "after": after, "reason": reason, "seconds": _cost(report, min(after or ran + 1, total))}
        for delta, after, reason in [*rows, end]
    ]


def _cost(report: Report, first_steps: int) -> float | None:
    """Seconds of a run whose first stage runs so many steps and the second the rest; None where a stage has not shown them."""
    total, cost = len(report.sigmas) - 1, 0.0
    for stage, begin, end in zip(report.stages, (0, first_steps), (first_steps, total)):
        computed, reused = step_seconds(report, stage.name), step_seconds(report, stage.name, reused=True)
        plan = _plan_for(report, stage, begin, end)
        if begin < end and ((computed is None and not all(plan)) or (reused is None and any(plan))):
            return None
        cost += sum((reused if reuse else computed) or 0.0 for reuse in plan)
    return cost


def _plan_for(report: Report, stage: StageReport, begin: int, end: int) -> list[bool]:
    """Which of the steps ``begin`` to ``end`` - 1 (0-based) TeaCache would reuse, if ``stage`` ran from ``begin`` on."""
    plan, total = stage.teacache, len(report.sigmas) - 1
    growth = plan.get("growth") or []
    if not planned_reuses(report, stage) or len(growth) < total:
        return [False] * (end - begin)
    computed_first = max(RET_STEPS - begin, 1) if plan.get("form") == "e0" else 1
    return reuse_plan(growth[begin + 1 : total], plan["threshold"], computed_first)[: end - begin]


def figures(report: Report) -> dict[str, Any]:
    """All of these as plain data, for the page."""
    left = remaining(report) if report.status == "running" else None
    return {
        "speed_up": speed_up(report),
        "left": vars(left) if left else None,
        "step_seconds": {stage.name: step_seconds(report, stage.name) for stage in report.stages},
        "planned": sorted(set().union(*(planned_reuses(report, stage) for stage in report.stages))),
        "what_if": what_if(report),
    }
