"""What the server tells of a run while it runs, and keeps of it: over its own channel, its route and its files."""

from __future__ import annotations

import copy
import io
import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import folder_paths
import helpers
import pytest
import torch
from comfy_api.latest import io as node_api
from comfy_execution.utils import CurrentNodeContext
from hosting import REPOSITORY, host_module, load_by_path, module

client = load_by_path("srd_client", REPOSITORY / "demo" / "client.py")
workflow = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")
live, common = module("nodes.live"), module("nodes.common")
report_module, figures = module("srd_core.report.data"), module("srd_core.report.figures")

STEPS = 8


@pytest.fixture
def graph(info: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's graph, short."""
    graph = workflow.to_api(workflow.load(REPOSITORY / "demo" / "demo.json"), info)
    return workflow.set_inputs(graph, workflow.find(graph, "SRSampler"), steps=STEPS, switch_mode="step", switch_step=3)


def messages(server: Any, graph: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a graph; what the server told of its runs."""
    told: list[dict[str, Any]] = []
    server.run(graph, lambda kind, data: told.append(data) if kind == live.EVENT else None, timeout=300)
    return told


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(figures.figures(report_module.Report.from_json(json.dumps(report)))))
    return found


def test_every_step_is_told_with_the_nodes_that_show_it_and_the_end_is_told_whole(
    server: Any, graph: dict[str, Any]
) -> None:
    sampler, inspector = (workflow.find(graph, kind) for kind in ("SRSampler", "SRSwitchInspector"))
    told = [message for message in messages(server, graph) if message["node_id"] == sampler]
    assert {tuple(message["nodes"]) for message in told} == {(sampler, inspector)}
    assert len({message["prompt_id"] for message in told}) == 1
    assert sorted({m["report"]["count"] for m in told if "count" in m["report"]}) == list(range(1, STEPS + 1))
    assert all(len(m["report"]["steps"]) <= 2 and "sigmas" not in m["report"] for m in told if "count" in m["report"])
    assert told[0]["report"]["status"] == "running" and told[-1]["report"]["status"] == "done"
    assert len(told[-1]["report"]["steps"]) == STEPS == len(told[-1]["report"]["sigmas"]) - 1
    assert told[-1]["report"]["hand_overs"][0]["after_step"] == 3
    assert told[-1]["figures"] == figures_of(told[-1]["report"]) and told[-1]["figures"]["speed_up"] > 0
    running = [m["figures"] for m in told if "count" in m["report"]]
    assert running[0]["speed_up"] is None and running[0]["left"]["bound"]
    assert running[-1]["speed_up"] and not running[-1]["left"]["bound"]


def test_whoever_comes_later_gets_the_runs_from_the_route(server: Any, graph: dict[str, Any]) -> None:
    sampler, inspector = (workflow.find(graph, kind) for kind in ("SRSampler", "SRSwitchInspector"))
    entry = server.run(workflow.set_inputs(graph, sampler, seed=77), timeout=300)
    shown = [run for run in server.get(live.ROUTE)["runs"] if run["prompt_id"] == entry["prompt"][1]]
    assert [run["node_id"] for run in shown] == [sampler, inspector]
    for run in shown:
        assert run["sampler"] == sampler
        assert run["report"] == json.loads(entry["outputs"][inspector]["report"][0])
        assert run["figures"] == figures_of(run["report"])


def test_a_client_is_told_which_prompts_are_its_own_and_which_runs_nobody_waits_for(
    server: Any, graph: dict[str, Any]
) -> None:
    sampler, told = workflow.find(graph, "SRSampler"), []
    graph = workflow.set_inputs(graph, sampler, seed=78)
    prompt_id = server.post("/prompt", {"prompt": graph, "client_id": server.client_id})["prompt_id"]
    assert server.get(f"{live.QUEUED}?client_id={server.client_id}") == {"prompts": [prompt_id]}
    assert server.get(f"{live.QUEUED}?client_id=another") == {"prompts": []}
    while not server.get(f"/history/{prompt_id}"):
        pass
    assert server.get(f"{live.QUEUED}?client_id={server.client_id}") == {"prompts": []}
    server.run(
        workflow.set_inputs(graph, sampler, seed=79),
        lambda kind, data: told.append(
            {run["prompt_id"]: (run["client_id"], run["left"]) for run in server.get(live.ROUTE)["runs"]}
        ),
        timeout=300,
    )
    assert told[-1][prompt_id] == (server.client_id, False)
    runs = {run["prompt_id"]: run for run in server.get(live.ROUTE)["runs"]}
    assert runs[prompt_id]["left"]  # nobody is connected


def test_a_sampler_that_comes_from_the_cache_does_not_begin_a_new_run(server: Any, graph: dict[str, Any]) -> None:
    messages(server, graph)
    assert {m["node_id"] for m in messages(server, graph)} <= {workflow.find(graph, "SRSwitchInspector")}


def test_a_cached_sketch_render_model_is_told_under_the_prompt_that_samples_with_it(server: Any) -> None:
    graph, (sampler,), (inspector,) = under_ksampler(server, 1)
    runs = [messages(server, workflow.set_inputs(graph, sampler, seed=seed)) for seed in (1, 2)]
    prompts = [{m["prompt_id"] for m in told if m["node_id"] == "model"} for told in runs]
    assert [len(found) for found in prompts] == [1, 1] and prompts[0] != prompts[1]
    for told in runs:
        assert told[-1]["node_id"] == inspector and told[-1]["report"]["status"] == "done"


def under_ksampler(server: Any, count: int) -> tuple[dict[str, Any], list[str], list[str]]:
    """The demo's graph with one Sketch-Render Model ("model") under so many KSamplers: (graph, samplers, Inspectors).

    Each has an Inspector that waits for it, its own seed, and one step more than the one before.
    """
    graph = workflow.to_api(workflow.load(REPOSITORY / "demo" / "demo.json"), server.object_info())
    first = workflow.find(graph, "SRSampler")
    inputs = graph[first]["inputs"]
    switching = {i.id for i in module("nodes.sampler").SRModel.define_schema().inputs}
    model = {k: v for k, v in inputs.items() if k in switching} | {"switch_mode": "step", "switch_step": 3}
    graph["model"] = {"class_type": "SRModel", "inputs": model}
    plain = {k: v for k, v in inputs.items() if k not in switching and k != "latent"}
    plain |= {"model": ["model", 0], "latent_image": inputs["latent"]}
    del graph[workflow.find(graph, "SRSwitchInspector")]
    samplers = [first, *(f"sampler{i}" for i in range(1, count))]
    for i, sampler in enumerate(samplers):
        own = {"steps": STEPS + i, "seed": inputs["seed"] + 1000 + i}
        graph[sampler] = {"class_type": "KSampler", "inputs": plain | own}
        graph[f"inspector{i}"] = {
            "class_type": "SRSwitchInspector",
            "inputs": {"report": ["model", 1], "after": [sampler, 0]},
        }
    return graph, samplers, [f"inspector{i}" for i in range(count)]


def test_two_samplers_after_one_sketch_render_model_keep_a_report_each(server: Any) -> None:
    graph, samplers, inspectors = under_ksampler(server, 2)
    told: list[dict[str, Any]] = []
    entry = server.run(graph, lambda kind, data: told.append(data) if kind == live.EVENT else None, timeout=300)
    kept = [run for run in server.get(live.ROUTE)["runs"] if run["prompt_id"] == entry["prompt"][1]]
    for i, (sampler, inspector) in enumerate(zip(samplers, inspectors)):
        shown = entry["outputs"][inspector]
        report = json.loads(shown["report"][0])
        assert report["sampler_node"] == sampler and len(report["steps"]) == STEPS + i
        assert f"after step 3 of {STEPS + i}" in shown["text"][0]
        live_runs = [m for m in told if m["node_id"] == "model" and m["samples"] == sampler]
        assert {tuple(m["nodes"]) for m in live_runs} == {("model", inspector)}
        assert live_runs[-1]["report"] == report and live_runs[0]["report"]["status"] == "running"
        (last,) = (m["report"] for m in told if m["node_id"] == inspector)
        assert last == report
        assert [run["report"] for run in kept if inspector in run["nodes"]] == [report, report]
    for i, inspector in enumerate(
        inspectors
    ):  # others, after both runs are over; a difference keeps them from the host's cache
        graph[f"late{i}"] = {**graph[inspector], "inputs": graph[inspector]["inputs"] | {"report_json": " "}}
    late = server.run(graph, timeout=300)["outputs"]
    assert [json.loads(late[f"late{i}"]["report"][0])["sampler_node"] for i in (0, 1)] == samplers
    again = server.run(workflow.set_inputs(graph, samplers[0], seed=5), timeout=300)
    assert (
        inspectors[0] in again["outputs"]
        and json.loads(again["outputs"][inspectors[0]]["report"][0])["sampler_node"] == samplers[0]
    )


def test_an_inspector_that_waits_for_no_sampler_shows_the_newest_run(server: Any) -> None:
    graph, samplers, (first, second) = under_ksampler(server, 2)
    graph[second]["inputs"]["after"] = [graph[samplers[0]]["inputs"]["positive"][0], 0]  # the prompt
    del graph[first]
    graph[samplers[1]]["inputs"]["latent_image"] = [samplers[0], 0]  # one after the other
    decode = next(node for node in graph.values() if node["class_type"] == "VAEDecode")
    decode["inputs"]["samples"] = [samplers[1], 0]
    told = [m for m in messages(server, graph) if m["node_id"] == "model"]
    assert {m["samples"] for m in told} == set(samplers) and {tuple(m["nodes"]) for m in told} == {("model", second)}


def test_a_saved_report_of_either_version_is_read_for_the_page(server: Any) -> None:
    old = (Path(__file__).parent / "data" / "report_version_1.json").read_text("utf-8")
    answer = server.post(live.READ, json.loads(old))
    assert answer["report"] == json.loads(report_module.Report.from_json(old).to_json())
    assert answer["figures"] == figures_of(answer["report"])
    assert server.post(live.READ, answer["report"] | {"figures": {"speed_up": 99}}) == answer
    for wrong, words in (
        ({"nodes": []}, "not a sketch-render report"),
        ("text", "not a sketch-render report"),
        (answer["report"] | {"sigmas": None}, "damaged"),
    ):
        answered = server.post(live.READ, wrong)
        assert answered["report"]["status"] == "unreadable" and words in answered["report"]["error"]


def test_a_saved_video_carries_the_report_beside_its_workflow_and_in_it(server: Any, graph: dict[str, Any]) -> None:
    sampler = workflow.find(graph, "SRSampler")
    graph = workflow.set_inputs(graph, sampler, seed=4711)
    extra = {"extra_pnginfo": {"workflow": {"id": "some-id", "nodes": [], "extra": {"ds": 1}}}}
    prompt_id = server.post("/prompt", {"prompt": graph, "client_id": server.client_id, "extra_data": extra})[
        "prompt_id"
    ]
    while not (entry := server.get(f"/history/{prompt_id}")):
        pass
    outputs = entry[prompt_id]["outputs"]
    (file,) = [f for f in client.files_of({"outputs": outputs}) if f["filename"].endswith(".mp4")]
    with av.open(io.BytesIO(server.view(file))) as container:
        metadata = dict(container.metadata)
    kept, saved = json.loads(metadata["srdiffusion"]), json.loads(metadata["workflow"])
    shown = report_module.Report.from_json(outputs[workflow.find(graph, "SRSwitchInspector")]["report"][0])
    assert report_module.Report.from_json(json.dumps(kept[sampler])) == shown
    assert kept[sampler]["figures"] == figures_of(kept[sampler])
    assert saved["extra"] == {"ds": 1, "srdiffusion": kept}
    assert {run["workflow_id"] for run in server.get(live.ROUTE)["runs"] if run["prompt_id"] == prompt_id} == {
        "some-id"
    }


def test_an_old_report_s_text_gives_the_same_picture_and_a_malformed_one_a_sentence(
    server: Any, graph: dict[str, Any]
) -> None:
    inspector = workflow.find(graph, "SRSwitchInspector")
    text = server.run(graph, timeout=300)["outputs"][inspector]["report"][0]

    def inspect(**inputs: Any) -> dict[str, Any]:
        graph = {
            "1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": inputs.pop("text", "")}},
            "2": {"class_type": "SRSwitchInspector", "inputs": inputs},
        }
        return server.run(graph, timeout=60)["outputs"]["2"]

    assert inspect(text=text, report_json=["1", 0])["report"][0] == text
    for wrong, words in (("{", "not JSON"), ('{"nodes": []}', "not a sketch-render report"), ("", "nothing to show")):
        with pytest.raises(host_module.HostError, match=words):
            inspect(text=wrong, report_json=["1", 0])
    shown = server.get(live.ROUTE)["runs"]
    assert any(run["report"]["status"] == "unreadable" and "not JSON" in run["report"]["error"] for run in shown)


def test_the_report_s_text_goes_on_to_other_nodes_and_into_a_file_if_asked(server: Any, graph: dict[str, Any]) -> None:
    inspector = workflow.find(graph, "SRSwitchInspector")
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": [inspector, 2]}}
    graph["again"] = {"class_type": "SRSwitchInspector", "inputs": {"report_json": [inspector, 2]}}
    outputs = server.run(graph, timeout=300)["outputs"]
    text = outputs[inspector]["report"][0]
    assert outputs["text"]["text"] == [text] == outputs["again"]["report"] and "saved" not in outputs[inspector]
    graph["again"]["inputs"]["save_report"] = " kept/run "
    for number, saver in ((1, "again"), (2, inspector)):  # a number follows, as in Save Image
        (file,) = server.run(graph, timeout=300)["outputs"][saver]["saved"]
        assert file == {"filename": f"run_{number:05}_.json", "subfolder": "kept", "type": "output"}
        assert report_module.Report.from_json(server.view(file).decode("utf-8")) == report_module.Report.from_json(text)
        graph.pop("again", None)
        graph = workflow.set_inputs(graph, inspector, save_report="kept/run")


def test_a_place_where_no_report_can_be_saved_is_refused_when_it_is_queued(server: Any, graph: dict[str, Any]) -> None:
    inspector = workflow.find(graph, "SRSwitchInspector")
    with pytest.raises(host_module.HostError) as refused:
        server.queue(workflow.set_inputs(graph, inspector, save_report="../../outside"))
    ((found, said),) = refused.value.details["node_errors"].items()
    (error,) = said["errors"]
    assert found == inspector and error["extra_info"]["input_name"] == "save_report"
    assert "save_report is '../../outside'; nothing can be saved there." in error["details"]


@pytest.mark.parametrize(
    ("status", "place", "said"),
    [
        (
            "done",
            "../outside",
            "save_report is '../outside'; nothing can be saved there. Name a folder",
        ),  # as a link may give it
        ("not run", "kept/run", "The report was not saved: there is no run yet. With Sketch-Render Model, connect"),
    ],
)
def test_a_report_of_no_run_or_for_a_folder_outside_is_not_saved(
    status: str, place: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    node = module("nodes.inspector").SRSwitchInspector.PREPARE_CLASS_CLONE({})
    output = node.execute(report_module.Report(status=status), save_report=place)
    assert said in output.ui["text"][0] and "saved" not in output.ui
    assert not list(tmp_path.rglob("*.json"))


def test_a_report_that_can_t_be_written_is_told_and_the_run_continues(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    (tmp_path / "kept").write_text("a file, where the folder should be")
    node = module("nodes.inspector").SRSwitchInspector.PREPARE_CLASS_CLONE({})
    output = node.execute(report_module.Report(status="done"), save_report="kept/run")
    _, summary, _ = output.args
    (shown,) = output.ui["text"]
    assert (
        shown.startswith(summary)
        and "The report could not be saved as 'kept/run' (" in shown
        and "saved" not in output.ui
    )
    assert "could not be saved" in caplog.text


def test_the_server_keeps_the_newest_runs_only(server: Any) -> None:
    graph = {
        "1": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "{"}},
        "2": {"class_type": "SRSwitchInspector", "inputs": {"report_json": ["1", 0]}},
    }
    for i in range(live.KEPT + 3):
        with pytest.raises(host_module.HostError):
            server.run(workflow.set_inputs(graph, "1", value="{" * (i + 1)), timeout=60)
    assert len(server.get(live.ROUTE)["runs"]) == live.KEPT


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": [{"step": "<b>", "sigma": 1.0, "stage": "sketch"}]},
        {"sigmas": None},
        {"total_seconds": "x"},
        {"stages": {}},
        {"stages": [{"name": "sketch", "calls": -1}]},
        {"switch": 1},
        {"steps": "abc"},
        {"earliest": 1.5},
        {"total_seconds": True},
        {"stages": [{"name": "sketch"}, {"name": "sketch"}]},
    ],
)
def test_a_report_with_a_value_of_another_kind_is_refused_with_a_sentence(damage: dict[str, Any]) -> None:
    data = json.loads(report_module.Report(status="done").to_json()) | damage
    with pytest.raises(ValueError, match="report"):
        report_module.Report.from_json(json.dumps(data))


# --- another host, another client: the page may miss a run, the run and the Inspector may not fail --------------------

PROMPT, SAMPLER, INSPECTOR = "a-prompt", "1", "2"
GRAPH = {
    SAMPLER: {"class_type": "SRSampler", "inputs": {}},
    INSPECTOR: {"class_type": live.INSPECTOR, "inputs": {"report": [SAMPLER, 1]}},
}
WORKFLOW = {"id": "some-id", "nodes": [], "extra": {"ds": 1}}


def host_server(told: list[Any], queue: Any = None, **instead: Any) -> Any:
    """A host's server as far as live.py uses it; ``told`` gets its messages. ``queue``: what its queue is running."""
    if queue is None:
        queue = [(0, PROMPT, GRAPH, {"extra_pnginfo": {"workflow": WORKFLOW}}, [])]
    has = {
        "sockets": {"a-page": None},
        "send_sync": lambda event, data: told.append(copy.deepcopy(data)),
        "prompt_queue": SimpleNamespace(get_current_queue_volatile=lambda: (queue, [])),
        "routes": SimpleNamespace(get=lambda path: lambda answer: answer),
    } | instead
    return SimpleNamespace(**{name: value for name, value in has.items() if value is not None})


@pytest.fixture
def graph_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, wan: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> Callable[..., Any]:
    """For a server, extra_pnginfo and a prompt: SR Sampler and its Inspector as the host executes them.

    Gives the latent, the Inspector's output and the lines that the log got.
    """
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    common.said.clear()
    live._runs.clear()
    sketch, render = wan(seed=0), wan(seed=1)

    def executed(name: str, node_id: str, extra_pnginfo: Any, prompt: Any, *inputs: Any, **more: Any) -> Any:
        kind = node_api.Hidden
        hidden = {kind.unique_id: node_id, kind.extra_pnginfo: extra_pnginfo, kind.prompt: prompt}
        node = getattr(module(name), {SAMPLER: "SRSampler", INSPECTOR: live.INSPECTOR}[node_id])
        with CurrentNodeContext(PROMPT, node_id):
            return node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden}).execute(*inputs, **more)

    def run(server: Any, extra_pnginfo: Any = None, prompt: Any = GRAPH) -> Any:
        monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
        seen = extra_pnginfo, prompt
        with caplog.at_level(logging.WARNING):
            latent, report = executed(
                "nodes.sampler",
                SAMPLER,
                *seen,
                sketch,
                render,
                positive=helpers.prompt(1),
                negative=helpers.prompt(2),
                latent=helpers.empty_latent(),
                seed=7,
                steps=3,
                cfg=1.0,
                sampler_name="euler",
                scheduler="simple",
                denoise=1.0,
                switch_mode="step",
                delta=0.01,
                fix_step=5,
                max_step=0,
                switch_step=1,
                switch_sigma=0.875,
                render_cfg=0.0,
                teacache=0.0,
                offload_sketch="auto",
            ).args
            shown = executed("nodes.inspector", INSPECTOR, *seen, report)
        return latent["samples"], shown, [line for line in caplog.messages if "SRDiffusion" in line]

    return run


def test_a_host_as_it_is_today_is_told_of_the_run(graph_run: Any) -> None:
    told: list[Any] = []
    extra = {"workflow": copy.deepcopy(WORKFLOW)}
    _, shown, log = graph_run(host_server(told), extra)
    assert not log and {run["node_id"] for run in told} == {SAMPLER, INSPECTOR}
    assert told[0]["nodes"] == [SAMPLER, INSPECTOR] and told[0]["workflow_id"] == "some-id"
    assert told[-1]["sampler"] == SAMPLER and told[-1]["report"]["status"] == "done"
    kept = json.loads(json.dumps(extra["srdiffusion"]))
    assert {**json.loads(shown.ui["report"][0]), "figures": kept[SAMPLER]["figures"]} == kept[SAMPLER]
    assert extra["workflow"]["extra"] == {"ds": 1, "srdiffusion": extra["srdiffusion"]}


@pytest.mark.parametrize(
    ("server", "told_of"),
    [
        ({"sockets": None}, {SAMPLER, INSPECTOR}),  # nobody knows who listens: it is told
        ({"send_sync": None}, set()),
        ({"send_sync": lambda data: None}, set()),
        ({"prompt_queue": None}, {SAMPLER, INSPECTOR}),
        ({"prompt_queue": SimpleNamespace()}, {SAMPLER, INSPECTOR}),
        ({"prompt_queue": SimpleNamespace(get_current_queue_volatile=dict)}, {SAMPLER, INSPECTOR}),
        ({"queue": [{"prompt_id": PROMPT}]}, {SAMPLER, INSPECTOR}),
        ({"queue": [(0, PROMPT)]}, {SAMPLER, INSPECTOR}),
        ({"queue": [None]}, {SAMPLER, INSPECTOR}),
        ({"queue": [(0, PROMPT, "a graph", {}, [])]}, {SAMPLER, INSPECTOR}),
        ({"queue": [(0, PROMPT, {"1": None, "2": {"class_type": live.INSPECTOR}}, None, [])]}, {SAMPLER, INSPECTOR}),
        ({"queue": []}, {SAMPLER, INSPECTOR}),
    ],
)
def test_a_server_of_another_host_costs_the_page_not_the_run(
    server: dict[str, Any], told_of: set[str], graph_run: Any
) -> None:
    plain, _, _ = graph_run(None)
    told: list[Any] = []
    for _ in range(2):
        extra: dict[str, Any] = {"workflow": dict(WORKFLOW)}
        latent, shown, log = graph_run(host_server(told, **server), extra)
        assert torch.equal(latent, plain) and "Switched to the render after step 1 of 3" in shown.args[1]
        assert extra["srdiffusion"][SAMPLER]["status"] == "done"
    assert {run["node_id"] for run in told} == told_of
    assert len(log) <= 1 and all("the page is not told" in line for line in log)
    assert log or set(server) <= {"sockets", "queue"}


@pytest.mark.parametrize(
    "workflow", ["{}", [1], None, {"id": "w", "extra": None}, {"id": "w", "extra": [1]}, {}, {"extra": "x"}]
)
@pytest.mark.parametrize("before", [{}, {"srdiffusion": "of another pack"}, {"srdiffusion": None}])
def test_a_workflow_of_any_shape_keeps_the_report_beside_it_and_in_it_if_it_can(
    workflow: Any, before: dict[str, Any], graph_run: Any
) -> None:
    told: list[Any] = []
    extra = {"workflow": copy.deepcopy(workflow), **before}
    queue: list[Any] = [(0, PROMPT, GRAPH, {"extra_pnginfo": extra}, [])]
    _, shown, log = graph_run(host_server(told, queue), extra)
    assert not log and told[-1]["report"]["status"] == "done"
    assert extra["srdiffusion"][SAMPLER]["status"] == "done" and shown.ui["report"]
    if isinstance(workflow, dict) and not workflow.get("extra"):
        assert extra["workflow"] == {**workflow, "extra": {"srdiffusion": extra["srdiffusion"]}}
    else:
        assert extra["workflow"] == workflow


@pytest.mark.parametrize("extra", ["text", ["a", 1], [], 5, None])
def test_metadata_that_is_no_object_fails_neither_the_run_nor_the_inspector(extra: Any, graph_run: Any) -> None:
    told: list[Any] = []
    queue: list[Any] = [(0, PROMPT, GRAPH, {"extra_pnginfo": extra}, [])]
    _, shown, log = graph_run(host_server(told, queue), extra)
    assert {run["node_id"] for run in told} == {SAMPLER, INSPECTOR} and shown.ui["plot"]
    assert len(log) == bool(extra) and all("do not carry the report" in line for line in log)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "text",
        [],
        {},
        {INSPECTOR: None},
        {INSPECTOR: {"inputs": None}},
        {INSPECTOR: {"inputs": {"report": "x"}}},
        {INSPECTOR: {"inputs": {"report": []}}},
    ],
)
def test_a_prompt_of_any_shape_costs_the_link_to_the_sampler_alone(prompt: Any, graph_run: Any) -> None:
    told: list[Any] = []
    _, shown, log = graph_run(host_server(told), {"workflow": dict(WORKFLOW)}, prompt)
    assert told[-1]["node_id"] == INSPECTOR and told[-1]["sampler"] == "" and not log and shown.ui["report"]


def test_an_old_report_is_refused_in_words_on_a_server_of_another_host_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instance = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    node = module("nodes.inspector").SRSwitchInspector.PREPARE_CLASS_CLONE(
        {"hidden_inputs": {node_api.Hidden.unique_id: "2"}}
    )
    with CurrentNodeContext(PROMPT, INSPECTOR), pytest.raises(ValueError, match="not JSON"):
        node.execute(report_json="{")


@pytest.mark.parametrize("instance", [SimpleNamespace(), SimpleNamespace(routes=None), SimpleNamespace(routes={})])
def test_a_server_without_routes_costs_the_page_alone(
    instance: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common.said.clear()
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    with caplog.at_level(logging.WARNING):
        live.add_route()
        common.show_on_node(
            module("nodes.compare").SRCompare.PREPARE_CLASS_CLONE({"hidden_inputs": {node_api.Hidden.unique_id: "2"}}),
            "text",
        )
    assert len(caplog.messages) == 2 and all(line.startswith("SRDiffusion: the page") for line in caplog.messages)


def test_a_host_that_says_nothing_of_the_executing_node_costs_the_page_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "get_executing_context", object)
    assert live.executing_node() == ""
    assert live.waits_for(SimpleNamespace(hidden=SimpleNamespace(unique_id="1"))) == set()  # type: ignore[arg-type]
