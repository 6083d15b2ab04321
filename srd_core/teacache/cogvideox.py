"""TeaCache on CogVideoX.

The host's network asks for no replacement of its blocks, and torch's hooks can't keep a block from running. A `forward`
of each block's own could, but inside what torch compiles of a block, where a decision is taken once. So while a cached
MODEL is loaded its blocks are in a list, with the same modules under the same names, that asks for replacements during
a cached call. The host puts it there and takes it away again (PatcherInjection), on every network that it loads for the
MODEL.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import comfy.ldm.cogvideo.model
import torch

from .blocks import Adapter, Keep, Replacement, Replacements, replacements, through_in_float32
from .plan import Table, cogvideox_table

# Of the call that runs in this thread; the host computes with several GPUs at once, each in its thread.
_of_call: ContextVar[Replacements | None] = ContextVar("srdiffusion_teacache_blocks", default=None)


class AskingBlocks(torch.nn.ModuleList):
    """A list of blocks; iterated over in a cached call, it gives what replaces them."""

    def __init__(self, plain: torch.nn.ModuleList) -> None:
        super().__init__(plain)
        self.plain = lambda: plain  # in a function: as a module it would bring a second name for each weight

    def __iter__(self) -> Iterator[Any]:
        blocks, replaced = super().__iter__(), _of_call.get()
        if replaced is None:
            return blocks
        asked = ((block, replaced.get(("double_block", i))) for i, block in enumerate(blocks))
        return (partial(_instead, other, block) if other else block for block, other in asked)


def _instead(
    replacement: Replacement,
    block: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's call by way of its replacement."""

    def original(args: dict[str, Any]) -> dict[str, Any]:
        img, txt = block(hidden_states=args["img"], encoder_hidden_states=args["txt"], **others)
        return {"img": img, "txt": txt}

    out = replacement({"img": hidden_states, "txt": encoder_hidden_states}, {"original_block": original})
    return out["img"], out["txt"]


def prepare(network: Any) -> None:
    """Make it ask."""
    if not is_ready(network):
        network.blocks = AskingBlocks(network.blocks)


def restore(network: Any) -> None:
    """Give it back the host's list."""
    if is_ready(network):
        network.blocks = network.blocks.plain()


def is_ready(network: Any) -> bool:
    """Whether it asks. It does not while another MODEL with the same weights is loaded."""
    return isinstance(network.blocks, AskingBlocks)


@contextlib.contextmanager
def in_place(network: Any, _: dict[str, Any], residual: torch.Tensor | None, keep: Keep) -> Iterator[None]:
    """For the forward that runs inside."""
    token = _of_call.set(replacements(len(network.blocks), {}, residual, keep))
    try:
        yield
    finally:
        _of_call.reset(token)


def table(network: Any, _: torch.Tensor) -> tuple[Table, str]:
    """Its coefficients, and a sentence where they are not its own."""
    return cogvideox_table(network.dim, network.patch_size_t or 1)


@torch.no_grad()
def modulation(network: Any, timesteps: torch.Tensor, _: str) -> torch.Tensor:
    """The time embedding for timesteps [n] -> [n, time embedding's width]; it has one form."""
    x = comfy.ldm.cogvideo.model.get_timestep_embedding(
        timesteps, network.time_proj_dim, network.time_proj_flip, network.time_proj_shift
    )
    layers = [network.time_embedding_linear_1, network.time_embedding_act, network.time_embedding_linear_2]
    return through_in_float32(layers, x.float())


def tokens(network: Any, shape: Sequence[int]) -> int:
    """Of one row of a latent [B, C, T, H, W], without those of the text, which are not cached."""
    patches = (network.patch_size_t or 1, network.patch_size, network.patch_size)
    return math.prod(-(-size // patch) for size, patch in zip(shape[2:], patches))


ADAPTER = Adapter(table, modulation, tokens, in_place, prepare, restore, is_ready)
