"""The scaling curves: operations over frames, what a longer video gains, and the measured steps beside the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cost
from PIL import Image
from quality_figures import COLOURS, INK, Axes, font, sheet
from speed_paper import PAIRS, paper_steps, plan
from speed_rows import RENDER, SKETCH

FRAMES = range(5, 242, 4)
PICTURES = {"832x480": (832, 480), "1280x720": (1280, 720)}
PANEL, GAP = (420, 300), 110


def write(files: Sequence[tuple[str, dict[str, Any]]], folder: Path) -> list[Path]:
    """Draw what there is to draw; the files written."""
    measured = newest_scaling(files)
    image, canvas = sheet(70 + (3 if measured else 2) * (PANEL[0] + GAP), PANEL[1] + 130)
    boxes = [(70 + i * (PANEL[0] + GAP), 50, 70 + i * (PANEL[0] + GAP) + PANEL[0], 50 + PANEL[1]) for i in range(3)]
    operations(canvas, boxes[0])
    gains(canvas, boxes[1])
    if measured:
        steps(canvas, boxes[2], *measured)
    path = folder / "speed_scaling.png"
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return [path]


def operations(canvas: Any, box: tuple[int, int, int, int]) -> None:
    """PFLOP of a guided step over frames at 832x480, whole and without self-attention."""
    curves = [(network, [(f, cost.forward_flops(network, cost.Size(832, 480, f)).times(2)) for f in FRAMES])
              for network in PAIRS[cost.WAN]]  # fmt: skip
    top = max(flops.total for _, curve in curves for _, flops in curve) / 1e15
    axes = Axes(canvas, box, (0, FRAMES[-1]), (0, top), "PFLOP of a step, Wan at 832x480 (predicted)", "frames")
    for colour, (network, curve) in zip(COLOURS, curves):
        axes.line([(f, flops.total / 1e15) for f, flops in curve], colour, 3)
        axes.line([(f, flops.linear / 1e15) for f, flops in curve], colour, 1)
        tokens = cost.balance(network)
        frames = cost.longer(cost.Size(832, 480, 81), tokens / cost.Size(832, 480, 81).tokens).frames
        axes.dot(frames, cost.forward_flops(network, cost.Size(832, 480, frames)).total * 2 / 1e15, colour)
    notes = [f"{network.name}: thick all, thin without self-attention" for network, _ in curves]
    _legend(canvas, box, [*zip(COLOURS, notes), (INK, "dot: self-attention takes over")])


def gains(canvas: Any, box: tuple[int, int, int, int]) -> None:
    """Speed-up of a cooperation over frames, by the paper's rates."""
    curves = {f"Wan, {name}, 10 of 50 steps": [(f, cost.speed_up(plan(cost.WAN), paper_steps(cost.WAN, cost.Size(*side, f))))
                                               for f in FRAMES] for name, side in PICTURES.items()}  # fmt: skip
    axes = Axes(canvas, box, (0, FRAMES[-1]), (2, 4), "Speed-up over the sketch alone (predicted)", "frames")
    for colour, curve in zip(COLOURS, curves.values()):
        axes.line(curve, colour, 3)
    _legend(canvas, box, [*zip(COLOURS, curves)])


def newest_scaling(files: Sequence[tuple[str, dict[str, Any]]]) -> tuple[str, Any] | None:
    """(the card, its case) of the last file with steps at several sizes."""
    import speed_table

    for _, data in reversed(files):
        for case in reversed(speed_table.cases(data)):
            lines = [line for line in data["lines"] if line["case"] == case and line["kind"] == "scaling"]
            if lines:
                return data["sessions"][lines[-1]["session"]]["card"], speed_table.Case(data, case)
    return None


def steps(canvas: Any, box: tuple[int, int, int, int], card: str, case: Any) -> None:
    """Measured seconds of a step over tokens, and the cost model's line."""
    import speed_table

    lines = [line for line in case.lines if line["kind"] == "scaling"]
    points = {stage: speed_table.scaling_points(lines, stage, network) for stage, network in
              ((SKETCH, case.sketch), (RENDER, case.render))}  # fmt: skip
    top = max(seconds for found in points.values() for _, _, seconds, _ in found)
    across = max(size.tokens for found in points.values() for size, *_ in found)
    axes = Axes(canvas, box, (0, across), (0, top), f"Seconds of a step, {case.shapes} shapes, {card}", "tokens")
    for colour, found in zip(COLOURS, points.values()):
        axes.line([(size.tokens, predicted) for size, _, _, predicted in found], colour, 2)
        for size, _, seconds, _ in found:
            axes.dot(size.tokens, seconds, colour)
    _legend(canvas, box, [*zip(COLOURS, ("sketch: dots measured, line cost model", "render"))])


def _legend(canvas: Any, box: tuple[int, int, int, int], entries: Sequence[tuple[str, str]]) -> None:
    for i, (colour, text) in enumerate(entries):
        canvas.text((box[0] + 12, box[1] + 8 + 18 * i), text, fill=colour, font=font(13))
