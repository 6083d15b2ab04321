"""The family's two diffusion transformers: the host's own Wan model at a tiny width, trainable on CPU or GPU."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from text import TEXT_DIM


@dataclass(frozen=True)
class Shape:
    """Width, depth and heads of a DiT; the feed-forward is four times as wide."""

    dim: int
    layers: int
    heads: int


SKETCH = Shape(192, 6, 3)
RENDER = Shape(192, 2, 3)


def find_host() -> None:
    """Make `import comfy` mean the host, and keep it from reading our command line."""
    import host

    sys.path.insert(0, str(host.find_or_make().path))
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def build(shape: Shape, seed: int) -> Any:
    """The host's WanModel (float32, t2v) with fresh weights."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        dim=shape.dim,
        ffn_dim=4 * shape.dim,
        num_layers=shape.layers,
        num_heads=shape.heads,
        text_dim=TEXT_DIM,
        operations=comfy.ops.disable_weight_init,
        dtype=torch.float32,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        _initialise(name, p.data, generator)
    return model


def _initialise(name: str, p: torch.Tensor, generator: torch.Generator) -> None:
    """Fan-in scaled weights; the head starts at zero, every residual branch at a fifth of its strength."""
    if name.endswith("modulation"):
        p.zero_()
        if p.shape[1] == 6:
            p[:, (2, 5)] = 0.2
    elif name.endswith("bias") or name == "head.head.weight":
        p.zero_()
    elif p.ndim == 1:
        p.fill_(1.0)
    else:
        gain = 0.1 if name.startswith("time_projection") else 1.0
        p.normal_(0.0, gain / p[0].numel() ** 0.5, generator=generator)


def velocity(model: Any, x: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The model's prediction noise - x0 for x [B, 16, T, H, W], sigma [B], text [B, tokens, TEXT_DIM]."""
    freqs = model.rope_encode(*x.shape[2:], device=x.device, dtype=torch.float32)
    return model.forward_orig(x, 1000.0 * sigma, text, freqs=freqs, transformer_options={})


@contextlib.contextmanager
def trainable_host() -> Iterator[None]:
    """Swap the host's rotary function, which has no autograd, and its attention for plain torch while training."""
    import comfy.ldm.wan.model as wan

    kept = wan.apply_rope1, wan.optimized_attention
    wan.apply_rope1, wan.optimized_attention = _rotate, _attend
    try:
        yield
    finally:
        wan.apply_rope1, wan.optimized_attention = kept


def _rotate(x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    """X [B, L, heads, d] times the rotation matrices freqs [..., d/2, 2, 2]."""
    pair = x.reshape(*x.shape[:-1], -1, 1, 2).to(freqs.dtype)
    return (freqs[..., 0] * pair[..., 0] + freqs[..., 1] * pair[..., 1]).reshape(x.shape).type_as(x)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **_: Any) -> torch.Tensor:
    """Attention over [B, L, heads * d]."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)  # on CPU a fifth faster a step than torch's
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def save(state: dict[str, torch.Tensor], shape: Shape | None, path: Path) -> None:
    """Write fp16 weights that the host's loaders take; DiTs of a small width (shape) need the `config` entry."""
    from safetensors.torch import save_file

    config = {"transformer": {"text_dim": TEXT_DIM, "num_heads": shape.heads}} if shape else None
    metadata = ({"config": json.dumps(config)} if config else {}) | {"format": "pt"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().half().contiguous() for name, t in state.items()}, path, metadata)
    path.chmod(0o644)
