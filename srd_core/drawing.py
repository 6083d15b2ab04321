"""What the pictures share: colours, a font, and the parts of a plot."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import ImageDraw, ImageFont

INK, FAINT, PAPER = "#22252b", "#8a919c", "#ffffff"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, of so many pixels."""
    return ImageFont.load_default(size)


def fitting(canvas: ImageDraw.ImageDraw, title: str, width: float) -> int:
    """The size of font, 10 to 22 pixels, in which a title is at most this wide."""
    return next((size for size in range(22, 10, -1) if canvas.textlength(title, font=font(size)) <= width), 10)


def axis(canvas: ImageDraw.ImageDraw, left: int, panel: tuple[int, int], title: str, low: str, high: str) -> None:
    """A panel's title, and the values at its bottom and top; ``panel``: its top and bottom."""
    top, bottom = panel
    canvas.text((left, top - 22), title, fill=INK, font=font(15))
    canvas.text((left - 8, top), high, fill=FAINT, font=font(14), anchor="ra")
    canvas.text((left - 8, bottom), low, fill=FAINT, font=font(14), anchor="rs")


def curve(
    canvas: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], tone: str, width: int = 2, radius: int = 3
) -> None:
    """Dots, joined."""
    if len(points) > 1:
        canvas.line(points, fill=tone, width=width)
    for x, y in points:
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)
