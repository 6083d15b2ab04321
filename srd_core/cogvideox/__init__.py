"""CogVideoX as its authors run it: loading of their files, and what the host's own path gets wrong for text-to-video.

The host builds the model; ``correct`` puts four things right on a MODEL, all as patches of that MODEL (its classes and
other MODELs stay as they are): the positions of 2B, the rotary grid of 5B, the noise schedule with its SNR shift, the
latent's scale. Formulas: diffusers' CogVideoXTransformer3DModel, CogVideoXPipeline and CogVideoXDDIMScheduler 0.42.1,
and the official repositories' config.json; tests/test_cogvideox.py compares with them.

Imports go one way: layout <- files, positions, sampling <- model.
"""

from .files import identify, is_cogvideox
from .model import correct, layout_of, load

__all__ = ["correct", "identify", "is_cogvideox", "layout_of", "load"]
