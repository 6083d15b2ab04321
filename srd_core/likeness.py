"""How near two videos are, frame by frame. Torch only; LPIPS where its library and its network's weights are there.

Videos are float tensors [frames, height, width, 3] with values in 0..1, the host's IMAGE.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 2004, Sec. III-C
SIGMA, RADIUS, K1, K2 = 1.5, 5, 0.01, 0.03  # a Gaussian window of 11 x 11
SMALLEST = 2 * RADIUS + 1  # pixels of a side, for one whole window

LPIPS_NETS = ("alex", "vgg", "squeeze")
LPIPS_SMALLEST = 64  # pixels of a side: below it, the deepest layers have nothing left to compare
_TORCHVISION = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


class Unavailable(RuntimeError):
    """A measure that this machine can't take; the text says what is missing and how to get it."""


def check_comparable(a: torch.Tensor, b: torch.Tensor, names: tuple[str, str]) -> None:
    """Raises ValueError, in a sentence, for two videos that can't be compared pixel by pixel."""
    for video, name in zip((a, b), names):
        if video.ndim != 4 or video.shape[-1] < 3 or not video.numel():
            raise ValueError(
                f"{name} is not a video: its shape is {list(video.shape)}, expected [frames, height, width, 3]."
            )
        broken = next((i for i, frame in enumerate(video, 1) if not frame.isfinite().all()), 0)
        if broken:
            raise ValueError(
                f"Frame {broken} of {name} has values that are not finite, which a decode in half precision can give. "
                "Start ComfyUI with --fp32-vae and decode again, or cut the frame out (ImageFromBatch)."
            )
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{names[0]} has {a.shape[0]} frames and {names[1]} has {b.shape[0]}. Compare clips of one length: give "
            "both samplers the same latent, or cut the longer one (ImageFromBatch)."
        )
    if a.shape[1:3] != b.shape[1:3]:
        sizes = [f"{video.shape[2]} x {video.shape[1]}" for video in (a, b)]
        raise ValueError(
            f"{names[0]} is {sizes[0]} pixels and {names[1]} is {sizes[1]}. Compare clips of one size: give both "
            "samplers the same latent, or scale one (ImageScale)."
        )


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of every frame, float64 [frames]."""
    return torch.stack([(x.double() - y.double()).square().mean() for x, y in zip(a, b)])


def decibel(error: float) -> float:
    """The peak signal-to-noise ratio of a mean squared error; infinite for none."""
    return 10 * math.log10(1 / error) if error else math.inf


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames; infinite for equal videos."""
    return decibel(float(squared_error(a, b).mean()))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of every frame in -1..1, float64 [frames]: the mean over pixels with a whole window.

    Raises ValueError for frames smaller than the window.
    """
    if min(a.shape[1:3]) < SMALLEST:
        raise ValueError(f"SSIM needs frames of at least {SMALLEST} x {SMALLEST} pixels.")
    return torch.stack([_ssim(x.double().movedim(-1, 0), y.double().movedim(-1, 0)) for x, y in zip(a, b)])


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of two frames [3, height, width]."""
    mx, my, xx, yy, xy = _window(torch.stack([x, y, x * x, y * y, x * y]))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = K1**2, K2**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def _window(planes: torch.Tensor) -> torch.Tensor:
    """Gaussian means [N, 3, h - 10, w - 10] of planes [N, 3, h, w]."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64, device=planes.device)
    weights = torch.exp(-0.5 * (offsets / SIGMA).square())
    weights = weights / weights.sum()
    means = rearrange(planes, "n c h w -> (n c) 1 h w")
    for window in ("k -> 1 1 k 1", "k -> 1 1 1 k"):
        means = torch.nn.functional.conv2d(means, rearrange(weights, window))
    return rearrange(means, "(n c) 1 h w -> n c h w", n=len(planes))


def flicker(video: torch.Tensor) -> float:
    """Mean change of a value from frame to frame, 0..1; motion counts, so compare two videos of one prompt."""
    if len(video) < 2:
        return 0.0
    return float(torch.stack([(y - x).abs().double().mean() for x, y in pairwise(video)]).mean())


def lpips(a: torch.Tensor, b: torch.Tensor, net: str = "alex") -> torch.Tensor:
    """Learned perceptual distance of every frame, float64 [frames]; 0: alike. Raises Unavailable."""
    if min(a.shape[1:3]) < LPIPS_SMALLEST:
        raise Unavailable(f"LPIPS needs frames of at least {LPIPS_SMALLEST} x {LPIPS_SMALLEST} pixels.")
    measure = _lpips_network(net, str(lpips_weights(net)))
    pairs = zip(a[..., :3], b[..., :3])
    planes = ([video.float().clamp(0, 1).movedim(-1, 0)[None] for video in pair] for pair in pairs)
    return torch.stack([measure(x, y).double().reshape(()) for x, y in planes])


def lpips_weights(net: str = "alex") -> Path:
    """The file with the network's weights where torch keeps its downloads.

    Raises Unavailable when it, or the library, is not there: nothing is ever downloaded behind the user's back.
    """
    try:
        import torchmetrics.image.lpip  # noqa: F401
        import torchvision
    except ImportError as error:
        raise Unavailable(f"LPIPS needs the package torchmetrics: pip install torchmetrics ({error}).") from error
    weights = getattr(torchvision.models, _TORCHVISION[net]).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not file.is_file():
        # Reports are shared: the user's folder is not part of them.
        folder = str(file.parent).replace(str(Path.home()), "~", 1)
        name = weights.__class__.__name__.removesuffix("_Weights")
        raise Unavailable(
            f"LPIPS needs the weights of {name} ({file.name}), which are not in {folder}. To get them once: python -c "
            f"\"from torchvision.models import get_model; get_model('{name.lower()}', weights='DEFAULT')\""
        )
    return file


@lru_cache(maxsize=2)
def _lpips_network(net: str, file: str) -> Any:
    """The measure on frames [1, 3, h, w] in 0..1; ``file`` only tells one set of weights from another."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with torch.inference_mode(False):
        measure: Any = LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)  # type: ignore[arg-type]
    return lambda x, y: measure.net(x, y, normalize=True)
