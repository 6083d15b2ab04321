"""The fade at a hand-over: its formula, against loops written by hand, and in every kind of run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.model_sampling as sampling
import comfy.samplers
import helpers
import pytest
import runs
import torch
from hosting import module

fade_module, cogvideox = module("srd_core.fade"), module("srd_core.cogvideox")
Fade, WIDTH = fade_module.Fade, 1.1


def faded(sketch: Any, render: Any, switch: Any = 4, report: Any = None, **settings: Any) -> Any:
    return runs.sr_model(sketch, render, switch, report, **{"fade": WIDTH, **settings})


# --- the formula ------------------------------------------------------------------------------------------------------


def test_from_pure_noise_and_above_nothing_fades() -> None:
    """A multiplied schedule begins above 1."""
    lambdas = fade_module.log_snr(torch.tensor([1.2, 1.1, 1.0, 0.9]), flow=True)
    assert fade_module.weight(lambdas, lambdas[:1], WIDTH).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("r", "low", "high"), [(0.0, 1.0, 1.0), (0.3, 0.99, 1.0), (0.7, 0.45, 0.55), (1.7, 0.0, 0.001)]
)
def test_the_guard_lets_steady_predictions_through_and_stops_those_that_turn(r: float, low: float, high: float) -> None:
    """The x0 of the last two steps differ by r times the last x - x0."""
    assert low <= guard_of([0.0, r, 0.0], [0.0, 0.0, 0.0], noise=[1.0, 0.0, 0.0]) <= high


def test_the_guard_looks_only_where_the_latent_is_generated() -> None:
    turns_in_one = {"before": [0.0, 5.0], "after": [0.0, -5.0], "noise": [1.0, 1.0]}
    assert guard_of(**turns_in_one) < 0.001
    assert guard_of(**turns_in_one, mask=torch.tensor([[1.0, 0.0]])) == 1.0


def guard_of(before: list[float], after: list[float], noise: list[float], mask: Any = None) -> float:
    """The guard of a fade from two steps at sigma .5 with these x0 and this noise in the last x."""
    fade = Fade(flow=True)
    for x0 in (before, after):
        fade.note(torch.tensor([x0]) + torch.tensor([noise]), torch.tensor([0.5]), torch.tensor([x0]))
    (guard,) = fade.begin(WIDTH, mask)
    return guard


def noisy(shares: list[float]) -> tuple[float, float]:
    """(Error of a fade with new noise in x, weight of what was held), the shares of new noise by step; x0 is known."""
    draw = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 1, 4000, generator=draw) * torch.tensor([0.3, 1.0]).reshape(2, 1, 1)
    sigmas, fade = [torch.tensor([s]) for s in (0.9, 0.88, 0.85, 0.8)], Fade(flow=True)
    for sigma in sigmas[:2]:
        fade.note((1 - sigma) * x0 + sigma * noise, sigma, x0)
    assert fade.begin(1e6) == [1.0]
    for sigma, share in zip(sigmas[2:], shares):
        noise = (1 - share) ** 0.5 * noise + share**0.5 * torch.randn(noise.shape, generator=draw)
        x = (1 - sigma) * x0 + sigma * noise
        error = float((fade.blend(x, sigma, x0) - x0).abs().max())
    return error, 1 - float((fade.blend(x, sigma, x0 + 1) - x0).mean())


def test_new_noise_is_not_taken_for_content() -> None:
    """Whatever noise a sampler draws: where both stages see the same video, so does the fade."""
    assert max(noisy([share, share])[0] for share in (0.0, 0.3, 1.0)) < 1e-5


def test_what_is_held_goes_with_its_noise() -> None:
    weights = [noisy([share, share])[1] for share in (0.0, 0.1, 0.3, 1.0)]
    assert weights == sorted(weights, reverse=True) and weights[0] == pytest.approx(1, abs=1e-3)
    assert weights[1] > 0.95 and weights[-1] < 0.1


def weights(mask: Any = None) -> list[float]:
    """What is left of a fade in a batch of two; in half of the second sample all noise is new."""
    draw = torch.Generator().manual_seed(1)
    noise, other = torch.randn(2, 2, 4000, generator=draw)
    sigma, fade = torch.tensor([0.9, 0.9]), Fade(flow=False)
    for _ in range(2):
        fade.note(0.9 * noise, sigma, torch.zeros(2, 4000))
    assert fade.begin(1e6, mask) == [1.0, 1.0]
    noise[1, :2000] = 3 * other[1, :2000]
    return (1 - fade.blend(0.8 * noise, sigma - 0.1, torch.ones(2, 4000)).mean(1)).tolist()


def test_every_sample_has_its_own_new_noise_and_only_where_the_latent_is_generated() -> None:
    assert weights() == pytest.approx([1.0, 0.0], abs=0.02)
    mask = torch.ones(1, 4000)
    mask[:, :2000] = 0
    assert weights(mask) == pytest.approx([1.0, 1.0], abs=0.02)


def test_what_is_held_moves_with_the_level_alone_and_never_back() -> None:
    """H of a prediction that changes: as in euler steps by hand, with new noise in x or without."""
    d_j, d = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    for noise in (0.0, 0.05):
        fade, held, given, before = Fade(flow=True), d_j, d_j, 0.88
        for sigma in (0.9, before):
            fade.note(d_j + sigma, torch.tensor([sigma]), d_j)
        (g,) = fade.begin(WIDTH)
        for sigma in (0.8, 0.85, 0.6):
            got = fade.blend(d_j + sigma * (1 + noise), torch.tensor([sigma]), d)
            held = held + max(1 - sigma / before, 0) * (given - held)
            assert torch.allclose(fade._held.x0, held)
            before, given = sigma, got
    assert g == 1.0


def test_a_call_at_no_noise_stays_finite() -> None:
    fade = Fade(flow=True)
    for sigma in (0.9, 0.8):
        fade.note(torch.ones(1, 3), torch.tensor([sigma]), torch.zeros(1, 3))
    fade.begin(WIDTH)
    calls = [fade.blend(torch.ones(1, 3), torch.zeros(1), torch.full((1, 3), 0.5)) for _ in range(2)]
    assert all(torch.equal(call, torch.full((1, 3), 0.5)) for call in calls)


def test_every_sample_of_a_batch_has_its_own_guard() -> None:
    fade = Fade(flow=True)
    for sign in (1.0, -1.0):  # the second sample turns over
        fade.note(torch.ones(2, 3), torch.full((2,), 0.9), torch.tensor([[0.1] * 3, [1 - sign] * 3]))
    guards = fade.begin(WIDTH)
    assert guards == pytest.approx([1.0, 0.0], abs=0.01)
    blended = fade.blend(torch.ones(2, 3), torch.full((2,), 0.9), torch.zeros(2, 3))
    assert blended[0].tolist() == pytest.approx([0.1] * 3) and blended[1].abs().max() < 0.02


# --- against a loop written by hand -----------------------------------------------------------------------------------


def by_hand(sketch: Any, render: Any, after: int, flow: bool, sigmas: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Euler over the models' own predictions, which plain runs of one step give: x at the end."""
    velocities: list[torch.Tensor] = []
    for i, sigma in enumerate(sigmas[:-1]):
        x0 = (sketch if i < after else render)(x, float(sigma))
        v = (x - x0) / sigma
        if i < after:
            velocities.append(v)
        else:
            s, j = float(sigma), float(sigmas[after - 1])
            away = math.log((1 - s) / s) - math.log((1 - j) / j) if flow else math.log(j) - math.log(s)
            r = float((velocities[-1] - velocities[-2]).norm() / velocities[-1].norm())
            a = 1 / (1 + (away / WIDTH) ** 2) / (1 + (r / 0.7) ** 8)
            v = a * velocities[-1] + (1 - a) * v
        x = x + v * (sigmas[i + 1] - sigma)
    return x


def guided(model: Any, conds: tuple[Any, Any]) -> Any:
    """The host's own guider, at cfg 3."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(3.0)
    return guider


def x0_of(model: Any, conds: tuple[Any, Any]) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The guided x0 prediction of a MODEL at x and sigma, through the host's own guider."""

    def predict(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def look(model_k: Any, noise: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
            seen.append(model_k(x, torch.full((len(x),), sigma), **extra_args))
            return noise

        nothing, levels = torch.zeros_like(x), torch.tensor([sigma, 0.0])
        guided(model, conds).sample(nothing, nothing, comfy.samplers.KSAMPLER(look), levels)
        return seen[0]

    return predict


def run(model: Any, conds: tuple[Any, Any], sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    guider = guided(model, conds)
    out = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, seed=1)
    return guider.model_patcher.model.process_latent_in(out)


def test_a_flow_model_fades_as_a_loop_by_hand(wan: Any) -> None:
    conds = (helpers.prompt(1), helpers.prompt(2))
    sketch, render = wan(), wan(seed=1)
    sigmas = comfy.samplers.calculate_sigmas(sketch.get_model_object("model_sampling"), "simple", 12)
    noise = torch.randn(2, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = by_hand(x0_of(sketch, conds), x0_of(render, conds), 4, True, sigmas, noise * sigmas[0])
    assert runs.distance(run(faded(sketch, render), conds, sigmas, noise), expected) < 1e-6
    assert runs.distance(run(faded(sketch, render, fade=0.0), conds, sigmas, noise), expected) > 1e-3


OTHER_KINDS = {
    "noise": (sampling.ModelSamplingDiscrete, sampling.EPS),
    "v, variance preserving": (sampling.ModelSamplingDiscrete, sampling.V_PREDICTION),
    "v, DDPM": (sampling.ModelSamplingDiscrete, sampling.V_PREDICTION_DDPM),
    "Cosmos": (sampling.ModelSamplingCosmosRFlow, sampling.COSMOS_RFLOW),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_model_that_does_not_flow_fades_as_a_loop_by_hand(kind: str, wan: Any) -> None:
    conds = (helpers.prompt(1), helpers.prompt(2))
    sketch, render = wan(), wan(seed=1)
    levels = type("Levels", OTHER_KINDS[kind], {})()
    for model in (sketch, render):
        model.add_object_patch("model_sampling", levels)
    sigmas = comfy.samplers.calculate_sigmas(levels, "simple", 10)
    noise = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    start = levels.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    expected = by_hand(x0_of(sketch, conds), x0_of(render, conds), 4, False, sigmas, start)
    assert runs.distance(run(faded(sketch, render), conds, sigmas, noise), expected) < 1e-6
    assert runs.distance(run(faded(sketch, render, fade=0.0), conds, sigmas, noise), expected) > 1e-4


@pytest.mark.parametrize("render_of", ["5b", "2b"])
def test_cogvideox_fades_as_a_loop_by_hand_also_into_another_latent_space(
    render_of: str, folders: dict[str, Path]
) -> None:
    conds = tuple(oracle.prompts().values())
    sketch, render = cogvideox.load(folders["5b"]), cogvideox.load(folders[render_of])
    sigmas = comfy.samplers.calculate_sigmas(sketch.get_model_object("model_sampling"), "simple", 10)
    noise = torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(3))
    latent_map = module("srd_core.latent").check_pair(sketch, render)

    def in_sketchs_space(x: torch.Tensor, sigma: float) -> torch.Tensor:
        own_x, own_sigma = latent_map.to_render(x, torch.tensor(sigma))
        return latent_map.clean_to_sketch(x0_of(render, conds)(own_x, float(own_sigma)))

    start = sketch.get_model_object("model_sampling").noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    expected = by_hand(x0_of(sketch, conds), in_sketchs_space, 4, False, sigmas, start)
    assert runs.distance(run(faded(sketch, render), conds, sigmas, noise), expected) < 2e-6


# --- in every kind of run ---------------------------------------------------------------------------------------------

# One that keeps no history, one that does, and one that chooses its levels; test_every_sampler.py has the others.
SAMPLERS = ["euler", "uni_pc", "dpm_adaptive"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_fade_changes_the_render_alone(sampler: str, wan: Any) -> None:
    cut, soft = runs.Report(), runs.Report()
    sketch, render = wan(), wan(seed=1)
    hard = helpers.ksampler(faded(sketch, render, report=cut, fade=0.0), 8, sampler_name=sampler)
    latent = helpers.ksampler(faded(sketch, render, report=soft), 8, sampler_name=sampler)
    assert torch.isfinite(latent).all() and not torch.equal(latent, hard)
    before = [[(s.stage, s.d) for s in report.steps if s.stage == "sketch"] for report in (cut, soft)]
    assert before[0] == before[1]
    assert cut.hand_overs[0].fade == [] and len(soft.hand_overs[0].fade) == 4


def test_the_report_tells_the_share_of_every_step(wan: Any) -> None:
    report = runs.Report()
    helpers.ksampler(faded(wan(), wan(seed=1), report=report), 20)
    (hand_over,) = report.hand_overs
    lambdas = [math.log((1 - s) / s) for s in report.sigmas[3:-1]]
    expected = [1 / (1 + ((x - lambdas[0]) / WIDTH) ** 2) for x in lambdas[1:]]
    guard = hand_over.fade[0] / expected[0]
    assert 0 < guard <= 1 and hand_over.fade == pytest.approx([guard * a for a in expected], rel=1e-5)
    assert runs.Report.from_json(report.to_json()).hand_overs[0].fade == hand_over.fade


def test_a_hand_over_after_one_step_is_a_cut_and_says_so(wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), runs.Report()
    latent = helpers.ksampler(faded(sketch, render, 1, report), 8)
    assert torch.equal(latent, helpers.ksampler(faded(sketch, render, 1, fade=0.0), 8))
    assert any("No fade to the render" in note for note in report.notes)


def test_a_masked_and_a_batched_run_fade(wan: Any) -> None:
    given = runs.a_video()
    soft = helpers.ksampler(faded(wan(), wan(seed=1)), 8, latent={"samples": given, "noise_mask": runs.right_half()})
    assert torch.allclose(soft[..., :4], given[..., :4], atol=1e-4)
    batch = helpers.ksampler(faded(wan(), wan(seed=1)), 8, latent=helpers.empty_latent(batch=2))
    assert torch.isfinite(batch).all() and not torch.equal(batch[0], batch[1])


def test_the_two_halves_fade_as_one_run(wan: Any) -> None:
    for sampler in ("uni_pc", "dpmpp_2m_sde"):
        how = {"steps": 8, "switch_mode": "step", "switch_step": 4, "sampler_name": sampler}
        one = helpers.ksampler(faded(wan(), wan(seed=1)), 8, sampler_name=sampler)
        record = runs.sketched(wan(), **how)[0]
        assert torch.equal(runs.rendered(record, wan(seed=1), fade=WIDTH)[0]["samples"], one), sampler


def test_a_render_with_teacache_reuses_the_same_steps_and_fades_what_it_gives() -> None:
    """At the last call a hair of the fade is left: what is held is by far the most at the first."""
    reports_of, latents = [runs.Report(), runs.Report()], []
    for width, report in zip((0.0, WIDTH), reports_of):
        model = faded(runs.slow_wan(), runs.slow_wan(1), report=report, fade=width, teacache=runs.THRESHOLD)
        latents.append(helpers.ksampler(model, 20))
    reused = [[step.reused for step in report.steps] for report in reports_of]
    assert reused[0] == reused[1] and sum(reused[0]) > 0
    assert runs.distance(*latents) > 1e-3


def test_a_stage_that_comes_back_starts_with_its_own_predictions(wan: Any) -> None:
    report = runs.Report()
    helpers.ksampler(faded(wan(), wan(seed=1), "1-3, 6-7", report), 10)
    assert [(h.to, len(h.fade)) for h in report.hand_overs] == [("render", 2), ("sketch", 0), ("render", 3)]


@pytest.mark.parametrize("width", [-1.0, float("nan"), float("inf")])
def test_a_width_that_is_no_width_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="fade is"):
        runs.sr_model(None, None, fade=width)
