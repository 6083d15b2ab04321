"""Memory at the hand-over: which model is where, by the real host's own books, and what happens when there is not enough.

There is no GPU here. The host keeps the same books on the CPU, where taking a model from its device moves nothing; that both
do not fit is said as a user says it, by --reserve-vram. (The host takes --lowvram, --novram and --highvram on a GPU only.)
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from hosting import REPOSITORY, host_module, load_by_path, module
from test_cooperation import STEPS, sr_model, sr_sampler

memory, reports = module("srd_core.memory"), module("srd_core.report.data")
Report = reports.Report
workflow = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")

POLICIES = ("auto", "always", "never")
READERS = (
    "euler",
    "uni_pc",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "er_sde",
    "seeds_2",
)
GB = 10**9


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --reserve-vram sets, larger than any device."""
    monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", 2**60)


def is_loaded(model: Any) -> bool:
    """Whether the host has ``model`` or a clone of it in its books."""
    return any(model.is_clone(loaded) for loaded in comfy.model_management.loaded_models())


def ran(sketch: Any, render: Any, policy: str, steps: int = STEPS, **how: Any) -> Any:
    """The report of a run that switches after 3 steps."""
    report = Report()
    helpers.ksampler(sr_model(sketch, render, 3, report, offload_sketch=policy), steps, **how)
    return report


def around(report: Any, stage: str) -> list[bool]:
    """Whether a stage had weights on its device before, at and after the hand-over."""
    (hand_over,) = report.hand_overs
    return [hand_over.memory[moment][stage] > 0 for moment in ("before", "at", "after")]


# --- the decision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_only_always_takes_the_sketch_away_before_the_render_comes(policy: str, wan: Any) -> None:
    """Auto leaves it to the host, which frees as much as the render needs."""
    assert memory.leaves(policy, wan(), wan(seed=1)) == (policy == "always")


@pytest.mark.parametrize("policy", POLICIES)
def test_clones_of_one_model_have_nothing_to_leave(policy: str, wan: Any) -> None:
    model = wan()
    assert not memory.leaves(policy, model, model.clone())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sketch_that_has_no_other_place_does_not_leave(policy: str, wan: Any) -> None:
    """With --highvram and --gpu-only the host's place for unused models is the GPU itself."""
    sketch, gpu = wan(), torch.device("cuda", 0)
    sketch.load_device = sketch.offload_device = gpu
    assert not memory.leaves(policy, sketch, wan(seed=1))


def test_a_model_that_is_loaded_in_part_leaves_whole(wan: Any) -> None:
    """As --lowvram and --novram load: the host can do so on the CPU too."""
    model = wan(layers=4)
    plain = helpers.ksampler(model, 2)
    model.partially_unload(model.offload_device, model.model_size() // 2)
    assert 0 < model.loaded_size() < model.model_size()
    memory.release(model)
    assert model.loaded_size() == 0 and not is_loaded(model)
    assert torch.equal(helpers.ksampler(model, 2), plain)


# --- the books --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "sketch_at_each_moment"),
    [("auto", [True, True, True]), ("always", [True, False, False]), ("never", [True, True, True])],
)
def test_where_both_fit_the_sketch_leaves_only_if_it_always_has_to(
    policy: str, sketch_at_each_moment: Any, wan: Any
) -> None:
    sketch, render = wan(layers=2), wan(seed=1)
    report = ran(sketch, render, policy)
    assert around(report, "sketch") == sketch_at_each_moment
    assert around(report, "render") == [False, False, True]
    assert [is_loaded(sketch), is_loaded(render)] == [sketch_at_each_moment[-1], True]


@pytest.mark.parametrize(
    ("policy", "sketch_at_each_moment"),
    [("auto", [True, True, True]), ("always", [True, False, False]), ("never", [True, True, True])],
)
def test_where_both_do_not_fit_only_always_takes_the_whole_sketch_away(
    policy: str, sketch_at_each_moment: Any, no_room: None, wan: Any
) -> None:
    sketch, render = wan(layers=2), wan(seed=1)
    report = ran(sketch, render, policy)
    assert around(report, "sketch") == sketch_at_each_moment
    assert around(report, "render") == [False, False, True]
    assert [is_loaded(sketch), is_loaded(render)] == [sketch_at_each_moment[-1], True]


def test_with_always_nobody_but_the_sketch_leaves(wan: Any) -> None:
    bystander, sketch, render = wan(seed=5), wan(), wan(seed=1)
    comfy.model_management.load_models_gpu([bystander])
    ran(sketch, render, "always")
    assert is_loaded(bystander) and not is_loaded(sketch)


def test_what_the_sketch_brought_along_leaves_with_it(wan: Any) -> None:
    sketch, companion = wan(), wan(seed=5)
    sketch.set_additional_models("test", [companion])
    comfy.model_management.load_models_gpu([sketch, companion])
    memory.release(sketch)
    assert not is_loaded(sketch) and not is_loaded(companion)


def test_with_never_the_host_loads_both_in_one_call(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls may take the first model away for the second."""
    sketch, render = wan(), wan(seed=1)
    calls: list[list[Any]] = []
    load = comfy.model_management.load_models_gpu

    def listening(models: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(list(models))
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", listening)
    ran(sketch, render, "never")
    first, second = calls
    assert [sketch.is_clone(m) for m in first] == [True]
    assert [render.is_clone(second[0]), sketch.is_clone(second[1])] == [True, True]


def test_with_never_the_artists_render_is_as_it_was(wan: Any) -> None:
    render = wan(seed=1)
    ran(wan(), render, "never")
    assert render.get_nested_additional_models() == []


def test_a_run_of_any_policy_after_any_other_gives_the_same_bits(no_room: None, wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    pairs = ("auto", "auto", "always", "always", "never", "never", "auto", "never", "always", "auto")
    latents = [sr_sampler(sketch, render, offload_sketch=policy) for policy in pairs]
    assert all(torch.equal(latent, latents[0]) for latent in latents)
    assert torch.equal(helpers.ksampler(sketch, STEPS), helpers.ksampler(wan(), STEPS))


# --- nothing else changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", READERS)
def test_for_samplers_that_read_the_sketchs_schedule_a_sketch_that_left_changes_no_bit(sampler: str, wan: Any) -> None:
    """Also where it left with its own noise schedule, which the sampler still reads."""
    sketch, render = (ModelSamplingSD3().patch(model, 7.0)[0] for model in (wan(), wan(seed=1)))
    stayed, left = (
        helpers.ksampler(
            sr_model(sketch, render, 3, offload_sketch=policy), STEPS, sampler_name=sampler, scheduler="beta"
        )
        for policy in ("never", "always")
    )
    assert torch.equal(left, stayed)


def test_ranges_of_prompts_follow_the_schedule_of_a_sketch_that_left(wan: Any) -> None:
    """Its shift is a patch of the MODEL, and goes with it; the range's end is asked for after that."""
    sketch, render = ModelSamplingSD3().patch(wan(), 12.0)[0], wan(seed=1)
    ends_early = [*helpers.prompt(3, start_percent=0.0, end_percent=0.3), *helpers.prompt(4, start_percent=0.3)]
    stayed, left = (
        helpers.ksampler(sr_model(sketch, render, 1, offload_sketch=policy), STEPS, positive=ends_early)
        for policy in ("never", "always")
    )
    assert torch.equal(left, stayed)


def test_masks_go_on_with_the_sketchs_kind_of_noise_after_it_left(wan: Any) -> None:
    """The sampler puts the masked part back with the patched model_sampling (here not Wan's own kind) of the sketch."""
    sketch, render = (ModelSamplingDiscrete().patch(model, "eps", False)[0] for model in (wan(), wan(seed=1)))
    latent = {"samples": torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))}
    latent["noise_mask"] = (torch.arange(8) < 4).float().expand(1, 1, 8, 8)
    stayed, left = (
        helpers.ksampler(sr_model(sketch, render, 3, offload_sketch=policy), STEPS, latent=latent)
        for policy in ("never", "always")
    )
    assert torch.equal(left, stayed)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_plain_run_afterwards_is_as_before_also_with_patched_objects(policy: str, wan: Any) -> None:
    plain = wan()
    own = plain.model.model_sampling
    sketch, render = ModelSamplingSD3().patch(plain, 7.0)[0], wan(seed=1)
    before = [helpers.ksampler(model, STEPS) for model in (plain, sketch, render)]
    ran(sketch, render, policy)
    comfy.model_management.unload_all_models()
    assert plain.model.model_sampling is own
    assert all(torch.equal(helpers.ksampler(m, STEPS), b) for m, b in zip((plain, sketch, render), before))


def test_models_in_fp8_leave_and_come_back_as_they_were(no_room: None, tiny_file: Any) -> None:
    fp8 = {"dtype": torch.float8_e4m3fn}
    sketch, render = (comfy.sd.load_diffusion_model(str(tiny_file(seed=seed)), model_options=fp8) for seed in (0, 1))
    latents = [sr_sampler(sketch, render, offload_sketch=policy) for policy in (*POLICIES, "auto")]
    assert all(torch.equal(latent, latents[0]) for latent in latents)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lora_on_the_sketch_is_the_same_in_the_next_run(policy: str, wan: Any) -> None:
    """Weights are put back when a model leaves, and patched again when it returns."""
    sketch, render = wan().clone(), wan(seed=1)
    key = "diffusion_model.blocks.0.ffn.0.weight"
    delta = torch.full_like(comfy.utils.get_attr(sketch.model, key), 0.01)
    sketch.add_patches({key: (delta,)})
    first, second = (sr_sampler(sketch, render, offload_sketch=policy) for _ in range(2))
    assert torch.equal(first, second)


# --- too little memory ------------------------------------------------------------------------------------------------


def short_of_memory(model: Any, times: int, wrapper: Any = WrappersMP.DIFFUSION_MODEL) -> Any:
    """A clone whose first ``times`` calls (or loads) raise what the host takes for an out-of-memory error."""
    calls = [0]

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] <= times:
            raise comfy.model_management.OOM_EXCEPTION("Allocation on device")
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(wrapper, "oom", fail)
    return model


WHERE = [WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL]


@pytest.mark.parametrize("where", WHERE, ids=["loading", "first call"])
@pytest.mark.parametrize("sampler", ["uni_pc", "heun"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_render_that_runs_out_of_memory_is_tried_again_without_the_sketch(
    policy: str, sampler: str, where: Any, wan: Any
) -> None:
    sketch, render, report = wan(), wan(seed=1), Report()
    plain = helpers.ksampler(sr_model(sketch, render, 3), STEPS, sampler_name=sampler)
    model = sr_model(sketch, short_of_memory(render, 1, where), 3, report, offload_sketch=policy)
    assert torch.equal(helpers.ksampler(model, STEPS, sampler_name=sampler), plain)
    assert report.status == "done" and not is_loaded(sketch) and is_loaded(render)
    (note,) = report.notes
    assert note.startswith("Out of memory in the render: the step was tried once more")
    assert ("after the sketch had left the device" in note) == (policy != "always")
    assert ("Set offload_sketch to always" in note) == (policy != "always")
    assert note in module("srd_core.report.text").summarize(report)


@pytest.mark.parametrize("where", WHERE, ids=["loading", "first call"])
def test_a_render_that_runs_out_of_memory_twice_ends_the_run_with_what_to_change(where: Any, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), Report()
    plain = [helpers.ksampler(m, STEPS) for m in (sketch, render)]
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        helpers.ksampler(sr_model(sketch, short_of_memory(render, 2, where), 3, report), STEPS)
    for word in ("weight_dtype", "--reserve-vram", "frames", "Allocation on device"):
        assert word in str(error.value)
    assert comfy.model_management.is_oom(error.value)  # so that the host unloads everything, as for any other
    assert report.status == "failed" and "weight_dtype" in report.error
    assert [torch.equal(helpers.ksampler(m, STEPS), p) for m, p in zip((sketch, render), plain)] == [True, True]


@pytest.mark.parametrize("call", [1, 2, 4, 7, 9], ids=lambda n: f"call {n}")
@pytest.mark.parametrize("stage", ["sketch", "render"])
def test_a_shortage_in_any_step_of_either_stage_gets_a_second_try(stage: str, call: int, wan: Any) -> None:
    calls, pair, report = [0], {"sketch": wan(), "render": wan(seed=1)}, Report()
    plain = helpers.ksampler(sr_model(pair["sketch"], pair["render"], 5), 10, cfg=1.0, sampler_name="dpmpp_2m")
    comfy.model_management.load_models_gpu([pair["render"]])

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == min(call, 5):
            raise comfy.model_management.OOM_EXCEPTION("Allocation on device")
        return executor(*args, **kwargs)

    pair[stage] = pair[stage].clone()
    pair[stage].add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "oom", fail)
    latent = helpers.ksampler(sr_model(pair["sketch"], pair["render"], 5, report), 10, cfg=1.0, sampler_name="dpmpp_2m")
    assert torch.equal(latent, plain)
    assert report.status == "done" and report.notes[0].startswith(
        f"Out of memory in the {stage}: the step was tried once more"
    )


def test_the_sketch_itself_stays_when_it_runs_out_of_memory_beside_a_render_that_never_made_it_leave(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    ran(sketch, render, "never")
    there: list[bool] = []

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        there.append(is_loaded(sketch))
        if len(there) == 2:
            raise comfy.model_management.OOM_EXCEPTION("Allocation on device")
        return executor(*args, **kwargs)

    short = sketch.clone()
    short.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "oom", fail)
    ran(short, render, "never")
    assert there[:3] == [True, True, True]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_second_try_costs_teacache_no_reused_step(sampler: str) -> None:
    from test_reuse import slow_wan

    def run(times: int) -> tuple[torch.Tensor, Any]:
        report = Report()
        model = sr_model(slow_wan(), short_of_memory(slow_wan(1), times), 3, report, teacache=0.2)
        return helpers.ksampler(model, 14, sampler_name=sampler), report

    (plain, whole), (latent, report) = run(0), run(1)
    assert torch.equal(latent, plain)
    assert report.reused("render") == whole.reused("render") > 0


def test_another_error_of_the_render_is_not_tried_again(wan: Any) -> None:
    render, calls = wan(seed=1), [0]

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    render.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "broken", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        helpers.ksampler(sr_model(wan(), render, 3), STEPS)
    assert calls == [1]


def test_the_second_attempt_starts_when_the_first_has_let_go_of_its_tensors() -> None:
    """An exception keeps the frames it came through, and what they had on the device."""
    on_device: list[weakref.ref[torch.Tensor]] = []
    seen: list[Any] = []

    def attempt() -> str:
        if seen:
            return "done"
        held = torch.zeros(1)
        on_device.append(weakref.ref(held))
        raise comfy.model_management.OOM_EXCEPTION("Allocation on device")

    def make_room() -> str:
        seen.append(on_device[0]())
        return ""

    assert memory.try_twice(attempt, make_room) == "done"
    assert seen == [None]


def test_with_a_lora_of_one_model_apart_a_shortage_takes_nothing_that_the_render_needs(wan: Any) -> None:
    model, report = wan(), Report()
    render = short_of_memory(model, 1)
    plain = helpers.ksampler(model, STEPS)
    assert torch.equal(helpers.ksampler(sr_model(model, render, 3, report), STEPS), plain)
    assert report.status == "done" and is_loaded(model)


def given_up(sketch: Any, render: Any, **how: Any) -> str:
    """What is said when the render runs out of memory twice."""
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        helpers.ksampler(sr_model(sketch, short_of_memory(render, 2), 3, **how), STEPS)
    return str(error.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_two_clones_of_one_model_nobody_is_told_that_the_sketch_left(policy: str, wan: Any) -> None:
    model, report = wan(), Report()
    helpers.ksampler(sr_model(model, short_of_memory(model, 1), 3, report, offload_sketch=policy), STEPS)
    (note,) = report.notes
    assert "nothing else of this run was on the device" in note and "offload_sketch" not in note
    said = given_up(model, model, offload_sketch=policy)
    assert "without the sketch" not in said and "Make the latent smaller" in said


def test_a_render_that_runs_all_steps_takes_the_place_of_the_sketch_that_the_host_had_loaded(wan: Any) -> None:
    sketch, report = wan(), Report()
    helpers.ksampler(sr_model(sketch, short_of_memory(wan(seed=1), 1), 0, report), STEPS)
    assert "after the sketch had left the device" in report.notes[0] and not is_loaded(sketch)


def test_a_sketch_that_has_no_other_place_is_said_to_stay_with_the_flags_that_keep_it(wan: Any) -> None:
    sketch, gpu = wan(), torch.device("cuda", 0)
    sketch.load_device = sketch.offload_device = gpu
    note, give_up = memory.make_room("render", wan(seed=1), {"sketch": sketch})
    assert "nothing left it" in note and "without --highvram and --gpu-only" in give_up


def test_sr_render_speaks_of_no_sketch_and_no_setting_that_it_does_not_have(wan: Any) -> None:
    from test_handover import rendered, sketched

    record, render = sketched(wan())[0], wan(seed=1)
    (note,) = rendered(record, short_of_memory(render, 1))[1].notes
    assert note == "Out of memory in the render: the step was tried once more."
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        rendered(record, short_of_memory(render, 2))
    assert "sketch a smaller one" in str(error.value) and "Make the latent smaller" not in str(error.value)
    assert "offload_sketch" not in str(error.value)


# --- the report -------------------------------------------------------------------------------------------------------


def test_the_report_has_loading_seconds_and_memory_of_both_stages(wan: Any) -> None:
    sketch, render = wan(layers=2), wan(seed=1)
    report = Report.from_json(ran(sketch, render, "always").to_json())
    (hand_over,) = report.hand_overs
    before, at, after = (hand_over.memory[moment] for moment in ("before", "at", "after"))
    assert [before["sketch"], at["sketch"], after["sketch"]] == [sketch.model_size(), 0, 0]
    assert [before["render"], at["render"], after["render"]] == [0, 0, render.model_size()]
    assert min(before["free"], at["free"], after["free"]) > 0
    assert report.stage("sketch").load_seconds > 0 and report.stage("render").load_seconds == hand_over.seconds > 0


def test_the_summary_says_it_in_one_line() -> None:
    moments = {
        "before": {"free": 1.2e9, "sketch": 26.5e9, "render": 0},
        "at": {"free": 27.7e9, "sketch": 0, "render": 0},
        "after": {"free": 24.9e9, "sketch": 0, "render": 2.8e9},
    }
    report = Report(status="done", sigmas=[1.0, 0.5, 0.0])
    report.hand_overs = [reports.HandOver(1, "render", "step", 0.5, 50.0, memory=moments)]
    assert (
        "Memory, GB (free / sketch / render): before 1.2 / 26.5 / 0.0, at the switch 27.7 / 0.0 / 0.0, "
        "after it 24.9 / 0.0 / 2.8" in module("srd_core.report.text").summarize(report).splitlines()
    )


def test_a_report_of_before_there_was_memory_in_it_is_still_read() -> None:
    report = Report.from_json(
        '{"version": 1, "hand_overs": [{"after_step": 1, "to": "render", "reason": "step", '
        '"sigma": 0.5, "percent": 50.0}], "sigmas": [1.0, 0.5, 0.0]}'
    )
    assert report.hand_overs[0].memory == {} and "Memory" not in module("srd_core.report.text").summarize(report)


# --- in a server, started as users start it ---------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[pytest.param("--disable-smart-memory", marks=pytest.mark.long), "--reserve-vram"]
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server of the tiny family with one of the host's memory flags."""
    flags = [request.param, *(["1000000"] if request.param == "--reserve-vram" else [])]
    base = tmp_path_factory.mktemp("base")
    with host_module.serve(
        host_module.find_or_make(), base, host_module.DEMO_PACKS, host_module.tiny_family(), extra_args=flags
    ) as running:
        running.flag = request.param
        yield running


def test_every_policy_does_in_a_server_what_it_says(server: Any) -> None:
    kept = {}
    saved = workflow.to_api(workflow.load(REPOSITORY / "demo" / "demo.json"), server.object_info())
    for policy in POLICIES:
        settings = {"steps": 6, "switch_mode": "step", "switch_step": 3, "offload_sketch": policy}
        ready = workflow.set_inputs(saved, workflow.find(saved, "SRSampler"), **settings)
        outputs = server.run(ready, timeout=300)["outputs"]
        (report,) = (json.loads(output["report"][0]) for output in outputs.values() if "report" in output)
        assert report["status"] == "done" and report["notes"] == []
        kept[policy] = report["hand_overs"][0]["memory"]["after"]["sketch"] > 0
    assert kept == {"auto": True, "always": False, "never": True}  # on the CPU the host moves nothing


def test_the_report_begins_with_what_the_host_will_ask_for(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reckoned before the run; against what the host then asks its memory manager for."""
    asked: list[int] = []
    load = comfy.model_management.load_models_gpu

    def watch(models: Any, memory_required: int = 0, *args: Any, **kwargs: Any) -> Any:
        asked.append(int(memory_required))
        return load(models, memory_required, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", watch)
    sketch, render = wan(seed=0, layers=2), wan(seed=1)
    report = module("srd_core.report.data").Report()
    helpers.ksampler(sr_model(sketch, render, 2, report=report), 4)
    assert [entry.weight_bytes for entry in report.stages] == [sketch.model_size(), render.model_size()]
    assert [entry.step_bytes for entry in report.stages] == asked and min(asked) > 0
    assert report.device_bytes == comfy.model_management.get_total_memory(sketch.load_device)
    first = module("srd_core.report.text").summarize(report).splitlines()[2]
    assert (
        first.startswith("Memory, reckoned before the run: sketch ")
        and " of weights and " in first
        and "; the device has " in first
    )
