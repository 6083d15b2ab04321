"""A noisy latent of another size: from a small one to a large one, in the frequency domain.

r is the ratio of the sizes (of two axes with two ratios: their geometric mean) and DCT the orthonormal transform over
height and width. A small x at noise level sigma becomes a large one at sigma':

    x' = kappa iDCT(pad(DCT(x)) with noise of level sigma' in the new frequencies)
    flow, x = (1 - sigma) x0 + sigma eps:   kappa = r / (1 + (r - 1) sigma),   sigma' = r sigma / (1 + (r - 1) sigma)
    else, x = x0 + sigma eps:               kappa = r,                         sigma' = r sigma

so a clean field keeps its values and white noise stays white. Torch and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import scipy.fft
import torch

Size = tuple[int, int]  # height, width


def small_size(large: Size, share: float, patch: int) -> Size:
    """The size in whole patches that is nearest to ``share`` of height and width, and nearest in its aspect."""

    def near(length: int) -> list[int]:
        patches = max(math.floor(length * share / patch + 1e-9), 1)
        return [min(patches * patch, length), min((patches + 1) * patch, length)]

    def cost(size: Size) -> float:
        height, width = (math.log(small / (share * full)) for small, full in zip(size, large))
        return abs(height) + abs(width) + abs(height - width)

    return min(product(near(large[0]), near(large[1])), key=cost)


@lru_cache(maxsize=16)  # a fade asks for it in every call, and a copy to a GPU would wait for it
def _frequencies(small: int, large: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[small, large]: from a row of ``large`` values to the ``small`` ones of its lowest frequencies. .mT: back."""
    of_small, of_large = (scipy.fft.dct(np.eye(n), norm="ortho", axis=0) for n in (small, large))
    with torch.inference_mode(False):  # it outlives the host's block
        return torch.from_numpy(of_small.T @ of_large[:small]).to(dtype).to(device)


@dataclass(frozen=True)
class Enlargement:
    """From one size to another. Tensors are [..., height, width], levels of any shape."""

    large: Size
    small: Size
    flow: bool  # the kind of the noise schedule, see above

    @property
    def r(self) -> float:
        """The ratio of the sizes, at least 1."""
        return math.sqrt(math.prod(self.large) / math.prod(self.small))

    # --- noise levels ---

    def factor(self, sigma: torch.Tensor) -> torch.Tensor:
        """Kappa at ``sigma`` of the small x. Pure noise of a flow, 1 and above, stays what it is."""
        if not self.flow:
            return torch.full_like(sigma, self.r)
        return self.r / (1 + (self.r - 1) * sigma.clamp(max=1))

    def level(self, sigma: torch.Tensor) -> torch.Tensor:
        """Sigma' of the large x."""
        return sigma * self.factor(sigma)

    def small_level(self, sigma: torch.Tensor) -> torch.Tensor:
        """Sigma of the small x that becomes a large one at this level."""
        if not self.flow:
            return sigma / self.r
        return sigma / (self.r - (self.r - 1) * sigma.clamp(max=1))

    def small_levels(self, sigmas: Sequence[float]) -> list[float]:
        """The same of a schedule."""
        levels: list[float] = self.small_level(torch.tensor(sigmas, dtype=torch.float64)).tolist()
        return levels

    # --- tensors ---

    def low(self, x: torch.Tensor) -> torch.Tensor:
        """The small field of the lowest frequencies of a large one: of white noise, white noise."""
        height, width = self._matrices(x)
        return height @ x @ width.mT

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """The large field with the frequencies of a small one, and nothing in the others."""
        height, width = self._matrices(x)
        return height.mT @ x @ width

    def known(self, x: torch.Tensor) -> torch.Tensor:
        """What a large field has in the frequencies of the small one."""
        return self.back(self.low(x))

    def high(self, x: torch.Tensor) -> torch.Tensor:
        """What a large field has in the other frequencies."""
        return x - self.known(x)

    def shrink(self, x0: torch.Tensor) -> torch.Tensor:
        """A clean large field as a small one."""
        return self.low(x0) / self.r

    def grow(self, x0: torch.Tensor) -> torch.Tensor:
        """A clean small field as a large one."""
        return self.back(x0) * self.r

    def enlarge(self, x: torch.Tensor, sigma: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
        """A small x at ``sigma`` [] or [B] at ``level(sigma)``; ``fill``: a large x there, for the new frequencies."""
        factor = self.factor(sigma).to(x.dtype)
        return factor.reshape(-1, *(1,) * (x.ndim - 1)) * self.back(x) + self.high(fill)

    def _matrices(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = (_frequencies(*lengths, x.dtype, x.device) for lengths in zip(self.small, self.large))
        return height, width
