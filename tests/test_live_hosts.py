"""Another host, another client: the page may miss a run, the run and the Inspector may not fail."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import folder_paths
import helpers
import pytest
import torch
from comfy_api.latest import io as node_api
from comfy_execution.utils import CurrentNodeContext
from hosting import module
from runs import SWITCHING

live, common = module("nodes.live"), module("nodes.common")

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
            settings = helpers.sampling_inputs(**SWITCHING | {"steps": 3, "switch_step": 1})
            latent, report = executed("nodes.sampler", SAMPLER, *seen, sketch, render, **settings).args
            shown = executed("nodes.inspector", INSPECTOR, *seen, report)
        return latent["samples"], shown, [line for line in caplog.messages if "SRDiffusion" in line]

    return run


ODD_QUEUES: list[Any] = [
    *([], [None], [{"prompt_id": PROMPT}], [(0, PROMPT)], [(0, PROMPT, "a graph", {}, [])]),
    [(0, PROMPT, {"1": None, "2": {"class_type": live.INSPECTOR}}, None, [])],
]
ODD_SERVERS: list[dict[str, Any]] = [
    *({"sockets": None}, {"send_sync": None}, {"send_sync": lambda data: None}, {"prompt_queue": None}),
    {"prompt_queue": SimpleNamespace()},
    {"prompt_queue": SimpleNamespace(get_current_queue_volatile=dict)},
    *({"queue": queue} for queue in ODD_QUEUES),
]


@pytest.mark.parametrize("server", ODD_SERVERS)
def test_a_server_of_another_host_costs_the_page_not_the_run(server: dict[str, Any], graph_run: Any) -> None:
    plain, _, _ = graph_run(None)
    told: list[Any] = []
    for _ in range(2):
        extra: dict[str, Any] = {"workflow": dict(WORKFLOW)}
        latent, shown, log = graph_run(host_server(told, **server), extra)
        assert torch.equal(latent, plain) and "Switched to the render after step 1 of 3" in shown.args[1]
        assert extra["srdiffusion"][SAMPLER]["status"] == "done"
    assert {run["node_id"] for run in told} == (set() if "send_sync" in server else {SAMPLER, INSPECTOR})
    assert len(log) <= 1 and all("the page is not told" in line for line in log)
    assert log or set(server) <= {"sockets", "queue"}


@pytest.mark.parametrize(
    ("workflow", "before"),
    [
        ("{}", {}),
        ([1], {"srdiffusion": None}),
        (None, {}),
        ({}, {"srdiffusion": "of another pack"}),
        ({"id": "w", "extra": None}, {}),
        ({"id": "w", "extra": [1]}, {"srdiffusion": None}),
        ({"extra": "x"}, {}),
    ],
    ids=["text", "list", "none", "empty", "no extra", "extra a list", "extra a text"],
)
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


ODD_INPUTS: list[Any] = [None, {}, {"report": "x"}, {"report": []}]


@pytest.mark.parametrize(
    "prompt", [None, "text", [], {}, {INSPECTOR: None}, *({INSPECTOR: {"inputs": inputs}} for inputs in ODD_INPUTS)]
)
def test_a_prompt_of_any_shape_costs_the_link_to_the_sampler_alone(prompt: Any, graph_run: Any) -> None:
    told: list[Any] = []
    _, shown, log = graph_run(host_server(told), {"workflow": dict(WORKFLOW)}, prompt)
    assert told[-1]["node_id"] == INSPECTOR and told[-1]["sampler"] == "" and not log and shown.ui["report"]


def test_an_old_report_is_refused_in_words_on_a_server_of_another_host_too(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_folder_that_can_not_be_written_costs_a_nodes_picture_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common.said.clear()
    monkeypatch.setattr(folder_paths, "temp_directory", "/proc/none")
    with caplog.at_level(logging.WARNING):
        shown = common.preview(module("nodes.inspector").SRSwitchInspector, torch.zeros(1, 8, 8, 3), "a text")
        inspector = module("nodes.inspector").SRSwitchInspector.PREPARE_CLASS_CLONE({})
        assert inspector.execute(module("srd_core.report.data").Report()).ui["plot"] == []
    assert "images" not in shown and shown["text"] == ("a text",)
    assert [message.partition(" (")[0] for message in caplog.messages] == ["SRDiffusion: a node's picture is not shown"]
