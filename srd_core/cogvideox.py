"""CogVideoX as its authors run it: loading of their files, and what the host's own path gets wrong for text-to-video.

The host builds the model; ``correct`` puts four things right on a MODEL, all as patches of that MODEL (its classes and
other MODELs stay as they are): the positions of 2B, the rotary grid of 5B, the noise schedule with its SNR shift, the
latent's scale. Formulas: diffusers' CogVideoXTransformer3DModel, CogVideoXPipeline and CogVideoXDDIMScheduler 0.42.1,
and the official repositories' config.json; tests/test_cogvideox.py compares with them.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .checkpoint import called, read_headers, weight_files
from .families import COGVIDEOX, ROTARY, SINCOS, SLICE, CogVideoX

KEY = "srdiffusion_cogvideox"
HOST_SINCE = "0.24.0"  # the oldest tested host with a CogVideoX of its own
HEAD = 64  # channels of an attention head; fixed in the host
CHANNELS = 16  # of the latent
TEXT_TOKENS = 226
FRAMES_PER_LATENT = 4
CLASS_NAME = "CogVideoXTransformer3DModel"  # in the official config.json

# From the official key layout (diffusers) to the host's; keys that are in the host's already stay as they are.
RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^transformer_blocks\.", "blocks."),
        (r"\.attn1\.to_([qkv])(?=\.|$)", r".\1"),
        (r"\.attn1\.to_out\.0(?=\.|$)", ".attn_out"),
        (r"\.attn1\.norm_([qk])(?=\.|$)", r".norm_\1"),
        (r"\.ff\.net\.0\.proj(?=\.|$)", ".ff_proj"),
        (r"\.ff\.net\.2(?=\.|$)", ".ff_out"),
        (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
    )
)
POSITION_TABLE = "patch_embed.pos_embedding"
MARKS = ("patch_embed.text_proj.weight", "patch_embed.proj.weight", "time_embedding_linear_1.weight")
ENDS = ("norm_final.weight", "norm_out.linear.weight", "proj_out.weight")  # what a file cut off between layers lacks


@dataclass(frozen=True)
class Layout:
    """A member of the family with what the positions need to know: the sizes it was trained at."""

    member: CogVideoX
    rows: int = 30  # patches of the training size 720x480
    columns: int = 45
    spatial_scale: float = 1.875  # sincos: positions are divided by these
    temporal_scale: float = 1.0


@dataclass(frozen=True)
class Facts:
    """What the weights themselves say."""

    dim: int
    in_channels: int
    frame_patch: int  # latent frames in one patch
    has_ofs: bool  # an embedding that only the image-to-video model of 1.5 has


# --- which model is it? -------------------------------------------------------------------------------------------------


def is_cogvideox(path: Path) -> bool:
    """Does ``path``, a safetensors file or a folder of shards, hold a CogVideoX transformer (any variant)?

    Raises ValueError with a sentence for files that are damaged or missing (see checkpoint.weight_files).
    """
    return path.exists() and _prefix(read_headers(weight_files(path))[0]) is not None


def identify(path: Path) -> Layout:
    """The layout of the CogVideoX in ``path`` (file or folder of shards), read from headers and config.json alone.

    Raises ValueError with a sentence naming the file and the next step for what is no text-to-video CogVideoX, is
    incomplete or unknown, and on hosts that have no CogVideoX.
    """
    header, metadata = read_headers(weight_files(path))
    prefix = _prefix(header)
    if prefix is None:
        raise ValueError(f"{called(path)} is no CogVideoX transformer. Choose the transformer of CogVideoX-2b or -5b.")
    _check_host(called(path))
    shapes = {host_key(key.removeprefix(prefix)): t["shape"] for key, t in header.items() if key.startswith(prefix)}
    _check_complete(called(path), shapes)
    facts = _facts_of_weights(shapes)
    return _layout(called(path), facts, _config(path, metadata, facts))


def host_key(key: str) -> str:
    """The host's name of a tensor (or a layer) that has the official or already the host's name."""
    for pattern, new in RENAMES:
        key = pattern.sub(new, key)
    return key


def _prefix(keys: Mapping[str, Any]) -> str | None:
    """What stands before every key of a CogVideoX transformer among ``keys``; None if there is none."""
    for key in keys:
        if key.endswith(MARKS[0]):
            prefix = key.removesuffix(MARKS[0])
            names = {host_key(k.removeprefix(prefix)) for k in keys if k.startswith(prefix)}
            return prefix if names.issuperset(MARKS) and any(n.startswith("blocks.") for n in names) else None
    return None


def _check_host(name: str) -> None:
    if not hasattr(comfy.supported_models, "CogVideoX_T2V"):
        raise ValueError(f"{name} is a CogVideoX, which needs ComfyUI {HOST_SINCE} or newer. Update ComfyUI.")


def _check_complete(name: str, shapes: Mapping[str, Any]) -> None:
    """Raises ValueError for weights that lack layers: the host would leave those as chance has them."""
    layers: dict[int, set[str]] = {}
    for key in shapes:
        if found := re.match(r"blocks\.(\d+)\.(.+\.(?:weight|bias))$", key):
            layers.setdefault(int(found[1]), set()).add(found[2])
    missing = [key for key in ENDS if key not in shapes]
    full = set().union(*layers.values())
    missing += [f"blocks.{i}.{key}" for i in range(max(layers) + 1) for key in sorted(full - layers.get(i, set()))]
    if missing:
        raise ValueError(
            f"{name} holds only a part of a CogVideoX ({missing[0]} and {len(missing) - 1} more are missing). "
            "Download it again, with all its shards and the .index.json."
        )


def _facts_of_weights(shapes: Mapping[str, Any]) -> Facts:
    projection = shapes["patch_embed.proj.weight"]
    flat = len(projection) == 2  # 1.5: patches of 2 x 2 x 2 as one row of values; before: a convolution
    return Facts(
        dim=shapes["patch_embed.text_proj.weight"][0],
        in_channels=projection[1] // 8 if flat else projection[1],
        frame_patch=2 if flat else 1,
        has_ofs=any(key.startswith("ofs_embedding_linear_1") for key in shapes),
    )


def _layout(name: str, facts: Facts, config: Mapping[str, Any] | None) -> Layout:
    if facts.in_channels != CHANNELS or facts.has_ofs:
        raise ValueError(
            f"{name} is a CogVideoX that needs an image or a video to start from ({facts.in_channels} input channels), "
            "which is not supported here. Choose a text-to-video one: CogVideoX-5b or CogVideoX-2b."
        )
    if config is None:
        known = [m for m in COGVIDEOX if m.heads * HEAD == facts.dim and m.frame_patch == facts.frame_patch]
        if not known:
            widths = " and ".join(f"{m.heads * HEAD} ({m.name})" for m in COGVIDEOX)
            raise ValueError(
                f"{name} is a CogVideoX of width {facts.dim}; known are {widths}. "
                "Put the config.json of its transformer beside it."
            )
        return Layout(known[0])
    rotary = config.get("use_rotary_positional_embeddings", False)
    positions = SLICE if facts.frame_patch > 1 else ROTARY if rotary else SINCOS
    sizes = (config.get("attention_head_dim", HEAD), config.get("patch_size", 2))
    if sizes != (HEAD, 2) or (positions == SLICE and not rotary):
        raise ValueError(
            f"{name}: its config.json describes a CogVideoX that ComfyUI can't build (heads of 64 channels, patches of "
            "2 x 2 and, for 1.5, rotary positions are expected). Choose CogVideoX-5b or CogVideoX-2b."
        )
    return Layout(
        member=next(m for m in COGVIDEOX if m.positions == positions),
        rows=int(_number(name, config, "sample_height", 60, 2)) // 2,
        columns=int(_number(name, config, "sample_width", 90, 2)) // 2,
        spatial_scale=_number(name, config, "spatial_interpolation_scale", 1.875, 1e-3),
        temporal_scale=_number(name, config, "temporal_interpolation_scale", 1.0, 1e-3),
    )


def _number(name: str, config: Mapping[str, Any], key: str, default: float, least: float) -> float:
    """config[key], from ``least`` to a million. Raises ValueError with a sentence for anything else."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not least <= value <= 1e6:
        raise ValueError(
            f"{name}: its config.json says {key} {str(value)[:40]!r}; a number from {least:g} on is needed there. "
            "Get that file again."
        )
    return float(value)


def _config(path: Path, metadata: Mapping[str, str], facts: Facts) -> Mapping[str, Any] | None:
    """The transformer's config.json: from the file's metadata ("config"), else from beside it; None where there is none.

    One that does not describe these weights belongs to another file of the folder and is passed over.
    """
    folder = path if path.is_dir() else path.parent
    beside = folder / "config.json"
    for text in (metadata.get("config"), beside.read_bytes() if beside.is_file() else None):
        try:
            config = json.loads(text or "null")
            config = config.get("transformer", config) if isinstance(config, dict) else None
            if config and config.get("_class_name", CLASS_NAME) == CLASS_NAME and _describes(config, facts):
                return config
        except (ValueError, TypeError, AttributeError, RecursionError):
            logging.warning("SRDiffusion: the config.json of %s is not readable; going by its weights.", called(path))
    return None


def _describes(config: Mapping[str, Any], facts: Facts) -> bool:
    said = (
        config.get("num_attention_heads", 30) * config.get("attention_head_dim", HEAD),
        config.get("in_channels", CHANNELS),
        config.get("patch_size_t") or 1,
    )
    return said == (facts.dim, facts.in_channels, facts.frame_patch)


# --- loading ------------------------------------------------------------------------------------------------------------


def load(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False) -> ModelPatcher:
    """The text-to-video CogVideoX in ``path`` as a corrected MODEL.

    Args: ``path`` a safetensors file, one of several shards, their index or their folder, in the official key layout
    (diffusers) or the host's; ``weight_dtype`` as in the host's Load Diffusion Model; ``disable_dynamic`` is what the
    host asks for when it needs a MODEL that its dynamic memory does not manage. Raises ValueError as ``identify`` does.
    """
    layout = identify(path)
    state_dict, metadata = _read(path)
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


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict under the host's keys, metadata). The loader empties the state dict while it builds: the caller must
    not keep a copy, or the weights are in memory twice."""
    state_dict: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(path):
        part, said = comfy.utils.load_torch_file(str(file), return_metadata=True)
        state_dict.update(part)
        metadata.update(said or {})
        del part
    rename(state_dict)
    if quantization := metadata.get("_quantization_metadata"):
        facts = json.loads(quantization)
        facts["layers"] = {host_key(layer): value for layer, value in facts.get("layers", {}).items()}
        metadata["_quantization_metadata"] = json.dumps(facts)
    return state_dict, metadata


def rename(state_dict: dict[str, torch.Tensor]) -> None:
    """Bring the transformer's keys into the host's layout, in place and tensor by tensor. What does not belong to it
    (a VAE in the same file) and a table of positions (made new for every size) are dropped."""
    prefix = _prefix(state_dict) or ""
    for key in list(state_dict):
        value = state_dict.pop(key)
        new = host_key(key.removeprefix(prefix))
        if key.startswith(prefix) and new != POSITION_TABLE:
            state_dict[new] = value


# --- the corrections ----------------------------------------------------------------------------------------------------


def correct(model: ModelPatcher, dynamic_cfg: bool = False) -> ModelPatcher:
    """A clone of a CogVideoX MODEL, whatever loader made it, that samples as the official pipelines do.

    ``dynamic_cfg``: the guidance scale of every step is ``dynamic_scale`` of the sampler's; False takes it off again.
    Raises ValueError naming the model for what is no text-to-video CogVideoX.
    """
    network = getattr(model.model, "diffusion_model", None)
    if type(model.model).__name__ != "CogVideoX" or network is None:
        raise ValueError(f"This MODEL is {type(model.model).__name__}, no CogVideoX: leave CogVideoX Sampling Fix out.")
    layout = model.attachments.get(KEY)
    if layout is None:
        facts = Facts(network.dim, network.in_channels, network.patch_size_t or 1, network.ofs_proj_dim is not None)
        path = _file_of(model)
        config = _config(path, read_headers([path])[1], facts) if path else None
        layout = _layout(called(path) if path else "This MODEL", facts, config)
    model = model.clone()
    _apply(model, layout)
    if dynamic_cfg:
        model.set_model_sampler_cfg_function(_guide_dynamically)
    elif model.model_options.get("sampler_cfg_function") is _guide_dynamically:
        del model.model_options["sampler_cfg_function"]
    return model


def _file_of(model: ModelPatcher) -> Path | None:
    """The safetensors file that the host's loader read this MODEL from, where the host still knows."""
    _, arguments, *_ = getattr(model, "cached_patcher_init", None) or (None, ())
    path = Path(arguments[0]) if arguments and isinstance(arguments[0], (str, Path)) else None
    return path if path and path.is_file() and path.suffix.lower() in (".safetensors", ".sft") else None


def _apply(model: ModelPatcher, layout: Layout) -> None:
    """Put the corrections on ``model`` itself. No patch holds a module: the host copies patches to clones of the MODEL
    that have weights of their own (multi-GPU)."""
    network = model.model.diffusion_model
    member = layout.member
    for name, value in _position_patches(network, layout).items():
        model.add_object_patch(f"diffusion_model.{name}", value)
    model.add_object_patch("model_sampling", CogVideoXSampling(model.model.model_config, snr_shift=member.snr_shift))
    if model.get_model_object("latent_format").scale_factor != member.latent_scale:
        formats = (comfy.latent_formats.CogVideoX(), comfy.latent_formats.CogVideoX1_5())
        model.add_object_patch("latent_format", next(f for f in formats if f.scale_factor == member.latent_scale))
    if KEY not in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, functools.partial(_check_run, layout))
    model.set_attachments(KEY, layout)


def layout_of(model: ModelPatcher) -> Layout | None:
    """The layout of a corrected CogVideoX MODEL; None for any other."""
    return model.attachments.get(KEY)


def _position_patches(network: Any, layout: Layout) -> dict[str, Any]:
    """Attribute of the host's transformer -> its right value. The host's own positions are switched off."""
    patches: dict[str, Any] = {
        "use_rotary_positional_embeddings": layout.member.positions != SINCOS,
        "patch_embed.use_positional_embeddings": False,
        "patch_embed.use_learned_positional_embeddings": False,
    }
    if layout.member.positions == ROTARY:
        patches["_get_rotary_emb"] = functools.partial(rotary_embedding, layout)
    elif layout.member.positions == SINCOS:
        hooks = OrderedDict(network.patch_embed._forward_hooks)  # torch keeps weak references to it: no plain dict
        hooks[KEY] = functools.partial(_add_positions, layout)
        patches["patch_embed._forward_hooks"] = hooks
    return patches


def resized_crop(rows: int, columns: int, base_rows: int, base_columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a video of rows x columns patches lies when it is resized to fit into the training size and centred:
    ((top, left), (bottom, right)) in patches of the training size."""
    if rows / columns > base_rows / base_columns:
        height, width = base_rows, round(base_rows / rows * columns)
    else:
        height, width = round(base_columns / columns * rows), base_columns
    top, left = round((base_rows - height) / 2), round((base_columns - width) / 2)
    return (top, left), (top + height, left + width)


def rotary_embedding(
    layout: Layout, rows: int, columns: int, frames: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines, sines), each [frames * rows * columns, 64] float32, as the host's block wants them (pairs of channels).

    A quarter of the channels turns with time, three eighths with height and with width. rows, columns, frames: in patches.
    """
    (top, left), (bottom, right) = resized_crop(rows, columns, layout.rows, layout.columns)
    axes = (
        (HEAD // 4, torch.arange(frames, dtype=torch.float32, device=device)),
        (HEAD // 8 * 3, torch.linspace(top, bottom * (rows - 1) / rows, rows, device=device)),
        (HEAD // 8 * 3, torch.linspace(left, right * (columns - 1) / columns, columns, device=device)),
    )
    angles = []
    for axis, (channels, positions) in enumerate(axes):
        rates = 1.0 / 10000 ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
        shape = [1, 1, 1, channels]
        shape[axis] = len(positions)
        along = torch.outer(positions, rates).repeat_interleave(2, dim=-1).view(shape)
        angles.append(along.expand(frames, rows, columns, channels))
    turned = torch.cat(angles, dim=-1).reshape(-1, HEAD)
    return turned.cos(), turned.sin()


def _add_positions(
    layout: Layout, module: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], embeddings: torch.Tensor
) -> torch.Tensor:
    """Forward hook of the host's patch embedding: adds the sines of 2B to the video's part.

    Args: ``inputs`` text [B, tokens, width] and latents [B, frames, C, height, width]; ``embeddings``
    [B, tokens + patches, dim], text first. Every axis has channels of its own, so three small tables do.
    """
    text, latents = inputs
    (frames, _, height, width), dim = latents.shape[1:], embeddings.shape[-1]
    rows, columns = height // 2, width // 2
    video = embeddings[:, text.shape[1] :].unflatten(1, (frames, rows, columns))
    quarter, spatial = dim // 4, dim * 3 // 8
    for length, first, channels, scale, shape in (
        (frames, 0, quarter, layout.temporal_scale, (frames, 1, 1)),
        (columns, quarter, spatial, layout.spatial_scale, (1, 1, columns)),
        (rows, quarter + spatial, spatial, layout.spatial_scale, (1, rows, 1)),
    ):
        table = _sines(length, channels, scale, embeddings.device, embeddings.dtype).view(*shape, channels)
        video[..., first : first + channels] += table
    return embeddings


@functools.lru_cache(maxsize=32)  # on the device: a copy in every forward would wait for it
def _sines(length: int, channels: int, scale: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[length, channels], computed in float64 on the CPU: sines, then cosines, of the positions divided by ``scale``."""
    rates = 1.0 / 10000 ** (torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    # Positions are divided in float32, as the authors do.
    angles = torch.outer((torch.arange(length, dtype=torch.float32) / scale).double(), rates)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(device, dtype)


class CogVideoXSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's discrete schedule with v-prediction, the SNR shift of CogVideoX and then a terminal SNR of (nearly) zero.

    ``snr_shift`` s takes alpha to alpha / (s + (1 - s) alpha), which is sigma times the root of s. The last alpha is the
    host's 4.9e-8 in place of diffusers' 0: a sigma of 4519 in place of an infinite one.
    """

    def __init__(self, model_config: Any = None, zsnr: bool | None = None, snr_shift: float = 1.0) -> None:
        self._snr_shift = snr_shift
        super().__init__(model_config, zsnr=False)
        self.zsnr = True

    def _register_schedule(self, *args: Any, **kwargs: Any) -> None:
        super()._register_schedule(*args, **kwargs)
        betas = torch.linspace(self.linear_start**0.5, self.linear_end**0.5, self.num_timesteps, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(dim=0)
        sigmas = (self._snr_shift * (1 - alphas) / alphas) ** 0.5
        self.set_sigmas(comfy.model_sampling.rescale_zero_terminal_snr_sigmas(sigmas))


def dynamic_scale(scale: float, timestep: int, steps: int, exponent: float = 5.0) -> float:
    """The guidance scale at ``timestep`` (0 to 999) of a run of ``steps`` steps: a wave between 1 and 1 + ``scale``.

    As the official 5B pipeline has it (use_dynamic_cfg, guidance_scale 6). That it takes the timestep for the number of
    the step is no mistake of ours: the authors keep the wave, for it avoids overexposure (zai-org/CogVideo issue 267).
    """
    return 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** exponent)) / 2


def _guide_dynamically(args: dict[str, Any]) -> torch.Tensor:
    """The host's sampler_cfg_function: returns the input minus the guided x0 prediction."""
    denoised, scale = args["cond_denoised"], args["cond_scale"]
    if scale > 1:
        steps = len(args["model_options"]["transformer_options"]["sample_sigmas"]) - 1
        timestep = int(args["model"].model_sampling.timestep(args["sigma"]).flatten()[0])
        without = args["uncond_denoised"]
        denoised = without + dynamic_scale(scale, timestep, steps) * (denoised - without)
    return args["input"] - denoised


# --- what a run may ask for ---------------------------------------------------------------------------------------------


def _check_run(
    layout: Layout, executor: WrapperExecutor, noise: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: refuse frame counts that the model can't take, cut prompts that are too long."""
    if noise.ndim == 5:
        check_frames(layout, noise.shape[2])
    cut_prompts(getattr(executor.class_obj, "conds", None) or {})
    return executor(noise, *args, **kwargs)


def check_frames(layout: Layout, latent_frames: int) -> None:
    """Raises ValueError with the nearest valid frame counts when the model can't take so many latent frames."""
    size = layout.member.frame_patch
    if latent_frames % size:
        below = latent_frames // size * size
        valid = [str(_frames(n)) for n in (below, below + size) if n]
        raise ValueError(
            f"{layout.member.name} takes {size} latent frames at a time, but {_frames(latent_frames)} frames make "
            f"{latent_frames}. Set the length of the empty latent to {' or '.join(valid)}."
        )


def _frames(latent_frames: int) -> int:
    return (latent_frames - 1) * FRAMES_PER_LATENT + 1


def cut_prompts(conds: Mapping[str, list[dict[str, Any]]]) -> None:
    """Cut the text embeddings of a run's ``conds`` (role -> the host's conditioning, changed in place) to TEXT_TOKENS."""
    too_long = []
    for role, entries in conds.items():
        for cond in entries:
            text = cond.get("cross_attn")
            if isinstance(text, torch.Tensor) and text.shape[1] > TEXT_TOKENS:
                cond["cross_attn"] = text[:, :TEXT_TOKENS]
                too_long.append(f"{role} {text.shape[1]}")
    if too_long:
        logging.info("SRDiffusion: CogVideoX reads %d tokens of a prompt; cut: %s.", TEXT_TOKENS, ", ".join(too_long))
