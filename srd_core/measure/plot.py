"""The measurement as a picture: the render's distance from the sketch at each step, and after the switch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from PIL import Image, ImageDraw

from ..drawing import FAINT, INK, PAPER, axis, curve, font
from ..report.plot import MARK, TONES
from .fit import Pull
from .run import Measured
from .text import Advice

WIDTH, HEIGHT = 1120, 650
LEFT, RIGHT = 84, WIDTH - 28
PANELS = ((116, 320), (390, 590))  # top and bottom
Curve = tuple[str, list[tuple[int, float]]]  # (name, points of (step, value))


def draw(measured: Measured, advice: Advice) -> Image.Image:
    """An RGB picture of WIDTH x HEIGHT pixels."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    canvas = ImageDraw.Draw(image)
    canvas.text((LEFT, 24), f"{measured.sketch}  ->  {measured.render}"[:110], fill=INK, font=font(18))
    switch = f"switch_step {advice.switch_step} of {measured.steps}"
    settings = f"fade {advice.fade:g}, {switch}: {advice.speed_up:.2f}x (reckoned)"
    canvas.text((LEFT, 50), settings, fill=INK, font=font(15))
    panel = partial(_panel, canvas, measured.steps, advice.switch_step)
    points = measured.points
    far = [(name, [(point.step + 1, point.differences[name]) for point in points]) for name in points[0].differences]
    panel(PANELS[0], "disagreement of the render with the sketch", far)
    after = [("cut", _errors(measured.guided, advice, 0.0)), ("fade", _errors(measured.guided, advice, advice.fade))]
    if measured.unguided:
        after.append(("fade, no guidance", _errors(measured.unguided, advice, advice.fade)))
    panel(PANELS[1], f"error after a switch at step {advice.measured_at + 1}", after)
    canvas.text((RIGHT, HEIGHT - 20), "scheduler step", fill=FAINT, font=font(14), anchor="rs")
    return image


def _errors(pulls: Sequence[Pull], advice: Advice, fade: float) -> list[tuple[int, float]]:
    return [(row.i + 1, row.error(fade)) for row in pulls if row.j == advice.measured_at]


def _panel(
    canvas: ImageDraw.ImageDraw, steps: int, mark: int, panel: tuple[int, int], title: str, curves: Sequence[Curve]
) -> None:
    top, bottom = panel
    high = max([value for _, points in curves for _, value in points] + [1e-6])

    def x(step: float) -> float:
        return LEFT + (step - 1) * (RIGHT - LEFT) / max(steps - 1, 1)

    axis(canvas, LEFT, panel, title, "0", f"{high:.2g}")
    canvas.line((LEFT, bottom, RIGHT, bottom), fill=FAINT)
    at = x(mark + 0.5)
    canvas.line((at, top, at, bottom), fill=MARK, width=2)
    for step in sorted({step for _, points in curves for step, _ in points}):
        canvas.text((x(step), bottom + 6), str(step), fill=FAINT, font=font(13), anchor="ma")
    place = RIGHT
    for (name, points), tone in zip(reversed(curves), reversed(TONES[: len(curves)])):
        place -= int(canvas.textlength(name, font=font(14))) + 34
        canvas.rectangle((place, top - 18, place + 12, top - 8), fill=tone)
        canvas.text((place + 18, top - 22), name, fill=INK, font=font(14))
        curve(canvas, [(x(step), bottom - value / high * (bottom - top)) for step, value in points], tone, 3, 4)
