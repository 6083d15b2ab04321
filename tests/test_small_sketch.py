"""A sketch of fewer pixels: the algebra of the enlargement, whole runs with an exact denoiser, and every kind of run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import helpers
import pytest
import scipy.fft
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import (
    CFGGuider,
    DisableNoise,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from hosting import module
from nodes import KSamplerAdvanced
from test_cogvideox import cogvideox, folders, networks, text  # noqa: F401
from test_families import family, load  # noqa: F401

pair, route, enlarge, smaller = (module(f"srd_core.{name}") for name in ("pair", "route", "enlarge", "smaller"))
reports, sampler_nodes = module("srd_core.report.data"), module("nodes.sampler")
Switch, RenderSettings, Report, Enlargement = route.Switch, pair.RenderSettings, reports.Report, enlarge.Enlargement
SAMPLERS = comfy.samplers.KSampler.SAMPLERS
AT_4 = Switch("step", switch_step=4)


def scaled(
    sketch: Any, render: Any, scale: float = 0.5, report: Any = None, switch: Any = AT_4, **settings: Any
) -> Any:
    return pair.cooperate(sketch, render, switch, RenderSettings(sketch_scale=scale, **settings), report or Report())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def dct(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.dctn(x.numpy(), norm="ortho", axes=(-2, -1)))


def idct(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.idctn(x.numpy(), norm="ortho", axes=(-2, -1)))


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def watched(model: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """(clone of model, list that gets the shape of x at every call of its network)."""
    shapes: list[tuple[int, ...]] = []

    def watch(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(x.shape))
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    return model, shapes


# --- the algebra ------------------------------------------------------------------------------------------------------

SIZES = [((16, 16), (8, 8)), ((90, 160), (60, 106)), ((12, 20), (8, 14)), ((9, 15), (6, 10))]
KINDS = [True, False]


@pytest.mark.parametrize("flow", KINDS)
@pytest.mark.parametrize(("large", "small"), SIZES)
def test_a_constant_field_keeps_its_value(large: Any, small: Any, flow: bool) -> None:
    scale, sigma = Enlargement(large, small, flow), torch.tensor(0.4, dtype=torch.float64)
    alpha, alpha_large = (1 - sigma, 1 - scale.level(sigma)) if flow else (1, 1)
    x = torch.full((1, 2, 3, *small), 0.7, dtype=torch.float64)
    out = scale.enlarge(alpha * x, sigma, torch.zeros(1, 2, 3, *large, dtype=torch.float64))
    assert torch.allclose(out, torch.full_like(out, 0.7 * float(alpha_large)), atol=1e-6)
    assert torch.allclose(scale.grow(x), torch.full_like(out, 0.7), atol=1e-6)
    assert torch.allclose(scale.shrink(scale.grow(x)), x, atol=1e-6)


def waves(size: tuple[int, int]) -> torch.Tensor:
    """A field of three waves, drawn at the places of a grid of that size over the same picture."""
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in size)
    pi = math.pi
    return (
        0.3
        + torch.cos(2 * pi * y)[:, None] * torch.cos(3 * pi * x)
        - 0.5 * torch.cos(pi * y)[:, None]
        + 0.2 * torch.cos(4 * pi * x)
    )


@pytest.mark.parametrize("flow", KINDS)
@pytest.mark.parametrize(("large", "small"), SIZES)
def test_a_field_of_low_frequencies_is_the_same_drawn_large(large: Any, small: Any, flow: bool) -> None:
    scale, sigma = Enlargement(large, small, flow), torch.tensor([0.4], dtype=torch.float64)
    assert torch.allclose(scale.grow(waves(small)), waves(large), atol=1e-6)
    assert torch.allclose(scale.shrink(waves(large)), waves(small), atol=1e-6)
    alpha, alpha_large = (1 - sigma, 1 - scale.level(sigma)) if flow else (torch.ones(1), torch.ones(1))
    out = scale.enlarge(float(alpha) * waves(small), sigma[0], torch.zeros(large, dtype=torch.float64))
    assert torch.allclose(out[0] if out.ndim > 2 else out, float(alpha_large) * waves(large), atol=1e-6)


@pytest.mark.parametrize("flow", KINDS)
def test_white_noise_stays_white_at_the_new_level(flow: bool) -> None:
    scale, sigma = Enlargement((12, 20), (8, 14), flow), torch.tensor(0.6, dtype=torch.float64)
    own, level = noise(8000, 12, 20), scale.level(sigma)
    small = noise(8000, 8, 14, seed=4)
    out = scale.enlarge(sigma * small, sigma, level * own)
    assert float(out.var()) == pytest.approx(float(level) ** 2, rel=1e-2)
    spectrum = dct(out).square().mean(0) / level**2
    bands = [spectrum[i : i + 4, j : j + 5].mean() for i in (0, 4, 8) for j in (0, 5, 10, 15)]
    assert max(abs(float(band) - 1) for band in bands) < 1e-2
    low = scale.low(own)
    assert float(low.var()) == pytest.approx(1, rel=1e-2)
    covariance = torch.einsum("nhw,nij->hwij", low, low).reshape(8 * 14, 8 * 14) / len(low)
    assert float((covariance - torch.eye(8 * 14)).abs().mean()) < 1e-2


@pytest.mark.parametrize("flow", KINDS)
def test_signal_and_noise_become_the_large_signal_and_noise_exactly(flow: bool) -> None:
    """Of a picture of low frequencies and the run's own noise: the very x of the large run at sigma'."""
    scale, own = Enlargement((90, 160), (60, 106), flow), noise(90, 160)
    for sigma in torch.tensor([0.2, 0.7, 0.95], dtype=torch.float64):
        level = scale.level(sigma)
        alpha, alpha_large = (1 - sigma, 1 - level) if flow else (1, 1)
        small = alpha * waves((60, 106)) + sigma * scale.low(own)
        expected = alpha_large * waves((90, 160)) + level * own
        assert torch.allclose(scale.enlarge(small, sigma, level * own), expected, atol=1e-6)


def test_pure_noise_becomes_the_runs_own_noise() -> None:
    scale, own, one = Enlargement((16, 16), (8, 8), True), noise(2, 16, 3, 16, 16), torch.ones((), dtype=torch.float64)
    assert float(scale.level(one)) == 1 and torch.allclose(scale.enlarge(scale.low(own), one, own), own, atol=1e-12)


@pytest.mark.parametrize("flow", KINDS)
def test_one_size_is_the_identity_bit_for_bit(flow: bool) -> None:
    scale, x, sigma = Enlargement((8, 8), (8, 8), flow), torch.randn(1, 2, 8, 8), torch.rand(5)
    assert scale.r == 1 and torch.equal(scale.level(sigma), sigma) and torch.equal(scale.small_level(sigma), sigma)
    assert (
        all(f(x) is x for f in (scale.low, scale.back, scale.shrink, scale.grow)) and scale.enlarge(x, sigma[0], x) is x
    )


def test_the_levels_are_those_of_a_shift_that_is_smaller_by_r() -> None:
    """Sigma = s u / (1 + (s - 1) u) with shift s / r, and the worked example: shift 5, r 2, step 10 is .909 small and .952 large."""
    scale, u = Enlargement((16, 16), (8, 8), True), torch.linspace(0, 1, 51, dtype=torch.float64)
    full, small = (shift * u / (1 + (shift - 1) * u) for shift in (5, 2.5))
    assert torch.allclose(scale.small_level(full), small, atol=1e-12) and torch.allclose(
        scale.level(small), full, atol=1e-12
    )
    assert float(small[40]) == pytest.approx(0.909, abs=5e-4) and float(full[40]) == pytest.approx(0.952, abs=5e-4)
    above = torch.tensor(
        [1.0, 1.2, 1e9], dtype=torch.float64
    )  # a multiplied schedule, and the host's word for "from the start"
    assert torch.equal(scale.small_level(above), above) and torch.equal(scale.level(above), above)


@pytest.mark.parametrize(
    ("large", "share", "patch", "expected"),
    [
        ((90, 160), 0.667, 2, (60, 106)),
        ((60, 104), 0.5, 2, (30, 52)),
        ((16, 16), 0.75, 2, (12, 12)),
        ((16, 16), 1.0, 2, (16, 16)),
        ((16, 16), 0.97, 2, (16, 16)),
        ((2, 2), 0.5, 2, (2, 2)),
        ((1, 40), 0.5, 2, (1, 20)),
        ((9, 9), 0.5, 3, (6, 6)),
        ((24, 40), 0.667, 8, (16, 24)),
    ],
)
def test_sizes_are_whole_patches_nearest_to_the_share_and_the_aspect(
    large: Any, share: float, patch: int, expected: Any
) -> None:
    assert enlarge.small_size(large, share, patch) == expected


# --- an exact denoiser ------------------------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """The velocity of the posterior mean of a Gaussian field whose DCT has a known spectrum, at the size it is asked for."""

    def __init__(self, large: tuple[int, int]) -> None:
        super().__init__()
        self.large, self.dtype = large, torch.float32
        self.patch_embedding = torch.nn.Conv3d(16, 1, 1)  # the host looks how many channels it takes
        self.patch_size = (1, 2, 2)

    def spectrum(self, size: tuple[int, int]) -> torch.Tensor:
        ky, kx = (torch.arange(n, dtype=torch.float64) for n in size)
        r2 = math.prod(self.large) / math.prod(size)
        return 40 / (1 + (ky[:, None] ** 2 + kx**2) / 4) ** 1.5 / r2 + 1e-3

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> torch.Tensor:
        sigma, s = float(timestep[0]) / 1000, self.spectrum(x.shape[-2:])
        denoised = idct(dct(x.double()) * ((1 - sigma) * s / ((1 - sigma) ** 2 * s + sigma**2)))
        return ((x - denoised) / sigma).to(x.dtype)


class Exploding(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """A schedule of the host for x = x0 + sigma eps."""


class ExactNoise(Exact):
    """The same for that kind: the noise of the posterior mean."""

    def __init__(self, large: tuple[int, int], sampling: Any) -> None:
        super().__init__(large)
        self.sigma_of = sampling.sigma

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> torch.Tensor:
        sigma, s = float(self.sigma_of(timestep[:1])), self.spectrum(x.shape[-2:])
        whole = x.double() * (sigma**2 + 1) ** 0.5  # the host scales what it gives a network of this kind
        return ((whole - idct(dct(whole) * (s / (s + sigma**2)))) / sigma).to(x.dtype)


def exact(wan: Any, side: int = 24, flow: bool = True) -> Any:
    model = wan()
    if not flow:
        model.add_object_patch("model_sampling", sampling := Exploding(model.model.model_config))
    model.model.diffusion_model = Exact((side, side)) if flow else ExactNoise((side, side), sampling)
    return model


def spectrum_of(latents: torch.Tensor, rings: int = 8) -> torch.Tensor:
    """Power in rings of frequency of latents [..., H, W]."""
    power = dct(latents.double()).square().flatten(0, -3).mean(0)
    ky, kx = (torch.arange(n) for n in power.shape)
    ring = ((ky[:, None] ** 2 + kx**2).sqrt() / power.shape[0] * rings).long()
    return torch.stack([power[ring == i].mean() for i in range(rings)])


@pytest.mark.parametrize("flow", KINDS, ids=["flow", "variance exploding"])
@pytest.mark.parametrize("scale", [0.5, 0.667, 0.75])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_an_exact_denoiser_gives_the_spectrum_of_the_full_size_run(
    sampler: str, scale: float, flow: bool, wan: Any
) -> None:
    """Same noise in both, and the run is linear and diagonal in these frequencies: without sampler noise few draws are enough."""
    latent = helpers.empty_latent(batch=64 if "ancestral" in sampler else 4, side=24)
    how = {"latent": latent, "sampler_name": sampler, "cfg": 1.0}
    full = helpers.ksampler(exact(wan, flow=flow), 40, **how)
    pair_of = (exact(wan, flow=flow), exact(wan, flow=flow))
    small = helpers.ksampler(scaled(*pair_of, scale, switch=Switch("step", switch_step=8)), 40, **how)
    latent_in = exact(wan).model.process_latent_in
    ratio = spectrum_of(latent_in(small)) / spectrum_of(latent_in(full))
    assert float((ratio - 1).abs().max()) < 0.03, ratio
    if sampler == "euler":
        assert distance(small, full) < 0.03


# --- every kind of run ------------------------------------------------------------------------------------------------


def test_off_is_todays_run_bit_for_bit_and_by_todays_code(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(smaller.Smaller, "__init__", None)  # nothing of it is made
        today = helpers.ksampler(pair.cooperate(wan(), wan(seed=1), AT_4, RenderSettings(), Report()), 8)
        assert torch.equal(helpers.ksampler(scaled(wan(), wan(seed=1), 1.0), 8), today)
    report = Report()
    assert torch.equal(
        helpers.ksampler(scaled(wan(), wan(seed=1), 0.97, report), 8), today
    )  # whole patches: the same size
    assert any("sketch_scale does nothing" in note for note in report.notes)


def test_a_graph_without_the_input_gives_todays_result(wan: Any) -> None:
    from test_cooperation import sr_sampler

    assert torch.equal(sr_sampler(wan(), wan(seed=1)), sr_sampler(wan(), wan(seed=1), sketch_scale=1.0))
    assert not torch.equal(sr_sampler(wan(), wan(seed=1)), sr_sampler(wan(), wan(seed=1), sketch_scale=0.5))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_sketches_small_and_renders_large(sampler: str, wan: Any) -> None:
    sketch, small = watched(wan())
    render, large = watched(wan(seed=1))
    report = Report()
    latent = helpers.ksampler(scaled(sketch, render, 0.5, report), 8, sampler_name=sampler)
    assert latent.shape == (1, 16, 2, 8, 8) and torch.isfinite(latent).all()
    assert {shape[-2:] for shape in small} == {(4, 4)} and {shape[-2:] for shape in large} == {(8, 8)}
    assert report.status == "done" and [h.to for h in report.hand_overs] == ["render"]
    if sampler not in ("dpm_fast", "dpm_adaptive"):
        assert report.hand_overs[0].after_step == 4 and [s.step for s in report.steps] == list(range(1, 9))
        full = Report()
        helpers.ksampler(scaled(wan(), wan(seed=1), 1.0, full), 8, sampler_name=sampler)
        assert report.sigmas == full.sigmas
    assert any(f"{report.sampler} begins anew after step" in note for note in report.notes)
    assert any("4 x 4 instead of 8 x 8" in note for note in report.notes)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "uni_pc"])
def test_with_an_exact_denoiser_the_level_at_the_switch_is_that_of_the_schedule(sampler: str, wan: Any) -> None:
    """The first x of the render is where the full-size run would be, up to what the new frequencies do not know yet."""
    seen: dict[str, list[tuple[float, torch.Tensor]]] = {"small": [], "full": []}

    def looked_at(model: Any, name: str) -> Any:
        def look(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen[name].append((float(timestep[0]), x.clone()))
            return executor(x, timestep, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
        return model

    how = {"latent": helpers.empty_latent(side=24), "sampler_name": sampler, "cfg": 1.0}
    helpers.ksampler(looked_at(exact(wan), "full"), 40, **how)
    helpers.ksampler(
        scaled(exact(wan), looked_at(exact(wan), "small"), switch=Switch("step", switch_step=8)), 40, **how
    )
    level, x = seen["small"][0]
    there = [each for at, each in seen["full"] if at == pytest.approx(level, rel=1e-5)]
    assert there
    spread = float(x.std() / there[-1].std())
    assert spread == pytest.approx(1, abs=0.01)


RULES = {
    "adaptive": Switch("adaptive", delta=1e9, fix_step=5, switch_sigma=0.0, max_step=9),
    "sigma": Switch("sigma", switch_sigma=0.95),
    "listed": Switch("listed", sketch_steps="1-5"),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_means_the_steps_and_levels_of_the_whole_schedule(name: str, wan: Any) -> None:
    full, small = Report(), Report()
    helpers.ksampler(scaled(wan(), wan(seed=1), 1.0, full, RULES[name]), 20)
    helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, small, RULES[name]), 20)
    if name != "adaptive":  # random weights settle at another step at another size
        assert small.hand_overs[0].after_step == full.hand_overs[0].after_step
    assert small.sigmas == full.sigmas and (small.earliest, small.latest) == (full.earliest, full.latest)
    assert small.hand_overs[0].sigma == full.sigmas[small.hand_overs[0].after_step]


def test_adaptive_switches_at_the_same_step_with_an_exact_denoiser(wan: Any) -> None:
    steps = []
    for scale in (1.0, 0.75, 0.5):
        report = Report()
        model = scaled(exact(wan), exact(wan), scale, report, Switch("adaptive", delta=0.01))
        helpers.ksampler(model, 50, latent=helpers.empty_latent(side=24), cfg=1.0)
        steps.append(report.hand_overs[0].after_step)
    assert len(set(steps)) == 1 and 6 < steps[0] < 50


def test_a_run_that_the_render_begins_is_the_renders_own(wan: Any) -> None:
    render = wan(seed=1)
    latent = helpers.ksampler(scaled(wan(), render, switch=Switch("step", switch_step=0)), 6)
    assert torch.equal(latent, helpers.ksampler(render, 6))


@pytest.mark.parametrize("settings", [{"fade": 1.1}, {"render_steps": 3}, {"fade": 1.1, "render_steps": 3, "cfg": 1.0}])
def test_it_goes_with_fade_and_steps_of_its_own(settings: dict[str, Any], wan: Any) -> None:
    report = Report()
    plain = helpers.ksampler(scaled(wan(), wan(seed=1)), 10)
    latent = helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, report, **settings), 10)
    assert latent.shape == plain.shape and torch.isfinite(latent).all() and not torch.equal(latent, plain)
    steps = settings.get("render_steps", 6)
    assert len(report.steps) == 4 + steps and len(report.hand_overs[0].fade) == (steps if "fade" in settings else 0)


def test_a_fade_holds_the_velocity_that_the_full_size_would_have(wan: Any) -> None:
    """With an exact denoiser the last velocity, enlarged, is that of the full-size run but for the new frequencies."""
    held: dict[float, torch.Tensor] = {}
    fade = module("srd_core.fade")

    class Keeping(fade.Fade):
        def begin(self, *args: Any) -> Any:
            held[float(len(held))] = self._v.clone()
            return super().begin(*args)

    begin = module("srd_core.begin")
    own, begin.Fade = begin.Fade, Keeping
    try:
        for scale in (1.0, 0.5):
            model = scaled(exact(wan), exact(wan), scale, switch=Switch("step", switch_step=8), fade=1.1)
            helpers.ksampler(model, 40, latent=helpers.empty_latent(side=24), cfg=1.0)
    finally:
        begin.Fade = own
    full, small = held.values()
    low = Enlargement((24, 24), (12, 12), True).low
    assert distance(low(small), low(full)) < 1e-3 and distance(small, full) < 0.05


@pytest.mark.parametrize("width", [1.1, 1e6])
def test_only_what_the_small_sketch_has_seen_fades(width: float, wan: Any) -> None:
    """The new frequencies are the render's at once: an exact denoiser ends with those of a cut, and with other low ones."""
    how = {"latent": helpers.empty_latent(side=24), "cfg": 1.0}
    model = scaled(exact(wan), exact(wan), switch=Switch("step", switch_step=8))
    faded = scaled(exact(wan), exact(wan), switch=Switch("step", switch_step=8), fade=width)
    cut, soft = helpers.ksampler(model, 40, **how), helpers.ksampler(faded, 40, **how)
    scale = Enlargement((24, 24), (12, 12), True)
    assert distance(scale.high(soft), scale.high(cut)) < 1e-4 and distance(scale.known(soft), scale.known(cut)) > 1e-3


def test_a_batch_is_enlarged_sample_by_sample(wan: Any) -> None:
    model = scaled(wan(), wan(seed=1), 0.5, fade=1.1)
    both = helpers.ksampler(model, 8, latent=helpers.empty_latent(batch=2))
    one = helpers.ksampler(model, 8)
    assert distance(both[:1], one) < 1e-4 and distance(both[1:], one) > 0.1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_masked_run_keeps_what_it_should(share: float, wan: Any) -> None:
    mask = torch.zeros(1, 1, 2, 8, 8)
    mask[..., 4:] = share
    given = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    for sampler in ("euler", "ddim", "euler_ancestral"):
        model = scaled(wan(), wan(seed=1))
        out = helpers.ksampler(model, 8, latent={"samples": given, "noise_mask": mask}, sampler_name=sampler)
        assert torch.allclose(out[..., :4], given[..., :4], atol=1e-4) and not torch.allclose(
            out[..., 4:], given[..., 4:], atol=0.1
        )


def test_an_encoded_video_keeps_its_details_at_little_noise(wan: Any) -> None:
    """With the exact denoiser at denoise .3 the full-size run and the small one end near each other: the new frequencies are the video's."""
    given = torch.randn(1, 16, 2, 24, 24, generator=torch.Generator().manual_seed(5))
    how = {"latent": {"samples": given}, "cfg": 1.0, "denoise": 0.3}
    full = helpers.ksampler(exact(wan), 10, **how)
    small = helpers.ksampler(scaled(exact(wan), exact(wan), switch=Switch("step", switch_step=2)), 10, **how)
    assert distance(small, full) < 0.05


@pytest.mark.parametrize("node", ["advanced", "custom"])
def test_the_hosts_other_sampler_nodes_run_it(node: str, wan: Any) -> None:
    model, prompts = scaled(wan(), wan(seed=1)), (helpers.prompt(1), helpers.prompt(2))
    if node == "advanced":
        latent = KSamplerAdvanced().sample(
            model, "enable", 7, 8, 3.0, "euler", "simple", *prompts, helpers.empty_latent(), 0, 8, "disable"
        )[0]
    else:
        guider = CFGGuider.execute(model, *prompts, 3.0).args[0]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
        latent, x0 = SamplerCustomAdvanced.execute(
            RandomNoise.execute(7).args[0],
            guider,
            KSamplerSelect.execute("euler").args[0],
            sigmas,
            helpers.empty_latent(),
        ).args
        assert x0["samples"].shape == latent["samples"].shape
    assert torch.equal(latent["samples"], helpers.ksampler(model, 8))


def test_a_run_whose_latent_brings_the_noise_fills_up_with_the_seeds(wan: Any) -> None:
    """KSampler Advanced in a row, the second without noise: the level after the switch is that of the schedule."""
    model, prompts = exact(wan), (helpers.prompt(1), helpers.prompt(2))
    how = (40, 1.0, "euler", "simple", *prompts)
    first = KSamplerAdvanced().sample(model, "enable", 7, *how, helpers.empty_latent(batch=4, side=24), 0, 2, "enable")[
        0
    ]
    full = KSamplerAdvanced().sample(model, "disable", 7, *how, first, 2, 40, "disable")[0]["samples"]
    small_model = scaled(exact(wan), exact(wan), switch=Switch("step", switch_step=8))
    small = KSamplerAdvanced().sample(small_model, "disable", 8, *how, first, 2, 40, "disable")[0]["samples"]
    ratio = spectrum_of(model.model.process_latent_in(small)) / spectrum_of(model.model.process_latent_in(full))
    assert float((ratio - 1).abs().max()) < 0.25, ratio  # other noise in the new frequencies
    low = Enlargement((24, 24), (12, 12), True).low
    assert distance(low(small), low(full)) < 0.05


def test_progress_and_previews_follow_the_size(wan: Any) -> None:
    told: list[tuple[int, tuple[int, ...], int]] = []
    model, latent = scaled(wan(), wan(seed=1)), helpers.empty_latent()["samples"]
    comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 7),
        8,
        3.0,
        "euler",
        "simple",
        helpers.prompt(1),
        helpers.prompt(2),
        latent,
        seed=7,
        disable_pbar=True,
        callback=lambda step, x0, x, total: told.append((step, tuple(x0.shape[-2:]), total)),
    )
    assert told == [(step, (4, 4) if step < 4 else (8, 8), 8) for step in range(8)]


def test_a_speed_up_over_a_sketch_that_did_not_run_at_full_size_is_not_made_up(wan: Any) -> None:
    report, left = Report(), []
    figures, summary = module("srd_core.report.figures"), module("srd_core.report.text").summarize
    report.watch = lambda running: left.append((running.count("render"), figures.remaining(running)))
    helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, report), 8)
    assert report.shape == [1, 16, 2, 8, 8] and report.small_shape == [1, 16, 2, 4, 4]
    assert (
        figures.speed_up(report) is None
        and "Speed" not in summary(report)
        and "4 x 4 instead of 8 x 8" in summary(report)
    )
    assert not any(found for renders, found in left if not renders) and any(
        found for renders, found in left if renders > 1
    )
    assert Report.from_json(report.to_json()).small_shape == report.small_shape


def test_teacache_plans_the_renders_steps_at_its_size(wan: Any) -> None:
    from test_reuse import THRESHOLD, slow_wan

    report = Report()
    helpers.ksampler(scaled(slow_wan(), slow_wan(1), 0.5, report, teacache=THRESHOLD), 20)
    plan = report.stage("render").teacache
    assert plan["first_step"] == 4 and len(plan["reuse"]) <= 16 and report.reused("render") == sum(plan["reuse"]) > 0


def test_step_caches_and_context_windows_of_the_host_stay_in_step(wan: Any) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode
    from test_host_features import windows

    def cached(model: Any) -> Any:
        return EasyCacheNode.execute(model, 0.2, 0.1, 0.9, False).args[0]

    for change in (cached, windows):
        report = Report()
        latent = helpers.ksampler(
            scaled(change(wan()), change(wan(seed=1)), 0.5, report), 10, latent=helpers.empty_latent(frames=6)
        )
        assert torch.isfinite(latent).all() and report.status == "done" and len(report.steps) == 10


@pytest.mark.parametrize("how", ["interrupt 2", "interrupt 5", "sketch", "render"])  # before and after the switch at 4
def test_an_interrupted_or_failing_run_leaves_nothing(how: str, wan: Any) -> None:
    from test_faults import broken_from

    sketch, render = wan(), wan(seed=1)
    plain, before = helpers.ksampler(sketch, 8), helpers.ksampler(scaled(sketch, render), 8)
    if how.startswith("interrupt"):
        model, latent, report = (
            scaled(sketch, render, report=(report := Report())),
            helpers.empty_latent()["samples"],
            report,
        )

        def stop(step: int, *_: Any) -> None:
            if step == int(how[-1]):
                comfy.model_management.interrupt_current_processing()

        with pytest.raises(comfy.model_management.InterruptProcessingException):
            comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(latent, 7),
                8,
                3.0,
                "euler",
                "simple",
                helpers.prompt(1),
                helpers.prompt(2),
                latent,
                seed=7,
                disable_pbar=True,
                callback=stop,
            )
        comfy.model_management.interrupt_current_processing(False)
        assert report.status == "interrupted"
    else:
        broken, _ = broken_from(sketch if how == "sketch" else render, 2, float("nan"))
        with pytest.raises(RuntimeError, match=how):
            helpers.ksampler(scaled(broken, render) if how == "sketch" else scaled(sketch, broken), 8)
    assert torch.equal(helpers.ksampler(sketch, 8), plain)
    assert torch.equal(helpers.ksampler(scaled(sketch, render), 8), before)


# --- what has the latent's size ---------------------------------------------------------------------------------------


def test_the_image_of_an_image_to_video_model_comes_at_each_stages_own_size(wan: Any) -> None:
    shapes: dict[str, set[tuple[int, ...]]] = {"sketch": set(), "render": set()}

    def looked_at(model: Any, name: str) -> Any:
        def look(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            shapes[name].add(tuple(x.shape[1:]))
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
        return model

    image = {"concat_latent_image": torch.randn(1, 16, 2, 8, 8), "concat_mask": torch.zeros(1, 1, 2, 8, 8)}
    prompts = {"positive": helpers.prompt(1, **image), "negative": helpers.prompt(2, **image)}
    model = scaled(looked_at(wan(kind="i2v"), "sketch"), looked_at(wan(seed=1, kind="i2v"), "render"))
    assert torch.isfinite(helpers.ksampler(model, 8, **prompts)).all()
    assert shapes == {"sketch": {(36, 2, 4, 4)}, "render": {(36, 2, 8, 8)}}
    assert image["concat_latent_image"].shape[-1] == 8  # the artist's own conditioning stays as it was


def test_tensors_masks_and_areas_of_the_latents_size_are_resized_and_others_stay() -> None:
    scale = Enlargement((8, 12), (4, 6), True)
    frames, face = torch.arange(96.0).reshape(1, 1, 1, 8, 12), torch.zeros(1, 3, 2, 512, 512)
    cond = {
        "vace_frames": [frames],
        "vace_mask": [torch.ones(1, 64, 1, 8, 12)],
        "area": (4, 6, 4, 6),
        "face_video_pixels": face,
        "camera_conditions": torch.ones(1, 6, 1, 64, 96),
        "cross_attn": torch.zeros(1, 8, 12),
        "strength": 1.0,
    }
    small = smaller.small_conds({"positive": [cond]}, scale)["positive"][0]
    assert (
        small["vace_frames"][0].shape[-2:] == (4, 6)
        and small["vace_frames"][0][0, 0, 0, 0, 0] == frames[0, 0, 0, :2, :2].mean()
    )
    assert (
        (small["vace_mask"][0] == 1).all()
        and small["area"] == (2, 3, 2, 3)
        and small["camera_conditions"].shape[-2:] == (32, 48)
    )
    assert small["face_video_pixels"] is face and small["cross_attn"] is cond["cross_attn"]
    assert (
        smaller.small_conds({"positive": [{"area": ("percentage", 0.5, 0.5, 0, 0)}]}, scale)["positive"][0]["area"][0]
        == "percentage"
    )


@pytest.mark.parametrize("extra", [{"gligen": ("position", None, [])}, {"vace_frames": [torch.zeros(1, 32, 2, 6, 6)]}])
def test_conditioning_that_can_not_be_resized_is_refused_before_any_step(extra: dict[str, Any], wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match=f"{next(iter(extra))!r}, which can't be resized"):
        helpers.ksampler(scaled(sketch, wan(seed=1)), 8, positive=helpers.prompt(1, **extra))
    assert not calls


def test_ranges_of_steps_mean_the_steps_of_the_run(wan: Any) -> None:
    """A prompt that ends after 10 % of the run ends at the same step, small or not."""
    calls: dict[float, int] = {}
    for scale in (1.0, 0.5):
        sketch, batches = helpers.count_calls(wan())
        prompts = [
            *helpers.prompt(1, start_percent=0.0, end_percent=0.1),
            *helpers.prompt(3, start_percent=0.0, end_percent=1.0),
        ]
        helpers.ksampler(
            scaled(sketch, wan(seed=1), scale, switch=Switch("step", switch_step=12)), 20, positive=prompts
        )
        calls[scale] = sum(batches)
    assert calls[1.0] == calls[0.5]


def test_memory_is_asked_for_at_the_small_size_and_the_report_says_so(
    wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, small = Report(), Report()
    for scale, report in ((1.0, full), (0.5, small)):
        helpers.ksampler(scaled(wan(), wan(seed=1), scale, report), 8, latent=helpers.empty_latent(side=64))
    needed = [[report.stage(name).step_bytes for name in ("sketch", "render")] for report in (full, small)]
    assert needed[0][1] == needed[1][1] and needed[1][0] < 0.3 * needed[0][0]
    asked: list[tuple[bool, tuple[int, ...]]] = []
    sketch, render = wan(), wan(seed=1)
    own = comfy.sampler_helpers.estimate_memory

    def note(model: Any, shape: Any, conds: Any) -> Any:
        asked.append((model.is_clone(sketch), tuple(shape)))
        return own(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", note)
    helpers.ksampler(scaled(sketch, render), 8)
    assert set(asked) == {(True, (1, 16, 2, 4, 4)), (False, (1, 16, 2, 8, 8))}


# --- three models, two halves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner_settings", [{}, {"fade": 1.1}, {"render_steps": 5}])
def test_all_that_is_connected_as_the_sketch_runs_small(inner_settings: dict[str, Any], wan: Any) -> None:
    watches = [watched(wan(seed=i)) for i in range(3)]
    inner = pair.cooperate(
        watches[0][0], watches[1][0], Switch("step", switch_step=3), RenderSettings(**inner_settings), Report()
    )
    report = Report()
    latent = helpers.ksampler(scaled(inner, watches[2][0], 0.5, report, Switch("step", switch_step=5), fade=1.1), 10)
    assert torch.isfinite(latent).all() and [h.after_step for h in report.hand_overs] == [3, 5]
    assert [{shape[-2:] for shape in shapes} for _, shapes in watches] == [{(4, 4)}, {(4, 4)}, {(8, 8)}]


def test_an_inner_rule_that_decides_while_it_is_small_may_have_steps_of_its_own(wan: Any) -> None:
    report = Report()
    rule = Switch("adaptive", delta=1e9, fix_step=5, switch_sigma=0.0)
    inner = pair.cooperate(wan(), wan(seed=1), rule, RenderSettings(render_steps=6), Report())
    latent = helpers.ksampler(scaled(inner, wan(seed=2), 0.5, report, Switch("sigma", switch_sigma=0.8)), 20)
    assert torch.isfinite(latent).all() and len(report.hand_overs) == 2 and max(report.sigmas) == report.sigmas[0]
    assert len(report.steps) == len(report.sigmas) - 1


def test_a_scale_within_a_part_is_refused(wan: Any) -> None:
    for inner in ("sketch", "render"):
        parts = {"sketch": wan(), "render": wan(seed=1), inner: scaled(wan(seed=2), wan(seed=3))}
        with pytest.raises(ValueError, match="whose sketch_scale is below 1 is connected to another"):
            pair.cooperate(parts["sketch"], parts["render"], AT_4, RenderSettings(), Report())


HALVES = [
    "euler",
    "uni_pc",
    "dpmpp_2m_sde",
    "heun",
    "dpmpp_2m",
    "euler_ancestral",
    "dpmpp_2m_cfg_pp",
    "res_multistep",
    "dpm_adaptive",
]


@pytest.mark.parametrize(
    ("sampler", "rendering"),
    [*((s, {}) for s in SAMPLERS), *((s, {"fade": 1.1, "render_steps": 3}) for s in HALVES if s in SAMPLERS)],
)
def test_the_two_halves_are_one_run_bit_for_bit(
    sampler: str, rendering: dict[str, Any], wan: Any, tmp_path: Path
) -> None:
    from test_handover import rendered, sketched, through_a_file

    one = helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, **rendering), 8, sampler_name=sampler)
    record, preview, _ = sketched(
        wan(), steps=8, switch_mode="step", switch_step=4, sampler_name=sampler, sketch_scale=0.5
    )
    assert preview["samples"].shape[-2:] == (4, 4) and record.x.shape[-2:] == (4, 4)
    latent, report = rendered(through_a_file(record, tmp_path), wan(seed=1), **rendering)
    assert torch.equal(latent["samples"], one)
    assert not any("noise differs" in note for note in report.notes)


def test_the_halves_of_a_run_whose_noise_a_node_changes_are_one_run_up_to_rounding(wan: Any) -> None:
    """Context windows with freenoise: the record holds noise whose low frequencies are those that the sketch began with."""
    from test_handover import rendered, sketched
    from test_host_features import windows

    latent = {"latent": helpers.empty_latent(frames=6)}
    one = helpers.ksampler(scaled(windows(wan(), freenoise=True), windows(wan(seed=1))), 8, **latent)
    record = sketched(
        windows(wan(), freenoise=True), steps=8, switch_mode="step", switch_step=4, sketch_scale=0.5, **latent
    )[0]
    assert record.noise is not None and record.noise.shape == record.latent_image.shape
    assert distance(rendered(record, windows(wan(seed=1)))[0]["samples"], one) < 1e-4


def test_the_halves_of_a_masked_video_are_one_run(wan: Any) -> None:
    from test_handover import rendered, sketched

    mask = torch.zeros(1, 1, 2, 8, 8)
    mask[..., 4:] = 1
    latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(5)), "noise_mask": mask}
    one = helpers.ksampler(scaled(wan(), wan(seed=1)), 8, latent=latent, denoise=0.8)
    record = sketched(wan(), steps=8, switch_mode="step", switch_step=4, latent=latent, denoise=0.8, sketch_scale=0.5)[
        0
    ]
    assert torch.equal(rendered(record, wan(seed=1))[0]["samples"], one)


def test_a_file_of_a_whole_sketch_is_as_it_was_and_one_of_a_small_sketch_has_its_own_version(
    wan: Any, tmp_path: Path
) -> None:
    from test_handover import sketched

    file = module("srd_core.handover.file")
    for scale, version in ((1.0, "2"), (0.5, "3")):
        record = sketched(wan(), steps=8, switch_mode="step", switch_step=4, sketch_scale=scale)[0]
        path = tmp_path / f"{version}{file.SUFFIX}"
        file.write(record, path)
        assert module("srd_core.checkpoint").read_header(path, 10**7)["__metadata__"][file.MARK] == version
        assert file.read(path).settings.sketch_scale == scale


@pytest.mark.parametrize("size", [(10, 4), (4, 10)])
def test_a_file_whose_sketch_is_larger_than_its_latent_is_damaged(
    size: tuple[int, int], wan: Any, tmp_path: Path
) -> None:
    import dataclasses

    from test_handover import sketched, through_a_file

    record = sketched(wan(), steps=8, switch_mode="step", switch_step=4, sketch_scale=0.5)[0]
    record.calls = [dataclasses.replace(call, prediction=torch.zeros(1, 16, 2, *size)) for call in record.calls]
    with pytest.raises(ValueError, match="its sketch is larger than its latent"):
        through_a_file(record, tmp_path)


# --- CogVideoX, and what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_cogvideox_is_enlarged_in_its_own_coordinates(sampler: str, folders: dict[str, Path]) -> None:  # noqa: F811
    sketch, small = watched(cogvideox.load(folders["5b"]))
    render, large = watched(cogvideox.load(folders["2b"]))
    conds = {
        "positive": [[text(1), {}]],
        "negative": [[text(2), {}]],
        "latent": {"samples": torch.zeros(1, 16, 2, 8, 12)},
    }
    latent = helpers.ksampler(scaled(sketch, render, fade=1.1), 8, sampler_name=sampler, **conds)
    assert torch.isfinite(latent).all() and latent.shape[-2:] == (8, 12)
    assert {s[-2:] for s in small} == {(4, 6)} and {s[-2:] for s in large} == {(8, 12)}


@pytest.mark.long
def test_every_family_sketches_small(family: Any, load: Any) -> None:  # noqa: F811
    """Flow and variance exploding, video and image, patches of 1 and 2, and the frames of VACE."""
    sketch, small = watched(load("sketch"))
    render, large = watched(load("render"))
    size = family.latent[2:]
    frames = {"vace_frames": [torch.randn(1, 32, *size)], "vace_mask": [torch.ones(1, 64, *size)]}
    extra = frames if "VACE" in type(sketch.model).__name__.upper() else {}
    conds = {"positive": family.prompt(1), "negative": family.prompt(2)}
    for prompts in conds.values():
        prompts[0][1].update(extra)
    latent = helpers.ksampler(
        scaled(sketch, render, switch=Switch("step", switch_step=3), **family.own_prompts()),
        6,
        **family.start(),
        **conds,
    )
    assert torch.isfinite(latent).all() and tuple(latent.shape) == family.latent
    assert {shape[-2:] for shape in small} == {tuple(n // 2 for n in size[-2:])} and {
        shape[-2:] for shape in large
    } == {size[-2:]}


REFUSED = {
    "step": (Switch("step", switch_step=8), "the render the last step"),
    "sigma": (Switch("sigma", switch_sigma=0.0), "the render the last step"),
    "adaptive": (Switch("adaptive", switch_sigma=0.0), "the render the last step"),
    "listed": (Switch("listed", sketch_steps="1-3, 7"), "one switch between them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_might_end_small_or_come_back_is_refused_before_any_step(name: str, wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    switch, message = REFUSED[name]
    report = Report()
    with pytest.raises(ValueError, match=message):
        helpers.ksampler(scaled(sketch, wan(seed=1), 0.5, report, switch), 8)
    assert not calls and report.status == "failed"


@pytest.mark.parametrize("scale", [0.4, 1.1, 0.0, float("nan")])
def test_a_share_that_is_none_is_refused(scale: float, wan: Any) -> None:
    from test_handover import sketched

    with pytest.raises(ValueError, match="sketch_scale is"):
        RenderSettings(sketch_scale=scale)
    with pytest.raises(ValueError, match="sketch_scale is"):
        sketched(wan(), sketch_scale=scale)


def test_a_sampler_that_changes_the_size_is_told_so(wan: Any) -> None:
    def growing(
        model: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, **_: Any
    ) -> torch.Tensor:
        for i in range(len(sigmas) - 1):
            if i == 2:
                x = torch.nn.functional.interpolate(x, scale_factor=(1, 2, 2))
            x = x + (x - model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)) / sigmas[i] * (
                sigmas[i + 1] - sigmas[i]
            )
            callback({"i": i, "denoised": x, "x": x})
        return x

    model = scaled(wan(), wan(seed=1))
    guider = CFGGuider.execute(model, helpers.prompt(1), helpers.prompt(2), 3.0).args[0]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 8)
    with pytest.raises(RuntimeError, match="changed the size of the latent"):
        SamplerCustomAdvanced.execute(
            DisableNoise.execute().args[0], guider, comfy.samplers.KSAMPLER(growing), sigmas, helpers.empty_latent()
        )
