"""Train the family's VAE: its encoder and decoder onto the linear latent."""

from __future__ import annotations

import random
import time
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from train_dit import DEVICE, average, keep

import latent as lat
import vae
from data import compose, draw, training_colours


def batch(latent: lat.Latent, size: int, rng: random.Random) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Crops of stills, then of blocks: z [B, 16, 6, 6] in DiT space and frames [B, T, 3, 48, 48] in 0..1."""
    crops: tuple[list, list] = ([], [])
    for uncoloured, placed in islice(lat.geometries(rng.getrandbits(40)), size):
        scene = training_colours(uncoloured, rng)
        masks = [draw(p) for p in placed]
        video = compose(masks, scene).permute(0, 3, 1, 2)
        paint, ground = lat.palette_of(scene)
        z = latent.colourise(torch.stack([latent.project(m) for m in masks])[None], paint[None], ground[None])[0]
        x, y = rng.choice(rng.choice(placed).centres)
        i, j = (min(max(int(c / 8) - rng.randrange(6), 0), lat.GRID[1] - 6) for c in (y, x))
        here = (..., slice(8 * i, 8 * i + 48), slice(8 * j, 8 * j + 48))
        b = rng.choice((1, 2))
        crops[0].append((z[:, 0, i : i + 6, j : j + 6], video[:1][here]))
        crops[1].append((z[:, b, i : i + 6, j : j + 6], video[4 * b - 3 : 4 * b + 1][here]))
    pairs = [[torch.stack(part).to(DEVICE) for part in zip(*kind)] for kind in crops]
    return [(z, frames) for z, frames in pairs]


def loss(model: nn.Module, z: torch.Tensor, frames: torch.Tensor, blur: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Encoder: squared error to the linear latent. Decoder: pixels from a latent with noise of strength blur [B]."""
    still = frames.shape[1] == 1
    encoded = lat.from_vae(vae.encode(model, frames * 2 - 1, still)[:, :, None])[:, :, 0]
    noisy = lat.to_vae((z + blur.view(-1, 1, 1, 1) * torch.randn_like(z))[:, :, None])[:, :, 0]
    difference = (vae.decode(model, noisy, still) + 1) / 2 - frames
    return (encoded - z).square().mean(), difference.abs().mean() + difference.square().mean()


def train(steps: int, latent: lat.Latent, folder: Path, seed: int = 13, peak: float = 4e-3) -> None:
    """Regress the Wan-layout encoder and decoder onto the linear latent. Resumes from its checkpoint."""
    path = folder / "vae.pt"
    model = vae.build(vae.WIDTH, seed).to(DEVICE)
    error = vae.check(model)
    if error > 1e-3:
        raise RuntimeError(f"the folded VAE differs from the host's by {error:.2g}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=0.0)
    ema = {n: p.detach().clone() for n, p in model.named_parameters()}
    step, smooth, kept = 0, [0.0, 0.0], time.time()
    if path.exists():
        saved = torch.load(path, map_location=DEVICE, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimiser"])
        ema, step, smooth = saved["ema"], saved["step"], saved["loss"]
    while step < steps:
        rng = random.Random(seed * 1_000_003 + step)
        torch.manual_seed(rng.getrandbits(40))
        losses = torch.zeros(2)
        for z, frames in batch(latent, 8, rng):
            blur = 0.2 * torch.rand(len(z), device=DEVICE)
            weight = frames.shape[1] / 5
            pair = torch.stack(loss(model, z, frames, blur)) * weight
            pair.sum().backward()
            losses += pair.detach().cpu()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        for group in opt.param_groups:
            group["lr"] = peak * min((step + 1) / 100, (steps - step) / (0.6 * steps), 1)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        average(ema, model, min(0.99, step / (10 + step)))
        smooth = [0.98 * a + 0.02 * b if step > 1 else b for a, b in zip(smooth, losses.tolist())]
        if step % 50 == 0 or step == steps:
            encoder, decoder = smooth
            print(f"vae {step}/{steps} encoder {encoder:.5f} decoder {decoder:.5f}", time.strftime("%T"), flush=True)
        if time.time() - kept > 60 or step == steps:
            state = {"model": model.state_dict(), "ema": ema, "step": step, "loss": smooth}
            keep(state | {"optimiser": opt.state_dict()}, path)
            kept = time.time()
