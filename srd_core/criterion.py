"""When the sketch has settled: the adaptive switching rule of SRDiffusion (arXiv 2505.19151, Sec. 3.3, Eq. 3-6).

For scheduler step tau (1-based) with guided prediction p_tau:

    D_tau      = tanh(|p_tau - p_(tau-1)|_1 / |p_(tau-1)|_1)                              (Eq. 3)
    derivative = D_(tau-1) - D_tau
    hand over after step tau when 0 < derivative < delta and tau > FIX_STEP               (Eq. 4-6)

The paper's timestep index falls while tau rises, and it leaves open which tensor p is and what delta means in a run that
has not 50 steps. Settled on the tiny family (bench/results/quality.md, euler: 128 recorded runs of 50 steps, 32 of 20 and
of 8):

- p is the guided x0 prediction ("denoised") and D must fall: mean sketch steps 19.3 / 11.1 / 6.8 for delta 0.002 / 0.01 /
  0.03 (paper on Wan, from its seconds: 16 / 10 / 7.6). The model's raw prediction gives 12.9 / 7.3 / 6.1; of noise and
  latent the step does not follow delta.
- delta is scaled by (50 / steps)^2: the render then takes over at sigma 0.87 / 0.82 / 0.66 in 50 / 20 / 8 steps, without
  at 0.87 / 0.62 / never. In 20 and 8 steps it nearly always does so at the first step that fix_step allows, so delta
  between 0.01 and 0.03 changes nothing there. Per sigma comes out the same and needs the schedule. fix_step stays a number
  of steps: it is the paper's, and a tenth of the steps would be none at 8.
- One step on which the rule holds is enough: of two in a row, at equal mean steps, no difference was seen in score or PSNR
  (32 runs, so one of less than 0.05 or 1 dB could not be).
- max_step needs no default at 50 steps: delta 0.01 fired in every run, by step 16 in 99 % of them.

No difference to a fixed step of the same mean was seen either; the paper found none on Wan (Table 4). There the mean hides
two groups: D ripples on this family (it rises around steps 10 and 12 in nearly all runs), so delta 0.01 fires before or
after that ripple, at 6 to 8 or at 12 to 16, and those that fire early lose most of what the mean loses. Torch only: nothing
here knows the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

SKETCH = "sketch"
RENDER = "render"

MODES = ("adaptive", "step", "sigma")

# Delta is the paper's for 50 steps. A shorter run hands over at the latest after this share of its steps, so that it
# renders at all (30 of 50 is the bound that public ports of the method use).
PAPER_STEPS = 50
SHORT_RUN_LIMIT = 0.6


@dataclass(frozen=True)
class Switch:
    """When to hand over from sketch to render. Steps are scheduler steps of the run, counted from 1."""

    mode: str = "adaptive"  # adaptive: the paper's rule; step: after switch_step; sigma: below switch_sigma
    delta: float = 0.01  # adaptive: the derivative of D must lie in (0, delta); as for a run of 50 steps, see delta_for
    fix_step: int = 5  # adaptive: the sketch always runs more than this many steps
    max_step: int = 0  # adaptive: hand over after this step at the latest; 0: no limit (short runs: 60 % of them)
    switch_step: int = 10  # step: the number of sketch steps; 0: the render runs all
    switch_sigma: float = 0.875  # sigma: the render runs the steps that start below this noise level

    def __post_init__(self) -> None:
        """Raises ValueError for settings that no run could follow."""
        if self.mode not in MODES:
            raise ValueError(f"switch_mode is {self.mode!r}; choose one of {', '.join(MODES)}.")
        if self.mode == "adaptive" and not (math.isfinite(self.delta) and self.delta > 0):
            raise ValueError(f"delta is {self.delta}; it must be above 0 (the paper uses 0.002 to 0.03, default 0.01).")
        if self.mode == "sigma" and math.isnan(self.switch_sigma):
            raise ValueError("switch_sigma is not a number; Wan 2.2 uses 0.875 for text-to-video.")
        for name in ("fix_step", "max_step", "switch_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")

    def delta_for(self, steps: int) -> float:
        """Delta in a run of ``steps``: D grows with the length of a step, its fall with the square of it, so that one
        setting means about the same noise level at any step count (bench/results/quality.md, "Fewer steps")."""
        return self.delta * (PAPER_STEPS / max(steps, 1)) ** 2

    def fix_step_for(self, steps: int) -> int:
        """FIX_STEP in a run of ``steps``: as set, but never so large that the rule could only fire in the second half."""
        return min(self.fix_step, max(steps // 2 - 1, 0))

    def limit_for(self, steps: int) -> int:
        """The last step after which an adaptive run of ``steps`` hands over whatever the rule says."""
        if self.max_step:
            return self.max_step
        return steps if steps >= PAPER_STEPS else max(math.ceil(SHORT_RUN_LIMIT * steps), 1)


def relative_change(p: torch.Tensor, p_previous: torch.Tensor) -> torch.Tensor:
    """D of Eq. 3 for every sample of a batch: tanh(|p - p_previous|_1 / |p_previous|_1).

    Args: two predictions of one shape [B, ...], any float dtype; computed in float32.
    Returns: [B] in [0, 1); 0 where both are zero, 1 where only the previous one is.
    """
    p, p_previous = p.float().flatten(1), p_previous.float().flatten(1)
    change = (p - p_previous).abs().sum(1)
    return torch.where(change == 0, change, torch.tanh(change / p_previous.abs().sum(1)))


@dataclass
class SwitchRule:
    """One run's decision, fed with the prediction of every sketch step and asked for the stage of every step."""

    switch: Switch
    steps: int  # scheduler steps of the run
    d: list[float] | None = None  # D of the last observed step, one value per sample
    derivative: list[float] | None = None  # D of the step before minus D of the last step
    _previous: torch.Tensor | None = field(default=None, repr=False)

    def observe(self, prediction: torch.Tensor) -> None:
        """Take in the guided prediction [B, ...] of the step that just ran.

        A change of size (samplers that grow the resolution) starts the comparison anew.
        """
        previous, self._previous = self._previous, prediction.detach().clone()
        if previous is None or previous.shape != prediction.shape:
            self.d = self.derivative = None
            return
        d_previous, self.d = self.d, relative_change(prediction, previous).tolist()
        self.derivative = None if d_previous is None else [a - b for a, b in zip(d_previous, self.d)]

    def settled(self) -> bool:
        """Eq. 4 and 5 after the last observed step; a batch has settled when every sample has. Non-finite: False."""
        delta = self.switch.delta_for(self.steps)
        return self.derivative is not None and all(0 < x < delta for x in self.derivative)

    def stage(self, step: int, sigma: float) -> tuple[str, str]:
        """(stage, reason) for the step after ``step`` completed ones, which starts at noise level ``sigma``."""
        switch = self.switch
        if switch.mode == "step":
            return (RENDER, "step") if step >= switch.switch_step else (SKETCH, "")
        if switch.mode == "sigma":
            return (RENDER, "sigma") if sigma < switch.switch_sigma else (SKETCH, "")
        if step >= switch.limit_for(self.steps):
            return RENDER, "max_step"
        if step > switch.fix_step_for(self.steps) and self.settled():
            return RENDER, "criterion"
        return SKETCH, ""

    def final(self, stage: str) -> bool:
        """Whether ``stage`` keeps the rest of the run once it is in charge: these routes hand over to the render once."""
        return stage == RENDER

    def forget(self) -> None:
        """Drop the kept prediction: a change is only taken between consecutive steps of the sketch."""
        self._previous = None
