"""The hand-over between the latent spaces of CogVideoX 5B and 2B, in real runs of the host."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from hosting import module
from test_cogvideox import (  # noqa: F401
    cogvideox,
    files,
    folders,
    networks,
    oracle,
    random,
    relative,
    sample,
    text,
)
from test_cooperation import sr_model
from test_reuse import asked_for, compiled_blocks, compiled_whole, counting, patched_blocks

Report = module("srd_core.report.data").Report
reuse, teacache = module("srd_core.teacache.host"), module("srd_core.teacache.plan")
modulation = module("srd_core.teacache.cogvideox").modulation
R = oracle.SCALE["2b"] / oracle.SCALE["5b"]
STEPS = 20


def in_another_space(folders: dict[str, Path], ratio: float = R) -> Any:  # noqa: F811
    """The 5B, loaded again and made to live in a latent space scaled by ``ratio``: x / ratio goes in, x0 * ratio out."""

    def apply_model(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(x / ratio, t / ratio, *args, **kwargs) * ratio

    model = cogvideox.load(folders["5b"])
    latent_format = comfy.latent_formats.CogVideoX()
    latent_format.scale_factor = oracle.SCALE["5b"] * ratio
    model.add_object_patch("latent_format", latent_format)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "space", apply_model)
    return model


def noise(batch: int = 1) -> torch.Tensor:
    return random(batch, 16, 2, 8, 12, seed=4)


@pytest.mark.parametrize("switch", [0, 1, 5, 12])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "ddim"])
def test_the_same_network_in_another_latent_space_gives_the_run_without_a_hand_over(
    sampler: str,
    switch: int,
    folders: dict[str, Path],  # noqa: F811
) -> None:
    model = cogvideox.load(folders["5b"])
    plain = sample(model, noise(), STEPS, sampler=sampler)
    mixed = sample(sr_model(model, in_another_space(folders), switch), noise(), STEPS, sampler=sampler)
    assert relative(mixed, plain) <= 1e-5


HOW: dict[str, dict[str, Any]] = {
    "a sampler that looks at the unguided prediction": {"sampler": "euler_cfg_pp"},
    "a sampler that calls twice a step": {"sampler": "heun"},
    "batch 2": {"batch": 2},
    "a prompt with a range of steps": {
        "positive": [[text(1), {}], [text(3), {"start_percent": 0.3, "end_percent": 0.8}]]
    },
    "cfg 1": {"cfg": 1.0},
}


@pytest.mark.parametrize("how", HOW)
def test_everything_outside_stays_in_the_sketchs_space_with(how: str, folders: dict[str, Path]) -> None:  # noqa: F811
    settings = dict(HOW[how])
    start = noise(settings.pop("batch", 1))
    model = cogvideox.load(folders["5b"])
    plain = sample(model, start, STEPS, **settings)
    mixed = sample(sr_model(model, in_another_space(folders), 5), start, STEPS, **settings)
    assert relative(mixed, plain) <= 2e-5


def test_masks_and_denoise_and_previews_are_in_the_sketchs_space(folders: dict[str, Path]) -> None:  # noqa: F811
    import comfy.sample

    model = cogvideox.load(folders["5b"])
    video, mask = random(1, 16, 2, 8, 12, seed=9), torch.zeros(1, 1, 1, 8, 12)
    mask[..., 6:] = 1.0

    def run(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        out = comfy.sample.sample(
            model,
            noise(),
            STEPS,
            6.0,
            "euler",
            "simple",
            [[text(1), {}]],
            [[text(2), {}]],
            video,
            denoise=0.6,
            noise_mask=mask,
            callback=lambda step, x0, x, total: seen.append(x0.clone()),
            seed=0,
            disable_pbar=True,
        )
        return out, seen

    plain, previews = run(model)
    mixed, mixed_previews = run(sr_model(model, in_another_space(folders), 7))
    assert relative(mixed, plain) <= 2e-5
    assert relative(mixed[..., :6], video[..., :6]) <= 1e-5
    assert len(previews) == len(mixed_previews) == STEPS
    assert all(relative(a, b) <= 2e-5 for a, b in zip(mixed_previews, previews))


@pytest.mark.parametrize("switch", [3, 7])
def test_5b_then_2b_is_the_hand_written_ddim_hand_over_of_diffusers(
    switch: int,
    networks: dict[str, Any],
    folders: dict[str, Path],  # noqa: F811
) -> None:
    sketch, render = cogvideox.load(folders["5b"]), cogvideox.load(folders["2b"])
    report = Report()
    ours = sample(sr_model(sketch, render, switch, report), noise(), 10, cfg=1.0) * oracle.SCALE["5b"]
    reference = oracle.sample_pair(networks["5b"], networks["2b"], noise(), text(1), 10, switch)
    assert relative(ours, reference) <= 5e-5
    assert [s.stage for s in report.steps] == ["sketch"] * switch + ["render"] * (10 - switch)


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "ddim", "heun", "dpmpp_sde"])
def test_within_5b_the_hand_over_changes_not_a_bit(sampler: str, folders: dict[str, Path]) -> None:  # noqa: F811
    sketch, same = cogvideox.load(folders["5b"]), cogvideox.load(folders["5b"])
    plain = sample(sketch, noise(), 8, sampler=sampler)
    for switch in (0, 3, 8):
        assert torch.equal(sample(sr_model(sketch, same, switch), noise(), 8, sampler=sampler), plain)
    assert torch.equal(sample(sketch, noise(), 8, sampler=sampler), plain)


def test_a_2b_as_loaded_by_the_host_does_not_fit_a_corrected_5b_and_the_message_names_the_fix(
    networks: dict[str, Any],
    folders: dict[str, Path],  # noqa: F811
) -> None:
    import comfy.sd

    state_dict = dict(networks["2b"].state_dict())
    files.rename(state_dict)
    uncorrected = comfy.sd.load_diffusion_model_state_dict(state_dict)
    with pytest.raises(
        ValueError, match="noise schedules .variance exploding and DDPM.*CogVideoX Sampling Fix.*on the render"
    ):
        sr_model(cogvideox.load(folders["5b"]), uncorrected, 3)


# --- TeaCache ---------------------------------------------------------------------------------------------------------


def slow(model: Any) -> tuple[Any, list[int]]:
    """(the MODEL with a time embedding that changes as little from step to step as a trained one's, list that gets every
    attention call: one a block).
    """
    network, calls = model.model.diffusion_model, []
    network.time_embedding_linear_1.weight.data.mul_(0.05)
    network.time_embedding_linear_1.bias.data.fill_(1.0)

    def count(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = count
    return model, calls


def cached(model: Any, threshold: float = 0.3) -> Any:
    return reuse.with_teacache(model, reuse.TeaCache(threshold))


@pytest.mark.parametrize("kind", ["2b", "5b", "1.5"])
def test_a_plan_that_reuses_nothing_changes_nothing_and_one_that_does_runs_no_block_there(
    kind: str,
    folders: dict[str, Path],  # noqa: F811
) -> None:
    model, calls = slow(cogvideox.load(folders[kind]))
    blocks = len(model.model.diffusion_model.blocks)
    plain = sample(model, noise(), STEPS)
    assert len(calls) == STEPS * blocks
    assert torch.equal(sample(cached(model, 1e-12), noise(), STEPS), plain)
    calls.clear()
    report = Report()
    out = sample(sr_model(model, cached(model), 0, report), noise(), STEPS)
    reused = report.reused("render")
    assert 0 < reused < STEPS - 2 and len(calls) == (STEPS - reused) * blocks
    assert not report.steps[0].reused and not report.steps[-1].reused
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert torch.equal(sample(model, noise(), STEPS), plain)
    assert type(model.model.diffusion_model.blocks) is torch.nn.ModuleList, "nothing is left on the network"


def test_the_plan_of_a_render_in_another_space_is_made_from_the_noise_levels_that_it_sees(
    folders: dict[str, Path],  # noqa: F811
) -> None:
    sketch, render = cogvideox.load(folders["5b"]), slow(cogvideox.load(folders["2b"]))[0]
    report, after = Report(), 5
    sample(sr_model(sketch, cached(render), after, report), noise(), STEPS)
    sampling = render.get_model_object("model_sampling")
    levels = torch.tensor(report.sigmas[after:-1]) * R
    d = teacache.distances(modulation(render.model.diffusion_model, sampling.timestep(levels).float(), "e"))
    expected = teacache.skip_plan(d, teacache.COGVIDEOX[0].e, 0.3)
    assert any(expected)
    assert [s.reused for s in report.steps] == [False] * after + expected


def reused_by(model: Any) -> tuple[torch.Tensor, int]:
    """(latent, how many steps ran no block) of a run of a cached MODEL."""
    report = Report()
    out = sample(sr_model(model, model, STEPS, report), noise(), STEPS)
    return out, report.reused("sketch")


def loaded(model: Any) -> Any:
    """The network of a MODEL that the host has loaded."""
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model


def test_a_network_asks_for_replacements_only_while_a_cached_model_is_loaded(folders: dict[str, Path]) -> None:  # noqa: F811
    model, _ = slow(cogvideox.load(folders["2b"]))
    network = model.model.diffusion_model
    plain, names = network.blocks, list(network.state_dict())
    ours = cached(model)
    assert loaded(ours).blocks is not plain
    assert list(network.state_dict()) == names and list(network.blocks) == list(plain), "the same modules and names"
    assert loaded(cached(ours)).blocks is not plain
    assert loaded(model).blocks is plain
    loaded(ours)
    comfy.model_management.unload_all_models()
    assert network.blocks is plain
    loaded(ours)
    assert loaded(cached(ours, 0.0)).blocks is plain
    loaded(ours)
    assert loaded(compiled_whole(ours)).blocks is plain


def test_a_cached_model_whose_network_was_taken_over_by_another_computes_and_says_so(
    folders: dict[str, Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, calls = slow(cogvideox.load(folders["2b"]))
    plain = sample(model, noise(), STEPS)
    calls.clear()
    ours = cached(model)

    def take_over(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if len(calls) == len(model.model.diffusion_model.blocks):
            loaded(model)
        return executor(*args, **kwargs)

    ours.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "take over", take_over)
    with caplog.at_level(logging.INFO):
        out = sample(ours, noise(), STEPS)
    assert torch.equal(out, plain) and len(calls) == STEPS * len(model.model.diffusion_model.blocks)
    assert any("TeaCache: the blocks are another MODEL's" in record.getMessage() for record in caplog.records)


def test_a_clone_for_another_gpu_asks_by_itself_and_computes_with_its_own_weights(folders: dict[str, Path]) -> None:  # noqa: F811
    model, _ = slow(cogvideox.load(folders["2b"]))
    ours = cached(model)
    loaded(ours)
    twin = ours.deepclone_multigpu()
    slow(twin)
    expected, count = reused_by(cached(model))
    assert count
    for parameter in loaded(ours).parameters():
        parameter.zero_()
    calls: list[int] = []
    twin.model_options["transformer_options"]["optimized_attention_override"] = lambda function, *args, **kwargs: (
        calls.append(1),
        function(*args, **kwargs),
    )[1]
    assert torch.equal(sample(twin, noise(), STEPS), expected)
    assert len(calls) == (STEPS - count) * len(twin.model.diffusion_model.blocks)


def test_patched_weights_are_in_what_is_computed_and_reused(folders: dict[str, Path]) -> None:  # noqa: F811
    model, calls = slow(cogvideox.load(folders["2b"]))
    key = "diffusion_model.blocks.0.ff_out.weight"
    weight = model.model.diffusion_model.blocks[0].ff_out.weight
    patched = model.clone()
    assert patched.add_patches({key: ("diff", (torch.full_like(weight, 0.01),))}, 1.0)
    plain = sample(patched, noise(), STEPS)
    assert relative(plain, sample(model, noise(), STEPS)) > 1e-4
    assert torch.equal(sample(cached(patched, 1e-12), noise(), STEPS), plain)
    expected, count = reused_by(cached(patched))
    assert count and torch.equal(sample(cached(patched), noise(), STEPS), expected)
    assert not torch.equal(expected, sample(cached(model), noise(), STEPS))


@pytest.mark.parametrize("how", [compiled_blocks, patched_blocks])
def test_blocks_that_are_compiled_one_by_one_are_skipped(how: Any, folders: dict[str, Path]) -> None:  # noqa: F811
    torch._dynamo.reset()
    backend, graphs = counting()
    model = module("srd_core.attention").with_attention(slow(cogvideox.load(folders["2b"]))[0], "pytorch")
    expected, count = reused_by(cached(model))
    found, found_count = reused_by(cached(how(model, backend)))
    assert graphs and count == found_count > 0 and relative(found, expected) <= 1e-5


def test_a_network_that_is_compiled_as_a_whole_runs_as_without_the_cache(folders: dict[str, Path]) -> None:  # noqa: F811
    torch._dynamo.reset()
    model = compiled_whole(
        module("srd_core.attention").with_attention(slow(cogvideox.load(folders["2b"]))[0], "pytorch")
    )
    plain = sample(model, noise(), STEPS)
    found, count = reused_by(cached(model))
    assert torch.equal(found, plain) and count == 0


def test_the_host_is_asked_for_what_the_cache_holds(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    model = cogvideox.load(folders["2b"])
    wide = random(1, 16, 3, 10, 14, seed=4)
    held = reuse.held_bytes(cached(model), wide.shape, 2)
    assert held == 2 * (3 * 5 * 7) * model.model.diffusion_model.dim * 4
    (plain,), (found,) = (asked_for(lambda m=m: sample(m, wide, 1), monkeypatch) for m in (model, cached(model)))
    assert found - plain == pytest.approx(held, rel=1e-6)
