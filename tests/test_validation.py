"""What can be known before the run is refused when it is queued, with a sentence on the node (design section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import helpers
import pytest
import safetensors.torch
import torch
import workflow
from hosting import REPOSITORY, host_module

# Inputs with a default, after those that a run needs: an API graph from before one existed does not name it.
LATER = ("weight_dtype", "attention", *helpers.RULE, *helpers.RENDERING)


@pytest.fixture(scope="module")
def saved(info: Mapping[str, Any]) -> dict[str, Any]:
    return workflow.to_api(workflow.load(REPOSITORY / "demo" / "demo.json"), info)


def refused(server: Any, saved: Any, node: str, **values: Any) -> tuple[str, str]:
    """(input, what it says) of the one error in the answer to the demo's workflow with other values on one node."""
    node_id = workflow.find(saved, node)
    with pytest.raises(host_module.HostError) as error:
        server.queue(workflow.set_inputs(saved, node_id, **values))
    ((found, said),) = error.value.details["node_errors"].items()
    (fault,) = said["errors"]
    assert found == node_id and "exception" not in fault["type"]
    return fault["extra_info"]["input_name"], f"{fault['message']}: {fault['details']}"


def failed(server: Any, saved: Any, node: str, **values: Any) -> str:
    """What the server says of the demo's workflow that it took, when this node runs with other values."""
    node_id = workflow.find(saved, node)
    with pytest.raises(host_module.HostError) as error:
        server.run(workflow.set_inputs(saved, node_id, **values), timeout=300)
    assert error.value.details["node_id"] == node_id
    return str(error.value.details["exception_message"])


@pytest.mark.parametrize(
    ("values", "where", "words"),
    [
        ({"delta": 0.0}, "delta", "smaller than min of 0.0001"),
        ({"delta": 1.5}, "delta", "bigger than max"),
        ({"teacache": -0.1}, "teacache", "smaller than min"),
        ({"teacache": 1.1}, "teacache", "bigger than max"),
        ({"render_cfg": -1.0}, "render_cfg", "smaller than min"),
        ({"switch_sigma": -0.5}, "switch_sigma", "smaller than min"),
        ({"cfg": 101.0}, "cfg", "bigger than max"),
        ({"denoise": 1.01}, "denoise", "bigger than max"),
        ({"seed": -1}, "seed", "smaller than min"),
        ({"offload_sketch": "sometimes"}, "offload_sketch", "Value not in list"),
        ({"sampler_name": "gone_in_this_version"}, "sampler_name", "Value not in list"),
        ({"scheduler": "gone_in_this_version"}, "scheduler", "Value not in list"),
        ({"steps": 0}, "steps", "smaller than min of 1"),
        ({"fix_step": -1}, "fix_step", "smaller than min"),
        ({"max_step": 10001}, "max_step", "bigger than max of 10000"),
        ({"switch_step": -3}, "switch_step", "smaller than min"),
        ({"switch_mode": "percent"}, "switch_mode", "Value not in list"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_sr_sampler_refuses_when_it_is_queued(values: Any, where: str, words: str, server: Any, saved: Any) -> None:
    name, said = refused(server, saved, "SRSampler", **values)
    assert name == where and re.search(words, said), said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"switch_mode": "step", "switch_step": 51, "steps": 50},
            "switch_step is 51, but the run has 50 steps.*Set switch_step below",
        ),
        ({"denoise": "nan"}, "denoise is nan; it must be a number"),
        ({"teacache": "nan"}, "teacache is nan; the threshold must be"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_several_inputs_decide_is_said_by_the_node_and_its_sentence_comes_first(
    values: Any, words: str, server: Any, saved: Any
) -> None:
    assert re.match(words, failed(server, saved, "SRSampler", **values))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.safetensors", "'gone.safetensors' is not in models/diffusion_models. Put it there and press R"),
        ("../vae/tiny_wan_vae.safetensors", "is not in models/diffusion_models"),
        ("cut.safetensors", "cut.safetensors is cut short"),
        ("page.safetensors", "page.safetensors is not a safetensors file, or its download broke off"),
        ("vae.safetensors", "vae.safetensors is not a diffusion model that this ComfyUI knows"),
        ("part.safetensors.index.json", "index.json"),
    ],
    ids=["gone", "outside", "cut", "page", "vae", "one of several shards"],
)
@pytest.mark.parametrize("loader", ["SRLoadSketchDiT", "SRLoadRenderDiT"])
def test_a_loader_refuses_a_file_by_its_header_when_it_is_queued(
    loader: str, name: str, words: str, server: Any, saved: Any
) -> None:
    where, said = refused(server, saved, loader, model_name=name)
    assert where == "model_name" and words in said


@pytest.mark.parametrize("loader", ["SRLoadSketchDiT", "SRLoadRenderDiT"])
def test_a_name_with_the_other_system_s_separator_is_found(loader: str, server: Any, saved: Any) -> None:
    _, options = server.object_info(loader)[loader]["input"]["required"]["model_name"]
    (name,) = (name for name in options["options"] if "deep" in name)
    other = name.replace("/", "\\") if "/" in name else name.replace("\\", "/")
    assert other != name and "cut short" in refused(server, saved, loader, model_name=other)[1]


def test_any_attention_is_taken(server: Any, saved: Any) -> None:
    sampler = workflow.find(saved, "SRSampler")
    graph = workflow.set_inputs(saved, workflow.find(saved, "SRLoadSketchDiT"), attention="gone")
    server.run(workflow.up_to_latent(workflow.set_inputs(graph, sampler, steps=2), sampler))


def test_the_same_workflow_with_good_values_is_taken(server: Any, saved: Any) -> None:
    node_id = workflow.find(saved, "SRSampler")
    for values in ({"switch_mode": "step", "switch_step": 2, "steps": 2}, {"max_step": 3, "fix_step": 5, "steps": 6}):
        server.run(workflow.up_to_latent(workflow.set_inputs(saved, node_id, **values), node_id), timeout=300)


def latent_of(server: Any, graph: Any) -> torch.Tensor:
    entry = server.run(workflow.up_to_latent(graph, workflow.find(graph, "SRSampler")), timeout=300)
    return safetensors.torch.load(server.view(entry["outputs"]["latent"]["latents"][0]))["latent_tensor"]


def test_an_api_graph_from_before_a_widget_existed_runs_with_its_default(server: Any) -> None:
    info = server.object_info()
    first = workflow.load(REPOSITORY / "tests" / "data" / "workflow_first_release.json")
    whole = workflow.to_api(first, info)
    sampler_id = workflow.find(whole, "SRSampler")
    defaults = {name: options["default"] for name, _, options in workflow.specs(info["SRSampler"]) if name in LATER}
    whole = workflow.set_inputs(whole, sampler_id, **defaults, steps=8)
    before = {
        key: node | {"inputs": {name: value for name, value in node["inputs"].items() if name not in LATER}}
        for key, node in whole.items()
    }
    assert before != whole
    assert torch.equal(latent_of(server, before), latent_of(server, whole))
