"""What can be known before the run is refused when it is queued, with a sentence on the node (design section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.utils
import helpers
import pytest
import safetensors.torch
import torch
from hosting import REPOSITORY, host_module, load_by_path, module

workflow = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")
sampler = module("nodes.sampler").SRSampler

WHOLE = {"steps": 50, "switch_mode": "adaptive", "fix_step": 5, "max_step": 0, "switch_step": 10}

# Inputs with a default, after those that a run needs: an API graph from before one existed does not name it.
LATER = ("weight_dtype", "attention", "switch_mode", "delta", "fix_step", "max_step", "switch_step", "switch_sigma", "render_cfg",
         "teacache", "offload_sketch")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files in models/diffusion_models that are no video DiT, each in its own way."""
    folder = tmp_path_factory.mktemp("files")
    wan = helpers.wan_file(folder)
    cut, text, vae = (folder / name for name in ("cut.safetensors", "page.safetensors", "vae.safetensors"))
    cut.write_bytes(wan.read_bytes()[:-1000])
    text.write_text("<!doctype html><title>Access denied</title>", "utf-8")
    comfy.utils.save_torch_file({"decoder.conv1.weight": torch.zeros(4, 4)}, str(vae))
    part = folder / "part-00001-of-00002.safetensors"
    part.write_bytes(wan.read_bytes())
    return [cut, text, vae, part]


@pytest.fixture(scope="module")
def server(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    models = host_module.tiny_family()
    models["diffusion_models"] += files
    base = tmp_path_factory.mktemp("base")
    with host_module.serve(host_module.find_or_make(), base, host_module.DEMO_PACKS, models) as running:
        yield running


@pytest.fixture(scope="module")
def saved(server: Any) -> dict[str, Any]:
    return workflow.to_api(workflow.load(REPOSITORY / "workflows" / "demo.json"), server.object_info())


def refused(server: Any, saved: Any, node: str, **values: Any) -> dict[str, Any]:
    """What the server answers to the demo's workflow with other values on one node: input -> what it says of it."""
    node_id = workflow.find(saved, node)
    with pytest.raises(host_module.HostError) as error:
        server.queue(workflow.set_inputs(saved, node_id, **values))
    errors = error.value.details["node_errors"][node_id]["errors"]
    assert not any("exception" in fault["type"] for fault in errors)
    return {fault["extra_info"]["input_name"]: f"{fault['message']}: {fault['details']}" for fault in errors}


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({"delta": 0.0}, "delta", "smaller than min of 0.0001"),
        ({"delta": -0.01}, "delta", "smaller than min"),
        ({"delta": 1.5}, "delta", "bigger than max"),
        ({"teacache": -0.1}, "teacache", "smaller than min"),
        ({"teacache": 1.1}, "teacache", "bigger than max"),
        ({"render_cfg": -1.0}, "render_cfg", "render_cfg is -1.0; it must be a number from 0"),
        ({"render_cfg": "nan"}, "render_cfg", "render_cfg is nan; it must be a number from 0"),
        ({"switch_sigma": -0.5}, "switch_sigma", "smaller than min"),
        ({"cfg": 101.0}, "cfg", "cfg is 101.0; it must be a number from 0.0 to 100"),
        ({"cfg": "nan"}, "cfg", "cfg is nan; it must be a number from 0"),
        ({"denoise": 1.01}, "denoise", "bigger than max"),
        ({"seed": -1}, "seed", "smaller than min"),
        ({"offload_sketch": "sometimes"}, "offload_sketch", "Value not in list"),
        ({"sampler_name": "gone_in_this_version"}, "sampler_name", "Value not in list"),
        ({"scheduler": "gone_in_this_version"}, "scheduler", "Value not in list"),
        ({"steps": 0}, "steps", "steps is 0; it must be a number from 1 to 10000"),
        ({"fix_step": -1}, "fix_step", "fix_step is -1; it must be a number from 0"),
        ({"max_step": 10001}, "max_step", "max_step is 10001; it must be a number from 0 to 10000"),
        ({"switch_step": -3}, "switch_step", "switch_step is -3; it must be a number from 0"),
        ({"switch_mode": "percent"}, "switch_mode", "switch_mode is 'percent'; choose one of adaptive, step, sigma"),
        ({"switch_mode": "step", "switch_step": 51, "steps": 50}, "switch_step", "the run has 50 steps.*Set switch_step below"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_sr_sampler_refuses_when_it_is_queued(values: Any, where: str, words: str, server: Any, saved: Any):
    said = refused(server, saved, "SRSampler", **values)
    assert re.search(words, said[where]), said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.safetensors", "'gone.safetensors' is not in models/diffusion_models. Put it there and press R"),
        ("../vae/tiny_wan_vae.safetensors", "is not in models/diffusion_models"),
        ("cut.safetensors", "cut.safetensors is cut short"),
        ("page.safetensors", "page.safetensors is not a safetensors file, or its download broke off"),
        ("vae.safetensors", "vae.safetensors is no diffusion model that this ComfyUI knows"),
    ],
)
@pytest.mark.parametrize("loader", ["SRLoadSketchDiT", "SRLoadRenderDiT"])
def test_a_loader_refuses_a_file_by_its_header_when_it_is_queued(
    loader: str, name: str, words: str, server: Any, saved: Any
):
    assert words in refused(server, saved, loader, model_name=name)["model_name"]


def test_one_of_several_shards_is_refused_by_the_name_of_what_is_missing(server: Any, saved: Any):
    said = refused(server, saved, "SRLoadSketchDiT", model_name="part.safetensors.index.json")["model_name"]
    assert "index.json" in said


def test_a_loader_refuses_a_precision_that_is_gone(server: Any, saved: Any):
    assert "Value not in list" in refused(server, saved, "SRLoadRenderDiT", weight_dtype="int3")["weight_dtype"]


def test_the_same_workflow_with_good_values_is_taken(server: Any, saved: Any):
    node_id = workflow.find(saved, "SRSampler")
    for values in ({"switch_mode": "step", "switch_step": 2, "steps": 2}, {"max_step": 3, "fix_step": 5, "steps": 6}):
        server.run(workflow.set_inputs(saved, node_id, **values), timeout=300)


def latent_of(server: Any, graph: Any) -> torch.Tensor:
    entry = server.run(workflow.up_to_latent(graph, workflow.find(graph, "SRSampler")), timeout=300)
    return safetensors.torch.load(server.view(entry["outputs"]["latent"]["latents"][0]))["latent_tensor"]


def test_an_api_graph_from_before_a_widget_existed_runs_with_its_default(server: Any):
    info = server.object_info()
    first = workflow.load(REPOSITORY / "tests" / "data" / "workflow_first_release.json")
    whole = workflow.to_api(first, info)
    sampler_id = workflow.find(whole, "SRSampler")
    assert all(name in whole[sampler_id]["inputs"] for name in WHOLE)
    defaults = {name: options["default"] for name, _, options in workflow.specs(info["SRSampler"]) if name in LATER}
    whole = workflow.set_inputs(whole, sampler_id, **defaults, steps=8)
    before = {key: node | {"inputs": {name: value for name, value in node["inputs"].items() if name not in LATER}}
              for key, node in whole.items()}  # fmt: skip
    assert before != whole
    assert torch.equal(latent_of(server, before), latent_of(server, whole))


def test_values_that_come_from_other_nodes_are_left_to_the_run():
    assert sampler.validate_inputs() is True
    assert sampler.validate_inputs(switch_mode="step", switch_step=99) is True
    assert sampler.validate_inputs(steps=10, switch_mode="adaptive", max_step=2) is True
    assert module("nodes.loaders").SRLoadSketchDiT.validate_inputs(attention="sage") is True


@pytest.mark.parametrize(
    ("values", "taken"),
    [
        ({}, True),
        ({"switch_mode": "step", "switch_step": 50}, True),  # the sketch alone
        ({"switch_mode": "step", "switch_step": 51}, False),
        ({"switch_mode": "sigma", "switch_step": 51}, True),  # not used
        ({"max_step": 3}, True),  # whether fix_step allows it depends on the schedule: the run says so
    ],
)
def test_settings_contradict_each_other_only_where_they_are_used(values: dict[str, Any], taken: bool):
    assert (sampler.validate_inputs(**WHOLE | values) is True) == taken


def test_values_of_another_kind_are_refused_with_a_sentence():
    assert "switch_step is 'ten'" in sampler.validate_inputs(**WHOLE | {"switch_step": "ten"})
    assert "steps is nan" in sampler.validate_inputs(**WHOLE | {"steps": float("nan")})
    for node in (sampler, module("nodes.sampler").SRModel, module("nodes.handover").SRRender):
        assert "render_cfg is nan; it must be a number" in node.validate_inputs(render_cfg=float("nan"))
        assert node.validate_inputs() is True and node.validate_inputs(render_cfg=1.0) is True
