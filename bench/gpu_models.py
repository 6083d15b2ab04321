"""Sketch and render at their real shapes with random weights, built by the host without a file."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.ldm.cogvideo.model
import comfy.ldm.wan.model
import comfy.memory_management
import comfy.ops
import comfy.sd
import cost
import torch
from cost import COGVIDEOX, WAN, Network, Size
from hosting import module

# (sketch, render, size) by family. tiny: for the rehearsal and the tests.
SHAPES = {
    "real": {
        WAN: (cost.WAN_14B, cost.WAN_1_3B, Size(832, 480, 81)),
        COGVIDEOX: (cost.COGVIDEOX_5B, cost.COGVIDEOX_2B, Size(720, 480, 49)),
    },
    "tiny": {
        WAN: (
            Network("tiny Wan sketch", WAN, 256, 512, 2, 2),
            Network("tiny Wan render", WAN, 128, 256, 1, 1),
            Size(64, 64, 5),
        ),
        COGVIDEOX: (
            Network("tiny CogVideoX sketch", COGVIDEOX, 128, 512, 2, 2),
            Network("tiny CogVideoX render", COGVIDEOX, 64, 256, 1, 1),
            Size(64, 64, 5),
        ),
    },
}
DEFAULT, FP8 = "default", "fp8"  # weights: bf16 on a GPU and float32 on the CPU; as fp8_scaled files have them
POOL = 1 << 22  # random values; larger tensors repeat them, for 14 billion draws take minutes
SPREAD = 0.02  # of random weights
# A trained time embedding changes a little from step to step, in the range that TeaCache's coefficients were fitted on.
# So does one whose first layer is a constant plus a little; for Wan 14B that range lies higher.
TIME_LAYERS = ("time_embedding.0", "time_embedding_linear_1")
TIME_SHARE, TIME_SHARE_14B = 0.3, 1.0


def compute_dtype(device: torch.device) -> torch.dtype:
    """That of the models without fp8. On a GPU the paper's, in which random values can't overflow."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def build(network: Network, weights: str, device: torch.device) -> Any:
    """A MODEL of the host with random weights, which are held once.

    weights: DEFAULT or FP8. Raises ValueError where the host has no such network.
    """
    dtype = compute_dtype(device)
    shapes = dict(empty(network, dtype).named_parameters())
    # With dynamic VRAM, and for quantised weights, the host keeps the tensors that it gets. Else it copies them: one
    # value seen through every shape is enough, and the copies are filled.
    kept = weights == FP8 or comfy.memory_management.aimdo_enabled
    if kept:
        state_dict = _filled(shapes, network, weights == FP8)
    else:
        state_dict = {key: torch.zeros((), dtype=dtype).expand(value.shape) for key, value in shapes.items()}
    options = {} if weights == FP8 else {"dtype": dtype}  # said, for the host takes fp16 for Wan
    model = comfy.sd.load_diffusion_model_state_dict(state_dict, model_options=options)
    if model is None:
        raise ValueError(f"This ComfyUI can't build {network.name}. Update ComfyUI.")
    if not kept:
        for key, parameter in model.model.diffusion_model.named_parameters():
            _fill(key, parameter.data, network)
    return _corrected(model, network)


def empty(network: Network, dtype: torch.dtype) -> Any:
    """The host's network, without data."""
    how = {"device": "meta", "dtype": dtype, "operations": comfy.ops.disable_weight_init, "num_layers": network.layers}
    if network.family == WAN:
        return comfy.ldm.wan.model.WanModel(dim=network.dim, ffn_dim=network.ffn, num_heads=network.heads, **how)
    return comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(
        num_attention_heads=network.heads, use_rotary_positional_embeddings=True, **how
    )


def _corrected(model: Any, network: Network) -> Any:
    """A CogVideoX as the pack's loaders give it: positions, schedule, latent scale. Any other as it is."""
    if network.family != COGVIDEOX:
        return model
    layout, families = module("srd_core.cogvideox.layout"), module("srd_core.families")
    positions = families.SINCOS if "2B" in network.name or "render" in network.name else families.ROTARY
    member = next(known for known in families.COGVIDEOX if known.positions == positions)
    model.set_attachments(layout.KEY, layout.Layout(member))
    return module("srd_core.cogvideox").correct(model)


def _filled(shapes: dict[str, Any], network: Network, fp8: bool) -> dict[str, torch.Tensor]:
    """A state dict with random values. fp8: the blocks' matrices in fp8, each with a scale, as fp8_scaled files are."""
    state_dict = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)} if fp8 else {}
    for key, value in shapes.items():
        scaled = fp8 and key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2
        state_dict[key] = torch.empty(value.shape, dtype=torch.float8_e4m3fn if scaled else value.dtype)
        _fill(key, state_dict[key], network)
        if scaled:
            state_dict[key.removesuffix("weight") + "scale_weight"] = torch.ones((), dtype=torch.float32)
    return state_dict


def _fill(key: str, tensor: torch.Tensor, network: Network) -> None:
    """Random values in place, around 1 for the scales of norms."""
    if key.startswith(TIME_LAYERS):
        share = TIME_SHARE_14B if network.dim == cost.WAN_14B.dim else TIME_SHARE
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * SPREAD * share
        tensor.copy_(torch.ones(()) if key.endswith("bias") else values)
        return
    norm = "norm" in key and key.endswith(".weight") and tensor.ndim == 1
    pool, flat = _pool(tensor.dtype, float(norm)), tensor.view(-1)
    for start in range(0, flat.numel(), POOL):
        part = flat[start : start + POOL]
        part.copy_(pool[: part.numel()])


@cache
def _pool(dtype: torch.dtype, mean: float) -> torch.Tensor:
    return (torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * SPREAD + mean).to(dtype)


@cache
def conditioning(network: Network) -> tuple[list[Any], list[Any]]:
    """A random positive and negative prompt in the host's form, as long as real ones are padded."""
    generator = torch.Generator().manual_seed(1)
    positive, negative = (
        [[torch.randn(1, network.text_tokens, cost.TEXT_DIM, generator=generator), {}]] for _ in range(2)
    )
    return positive, negative
