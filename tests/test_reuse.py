"""TeaCache in the host: what a reused step runs, what it gives, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.sd
import helpers
import pytest
import runs
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from hosting import module
from test_host_features import windows

teacache = module("srd_core.teacache.plan")
wan_modulation = module("srd_core.teacache.wan").modulation
SRTeaCache = module("nodes.teacache").SRTeaCache

STEPS = 12
PER_BLOCK = 2  # attention calls: self and cross
LONGER = {"negative": helpers.prompt(2, tokens=7)}  # too different from 4 tokens: the host makes two calls


def count_blocks(model: Any) -> tuple[Any, list[int]]:
    """(clone of model, list that gets the block's index at every attention call, by the host's override)."""
    calls: list[int] = []

    def count(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["transformer_options"]["block_index"])
        return function(*args, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = count
    return model, calls


def watch(model: Any) -> tuple[Any, list[Any]]:
    """(clone of model, list that gets the cached run of every call of the transformer)."""
    made: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(args[-1].get(runs.reuse.KEY))
        return executor(*args, **kwargs)

    return runs.wrapped(model, look), made


def noting(model: Any, note: Any) -> Any:
    """A clone that calls note() after every guided prediction."""

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        note()
        return out

    return runs.wrapped(model, look, WrappersMP.PREDICT_NOISE)


def plan_of(
    model: Any, steps: int = STEPS, first: int = 0, threshold: float = runs.THRESHOLD, form: str = "e"
) -> list[bool]:
    """The plan for KSampler's simple schedule, from the parts that test_teacache.py tests."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)[first:-1]
    d = teacache.distances(wan_modulation(model.model.diffusion_model, sampling.timestep(sigmas), form))
    growth = teacache.growth(d, teacache.WAN_T2V[0].coefficients(form))
    return teacache.reuse_plan(growth, threshold, max(5 - first, 1) if form == "e0" else 1)


def test_threshold_0_and_a_plan_that_reuses_nothing_change_nothing() -> None:
    model, report = runs.slow_wan(), runs.Report()
    assert not any(plan_of(model, threshold=1e-9))
    plain = helpers.ksampler(model, STEPS)
    for threshold in (0.0, 1e-9):
        assert torch.equal(helpers.ksampler(runs.cached(model, threshold), STEPS), plain)
    assert not torch.equal(helpers.ksampler(runs.cached(model), STEPS), plain)
    helpers.ksampler(runs.sr_model(model, runs.slow_wan(1), 3, report, teacache=0.0), STEPS)
    assert all(stage.teacache == {} for stage in report.stages) and report.reused("render") == 0


@pytest.mark.parametrize("form", teacache.FORMS)
def test_a_reused_step_is_its_input_plus_what_the_last_computed_step_added(form: str) -> None:
    """Against a small TeaCache of the test's own: the same plan, one call a step (cfg 1)."""
    model = runs.slow_wan()
    plan = plan_of(model, form=form, threshold=0.3)
    assert any(plan) and not plan[0] and not plan[-1]
    state: dict[str, Any] = {"step": -1}

    def first(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        state["step"] += 1
        state["img"] = args["img"]
        return args if plan[state["step"]] else extra["original_block"](args)

    def middle(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return args if plan[state["step"]] else extra["original_block"](args)

    def last(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        if plan[state["step"]]:
            return {"img": state["img"] + state["residual"]}
        out = extra["original_block"](args)
        state["residual"] = out["img"] - state["img"]
        return out

    reference = model.clone()
    for i, function in enumerate([first, middle, last]):
        reference.set_model_patch_replace(function, "dit", "double_block", i)
    expected = helpers.ksampler(reference, STEPS, cfg=1.0)
    assert state["step"] == STEPS - 1
    assert torch.equal(helpers.ksampler(runs.cached(model, 0.3, form=form), STEPS, cfg=1.0), expected)
    assert not torch.equal(expected, helpers.ksampler(model, STEPS, cfg=1.0))


RUNS: dict[str, tuple[dict[str, Any], int]] = {  # KSampler's inputs, and the calls of the transformer in a step
    "cond and uncond in one call": ({}, 1),
    "cond and uncond in two calls": (LONGER, 2),
    "cfg 1": ({"cfg": 1.0}, 1),
    "batch 2": ({"latent": helpers.empty_latent(batch=2)}, 1),
    "two prompts combined": ({"positive": helpers.prompt(1) + helpers.prompt(4)}, 1),
}


@pytest.mark.parametrize("how", RUNS)
def test_a_reused_step_runs_no_transformer_block(how: str) -> None:
    inputs, calls_a_step = RUNS[how]
    model, calls = count_blocks(runs.slow_wan())
    plan = plan_of(model)
    out = helpers.ksampler(runs.cached(model), STEPS, **inputs)
    assert torch.isfinite(out).all()
    assert 0 < sum(plan) < STEPS
    assert len(calls) == plan.count(False) * calls_a_step * runs.LAYERS * PER_BLOCK


def test_every_context_window_has_its_own_residual() -> None:
    model, calls = count_blocks(windows(runs.slow_wan()))
    model, made = watch(model)
    kept: list[int] = []
    inner = noting(model, lambda: kept.append(len(made[-1].residuals)))
    out = helpers.ksampler(runs.cached(inner), STEPS, latent=helpers.empty_latent(frames=6))
    assert torch.isfinite(out).all()
    computed = plan_of(model).count(False)
    count = len(calls) // (computed * runs.LAYERS * PER_BLOCK)
    assert count > 1 and len(calls) == computed * runs.LAYERS * PER_BLOCK * count
    assert max(kept) == 2 * count  # cond and uncond of every window


def test_windows_that_move_from_step_to_step_do_not_get_each_others_residuals() -> None:
    model, made = watch(windows(runs.slow_wan(), context_schedule="standard_uniform"))
    asked: dict[int, set[tuple[int, ...]]] = {}

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        asked.setdefault(made[-1].counter.step, set()).add(tuple(args[-1]["context_window"].index_list))
        return out

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    helpers.ksampler(runs.cached(model), STEPS, latent=helpers.empty_latent(frames=10))
    run, known, met_new_ones = made[-1], set[tuple[int, ...]](), False
    for step in sorted(asked):
        known = known if run.plan.reuses(step) else set()  # a computed step starts anew
        if known and not asked[step] <= known:
            met_new_ones = True
            assert step not in run.reused
        known = known | asked[step]
    assert met_new_ones


def test_skip_layer_guidance_keeps_working_and_is_reused_too() -> None:
    """Its node replaces blocks and asks for the prompt a second time in a step."""
    how = {"scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    slg = SkipLayerGuidanceDiT.execute(runs.slow_wan(), double_layers="0, 2", single_layers="", **how).args[0]
    plain, _ = count_blocks(slg)
    assert torch.equal(helpers.ksampler(runs.cached(plain, 1e-9), STEPS), helpers.ksampler(slg, STEPS))
    model, calls = count_blocks(slg)
    kept: list[int] = []
    model, made = watch(model)
    out = helpers.ksampler(runs.cached(noting(model, lambda: kept.append(len(made[-1].residuals)))), STEPS)
    assert torch.isfinite(out).all()
    assert max(kept) == 3  # cond, uncond, and cond with the layers skipped
    assert (
        len(calls) == plan_of(model).count(False) * (runs.LAYERS + 1) * PER_BLOCK
    )  # the second call runs block 1 alone


@pytest.mark.parametrize("sampler", ["heun", "dpm_fast", "uni_pc"])
def test_samplers_of_every_kind_reuse_whole_steps(sampler: str) -> None:
    model, calls = count_blocks(runs.slow_wan())
    plain = helpers.ksampler(model, STEPS, sampler_name=sampler)
    all_calls = len(calls)
    calls.clear()
    out = helpers.ksampler(runs.cached(model), STEPS, sampler_name=sampler)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    share = plan_of(model).count(False) / STEPS
    assert len(calls) / all_calls == pytest.approx(share, abs=2.5 / STEPS)


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_a_residual_is_never_older_than_the_step_before(sampler: str) -> None:
    """Samplers with own noise levels leave out intervals of the schedule; a plan may want to reuse after one."""
    model, made = watch(runs.slow_wan())
    steps: list[int] = []
    model = noting(model, lambda: steps.append(made[-1].counter.step))
    helpers.ksampler(runs.cached(model, 0.5), 60, sampler_name=sampler, cfg=1.0)
    run = made[-1]
    left_out = {s for s in set(steps) if s and s - 1 not in steps}
    assert any(run.plan.reuses(s) for s in left_out), "this run has such a step"
    assert not left_out & run.reused


# --- on the stages of a Sketch-Render run -----------------------------------------------------------------------------


def test_sr_sampler_reuses_render_steps_alone_and_reports_which() -> None:
    sketch, sketch_calls = count_blocks(runs.slow_wan())
    render, render_calls = count_blocks(runs.slow_wan(1))
    report, after = runs.Report(), 4
    helpers.ksampler(runs.sr_model(sketch, render, after, report, teacache=runs.THRESHOLD), STEPS)
    plan = plan_of(render, first=after)
    assert [s.reused for s in report.steps] == [False] * after + plan
    assert report.stage("render").teacache["reuse"] == plan and report.stage("render").teacache["first_step"] == after
    assert [bool(stage.teacache) for stage in report.stages] == [False, True]
    assert len(sketch_calls) == after * runs.LAYERS * PER_BLOCK
    assert sum(plan) > 0 and len(render_calls) == plan.count(False) * runs.LAYERS * PER_BLOCK
    assert report.reused("render") == sum(plan)
    assert any("128 wide" in note for note in report.notes), "it is none of the sizes that have a table"
    assert runs.Report.from_json(report.to_json()) == report


def test_the_input_of_sr_sampler_is_render_teacache_on_the_render() -> None:
    sketch, render = runs.slow_wan(), runs.slow_wan(1)
    by_input = runs.sr_sampler(sketch, render, steps=STEPS, teacache=runs.THRESHOLD)
    (node,) = SRTeaCache.execute(render, runs.THRESHOLD, "e", "gpu").args
    assert torch.equal(runs.sr_sampler(sketch, node, steps=STEPS), by_input)
    assert not torch.equal(runs.sr_sampler(sketch, render, steps=STEPS), by_input)
    with pytest.raises(ValueError, match="already comes from Render TeaCache"):
        runs.sr_sampler(sketch, node, steps=STEPS, teacache=0.1)


def test_teacache_on_the_sketch_stays_on_the_sketch() -> None:
    sketch, sketch_calls = count_blocks(runs.slow_wan())
    render, render_calls = count_blocks(runs.slow_wan(1))
    report, after = runs.Report(), 8
    helpers.ksampler(runs.sr_model(runs.cached(sketch), render, after, report), STEPS)
    plan = plan_of(sketch)[:after]
    assert [s.reused for s in report.steps] == plan + [False] * (STEPS - after)
    assert any(plan) and len(sketch_calls) == plan.count(False) * runs.LAYERS * PER_BLOCK
    assert len(render_calls) == (STEPS - after) * runs.LAYERS * PER_BLOCK


def test_a_cached_render_that_runs_alone_is_the_cached_plain_run() -> None:
    sketch, render = runs.slow_wan(), runs.slow_wan(1)
    assert torch.equal(
        helpers.ksampler(runs.sr_model(sketch, runs.cached(render), 0), STEPS),
        helpers.ksampler(runs.cached(render), STEPS),
    )
    assert torch.equal(
        helpers.ksampler(runs.sr_model(runs.cached(sketch), render, STEPS), STEPS),
        helpers.ksampler(runs.cached(sketch), STEPS),
    )


# --- what TeaCache does not know --------------------------------------------------------------------------------------


def test_a_model_that_it_does_not_know_runs_unchanged_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = comfy.sd.load_diffusion_model_state_dict(runs.slow_state_dict(build=runs.vace_state_dict))
    assert type(model.model.diffusion_model).__name__ == "VaceWanModel"
    plain = helpers.ksampler(model, STEPS)
    with caplog.at_level(logging.INFO):
        assert torch.equal(helpers.ksampler(runs.cached(model), STEPS), plain)
    said = [r.getMessage() for r in caplog.records if "VaceWanModel" in r.getMessage() and "TeaCache" in r.getMessage()]
    assert len(said) == 1 and "without" in said[0]
    report = runs.Report()
    helpers.ksampler(runs.sr_model(runs.slow_wan(), model, 3, report, teacache=runs.THRESHOLD), STEPS)
    assert any("VaceWanModel" in note for note in report.notes)
    assert report.reused("render") == 0


def test_a_node_that_works_between_the_blocks_turns_it_off_and_the_report_says_so() -> None:
    model = runs.slow_wan()
    model.set_model_patch(lambda args: {"img": args["img"]}, "double_block")
    plain = helpers.ksampler(model, STEPS)
    report = runs.Report()
    assert torch.equal(helpers.ksampler(runs.cached(model), STEPS), plain)
    helpers.ksampler(runs.sr_model(runs.slow_wan(1), model, 3, report, teacache=runs.THRESHOLD), STEPS)
    assert any("between the transformer blocks" in note for note in report.notes)


def test_a_render_stage_of_fewer_than_5_steps_reuses_nothing() -> None:
    report = runs.Report()
    helpers.ksampler(runs.sr_model(runs.slow_wan(), runs.slow_wan(1), 4, report, teacache=100.0), 8)
    assert report.reused("render") == 0 and any("too short" in note for note in report.notes)


def test_a_threshold_or_a_form_that_means_nothing_is_refused() -> None:
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="threshold must be 0"):
            runs.reuse.TeaCache(threshold)
    with pytest.raises(ValueError, match="form"):
        runs.reuse.TeaCache(0.1, "f")


# --- what the plan rests on ------------------------------------------------------------------------------------------


def test_a_time_embedding_that_is_not_finite_reuses_nothing_and_its_report_is_read() -> None:
    state_dict = runs.slow_state_dict()
    state_dict["time_embedding.2.bias"][0] = float("nan")
    broken, report = comfy.sd.load_diffusion_model_state_dict(state_dict), runs.Report()
    with pytest.raises(RuntimeError, match="The render's prediction has values that are not finite"):
        helpers.ksampler(runs.sr_model(runs.slow_wan(1), runs.cached(broken), 3, report), STEPS)
    plan = runs.Report.from_json(report.to_json()).stage("render").teacache
    assert not any(plan["reuse"]) and plan["growth"] == [] and "time embedding" in plan["note"]


def test_layers_that_multiply_in_fp8_give_the_plan_of_the_plain_ones() -> None:
    """weight_dtype fp8_e4m3fn_fast: the host rounds the layers' input to fp8, by more than two steps differ."""
    model = runs.slow_wan().model.diffusion_model
    for layer in (model.time_embedding[0], model.time_embedding[2]):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
        layer.bias.data = layer.bias.data.to(torch.float8_e4m3fn)
    timesteps = torch.linspace(1000, 20, STEPS)
    plain: dict[str, Any] = {}
    fast: dict[str, Any] = {}
    for found, operations in ((plain, comfy.ops.manual_cast), (fast, comfy.ops.fp8_ops)):
        for layer in (model.time_embedding[0], model.time_embedding[2]):
            layer.__class__ = operations.Linear
        found["d"] = teacache.distances(wan_modulation(model, timesteps, "e"))
    assert plain == fast and len(set(plain["d"])) > 1


def test_a_family_with_one_form_is_planned_in_that_form_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, report = runs.slow_wan(1), runs.Report()
    one_form = dataclasses.replace(teacache.WAN_T2V[0], e0=())
    monkeypatch.setattr(teacache, "WAN_T2V", (one_form,))
    helpers.ksampler(runs.sr_model(runs.slow_wan(), runs.cached(model, form="e0"), 3, report), STEPS)
    plan = report.stage("render").teacache
    assert plan["form"] == "e" and plan["reuse"] == plan_of(model, first=3)


def test_the_node_refuses_a_sketch_render_model_whose_sketch_it_would_cache() -> None:
    with pytest.raises(
        ValueError, match="The model of Render TeaCache already is a Sketch-Render Model; connect a plain MODEL"
    ):
        SRTeaCache.execute(runs.sr_model(runs.slow_wan(), runs.slow_wan(1), 3), 0.1, "e", "gpu")
