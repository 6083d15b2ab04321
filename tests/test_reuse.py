"""TeaCache in the host: what a reused step runs, what it gives, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import weakref
from typing import Any

import comfy.ldm.wan.model
import comfy.model_management
import comfy.ops
import comfy.sd
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from hosting import module
from test_cooperation import sr_model, sr_sampler
from test_host_features import lora, windows

reuse, teacache = module("srd_core.teacache.host"), module("srd_core.teacache.plan")
wan_modulation = module("srd_core.teacache.wan").modulation
Report = module("srd_core.report.data").Report
summarize = module("srd_core.report.text").summarize
SRTeaCache = module("nodes.teacache").SRTeaCache

LAYERS, STEPS, THRESHOLD = 3, 12, 0.2
PER_BLOCK = 2  # attention calls: self and cross
LONGER = {"negative": helpers.prompt(2, tokens=7)}  # too different from 4 tokens: the host makes two calls


def slow_state_dict(seed: int = 0, build: Any = None) -> dict[str, torch.Tensor]:
    """A Wan whose time embedding changes as little from step to step as a trained one's, so that a plan reuses some."""
    state_dict = build(seed) if build else helpers.wan_state_dict(seed=seed, layers=LAYERS)
    state_dict["time_embedding.0.weight"] *= 0.02
    state_dict["time_embedding.0.bias"] = torch.ones_like(state_dict["time_embedding.0.bias"])
    return state_dict


def slow_wan(seed: int = 0) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(slow_state_dict(seed))


def cached(model: Any, threshold: float = THRESHOLD, **settings: Any) -> Any:
    return reuse.with_teacache(model, reuse.TeaCache(threshold, **settings))


def count_blocks(model: Any) -> tuple[Any, list[int]]:
    """(clone of model, list that gets the index of every transformer block's attention call, by the host's override)."""
    calls: list[int] = []

    def count(function: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["transformer_options"]["block_index"])
        return function(*args, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = count
    return model, calls


def watch(model: Any) -> tuple[Any, list[Any]]:
    """(clone of model, list that gets the cached run of every call of the transformer)."""
    runs: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(args[-1].get(reuse.KEY))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", look)
    return model, runs


def plan_of(
    model: Any, steps: int = STEPS, first: int = 0, threshold: float = THRESHOLD, form: str = "e"
) -> list[bool]:
    """The plan for KSampler's simple schedule, from the parts that test_teacache.py tests."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)[first:-1]
    d = teacache.distances(wan_modulation(model.model.diffusion_model, sampling.timestep(sigmas), form))
    coefficients = teacache.WAN_T2V[0].coefficients(form)
    return teacache.skip_plan(d, coefficients, threshold, max(5 - first, 1) if form == "e0" else 1)


def test_threshold_0_changes_nothing() -> None:
    model = slow_wan()
    assert torch.equal(helpers.ksampler(cached(model, 0.0), STEPS), helpers.ksampler(model, STEPS))
    report = Report()
    sr_sampler(model, slow_wan(1), steps=STEPS, teacache=0.0)
    helpers.ksampler(sr_model(model, slow_wan(1), 3, report), STEPS)
    assert all(stage.teacache == {} for stage in report.stages) and report.reused("render") == 0


def test_a_plan_that_reuses_nothing_changes_nothing() -> None:
    model = slow_wan()
    assert not any(plan_of(model, threshold=1e-9))
    plain = helpers.ksampler(model, STEPS)
    assert torch.equal(helpers.ksampler(cached(model, 1e-9), STEPS), plain)
    assert not torch.equal(helpers.ksampler(cached(model), STEPS), plain)


@pytest.mark.parametrize("form", teacache.FORMS)
def test_a_reused_step_is_its_input_plus_what_the_blocks_added_at_the_last_computed_step(form: str) -> None:
    """Against a small TeaCache of the test's own: the same plan, one call a step (cfg 1)."""
    model = slow_wan()
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
    assert torch.equal(helpers.ksampler(cached(model, 0.3, form=form), STEPS, cfg=1.0), expected)
    assert not torch.equal(expected, helpers.ksampler(model, STEPS, cfg=1.0))


RUNS: dict[str, tuple[dict[str, Any], int]] = {  # KSampler's inputs, and the calls of the transformer in a step
    "cond and uncond in one call": ({}, 1),
    "cond and uncond in two calls": (LONGER, 2),
    "cfg 1": ({"cfg": 1.0}, 1),
    "batch 2": ({"latent": helpers.empty_latent(batch=2)}, 1),
    "two prompts combined": ({"positive": helpers.prompt(1) + helpers.prompt(4)}, 1),
    "uni_pc": ({"sampler_name": "uni_pc"}, 1),
    "dpmpp_2m": ({"sampler_name": "dpmpp_2m"}, 1),
}


@pytest.mark.parametrize("how", RUNS)
def test_a_reused_step_runs_no_transformer_block(how: str) -> None:
    inputs, calls_a_step = RUNS[how]
    model, calls = count_blocks(slow_wan())
    plan = plan_of(model)
    out = helpers.ksampler(cached(model), STEPS, **inputs)
    assert torch.isfinite(out).all()
    assert 0 < sum(plan) < STEPS
    assert len(calls) == plan.count(False) * calls_a_step * LAYERS * PER_BLOCK


def test_a_lora_is_in_what_is_reused() -> None:
    model, _ = comfy.sd.load_lora_for_models(slow_wan(), None, lora(), 1.0, 0.0)
    model, calls = count_blocks(model)
    out = helpers.ksampler(cached(model), STEPS)
    assert len(calls) == plan_of(model).count(False) * LAYERS * PER_BLOCK
    assert not torch.equal(out, helpers.ksampler(cached(slow_wan()), STEPS))


def test_every_context_window_has_its_own_residual() -> None:
    model, calls = count_blocks(windows(slow_wan()))
    model, runs = watch(model)
    kept: list[int] = []
    inner = model.clone()
    inner.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, "kept", lambda ex, *a, **k: (ex(*a, **k), kept.append(len(runs[-1].residuals)))[0]
    )
    latent = helpers.empty_latent(frames=6)
    out = helpers.ksampler(cached(inner), STEPS, latent=latent)
    assert torch.isfinite(out).all()
    computed = plan_of(model).count(False)
    count = len(calls) // (computed * LAYERS * PER_BLOCK)
    assert count > 1 and len(calls) == computed * LAYERS * PER_BLOCK * count
    assert max(kept) == 2 * count  # cond and uncond of every window


def test_context_windows_that_move_from_step_to_step_are_not_given_each_others_residuals() -> None:
    model, runs = watch(windows(slow_wan(), context_schedule="standard_uniform"))
    asked: dict[int, set[tuple[int, ...]]] = {}

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        asked.setdefault(runs[-1].counter.step, set()).add(tuple(args[-1]["context_window"].index_list))
        return out

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    helpers.ksampler(cached(model), STEPS, latent=helpers.empty_latent(frames=10))
    run, known, met_new_ones = runs[-1], set[tuple[int, ...]](), False
    for step in sorted(asked):
        known = known if run.plan.reuses(step) else set()  # a computed step starts anew
        if known and not asked[step] <= known:
            met_new_ones = True
            assert step not in run.reused
        known = known | asked[step]
    assert met_new_ones


def test_skip_layer_guidance_keeps_working_and_is_reused_too() -> None:
    """Its node replaces blocks and asks for the prompt a second time in a step."""
    slg = SkipLayerGuidanceDiT.execute(
        slow_wan(),
        double_layers="0, 2",
        single_layers="",
        scale=3.0,
        start_percent=0.0,
        end_percent=1.0,
        rescaling_scale=0.0,
    ).args[0]
    plain, _ = count_blocks(slg)
    assert torch.equal(helpers.ksampler(cached(plain, 1e-9), STEPS), helpers.ksampler(slg, STEPS))
    model, calls = count_blocks(slg)
    kept: list[int] = []
    model, runs = watch(model)
    model.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, "kept", lambda ex, *a, **k: (ex(*a, **k), kept.append(len(runs[-1].residuals)))[0]
    )
    out = helpers.ksampler(cached(model), STEPS)
    assert torch.isfinite(out).all()
    assert max(kept) == 3  # cond, uncond, and cond with the layers skipped
    assert len(calls) == plan_of(model).count(False) * (LAYERS + 1) * PER_BLOCK  # the second call runs block 1 alone


def test_another_nodes_block_replacement_is_run_and_not_lost() -> None:
    seen: list[int] = []

    def double(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append(1)
        return {"img": extra["original_block"](args)["img"] * 1.1}

    model = slow_wan()
    model.set_model_patch_replace(double, "dit", "double_block", LAYERS - 1)
    plain = helpers.ksampler(model, STEPS)
    assert torch.equal(helpers.ksampler(cached(model, 1e-9), STEPS), plain)
    seen.clear()
    helpers.ksampler(cached(model), STEPS)
    assert len(seen) == plan_of(model).count(False)


# --- torch.compile ----------------------------------------------------------------------------------------------------


def compiled_whole(model: Any, backend: Any = "eager") -> Any:
    """As the host's node TorchCompileModel does it: all of the network, and no second look at transformer_options. The eager
    backend needs no compiler.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    model = model.clone()
    set_torch_compile_wrapper(model, backend=backend, options={"guard_filter_fn": skip_torch_compile_dict})
    return model


def patched_whole(model: Any, backend: Any = "eager") -> Any:
    """As older nodes do it: the compiled network in the place of the host's, by an object patch."""
    model = model.clone()
    model.add_object_patch("diffusion_model", torch.compile(model.get_model_object("diffusion_model"), backend=backend))
    return model


def compiled_blocks(model: Any, backend: Any = "eager") -> Any:
    """The host's own compile wrapper, block by block."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, blocks = model.clone(), len(model.model.diffusion_model.blocks)
    set_torch_compile_wrapper(model, backend=backend, keys=[f"diffusion_model.blocks.{i}" for i in range(blocks)])
    return model


def patched_blocks(model: Any, backend: Any = "eager") -> Any:
    """A compiled block in the place of each, by object patches."""
    model = model.clone()
    for i, block in enumerate(model.get_model_object("diffusion_model").blocks):
        model.add_object_patch(f"diffusion_model.blocks.{i}", torch.compile(block, backend=backend))
    return model


def counting() -> tuple[Any, list[Any]]:
    """(a backend of torch.compile that runs what it is given, list that gets every graph)."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend, graphs


def plain_attention(model: Any) -> Any:
    """The attention of GPUs leaves the compiler no reason to stop, so the network is one graph that nobody looks into."""
    return module("srd_core.attention").with_attention(model, "pytorch")


def reused_by(model: Any) -> tuple[torch.Tensor, set[int]]:
    """(latent, steps that ran no block) of a run of a cached MODEL."""
    runs: list[Any] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        runs.append(reuse.run_of(args[2]))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "runs", look)
    return helpers.ksampler(model, STEPS), runs[-1].reused


@pytest.mark.parametrize("order", ["compiled, then cached", "cached, then compiled"])
@pytest.mark.parametrize("how", [compiled_blocks, patched_blocks])
def test_blocks_that_are_compiled_one_by_one_are_skipped(how: Any, order: str) -> None:
    torch._dynamo.reset()
    backend, graphs = counting()
    model = plain_attention(slow_wan())
    expected, steps = reused_by(cached(model))
    assert steps
    both = cached(how(model, backend)) if order.startswith("compiled") else how(cached(model), backend)
    found, found_steps = reused_by(both)
    assert graphs and found_steps == steps and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("order", ["compiled, then cached", "cached, then compiled"])
@pytest.mark.parametrize("how", [compiled_whole, patched_whole])
def test_a_network_that_is_compiled_as_a_whole_runs_as_without_the_cache_and_says_what_to_use(
    how: Any, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    backend, graphs = counting()
    model = plain_attention(slow_wan())
    compiled = how(model, backend)
    plain = helpers.ksampler(compiled, STEPS)
    assert graphs
    both = cached(compiled) if order.startswith("compiled") else how(cached(model), backend)
    with caplog.at_level(logging.INFO):
        found, steps = reused_by(both)
    assert torch.equal(found, plain) and not steps
    (said,) = {r.getMessage() for r in caplog.records if "TeaCache" in r.getMessage()}
    assert "compiled as a whole" in said and "blocks only" in said and "TorchCompileModelWanVideoV2" in said
    graphs.clear()
    helpers.ksampler(both, STEPS)
    assert not graphs, "nothing of a run is compiled in"


def test_the_report_says_that_the_render_is_compiled_as_a_whole() -> None:
    torch._dynamo.reset()
    sketch, render, report = plain_attention(slow_wan()), compiled_whole(plain_attention(slow_wan(1))), Report()
    plain = helpers.ksampler(sr_model(sketch, render, 3), STEPS)
    assert torch.equal(helpers.ksampler(sr_model(sketch, render, 3, report, teacache=THRESHOLD), STEPS), plain)
    assert report.reused("render") == 0 and any("compiled as a whole" in note for note in report.notes)


def test_a_network_that_is_compiled_in_another_way_never_has_a_decision_compiled_in() -> None:
    torch._dynamo.reset()
    model = plain_attention(slow_wan())
    whole = torch.compile(model.model.diffusion_model, backend="eager")

    def another_nodes(executor: Any, *args: Any, **kwargs: Any) -> Any:
        network, executor.class_obj.diffusion_model = executor.class_obj.diffusion_model, whole
        try:
            return executor(*args, **kwargs)
        finally:
            executor.class_obj.diffusion_model = network

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another", another_nodes)
    plain = helpers.ksampler(model, STEPS)
    for _ in range(2):
        found, steps = reused_by(cached(model))
        assert torch.equal(found, plain) and not steps


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde", "dpmpp_2s_ancestral", "heunpp2", "dpm_fast", "lms"])
def test_samplers_of_every_kind_reuse_whole_steps(sampler: str) -> None:
    model, calls = count_blocks(slow_wan())
    plain = helpers.ksampler(model, STEPS, sampler_name=sampler)
    all_calls = len(calls)
    calls.clear()
    out = helpers.ksampler(cached(model), STEPS, sampler_name=sampler)
    assert torch.isfinite(out).all() and not torch.equal(out, plain)
    share = plan_of(model).count(False) / STEPS
    assert len(calls) / all_calls == pytest.approx(share, abs=2.5 / STEPS)


@pytest.mark.parametrize("sampler", ["dpm_fast", "dpm_adaptive"])
def test_a_residual_is_never_older_than_the_step_before(sampler: str) -> None:
    """Samplers with own noise levels leave out intervals of the schedule; a plan may want to reuse after one."""
    model, runs = watch(slow_wan())
    steps: list[int] = []
    model.add_wrapper_with_key(
        WrappersMP.PREDICT_NOISE, "steps", lambda ex, *a, **k: (ex(*a, **k), steps.append(runs[-1].counter.step))[0]
    )
    helpers.ksampler(cached(model, 0.5), 60, sampler_name=sampler)
    run = runs[-1]
    left_out = {s for s in set(steps) if s and s - 1 not in steps}
    assert any(run.plan.reuses(s) for s in left_out), "this run has such a step"
    assert not left_out & run.reused


# --- on the stages of a Sketch-Render run -----------------------------------------------------------------------------


def test_sr_sampler_reuses_render_steps_alone_and_reports_which() -> None:
    sketch, sketch_calls = count_blocks(slow_wan())
    render, render_calls = count_blocks(slow_wan(1))
    report, after = Report(), 4
    helpers.ksampler(sr_model(sketch, render, after, report, teacache=THRESHOLD), STEPS)
    plan = plan_of(render, first=after)
    assert [s.reused for s in report.steps] == [False] * after + plan
    assert report.stage("render").teacache["reuse"] == plan and report.stage("render").teacache["first_step"] == after
    assert [bool(stage.teacache) for stage in report.stages] == [False, True]
    assert len(sketch_calls) == after * LAYERS * PER_BLOCK
    assert sum(plan) > 0 and len(render_calls) == plan.count(False) * LAYERS * PER_BLOCK
    assert f"TeaCache on the render: {sum(plan)} of {STEPS - after} steps reused" in summarize(report)
    assert any("128 wide" in note for note in report.notes), "it is none of the sizes that have a table"
    assert Report.from_json(report.to_json()) == report


def test_the_input_of_sr_sampler_is_render_teacache_on_the_render() -> None:
    sketch, render = slow_wan(), slow_wan(1)
    by_input = sr_sampler(sketch, render, steps=STEPS, teacache=THRESHOLD)
    (node,) = SRTeaCache.execute(render, THRESHOLD, "e", "gpu").args
    assert torch.equal(sr_sampler(sketch, node, steps=STEPS), by_input)
    assert not torch.equal(sr_sampler(sketch, render, steps=STEPS), by_input)
    with pytest.raises(ValueError, match="already comes from Render TeaCache"):
        sr_sampler(sketch, node, steps=STEPS, teacache=0.1)


def test_teacache_on_the_sketch_stays_on_the_sketch() -> None:
    sketch, sketch_calls = count_blocks(slow_wan())
    render, render_calls = count_blocks(slow_wan(1))
    report, after = Report(), 8
    helpers.ksampler(sr_model(cached(sketch), render, after, report), STEPS)
    plan = plan_of(sketch)[:after]
    assert [s.reused for s in report.steps] == plan + [False] * (STEPS - after)
    assert any(plan) and len(sketch_calls) == plan.count(False) * LAYERS * PER_BLOCK
    assert len(render_calls) == (STEPS - after) * LAYERS * PER_BLOCK


def test_a_cached_render_that_runs_alone_is_the_cached_plain_run() -> None:
    sketch, render = slow_wan(), slow_wan(1)
    assert torch.equal(
        helpers.ksampler(sr_model(sketch, cached(render), 0), STEPS), helpers.ksampler(cached(render), STEPS)
    )
    assert torch.equal(
        helpers.ksampler(sr_model(cached(sketch), render, STEPS), STEPS), helpers.ksampler(cached(sketch), STEPS)
    )


# --- memory -----------------------------------------------------------------------------------------------------------

WIDE = {"latent": helpers.empty_latent(side=12)}


def asked_for(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bytes that the host was asked to free for each model that it loaded for a run."""
    asked: list[float] = []
    load = comfy.model_management.load_models_gpu

    def listen(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["memory_required"])
        return load(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", listen)
        run()
    return asked


@pytest.mark.parametrize("conds", [2, {"positive": [{}], "negative": [{}]}])
def test_a_14b_at_720p_holds_0_77_gb_for_each_prompt(conds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cached(slow_wan())
    monkeypatch.setattr(model.model.diffusion_model, "dim", 5120)
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.bfloat16)
    assert reuse.held_bytes(model, (1, 16, 21, 90, 160), conds) == 2 * 75_600 * 5120 * 2
    assert reuse.held_bytes(model, (3, 16, 21, 90, 160), 1) == 3 * 75_600 * 5120 * 2
    assert reuse.held_bytes(model, (1, 16, 1, 91, 159), 1) == 46 * 80 * 5120 * 2, "the host pads to whole patches"


def test_nothing_is_held_without_a_cache_or_in_main_memory_or_where_the_model_is_not_known_or_compiled() -> None:
    shape = (1, 16, 21, 90, 160)
    assert reuse.held_bytes(slow_wan(), shape, 2) == 0
    assert reuse.held_bytes(cached(cached(slow_wan()), 0.0), shape, 2) == 0
    assert reuse.held_bytes(cached(slow_wan(), residual_on_cpu=True), shape, 2) == 0
    assert reuse.held_bytes(compiled_whole(cached(slow_wan())), shape, 2) == 0
    vace = comfy.sd.load_diffusion_model_state_dict(slow_state_dict(build=vace_state_dict))
    assert reuse.held_bytes(cached(vace), shape, 2) == 0


def test_what_is_held_is_as_large_as_what_is_kept() -> None:
    model, runs = watch(slow_wan())
    sizes: list[int] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        sizes.append(sum(kept.nbytes for kept in runs[-1].residuals._kept.values()))
        return out

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    latent = helpers.empty_latent(batch=2)
    helpers.ksampler(cached(model), STEPS, latent=latent)
    assert max(sizes) == reuse.held_bytes(cached(model), latent["samples"].shape, 2) > 0


def test_the_host_is_asked_for_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = slow_wan()
    ours = cached(model)
    held = reuse.held_bytes(ours, WIDE["latent"]["samples"].shape, 2)
    (plain,) = asked_for(lambda: helpers.ksampler(model, 1, **WIDE), monkeypatch)
    (found,) = asked_for(lambda: helpers.ksampler(ours, 1, **WIDE), monkeypatch)
    (on_cpu,) = asked_for(lambda: helpers.ksampler(cached(model, residual_on_cpu=True), 1, **WIDE), monkeypatch)
    assert held > 0 and found - plain == pytest.approx(held, rel=1e-6) and on_cpu == plain


def test_it_is_asked_for_with_the_stage_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, render = slow_wan(), slow_wan(1)
    held = reuse.held_bytes(cached(render), WIDE["latent"]["samples"].shape, 2)
    plain = asked_for(lambda: helpers.ksampler(sr_model(sketch, render, 1), 2, **WIDE), monkeypatch)
    found = asked_for(lambda: helpers.ksampler(sr_model(sketch, cached(render), 1), 2, **WIDE), monkeypatch)
    assert [b - a for a, b in zip(plain, found)] == [0, pytest.approx(held, rel=1e-6)]


# --- nothing stays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, "interrupt", "error"])
def test_residuals_are_one_for_each_cond_and_are_freed_with_the_run(stop: str | None) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    runs: list[Any] = []  # an error's traceback may hold the run for long: it has to free them by itself
    counts: list[int] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        run = reuse.run_of(args[2])
        runs.append(run)
        counts.append(len(run.residuals))
        kept.extend(weakref.ref(tensor) for tensor in run.residuals._kept.values())
        if stop and run.reused:
            if stop == "error":
                raise RuntimeError("stopped by the test")
            raise comfy.model_management.InterruptProcessingException
        return out

    model = cached(slow_wan())
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    if stop:
        with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
            helpers.ksampler(model, STEPS)
    else:
        helpers.ksampler(model, STEPS)
    gc.collect()
    assert max(counts) == 2 and kept and runs
    assert all(tensor() is None for tensor in kept)


def test_a_second_run_with_other_settings_is_as_in_a_fresh_process() -> None:
    def run(model: Any, seed: int, side: int, threshold: float) -> torch.Tensor:
        return helpers.ksampler(cached(model, threshold), STEPS, seed=seed, latent=helpers.empty_latent(side=side))

    model = slow_wan()
    run(model, 7, 8, 0.2)
    for seed, side, threshold in [(8, 8, 0.2), (7, 12, 0.2), (7, 8, 0.3)]:
        assert torch.equal(run(model, seed, side, threshold), run(slow_wan(), seed, side, threshold))
    assert torch.equal(helpers.ksampler(model, STEPS), helpers.ksampler(slow_wan(), STEPS))


def test_a_second_sr_run_with_another_hand_over_is_as_in_a_fresh_process() -> None:
    sketch, render = slow_wan(), slow_wan(1)
    helpers.ksampler(sr_model(sketch, render, 3, teacache=THRESHOLD), STEPS)
    again = helpers.ksampler(sr_model(sketch, render, 5, teacache=THRESHOLD), STEPS)
    assert torch.equal(again, helpers.ksampler(sr_model(slow_wan(), slow_wan(1), 5, teacache=THRESHOLD), STEPS))


def test_residuals_can_be_kept_in_main_memory_with_the_same_result() -> None:
    model = slow_wan()
    assert torch.equal(
        helpers.ksampler(cached(model, residual_on_cpu=True), STEPS), helpers.ksampler(cached(model), STEPS)
    )


# --- what TeaCache does not know --------------------------------------------------------------------------------------


def vace_state_dict(seed: int) -> dict[str, torch.Tensor]:
    model = comfy.ldm.wan.model.VaceWanModel(
        dim=128,
        ffn_dim=256,
        num_heads=1,
        num_layers=LAYERS,
        vace_layers=1,
        vace_in_dim=96,
        text_dim=helpers.TEXT_DIM,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=generator) * 0.05 for key, value in model.state_dict().items()}


def test_a_model_that_it_does_not_know_runs_unchanged_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = comfy.sd.load_diffusion_model_state_dict(slow_state_dict(build=vace_state_dict))
    assert type(model.model.diffusion_model).__name__ == "VaceWanModel"
    plain = helpers.ksampler(model, STEPS)
    with caplog.at_level(logging.INFO):
        assert torch.equal(helpers.ksampler(cached(model), STEPS), plain)
    said = [r.getMessage() for r in caplog.records if "VaceWanModel" in r.getMessage() and "TeaCache" in r.getMessage()]
    assert len(said) == 1 and "without" in said[0]
    report = Report()
    helpers.ksampler(sr_model(slow_wan(), model, 3, report, teacache=THRESHOLD), STEPS)
    assert any("VaceWanModel" in note for note in report.notes)
    assert report.reused("render") == 0


def test_a_node_that_works_between_the_blocks_turns_it_off_and_the_report_says_so() -> None:
    model = slow_wan()
    model.set_model_patch(lambda args: {"img": args["img"]}, "double_block")
    plain = helpers.ksampler(model, STEPS)
    report = Report()
    assert torch.equal(helpers.ksampler(cached(model), STEPS), plain)
    helpers.ksampler(sr_model(slow_wan(1), model, 3, report, teacache=THRESHOLD), STEPS)
    assert any("between the transformer blocks" in note for note in report.notes)


def test_a_render_stage_of_fewer_than_5_steps_reuses_nothing() -> None:
    report = Report()
    helpers.ksampler(sr_model(slow_wan(), slow_wan(1), 4, report, teacache=100.0), 8)
    assert report.reused("render") == 0 and any("too short" in note for note in report.notes)


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_threshold_that_means_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be 0"):
        reuse.TeaCache(threshold)
    with pytest.raises(ValueError, match="form"):
        reuse.TeaCache(0.1, "f")


# --- what the plan rests on ------------------------------------------------------------------------------------------


def test_a_time_embedding_that_is_not_finite_reuses_nothing_and_the_report_can_still_be_read() -> None:
    state_dict = slow_state_dict()
    state_dict["time_embedding.2.bias"][0] = float("nan")
    broken, report = comfy.sd.load_diffusion_model_state_dict(state_dict), Report()
    with pytest.raises(RuntimeError, match="The render's prediction has values that are not finite"):
        helpers.ksampler(sr_model(slow_wan(1), cached(broken), 3, report), STEPS)
    plan = next(s["teacache"] for s in json.loads(report.to_json())["stages"] if s["name"] == "render")
    assert not any(plan["reuse"]) and plan["growth"] == [] and "time embedding" in plan["note"]


def test_layers_that_multiply_in_fp8_give_the_plan_of_the_plain_ones() -> None:
    """weight_dtype fp8_e4m3fn_fast: the host rounds the layers' input to fp8, by more than two steps differ."""
    model = slow_wan().model.diffusion_model
    for layer in (model.time_embedding[0], model.time_embedding[2]):
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
        layer.bias.data = layer.bias.data.to(torch.float8_e4m3fn)
    timesteps = torch.linspace(1000, 20, STEPS)
    plain, fast = {}, {}
    for found, operations in ((plain, comfy.ops.manual_cast), (fast, comfy.ops.fp8_ops)):
        for layer in (model.time_embedding[0], model.time_embedding[2]):
            layer.__class__ = operations.Linear
        found["d"] = teacache.distances(wan_modulation(model, timesteps, "e"))
    assert plain == fast and len(set(plain["d"])) > 1


def test_a_family_with_one_form_is_planned_in_that_form_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, report = slow_wan(1), Report()
    one_form = dataclasses.replace(teacache.WAN_T2V[0], e0=())
    monkeypatch.setattr(teacache, "WAN_T2V", (one_form,))
    helpers.ksampler(sr_model(slow_wan(), cached(model, form="e0"), 3, report), STEPS)
    assert report.stage("render").teacache["form"] == "e" and report.stage("render").teacache["reuse"] == plan_of(
        model, first=3
    )


def test_the_node_refuses_a_sketch_render_model_whose_sketch_it_would_cache() -> None:
    with pytest.raises(
        ValueError, match="The model of Render TeaCache already is a Sketch-Render Model; connect a plain MODEL"
    ):
        SRTeaCache.execute(sr_model(slow_wan(), slow_wan(1), 3), 0.1, "e", "gpu")
