"""Draws web/icon.png, the pack's picture in the registry: a ball, sketched on the left, rendered on the right.

python demo/icon.py        (needs Pillow; in a host's interpreter: python demo/host.py python)
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE, FINE = 400, 4  # pixels of the file (the registry takes 400 at most); drawn that many times larger, then shrunk
PAPER, LINE, LIGHT, DARK, MARK = "#1e2127", "#6ea0ff", (255, 201, 138), (168, 78, 12), "#f4f5f7"
CENTRE, RADIUS = 0.5, 0.31  # of the side
STROKES = 7


def main() -> None:
    """Write the icon."""
    size = SIDE * FINE
    icon = Image.new("RGB", (size, size), PAPER)
    half = Image.new("L", (size, size), 0)
    ImageDraw.Draw(half).rectangle((size // 2, 0, size, size), fill=255)
    icon = Image.composite(icon, _sketch(icon.copy()), half)
    ball = Image.new("L", (size, size), 0)
    ImageDraw.Draw(ball).ellipse(_box(CENTRE, CENTRE, RADIUS), fill=255)
    icon.paste(_rendered(size), mask=ImageChops.multiply(ball, half))
    pen = ImageDraw.Draw(icon)
    pen.line((size // 2, size * 0.1, size // 2, size * 0.9), fill=MARK, width=size // 60)
    icon = icon.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    corners = Image.new("L", (size, size), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, size - 1, size - 1), size * 0.18, fill=255)
    icon.putalpha(corners.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    icon.save(Path(__file__).resolve().parent.parent / "web" / "icon.png", optimize=True)


def _box(x: float, y: float, radius: float) -> tuple[float, ...]:
    """A circle as the corners of its box, in pixels; all three are parts of the side."""
    return tuple(part * SIDE * FINE for part in (x - radius, y - radius, x + radius, y + radius))


def _sketch(icon: Image.Image) -> Image.Image:
    """Loose strokes around the ball and a few that hatch it."""
    pen, chance = ImageDraw.Draw(icon), random.Random(4)
    for _ in range(STROKES):
        x, y = (CENTRE + chance.uniform(-0.012, 0.012) for _ in "xy")
        start = chance.uniform(70, 120)
        box = _box(x, y, RADIUS * chance.uniform(0.97, 1.04))
        pen.arc(box, start, start + chance.uniform(140, 220), fill=LINE, width=SIDE * FINE // 130)
    for step in range(1, 6):
        angle = math.radians(100 + 15 * step)
        x, y = CENTRE + RADIUS * math.cos(angle), CENTRE + RADIUS * math.sin(angle)
        line = (x, y, x + 0.05 + 0.02 * step, y - 0.09 - 0.03 * step)
        pen.line([part * SIDE * FINE for part in line], fill=LINE, width=SIDE * FINE // 150)
    return icon


def _rendered(size: int) -> Image.Image:
    """A smooth shade, lightest up right of the middle."""
    light = Image.new("L", (size, size), 0)
    ImageDraw.Draw(light).ellipse(_box(CENTRE + 0.09, CENTRE - 0.11, 0.2), fill=255)
    light = light.filter(ImageFilter.GaussianBlur(size * 0.1))
    return Image.composite(Image.new("RGB", (size, size), LIGHT), Image.new("RGB", (size, size), DARK), light)


if __name__ == "__main__":
    main()
