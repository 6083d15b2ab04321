"""The host's calls that this pack wraps: under which key, and by which signatures an argument is found by its name."""

import inspect
from collections.abc import Callable
from typing import Any

import comfy.model_base
import comfy.samplers
import torch

KEY = "srdiffusion"  # of a pair's wrappers
MASK_FUNCTION = "denoise_mask_function"  # of a MODEL's options: changes the mask in every call (Differential Diffusion)
OUTER_SAMPLE = inspect.signature(comfy.samplers.CFGGuider.outer_sample)
PREDICT_NOISE = inspect.signature(comfy.samplers.CFGGuider.outer_predict_noise)
SAMPLER_SAMPLE = inspect.signature(comfy.samplers.KSAMPLER.sample)
APPLY_MODEL = inspect.signature(comfy.model_base.BaseModel.apply_model)


def freeing_by(options: dict[str, Any], where: Callable[[torch.Tensor], tuple[Any, torch.Tensor]]) -> dict[str, Any]:
    """These model_options, with a mask function that frees parts by where the run is in all of its levels.

    ``where``: from the noise level of a call [B] to (the run's [B], all of the run's [steps + 1]).
    """
    if MASK_FUNCTION not in options:
        return options
    own = options[MASK_FUNCTION]

    def of_the_run(sigma: torch.Tensor, denoise_mask: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        level, levels = where(sigma)
        mask: torch.Tensor = own(level, denoise_mask, extra_options={**extra_options, "sigmas": levels})
        return mask

    return {**options, MASK_FUNCTION: of_the_run}
