"""Where a patch of the video lies: sines that are added to 2B's patches, a rotary embedding for 5B's attention."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import torch
from einops import rearrange, repeat

from ..families import ROTARY, SINCOS
from .layout import HEAD, KEY, Layout


def position_patches(network: Any, layout: Layout) -> dict[str, Any]:
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
    """((top, left), (bottom, right)) of a video of rows x columns, fitted into the training size and centred."""
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

    A quarter of the channels turns with time, three eighths with height and with width. Sizes are in patches.
    """
    (top, left), (bottom, right) = resized_crop(rows, columns, layout.rows, layout.columns)
    angles = []
    for axis, channels, positions in (
        ("t", HEAD // 4, torch.arange(frames, dtype=torch.float32, device=device)),
        ("h", HEAD // 8 * 3, torch.linspace(top, bottom * (rows - 1) / rows, rows, device=device)),
        ("w", HEAD // 8 * 3, torch.linspace(left, right * (columns - 1) / columns, columns, device=device)),
    ):
        rates = 1.0 / 10000 ** (torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
        along = torch.outer(positions, rates)
        angles.append(repeat(along, f"{axis} c -> (t h w) (c 2)", t=frames, h=rows, w=columns))
    turned = torch.cat(angles, dim=-1)
    return turned.cos(), turned.sin()


def _add_positions(
    layout: Layout, module: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], embeddings: torch.Tensor
) -> torch.Tensor:
    """Forward hook of the host's patch embedding: adds the sines of 2B to the video's part.

    Args: ``inputs`` text [B, tokens, width] and latents [B, frames, C, height, width]; ``embeddings``
    [B, tokens + patches, dim], text first. Every axis has its own channels, so three small tables do.
    """
    text, latents = inputs
    (frames, _, height, width), dim = latents.shape[1:], embeddings.shape[-1]
    rows, columns = height // 2, width // 2
    # A view, for the sum is made in place.
    video = embeddings[:, text.shape[1] :].unflatten(1, (frames, rows, columns))
    quarter, spatial = dim // 4, dim * 3 // 8
    for length, first, channels, scale, along in (
        (frames, 0, quarter, layout.temporal_scale, "t c -> t 1 1 c"),
        (columns, quarter, spatial, layout.spatial_scale, "w c -> 1 1 w c"),
        (rows, quarter + spatial, spatial, layout.spatial_scale, "h c -> 1 h 1 c"),
    ):
        table = _sines(length, channels, scale, embeddings.device, embeddings.dtype)
        video[..., first : first + channels] += rearrange(table, along)
    return embeddings


@functools.lru_cache(maxsize=32)  # on the device: a copy in every forward would wait for it
def _sines(length: int, channels: int, scale: float, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[length, channels]: sines, then cosines, of the positions divided by ``scale``; float64 on the CPU."""
    rates = 1.0 / 10000 ** (torch.arange(channels // 2, dtype=torch.float64) / (channels / 2))
    # Positions are divided in float32, as the authors do.
    angles = torch.outer((torch.arange(length, dtype=torch.float32) / scale).double(), rates)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(device, dtype)
