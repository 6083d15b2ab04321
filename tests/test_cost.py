"""The arithmetic of a run's cost: operations as torch counts them in the host's own networks, seconds as runs add up."""

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

import cost  # noqa: E402

attention = module("srd_core.attention")

WAN_TINY = cost.Network("tiny Wan", cost.WAN, 256, 640, 3, 2)
COG_TINY = cost.Network("tiny CogVideoX", cost.COGVIDEOX, 128, 512, 3, 2)
SMALL, LARGE = cost.Size(64, 48, 5), cost.Size(832, 480, 81)
BUILT_IN = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


def wan(network: Any) -> Any:
    return comfy.ldm.wan.model.WanModel(dim=network.dim, ffn_dim=network.ffn, num_heads=network.heads,
                                        num_layers=network.layers, **BUILT_IN)  # fmt: skip


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
def test_operations_of_a_wan_are_those_that_torch_counts(network: Any, size: Any):
    assert cost.forward_flops(network, size).total == counted(wan(network), network, size)


@pytest.mark.parametrize("size", [SMALL, cost.Size(720, 480, 49)], ids=str)
@pytest.mark.parametrize("network", [COG_TINY, cost.COGVIDEOX_5B, cost.COGVIDEOX_2B], ids=lambda network: network.name)
def test_operations_of_a_cogvideox_are_those_that_torch_counts(network: Any, size: Any):
    assert cost.forward_flops(network, size).total == counted(cogvideox(network), network, size)


def test_a_reused_forward_is_one_without_blocks():
    without = cost.replace(WAN_TINY, layers=0)
    assert cost.reused_flops(WAN_TINY, SMALL).total == counted(wan(without), without, SMALL)


@pytest.mark.parametrize("network", [cost.WAN_14B, cost.WAN_1_3B], ids=lambda network: network.name)
def test_weights_are_those_of_the_host_s_wan_up_to_biases_and_norms(network: Any):
    built = sum(parameter.numel() for parameter in wan(network).parameters())
    assert cost.weights(network) == pytest.approx(built, rel=2e-3)


@pytest.mark.parametrize("network", [cost.COGVIDEOX_5B, cost.COGVIDEOX_2B], ids=lambda network: network.name)
def test_weights_are_those_of_the_host_s_cogvideox_up_to_biases_and_norms(network: Any):
    built = sum(parameter.numel() for parameter in cogvideox(network).parameters())
    assert cost.weights(network) == pytest.approx(built, rel=2e-3)


def test_a_size_knows_its_latent_and_its_tokens():
    size = cost.Size.parse("832x480x81")
    assert size.latent == (21, 60, 104) and size.tokens == 21 * 30 * 52 and str(size) == "832x480x81"


@pytest.mark.parametrize("text", ["832x480", "832x480x80", "830x480x81", "axbxc", "0x480x81"])
def test_a_size_that_makes_no_patches_is_refused_with_what_to_write(text: str):
    with pytest.raises(ValueError, match="multiples of 16|WIDTHxHEIGHTxFRAMES"):
        cost.Size.parse(text)


def test_at_the_balance_self_attention_costs_as_much_as_the_rest():
    tokens = round(cost.balance(cost.WAN_14B))
    block = cost._block(cost.WAN_14B, tokens)
    assert block.attention == pytest.approx(block.linear, rel=1e-3)
    assert cost._block(cost.WAN_14B, 2 * tokens).attention > cost._block(cost.WAN_14B, 2 * tokens).linear


# --- seconds ------------------------------------------------------------------------------------------------------------


def test_a_run_is_its_steps_and_its_hand_over():
    step = cost.StepSeconds(sketch=10, render=2, render_reused=0.5, hand_over=3)
    assert cost.run_seconds(cost.Plan(50, 10), step) == 10 * 10 + 40 * 2 + 3
    assert cost.run_seconds(cost.Plan(50, 10, render_reused=26), step) == 10 * 10 + 14 * 2 + 26 * 0.5 + 3
    assert cost.speed_up(cost.Plan(50, 50), step) == 1


def test_a_run_of_one_model_has_no_hand_over():
    step = cost.StepSeconds(sketch=10, render=2, hand_over=3)
    assert cost.run_seconds(cost.Plan(50, 50), step) == 500 and cost.run_seconds(cost.Plan(50, 0), step) == 100


def test_a_fraction_of_a_step_is_the_mean_of_both_neighbours():
    step = cost.StepSeconds(sketch=10, render=2, hand_over=3)
    mixed = 0.4 * cost.run_seconds(cost.Plan(50, 7), step) + 0.6 * cost.run_seconds(cost.Plan(50, 8), step)
    assert cost.run_seconds(cost.Plan(50, 7.6), step) == pytest.approx(mixed)


@pytest.mark.parametrize("parts", [{"sketch": 51}, {"sketch": 10, "sketch_reused": 11}, {"sketch": 10, "render_reused": 41}])
def test_a_plan_with_more_steps_in_a_part_than_in_the_whole_is_refused(parts: dict[str, float]):
    with pytest.raises(ValueError, match="more steps"):
        cost.Plan(50, **parts)


def test_operations_of_a_run_follow_its_steps_its_cache_and_its_guidance():
    sketch, render = (cost.forward_flops(network, SMALL).total for network in (WAN_TINY, COG_TINY))
    networks = (WAN_TINY, COG_TINY, SMALL)
    assert cost.run_flops(cost.Plan(50, 10), *networks).total == pytest.approx(20 * sketch + 80 * render)
    assert cost.run_flops(cost.Plan(50, 10), *networks, (2, 1)).total == pytest.approx(20 * sketch + 40 * render)
    reused = cost.run_flops(cost.Plan(50, 10, render_reused=26), *networks).total
    assert reused == pytest.approx(20 * sketch + 28 * render + 52 * cost.reused_flops(COG_TINY, SMALL).total)
    skipped = cost.run_flops(cost.Plan(50, 10, render_reused=26), *networks, skips_all=True).total
    assert skipped == pytest.approx(20 * sketch + 28 * render)


def test_rates_are_found_again_from_the_seconds_that_they_make():
    true = cost.Rates(linear=3e12, attention=1e12)
    sizes = [cost.Size(256, 256, frames) for frames in (5, 17, 41)]
    measured = [(flops, true.seconds(flops)) for flops in (cost.forward_flops(cost.WAN_1_3B, size) for size in sizes)]
    found = cost.fit_rates(measured)
    assert found.linear == pytest.approx(3e12) and found.attention == pytest.approx(1e12)


def test_one_measured_step_gives_one_rate():
    flops = cost.forward_flops(cost.WAN_14B, LARGE)
    found = cost.fit_rates([(flops, 8.0)])
    assert found.linear == found.attention and found.seconds(flops) == pytest.approx(8.0)


def test_rates_are_never_negative():
    small, large = (cost.forward_flops(cost.WAN_1_3B, size) for size in (SMALL, LARGE))
    found = cost.fit_rates([(small, 1.0), (large, 1.0)])  # nothing has two positive rates that do this
    assert found.linear == found.attention > 0


@pytest.mark.parametrize("measured", [[], [(cost.Flops(1, 1), 0.0)]])
def test_rates_of_nothing_are_refused(measured: list[Any]):
    with pytest.raises(ValueError, match="measured step"):
        cost.fit_rates(measured)


def test_the_paper_s_720p_follows_from_its_480p_within_a_tenth():
    """Two published sizes on one card: one rate from the smaller, for both models; the larger runs a little better."""
    for network, at_480p, at_720p in ((cost.WAN_14B, 841, 3130), (cost.WAN_1_3B, 158, 637)):
        first, second = (cost.forward_flops(network, size).times(100) for size in (LARGE, cost.Size(1280, 720, 81)))
        assert cost.fit_rates([(first, at_480p)]).seconds(second) == pytest.approx(at_720p, rel=0.1)


def test_a_longer_video_keeps_its_picture():
    assert cost.longer(LARGE, 2) == cost.Size(832, 480, 165) and cost.longer(LARGE, 2).latent == (42, 60, 104)
