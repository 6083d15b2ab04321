"""What bench/spread.py does to a graph: put a prompt in, and take SR Sampler apart into SR Sketch and SR Render."""

from __future__ import annotations

from typing import Any

import common  # noqa: F401  (it puts demo/ on sys.path)

# isort: split
import workflow

to_api = workflow.to_api

OWN = ("hand_over", "save_hand_over")  # ids of the nodes that are added to a graph
# Inputs of SR Sampler that only its render, or only the whole run, has: the others are SR Sketch's.
RENDER_INPUTS = ("render", "render_cfg", "teacache", "fade", "render_steps")
WHOLE_INPUTS = ("render_positive", "render_negative", "offload_sketch", "sketch_steps", "preset")

Graph = dict[str, dict[str, Any]]


def with_prompt(graph: Graph, prompt: str) -> Graph:
    """The graph with these words in the text node that SR Sampler's positive prompt comes from."""
    node_id = graph[workflow.find(graph, "SRSampler")]["inputs"]["positive"][0]
    while not isinstance(graph[node_id]["inputs"].get("text"), str):
        before = [value[0] for value in graph[node_id]["inputs"].values() if isinstance(value, list)]
        if len(before) != 1:
            raise workflow.WorkflowError(
                f"No text node was found that leads to SR Sampler's positive prompt (at {node_id})."
            )
        node_id = before[0]
    return dict(workflow.set_inputs(graph, node_id, text=prompt))


def sketch_graph(graph: Graph, prefix: str) -> Graph:
    """The graph that only sketches, and saves its hand-over under this prefix in the server's output folder."""
    sampler = workflow.find(graph, "SRSampler")
    inputs = graph[sampler]["inputs"]
    if inputs.get("sketch_steps"):
        raise workflow.WorkflowError(
            "SR Sampler has sketch_steps: the sketch may come back, so the run can't be taken apart."
        )
    own = {name: value for name, value in inputs.items() if name not in (*RENDER_INPUTS, *WHOLE_INPUTS)}
    sketch = {"class_type": "SRSketch", "inputs": own}
    save = {"class_type": "SRSaveHandOver", "inputs": {"hand_over": [sampler, 0], "filename_prefix": prefix}}
    return dict(workflow.needed_for(graph | {sampler: sketch, OWN[1]: save}, OWN[1]))


def render_graph(graph: Graph, file: str) -> Graph:
    """The graph that continues from a hand-over in the server's input folder, with all that followed SR Sampler."""
    sampler = workflow.find(graph, "SRSampler")
    inputs = graph[sampler]["inputs"]
    own = {name: inputs.get(f"render_{name}", inputs[name]) for name in ("positive", "negative")}
    own |= {name: inputs[name] for name in RENDER_INPUTS if name in inputs} | {"hand_over": [OWN[0], 0]}
    render = {"class_type": "SRRender", "inputs": own}
    load = {"class_type": "SRLoadHandOver", "inputs": {"hand_over": file}}
    used = {value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)}
    ends = [node_id for node_id in graph if node_id not in used]
    return dict(workflow.needed_for(graph | {sampler: render, OWN[0]: load}, *ends))
