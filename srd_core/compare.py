"""Two videos beside each other, and what separates them: pictures, a plot per frame, a few lines of text.

Videos are float tensors [frames, height, width, 3] with values in 0..1, the host's IMAGE. Torch and Pillow only.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw

from . import likeness
from .drawing import FAINT, INK, PAPER, axis, curve, fitting, font

LAYOUTS = ("side by side", "wipe", "moving wipe", "difference")
TONES = {"PSNR, dB": "#2f6bd8", "SSIM": "#2e9e5b", "LPIPS": "#e08423"}
WIDTH, PANEL, HEAD, LEFT, RIGHT = 1120, 150, 56, 84, 28
AMPLIFIED = 4  # times: a difference is shown so much stronger
TOP = 60.0  # dB: a plot's place for frames without any difference
LABEL_HEIGHTS = (14, 40)  # pixels of a label's text, least and most


@dataclass
class Comparison:
    """What was measured on two videos, frame by frame."""

    labels: tuple[str, str]
    psnr: list[float]  # dB; infinite for equal frames
    whole_psnr: float  # over all pixels of all frames
    ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    flicker: tuple[float, float] = (0.0, 0.0)
    notes: list[str] = field(default_factory=list)  # what could not be measured, and why


def compare(a: torch.Tensor, b: torch.Tensor, labels: tuple[str, str], net: str) -> Comparison:
    """Measure b against a. net: LPIPS network, or "off". Raises ValueError for clips of different size or length."""
    likeness.check_comparable(a, b, labels)
    a, b = a[..., :3], b[..., :3]
    errors = likeness.squared_error(a, b)
    found = Comparison(labels, [likeness.decibel(float(e)) for e in errors], likeness.decibel(float(errors.mean())))
    found.flicker = (likeness.flicker(a), likeness.flicker(b))
    if min(a.shape[1:3]) < likeness.SMALLEST:
        found.notes.append(f"SSIM: not measured; it needs frames of {likeness.SMALLEST} pixels or more.")
    else:
        found.ssim = likeness.ssim(a, b).tolist()
    if net != "off":
        try:
            found.lpips = likeness.lpips(a, b, net).tolist()
        except likeness.Unavailable as why:
            found.notes.append(f"LPIPS: not measured. {why}")
    return found


def summarize(found: Comparison) -> str:
    """The comparison in a few lines for people."""
    a, b = found.labels
    lines = [f"{b} compared with {a}, {len(found.psnr)} frames"]
    if math.isinf(found.whole_psnr):
        return "\n".join([*lines, "They are identical.", *found.notes])
    best = "identical" if math.isinf(max(found.psnr)) else f"{max(found.psnr):.2f}"
    lines.append(f"PSNR: {found.whole_psnr:.2f} dB (frames {min(found.psnr):.2f} to {best})")
    for name, values in (("SSIM", found.ssim), ("LPIPS", found.lpips)):
        if values:
            mean = sum(values) / len(values)
            lines.append(f"{name}: {mean:.4f} (frames {min(values):.4f} to {max(values):.4f})")
    if len(found.psnr) > 1:
        lines.append(
            f"Change from frame to frame: {100 * found.flicker[0]:.2f} % in {a}, {100 * found.flicker[1]:.2f} % in {b}"
        )
    return "\n".join(lines + found.notes)


# --- pictures ---


def picture(a: torch.Tensor, b: torch.Tensor, labels: tuple[str, str], layout: str, position: float) -> torch.Tensor:
    """Both videos in one [frames, h, w', 3], float32 on the CPU; each with its label, if that is not empty.

    Of clips that ``compare`` takes. layout: one of LAYOUTS; position: where a wipe's edge is, 0..1 from the left.
    """
    a, b = (video[..., :3].detach().float().cpu().clamp(0, 1) for video in (a, b))
    if layout == "side by side":
        return torch.cat([labelled(a, labels[0], "left"), labelled(b, labels[1], "left")], 2)
    if layout == "difference":
        return ((b - a).abs() * AMPLIFIED).clamp(0, 1)
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    a, b = labelled(a, labels[0], "left"), labelled(b, labels[1], "right")
    edges = wipe_edges(len(a), a.shape[2], layout, position)
    return torch.stack([_wiped(x, y, edge) for x, y, edge in zip(a, b, edges)])


def wipe_edges(frames: int, width: int, layout: str, position: float) -> list[int]:
    """The column at which each frame goes over from a to b: at ``position``, or moving there and back over the clip."""
    if layout == "wipe":
        return [round(position * width)] * frames
    return [round(width * (1 - abs(2 * (i + 0.5) / frames - 1))) for i in range(frames)]


def _wiped(a: torch.Tensor, b: torch.Tensor, edge: int) -> torch.Tensor:
    """One frame: a left of the edge, b right of it, a white line between."""
    frame = torch.cat([a[:, :edge], b[:, edge:]], 1)
    if 0 < edge < a.shape[1]:
        frame[:, max(edge - 1, 0) : edge + 1] = 1.0
    return frame


def labelled(video: torch.Tensor, label: str, side: str) -> torch.Tensor:
    """The video [frames, h, w, 3] with a label of one line in an upper corner; a tiny one gets none."""
    height, width = video.shape[1:3]
    size = min(max(height // 20, LABEL_HEIGHTS[0]), LABEL_HEIGHTS[1])
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    lengths, room = range(1, len(label) + 1), float(width - size)
    label = label[: bisect_right(lengths, room, key=lambda n: pen.textlength(label[:n], font=font(size)))]
    if not label or height < 2 * size:
        return video
    long, high = math.ceil(pen.textlength(label, font=font(size))) + size, round(1.6 * size)
    plate = Image.new("RGB", (long, high), "#000000")
    ImageDraw.Draw(plate).text((size // 2, high // 2), label, fill="#ffffff", font=font(size), anchor="lm")
    pixels = torch.from_numpy(np.asarray(plate, dtype=np.float32) / 255)
    left = 0 if side == "left" else width - long
    video = video.clone()
    area = video[:, :high, left : left + long]
    video[:, :high, left : left + long] = torch.maximum(area * 0.35, pixels)
    return video


def plot(found: Comparison) -> Image.Image:
    """PSNR, SSIM and LPIPS over the frames, an RGB picture as high as there are measures."""
    measures = {name: values for name, values in zip(TONES, (found.psnr, found.ssim, found.lpips)) if values}
    image = Image.new("RGB", (WIDTH, HEAD + (PANEL + 70) * len(measures) + 20), PAPER)
    canvas = ImageDraw.Draw(image)
    title = f"{found.labels[1]} compared with {found.labels[0]}"
    canvas.text((LEFT, 38), title, fill=INK, font=font(fitting(canvas, title, WIDTH - LEFT - RIGHT)), anchor="ls")
    for i, (name, values) in enumerate(measures.items()):
        _panel(canvas, HEAD + 30 + (PANEL + 70) * i, name, values)
    return image


def _panel(canvas: ImageDraw.ImageDraw, top: int, name: str, values: Sequence[float]) -> None:
    """One measure: a dot a frame, joined; frames without a difference lie on the upper edge of PSNR's panel."""
    known = [TOP if math.isinf(value) else value for value in values]
    low, high = min(known), max(known)
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 0.1
    low, high = low - margin, high + margin
    bottom, step = top + PANEL, (WIDTH - LEFT - RIGHT) / max(len(known), 1)
    points = [(LEFT + (i + 0.5) * step, bottom - (value - low) / (high - low) * PANEL) for i, value in enumerate(known)]
    canvas.rectangle((LEFT, top, WIDTH - RIGHT, bottom), fill="#f6f7f9")
    curve(canvas, points, TONES[name])
    better = "lower is nearer" if name == "LPIPS" else "higher is nearer"
    axis(canvas, LEFT, (top, bottom), f"{name} per frame ({better})", f"{low:.3g}", f"{high:.3g}")
    every = max(1, round(len(known) / 10))
    for i in range(0, len(known), every):
        canvas.text((points[i][0], bottom + 6), str(i + 1), fill=FAINT, font=font(14), anchor="ma")
    canvas.text((WIDTH - RIGHT, bottom + 24), "frame", fill=FAINT, font=font(14), anchor="ra")
