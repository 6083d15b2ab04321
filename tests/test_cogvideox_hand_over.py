"""The hand-over between the latent spaces of CogVideoX 5B and 2B, in real runs of the host."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.latent_formats
import comfy.model_management
import comfy.sd
import pytest
import torch
from cogvideox_oracle import host_sample as sample
from cogvideox_oracle import random, relative, slow, text
from comfy.patcher_extension import WrappersMP
from hosting import module
from runs import Report, asked_for, cached, reuse, sr_model, wrapped

cogvideox, files = module("srd_core.cogvideox"), module("srd_core.cogvideox.files")
latent, teacache = module("srd_core.latent"), module("srd_core.teacache.plan")
modulation = module("srd_core.teacache.cogvideox").modulation
R = oracle.SCALE["2b"] / oracle.SCALE["5b"]
STEPS, THRESHOLD = 12, 0.3


def in_another_space(folders: dict[str, Path], ratio: float = R) -> Any:
    """The 5B, loaded again and made to live in another latent space: x / ratio goes in, x0 * ratio comes out."""

    def apply_model(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(x / ratio, t / ratio, *args, **kwargs) * ratio

    model = cogvideox.load(folders["5b"])
    latent_format = comfy.latent_formats.CogVideoX()
    latent_format.scale_factor = oracle.SCALE["5b"] * ratio
    model.add_object_patch("latent_format", latent_format)
    return wrapped(model, apply_model, WrappersMP.APPLY_MODEL)


def noise(batch: int = 1) -> torch.Tensor:
    return random(batch, 16, 2, 8, 12, seed=4)


@pytest.mark.parametrize(("sampler", "switch"), [("dpmpp_2m", 5), ("uni_pc", 1), ("ddim", 0)])
def test_the_same_network_in_another_latent_space_gives_the_run_without_a_switch(
    sampler: str, switch: int, folders: dict[str, Path]
) -> None:
    model = cogvideox.load(folders["5b"])
    plain = sample(model, noise(), 8, sampler=sampler)
    mixed = sample(sr_model(model, in_another_space(folders), switch), noise(), 8, sampler=sampler)
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
def test_everything_outside_stays_in_the_sketchs_space_with(how: str, folders: dict[str, Path]) -> None:
    settings = dict(HOW[how])
    start = noise(settings.pop("batch", 1))
    model = cogvideox.load(folders["5b"])
    plain = sample(model, start, 8, **settings)
    mixed = sample(sr_model(model, in_another_space(folders), 3), start, 8, **settings)
    assert relative(mixed, plain) <= 2e-5


def test_masks_and_denoise_and_previews_are_in_the_sketchs_space(folders: dict[str, Path]) -> None:
    model = cogvideox.load(folders["5b"])
    video, mask = random(1, 16, 2, 8, 12, seed=9), torch.zeros(1, 1, 1, 8, 12)
    mask[..., 6:] = 1.0

    def run(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        keep = lambda step, x0, x, total: seen.append(x0.clone())  # noqa: E731
        out = sample(model, noise(), STEPS, latent=video, denoise=0.6, noise_mask=mask, callback=keep)
        return out, seen

    plain, previews = run(model)
    mixed, mixed_previews = run(sr_model(model, in_another_space(folders), 7))
    assert relative(mixed, plain) <= 2e-5
    assert relative(mixed[..., :6], video[..., :6]) <= 1e-5
    assert len(previews) == len(mixed_previews) == STEPS
    assert all(relative(a, b) <= 2e-5 for a, b in zip(mixed_previews, previews))


@pytest.mark.parametrize("switch", [3, 7])
def test_5b_then_2b_is_the_hand_written_ddim_hand_over_of_diffusers(
    switch: int, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    sketch, render = cogvideox.load(folders["5b"]), cogvideox.load(folders["2b"])
    report = Report()
    ours = sample(sr_model(sketch, render, switch, report), noise(), 10, cfg=1.0) * oracle.SCALE["5b"]
    reference = oracle.sample_pair(networks["5b"], networks["2b"], noise(), text(1), 10, switch)
    assert relative(ours, reference) <= 5e-5
    assert [s.stage for s in report.steps] == ["sketch"] * switch + ["render"] * (10 - switch)


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_sde"])
def test_within_5b_the_switch_changes_not_a_bit(sampler: str, folders: dict[str, Path]) -> None:
    sketch, same = cogvideox.load(folders["5b"]), cogvideox.load(folders["5b"])
    how: dict[str, Any] = {"steps": 8, "cfg": 1.0, "sampler": sampler}
    plain = sample(sketch, noise(), **how)
    assert torch.equal(sample(sr_model(sketch, same, 3), noise(), **how), plain)
    assert torch.equal(sample(sketch, noise(), **how), plain)


def test_a_2b_as_the_host_loads_it_does_not_fit_and_the_message_names_the_fix(
    networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    state_dict = dict(networks["2b"].state_dict())
    files.rename(state_dict)
    uncorrected = comfy.sd.load_diffusion_model_state_dict(state_dict)
    with pytest.raises(
        ValueError, match="noise schedules .variance exploding and DDPM.*CogVideoX Sampling Fix.*on the render"
    ):
        sr_model(cogvideox.load(folders["5b"]), uncorrected, 3)


@pytest.mark.parametrize("kind", [latent.FLOW, latent.VARIANCE_EXPLODING], ids=["flow", "exploding"])
def test_the_map_takes_a_noisy_latent_to_what_the_render_would_have_seen(kind: str) -> None:
    clean, noise = random(3, 2, 2, 2).double(), random(3, 2, 2, 2, seed=1).double()
    sigma = torch.tensor([1.0, 0.6, 0.0] if kind == latent.FLOW else [4518.8, 1.0, 0.0], dtype=torch.float64)

    def noisy(scale: float, sigma: torch.Tensor) -> torch.Tensor:
        weight = 1 - sigma if kind == latent.FLOW else torch.ones_like(sigma)
        return weight.view(-1, 1, 1, 1) * scale * clean + sigma.view(-1, 1, 1, 1) * noise

    mapping = latent.LatentMap(1.2 / 0.7, kind)
    x, mapped = mapping.to_render(noisy(0.7, sigma), sigma)
    assert torch.allclose(x, noisy(1.2, mapped), rtol=1e-12, atol=1e-12)
    assert torch.allclose(mapping.clean_to_sketch(1.2 * clean), 0.7 * clean)
    assert torch.allclose(mapping.clean_to_render(0.7 * clean), 1.2 * clean)
    single = mapping.to_render(noisy(0.7, sigma)[:1], sigma[0])
    assert torch.equal(single[0], x[:1]) and single[1] == mapped[0]
    same = latent.LatentMap(1.0, kind)
    assert same.is_identity and all(a is b for a, b in zip(same.to_render(clean, sigma), (clean, sigma)))


# --- TeaCache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["2b", "5b", "1.5"])
def test_a_plan_that_reuses_nothing_changes_nothing_and_another_runs_no_block_there(
    kind: str, folders: dict[str, Path]
) -> None:
    model, calls = slow(cogvideox.load(folders[kind]))
    blocks = len(model.model.diffusion_model.blocks)
    plain = sample(model, noise(), STEPS, cfg=1.0)
    assert len(calls) == STEPS * blocks
    assert torch.equal(sample(cached(model, 1e-12), noise(), STEPS, cfg=1.0), plain)
    calls.clear()
    report = Report()
    out = sample(sr_model(model, cached(model, THRESHOLD), 0, report), noise(), STEPS, cfg=1.0)
    reused = report.reused("render")
    assert 0 < reused < STEPS - 2 and len(calls) == (STEPS - reused) * blocks
    assert not report.steps[0].reused and not report.steps[-1].reused
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    assert torch.equal(sample(model, noise(), STEPS, cfg=1.0), plain)
    assert type(model.model.diffusion_model.blocks) is torch.nn.ModuleList, "nothing is left on the network"


def test_the_plan_of_a_render_in_another_space_is_of_the_noise_levels_that_it_sees(folders: dict[str, Path]) -> None:
    sketch, render = cogvideox.load(folders["5b"]), slow(cogvideox.load(folders["2b"]))[0]
    report, after = Report(), 5
    sample(sr_model(sketch, cached(render, THRESHOLD), after, report), noise(), STEPS, cfg=1.0)
    sampling = render.get_model_object("model_sampling")
    levels = torch.tensor(report.sigmas[after:-1]) * R
    d = teacache.distances(modulation(render.model.diffusion_model, sampling.timestep(levels).float(), "e"))
    expected = teacache.reuse_plan(teacache.growth(d, teacache.COGVIDEOX[0].e), THRESHOLD)
    assert any(expected)
    assert [s.reused for s in report.steps] == [False] * after + expected


def reused_by(model: Any) -> tuple[torch.Tensor, int]:
    """(latent, how many steps ran no block) of a run of a cached MODEL."""
    report = Report()
    out = sample(sr_model(model, model, STEPS, report), noise(), STEPS, cfg=1.0)
    return out, report.reused("sketch")


def loaded(model: Any) -> Any:
    """The network of a MODEL that the host has loaded."""
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model


def test_a_network_asks_for_replacements_only_while_a_cached_model_is_loaded(folders: dict[str, Path]) -> None:
    model, _ = slow(cogvideox.load(folders["2b"]))
    network = model.model.diffusion_model
    plain, names = network.blocks, list(network.state_dict())
    ours = cached(model, THRESHOLD)
    assert loaded(ours).blocks is not plain
    assert list(network.state_dict()) == names and list(network.blocks) == list(plain), "the same modules and names"
    assert loaded(cached(ours, THRESHOLD)).blocks is not plain
    assert loaded(model).blocks is plain
    loaded(ours)
    comfy.model_management.unload_all_models()
    assert network.blocks is plain
    loaded(ours)
    assert loaded(cached(ours, 0.0)).blocks is plain


def test_a_cached_model_whose_network_was_taken_over_by_another_computes_and_says_so(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model, calls = slow(cogvideox.load(folders["2b"]))
    plain = sample(model, noise(), STEPS, cfg=1.0)
    calls.clear()
    ours = cached(model, THRESHOLD)

    def take_over(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if len(calls) == len(model.model.diffusion_model.blocks):
            loaded(model)
        return executor(*args, **kwargs)

    ours = wrapped(ours, take_over, WrappersMP.PREDICT_NOISE)
    with caplog.at_level(logging.INFO):
        out = sample(ours, noise(), STEPS, cfg=1.0)
    assert torch.equal(out, plain) and len(calls) == STEPS * len(model.model.diffusion_model.blocks)
    assert any("TeaCache: the blocks are another MODEL's" in record.getMessage() for record in caplog.records)


def test_a_clone_for_another_gpu_asks_by_itself_and_computes_with_its_own_weights(folders: dict[str, Path]) -> None:
    model, _ = slow(cogvideox.load(folders["2b"]))
    ours = cached(model, THRESHOLD)
    loaded(ours)
    twin = ours.deepclone_multigpu()
    _, calls = slow(twin)
    expected, count = reused_by(cached(model, THRESHOLD))
    assert count
    for parameter in loaded(ours).parameters():
        parameter.zero_()
    assert torch.equal(sample(twin, noise(), STEPS, cfg=1.0), expected)
    assert len(calls) == (STEPS - count) * len(twin.model.diffusion_model.blocks)


def test_patched_weights_are_in_what_is_computed_and_reused(folders: dict[str, Path]) -> None:
    model, _ = slow(cogvideox.load(folders["2b"]))
    key = "diffusion_model.blocks.0.ff_out.weight"
    weight = model.model.diffusion_model.blocks[0].ff_out.weight
    patched = model.clone()
    assert patched.add_patches({key: ("diff", (torch.full_like(weight, 0.01),))}, 1.0)
    plain = sample(patched, noise(), STEPS, cfg=1.0)
    assert relative(plain, sample(model, noise(), STEPS, cfg=1.0)) > 1e-4
    assert torch.equal(sample(cached(patched, 1e-12), noise(), STEPS, cfg=1.0), plain)
    expected, count = reused_by(cached(patched, THRESHOLD))
    assert count and torch.equal(sample(cached(patched, THRESHOLD), noise(), STEPS, cfg=1.0), expected)
    assert not torch.equal(expected, sample(cached(model, THRESHOLD), noise(), STEPS, cfg=1.0))


def test_the_host_is_asked_for_what_the_cache_holds(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = cogvideox.load(folders["2b"])
    wide = random(1, 16, 3, 10, 14, seed=4)
    held = reuse.held_bytes(cached(model, THRESHOLD), wide.shape, 2)
    assert held == 2 * (3 * 5 * 7) * model.model.diffusion_model.dim * 4
    (plain,), (found,) = (
        asked_for(lambda m=m: sample(m, wide, 1), monkeypatch) for m in (model, cached(model, THRESHOLD))
    )
    assert found - plain == pytest.approx(held, rel=1e-6)
