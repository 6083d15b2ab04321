"""What stands in the place of a network's transformer blocks during a cached call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ops
import torch

from .plan import Table

Keep = Callable[[torch.Tensor], None]
# (what goes into the block, {"original_block": the block}) -> what comes out: the host's block replacement. "img" [B,
# tokens, dim] is what is cached.
Replacement = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
Replacements = dict[tuple[str, int], Replacement]


@dataclass(frozen=True)
class Adapter:
    """How one family is cached. Its forward is: embed, blocks one after the other, head."""

    table: Callable[[Any, torch.Tensor], tuple[Table, str]]  # (network, x) -> coefficients and what to say of them
    modulation: Callable[[Any, torch.Tensor, str], torch.Tensor]  # (network, timesteps [n], form) -> [n, ...] float32
    tokens: Callable[[Any, Sequence[int]], int]  # (network, latent's shape [B, C, T, H, W]) -> of one row
    # (network, the forward's arguments, residual or None to compute, what takes the new residual): for one forward
    in_place: Callable[[Any, dict[str, Any], torch.Tensor | None, Keep], contextlib.AbstractContextManager[None]]
    # Where the host's network asks for no replacement: what makes it ask while its MODEL is loaded, and undoes that.
    prepare: Callable[[Any], None] | None = None
    restore: Callable[[Any], None] | None = None
    is_ready: Callable[[Any], bool] = lambda _: True  # whether this network asks


def replacements(blocks: int, others: Replacements, residual: torch.Tensor | None, keep: Keep) -> Replacements:
    """For one call of a network of so many blocks: run no block and add ``residual`` [B, tokens, dim], or run all.

    Without a residual the ``others``' replacements run too, and ``keep`` gets what the blocks add up to.
    """
    return _computing(blocks, others, keep) if residual is None else _reusing(blocks, residual)


def _reusing(blocks: int, residual: torch.Tensor) -> Replacements:
    """The last block's place adds the residual."""

    def skip(args: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        return args

    def add(args: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
        return {**args, "img": args["img"] + residual.to(args["img"])}

    return {("double_block", i): skip if i < blocks - 1 else add for i in range(blocks)}


def _computing(blocks: int, others: Replacements, keep: Keep) -> Replacements:
    """The first block's place notes what goes in, the last one's what came of it."""
    before: list[torch.Tensor] = []

    def run(i: int, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        if i == 0:
            with pause_malloc_graph():
                before.append(args["img"].clone())
        other = others.get(("double_block", i))
        out = other(args, extra) if other else extra["original_block"](args)
        if i == blocks - 1:
            with pause_malloc_graph():
                keep(out["img"] - before.pop())
        return out

    return {("double_block", i): partial(run, i) for i in {0, blocks - 1}}


def pause_malloc_graph() -> contextlib.AbstractContextManager[Any]:
    """Newer hosts give what a forward allocates out again at the next one; what this block allocates stays."""
    pause = getattr(comfy.model_prefetch, "pause_malloc_graph", None)
    return pause() if pause else contextlib.nullcontext()


def through_in_float32(layers: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """The layers on x [n, ...], all in float32: half precision rounds by as much as two steps differ.

    The host's layers cast their weights (with LoRA, from any storage) to the input's type by this method; those that
    multiply in fp8 (weight_dtype fp8_e4m3fn_fast) would cast the input instead, and get the plain layers' one.
    """
    for layer in layers:
        if isinstance(layer, comfy.ops.fp8_ops.Linear):
            x = comfy.ops.manual_cast.Linear.forward_comfy_cast_weights(layer, x)
        else:
            x = getattr(layer, "forward_comfy_cast_weights", layer)(x)
    return x
