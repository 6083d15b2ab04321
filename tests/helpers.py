"""Tiny models, prompts and sampling calls, all through the host's own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.utils
import nodes
import torch
from comfy.patcher_extension import WrappersMP

DIM, TEXT_DIM, FRAMES, SIDE = 128, 4096, 2, 8
IN_CHANNELS = {"t2v": 16, "i2v": 36, "control": 48, "control 2.2": 52}
SAMPLING: dict[str, Any] = {"seed": 7, "steps": 6, "cfg": 3.0}
SAMPLING |= {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
RULE: dict[str, Any] = {"switch_mode": "step", "delta": 0.01, "fix_step": 5, "max_step": 0}
RULE |= {"switch_step": 3, "switch_sigma": 0.875}
RENDERING: dict[str, Any] = {"render_cfg": 0.0, "teacache": 0.0, "offload_sketch": "auto"}


def randomised(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Small random weights under the keys of a model; scales around one."""
    generator, scales = torch.Generator().manual_seed(seed), ("norm_q.weight", "norm_k.weight", "gamma")
    return {
        key: float(key.endswith(scales)) + torch.randn(value.shape, generator=generator) * 0.05
        for key, value in model.state_dict().items()
    }


def random_model(kind: type[torch.nn.Module], seed: int, **layout: Any) -> dict[str, torch.Tensor]:
    """A random model of the host's own class."""
    how = {"device": "cpu", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    return randomised(kind(**layout, **how), seed)


def wan_layout(layers: int = 1, dim: int = DIM) -> dict[str, Any]:
    """What WanModel takes for a tiny Wan 2.1 with the real width of text."""
    return {"dim": dim, "ffn_dim": 2 * dim, "num_heads": dim // DIM, "num_layers": layers, "text_dim": TEXT_DIM}


def wan_state_dict(seed: int = 0, layers: int = 1, kind: str = "t2v", dim: int = DIM) -> dict[str, torch.Tensor]:
    """Random weights under the key layout of Wan 2.1 (i2v: the Fun layout, 36 input channels, no CLIP image branch)."""
    layout = wan_layout(layers, dim) | {"model_type": "t2v", "in_dim": IN_CHANNELS[kind]}
    return random_model(comfy.ldm.wan.model.WanModel, seed, **layout)


def wan_file(folder: Path, **how: Any) -> Path:
    path = folder / ("wan_" + "_".join(f"{k}{v}" for k, v in sorted(how.items())) + ".safetensors")
    if not path.exists():
        comfy.utils.save_torch_file(wan_state_dict(**how), str(path))
    return path


def prompt(seed: int, tokens: int = 4, **extra: Any) -> list[Any]:
    """Conditioning in the host's form, with a random text embedding."""
    return [[torch.randn(1, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed)), dict(extra)]]


def empty_latent(batch: int = 1, frames: int = FRAMES, side: int = SIDE) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 16, frames, side, side)}


def sampling_inputs(**how: Any) -> dict[str, Any]:
    """The inputs that KSampler, SR Sampler and SR Sketch share."""
    return {"positive": prompt(1), "negative": prompt(2), "latent": empty_latent(), **SAMPLING, **how}


def ksampler(model: Any, steps: int = 6, **how: Any) -> torch.Tensor:
    """The host's KSampler; returns the latent [B, 16, T, H, W]."""
    (out,) = nodes.common_ksampler(model, **sampling_inputs(steps=steps, **how))
    return out["samples"]


def count_calls(model: Any) -> tuple[Any, list[int]]:
    """(clone of model, list that gets the batch size of every call of its transformer)."""
    batches: list[int] = []

    def count(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batches.append(x.shape[0])
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, batches
