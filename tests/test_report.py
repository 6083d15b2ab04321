"""The report: plain data that survives JSON, what is read off it, and its picture."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hosting import module

report_module, plot = module("srd_core.report.data"), module("srd_core.report.plot")
figures, text = module("srd_core.report.figures"), module("srd_core.report.text")
Report, Step, HandOver, StageReport = (
    getattr(report_module, name) for name in ("Report", "Step", "HandOver", "StageReport")
)
NAMES = {"s": "sketch", "r": "render", "t": "third"}
VERSION_1 = json.loads((Path(__file__).parent / "data" / "report_version_1.json").read_text("utf-8"))


def run_of(letters: str, **each: float) -> Any:
    """A report of one step per letter (s, r or t), with a hand-over at every change; ``each``: seconds a step."""
    report, costs = Report(), {"s": 3.0, "r": 1.0, "t": 0.5} | each
    models = {"s": "Big", "r": "Small", "t": "Tiny"}
    report.begin(
        stages=[StageReport(NAMES[letter], models[letter]) for letter in "srt" if letter != "t" or "t" in letters],
        switch={"mode": "adaptive", "delta": 0.01, "fix_step": 5, "switch_sigma": 0.875},
        sigmas=[1.0] * (len(letters) + 1),
    )
    for i, letter in enumerate(letters):
        stage, seconds = NAMES[letter], costs[letter]
        if i and letters[i - 1] != letter:
            report.hand_overs.append(HandOver(i, stage, "criterion", 0.9, 100 * i / len(letters), 0.1, 0.005, 0.5))
        report.steps.append(Step(i + 1, 1.0, stage, seconds, 0.1, 0.01))
        report.stage(stage).seconds += seconds
        report.stage(stage).calls += 1
    report.status = "done"
    return report


def plan(reuse: list[bool]) -> dict[str, Any]:
    return {"table": "Wan", "threshold": 0.1, "first_step": 3, "reuse": reuse}


def test_a_watcher_that_fails_is_told_no_more_and_does_not_end_the_run() -> None:
    report, told = Report(), []

    def watch(now: Any) -> None:
        told.append(now.status)
        raise KeyError("nobody")

    report.watch = watch
    report.begin(sampler="euler")
    report.changed()
    assert told == ["running"] and report.status == "running"


def test_a_report_survives_json() -> None:
    report = run_of("sssrr")
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json()).to_json() == report.to_json()  # whole numbers stay whole


def test_the_figures_of_a_saved_file_are_not_taken_for_a_field() -> None:
    report = run_of("sssrr")
    data = json.loads(report.to_json()) | {"figures": {"speed_up": 99}}
    assert Report.from_json(json.dumps(data)) == report


BAD_PLANS = [{"threshold": "1e400"}, {"growth": ["1e400"]}, {"growth": [10**400]}, {"table": "Wan"}]


@pytest.mark.parametrize("plan", BAD_PLANS, ids=["threshold", "growth", "integer", "none"])
def test_a_plan_of_numbers_that_json_can_t_hold_or_without_its_threshold_is_refused(plan: dict[str, Any]) -> None:
    report = run_of("sssrr")
    report.stages[1].teacache = plan
    with pytest.raises(ValueError, match="report"):
        Report.from_json(report.to_json().replace('"1e400"', "1e400"))


# --- figures ----------------------------------------------------------------------------------------------------------


def test_speed_up_compares_with_the_first_stage_alone_at_its_own_seconds_a_step() -> None:
    assert figures.speed_up(run_of("ssrr")) == pytest.approx(4 * 3.0 / 8.0)
    assert figures.speed_up(run_of("ssrrtt")) == pytest.approx(6 * 3.0 / 9.0)


@pytest.mark.parametrize("stages", ["ssss", "rrrr", ""])
def test_no_speed_up_is_claimed_where_a_stage_did_not_run(stages: str) -> None:
    assert figures.speed_up(run_of(stages)) is None


def test_a_slow_first_step_of_a_stage_and_a_disturbed_one_change_nothing() -> None:
    report = run_of("s" * 8 + "r" * 12)
    report.steps[0].seconds, report.steps[8].seconds = 40.0, 30.0  # compiled, tuned
    report.steps[4].seconds, report.steps[15].seconds = 20.0, 25.0  # another program ran
    assert figures.step_seconds(report, "sketch") == 3.0 and figures.step_seconds(report, "render") == 1.0
    assert figures.speed_up(report) == figures.speed_up(run_of("s" * 8 + "r" * 12)) == pytest.approx(60 / 36)


def test_the_first_of_four_steps_is_left_out() -> None:
    report = run_of("ssssrr")
    report.steps[0].seconds, report.steps[2].seconds = 40.0, 20.0
    assert figures.step_seconds(report, "sketch") == 3.0  # of 3, 20, 3


def test_the_first_step_of_a_stage_counts_where_few_others_are_there() -> None:
    report = run_of("ssrrr")
    report.steps[2].seconds = 5.0
    assert figures.step_seconds(report, "render") == 1.0
    report.steps[3].seconds = 5.0
    assert figures.step_seconds(report, "render") == 5.0  # of 5, 5, 1


def test_the_time_left_of_listed_steps_is_that_of_both_stages() -> None:
    report = run_of("sssrrrr")
    report.status, report.sigmas, report.switch = "running", [1.0] * 11, {"mode": "listed", "sketch_steps": "1-3, 9-10"}
    assert figures.remaining(report) == figures.Left(2 * 3.0 + 1 * 1.0, bound=False)
    assert figures.what_if(report) == []


def test_of_listed_steps_only_the_stages_own_are_planned_to_be_reused() -> None:
    report = run_of("sssrrrr")
    report.status, report.sigmas, report.switch = "running", [1.0] * 13, {"mode": "listed", "sketch_steps": "1-3, 9-10"}
    report.stage("render").teacache = plan([False] * 4 + [True] * 5)
    assert figures.still_reused(report) == [8, 11, 12]


@pytest.mark.parametrize("steps", ["1-", "x", 3, None])
def test_a_report_whose_listed_steps_are_none_is_damaged(steps: Any) -> None:
    report = run_of("ssr")
    report.switch = {"mode": "listed", "sketch_steps": steps} if steps else {"mode": "listed"}
    with pytest.raises(ValueError, match="damaged"):
        Report.from_json(report.to_json())


def test_the_time_left_of_a_running_run_is_a_bound_until_the_last_stage_runs() -> None:
    report = run_of("sss")
    report.status, report.sigmas = "running", [1.0] * 11
    assert figures.remaining(report) == figures.Left(7 * 3.0, bound=True) and figures.speed_up(report) is None
    report = run_of("sssrr")
    report.status, report.sigmas = "running", [1.0] * 11
    assert figures.remaining(report) == figures.Left(5 * 1.0, bound=False)
    assert figures.speed_up(report) == pytest.approx(10 * 3.0 / (11.0 + 5.0))
    report.stage("render").teacache = plan([False, False] + [True] * 3)
    assert figures.still_reused(report) == [6, 7, 8]
    assert figures.remaining(report) == figures.Left(2 * 1.0, bound=False)  # a reused step has not been seen yet
    report.steps.append(Step(6, 1.0, "render", 0.2, reused=True))
    assert figures.remaining(report).seconds == pytest.approx(2 * 0.2 + 2 * 1.0)
    report.steps.append(Step(7, 1.0, "render", 1.0))  # against the plan
    assert figures.still_reused(report) == [] and figures.remaining(report).seconds == 3.0


def test_the_seconds_of_another_hand_over_are_told_of_two_stages_only() -> None:
    report = run_of("s" * 6 + "r" * 4)
    report.earliest, report.latest = 1, 10
    for i, fall in enumerate((0.5, 0.2, 0.03, 0.05, 0.02, 0.009)):
        report.steps[i].fall = fall
    rows = figures.what_if(report)
    expected = [(0.5, 1), (0.2, 2), (0.03, 3), (0.02, 5), (0.009, 6), (0.0, None)]
    assert [(row["delta"], row["after"]) for row in rows] == expected
    assert [row["seconds"] for row in rows] == [3.0 * n + 1.0 * (10 - n) for n in (1, 2, 3, 5, 6, 7)]
    report.stages.append(StageReport("third"))
    assert {row["seconds"] for row in figures.what_if(report)} == {None}


def test_figures_are_plain_data_of_any_report() -> None:
    for letters in ("", "s", "sr", "ssrrtt", "srsr"):
        for status in ("running", "done", "not run"):
            report = run_of(letters)
            report.status = status
            json.dumps(figures.figures(report), allow_nan=False)
    json.dumps(figures.figures(Report()), allow_nan=False)


# --- version 1 --------------------------------------------------------------------------------------------------------


def test_a_report_of_version_1_is_read_with_the_right_numbers() -> None:
    report = Report.from_json(json.dumps(VERSION_1))
    sketch, render = report.stages
    names = ("name", "model", "calls", "seconds", "load_seconds")
    assert report.version == 2
    assert [getattr(sketch, name) for name in names] == ["sketch", "Wan 14B", 4, 12.0, 1.5]
    assert [getattr(render, name) for name in names] == ["render", "Wan 1.3B", 6, 4.5, 0.75]
    assert not sketch.teacache and render.teacache["table"] == "Wan 2.1 t2v 1.3B"
    assert (report.earliest, report.latest) == (3, 6)
    assert report.switch == VERSION_1["switch"] and report.notes == ["A note."] and report.total_seconds == 18.75
    # Its delta of 0.01 was used as 0.25 in 10 steps: there the fall was 25 times as large as in 50.
    assert [step.fall for step in report.steps[:4]] == pytest.approx([None, None, 0.016, 0.008])
    assert report.steps[3].fall_low == pytest.approx(0.004)
    (hand_over,) = report.hand_overs
    assert (hand_over.after_step, hand_over.to, hand_over.reason, hand_over.d) == (4, "render", "criterion", 0.3)
    assert hand_over.fall == pytest.approx(0.008) and hand_over.memory == VERSION_1["hand_overs"][0]["memory"]
    assert report.reused("render") == 2 and figures.speed_up(report) == pytest.approx(10 * 3.0 / 16.5)
    assert Report.from_json(report.to_json()) == report
    plot.draw(report)


def test_the_latest_step_of_version_1_is_not_said_to_be_a_noise_level() -> None:
    data = copy.deepcopy(VERSION_1)
    data["hand_overs"][0] |= {"reason": "max_step", "sigma": 0.93}
    report = Report.from_json(json.dumps(data))
    assert report.hand_overs[0].reason == "latest"
    assert "below" not in text.summarize(report)


def test_a_report_of_the_first_release_has_neither_delta_nor_the_lowest_fall() -> None:
    data = copy.deepcopy(VERSION_1)
    for later in ("delta", "load_seconds"):
        data.pop(later)
    for step in data["steps"]:
        step.pop("derivative_low", None)
    report = Report.from_json(json.dumps(data))
    assert report.steps[3].fall == 0.2 and report.steps[3].fall_low is None  # delta was used as set


# --- as a picture -----------------------------------------------------------------------------------------------------


def test_a_new_run_forgets_the_one_before() -> None:
    report = run_of("sssrr")
    report.begin(sigmas=[1.0, 0.0])
    assert report.status == "running" and not report.steps and not report.hand_overs


@pytest.mark.parametrize("letters", ["sssrr", "ssss", "rrrr", "srsr" * 5, "ssrrtt", "sr", ""])
def test_the_picture_can_be_drawn_for_any_route(letters: str) -> None:
    image = plot.draw(run_of(letters))
    assert image.size == (plot.WIDTH, plot.HEIGHT)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    for letter, tint in zip("srt", plot.TINTS):
        assert (tuple(int(tint[i : i + 2], 16) for i in (1, 3, 5)) in colours) == (letter in letters)


def test_steps_that_teacache_reused_are_counted_and_hatched_in_the_picture() -> None:
    report = run_of("ssrrrr")
    plain = plot.draw(report)
    report.stage("render").teacache = {"threshold": 0.14, "table": "Wan 2.1 t2v 1.3B"}
    for step in report.steps[3:5]:
        step.reused = True
    hatched = plot.draw(report)
    tone = tuple(int(plot.TONES[1][i : i + 2], 16) for i in (1, 3, 5))

    def toned(image: Any, step: int) -> int:
        left, right = plot._column(report, step)
        top, bottom = plot.PANELS["seconds"]
        return sum(
            image.getpixel((x, y)) == tone for x in range(int(left) + 2, int(right) - 2) for y in range(top, bottom)
        )

    assert report.reused("render") == 2 and report.reused("sketch") == 0
    assert toned(hatched, 4) > toned(plain, 4) and toned(hatched, 5) > toned(plain, 5)
    assert toned(hatched, 3) == toned(plain, 3) and toned(hatched, 6) == toned(plain, 6)


def test_the_picture_of_an_empty_report_and_of_wild_values_can_be_drawn() -> None:
    plot.draw(Report())
    report = run_of("ssr")
    report.steps[0].d, report.steps[1].fall, report.steps[2].seconds = float("nan"), float("inf"), None
    plot.draw(report)


def test_a_latent_of_several_parts_is_one_long_row_and_its_report_is_read() -> None:
    report = Report(status="done", shape=[1, 1, 2_096_640])
    assert Report.from_json(report.to_json()).shape == [1, 1, 2_096_640]


def test_many_switches_can_be_drawn_and_the_summary_has_each_stages_memory_once() -> None:
    report = run_of("srsrsrsr")
    for hand_over in report.hand_overs:
        hand_over.memory = {"before": {"free": 10**9}}
    plot.draw(report)
    assert text.summarize(report).count("Memory, GB") == len({hand_over.to for hand_over in report.hand_overs})


@pytest.mark.parametrize("steps", [500, 10_000])
def test_a_run_of_more_steps_than_the_picture_has_columns_can_be_drawn(steps: int) -> None:
    report = run_of("s" * (steps // 2) + "r" * (steps - steps // 2))
    report.steps[-2].reused = True
    assert plot.draw(report).size == (plot.WIDTH, plot.HEIGHT)
