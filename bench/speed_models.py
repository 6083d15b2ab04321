"""Sketch and render at their real shapes with random weights, built by the host without a file; speed does not depend on
what the weights say. (What a cache reuses does: speed_rows.py.)"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import comfy.ldm.cogvideo.model
import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.sd
import cost
import torch
import torch.utils._python_dispatch
from quality_host import module
from speed_measure import compute_dtype

Network, Size = cost.Network, cost.Size

# (sketch, render, size) by family. small: a sketch step takes about half a second on one CPU core. tiny: for tests.
SHAPES = {
    "real": {
        cost.WAN: (cost.WAN_14B, cost.WAN_1_3B, Size(832, 480, 81)),
        cost.COGVIDEOX: (cost.COGVIDEOX_5B, cost.COGVIDEOX_2B, Size(720, 480, 49)),
    },
    "small": {
        cost.WAN: (Network("small Wan sketch", cost.WAN, 512, 1024, 4, 4), Network("small Wan render", cost.WAN, 128, 512, 2, 1),
                   Size(192, 192, 5)),
        cost.COGVIDEOX: (Network("small CogVideoX sketch", cost.COGVIDEOX, 512, 2048, 4, 8),
                         Network("small CogVideoX render", cost.COGVIDEOX, 256, 1024, 3, 4), Size(192, 192, 5)),
    },
    "tiny": {
        cost.WAN: (Network("tiny Wan sketch", cost.WAN, 256, 512, 2, 2), Network("tiny Wan render", cost.WAN, 128, 256, 1, 1),
                   Size(64, 64, 5)),
        cost.COGVIDEOX: (Network("tiny CogVideoX sketch", cost.COGVIDEOX, 128, 512, 2, 2),
                         Network("tiny CogVideoX render", cost.COGVIDEOX, 64, 256, 1, 1), Size(64, 64, 5)),
    },
}  # fmt: skip
WEIGHTS = ("default", "fp8", "fp8 scaled")  # default: bf16 on a GPU, float32 on the CPU
POOL = 1 << 22  # random values; larger tensors repeat them
SPREAD = 0.02  # of random weights
# A trained time embedding changes a little from step to step, in the range that TeaCache's coefficients were fitted on. So
# does one whose first layer is a constant plus a little; for Wan 14B that range lies higher.
TIME_LAYERS = ("time_embedding.0", "time_embedding_linear_1")
TIME_SHARE, TIME_SHARE_14B = 0.3, 1.0


def build(network: Any, weights: str, device: torch.device) -> Any:
    """A MODEL of the host with random weights, which are held once. weights: one of WEIGHTS.

    Raises ValueError where the host has no such network.
    """
    dtype = compute_dtype(device)
    shapes = dict(_empty(network, dtype).named_parameters())
    if weights == "fp8 scaled":
        state_dict, options = _scaled(shapes, network), {}
    else:  # one value seen through every shape: the host copies it into its own weights, which are then filled
        state_dict = {key: torch.zeros((), dtype=dtype).expand(value.shape) for key, value in shapes.items()}
        # Said, not left to the host, which takes fp16 for Wan: bf16 is the paper's, and random values can't overflow in it.
        options = {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True} if weights == "fp8" else {"dtype": dtype}
    model = comfy.sd.load_diffusion_model_state_dict(state_dict, model_options=options)
    if model is None:
        raise ValueError(f"This ComfyUI can't build {network.name}. Update ComfyUI.")
    if weights != "fp8 scaled":
        for key, parameter in model.model.diffusion_model.named_parameters():
            _fill(key, parameter.data, network)
    return _corrected(model, network)


def bytes_of(networks: tuple[Any, ...], weights: str, device: torch.device) -> int:
    """Main memory that these networks take."""
    each = 1 if weights != "default" else compute_dtype(device).itemsize
    return each * sum(map(cost.weights, networks))


def _empty(network: Any, dtype: torch.dtype) -> Any:
    """The host's network, without data."""
    built_in = {"device": "meta", "dtype": dtype, "operations": comfy.ops.disable_weight_init}
    if network.family == cost.WAN:
        return comfy.ldm.wan.model.WanModel(dim=network.dim, ffn_dim=network.ffn, num_heads=network.heads,
                                            num_layers=network.layers, **built_in)  # fmt: skip
    return comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(
        num_attention_heads=network.heads, num_layers=network.layers, use_rotary_positional_embeddings=True, **built_in
    )


def _corrected(model: Any, network: Any) -> Any:
    """A CogVideoX as the pack's loaders give it: positions, schedule, latent scale. Any other as it is."""
    if network.family != cost.COGVIDEOX:
        return model
    layout, families = module("srd_core.cogvideox.layout"), module("srd_core.families")
    positions = families.SINCOS if "2B" in network.name or "render" in network.name else families.ROTARY
    member = next(known for known in families.COGVIDEOX if known.positions == positions)
    model.set_attachments(layout.KEY, layout.Layout(member))
    return module("srd_core.cogvideox").correct(model)


def _scaled(shapes: dict[str, Any], network: Any) -> dict[str, torch.Tensor]:
    """A state dict as fp8_scaled files have it: the blocks' matrices in fp8, each with a scale. The host keeps these
    tensors themselves."""
    state_dict = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, value in shapes.items():
        scaled = key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2
        state_dict[key] = torch.empty(value.shape, dtype=torch.float8_e4m3fn if scaled else value.dtype)
        _fill(key, state_dict[key], network)
        if scaled:
            state_dict[key.removesuffix("weight") + "scale_weight"] = torch.ones((), dtype=torch.float32)
    return state_dict


def _fill(key: str, tensor: torch.Tensor, network: Any) -> None:
    """Random values in place: a normal pool again and again, for 14 billion draws take minutes."""
    if key.startswith(TIME_LAYERS):
        share = TIME_SHARE_14B if network.dim == cost.WAN_14B.dim else TIME_SHARE
        values = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * SPREAD * share
        tensor.copy_(torch.ones(()) if key.endswith("bias") else values)
        return
    one = 1.0 if "norm" in key and key.endswith(".weight") and tensor.ndim == 1 else 0.0
    flat = tensor.view(-1)
    pool = _pool(torch.float32).add(one).to(tensor.dtype) if one else _pool(tensor.dtype)
    for start in range(0, flat.numel(), POOL):
        part = flat[start : start + POOL]
        part.copy_(pool[: part.numel()])


_pools: dict[torch.dtype, torch.Tensor] = {}


def _pool(dtype: torch.dtype) -> torch.Tensor:
    if dtype not in _pools:
        values = torch.randn(POOL, generator=torch.Generator().manual_seed(0)) * SPREAD
        _pools[dtype] = values.to(dtype)
    return _pools[dtype]


@lru_cache
def conditioning(network: Any) -> tuple[list[Any], list[Any]]:
    """A random positive and negative prompt in the host's form, as long as real ones are padded."""
    generator = torch.Generator().manual_seed(1)
    return tuple([[torch.randn(1, network.text_tokens, cost.TEXT_DIM, generator=generator), {}]] for _ in range(2))  # type: ignore[return-value]


# --- what a forward moves, without computing it -------------------------------------------------------------------------


class Traffic(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes that operations other than matrix products and attention read and write; for tensors without data."""

    HEAVY = ("mm", "addmm", "bmm", "baddbmm", "convolution", "scaled_dot_product")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not any(heavy in name for heavy in self.HEAVY) and name not in ("empty", "detach"):
            self.bytes += sum(t.numel() * t.element_size() for t in [*_tensors(args), *_tensors(out)])
        return out


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def elementwise_bytes(network: Any, size: Any) -> int:
    """What one forward of the host's network in bf16 reads and writes outside its matrix products, uncompiled."""
    attention = module("srd_core.attention")
    model = _empty(network, torch.bfloat16)
    x = torch.empty(1, cost.CHANNELS, *size.latent, device="meta", dtype=torch.bfloat16)
    context = torch.empty(1, network.text_tokens, cost.TEXT_DIM, device="meta", dtype=torch.bfloat16)

    def shape_only(_: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.empty_like(q)

    with torch.no_grad(), Traffic() as traffic:
        model(x, torch.empty(1, device="meta"), context=context, transformer_options={attention.OVERRIDE: shape_only})
    return traffic.bytes
