"""What a sampler adds to the options of its calls, for a model other than the guider's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .latent import LatentMap


def with_sampler_additions(options: dict[str, Any], passed: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """``options`` with what a sampler put into the ``passed`` options of its call beyond the guider's ``base``.

    The *_cfg_pp samplers append a post-CFG function; the host adds sample_sigmas.
    """
    merged = options.copy()
    for key, value in passed.items():
        own = base.get(key)
        if isinstance(value, dict):
            inner = with_sampler_additions(options.get(key) or {}, value, own or {})
            if inner or key in options:
                merged[key] = inner
        elif isinstance(value, list):
            if added := value[len(own or []) :]:
                merged[key] = [*(options.get(key) or []), *added]
        elif value is not own:
            merged[key] = value
    return merged


def bring_over(
    options: dict[str, Any],
    added_from: int,
    device: torch.device,
    latent_map: LatentMap,
    x: torch.Tensor,
    sigma: torch.Tensor,
) -> None:
    """For a model on its own device or in its own latent space: bring the run's sigmas there.

    The sampler's functions (from index ``added_from`` on) get tensors of the sampler's device and space.
    """

    def call_there(function: Callable[[dict[str, Any]], torch.Tensor], args: dict[str, Any]) -> torch.Tensor:
        predictions = {
            key: latent_map.clean_to_sketch(value).to(x.device)
            for key, value in args.items()
            if "denoised" in key and isinstance(value, torch.Tensor)
        }
        result = function({**args, **predictions, "input": x, "sigma": sigma})
        return latent_map.clean_to_render(result.to(device))

    transformer_options = options["transformer_options"]
    transformer_options["sample_sigmas"] = latent_map.sigmas(transformer_options["sample_sigmas"].to(device))
    functions = options.get("sampler_post_cfg_function", [])
    functions[added_from:] = [partial(call_there, function) for function in functions[added_from:]]
