"""The family's latent: linear in the video, 16 channels per 4x8x8 block, in the layout of Wan 2.1.

The covariance of flat shapes on a plain ground is a Kronecker product, colours (x) masks, so its principal components
are products of a colour axis and a mask pattern. Frame 0 counts as its own still block, as in Wan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from data import FRAMES, SIZE, Placed, draw, place, random_scene, training_colours
from text import BACKGROUNDS, COLOURS, Scene, said

CHANNELS = 16
GRID = (1 + (FRAMES - 1) // 4, SIZE // 8, SIZE // 8)
SPECTRUM = 0.75  # channel std ~ (pixel std)^SPECTRUM: 1 keeps the pixels' spectrum, 0 whitens it


def blocks(mask: torch.Tensor) -> torch.Tensor:
    """[FRAMES, H, W] -> [256, T, H / 8, W / 8]: the 4x8x8 blocks, frame 0 held for four frames."""
    t, h, w = GRID[0], mask.shape[1] // 8, mask.shape[2] // 8
    clip = torch.cat([mask[:1].expand(3, -1, -1), mask])
    return clip.view(t, 4, h, 8, w, 8).permute(1, 3, 5, 0, 2, 4).reshape(256, t, h, w)


@dataclass
class Latent:
    """z[c] = gain[c] (colour[c] . (pattern[index[c]] . block) - mean[c]), of RGB blocks in 0..1.

    pattern [P, 256], index [16], colour [16, 3], mean [16], gain [16]; z is what the DiTs see, about unit variance.
    """

    pattern: torch.Tensor
    index: torch.Tensor
    colour: torch.Tensor
    mean: torch.Tensor
    gain: torch.Tensor

    def project(self, mask: torch.Tensor) -> torch.Tensor:
        """Mask [FRAMES, H, W] -> its pattern coefficients [P, T, H / 8, W / 8]."""
        return torch.einsum("pk,kthw->pthw", self.pattern, blocks(mask))

    def colourise(self, coefficients: torch.Tensor, paint: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
        """Coefficients [B, K, P, *GRID] of K masks, paint [B, K, 3], ground [B, 3] -> z [B, 16, *GRID]."""
        shade = torch.einsum("bkr,cr->bkc", paint - ground[:, None], self.colour)
        z = torch.einsum("bkc,bkcthw->bcthw", shade, coefficients[:, :, self.index])
        still = self.pattern.sum(1)[self.index] * (ground @ self.colour.T) - self.mean
        return (z + still[..., None, None, None]) * self.gain.view(-1, 1, 1, 1)


def to_vae(z: torch.Tensor) -> torch.Tensor:
    """[B, 16, T, H, W] as the DiTs see it -> as VAEEncode returns it: z std + mean, of the host's Wan 2.1."""
    from comfy.latent_formats import Wan21

    return Wan21().process_out(z)


def from_vae(z: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_vae`."""
    from comfy.latent_formats import Wan21

    return Wan21().process_in(z)


def fit(samples: int = 400, seed: int = 1) -> Latent:
    """Choose the 16 products of a mask pattern and a colour axis that hold most of the training videos' energy."""
    moment = torch.zeros(256, 256, dtype=torch.float64)
    for _, placed in islice(geometries(seed), samples):
        for p in placed:
            b = blocks(draw(p)).reshape(256, -1).double()
            moment += b @ b.T / (samples * b.shape[1])
    flat = torch.full((256,), 1 / 16, dtype=torch.float64)
    rest = torch.eye(256, dtype=torch.float64) - torch.outer(flat, flat)
    energy, axes = torch.linalg.eigh(rest @ moment @ rest)
    pattern = torch.cat([flat[None], axes.flip(1).T[:CHANNELS]])
    energy = torch.cat([(flat @ moment @ flat)[None], energy.flip(0)[:CHANNELS]])

    contrast = torch.tensor(
        [[c - g for c, g in zip(paint, ground)] for paint in COLOURS.values() for ground in BACKGROUNDS.values()],
        dtype=torch.float64,
    )
    strength, colour = torch.linalg.eigh(contrast.T @ contrast / len(contrast))
    order = (energy[:, None] * strength[None]).flatten().argsort(descending=True)[:CHANNELS]
    index, axis = order // 3, order % 3
    used = int(index.max()) + 1
    latent = Latent(pattern[:used].float(), index, colour.T[axis].float(), torch.zeros(CHANNELS), torch.ones(CHANNELS))
    return _standardise(latent, samples, seed)


def _standardise(latent: Latent, samples: int, seed: int) -> Latent:
    """Set mean and gain: mean variance 1 over the channels, their spectrum flattened by SPECTRUM."""
    rng = random.Random(seed)
    drawn = []
    for scene, placed in islice(geometries(seed), samples):
        coefficients = torch.stack([latent.project(draw(p)) for p in placed])
        paint, ground = palette_of(training_colours(scene, rng))
        drawn.append(latent.colourise(coefficients[None], paint[None], ground[None])[0].flatten(1))
    z = torch.stack(drawn, 1).flatten(1)
    latent.mean, std = z.mean(1), z.std(1)
    flattened = std**SPECTRUM
    latent.gain = flattened / std / flattened.square().mean().sqrt()
    return latent


def palette_of(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours of a coloured scene: paint [K, 3] and ground [3], in 0..1."""
    paint = [COLOURS[said(g.colour)] for g in scene.groups]
    return torch.tensor(paint), torch.tensor(BACKGROUNDS[said(scene.background)])


def geometries(seed: int) -> Iterator[tuple[Scene, list[Placed]]]:
    """Endless scenes (their colours are to be replaced) with sizes and paths."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        yield scene, place(scene, rng)
