"""What the velocities of two models on one trajectory say of a hand-over. Torch only.

All errors are relative to the sketch's guided velocity at the same step, so that 0.3 at one step means what it means at
another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..fade import weight

WIDTHS = torch.logspace(-1, 1, 81, dtype=torch.float64)  # candidates for the fade's width, 0.1 to 10
KEPT = ("guided", "cond", "uncond")  # of a prediction


@dataclass(frozen=True)
class Pull:
    """One step i after one step j.

    With e = v_render,i - v_sketch,i and d = v_sketch,j - v_render,i, holding the share a of v_j has the squared error
    |e|^2 + 2 a e.d + a^2 |d|^2, over |v_sketch,i|^2.
    """

    j: int  # 0-based steps
    i: int
    away: float  # lambda_i - lambda_j
    ee: float
    ed: float
    dd: float

    def error(self, fade: float) -> float:
        """Relative error of the velocity with a fade of this width; 0: none."""
        a = float(weight(torch.tensor(self.away), torch.tensor(0.0), fade)) if fade else 0.0
        return max(self.ee + 2 * a * self.ed + a * a * self.dd, 0.0) ** 0.5


def pull(j: int, i: int, away: float, v_j: torch.Tensor, sketch: torch.Tensor, render: torch.Tensor) -> Pull:
    """From the velocities [B, ...] of the sketch at steps j and i and of the render at step i."""
    e, d, size = (render - sketch).flatten(), (v_j - render).flatten(), float(sketch.square().sum())
    return Pull(j, i, away, float(e @ e) / size, float(e @ d) / size, float(d @ d) / size)


def fitted_fade(pulls: Sequence[Pull]) -> float:
    """The width whose mean squared error is least; 0 where no fade is better than none by 1 %."""
    if not pulls:
        return 0.0
    columns = torch.tensor([[row.away, row.ee, row.ed, row.dd] for row in pulls], dtype=torch.float64)
    away, ee, ed, dd = columns.unbind(1)
    a = weight(away[None], torch.zeros(1, dtype=torch.float64), WIDTHS[:, None])
    errors = (ee + 2 * a * ed + a.square() * dd).mean(1)
    best = int(errors.argmin())
    return round(float(WIDTHS[best]), 2) if errors[best] < 0.98 * ee.mean() else 0.0


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


def step_for(speed_up: float, steps: int, sketch: float, render: float) -> int:
    """After which step, 1 to ``steps``, a hand-over gives this speed-up; ``sketch``, ``render``: seconds per step."""
    if sketch <= render:
        return steps
    return max(1, min(steps, int(steps * (sketch / speed_up - render) / (sketch - render))))


def speed_of(after: int, steps: int, sketch: float, render: float) -> float:
    """The other way round."""
    return steps * sketch / (after * sketch + (steps - after) * render)


def chosen(steps: int, points: int) -> list[int]:
    """The steps (0-based) that are measured: so many of the run's, evenly spread, from the second to the last."""
    count = min(points, steps - 1)
    return sorted({round(1 + i * (steps - 2) / max(count - 1, 1)) for i in range(count)})
