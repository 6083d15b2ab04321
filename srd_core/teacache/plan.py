"""TeaCache (arXiv 2411.19108): which steps may reuse the residual of the last computed step.

A DiT modulates its blocks with an embedding m of the timestep. With d_i = |m_i - m_(i-1)|_1 / |m_(i-1)|_1 and a
polynomial fitted for each model, step i is reused while

    sum of poly(d) since the last computed step  <  threshold

For Wan and CogVideoX m depends on the timestep alone, so the plan of a whole run follows from its noise levels before
the first step. Torch only: nothing here knows the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

FORMS = ("e", "e0")
RET_STEPS = 5  # the e0 form computes this many steps at the start of a run ("ret steps")
MIN_STEPS = 5  # shorter stages compute all steps
# in a row; outside the range that it was fitted on a polynomial may fall to zero and would skip for ever
MAX_REUSES = 5


@dataclass(frozen=True)
class Table:
    """Published coefficients for one model, highest power first.

    From ali-vilab/TeaCache: TeaCache4Wan2.1, eval/teacache/experiments/cogvideox.py, TeaCache4CogVideoX1.5.
    """

    name: str
    dim: int  # width of the model that they were fitted on
    e: tuple[float, ...]  # for the time embedding
    e0: tuple[float, ...] = ()  # for its projection (ret-steps form); empty: the family has the other form only

    def coefficients(self, form: str) -> tuple[float, ...]:
        """Those of a form, one of FORMS; those of e where the family has no other."""
        return self.e0 if self.form(form) == "e0" else self.e

    def form(self, wanted: str) -> str:
        """``wanted``, one of FORMS; e where the family has no other."""
        return wanted if self.e0 else "e"


@dataclass(frozen=True)
class TeaCache:
    """Settings of a cached MODEL."""

    threshold: float  # of the accumulated change; larger reuses more steps, 0 none
    form: str = "e"  # e: time embedding; e0: its projection, the first five steps of a run computed
    residual_on_cpu: bool = False  # keep what the blocks added in main memory instead of on the GPU

    def __post_init__(self) -> None:
        """Raises ValueError for settings that mean nothing."""
        if not self.threshold >= 0:
            raise ValueError(f"teacache is {self.threshold}; the threshold must be 0 (off) or more.")
        if self.form not in FORMS:
            raise ValueError(f"TeaCache's form is {self.form!r}; choose one of {', '.join(FORMS)}.")


@dataclass
class Plan:
    """What was decided before the first cached step; plain data, for the report."""

    threshold: float
    form: str  # as used: e where the family has no other
    table: str = ""  # whose coefficients; empty: nothing is reused, see note
    first_step: int = 0  # 0-based index in the run of the first planned step
    reuse: list[bool] = field(default_factory=list)  # for every step from the first to the run's last
    note: str = ""  # what the artist should know
    # what every step of the run adds to the sum; report/figures.py plans with it
    growth: list[float] = field(default_factory=list)

    def reuses(self, step: int) -> bool:
        """Whether a step of the run (0-based) is to be reused."""
        i = step - self.first_step
        return 0 <= i < len(self.reuse) and self.reuse[i]


WAN_T2V = (
    Table(
        "Wan 2.1 t2v 1.3B",
        1536,
        (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
        (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    ),
    Table(
        "Wan 2.1 t2v 14B",
        5120,
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
    ),
)
WAN_I2V_480P = Table(
    "Wan 2.1 i2v 480p",
    5120,
    (-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01),
    (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
)
WAN_I2V_720P = Table(
    "Wan 2.1 i2v 720p",
    5120,
    (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
    (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
)
COGVIDEOX = (
    Table("CogVideoX 2B", 1920, (-3.10658903e01, 2.54732368e01, -5.92380459e00, 1.75769064e00, -3.61568434e-03)),
    Table("CogVideoX 5B", 3072, (-1.53880483e03, 8.43202495e02, -1.34363087e02, 7.97131516e00, -5.23162339e-02)),
)
COGVIDEOX_1_5 = Table(
    "CogVideoX 1.5 5B", 3072, (2.50210439e02, -1.65061612e02, 3.57804877e01, -7.81551492e-01, 3.58559703e-02)
)
# Latent pixels (height x width) between 480p (60 x 104) and 720p (90 x 160), their geometric mean.
I2V_BOUNDARY = math.sqrt(60 * 104 * 90 * 160)


def wan_table(dim: int, image_to_video: bool, latent_pixels: int) -> tuple[Table, str]:
    """The table nearest to a Wan of width ``dim``, and a sentence when the model is not the one it was fitted on.

    The image-to-video tables are of 14B models; the two differ by the resolution, ``latent_pixels`` = height x width.
    """
    nearest = min(WAN_T2V, key=lambda table: abs(math.log(table.dim / dim)))
    if image_to_video and nearest.dim == WAN_I2V_480P.dim:
        nearest = WAN_I2V_480P if latent_pixels < I2V_BOUNDARY else WAN_I2V_720P
    if nearest.dim != dim:
        return nearest, f"TeaCache has no coefficients for a Wan {dim} wide; it takes those of {nearest.name}."
    if image_to_video and nearest in WAN_T2V:
        return nearest, f"TeaCache has no coefficients for this image-to-video Wan; it takes those of {nearest.name}."
    return nearest, ""


def cogvideox_table(dim: int, frame_patch: int) -> tuple[Table, str]:
    """The table nearest to a CogVideoX (1.5: two frames in a patch), and a sentence when it was fitted on another."""
    nearest = min(COGVIDEOX, key=lambda table: abs(math.log(table.dim / dim)))
    nearest = COGVIDEOX_1_5 if frame_patch > 1 else nearest
    if nearest.dim != dim:
        return nearest, f"TeaCache has no coefficients for a CogVideoX {dim} wide; it takes those of {nearest.name}."
    return nearest, ""


def distances(m: torch.Tensor) -> list[float]:
    """Relative L1 change of consecutive embeddings: m [n, ...] -> n - 1 values, computed in float64."""
    m = m.double().flatten(1)
    change = (m[1:] - m[:-1]).abs().mean(1)
    return (change / m[:-1].abs().mean(1)).tolist()


def polynomial(coefficients: Sequence[float], d: float) -> float:
    """Value at ``d``, coefficients from the highest power (Horner)."""
    value = 0.0
    for c in coefficients:
        value = value * d + c
    return value


def growth(d: Sequence[float], coefficients: Sequence[float]) -> list[float]:
    """What every step adds to the sum: the polynomial at ``d``, negative values as zero."""
    return [max(polynomial(coefficients, change), 0.0) for change in d]


def reuse_plan(growth: Sequence[float], threshold: float, computed_first: int = 1) -> list[bool]:
    """Which of len(growth) + 1 consecutive steps reuse the last computed residual (True).

    Args: ``growth``: what every step but the first adds to the sum; ``threshold`` of the sum, 0: nothing is reused;
    ``computed_first`` steps at the start and the last step are computed in any case, at most MAX_REUSES steps in a row
    are reused. Fewer than MIN_STEPS steps are all computed.
    """
    steps = len(growth) + 1
    if steps < MIN_STEPS:
        return [False] * steps
    plan, accumulated, in_a_row = [False], 0.0, 0
    for step, added in enumerate(growth, start=1):
        accumulated += added
        forced = step < computed_first or step == steps - 1 or in_a_row == MAX_REUSES
        reuse = not forced and accumulated < threshold
        plan.append(reuse)
        in_a_row = in_a_row + 1 if reuse else 0
        if not reuse:
            accumulated = 0.0
    return plan


def fill(plan: Plan, table: Table, m: torch.Tensor) -> None:
    """Decide the steps from ``plan.first_step`` on by ``m`` [steps, ...], the run's embeddings; or set a note only."""
    steps = len(m) - plan.first_step
    d, coefficients = distances(m), table.coefficients(plan.form)
    if not all(map(math.isfinite, d)):
        plan.note = "TeaCache: the time embedding has values that are not finite; nothing is reused."
        return
    plan.growth = [0.0, *growth(d, coefficients)]
    if steps < MIN_STEPS:
        plan.note = f"TeaCache: a stage of {steps} steps is too short to reuse any."
        return
    computed_first = max(RET_STEPS - plan.first_step, 1) if plan.form == "e0" else 1
    plan.reuse = reuse_plan(plan.growth[plan.first_step + 1 :], plan.threshold, computed_first)
    plan.table = table.name


def describe(plan: Plan, reused: set[int]) -> str:
    """One line for the log."""
    line = (
        f"TeaCache reused {len(reused)} of {len(plan.reuse)} steps (threshold {plan.threshold:g}, coefficients of "
        f"{plan.table}, form {plan.form})."
    )
    return f"{line} {plan.note}".rstrip()
