"""How near two videos are, pixel by pixel. Videos are uint8 arrays [frames, height, width, 3]."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Video = NDArray[np.uint8]

# Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", IEEE TIP 2004, Sec. III-C
SIGMA, RADIUS, K1, K2 = 1.5, 5, 0.01, 0.03  # a Gaussian window of 11 x 11


def psnr(video: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all frames; infinite for equal videos."""
    error = float(np.square(_unit(video) - _unit(reference)).mean())
    return 10 * math.log10(1 / error) if error else math.inf


def ssim(video: Video, reference: Video) -> float:
    """Structural similarity in -1..1, the mean over pixels with a whole window, channels and frames."""
    return float(np.mean([_ssim(a, b) for a, b in zip(_unit(video), _unit(reference), strict=True)]))


def _unit(video: Video) -> NDArray[np.float64]:
    return video.astype(np.float64) / 255


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Of two frames [height, width, 3] in 0..1."""
    mx, my = _window(x), _window(y)
    vx, vy, cov = _window(x * x) - mx * mx, _window(y * y) - my * my, _window(x * y) - mx * my
    c1, c2 = K1**2, K2**2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(index[RADIUS:-RADIUS, RADIUS:-RADIUS].mean())


def _window(frame: NDArray[np.float64]) -> Any:
    return gaussian_filter(frame, sigma=(SIGMA, SIGMA, 0), radius=(RADIUS, RADIUS, 0))
