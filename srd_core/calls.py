"""The host's calls that this pack wraps: under which key, and by which signatures an argument is found by its name."""

import inspect

import comfy.model_base
import comfy.samplers

KEY = "srdiffusion"  # of a pair's wrappers
MASK_FUNCTION = "denoise_mask_function"  # of a MODEL's options: changes the mask in every call (Differential Diffusion)
OUTER_SAMPLE = inspect.signature(comfy.samplers.CFGGuider.outer_sample)
PREDICT_NOISE = inspect.signature(comfy.samplers.CFGGuider.outer_predict_noise)
SAMPLER_SAMPLE = inspect.signature(comfy.samplers.KSAMPLER.sample)
APPLY_MODEL = inspect.signature(comfy.model_base.BaseModel.apply_model)
