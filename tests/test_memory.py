"""Memory at the switch: which model is where, by the real host's own books, and what happens when there is too little.

There is no GPU here. The host keeps the same books on the CPU, where taking a model from its device moves nothing; that
both do not fit is said as a user says it, by --reserve-vram. (The host takes --lowvram and --highvram on GPUs only.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import helpers
import pytest
import torch
import workflow
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from hosting import REPOSITORY, host_module, module
from runs import STEPS, Report, a_video, asked_for, right_half, sr_model, sr_sampler

memory, reports = module("srd_core.memory"), module("srd_core.report.data")

POLICIES = ("auto", "always", "never")
READERS = ("uni_pc", "dpm_2_ancestral", "er_sde")  # of the schedule, each in its own way


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
def test_only_always_takes_the_sketch_away_where_it_has_another_place(policy: str, wan: Any) -> None:
    """Clones of one model have nothing to leave; with --highvram there is no other place."""
    sketch, render = wan(), wan(seed=1)
    assert memory.leaves(policy, sketch, render) == (policy == "always")
    assert not memory.leaves(policy, sketch, sketch.clone())
    sketch.load_device = sketch.offload_device = torch.device("cuda", 0)
    assert not memory.leaves(policy, sketch, render)


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


@pytest.mark.parametrize("room", [True, False], ids=["both fit", "both do not fit"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_sketch_leaves_only_if_it_always_has_to(
    policy: str, room: bool, wan: Any, request: pytest.FixtureRequest
) -> None:
    if not room:
        request.getfixturevalue("no_room")
    sketch, render = wan(layers=2), wan(seed=1)
    report = ran(sketch, render, policy)
    assert around(report, "sketch") == [True, policy != "always", policy != "always"]
    assert around(report, "render") == [False, False, True]
    assert [is_loaded(sketch), is_loaded(render)] == [policy != "always", True]


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


def assert_leaving_changes_nothing(sketch: Any, render: Any, switch: int = 3, **how: Any) -> None:
    models = [sr_model(sketch, render, switch, offload_sketch=policy) for policy in ("never", "always")]
    assert torch.equal(*(helpers.ksampler(model, STEPS, **how) for model in models))


@pytest.mark.parametrize("sampler", READERS)
def test_samplers_that_read_the_sketchs_schedule_are_the_same_when_it_left(sampler: str, wan: Any) -> None:
    """Also where it left with its own noise schedule, which the sampler still reads."""
    sketch, render = (ModelSamplingSD3().patch(model, 7.0)[0] for model in (wan(), wan(seed=1)))
    assert_leaving_changes_nothing(sketch, render, sampler_name=sampler, scheduler="beta")


def test_ranges_of_prompts_follow_the_schedule_of_a_sketch_that_left(wan: Any) -> None:
    """Its shift is a patch of the MODEL, and goes with it; the range's end is asked for after that."""
    sketch, render = ModelSamplingSD3().patch(wan(), 12.0)[0], wan(seed=1)
    ends_early = [*helpers.prompt(3, start_percent=0.0, end_percent=0.3), *helpers.prompt(4, start_percent=0.3)]
    assert_leaving_changes_nothing(sketch, render, 1, positive=ends_early)


def test_masks_go_on_with_the_sketchs_kind_of_noise_after_it_left(wan: Any) -> None:
    """The sampler puts the masked part back with the patched model_sampling (here not Wan's own kind) of the sketch."""
    sketch, render = (ModelSamplingDiscrete().patch(model, "eps", False)[0] for model in (wan(), wan(seed=1)))
    latent = {"samples": a_video(), "noise_mask": right_half()}
    assert_leaving_changes_nothing(sketch, render, latent=latent)


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


def test_a_report_of_before_there_was_memory_in_it_is_still_read() -> None:
    report = Report.from_json(
        '{"version": 1, "hand_overs": [{"after_step": 1, "to": "render", "reason": "step", '
        '"sigma": 0.5, "percent": 50.0}], "sigmas": [1.0, 0.5, 0.0]}'
    )
    assert report.hand_overs[0].memory == {}


# --- in a server, started as users start it ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["--disable-smart-memory", "--reserve-vram"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real server of the tiny family with one of the host's memory flags."""
    flags = [request.param, *(["1000000"] if request.param == "--reserve-vram" else [])]
    base = tmp_path_factory.mktemp("base")
    with host_module.serve(
        host_module.find_or_make(), base, host_module.DEMO_PACKS, host_module.tiny_family(), extra_args=flags
    ) as running:
        yield running


@pytest.mark.long
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
    sketch, render, report = wan(seed=0, layers=2), wan(seed=1), Report()
    asked = asked_for(lambda: helpers.ksampler(sr_model(sketch, render, 2, report=report), 4), monkeypatch)
    assert [entry.weight_bytes for entry in report.stages] == [sketch.model_size(), render.model_size()]
    assert [entry.step_bytes for entry in report.stages] == list(map(int, asked)) and min(asked) > 0
    assert report.device_bytes == comfy.model_management.get_total_memory(sketch.load_device)


def test_each_switch_ends_what_a_newer_host_records_of_allocations(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    report: Any = Report()
    prefetch = memory.comfy.model_prefetch
    monkeypatch.setattr(prefetch, "cleanup_malloc_graph", lambda: ended.append(len(report.hand_overs)), raising=False)
    helpers.ksampler(sr_model(wan(), wan(seed=1), "1-2, 4", report), STEPS)
    assert set(ended) >= {0, 1, 2} and len(report.hand_overs) == 3
