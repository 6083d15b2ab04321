"""The host's calls that this pack wraps, by their signatures: an argument is found by name, whatever its place."""

import inspect

import comfy.samplers

OUTER_SAMPLE = inspect.signature(comfy.samplers.CFGGuider.outer_sample)
PREDICT_NOISE = inspect.signature(comfy.samplers.CFGGuider.outer_predict_noise)
