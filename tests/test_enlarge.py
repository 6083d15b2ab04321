"""A sketch of fewer pixels: the algebra of the enlargement, and whole runs with a denoiser that is exact."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
import comfy.samplers
import helpers
import pytest
import scipy.fft
import torch
from comfy.patcher_extension import WrappersMP
from hosting import module
from nodes import KSamplerAdvanced
from runs import Report, Switch, a_video, distance, sr_model, wrapped

enlarge = module("srd_core.enlarge")
Enlargement = enlarge.Enlargement


def dct(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.dctn(x.numpy(), norm="ortho", axes=(-2, -1)))


def idct(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.idctn(x.numpy(), norm="ortho", axes=(-2, -1)))


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the algebra ------------------------------------------------------------------------------------------------------

SIZES = [((16, 16), (8, 8)), ((90, 160), (60, 106)), ((9, 15), (6, 10))]
KINDS = [pytest.param(True, id="flow"), pytest.param(False, id="exploding")]


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
@pytest.mark.parametrize(("large", "small"), SIZES, ids=str)
def test_signal_and_noise_become_the_large_signal_and_noise_exactly(large: Any, small: Any, flow: bool) -> None:
    """Of a picture of low frequencies and the run's own noise: the very x of the large run at sigma'."""
    scale, own = Enlargement(large, small, flow), noise(*large)
    assert torch.allclose(scale.grow(waves(small)), waves(large), atol=1e-6)
    assert torch.allclose(scale.shrink(waves(large)), waves(small), atol=1e-6)
    for sigma in torch.tensor([0.2, 0.7, 0.95, 1.0], dtype=torch.float64):
        level = scale.level(sigma)
        alpha, alpha_large = (1 - sigma, 1 - level) if flow else (1, 1)
        x = alpha * waves(small) + sigma * scale.low(own)
        expected = alpha_large * waves(large) + level * own
        assert torch.allclose(scale.enlarge(x, sigma, level * own), expected, atol=1e-6)


def test_the_levels_are_those_of_a_shift_that_is_smaller_by_r() -> None:
    """Sigma = s u / (1 + (s - 1) u) with shift s / r. With shift 5 and r 2 step 10 is at .909 small, at .952 large."""
    scale, u = Enlargement((16, 16), (8, 8), True), torch.linspace(0, 1, 51, dtype=torch.float64)
    full, small = (shift * u / (1 + (shift - 1) * u) for shift in (5, 2.5))
    assert torch.allclose(scale.small_level(full), small, atol=1e-12)
    assert torch.allclose(scale.level(small), full, atol=1e-12)
    assert float(small[40]) == pytest.approx(0.909, abs=5e-4) and float(full[40]) == pytest.approx(0.952, abs=5e-4)
    # A multiplied schedule, and the host's word for "from the start".
    above = torch.tensor([1.0, 1.2, 1e9], dtype=torch.float64)
    assert torch.equal(scale.small_level(above), above) and torch.equal(scale.level(above), above)


@pytest.mark.parametrize(
    ("large", "share", "patch", "small"),
    [
        ((90, 160), 0.667, 2, (60, 106)),
        ((60, 104), 0.5, 2, (30, 52)),
        ((16, 16), 0.75, 2, (12, 12)),
        ((16, 16), 0.97, 2, (16, 16)),
        ((2, 2), 0.5, 2, (2, 2)),
        ((1, 40), 0.5, 2, (1, 20)),
        ((9, 9), 0.5, 3, (6, 6)),
        ((24, 40), 0.667, 8, (16, 24)),
    ],
    ids=str,
)
def test_sizes_are_whole_patches_nearest_to_the_share_and_the_aspect(
    large: Any, share: float, patch: int, small: Any
) -> None:
    assert enlarge.small_size(large, share, patch) == small


# --- an exact denoiser ------------------------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """The velocity of the posterior mean of a Gaussian field whose DCT has a known spectrum, at the size asked for."""

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
        sigma, s = float(timestep[0]) / 1000, self.spectrum((x.shape[-2], x.shape[-1]))
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
        sigma, s = float(self.sigma_of(timestep[:1])), self.spectrum((x.shape[-2], x.shape[-1]))
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


def scaled(wan: Any, scale: float = 0.5, switch: Any = 8, flow: bool = True, **settings: Any) -> Any:
    """A pair of exact denoisers that sketches small."""
    return sr_model(exact(wan, flow=flow), exact(wan, flow=flow), switch, sketch_scale=scale, **settings)


HOW: dict[str, Any] = {"latent": helpers.empty_latent(side=24), "cfg": 1.0}


# Every sampler with both kinds of noise and two scales, every scale with both kinds.
@pytest.mark.parametrize(
    ("sampler", "scale", "flow"),
    [
        ("euler", 0.5, True),
        ("euler", 0.667, False),
        ("dpmpp_2m", 0.667, True),
        ("dpmpp_2m", 0.75, False),
        ("euler_ancestral", 0.75, True),
        pytest.param("euler_ancestral", 0.5, False, marks=pytest.mark.long),
    ],
)
def test_an_exact_denoiser_gives_the_spectrum_of_the_full_size_run(
    sampler: str, scale: float, flow: bool, wan: Any
) -> None:
    """Same noise in both, and the run is linear and diagonal in these frequencies; sampler noise needs more draws."""
    noisy = sampler == "euler_ancestral"
    steps, latent = (20, helpers.empty_latent(batch=64, side=24)) if noisy else (40, HOW["latent"])
    how = {"latent": latent, "sampler_name": sampler, "cfg": 1.0}
    full = helpers.ksampler(exact(wan, flow=flow), steps, **how)
    small = helpers.ksampler(scaled(wan, scale, steps // 5, flow), steps, **how)
    latent_in = exact(wan).model.process_latent_in
    ratio = spectrum_of(latent_in(small)) / spectrum_of(latent_in(full))
    assert float((ratio - 1).abs().max()) < 0.03, ratio
    if sampler == "euler":
        assert distance(small, full) < 0.03


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "uni_pc"])
def test_with_an_exact_denoiser_the_level_at_the_switch_is_that_of_the_schedule(sampler: str, wan: Any) -> None:
    """The first x of the render is where the full-size run would be, up to what the new frequencies do not know yet."""
    seen: dict[str, list[tuple[float, torch.Tensor]]] = {"small": [], "full": []}

    def looked_at(name: str) -> Any:
        def look(executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seen[name].append((float(timestep[0]), x.clone()))
            return executor(x, timestep, *args, **kwargs)

        return wrapped(exact(wan), look, WrappersMP.APPLY_MODEL)

    helpers.ksampler(looked_at("full"), 40, sampler_name=sampler, **HOW)
    small = sr_model(exact(wan), looked_at("small"), 8, sketch_scale=0.5)
    helpers.ksampler(small, 40, sampler_name=sampler, **HOW)
    level, x = seen["small"][0]
    there = [each for at, each in seen["full"] if at == pytest.approx(level, rel=1e-5)]
    assert there
    spread = float(x.std() / there[-1].std())
    assert spread == pytest.approx(1, abs=0.01)


def test_adaptive_switches_at_the_same_step_with_an_exact_denoiser(wan: Any) -> None:
    steps = []
    for scale in (1.0, 0.75, 0.5):
        report = Report()
        model = scaled(wan, scale, Switch("adaptive", delta=0.01), report=report)
        helpers.ksampler(model, 50, **HOW)
        steps.append(report.hand_overs[0].after_step)
    assert len(set(steps)) == 1 and 6 < steps[0] < 50


def test_a_fade_holds_the_velocity_that_the_full_size_would_have(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exact denoiser the last velocity, enlarged, is that of the full-size run but for the new frequencies."""
    held: list[torch.Tensor] = []
    fade = module("srd_core.fade")

    class Keeping(fade.Fade):  # type: ignore[name-defined,misc]
        def begin(self, *args: Any) -> Any:
            held.append(self._v.clone())
            return super().begin(*args)

    monkeypatch.setattr(module("srd_core.begin"), "Fade", Keeping)
    for scale in (1.0, 0.5):
        helpers.ksampler(scaled(wan, scale, fade=1.1), 40, **HOW)
    full, small = held
    low = Enlargement((24, 24), (12, 12), True).low
    assert distance(low(small), low(full)) < 1e-3 and distance(small, full) < 0.05


@pytest.mark.parametrize("width", [1.1, 1e6])
def test_only_what_the_small_sketch_has_seen_fades(width: float, wan: Any) -> None:
    """The new frequencies are the render's at once: an exact denoiser ends with a cut's, and with other low ones."""
    cut, soft = (helpers.ksampler(scaled(wan, fade=fade), 40, **HOW) for fade in (0.0, width))
    scale = Enlargement((24, 24), (12, 12), True)
    assert distance(scale.high(soft), scale.high(cut)) < 1e-4 and distance(scale.known(soft), scale.known(cut)) > 1e-3


def test_an_encoded_video_keeps_its_details_at_little_noise(wan: Any) -> None:
    """The full-size run and the small one end near each other: the new frequencies are the video's."""
    how = HOW | {"latent": {"samples": a_video(side=24)}, "denoise": 0.3}
    full = helpers.ksampler(exact(wan), 10, **how)
    small = helpers.ksampler(scaled(wan, switch=2), 10, **how)
    assert distance(small, full) < 0.05


def test_a_run_whose_latent_brings_the_noise_fills_up_with_the_seeds(wan: Any) -> None:
    """KSampler Advanced in a row, the second without noise: the level after the switch is that of the schedule."""
    model, prompts = exact(wan), (helpers.prompt(1), helpers.prompt(2))
    how = (40, 1.0, "euler", "simple", *prompts)
    empty = helpers.empty_latent(batch=4, side=24)
    first = KSamplerAdvanced().sample(model, "enable", 7, *how, empty, 0, 2, "enable")[0]
    full = KSamplerAdvanced().sample(model, "disable", 7, *how, first, 2, 40, "disable")[0]["samples"]
    small = KSamplerAdvanced().sample(scaled(wan), "disable", 8, *how, first, 2, 40, "disable")[0]["samples"]
    ratio = spectrum_of(model.model.process_latent_in(small)) / spectrum_of(model.model.process_latent_in(full))
    assert float((ratio - 1).abs().max()) < 0.25, ratio  # other noise in the new frequencies
    low = Enlargement((24, 24), (12, 12), True).low
    assert distance(low(small), low(full)) < 0.05
