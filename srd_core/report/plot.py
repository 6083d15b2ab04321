"""The Switch Inspector's picture: D and its fall over the steps, who ran each step, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image, ImageDraw

from ..drawing import FAINT, INK, PAPER, axis, curve, fitting, font
from ..route import LISTED
from .data import Report
from .figures import Panel, panels
from .text import describe_hand_over, describe_speed_up

WIDTH, HEIGHT = 1120, 720
LEFT, RIGHT = 84, WIDTH - 28  # of all panels
PANELS = {"d": (136, 310), "fall": (350, 510), "seconds": (550, 664)}  # top and bottom of each
TITLES = {"d": "D (change of the prediction)", "fall": "fall of D", "seconds": "seconds per step"}
# By the stage's place in the route; further stages begin anew.
TINTS = ("#e8effb", "#fdf0e3", "#e9f5ec", "#f3e9f7")
TONES = ("#2f6bd8", "#e08423", "#3b9150", "#8b4fa8")
FIXED = ("#ccd4e2", "#e0d6cb", "#cfe0d3", "#dccfe2")  # the tints where the rule may not decide yet
BAND, MARK = "#bfe3c4", "#b3261e"

MOST_LINES = 8  # of labels of hand-overs; the rest is in the summary


def draw(report: Report) -> Image.Image:
    """An RGB picture of WIDTH x HEIGHT pixels; also of a report without a run."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    canvas = ImageDraw.Draw(image)
    _headline(canvas, report)
    if report.steps:
        shown = panels(report)
        for panel in shown:
            _stages(canvas, report, panel)
        _fades(canvas, report)
        for panel in shown:
            (_seconds if panel.field == "seconds" else _curve)(canvas, report, panel)
            axis(canvas, LEFT, PANELS[panel.field], TITLES[panel.field], f"{panel.low:.3g}", f"{panel.high:.3g}")
        _hand_overs(canvas, report)
    return image


def _headline(canvas: ImageDraw.ImageDraw, report: Report) -> None:
    title = _one_line("  ->  ".join(stage.model for stage in report.stages)) or "no run yet"
    canvas.text((LEFT, 42), title, fill=INK, font=font(fitting(canvas, title, RIGHT - LEFT)), anchor="ls")
    if report.steps:
        last = report.hand_overs[-1] if report.hand_overs else None
        line = f"switched {describe_hand_over(last, report)}" if last else f"switch: {report.never()}"
        canvas.text((LEFT, 52), _one_line(line), fill=INK, font=font(16))
    x = LEFT
    for stage in report.stages:
        count = report.reused(stage.name)
        reused = f" ({count} reused, hatched)" if count or stage.teacache.get("table") else ""
        text = f"{stage.name}: {report.count(stage.name)} steps{reused}, {stage.seconds:.3g} s"
        canvas.rectangle((x, 84, x + 14, 98), fill=colour(report, stage.name, TONES))
        canvas.text((x + 20, 82), text, fill=INK, font=font(15))
        x += 44 + int(canvas.textlength(text, font=font(15)))
    canvas.text((x, 82), describe_speed_up(report), fill=INK, font=font(15))


def colour(report: Report, stage: str, colours: tuple[str, ...]) -> str:
    """Of these, the one of ``stage``."""
    names = [s.name for s in report.stages]
    return colours[names.index(stage) % len(colours)]


def _stages(canvas: ImageDraw.ImageDraw, report: Report, panel: Panel) -> None:
    """Every step on the colour of its stage, darker where an adaptive switch may not hand over yet."""
    top, bottom = PANELS[panel.field]
    for step in report.steps:
        left, right = _column(report, step.step)
        tints = FIXED if step.step < panel.earliest else TINTS
        canvas.rectangle((left, top, right, bottom), fill=colour(report, step.stage, tints))
    canvas.line((LEFT, bottom, RIGHT, bottom), fill=FAINT)


def _fades(canvas: ImageDraw.ImageDraw, report: Report) -> None:
    """How much of a stage's last velocity is held at most in each step after it: a slope in that stage's colour."""
    top, bottom = PANELS["d"]
    for hand_over in report.hand_overs:
        leaving = next((s.stage for s in report.steps if s.step == hand_over.after_step), None)
        if not hand_over.fade or leaving is None:
            continue
        for i, share in enumerate(hand_over.fade):
            left, right = _column(report, hand_over.after_step + 1 + i)
            held = bottom - share * (bottom - top)
            canvas.rectangle((left, held, right, bottom), fill=colour(report, leaving, FIXED))
        canvas.text((_column(report, hand_over.after_step + 1)[0] + 6, bottom - 18), "fade", fill=INK, font=font(14))


def _curve(canvas: ImageDraw.ImageDraw, report: Report, panel: Panel) -> None:
    top, bottom = PANELS[panel.field]
    y = _scale(panel)
    if panel.delta:
        canvas.rectangle((LEFT, y(panel.delta), RIGHT, y(0)), fill=BAND)
        canvas.text((RIGHT - 150, y(panel.delta) - 18), f"delta {panel.delta:g}", fill=FAINT, font=font(14))
        if panel.earliest > 1:
            canvas.text((LEFT + 4, PANELS["d"][1] - 18), "fix_step", fill=FAINT, font=font(14))
    points = [(s.step, getattr(s, panel.field)) for s in report.steps]
    points = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
    line = [(sum(_column(report, step)) / 2, min(max(y(value), top), bottom)) for step, value in points]
    curve(canvas, line, INK)


def _seconds(canvas: ImageDraw.ImageDraw, report: Report, panel: Panel) -> None:
    top, bottom = PANELS["seconds"]
    y, every = _scale(panel), max(1, round((len(report.sigmas) - 1) / 10))
    for step in report.steps:
        left, right = _column(report, step.step)
        tone = colour(report, step.stage, TONES)
        gap = min(1.0, (right - left) / 4)
        if step.seconds:
            canvas.rectangle((left + gap, min(y(step.seconds), bottom), right - gap, bottom), fill=tone)
        if step.reused:
            _hatch(canvas, (left + gap, top, right - gap, bottom), tone)
        if step.step % every == 0 or step.step == 1:
            canvas.text(((left + right) / 2, bottom + 6), str(step.step), fill=FAINT, font=font(14), anchor="ma")
    canvas.text((RIGHT, bottom + 26), "scheduler step", fill=FAINT, font=font(14), anchor="ra")


def _hatch(canvas: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: str) -> None:
    """Diagonal lines in a box, clipped to it."""
    left, top, right, bottom = box
    for start in range(int(top), int(bottom + right - left), 7):
        begin = (left, start) if start <= bottom else (left + start - bottom, bottom)
        rise = min(right - begin[0], begin[1] - top)
        canvas.line((begin, (begin[0] + rise, begin[1] - rise)), fill=colour)


def _hand_overs(canvas: ImageDraw.ImageDraw, report: Report) -> None:
    ends: list[float] = []  # of the labels in each line
    for hand_over in report.hand_overs:
        x = _column(report, hand_over.after_step + 1)[0]
        for top, bottom in PANELS.values():
            canvas.line((x, top, x, bottom), fill=MARK, width=2)
        text = _one_line(f"{hand_over.to}: {'sketch_steps' if hand_over.reason == LISTED else hand_over.reason}")
        wide = 12 + canvas.textlength(text, font=font(15))
        near_edge = x + wide > RIGHT
        begin = x - wide if near_edge else x
        line = next((i for i, end in enumerate(ends) if end <= begin), len(ends))
        if line == MOST_LINES:
            continue
        ends[line : line + 1] = [begin + wide]
        at, anchor = (x - 6, "ra") if near_edge else (x + 6, "la")
        canvas.text((at, PANELS["d"][0] + 4 + 18 * line), text, fill=MARK, font=font(15), anchor=anchor)


def _one_line(text: str) -> str:
    """Without line breaks, which the drawing library can't measure; names come from files."""
    return " ".join(text.splitlines())


def _column(report: Report, step: int) -> tuple[float, float]:
    """Left and right edge of a step's column."""
    width = (RIGHT - LEFT) / max(len(report.sigmas) - 1, 1)
    return LEFT + (step - 1) * width, LEFT + step * width


def _scale(panel: Panel) -> Callable[[float], float]:
    """From a value to its height in the picture."""
    top, bottom = PANELS[panel.field]
    return lambda value: bottom - (value - panel.low) / (panel.high - panel.low) * (bottom - top)
