"""The family's VAE: the host's Wan 2.1 layout at a tiny width, trained as a 2-D network.

The latent is independent from block to block, so of every causal 3x3x3 kernel only the slice of the current frame is
used, and of the time convolutions only the block's own frames; the other slices, and the attention's output, stay zero.
The folded functions below equal the host's encode and decode (`check`), and train an order of magnitude faster.
A `still` is one frame of block 0; a block is four frames.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 8


def build(width: int, seed: int) -> Any:
    """The host's WanVAE (float32) with fresh weights in the slices that we use and zeros elsewhere."""
    from comfy.ldm.wan.vae import AttentionBlock, WanVAE

    model = WanVAE(dim=width, z_dim=16, temperal_downsample=[False, True, True])
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("gamma"):
            continue  # ones already
        if p.ndim == 1:
            # never zero: RMS_norm has no gradient where a flat gray picture would give it an all-zero vector
            p.data.normal_(0.0, 0.2, generator=generator)
            continue
        p.data.zero_()
        used = p.data if p.ndim == 4 else p.data[:, :, -2:] if _pairs(name) else p.data[:, :, -1:]
        fan_in = used[0].numel()
        gain = 0.5 if ".residual.6." in name else 1.0
        used.normal_(0.0, gain / fan_in**0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, AttentionBlock):
            module.proj.weight.data.zero_()
            module.proj.bias.data.zero_()
            module.requires_grad_(False)
    return model


def _pairs(name: str) -> bool:
    """The encoder's time convolutions join two frames; the decoder's split one."""
    return name.startswith("encoder") and "time_conv" in name


def _conv(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """A causal 3-D convolution's current-frame slice, on [N, C, H, W]."""
    weight = conv.weight[:, :, -1]
    return F.conv2d(x, weight, conv.bias, padding=weight.shape[-1] // 2)


def _residual(block: Any, x: torch.Tensor) -> torch.Tensor:
    norm1, _, conv1, norm2, _, _, conv2 = block.residual
    y = _conv(conv1, F.silu(_norm(norm1, x)))
    y = _conv(conv2, F.silu(_norm(norm2, y)))
    return y + (x if isinstance(block.shortcut, nn.Identity) else _conv(block.shortcut, x))


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=1) * norm.scale * norm.gamma.squeeze(-1)


def _head(head: Any, x: torch.Tensor) -> torch.Tensor:
    norm, _, conv = head
    return _conv(conv, F.silu(_norm(norm, x)))


def encode(model: Any, frames: torch.Tensor, still: bool) -> torch.Tensor:
    """Frames [B, T, 3, H, W] in -1..1, T = 1 (still) or 4 -> VAE-space latent [B, 16, H/8, W/8]."""
    from comfy.ldm.wan.vae import Resample

    encoder, batch = model.encoder, frames.shape[0]
    x = _conv(encoder.conv1, frames.flatten(0, 1))
    for layer in encoder.downsamples:
        if not isinstance(layer, Resample):
            x = _residual(layer, x)
            continue
        x = layer.resample(x)
        if layer.mode == "downsample3d" and not still:
            pair = layer.time_conv.weight[:, :, -2:, 0, 0]  # [out, in, 2]
            x = x.view(batch, -1, 2, *x.shape[1:]).transpose(2, 3).reshape(-1, 2 * x.shape[1], *x.shape[2:])
            x = F.conv2d(x, pair.flatten(1)[..., None, None], layer.time_conv.bias)
    x = _residual(encoder.middle[2], _residual(encoder.middle[0], x))
    return _conv(model.conv1, _head(encoder.head, x)).chunk(2, dim=1)[0]


def decode(model: Any, z: torch.Tensor, still: bool) -> torch.Tensor:
    """VAE-space latent [B, 16, h, w] -> frames [B, T, 3, 8h, 8w] in about -1..1, T = 1 (still) or 4."""
    from comfy.ldm.wan.vae import Resample

    decoder, batch = model.decoder, z.shape[0]
    x = _conv(decoder.conv1, _conv(model.conv2, z))
    x = _residual(decoder.middle[2], _residual(decoder.middle[0], x))
    for layer in decoder.upsamples:
        if not isinstance(layer, Resample):
            x = _residual(layer, x)
            continue
        if layer.mode == "upsample3d" and not still:
            x = _conv(layer.time_conv, x).unflatten(1, (2, -1)).flatten(0, 1)
        x = layer.resample(x)
    return _head(decoder.head, x).unflatten(0, (batch, -1))


@torch.no_grad()
def check(model: Any, seed: int = 0) -> float:
    """Largest difference between the folded functions and the host's own encode and decode of a 9-frame clip."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.rand(1, 3, 9, 32, 32, generator=generator) * 2 - 1
    frames = video.transpose(1, 2)
    z = model.encode(video)
    encoded = torch.stack([encode(model, part, part.shape[1] == 1) for part in frames.split((1, 4, 4), dim=1)], 2)
    decoded = torch.cat([decode(model, z[:, :, i], i == 0) for i in range(3)], 1)
    back = model.decode(z).transpose(1, 2)
    return max((encoded - z).abs().max().item(), (decoded - back).abs().max().item())
