"""A hand-over that is not a cut: the last guided velocity fades into the next stage's predictions.

In the host's coordinates v = (x - D) / sigma is the velocity of a flow model and the noise of any other, D the guided
x0 prediction. After the last step j of the stage that leaves, every call at x and sigma gives the sampler

    D' = x - sigma v',   v' = a v_j + (1 - a) v,   a = g / (1 + ((lambda - lambda_j) / fade)^2)
    g = 1 / (1 + (r / R)^8),   r = ||v_j - v_(j-1)|| / ||v_j||   per sample

lambda = ln(alpha / sigma): how far the signal stands above the noise. Weight and width were fitted on a tiny family
(1.1). The guard g keeps out samples whose velocity still turns over from step to step. Torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Part = Callable[[torch.Tensor], torch.Tensor]  # takes a field [B, ...] to a part of it

R = 0.7  # relative change of the velocity at which the guard halves the fade


def velocity(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """The velocity [B, ...] of a call at x [B, ...] and sigma [B]."""
    return (x - denoised) / _beside(sigma, x)


def log_snr(sigma: torch.Tensor, flow: bool) -> torch.Tensor:
    """The lambda of noise levels of any shape: x = (1 - sigma) x0 + sigma eps for ``flow``, else x = x0 + sigma eps."""
    return ((1 - sigma.clamp(max=1)).log() if flow else 0) - sigma.log()


def weight(lambdas: torch.Tensor, lambda_j: torch.Tensor, fade: float | torch.Tensor) -> torch.Tensor:
    """The share a without the guard, in 0..1. At pure noise (lambda_j is -inf) nothing is held."""
    return torch.nan_to_num(1 / (1 + ((lambdas - lambda_j) / fade) ** 2))


def guard(v: torch.Tensor, v_before: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The guard g [B] in 0..1, from the last two velocities; ``mask``: 1 where the latent is generated."""
    change = v - v_before
    if mask is not None:
        v, change = v * mask, change * mask
    r = change.flatten(1).norm(dim=1) / v.flatten(1).norm(dim=1)
    return torch.nan_to_num(1 / (1 + (r / R) ** 8))  # a velocity of 0 that stays 0 has nothing to hold


def _beside(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [B] in a shape that broadcasts over x [B, ...]."""
    return values.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True)
class Held:
    """What fades out after a hand-over."""

    v: torch.Tensor  # v_j [B, ...]
    lambda_j: torch.Tensor  # [B]
    guard: torch.Tensor  # g [B]
    width: float
    part: Part | None = None  # of the field that the velocity tells of; None: all

    def weight(self, lambdas: torch.Tensor) -> torch.Tensor:
        """The share a at the lambda of each sample [B], or of many levels [L, 1] for all samples [L, B]."""
        return self.guard * weight(lambdas, self.lambda_j, self.width)


@dataclass
class Fade:
    """The last two velocities of a run, and the one that is held after a hand-over."""

    flow: bool  # the kind of the run's noise schedule, see ``log_snr``
    _v: torch.Tensor | None = None  # of the newest step
    _before: torch.Tensor | None = None  # of the step before it
    _sigma: torch.Tensor | None = None  # [B], of the newest step
    _held: Held | None = None  # None: nothing fades

    def note(self, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> None:
        """Take in the first call of a step: x [B, ...], sigma [B] and what the sampler got."""
        self._before, self._v, self._sigma = self._v, velocity(x, sigma, denoised), sigma

    def begin(self, width: float, mask: torch.Tensor | None = None, part: Part | None = None) -> list[float]:
        """At a hand-over: hold the last velocity; ``width`` 0: nothing is held any more.

        Returns g of each sample, empty without a fade: it needs two steps of one size before it. ``part``: what alone
        fades of the field (of a latent that was smaller, its frequencies); the rest is the next stage's at once.
        """
        self._held, v, before, sigma = None, self._v, self._before, self._sigma
        if not width or v is None or before is None or sigma is None or before.shape != v.shape:
            return []
        if part:
            v, before = part(v), part(before)
        self._held = Held(v, log_snr(sigma, self.flow), guard(v, before, mask), width, part)
        return [float(g) for g in self._held.guard]

    def shares(self, sigmas: Sequence[float]) -> list[float]:
        """The share a at each of these noise levels, mean of the batch; empty where nothing fades."""
        if self._held is None:
            return []
        levels = torch.tensor(sigmas, dtype=self._held.lambda_j.dtype, device=self._held.lambda_j.device)
        shares: list[float] = self._held.weight(log_snr(levels, self.flow)[:, None]).mean(1).tolist()
        return shares

    def blend(self, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """What the sampler gets for ``denoised`` [B, ...] at x and sigma [B]; the same tensor where nothing fades."""
        held = self._held
        if held is None or held.v.shape != x.shape:
            return denoised
        a = held.weight(log_snr(sigma, self.flow))
        faded = x - _beside(sigma, x) * held.v
        if held.part:
            faded = denoised + held.part(faded - denoised)
        return torch.lerp(denoised, faded, _beside(a, x))

    def forget(self) -> None:
        """Free all tensors."""
        self._v = self._before = self._sigma = self._held = None
