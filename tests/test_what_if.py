"""What-if of a report: where another delta would have switched, and in what time, against the route itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from drawn import LONG, cases
from hosting import module
from hypothesis import given
from runs import Report, Switch, route

figures, teacache = module("srd_core.report.figures"), module("srd_core.teacache.plan")
data_module = module("srd_core.report.data")
Step, HandOver, StageReport = data_module.Step, data_module.HandOver, data_module.StageReport
Route, SKETCH, RENDER = route.Route, route.SKETCH, route.RENDER

pytestmark = LONG


@st.composite
def curves(draw: st.DrawFn) -> tuple[Any, list[list[float] | None], float]:
    """(switch, the fall of D at every step for each sample, another delta), in and around the band."""
    steps, batch = draw(st.integers(2, 30)), draw(st.integers(1, 3))
    fall = st.one_of(st.none(), st.lists(st.floats(-0.0625, 0.125, width=32), min_size=batch, max_size=batch))
    falls = [None, None, *draw(st.lists(fall, min_size=steps - 2, max_size=steps - 2))]
    numbers = (st.floats(1e-4, 0.2), st.integers(0, 30), st.integers(0, 20), st.just(10), st.floats(0, 1))
    switch = Switch("adaptive", *map(draw, numbers))
    known = [value for values in falls if values for value in values if value > 0]
    return switch, falls, draw(st.one_of(st.floats(1e-4, 0.2), st.sampled_from(known or [0.01])))


def route_on(switch: Any, falls: list[list[float] | None]) -> list[tuple[str, str]]:
    """(stage, reason) of every step as srd_core.route has them where the criterion says ``falls``."""
    steps = len(falls)
    places = [1 - step / steps for step in range(steps)]
    way = Route(route.Pair(SKETCH, RENDER, switch), places, places)
    found = []
    for step, values in enumerate(falls):
        turn = way.turn(step)
        found.append((way.in_charge, turn.reason if turn else ""))
        if not way.final:
            with pytest.MonkeyPatch.context() as patch:
                seen = way.criterion.fall if values is None else values  # None: a step that is not looked at
                patch.setattr(way.criterion, "observe", lambda *_, now=seen: setattr(way.criterion, "fall", now))
                way.observe(step, torch.zeros(1))
    return found


def recorded(switch: Any, falls: list[list[float] | None]) -> Any:
    """The report of that run; every step of the sketch takes 3 seconds, of the render 1."""
    ran, steps = route_on(switch, falls), len(falls)
    places = [1 - step / steps for step in range(steps)]
    report = Report(
        status="done",
        stages=[StageReport(SKETCH), StageReport(RENDER)],
        switch=dict(vars(switch)),
        earliest=switch.earliest(places),
        latest=switch.latest(places),
        sigmas=[*places, 0.0],
    )
    for step, (stage, reason) in enumerate(ran):
        if reason:
            report.hand_overs.append(HandOver(step, RENDER, reason, places[step], 100 * step / steps))
        fall = falls[step] if stage == SKETCH else None
        seconds = 3.0 if stage == SKETCH else 1.0
        low, high = (min(fall), max(fall)) if fall else (None, None)
        report.steps.append(Step(step + 1, places[step], stage, seconds, 0.1, high, low))
    return report


@cases(2500)
@given(curves())
def test_what_if_tells_where_the_route_would_have_switched(drawn: tuple[Any, list[Any], float]) -> None:
    switch, falls, delta = drawn
    report = recorded(switch, falls)
    rows = figures.what_if(report)
    if report.steps[0].stage != SKETCH:
        assert rows == []
        return
    deltas = [row["delta"] for row in rows]
    assert deltas == sorted(deltas, reverse=True) and deltas[-1] == 0
    sketched = sum(step.stage == SKETCH for step in report.steps)
    for asked in (delta, switch.delta):
        row = next(row for row in rows if row["delta"] < asked)
        other = route_on(replace(switch, delta=asked), falls)
        after, reason = next(((step, why) for step, (_, why) in enumerate(other) if why), (None, ""))
        if row["after"] is None:
            assert after is None or after > sketched
        else:
            assert after is not None and (row["after"], row["reason"]) == (after, reason)
            assert row["seconds"] is None or row["seconds"] == pytest.approx(3 * after + len(falls) - after)
            assert row["seconds"] is not None or sketched == len(falls)


@cases(500)
@given(st.data())
def test_what_if_s_seconds_are_those_of_the_plan_that_teacache_would_make(data: st.DataObject) -> None:
    steps, tenths = data.draw(st.integers(4, 30)), st.floats(0, 0.1)
    after = data.draw(st.integers(1, steps - 1))
    growth = [0.0, *data.draw(st.lists(tenths, min_size=29, max_size=29))]
    threshold, form = data.draw(st.sampled_from([0.05, 0.14, 5.0])), data.draw(st.sampled_from(["e", "e0"]))

    def planned(begin: int) -> list[bool]:
        first = max(teacache.RET_STEPS - begin, 1) if form == "e0" else 1
        return teacache.reuse_plan(growth[begin + 1 : steps], threshold, first)

    fall = st.lists(st.floats(0.001, 0.1), min_size=1, max_size=1)
    falls = [None, None, *data.draw(st.lists(fall, min_size=28, max_size=28))]
    report = recorded(Switch("adaptive", 1e-9, 0, after), falls[:steps])
    plan = planned(after)
    report.stage(RENDER).teacache = {
        "table": "of a test",
        "threshold": threshold,
        "form": form,
        "growth": growth[:steps],
        "first_step": after,
        "reuse": plan,
    }
    for step, reused in zip(report.steps[after:], plan):
        step.reused, step.seconds = reused, 0.25 if reused else 1.0
    for row in figures.what_if(report):
        if row["after"] is not None:
            again = sum(planned(row["after"])) if any(plan) else 0
            assert row["seconds"] == pytest.approx(3 * row["after"] + 0.25 * again + steps - row["after"] - again)


def test_what_if_looks_once_at_what_each_stage_reused_however_many_rows_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    report = recorded(Switch("adaptive", 1e-9, 0, 300), [None, None, *([1 / step] for step in range(3, 301))])
    counted: list[str] = []
    monkeypatch.setattr(figures, "planned_reuses", lambda report, stage: counted.append(stage.name) or set())
    assert len(figures.what_if(report)) > 200 and sorted(counted) == sorted(stage.name for stage in report.stages)
