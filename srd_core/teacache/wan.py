"""TeaCache on Wan: the network asks for a replacement in front of every block, and a call brings its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.ldm.wan.model
import torch

from .blocks import Adapter, Keep, replacements, through_in_float32
from .plan import Table, wan_table


def table(network: Any, x: torch.Tensor) -> tuple[Table, str]:
    """Its coefficients, and a sentence where they are not its own; ``x`` [B, C, T, H, W] the latent."""
    return wan_table(network.dim, network.in_dim > network.out_dim, x.shape[-1] * x.shape[-2])


@torch.no_grad()
def modulation(network: Any, timesteps: torch.Tensor, form: str) -> torch.Tensor:
    """The time embedding (form e) or its projection (e0) for timesteps [n] -> [n, dim] or [n, 6 dim]."""
    x = comfy.ldm.wan.model.sinusoidal_embedding_1d(network.freq_dim, timesteps.flatten()).float()
    return through_in_float32([*network.time_embedding, *(network.time_projection if form == "e0" else ())], x)


def tokens(network: Any, shape: Sequence[int]) -> int:
    """Of one row of a latent [B, C, T, H, W]; those of reference pictures are not counted."""
    return math.prod(-(-size // patch) for size, patch in zip(shape[2:], network.patch_size))


@contextlib.contextmanager
def in_place(network: Any, call: dict[str, Any], residual: torch.Tensor | None, keep: Keep) -> Iterator[None]:
    """For the forward with the arguments ``call``, which gets other options."""
    options = call["transformer_options"]
    replaced = options.get("patches_replace", {})
    others = replaced.get("dit", {})
    ours = replacements(len(network.blocks), others, residual, keep)
    call["transformer_options"] = {**options, "patches_replace": {**replaced, "dit": {**others, **ours}}}
    yield


ADAPTER = Adapter(table, modulation, tokens, in_place)
