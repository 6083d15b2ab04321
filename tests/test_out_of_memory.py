"""Out of memory: a step is tried once more when room was made, and then the run ends with what to change."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from hosting import module
from runs import STEPS, Report, before, out_of_memory, rendered, sketched, slow_wan, sr_model
from test_memory import POLICIES, is_loaded, ran

memory = module("srd_core.memory")
LOADING, CALL = WrappersMP.PREPARE_SAMPLING, WrappersMP.DIFFUSION_MODEL


# Every policy with both samplers and at both places.
@pytest.mark.parametrize(
    ("policy", "sampler", "where"),
    [
        ("auto", "uni_pc", LOADING),
        ("auto", "heun", CALL),
        ("always", "uni_pc", CALL),
        ("always", "heun", LOADING),
        ("never", "uni_pc", LOADING),
        ("never", "heun", CALL),
    ],
)
def test_a_render_that_runs_out_of_memory_is_tried_again_without_the_sketch(
    policy: str, sampler: str, where: Any, wan: Any
) -> None:
    sketch, render, report = wan(), wan(seed=1), Report()
    plain = helpers.ksampler(sr_model(sketch, render, 3), STEPS, sampler_name=sampler)
    model = sr_model(sketch, out_of_memory(render, 1, where), 3, report, offload_sketch=policy)
    assert torch.equal(helpers.ksampler(model, STEPS, sampler_name=sampler), plain)
    assert report.status == "done" and not is_loaded(sketch) and is_loaded(render)
    (note,) = report.notes
    assert note.startswith("Out of memory in the render: the step was tried once more")
    assert ("after the sketch had left the device" in note) == (policy != "always")
    assert ("Set offload_sketch to always" in note) == (policy != "always")


@pytest.mark.parametrize("where", [LOADING, CALL])
def test_a_render_that_runs_out_of_memory_twice_ends_the_run_with_what_to_change(where: Any, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), Report()
    plain = [helpers.ksampler(m, STEPS) for m in (sketch, render)]
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        helpers.ksampler(sr_model(sketch, out_of_memory(render, {1, 2}, where), 3, report), STEPS)
    for word in ("weight_dtype", "--reserve-vram", "frames", "Allocation on device"):
        assert word in str(error.value)
    assert comfy.model_management.is_oom(error.value)  # so that the host unloads everything, as for any other
    assert report.status == "failed" and "weight_dtype" in report.error
    assert [torch.equal(helpers.ksampler(m, STEPS), p) for m, p in zip((sketch, render), plain)] == [True, True]


@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("stage", ["sketch", "render"])
def test_a_shortage_in_any_step_of_either_stage_gets_a_second_try(stage: str, call: int, wan: Any) -> None:
    pair, report = {"sketch": wan(), "render": wan(seed=1)}, Report()
    how = {"cfg": 1.0, "sampler_name": "dpmpp_2m"}
    plain = helpers.ksampler(sr_model(pair["sketch"], pair["render"], 5), 10, **how)
    comfy.model_management.load_models_gpu([pair["render"]])
    pair[stage] = out_of_memory(pair[stage], call)
    assert torch.equal(helpers.ksampler(sr_model(pair["sketch"], pair["render"], 5, report), 10, **how), plain)
    said = f"Out of memory in the {stage}: the step was tried once more"
    assert report.status == "done" and report.notes[0].startswith(said)


def test_a_sketch_short_of_memory_stays_beside_a_render_that_never_made_it_leave(wan: Any) -> None:
    sketch, render, there = wan(), wan(seed=1), []
    ran(sketch, render, "never")
    watched = before(out_of_memory(sketch, 2), lambda _: there.append(is_loaded(sketch)))
    ran(watched, render, "never")
    assert there[:3] == [True, True, True]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_second_try_costs_teacache_no_reused_step(sampler: str) -> None:
    def run(times: int) -> tuple[torch.Tensor, Any]:
        report = Report()
        model = sr_model(slow_wan(), out_of_memory(slow_wan(1), range(1, times + 1)), 3, report, teacache=0.2)
        return helpers.ksampler(model, 14, sampler_name=sampler), report

    (plain, whole), (latent, report) = run(0), run(1)
    assert torch.equal(latent, plain)
    assert report.reused("render") == whole.reused("render") > 0


def test_another_error_of_the_render_is_not_tried_again(wan: Any) -> None:
    calls: list[int] = []

    def fail(number: int) -> None:
        calls.append(number)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        helpers.ksampler(sr_model(wan(), before(wan(seed=1), fail), 3), STEPS)
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


def given_up(sketch: Any, render: Any, **how: Any) -> str:
    """What is said when the render runs out of memory twice."""
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        helpers.ksampler(sr_model(sketch, out_of_memory(render, {1, 2}), 3, **how), STEPS)
    return str(error.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_two_clones_of_one_model_nobody_is_told_that_the_sketch_left(policy: str, wan: Any) -> None:
    model, report = wan(), Report()
    plain = helpers.ksampler(model, STEPS)
    pair = sr_model(model, out_of_memory(model, 1), 3, report, offload_sketch=policy)
    assert torch.equal(helpers.ksampler(pair, STEPS), plain) and is_loaded(model)
    (note,) = report.notes
    assert "nothing else of this run was on the device" in note and "offload_sketch" not in note
    said = given_up(model, model, offload_sketch=policy)
    assert "without the sketch" not in said and "Make the latent smaller" in said


def test_a_render_that_runs_all_steps_takes_the_place_of_the_loaded_sketch(wan: Any) -> None:
    sketch, report = wan(), Report()
    helpers.ksampler(sr_model(sketch, out_of_memory(wan(seed=1), 1), 0, report), STEPS)
    assert "after the sketch had left the device" in report.notes[0] and not is_loaded(sketch)


def test_a_sketch_without_another_place_is_said_to_stay_with_the_flags_that_keep_it(wan: Any) -> None:
    sketch, gpu = wan(), torch.device("cuda", 0)
    sketch.load_device = sketch.offload_device = gpu
    note, give_up = memory.make_room("render", wan(seed=1), {"sketch": sketch})
    assert "nothing left it" in note and "without --highvram and --gpu-only" in give_up


def test_sr_render_speaks_of_no_sketch_and_no_setting_that_it_does_not_have(wan: Any) -> None:
    record, render = sketched(wan())[0], wan(seed=1)
    (note,) = rendered(record, out_of_memory(render, 1))[1].notes
    assert note == "Out of memory in the render: the step was tried once more."
    with pytest.raises(comfy.model_management.OOM_EXCEPTION) as error:
        rendered(record, out_of_memory(render, {1, 2}))
    assert "sketch a smaller one" in str(error.value) and "Make the latent smaller" not in str(error.value)
    assert "offload_sketch" not in str(error.value)
