"""How near two videos are, pixel by pixel. Videos are uint8 arrays [frames, height, width, 3].

The measures are the pack's own (srd_core/likeness.py), those that its Compare node shows.
"""

import numpy as np
import torch
from host import REPOSITORY, load_by_path
from numpy.typing import NDArray

Video = NDArray[np.uint8]
likeness = load_by_path("srd_likeness", REPOSITORY / "srd_core" / "likeness.py")


def psnr(video: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames; infinite for equal videos."""
    return float(likeness.psnr(unit(video), unit(reference)))


def ssim(video: Video, reference: Video) -> float:
    """Structural similarity in -1..1, the mean over pixels with a whole window, channels and frames."""
    return float(likeness.ssim(unit(video), unit(reference)).mean())


def unit(video: Video) -> torch.Tensor:
    """The same video with float64 values in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(video)).double() / 255
