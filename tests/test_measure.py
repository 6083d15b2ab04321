"""Measure Pair: what it says, against numbers worked out by hand, and that it leaves everything as it was."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import helpers
import pytest
import torch
from hosting import module
from runs import a_video, failing, interrupting, left_as_before, out_of_memory, predictions_of, sr_model
from test_fade import x0_of

fit, measure_run, text = module("srd_core.measure.fit"), module("srd_core.measure.run"), module("srd_core.measure.text")
node, RenderSettings = module("nodes.measure").SRMeasurePair, module("srd_core.stage").RenderSettings


def executed(sketch: Any, render: Any, **how: Any) -> tuple[Any, ...]:
    settings = {"steps": 10, "speed_up": 2.0, "points": 4} | how
    return node.execute(sketch, render, **helpers.sampling_inputs(**settings)).args


def measured(sketch: Any, render: Any, steps: int = 10, points: int = 4, **how: Any) -> Any:
    found = measure_run.Measured()
    helpers.ksampler(measure_run.measuring(sketch, render, RenderSettings(), points, found), steps, **how)
    return found


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_error_of_a_pull_is_that_of_the_blended_velocity() -> None:
    v_j, sketch, render = (torch.randn(1, 50, generator=torch.Generator().manual_seed(n)) for n in range(3))
    row = fit.pull(3, 7, 0.8, v_j, sketch, render)
    for width in (0.5, 1.1):
        a = 1 / (1 + (0.8 / width) ** 2)
        blended = a * v_j + (1 - a) * render
        assert row.error(width) == pytest.approx(float((blended - sketch).norm() / sketch.norm()), rel=1e-5)
    assert row.error(0.0) == pytest.approx(fit.difference(render, sketch), rel=1e-5)


def test_the_fitted_width_is_the_one_that_the_velocities_were_made_with() -> None:
    """v_sketch,i is exactly the blend of v_j and v_render,i at width 1."""
    rows = []
    for i, away in enumerate([0.2, 0.6, 1.0, 1.5, 2.5]):
        v_j, render = (torch.randn(1, 400, generator=torch.Generator().manual_seed(10 * i + n)) for n in range(2))
        a = 1 / (1 + away**2)
        rows.append(fit.pull(0, i, away, v_j, a * v_j + (1 - a) * render, render))
    assert fit.fitted_fade(rows) == pytest.approx(1.0, abs=0.03)


def test_where_a_cut_is_best_the_fitted_fade_is_0() -> None:
    render = torch.randn(1, 400)
    rows = [fit.pull(0, 1, 0.5, torch.randn(1, 400), render + 1e-3 * torch.randn(1, 400), render)]
    assert fit.fitted_fade(rows) == 0.0


@pytest.mark.parametrize(("speed_up", "after"), [(2.5, 12), (5.0, 1), (1.0, 50), (100.0, 1)])
def test_the_step_for_a_speed_up_reaches_it(speed_up: float, after: int) -> None:
    assert fit.step_for(speed_up, 50, 1.0, 0.2) == after
    if speed_up <= 2.5:
        assert fit.speed_of(after, 50, 1.0, 0.2) >= speed_up > fit.speed_of(after + 1, 50, 1.0, 0.2)


def test_a_render_that_is_no_faster_hands_over_never() -> None:
    assert fit.step_for(2.0, 50, 1.0, 1.0) == 50


@pytest.mark.parametrize(("steps", "points"), [(4, 2), (10, 4), (50, 12), (5, 100)])
def test_the_measured_steps_go_from_the_second_to_the_last(steps: int, points: int) -> None:
    chosen = fit.chosen(steps, points)
    assert chosen[0] == 1 and chosen[-1] == steps - 1 and len(chosen) == len(set(chosen)) == min(points, steps - 1)


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_disagreement_is_that_of_plain_predictions_at_the_sketchs_x(wan: Any) -> None:
    sketch, render, conds = wan(), wan(seed=1), (helpers.prompt(1), helpers.prompt(2))
    found, (watched, seen) = measured(sketch, render), predictions_of(sketch)
    helpers.ksampler(watched, 10)
    assert [point.step for point in found.points] == fit.chosen(10, 4)
    for point in found.points:
        x, _ = seen[point.step]
        ours, theirs = (x - x0_of(sketch, conds)(x, point.sigma), x - x0_of(render, conds)(x, point.sigma))
        assert point.differences["guided"] == pytest.approx(float((theirs - ours).norm() / ours.norm()), rel=1e-4)
        assert set(point.differences) == {"guided", "cond", "uncond"}


def test_only_the_part_that_is_generated_counts(wan: Any) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :2] = 1

    def spoiled(apply: Any, args: dict[str, Any]) -> torch.Tensor:
        return apply(args["input"], args["timestep"], **args["c"]) + 5 * (1 - mask)

    render, latent = wan(seed=1), {"samples": a_video(), "noise_mask": mask}
    found = measured(wan(), render, latent=latent)
    render.set_model_unet_function_wrapper(spoiled)
    for one, other in zip(found.points, measured(wan(), render, latent=latent).points, strict=True):
        assert one.differences == pytest.approx(other.differences, rel=1e-5)
    with pytest.raises(ValueError, match="noise_mask keeps all of it"):
        measured(wan(), render, latent=latent | {"noise_mask": 0 * mask})


@pytest.mark.parametrize("wrong", [{"speed_up": 0.5}, {"points": 1}], ids=lambda wrong: next(iter(wrong)))
def test_a_value_that_a_link_brings_from_below_its_range_is_refused_at_once(wrong: dict[str, Any], wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is {wrong[name]}; it must be"):
        executed(sketch, wan(seed=1), **wrong)
    assert not calls


def test_the_same_weights_do_not_disagree(wan: Any) -> None:
    found = measured(wan(), wan())
    assert all(value < 1e-5 for point in found.points for value in point.differences.values())
    assert fit.fitted_fade(found.guided) == 0.0


def test_without_guidance_there_is_no_cond_of_its_own(wan: Any) -> None:
    found = measured(wan(), wan(seed=1), cfg=1.0)
    assert all(set(point.differences) == {"guided"} for point in found.points) and not found.unguided


@pytest.mark.parametrize("sampler", ["heun", "euler_cfg_pp"])
def test_it_measures_under_any_sampler(sampler: str, wan: Any) -> None:
    assert len(measured(wan(), wan(seed=1), sampler_name=sampler).points) == 4


def test_the_node_gives_a_fade_a_step_a_plot_and_words(wan: Any) -> None:
    fade, step, plot, summary = executed(wan(), wan(seed=1))
    assert fade == 0 or 0.1 <= fade <= 10
    assert 1 <= step <= 10 and plot.ndim == 4 and plot.shape[-1] == 3
    for words in ("Disagreement of the render", "switch_step", "Error after a switch", "One prompt is one sample"):
        assert words in summary
    assert all(math.isfinite(float(word)) for word in (fade, step))


def test_each_model_is_loaded_once_and_the_sketch_alone_samples(wan: Any) -> None:
    (sketch, sketch_calls), (render, render_calls) = helpers.count_calls(wan()), helpers.count_calls(wan(seed=1))
    executed(sketch, render)
    assert len(sketch_calls) == 10 and len(render_calls) == 4


@pytest.mark.parametrize(("stage", "fault"), [("sketch", interrupting), ("render", failing)])
def test_after_a_fault_both_models_are_as_before(stage: str, fault: Any, wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    pair = (fault(sketch, 3), render) if stage == "sketch" else (sketch, fault(render, 2))
    with left_as_before(sketch, render):
        executed(*pair)


def test_a_shortage_of_memory_is_tried_again_and_measures_the_same(wan: Any, caplog: pytest.LogCaptureFixture) -> None:
    sketch, render = wan(), wan(seed=1)
    plain = measured(sketch, render)
    for pair in ((out_of_memory(sketch, 3), render), (sketch, out_of_memory(render, 2))):
        caplog.clear()
        found = measured(*pair)
        assert (found.points, found.guided) == (plain.points, plain.guided)
        assert "the step was tried once more" in caplog.text and "offload_sketch" not in caplog.text
    with pytest.raises(
        comfy.model_management.OOM_EXCEPTION, match="not enough memory for the render, also without the sketch"
    ):
        executed(sketch, out_of_memory(render, {2, 3}))


@pytest.mark.parametrize(("how", "words"), [({"steps": 3}, "needs 4 steps"), ({"denoise": 0.0}, "denoise is 0")])
def test_a_run_that_is_too_short_is_refused_before_any_step(how: dict[str, Any], words: str, wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match=words):
        executed(sketch, wan(seed=1), **how)
    assert not calls


def test_a_sketch_render_model_is_refused(wan: Any) -> None:
    with pytest.raises(ValueError, match="The render already is a Sketch-Render Model"):
        executed(wan(), sr_model(wan(), wan(seed=1), 2))
