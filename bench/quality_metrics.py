"""How near two videos are, by torchmetrics and ColorVideoVDP, and what a video shows, by the tiny family's oracle."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path
from typing import Any

import hosting  # it puts demo/ on sys.path
import torch

# isort: split
import cache

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
FPS = 6  # of the family's videos, see demo/video.py
DISPLAY = "standard_fhd"  # of ColorVideoVDP: a 24-inch monitor seen from 0.6 m

likeness = hosting.module("srd_core.likeness")


def extras() -> str:
    """The folder with what only the bench needs, made in the host's cache first if need be.

    The packages' own requirements are left out or in the list: pip would bring a second torch with them.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache.cache_folder() / "tools" / f"bench-{wanted}"
    arguments = ["--no-deps", "-r", str(REQUIREMENTS)]
    return str(cache.packages(folder, Path(sys.executable), arguments, "what the bench needs", cache.say))


sys.path.append(extras())


@functools.cache
def no_lpips() -> str:
    """Why LPIPS can't be measured here, and what to do; "" where it can. Nothing is downloaded."""
    try:
        likeness.lpips_weights()
    except likeness.Unavailable as error:
        return str(error)
    return ""


@functools.cache
def _cvvdp() -> Any:
    import pycvvdp

    return pycvvdp.cvvdp(display_name=DISPLAY, device=torch.device("cpu"), quiet=True)


def compared(video: torch.Tensor, reference: torch.Tensor) -> dict[str, float | None]:
    """Likeness of two videos [frames, height, width, 3] in 0..1. PSNR in dB is None where they are equal.

    cvvdp: in JOD, 10 for no visible difference. lpips: 0 for none, and None where its weights are missing.
    """
    import torchmetrics.functional.image as library

    pair = video.movedim(-1, 1), reference.movedim(-1, 1)
    exact = [x.double() for x in pair]
    psnr = float(library.peak_signal_noise_ratio(*exact, data_range=1.0))
    _, windows = library.structural_similarity_index_measure(*exact, data_range=1.0, return_full_image=True)
    whole = slice(likeness.RADIUS, -likeness.RADIUS)  # windows over the border would count mirrored pixels
    quality, _ = _cvvdp().predict(video, reference, dim_order="FHWC", frames_per_second=FPS)
    lpips = None
    if not no_lpips():
        lpips = library.learned_perceptual_image_patch_similarity(*(x.float() for x in pair), "alex", normalize=True)
    found = {
        "psnr": psnr if psnr < float("inf") else None,
        "ssim": windows[..., whole, whole].mean(),
        "cvvdp": quality,
        "lpips": lpips,
    }
    return {name: None if value is None else round(float(value), 6) for name, value in found.items()}


def flicker(video: torch.Tensor) -> float:
    """Mean absolute change of a value from one frame to the next, 0..1."""
    return float(likeness.flicker(video.double()))
