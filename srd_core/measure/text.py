"""What was measured, in words and in the two numbers that people set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .fit import KEPT, Pull, fitted_fade, speed_of, step_for
from .run import Measured


@dataclass(frozen=True)
class Advice:
    """Settings that the measurement suggests, and what they cost."""

    fade: float
    switch_step: int
    speed_up: float  # reckoned, of a hand-over there
    measured_at: int  # the measured step (0-based) that stands for the hand-over's last sketch step
    errors: dict[str, float]  # mean relative error of the velocity after it, by how the render is used
    unguided_speed_up: float  # reckoned: the render makes half its calls


def advise(measured: Measured, speed_up: float) -> Advice:
    """For a run that is to be so many times as fast as the sketch alone."""
    steps, sketch, render = measured.steps, measured.sketch_seconds, measured.render_seconds
    after = step_for(speed_up, steps, sketch, render)
    at = min(sorted({row.j for row in measured.guided}), key=lambda step: abs(step - (after - 1)))
    fade = fitted_fade(measured.guided)
    errors = {"cut": _mean(measured.guided, at, 0.0), "fade": _mean(measured.guided, at, fade)}
    if measured.unguided:
        for how, width in (("cut, no guidance", 0.0), ("fade, no guidance", fade)):
            errors[how] = _mean(measured.unguided, at, width)
    speeds = [speed_of(after, steps, sketch, seconds) for seconds in (render, render / 2)]
    return Advice(fade, after, speeds[0], at, errors, speeds[1])


def _mean(pulls: Sequence[Pull], j: int, fade: float) -> float:
    errors = [row.error(fade) for row in pulls if row.j == j]
    return sum(errors) / len(errors)


def describe(measured: Measured, advice: Advice, speed_up: float) -> str:
    """The measurement in a few lines."""
    most, points = measured.sketch_seconds / measured.render_seconds, measured.points
    names = [name for name in KEPT if all(name in point.differences for point in points)]
    means = {name: sum(point.differences[name] for point in points) / len(points) for name in names}
    within = advice.speed_up >= 0.99 * speed_up
    reach = "" if within else f" {speed_up:g}x is out of reach with this pair and number of steps."
    lines = [
        f"Sketch: {measured.sketch}",
        f"Render: {measured.render}",
        f"A step: {measured.sketch_seconds:.3g} s of the sketch, {measured.render_seconds:.3g} s of the render. "
        f"With guidance on the render no run can be more than {most:.3g}x as fast.",
        "Disagreement of the render, mean of the measured steps: "
        + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
        + ".",
        f"switch_step {advice.switch_step} of {measured.steps}: {advice.speed_up:.2f}x (reckoned).{reach}",
        f"fade {advice.fade:g}" + ("." if advice.fade else ": no fade is nearer to the sketch than a cut."),
        f"Error after a switch at step {advice.measured_at + 1}: "
        + ", ".join(f"{n} {e:.2f}" for n, e in advice.errors.items())
        + ".",
    ]
    if "fade, no guidance" in advice.errors:
        off = advice.errors["fade, no guidance"] <= 1.05 * advice.errors["fade"]
        lines.append(
            f"Without guidance on the render (render_cfg 1): {advice.unguided_speed_up:.2f}x (reckoned), "
            + ("no further from the sketch." if off else "further from the sketch: leave guidance on.")
        )
    if measured.without:
        lines.append(f"Measured without {' and '.join(measured.without)}, which skips steps by what came before them.")
    lines.append("One prompt is one sample: measure a few before you settle on numbers.")
    return "\n".join(lines)
