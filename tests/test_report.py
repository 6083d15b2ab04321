"""The report: plain data that survives JSON, and its picture."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hosting import module

report_module, plot = module("srd_core.report.data"), module("srd_core.report.plot")
Report, Step, HandOver = report_module.Report, report_module.Step, report_module.HandOver


def run_of(stages: str) -> Report:
    """A report of one step per letter, s or r, with a hand-over at every change."""
    report = Report()
    report.begin(
        sketch="Big", render="Small", switch={"mode": "adaptive", "delta": 0.01}, sigmas=[1.0] * (len(stages) + 1)
    )
    for i, letter in enumerate(stages):
        stage = {"s": "sketch", "r": "render"}[letter]
        if i and stages[i - 1] != letter:
            report.hand_overs.append(HandOver(i, stage, "criterion", 0.9, 100 * i / len(stages), 0.1, 0.005, 0.5))
        report.steps.append(Step(i + 1, 1.0, stage, 3.0 if letter == "s" else 1.0, 0.1, 0.01))
        report.seconds[stage] += 3.0 if letter == "s" else 1.0
        report.calls[stage] += 1
    report.status = "done"
    return report


def test_a_watcher_that_fails_is_told_no_more_and_does_not_end_the_run():
    report, told = Report(), []

    def watch(now: Any) -> None:
        told.append(now.status)
        raise KeyError("nobody")

    report.watch = watch
    report.begin(sketch="Big", render="Small")
    report.changed()
    assert told == ["running"] and report.status == "running"


def test_a_report_survives_json():
    report = run_of("sssrr")
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', '{"version": 1, "unknown": 2}'])
def test_text_that_is_no_report_is_refused_with_a_sentence(text: str):
    with pytest.raises(ValueError, match="report"):
        Report.from_json(text)


def test_a_report_holds_only_plain_data():
    json.loads(run_of("sr").to_json())  # raises on anything else


def test_speed_up_compares_with_the_sketch_at_its_own_seconds_a_call():
    assert run_of("ssrr").speed_up() == pytest.approx(4 * 3.0 / 8.0)


@pytest.mark.parametrize("stages", ["ssss", "rrrr", ""])
def test_no_speed_up_is_claimed_where_a_stage_did_not_run(stages: str):
    assert run_of(stages).speed_up() is None


def test_the_summary_names_step_sigma_percent_reason_and_seconds():
    text = module("srd_core.report.text").summarize(run_of("sssrr"))
    for part in ("after step 3 of 5", "sigma 0.9", "60 %", "criterion", "delta is 0.01", "0.50 s", "Sketch: 3 steps"):
        assert part in text


def test_the_summary_of_a_run_that_never_handed_over_says_so():
    assert "never" in module("srd_core.report.text").summarize(run_of("sss"))


def test_the_summary_without_a_run_says_what_to_connect():
    assert "`after`" in module("srd_core.report.text").summarize(Report())


def test_a_new_run_forgets_the_one_before():
    report = run_of("sssrr")
    report.begin(sketch="Big", sigmas=[1.0, 0.0])
    assert report.status == "running" and not report.steps and not report.hand_overs


@pytest.mark.parametrize("stages", ["sssrr", "ssss", "rrrr", "srsr" * 5, "sr", ""])
def test_the_picture_can_be_drawn_for_any_route(stages: str):
    image = plot.draw(run_of(stages))
    assert image.size == (plot.WIDTH, plot.HEIGHT)
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    for stage, letter in (("sketch", "s"), ("render", "r")):
        tint = tuple(int(plot.TINT[stage][i : i + 2], 16) for i in (1, 3, 5))
        assert (tint in colours) == (letter in stages)


def test_steps_that_teacache_reused_are_counted_and_hatched_in_the_picture():
    report = run_of("ssrrrr")
    plain = plot.draw(report)
    report.stage("render").teacache = {"threshold": 0.14, "table": "Wan 2.1 t2v 1.3B"}
    for step in report.steps[3:5]:
        step.reused = True
    hatched = plot.draw(report)
    tone = tuple(int(plot.TONE["render"][i : i + 2], 16) for i in (1, 3, 5))

    def toned(image: Any, step: int) -> int:
        left, right = plot._column(report, step)
        top, bottom = plot.PANELS["seconds"]
        return sum(image.getpixel((x, y)) == tone for x in range(int(left) + 2, int(right) - 2) for y in range(top, bottom))

    assert report.reused("render") == 2 and report.reused("sketch") == 0
    assert toned(hatched, 4) > toned(plain, 4) and toned(hatched, 5) > toned(plain, 5)
    assert toned(hatched, 3) == toned(plain, 3) and toned(hatched, 6) == toned(plain, 6)
    summary = module("srd_core.report.text").summarize(report)
    assert "TeaCache on the render: 2 of 4 steps reused, threshold 0.14, coefficients of Wan 2.1 t2v 1.3B" in summary
    assert "TeaCache on the sketch" not in summary
    assert Report.from_json(report.to_json()) == report


def test_the_picture_of_an_empty_report_and_of_wild_values_can_be_drawn():
    plot.draw(Report())
    report = run_of("ssr")
    report.steps[0].d, report.steps[1].fall, report.steps[2].seconds = float("nan"), float("inf"), None
    plot.draw(report)
