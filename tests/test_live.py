"""What the server tells of a run while it runs, and keeps of it: over its own channel, its route and its files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import client
import folder_paths
import pages
import pytest
import workflow
from hosting import REPOSITORY, host_module, module

live, common = module("nodes.live"), module("nodes.common")
report_module, figures = module("srd_core.report.data"), module("srd_core.report.figures")

STEPS = 8


@pytest.fixture
def graph(info: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's graph, short and small."""
    graph = workflow.to_api(workflow.load(REPOSITORY / "demo" / "demo.json"), info)
    size = {"width": 64, "height": 64, "length": 5}
    graph = workflow.set_inputs(graph, workflow.find(graph, "EmptyHunyuanLatentVideo"), **size)
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
    pages.until_idle(server)
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


def test_a_cached_sketch_render_model_is_told_under_the_prompt_that_samples_with_it(
    server: Any, graph: dict[str, Any]
) -> None:
    graph, (sampler,), (inspector,) = under_ksampler(graph, 1)
    runs = [messages(server, workflow.set_inputs(graph, sampler, seed=seed)) for seed in (1, 2)]
    prompts = [{m["prompt_id"] for m in told if m["node_id"] == "model"} for told in runs]
    assert [len(found) for found in prompts] == [1, 1] and prompts[0] != prompts[1]
    for told in runs:
        assert told[-1]["node_id"] == inspector and told[-1]["report"]["status"] == "done"


def under_ksampler(graph: dict[str, Any], count: int) -> tuple[dict[str, Any], list[str], list[str]]:
    """The demo's graph with one Sketch-Render Model ("model") under so many KSamplers: (graph, samplers, Inspectors).

    Each has an Inspector that waits for it, its own seed, and one step more than the one before.
    """
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


def test_two_samplers_after_one_sketch_render_model_keep_a_report_each(server: Any, graph: dict[str, Any]) -> None:
    graph, samplers, inspectors = under_ksampler(graph, 2)
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
    # Others, after both runs are over; a difference keeps them from the host's cache.
    for i, inspector in enumerate(inspectors):
        graph[f"late{i}"] = {**graph[inspector], "inputs": graph[inspector]["inputs"] | {"report_json": " "}}
    late = server.run(graph, timeout=300)["outputs"]
    assert [json.loads(late[f"late{i}"]["report"][0])["sampler_node"] for i in (0, 1)] == samplers
    again = server.run(workflow.set_inputs(graph, samplers[0], seed=5), timeout=300)
    assert json.loads(again["outputs"][inspectors[0]]["report"][0])["sampler_node"] == samplers[0]


def test_an_inspector_that_waits_for_no_sampler_shows_the_newest_run(server: Any, graph: dict[str, Any]) -> None:
    graph, samplers, (first, second) = under_ksampler(graph, 2)
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
    pages.until_idle(server)
    outputs = server.get(f"/history/{prompt_id}")[prompt_id]["outputs"]
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
    for wrong, words in (("{", "not JSON"), ('{"nodes": []}', "not a sketch-render report")):
        with pytest.raises(host_module.HostError, match=words):
            inspect(text=wrong, report_json=["1", 0])
    assert inspect(text="", report_json=["1", 0])["text"][0].startswith("No report")
    shown = server.get(live.ROUTE)["runs"]
    assert any(run["report"]["status"] == "unreadable" and "not JSON" in run["report"]["error"] for run in shown)


def test_an_inspector_without_its_sampler_does_not_fail_the_rest_of_the_graph(
    server: Any, graph: dict[str, Any]
) -> None:
    """The page leaves the link out where the sampler is bypassed."""
    inspector = workflow.find(graph, "SRSwitchInspector")
    del graph[inspector]["inputs"]["report"]
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": [inspector, 1]}}
    assert "bypassed or muted" in server.run(graph, timeout=300)["outputs"]["text"]["text"][0]


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
        ("done", "../outside", "save_report is '../outside'; nothing can be saved there. Name a folder"),
        ("not run", "kept/run", "The report was not saved: there is no run yet. With Sketch-Render Model, connect"),
    ],
    ids=["outside, as a link may give it", "no run"],
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
