"""The figures of the evaluation, drawn from result lines: PNG files beside the table."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import quality_metrics  # noqa: F401  (it puts matplotlib on sys.path)
from PIL import Image
from quality_rows import ALONE, FADE, SPREAD
from quality_table import MAIN_RUN, ROWS, Line, Results, by_prompt, number, run_of, score, shared

# isort: split
import matplotlib.pyplot as plt

plt.switch_backend("agg")

SHEET = ("sketch only", "render only", "fixed, step 10", "step 10, fade", f"sketch steps {SPREAD}, fade")
DELTA = 0.01  # the fall of D that counts as settled, by default

Point = tuple[float, float]


def write(lines: Sequence[Line], folder: Path, frames: Path) -> None:
    """Every figure that the lines of the main run are enough for. frames: where the sampled frames lie."""
    results = Results([line for line in lines if run_of(line) == MAIN_RUN])
    rows = results.rows(MAIN_RUN)
    drawn = {
        "curves": curves(rows),
        "switch_steps": switch_steps(rows),
        "speed_quality": speed_quality(results, rows),
        "contact_sheet": contact_sheet(rows, frames),
    }
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(folder / f"quality_{name}.png", dpi=80, metadata={"Software": None})
            plt.close(figure)


def curves(rows: dict[str, list[Line]]) -> Any:
    """D and its fall over the steps, one line a run of the sketch alone (the paper's Figure 3)."""
    recorded = [line["curve"][1:] for line in rows.get(ALONE[0].name, []) if line["curve"]]
    if not recorded:
        return None
    d = np.array(recorded, float).T
    steps = np.arange(2, len(d) + 2)
    figure, (upper, lower) = plt.subplots(2, figsize=(11, 7), layout="constrained", sharex=True)
    upper.plot(steps, d, color="tab:blue", alpha=0.3, linewidth=0.8)
    upper.set(title=f"Change D of the sketch's x0 prediction, {d.shape[1]} runs", ylim=(0, np.quantile(d, 0.99)))
    lower.plot(steps[1:], -np.diff(d, axis=0), color="tab:blue", alpha=0.3, linewidth=0.8)
    lower.axhspan(0, DELTA, color="tab:green", alpha=0.3)
    lower.set(title=f"Fall of D; green: 0 to delta {DELTA}", xlabel="step", ylim=(-0.03, 0.06))
    return figure


def switch_steps(rows: dict[str, list[Line]]) -> Any:
    """How often each step was the switch, for every row that decides by the rule (the paper's Figure 7)."""
    chosen = {name: lines for name, lines in rows.items() if name.startswith("adaptive")}
    if not chosen:
        return None
    figure, axes = plt.subplots(
        len(chosen), figsize=(11, 2.3 * len(chosen)), layout="constrained", sharex=True, squeeze=False
    )
    for axis, (name, lines) in zip(axes[:, 0], chosen.items()):
        steps = [line["steps"] if line["switch_step"] is None else line["switch_step"] for line in lines]
        counts = Counter(steps)
        axis.bar(list(counts), list(counts.values()))
        mean = f"mean {statistics.fmean(steps):.1f}, sd {statistics.pstdev(steps):.1f}"
        axis.set(title=f"{name}: {mean}, {len(steps)} runs", xlim=(0, MAIN_RUN[0] + 1))
    axes[-1, 0].set_xlabel("sketch steps at the switch")
    return figure


def speed_quality(results: Results, rows: dict[str, list[Line]]) -> Any:
    """Every row as a point: speed-up against score and PSNR, with the rows that none beats in both, on shared cells."""
    same = dict(zip(rows, shared(*rows.values()))) if rows else {}
    panels: dict[str, dict[str, Point]] = {}
    for title, value in (("score", score("mean")), ("PSNR to the sketch alone, dB", number("psnr"))):
        for name, lines in same.items():
            speed, quality = (by_prompt(lines, each).values() for each in (results.speed_up, value))
            if speed and quality:
                panels.setdefault(title, {})[name] = (statistics.fmean(speed), statistics.fmean(quality))
    if not panels:
        return None
    figure, axes = plt.subplots(len(panels), figsize=(11, 4 * len(panels)), layout="constrained", squeeze=False)
    for axis, (title, points) in zip(axes[:, 0], panels.items()):
        axis.plot(*zip(*sorted(points[name] for name in pareto(points))), color="tab:green", zorder=0)
        for i, (name, point) in enumerate(points.items(), 1):
            axis.scatter(*point, color="tab:orange" if fades(name) else "tab:blue", label=f"{i}  {name}")
            beside = (5, 4 if i % 2 else -10)
            axis.annotate(str(i), point, xytext=beside, textcoords="offset points", fontsize=8)
        axis.set(title=title, xlabel="speed-up over the sketch alone; line: what no other row beats in both")
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def fades(name: str) -> bool:
    """Whether a row of the main run has a fade."""
    row = ROWS.get((name, MAIN_RUN))
    return row is not None and FADE.items() <= row.inputs.items()


def pareto(points: dict[str, Point]) -> set[str]:
    """The points that no other point is at least as good as in both and better in one."""
    return {
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
    }


def contact_sheet(rows: dict[str, list[Line]], frames: Path) -> Any:
    """Frames of the first prompts, a column for each of some rows."""
    files = {
        (line["number"], name): frames / f"{name} ({MAIN_RUN[0]} steps, {MAIN_RUN[1]}), {line['number']}.png"
        for name in SHEET
        for line in rows.get(name, [])
    }
    shown = {place: Image.open(file) for place, file in files.items() if file.is_file()}
    if not shown:
        return None
    numbers, names = sorted({place[0] for place in shown}), [name for name in SHEET if name in rows]
    prompts = {line["number"]: line["prompt"] for lines in rows.values() for line in lines}
    figure, axes = plt.subplots(
        len(numbers), len(names), figsize=(3 * len(names), 1.3 * len(numbers)), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for (n, name), picture in shown.items():
        axes[numbers.index(n), names.index(name)].imshow(picture)
    for axis, name in zip(axes[0], names):
        axis.set_title(name, fontsize=9)
    for axis, n in zip(axes[:, 0], numbers):
        axis.text(0, -0.05, prompts[n], transform=axis.transAxes, fontsize=7, va="top").set_in_layout(False)
    return figure
