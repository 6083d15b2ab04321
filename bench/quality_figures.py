"""The figures of the evaluation, drawn from result lines: PNG files beside the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from quality_rows import DELTAS, PAPER_STEPS, SHEET_PROMPTS
from quality_table import (
    DEFAULT,
    Line,
    Results,
    attribute,
    by_prompt,
    field,
    kind_of,
    run_of,
    shared_cells,
    sketch_steps,
    stat,
)

INK, FAINT, GRID, PAPER = "#22252b", "#6b727d", "#e4e7eb", "#ffffff"
COLOURS = ("#2f6bd8", "#e08423", "#2e9e5b", "#b3261e", "#7a4fc4", "#1795a3")
BAND = "#bfe3c4"

Point = tuple[float, float]


class Axes:
    """One panel of a picture: values in, pixels out."""

    def __init__(
        self, canvas: ImageDraw.ImageDraw, box: tuple[int, int, int, int], x: Point, y: Point, title: str, across: str
    ) -> None:
        """box: left, top, right, bottom in pixels; x, y: the ranges of values."""
        self.canvas, (self.left, self.top, self.right, self.bottom) = canvas, box
        self.low, self.high = (x[0], y[0]), (x[1] if x[1] > x[0] else x[0] + 1, y[1] if y[1] > y[0] else y[0] + 1)
        for value in ticks(*y):
            height = self.at(x[0], value)[1]
            canvas.line((self.left, height, self.right, height), fill=GRID)
            canvas.text((self.left - 6, height), f"{value:g}", fill=FAINT, font=font(13), anchor="rm")
        for value in ticks(*x):
            place = self.at(value, y[0])[0]
            canvas.line((place, self.bottom, place, self.bottom + 4), fill=FAINT)
            canvas.text((place, self.bottom + 6), f"{value:g}", fill=FAINT, font=font(13), anchor="ma")
        canvas.line((self.left, self.bottom, self.right, self.bottom), fill=FAINT)
        canvas.text((self.left, self.top - 24), title, fill=INK, font=font(16))
        canvas.text((self.right, self.bottom + 24), across, fill=FAINT, font=font(13), anchor="ra")

    def at(self, x: float, y: float) -> Point:
        """The pixel of a value; values outside lie on the edge."""
        across = (x - self.low[0]) / (self.high[0] - self.low[0])
        up = (y - self.low[1]) / (self.high[1] - self.low[1])
        return (
            self.left + min(max(across, 0), 1) * (self.right - self.left),
            self.bottom - min(max(up, 0), 1) * (self.bottom - self.top),
        )

    def line(self, points: Sequence[Point], fill: Any, width: int = 1) -> None:
        """A line through values."""
        if len(points) > 1:
            self.canvas.line([self.at(*point) for point in points], fill=fill, width=width)

    def dot(self, x: float, y: float, fill: str, radius: int = 5) -> Point:
        """A dot; its pixel."""
        a, b = self.at(x, y)
        self.canvas.ellipse((a - radius, b - radius, a + radius, b + radius), fill=fill)
        return a, b

    def bars(self, left: float, right: float, height: float, fill: Any) -> None:
        """A bar between two values, from the lower edge."""
        x0, y0 = self.at(left, height)
        x1, y1 = self.at(right, self.low[1])
        if y1 > y0:
            self.canvas.rectangle((x0 + 1, y0, max(x1 - 1, x0 + 1), y1), fill=fill)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values in a range."""
    raw = (high - low) / about or 1.0
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings."""
    return ImageFont.load_default(size)


def sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper and a pen."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image, "RGBA")


def write(lines: Sequence[Line], folder: Path, frames: Path) -> list[Path]:
    """Every figure that the lines are enough for; the files written. frames: where the sampled frames lie."""
    results = Results(lines)
    drawn = {
        "curves": curves(results),
        "switch_steps": switch_steps(results),
        "psnr": psnr(results),
        "speed_quality": speed_quality(results),
        "contact_sheet": contact_sheet(results, frames),
    }
    written = []
    for name, image in drawn.items():
        if image is not None:
            written.append(folder / f"quality_{name}.png")
            image.quantize(256).save(written[-1], optimize=True)
    return written


def main_run(results: Results) -> tuple[int, str] | None:
    """50 steps with euler, or the longest run there is."""
    runs = results.runs()
    return (PAPER_STEPS, "euler") if (PAPER_STEPS, "euler") in runs else runs[0] if runs else None


# --- the criterion ----------------------------------------------------------------------------------------------------


def curves(results: Results) -> Image.Image | None:
    """D and its fall over the steps, one line a prompt (the paper's Figure 3)."""
    run = main_run(results)
    recorded = [line["curves"]["x0"] for line in results.references.values() if run_of(line) == run and line["curves"]]
    if run is None or not recorded:
        return None
    image, canvas = sheet(1200, 760)
    canvas.text(
        (70, 18),
        f"Change of the sketch's x0 prediction, {len(recorded)} runs of {run[0]} steps, {run[1]}",
        fill=INK,
        font=font(20),
    )
    shown = [[(i + 1.0, d) for i, d in enumerate(curve) if d is not None] for curve in recorded]
    largest = float(np.quantile([d for points in shown for _, d in points], 0.99))
    upper = Axes(canvas, (70, 84, 1170, 370), (1, run[0]), (0, largest), "D", "")
    lower = Axes(
        canvas,
        (70, 440, 1170, 700),
        (1, run[0]),
        (-0.03, 0.06),
        "fall of D (previous - current); green: 0 to delta 0.01",
        "scheduler step",
    )
    canvas.rectangle((*lower.at(1, 0.01), *lower.at(run[0], 0)), fill=BAND)
    for points in shown:
        upper.line(points, (47, 107, 216, 70))
        lower.line([(step, before - now) for (_, before), (step, now) in zip(points, points[1:])], (47, 107, 216, 70))
    return image


def switch_steps(results: Results) -> Image.Image | None:
    """How often each step was the hand-over, for every delta (the paper's Figure 7)."""
    run = main_run(results)
    if run is None:
        return None
    rows = results.rows(run)
    deltas = [delta for delta in sorted(DELTAS) if f"adaptive, delta {delta}" in rows]
    if not deltas:
        return None
    image, canvas = sheet(1200, 60 + 230 * len(deltas))
    canvas.text((70, 14), f"Hand-over step, {run[0]} steps, {run[1]}", fill=INK, font=font(20))
    for i, delta in enumerate(deltas):
        steps = [sketch_steps(line) for line in rows[f"adaptive, delta {delta}"]]
        counts = {step: steps.count(step) for step in set(steps)}
        title = (
            f"delta {delta}: mean {statistics.fmean(steps):.1f}, sd {statistics.pstdev(steps):.1f}, {len(steps)} runs"
        )
        top = 84 + 230 * i
        axes = Axes(canvas, (70, top, 1170, top + 140), (0, run[0] + 1), (0, max(counts.values())), title, "step")
        for step, count in counts.items():
            axes.bars(step - 0.5, step + 0.5, count, COLOURS[i])
    return image


# --- quality ----------------------------------------------------------------------------------------------------------


def psnr(results: Results) -> Image.Image | None:
    """The distribution of PSNR to sketch only: a fixed step beside the adaptive rule (the paper's Figure 6)."""
    run = main_run(results)
    if run is None or DEFAULT not in (rows := results.rows(run)):
        return None
    mean = statistics.fmean(map(sketch_steps, rows[DEFAULT]))
    fixed = {
        name: lines[0]["switch_step"]
        for name, lines in rows.items()
        if name.startswith("fixed")
        if lines[0]["switch_step"]
    }
    if not fixed:
        return None
    nearest = min(fixed, key=lambda name: abs(fixed[name] - mean))
    values = {name: [line["psnr"] for line in rows[name] if line["psnr"] is not None] for name in (DEFAULT, nearest)}
    if not all(values.values()):
        return None
    every = [value for some in values.values() for value in some]
    edges = np.linspace(math.floor(min(every)), math.ceil(max(every)) + 0.01, 25)
    shares = {name: np.histogram(some, edges)[0] / len(some) for name, some in values.items()}
    image, canvas = sheet(1200, 480)
    canvas.text((70, 14), f"PSNR to sketch only, {run[0]} steps, {run[1]}", fill=INK, font=font(20))
    axes = Axes(
        canvas,
        (70, 110, 1170, 420),
        (edges[0], edges[-1]),
        (0, max(s.max() for s in shares.values())),
        "share of the videos",
        "dB",
    )
    for i, (name, share) in enumerate(shares.items()):
        rgb = tuple(int(COLOURS[i][j : j + 2], 16) for j in (1, 3, 5))
        for left, right, height in zip(edges, edges[1:], share):
            axes.bars(left, right, height, (*rgb, 120))
        text = (
            f"{name}: mean {statistics.fmean(values[name]):.2f} dB, sd {statistics.pstdev(values[name]):.2f}, "
            f"{len(values[name])} videos"
        )
        canvas.rectangle((70 + 520 * i, 52, 84 + 520 * i, 66), fill=COLOURS[i])
        canvas.text((92 + 520 * i, 50), text, fill=INK, font=font(15))
    return image


def speed_quality(results: Results) -> Image.Image | None:
    """Every row of the main run as a point: speed-up against score and against PSNR, with the rows none is better than."""
    run = main_run(results)
    if run is None:
        return None
    rows = shared_cells(results.rows(run))
    cells = len(next(iter(rows.values())))
    numbers = {name: i for i, name in enumerate(rows, 1)}
    image, canvas = sheet(1500, 1120)
    canvas.text(
        (70, 14),
        f"Speed against quality, {run[0]} steps, {run[1]}, the {cells} cells that all rows have; line: rows "
        "that no other beats in both",
        fill=INK,
        font=font(20),
    )
    for name, number in numbers.items():
        canvas.text((1110, 70 + 22 * number), f"{number}  {name}", fill=INK, font=font(14))
    panels = 0
    for top, value, title in ((90, attribute("mean"), "score"), (620, field("psnr"), "PSNR to sketch only, dB")):
        points = {}
        for name, lines in rows.items():
            speed, quality = (stat(by_prompt(lines, v)) for v in (results.speed_up, value))
            if speed and quality:
                points[name] = (speed.mean, quality.mean)
        if len(points) > 1:
            _scatter(canvas, (70, top, 1070, top + 430), points, title, numbers)
            panels += 1
    return image if panels else None


def _scatter(
    canvas: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    points: dict[str, Point],
    title: str,
    numbers: dict[str, int],
) -> None:
    """A panel of numbered dots."""
    xs, ys = [p[0] for p in points.values()], [p[1] for p in points.values()]
    margin = [0.05 * (max(v) - min(v)) or 0.1 for v in (xs, ys)]
    axes = Axes(
        canvas,
        box,
        (min(xs) - margin[0], max(xs) + margin[0]),
        (min(ys) - margin[1], max(ys) + margin[1]),
        title,
        "speed-up over sketch only",
    )
    front = pareto(points)
    axes.line(sorted(points[name] for name in front), COLOURS[2], 2)
    taken: list[tuple[float, float, float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: item[1]):
        x, y = axes.dot(*point, fill=COLOURS[1] if "adaptive" in name else COLOURS[0] if name in front else FAINT)
        for dx, dy in (
            (8, 0),
            (8, -12),
            (8, 12),
            (-22, 0),
            (-22, -12),
            (-22, 12),
            (8, -24),
            (8, 24),
            (-22, -24),
            (-22, 24),
        ):
            place = canvas.textbbox((x + dx, y + dy), str(numbers[name]), font=font(12), anchor="lm")
            if not any(place[0] < b[2] and b[0] < place[2] and place[1] < b[3] and b[1] < place[3] for b in taken):
                break  # numbers give way to each other
        taken.append(place)
        canvas.text(
            (x + dx, y + dy), str(numbers[name]), fill=INK if name in front else FAINT, font=font(12), anchor="lm"
        )


def pareto(points: dict[str, Point]) -> set[str]:
    """The points that no other point is at least as good as in both and better in one."""
    return {
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
    }


# --- pictures ---------------------------------------------------------------------------------------------------------


def contact_sheet(results: Results, frames: Path) -> Image.Image | None:
    """Frames of eight prompts: a column for each kind of row that was sampled on them."""
    run = main_run(results)
    if run is None:
        return None
    shown: dict[str, dict[int, Image.Image]] = {}
    captions: dict[int, str] = {}
    for name, lines in results.rows(run).items():
        row = kind_of(run, name)
        if row.reading != "x0" or (row.kind == "fixed" and not row.main):
            continue
        for line in lines:
            file = frames / f"{line['key']}.png"
            if line["number"] < SHEET_PROMPTS and line["seed"] == 0 and file.is_file():
                with Image.open(file) as picture:
                    shown.setdefault(name, {})[line["number"]] = picture.convert("RGB").resize(
                        (288, 288 * picture.height // picture.width)
                    )
                captions[line["number"]] = line["prompt"]
    if not shown:
        return None
    names, numbers = list(shown), sorted(captions)
    high = max(picture.height for pictures in shown.values() for picture in pictures.values()) + 24
    image, canvas = sheet(8 + 296 * len(names), 30 + high * len(numbers))
    for column, name in enumerate(names):
        canvas.text((8 + 296 * column, 8), name, fill=INK, font=font(14))
        for i, number in enumerate(numbers):
            if number in shown[name]:
                image.paste(shown[name][number], (8 + 296 * column, 30 + high * i))
    for i, number in enumerate(numbers):
        canvas.text((8, 8 + high * (i + 1)), captions[number], fill=FAINT, font=font(13))
    return image
