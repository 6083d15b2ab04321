"""The arithmetic of a forward's cost: operations as torch counts them in the host's own networks, and their weights."""

from __future__ import annotations

import sys
from typing import Any

import comfy.ldm.cogvideo.model
import comfy.ldm.wan.model
import comfy.ops
import pytest
import torch
from hosting import REPOSITORY, module
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(REPOSITORY / "bench"))

import cost

attention = module("srd_core.attention")

WAN_TINY = cost.Network("tiny Wan", cost.WAN, 256, 640, 3, 2)
COG_TINY = cost.Network("tiny CogVideoX", cost.COGVIDEOX, 128, 512, 3, 2)
SMALL, LARGE = cost.Size(64, 48, 5), cost.Size(832, 480, 81)
BUILT_IN = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


def wan(network: Any) -> Any:
    return comfy.ldm.wan.model.WanModel(
        dim=network.dim, ffn_dim=network.ffn, num_heads=network.heads, num_layers=network.layers, **BUILT_IN
    )


def cogvideox(network: Any) -> Any:
    return comfy.ldm.cogvideo.model.CogVideoXTransformer3DModel(
        num_attention_heads=network.heads, num_layers=network.layers, use_rotary_positional_embeddings=True, **BUILT_IN
    )


def counted(model: Any, network: Any, size: Any) -> float:
    """Operations of one forward as torch counts them: on tensors without data, so that any size costs nothing."""
    x = torch.empty(1, cost.CHANNELS, *size.latent, device="meta")
    context = torch.empty(1, network.text_tokens, cost.TEXT_DIM, device="meta")
    function = attention.attention.attention_pytorch
    options = {attention.OVERRIDE: lambda _, *args, **how: function(*args, **how)}
    with FlopCounterMode(display=False) as counter:
        out = model(x, torch.empty(1, device="meta"), context=context, transformer_options=options)
    assert out.shape == x.shape
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=str)
@pytest.mark.parametrize("network", [WAN_TINY, cost.WAN_14B, cost.WAN_1_3B], ids=lambda network: network.name)
def test_operations_of_a_wan_are_those_that_torch_counts(network: Any, size: Any) -> None:
    assert cost.forward_flops(network, size) == counted(wan(network), network, size)


@pytest.mark.parametrize("size", [SMALL, cost.Size(720, 480, 49)], ids=str)
@pytest.mark.parametrize("network", [COG_TINY, cost.COGVIDEOX_5B, cost.COGVIDEOX_2B], ids=lambda network: network.name)
def test_operations_of_a_cogvideox_are_those_that_torch_counts(network: Any, size: Any) -> None:
    assert cost.forward_flops(network, size) == counted(cogvideox(network), network, size)


@pytest.mark.parametrize("network", [cost.WAN_14B, cost.WAN_1_3B], ids=lambda network: network.name)
def test_weights_are_those_of_the_host_s_wan_up_to_biases_and_norms(network: Any) -> None:
    built = sum(parameter.numel() for parameter in wan(network).parameters())
    assert cost.weights(network) == pytest.approx(built, rel=2e-3)


@pytest.mark.parametrize("network", [cost.COGVIDEOX_5B, cost.COGVIDEOX_2B], ids=lambda network: network.name)
def test_weights_are_those_of_the_host_s_cogvideox_up_to_biases_and_norms(network: Any) -> None:
    built = sum(parameter.numel() for parameter in cogvideox(network).parameters())
    assert cost.weights(network) == pytest.approx(built, rel=2e-3)


def test_a_size_knows_its_latent_and_its_tokens() -> None:
    size = cost.Size(832, 480, 81)
    assert size.latent == (21, 60, 104) and size.tokens == 21 * 30 * 52 and str(size) == "832x480x81"
