"""A hand-over that is not a cut: the last guided prediction fades into the next stage's.

In the host's coordinates v = (x - D) / sigma is the velocity of a flow model and the noise of any other, D the guided
x0 prediction. After the last step j of the stage that leaves, every call at x and sigma gives the sampler

    D' = a H + (1 - a) D,   a = g n / (1 + ((lambda - lambda_j) / fade)^2),   lambda = ln(alpha / sigma)

H is what v_j leads to: D_j at first, and from a call at s to the next at sigma H += (1 - sigma / s) (D' - H). In euler
steps that is x - sigma v_j, so v' = a v_j + (1 - a) v; x itself is left out, since a sampler may have drawn new noise.
Two gates keep samples out, both 1 / (1 + (r / R)^8): g those whose prediction still changes much from step to step, and
n those with much new noise, r = ||(x - H) / sigma - v_j|| / ||v_j||; samplers that do not follow the guided prediction
(cfg_pp) close n too. The width (1.1) and both R were chosen on a tiny family. Torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Part = Callable[[torch.Tensor], torch.Tensor]  # takes a field [B, ...] to a part of it

CHANGES = 0.7  # R of g: the last change of x0, relative to x - x0
RENEWED = 1.0  # R of n: what new noise has changed of the velocity, relative to it


def velocity(x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
    """The velocity [B, ...] of a call at x [B, ...] and sigma [B]."""
    return (x - denoised) / _beside(sigma, x)


def log_snr(sigma: torch.Tensor, flow: bool) -> torch.Tensor:
    """The lambda of noise levels of any shape: x = (1 - sigma) x0 + sigma eps for ``flow``, else x = x0 + sigma eps."""
    return ((1 - sigma.clamp(max=1)).log() if flow else 0) - sigma.log()


def weight(lambdas: torch.Tensor, lambda_j: torch.Tensor, fade: float | torch.Tensor) -> torch.Tensor:
    """The share a without the gates, in 0..1. At pure noise (lambda_j is -inf) nothing is held."""
    return torch.nan_to_num(1 / (1 + ((lambdas - lambda_j) / fade) ** 2))


def gate(change: torch.Tensor, of: torch.Tensor, limit: float) -> torch.Tensor:
    """[B] in 0..1, a half where ``change`` [B, ...] is ``limit`` times as large as ``of``; 0 where both are 0."""
    r = change.flatten(1).norm(dim=1) / of.flatten(1).norm(dim=1)
    return torch.nan_to_num(1 / (1 + (r / limit) ** 8))


def _beside(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values [B] in a shape that broadcasts over x [B, ...]."""
    return values.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


@dataclass
class Held:
    """What fades out after a hand-over."""

    x0: torch.Tensor  # H [B, ...]
    v: torch.Tensor  # v_j [B, ...], what the gates look at of it
    lambda_j: torch.Tensor  # [B]
    guard: torch.Tensor  # g [B]
    width: float
    given: torch.Tensor  # D' [B, ...] of the newest call
    sigma: torch.Tensor  # [B], of the newest call
    mask: torch.Tensor | None  # 1 where the latent is generated; None: everywhere
    part: Part | None  # of the field that alone fades; None: all

    def weight(self, lambdas: torch.Tensor) -> torch.Tensor:
        """The share a without n, at the lambda of each sample [B], or of many levels [L, 1] for all samples [L, B]."""
        return self.guard * weight(lambdas, self.lambda_j, self.width)

    def move(self, sigma: torch.Tensor) -> None:
        """Bring H to the noise level sigma [B] of the next call; where that is higher, H stays."""
        removed = torch.nan_to_num(1 - sigma / self.sigma).clamp(min=0)  # nan: a second call at 0
        self.x0 = torch.lerp(self.x0, self.given, _beside(removed, self.x0))
        self.sigma = sigma

    def kept(self, x: torch.Tensor) -> torch.Tensor:
        """The gate n [B] at x [B, ...]."""
        v = _seen(velocity(x, self.sigma, self.x0), self.mask, self.part)
        return gate(v - self.v, self.v, RENEWED)


def _seen(field: torch.Tensor, mask: torch.Tensor | None, part: Part | None) -> torch.Tensor:
    """What the gates look at of a field [B, ...]."""
    field = part(field) if part else field
    return field if mask is None else field * mask


@dataclass
class Fade:
    """The last two predictions of a run, and the one that is held after a hand-over."""

    flow: bool  # the kind of the run's noise schedule, see ``log_snr``
    _x0: torch.Tensor | None = None  # what the sampler got in the newest step
    _before: torch.Tensor | None = None  # in the step before it
    _v: torch.Tensor | None = None  # the velocity of the newest step
    _sigma: torch.Tensor | None = None  # [B], of the newest step
    _held: Held | None = None  # None: nothing fades

    def note(self, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> None:
        """Take in the first call of a step: x [B, ...], sigma [B] and what the sampler got."""
        self._before, self._x0, self._sigma = self._x0, denoised, sigma
        self._v = velocity(x, sigma, denoised)

    def begin(self, width: float, mask: torch.Tensor | None = None, part: Part | None = None) -> list[float]:
        """At a hand-over: hold the last prediction; ``width`` 0: nothing is held any more.

        Returns g of each sample, empty without a fade: it needs two steps of one size before it. ``part``: what alone
        fades of the field (of a latent that was smaller, its frequencies); the rest is the next stage's at once.
        """
        self._held, x0, before, v, sigma = None, self._x0, self._before, self._v, self._sigma
        if not width or x0 is None or before is None or v is None or sigma is None or before.shape != x0.shape:
            return []
        v = _seen(v, mask, part)
        guard = gate(_seen(x0 - before, mask, part), v * _beside(sigma, v), CHANGES)
        self._held = Held(x0, v, log_snr(sigma, self.flow), guard, width, x0, sigma, mask, part)
        return [float(g) for g in guard]

    def shares(self, sigmas: Sequence[float]) -> list[float]:
        """The share a at each of these noise levels, mean of the batch, if no noise is new; empty without a fade."""
        if self._held is None:
            return []
        levels = torch.tensor(sigmas, dtype=self._held.lambda_j.dtype, device=self._held.lambda_j.device)
        shares: list[float] = self._held.weight(log_snr(levels, self.flow)[:, None]).mean(1).tolist()
        return shares

    def blend(self, x: torch.Tensor, sigma: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """What the sampler gets for ``denoised`` [B, ...] at x and sigma [B]; the same tensor where nothing fades."""
        held = self._held
        if held is None or held.x0.shape != x.shape:
            return denoised
        held.move(sigma)
        a = held.weight(log_snr(sigma, self.flow)) * held.kept(x)
        faded = held.x0 if held.part is None else denoised + held.part(held.x0 - denoised)
        held.given = torch.lerp(denoised, faded, _beside(a, x))
        return held.given

    def forget(self) -> None:
        """Free all tensors."""
        self._x0 = self._before = self._v = self._sigma = self._held = None
