"""Another stage is treated as the host treats any model: its clones, its wrappers, its cache, its mask."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import helpers
import pytest
import runs
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from hosting import module
from runs import STEPS, Report, Switch, cached, sampled, slow_wan, sr_model, wrapped

criterion = module("srd_core.criterion")
NEVER = {"switch_sigma": 0.0, "delta": 1e-9}


def watched(sketch: Any, report: Any, render: Any = None, **switch: Any) -> Any:
    """A pair whose rule sees every step of the sketch."""
    return sr_model(sketch, render or sketch.clone(), Switch(**{**NEVER, **switch}), report)


# --- wrappers of a stage ----------------------------------------------------------------------------------------------


def test_a_wrapper_around_a_run_of_the_render_gets_a_whole_guider(wan: Any) -> None:
    seen: dict[str, Any] = {}

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        seen.update(
            kind=type(guider),
            cfg=guider.cfg,
            positive=guider.original_conds["positive"][0]["cross_attn"].shape,
            conds=set(guider.conds),
            model=guider.model_patcher,
            options=guider.model_options,
        )
        return executor(*args, **kwargs)

    render = wrapped(wan(seed=1), look, WrappersMP.OUTER_SAMPLE)
    helpers.ksampler(sr_model(wan(), render, 2, cfg=2.0), STEPS)
    assert seen["kind"] is comfy.samplers.CFGGuider and seen["cfg"] == 2.0 and seen["model"] is render
    assert seen["positive"] == (1, 4, helpers.TEXT_DIM) and seen["conds"] == {"positive", "negative"}


def test_a_guiders_own_settings_reach_a_wrapper_of_the_render(wan: Any) -> None:
    seen: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((executor.class_obj.cfg1, executor.class_obj.cfg2))
        return executor(*args, **kwargs)

    render = wrapped(wan(seed=1), look, WrappersMP.OUTER_SAMPLE)
    sampled(sr_model(wan(), render, 1), sigmas=torch.tensor([1.0, 0.7, 0.3, 0.0]), guider="DualCFGGuider")
    assert seen == [(3.0, 2.0)]


def test_the_parts_of_a_latent_are_told_to_every_stages_model(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    seen: list[Any] = []
    render.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "look",
        lambda ex, *a, **k: (seen.append(render.model.latent_shapes), ex(*a, **k))[1],
    )
    helpers.ksampler(sr_model(sketch, render, 2), STEPS)
    assert [list(shape) for shape in seen[-1]] == [[1, 16, 2, 8, 8]]


# --- clones on other GPUs ---------------------------------------------------------------------------------------------


def test_clones_of_the_render_on_other_devices_are_prepared_used_and_cleaned_up(
    wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second device is played by the CPU under another name, as the host's own list of devices has it."""
    sketch, render = wan(), wan(seed=1)
    plain = helpers.ksampler(sr_model(sketch, render, 3), STEPS)
    clone = render.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
    clone.is_multigpu_base_clone = True
    render.set_additional_models("multigpu", [clone])
    life: list[str] = []
    kind = comfy.model_patcher.ModelPatcher
    for name in ("pre_run", "cleanup"):
        plainly = getattr(kind, name)

        def noted(self: Any, name: str = name, plainly: Any = plainly) -> Any:
            if self.is_multigpu_base_clone:
                life.append(name)
            return plainly(self)

        monkeypatch.setattr(kind, name, noted)
    used: list[set[Any]] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = executor.class_obj.model_options
        used.append(set(options.get("multigpu_clones", {})))
        assert options["multigpu_thread_pool"] is not None
        return executor(*args, **kwargs)

    render.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    latent = helpers.ksampler(sr_model(sketch, render, 3), STEPS)
    assert torch.allclose(latent, plain, atol=1e-5)
    assert used == [{torch.device("cpu"), torch.device("cpu", 0)}] * 3
    assert life[0] == "pre_run" and set(life[life.index("cleanup") :]) == {"cleanup"}


def with_clone(model: Any) -> Any:
    """``model`` with a clone of itself on another device, as MultiGPU CFG Split makes it."""
    clone = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
    clone.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [clone])
    return model


@pytest.mark.parametrize("policy", ["auto", "never"])
def test_clones_of_the_sketch_are_never_taken_for_the_renders(policy: str, wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    plain = helpers.ksampler(sr_model(sketch, render, 3), STEPS)
    latent = helpers.ksampler(sr_model(with_clone(sketch), render, 3, offload_sketch=policy), STEPS)
    assert torch.allclose(latent, plain, atol=1e-4)


@pytest.mark.parametrize("cache", ["none", "TeaCache", "EasyCache"])
def test_the_threads_of_clones_end_with_the_run(cache: str, wan: Any) -> None:
    render = with_clone(wan(seed=1))
    if cache == "EasyCache":
        render = EasyCacheNode.execute(render, 0.1, 0.1, 0.95, False).args[0]
    before = threading.active_count()
    helpers.ksampler(sr_model(wan(), render, 3, teacache=0.2 if cache == "TeaCache" else 0.0), STEPS)
    assert threading.active_count() == before


# --- what the rule sees -----------------------------------------------------------------------------------------------


def masked_latent(kept: float) -> dict[str, Any]:
    latent = {"samples": runs.a_video()}
    latent["noise_mask"] = (torch.arange(8) >= 8 * kept).float().expand(1, 1, 8, 8)
    return latent


def test_the_kept_part_of_a_latent_does_not_count(wan: Any) -> None:
    """D of the report against D of the callback's predictions over the generated part."""
    (sketch, seen), report, latent = runs.predictions_of(wan()), Report(), masked_latent(0.75)
    helpers.ksampler(watched(sketch, report), 8, latent=latent)
    part = (slice(None), slice(None), slice(None), slice(None), slice(6, None))
    # The host puts the kept part back into the prediction after our wrapper; D must not depend on it.
    expected = [float(criterion.relative_change(b[part], a[part])) for (_, a), (_, b) in itertools.pairwise(seen)]
    assert [s.d for s in report.steps[1:]] == pytest.approx(expected, rel=1e-4)


def test_a_latent_that_is_kept_whole_never_settles(wan: Any) -> None:
    report = Report()
    helpers.ksampler(watched(wan(), report, delta=1.0), 8, latent=masked_latent(1.0))
    assert not report.hand_overs and all(step.d in (None, 0.0) for step in report.steps)


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode], ids=["EasyCache", "LazyCache"])
def test_a_step_that_a_cache_in_front_of_the_sketch_answers_is_not_observed(node: Any, wan: Any) -> None:
    sketch, calls, report = wan(), [], Report()
    sketch.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "count", lambda ex, *a, **k: (calls.append(report.steps[-1].step), ex(*a, **k))[1]
    )
    front = node.execute(sketch, 1e6, 0.1, 0.95, False).args[0]
    reached: list[int] = []
    model = watched(front, report, wan())
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "last", lambda ex, *a, **k: (reached.append(report.steps[-1].step), ex(*a, **k))[1]
    )
    helpers.ksampler(model, 20, cfg=1.0)
    computed = sorted(set(reached))
    assert 2 < len(computed) < 20
    assert [step.step for step in report.steps if step.d is not None] == computed[1:]


@pytest.mark.parametrize("place", ["APPLY_MODEL", "function wrapper"])
def test_a_cache_in_any_other_place_is_seen_too(place: str, wan: Any) -> None:
    """One that answers every second step from what it has."""
    kept: list[Any] = []
    sketch, report = wan().clone(), Report()

    def answer(compute: Any) -> Any:
        if report.steps[-1].step % 2 == 0 and kept:
            return kept[-1]
        kept.append(compute())
        return kept[-1]

    if place == "APPLY_MODEL":
        sketch.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "cache", lambda ex, *a, **k: answer(lambda: ex(*a, **k)))
    else:
        sketch.set_model_unet_function_wrapper(
            lambda apply, args: answer(lambda: apply(args["input"], args["timestep"], **args["c"]))
        )
    helpers.ksampler(watched(sketch, report, wan()), 10, cfg=1.0)
    assert [step.step for step in report.steps if step.d is not None] == [3, 5, 7, 9]


def test_a_step_that_our_teacache_reuses_on_the_sketch_is_not_observed() -> None:
    report = Report()
    helpers.ksampler(watched(cached(slow_wan()), report, slow_wan(1)), 20)
    assert 0 < report.reused("sketch") < 19
    observed = [step.step for step in report.steps if step.d is not None]
    assert observed == [step.step for step in report.steps[1:] if not step.reused]


# --- the settings -----------------------------------------------------------------------------------------------------


def test_guidance_of_zero_is_the_negative_prompt_as_the_renders_positive(wan: Any) -> None:
    """What the tooltip of render_cfg says."""
    sketch, render = wan(), wan(seed=1)
    none = helpers.ksampler(render, STEPS, cfg=1e-7)  # the host's 0 is the same: negative + 0 (positive - negative)
    said = helpers.ksampler(sr_model(sketch, render, 0, cfg=1.0, positive=helpers.prompt(2)), STEPS)
    assert torch.allclose(said, none, atol=1e-4)


@pytest.mark.parametrize(("layers", "swapped"), [((1, 2), True), ((2, 1), False), ((1, 1), False)], ids=str)
def test_a_render_larger_than_the_sketch_is_noted(layers: tuple[int, int], swapped: bool, wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(layers=layers[0]), wan(seed=1, layers=layers[1]), 3, report), STEPS)
    assert report.notes == ([runs.pair.LARGER] if swapped else [])


def test_a_saved_latent_that_its_predictions_do_not_lead_to_is_refused(wan: Any) -> None:
    record, render = runs.sketched(wan())[0], wan(seed=1)
    record.x = record.x + 0.5 * record.x.abs().max()
    with pytest.raises(RuntimeError, match="not the one that its predictions lead to"):
        runs.rendered(record, render)
