"""D and its fall: how fast the prediction still changes (SRDiffusion, arXiv 2505.19151, Sec. 3.3, Eq. 3-5).

For scheduler step tau with the guided x0 prediction p_tau:

    D_tau = tanh(|p_tau - p_(tau-1)|_1 / |p_(tau-1)|_1)                                     (Eq. 3)
    fall  = D_(tau-1) - D_tau, which lies in (0, delta) once the composition has settled    (Eq. 4, 5)

The paper gives delta for 50 uniform timesteps. D grows with the length of a step, its fall with the square: the fall is
divided by the lengths of the two steps, in 50ths of the timesteps, so that one delta means about one noise level in any
schedule (bench/results/rule.md, which also says how the readings that the paper leaves open were settled). Torch only:
nothing here knows the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

PAPER_STEPS = 50  # of the schedule that delta and fix_step are given for
NEAREST = 0.9  # 50ths of the timesteps: nearer predictions are not compared, so that 100 steps mean what 50 mean


def relative_change(p: torch.Tensor, p_previous: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """D of Eq. 3 for every sample: [B] in [0, 1); 0 where both are zero, 1 where only the previous one is.

    Two predictions of one shape [B, ...], any float dtype, computed in float32; ``mask`` broadcasts to them: 1 where
    the latent is generated, 0 where it is kept and does not count.
    """
    change, size = (p.float() - p_previous.float()).abs(), p_previous.float().abs()
    if mask is not None:
        change, size = change * mask, size * mask
    change, size = change.flatten(1).sum(1), size.flatten(1).sum(1)
    return torch.where(change == 0, change, torch.tanh(change / size))


@dataclass
class Criterion:
    """D and its fall over the steps that were really computed, one value per sample of the batch."""

    d: list[float] | None = None  # D between the last two observed steps
    fall: list[float] | None = None  # of D, in 50ths of the timesteps
    _previous: torch.Tensor | None = field(default=None, repr=False)  # the last observed prediction
    _place: float = 1.0  # where its step began, see route.py
    _seen: bool = False  # there is an observed step to compare with
    _length: float = 0.0  # from the step before it to it, in 50ths; 0: there is none

    def observe(self, prediction: torch.Tensor, place: float, mask: torch.Tensor | None = None) -> bool:
        """Take in the guided x0 prediction [B, ...] of a step that began at ``place`` (1: pure noise, 0: no noise).

        Returns False, and keeps what it has, for a step nearer than NEAREST to the one before. Another size (samplers
        that grow the resolution), and a step that did not come nearer to 0, start the comparison anew.
        """
        if self._is_near(place):
            return False
        previous, self._previous = self._previous, prediction.detach().clone()
        if previous is None or previous.shape != prediction.shape:
            return self.note(None, place)
        return self.note(relative_change(prediction, previous, mask).tolist(), place)

    def note(self, d: list[float] | None, place: float) -> bool:
        """The same from D, one value per sample; None: there is nothing to compare with."""
        if self._is_near(place):
            return False
        length = PAPER_STEPS * (self._place - place)
        before, length_before = self.d, self._length
        known = d is not None and length > 0
        self._seen = True
        self.d, self._length, self._place, self.fall = (d if known else None), (length if known else 0.0), place, None
        if before is not None and self.d is not None:
            self.fall = [(b - now) / (length_before * length) for b, now in zip(before, self.d)]
        return True

    def _is_near(self, place: float) -> bool:
        return self._seen and 0 < PAPER_STEPS * (self._place - place) < NEAREST

    def settled(self, delta: float) -> bool:
        """Eq. 4 and 5 after the last observed step; a batch has settled when every sample has. Non-finite: False."""
        return self.fall is not None and all(0 < fall < delta for fall in self.fall)

    def forget(self) -> None:
        """Another leg begins: a change is only taken between steps of one leg."""
        self._previous, self._seen, self.d, self.fall = None, False, None, None
