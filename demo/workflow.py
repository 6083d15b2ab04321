"""From a workflow as the page saves it to a graph as the server's API takes it, and the few edits the demo makes there.

Standard library only. What the page does with it: https://docs.comfy.org/development/comfyui-server/comms_routes
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Workflow = Mapping[str, Any]  # what "Save" writes: nodes with positions, links, groups
Graph = dict[str, dict[str, Any]]  # what "Export (API)" writes: node id -> {"class_type", "inputs", "_meta"}
ObjectInfo = Mapping[str, Mapping[str, Any]]  # the server's /object_info

NOTES = ("Note", "MarkdownNote")  # live in the page only
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
UPLOADS = ("image_upload", "video_upload")  # options of an input that has a button beside it
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings its own inputs
CONTROLS = ("fixed", "increment", "decrement", "randomize")  # the extra value that the page saves after a seed


class WorkflowError(ValueError):
    """A workflow that this server's nodes can't take; the text names node and input."""


def load(path: Path) -> Workflow:
    """The workflow in a file. Raises WorkflowError for any other file."""
    try:
        workflow: Workflow = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise WorkflowError(f"{path.name} is not a workflow: {error}. Choose a .json that the page saved.") from error
    if not isinstance(workflow, dict) or not {"nodes", "links"} <= set(workflow):
        raise WorkflowError(f"{path.name} is not a workflow that the page saved. Use Save there, not Export (API).")
    return workflow


def to_api(workflow: Workflow, info: ObjectInfo) -> Graph:
    """The graph that the page would queue for this workflow.

    Raises WorkflowError for nodes, inputs or values that the server does not know, and for what is not supported here
    (subgraphs, muted and bypassed nodes).
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph: Graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        if node.get("mode", 0) != 0:
            raise WorkflowError(f"{_name(node)} is muted or bypassed, which is not supported here.")
        if node["type"] not in info:
            raise WorkflowError(f"{_name(node)} is not a node of this server.")
        inputs = _widget_inputs(node, info[node["type"]])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        title = node.get("title") or info[node["type"]].get("display_name") or node["type"]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return graph


def specs(definition: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of every input of a node definition, in the page's order."""
    for kind in ("required", "optional"):
        declared = definition["input"].get(kind) or {}
        for name in (definition.get("input_order") or {}).get(kind, declared):
            type_, *options = declared[name]
            yield name, type_, options[0] if options else {}


def is_widget(type_: Any, options: Mapping[str, Any]) -> bool:
    """Whether the page shows this input as a widget, with a value in the file."""
    return (isinstance(type_, list) or type_ in (*WIDGETS, DYNAMIC_COMBO)) and not options.get("forceInput")


def choices(type_: Any, options: Mapping[str, Any]) -> list[Any] | None:
    """What a combo offers; None for other types."""
    if isinstance(type_, list):
        return type_
    if type_ == DYNAMIC_COMBO:
        return [option["key"] for option in options["options"]]
    return options.get("options") if type_ == "COMBO" else None


def _widget_inputs(node: Mapping[str, Any], definition: Mapping[str, Any]) -> dict[str, Any]:
    """The node's widget values by input name. A file from before a widget existed gets its default, as in the page."""
    values = list(node.get("widgets_values") or [])
    inputs = _taken(node, definition, values)
    if values:
        raise WorkflowError(f"{_name(node)} has values left over: {values}.")
    return inputs


def _taken(
    node: Mapping[str, Any], definition: Mapping[str, Any], values: list[Any], prefix: str = ""
) -> dict[str, Any]:
    """What these inputs take off the front of ``values``. Those that a choice brings follow it, named after it."""
    inputs: dict[str, Any] = {}
    for name, type_, options in specs(definition):
        if not is_widget(type_, options):
            continue
        if not values and "default" not in options and not choices(type_, options):
            raise WorkflowError(f"{_name(node)} has no value for {prefix}{name}.")
        value = values.pop(0) if values else options.get("default", (choices(type_, options) or [None])[0])
        inputs[prefix + name] = value
        if options.get("control_after_generate") and values and values[0] in CONTROLS:
            values.pop(0)
        if any(options.get(upload) for upload in UPLOADS) and values and values[0] == "image":
            values.pop(0)  # the page's upload button
        for option in options["options"] if type_ == DYNAMIC_COMBO else ():
            if option["key"] == value:
                inputs |= _taken(node, {"input": option["inputs"]}, values, f"{prefix}{name}.")
    return inputs


def _name(node: Mapping[str, Any]) -> str:
    return f"Node {node['id']} ({node.get('title') or node['type']})"


# --- edits ------------------------------------------------------------------------------------------------------------


def find(graph: Graph, class_type: str) -> str:
    """The id of the one node of that type. Raises WorkflowError if there is none or more than one."""
    found = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise WorkflowError(f"The workflow has {len(found)} nodes of type {class_type}; the demo needs one.")
    return found[0]


def set_inputs(graph: Graph, node_id: str, **values: Any) -> Graph:
    """A copy of the graph in which that node has these inputs."""
    node = graph[node_id]
    return graph | {node_id: node | {"inputs": node["inputs"] | values}}


def needed_for(graph: Graph, *ends: str) -> Graph:
    """The part of the graph that these nodes need."""
    needed, todo = set[str](), list(ends)
    while todo:
        node_id = todo.pop()
        if node_id not in needed:
            needed.add(node_id)
            todo += [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
    return {node_id: node for node_id, node in graph.items() if node_id in needed}


def keep_frames(graph: Graph) -> tuple[Graph, str]:
    """The graph with a node that saves the decoded frames without loss, and that node's id."""
    inputs = {"images": [find(graph, "VAEDecode"), 0], "filename_prefix": "frames/frame"}
    save: Graph = {"frames": {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": "Save frames"}}}
    return graph | save, "frames"


def up_to_latent(graph: Graph, sampler: str) -> Graph:
    """What the sampler needs and the sampler, its latent saved: nothing is decoded."""
    inputs = {"samples": [sampler, 0], "filename_prefix": "latents/latent"}
    end: Graph = {"latent": {"class_type": "SaveLatent", "inputs": inputs, "_meta": {"title": "Save latent"}}}
    return needed_for(graph | end, "latent")


def alone(graph: Graph, stage: str) -> Graph:
    """The same run by one model: SR Sampler becomes the host's KSampler with the same settings and the same schedule.

    stage: "sketch" or "render"; the render takes the sketch's place in the file loader, so what follows it is the same.
    """
    sampler = find(graph, "SRSampler")
    settings = graph[sampler]["inputs"]
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "positive", "negative")
    inputs = {name: settings[name] for name in names}
    inputs |= {"model": settings["sketch"], "latent_image": settings["latent"]}
    title = {"title": f"KSampler, {stage} alone"}
    plain = graph | {sampler: {"class_type": "KSampler", "inputs": inputs, "_meta": title}}
    if stage == "render":
        plain[find(graph, "SRLoadSketchDiT")] = graph[find(graph, "SRLoadRenderDiT")]
    return needed_for(plain, find(graph, "VAEDecode"))
