"""One latent in two spaces that differ by a scale: from the sketch's coordinates to the render's and back, exactly.

Everything outside a render call (sampler state, masks, previews) stays in the sketch's space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

FLOW = "flow"
VARIANCE_EXPLODING = "variance exploding"


@dataclass(frozen=True)
class LatentMap:
    """``ratio`` r: the render's latent scale over the sketch's. ``kind``: what x is at noise level sigma, for the clean
    latent z of scale s and noise eps: variance exploding x = s z + sigma eps; flow x = (1 - sigma) s z + sigma eps."""

    ratio: float
    kind: str = VARIANCE_EXPLODING

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf or self.kind not in (FLOW, VARIANCE_EXPLODING):
            raise ValueError(f"No map between latents with ratio {self.ratio} and noise schedule {self.kind}.")

    @property
    def is_identity(self) -> bool:
        return self.ratio == 1

    def factor(self, sigma: torch.Tensor) -> torch.Tensor:
        """What x and sigma are multiplied with at noise level ``sigma`` (any shape) of the sketch.

        Flow: x' = c x must be (1 - sigma') r s z + sigma' eps with sigma' = c sigma, which c = r / (1 - sigma + r sigma)
        solves. At sigma = 1 (noise alone) c is 1.
        """
        if self.kind == VARIANCE_EXPLODING:
            return torch.full_like(sigma, self.ratio)
        return self.ratio / (1 - sigma + self.ratio * sigma)

    def to_render(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, sigma) of the sketch as the render has to be called with. x [B, C, ...], sigma [B] or []."""
        if self.is_identity:  # bit for bit
            return x, sigma
        factor = self.factor(sigma)
        shape = factor.shape[:1] + (1,) * (x.ndim - 1) if factor.ndim else ()
        return factor.to(x.dtype).reshape(shape) * x, self.sigmas(sigma)

    def sigmas(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Noise levels of the sketch (any shape, also a whole schedule or the bounds of a range) as the render's."""
        if self.is_identity:
            return sigmas
        return self.factor(sigmas) * sigmas

    def clean_to_render(self, x0: torch.Tensor) -> torch.Tensor:
        """A clean latent or x0 prediction of the sketch's space in the render's."""
        return x0 if self.is_identity else x0 * self.ratio

    def clean_to_sketch(self, x0: torch.Tensor) -> torch.Tensor:
        """An x0 prediction of the render in the sketch's space."""
        return x0 if self.is_identity else x0 / self.ratio
