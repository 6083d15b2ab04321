"""A MODEL that samples as its authors do: one that is loaded from their files, or one that another loader made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..checkpoint import called, read_headers
from .files import identify, read
from .layout import KEY, Facts, Layout, config_of, layout_from
from .positions import position_patches
from .sampling import CogVideoXSampling, check_run, guide_dynamically


def load(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False) -> ModelPatcher:
    """The text-to-video CogVideoX in ``path`` as a corrected MODEL.

    Args: ``path`` a safetensors file, one of several shards, their index or their folder, in the official key layout
    (diffusers) or the host's; ``weight_dtype`` as in the host's Load Diffusion Model; ``disable_dynamic`` is what the
    host asks for when it needs a MODEL that its dynamic memory does not manage. Raises ValueError as ``identify`` does.
    """
    layout = identify(path)
    state_dict, metadata = read(path)
    model = comfy.sd.load_diffusion_model_state_dict(
        state_dict, model_options=_options(weight_dtype), metadata=metadata, disable_dynamic=disable_dynamic
    )
    if model is None:
        raise ValueError(f"This ComfyUI can't build the CogVideoX in {called(path)}. Choose CogVideoX-5b or -2b.")
    model.cached_patcher_init = (load, (path, weight_dtype))  # where the host loads it again for another device
    _apply(model, layout)
    return model


def _options(weight_dtype: str) -> dict[str, Any]:
    """What the host's Load Diffusion Model makes of its weight_dtype."""
    options: dict[str, Any] = {}
    if weight_dtype != "default":
        options["dtype"] = getattr(torch, f"float8_{weight_dtype.removeprefix('fp8_').removesuffix('_fast')}")
    if weight_dtype.endswith("_fast"):
        options["fp8_optimizations"] = True
    return options


def correct(model: ModelPatcher, dynamic_cfg: bool = False) -> ModelPatcher:
    """A clone of a CogVideoX MODEL, whatever loader made it, that samples as the official pipelines do.

    ``dynamic_cfg``: the guidance scale of every step is ``dynamic_scale`` of the sampler's; False takes it off again.
    Raises ValueError naming the model for a model that is not a text-to-video CogVideoX.
    """
    network = getattr(model.model, "diffusion_model", None)
    if type(model.model).__name__ != "CogVideoX" or network is None:
        raise ValueError(f"This MODEL is {type(model.model).__name__}, no CogVideoX: leave CogVideoX Sampling Fix out.")
    layout = layout_of(model)
    if layout is None:
        facts = Facts(network.dim, network.in_channels, network.patch_size_t or 1, network.ofs_proj_dim is not None)
        path = _file_of(model)
        config = config_of(path, read_headers([path])[1], facts) if path else None
        layout = layout_from(called(path) if path else "This MODEL", facts, config)
    model = model.clone()
    _apply(model, layout)
    if dynamic_cfg:
        model.set_model_sampler_cfg_function(guide_dynamically)
    elif model.model_options.get("sampler_cfg_function") is guide_dynamically:
        del model.model_options["sampler_cfg_function"]
    return model


def layout_of(model: ModelPatcher) -> Layout | None:
    """The layout of a corrected CogVideoX MODEL; None for any other."""
    return model.attachments.get(KEY)


def _file_of(model: ModelPatcher) -> Path | None:
    """The safetensors file that the host's loader read this MODEL from, where the host still knows."""
    _, arguments, *_ = model.cached_patcher_init or (None, ())
    path = Path(arguments[0]) if arguments and isinstance(arguments[0], (str, Path)) else None
    return path if path and path.is_file() and path.suffix.lower() in (".safetensors", ".sft") else None


def _apply(model: ModelPatcher, layout: Layout) -> None:
    """Put the corrections on ``model``. No patch holds a module: the host copies patches to clones on other GPUs."""
    network = model.model.diffusion_model
    member = layout.member
    for name, value in position_patches(network, layout).items():
        model.add_object_patch(f"diffusion_model.{name}", value)
    model.add_object_patch("model_sampling", CogVideoXSampling(model.model.model_config, snr_shift=member.snr_shift))
    if model.get_model_object("latent_format").scale_factor != member.latent_scale:
        formats = (comfy.latent_formats.CogVideoX(), comfy.latent_formats.CogVideoX1_5())
        model.add_object_patch("latent_format", next(f for f in formats if f.scale_factor == member.latent_scale))
    if KEY not in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, functools.partial(check_run, layout))
    model.set_attachments(KEY, layout)
