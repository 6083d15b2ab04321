"""Two models that do not fit are told before the run.

The page hears it as soon as both are chosen (nodes/plan.py asks); whoever queues is refused before the text encoder and
the VAE are loaded.

The host validates each node alone, without its links. Its prompt handler sees the whole graph just before; the loaders'
validation, in the same request, then looks up what their models are for. A fault in here never refuses a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import nodes

from ..srd_core.foresight import ModelFile, Verdict, is_flow, verdict
from . import live
from .common import page_only, server
from .model_files import listed, path_of

SHIFTS = "ModelSamplingSD3"  # the node that gives a MODEL a flow schedule by its `shift`
# Nodes that take and give a MODEL and leave its schedule as it is.
KEEP_SCHEDULE = (
    "LoraLoader",
    "LoraLoaderModelOnly",
    "TorchCompileModel",
    "EasyCache",
    "LazyCache",
    "CFGZeroStar",
    "SkipLayerGuidanceDiT",
    "WanContextWindowsManual",
    "ContextWindowsManual",
    "SRAttention",
    "SRTeaCache",
)
PAIRING = ("SRSampler", "SRModel", "SRMeasurePair")  # nodes with a sketch and a render
OURS = {"SRLoadSketchDiT": "model_name", "SRLoadRenderDiT": "model_name"}
LOADERS = {**OURS, "UNETLoader": "unet_name"}  # with the input that names a file in models/diffusion_models
FARTHEST = 32  # nodes between a loader and the sampler
NOT_TOLD = "two models that do not fit are told when the sampler starts"

# the nodes that a MODEL comes through, the nearest first: {type, values}, in a prompt with id
Chain = Sequence[dict[str, Any]]

# of the present request: the graph, and its outputs
_asked: ContextVar[dict[str, Any]] = ContextVar("srdiffusion_prompt")


@page_only(NOT_TOLD)
def listen() -> None:
    """See every prompt before the host validates it."""
    if (running := server()) is not None:
        running.add_on_prompt_handler(_note)


def _note(request: dict[str, Any]) -> dict[str, Any]:
    with page_only(NOT_TOLD):
        _asked.set({"graph": request.get("prompt"), "outputs": request.get("partial_execution_targets")})
    return request


def verdict_on(sketch: Chain, render: Chain, own_prompts: bool) -> Verdict:
    """What can be said of the models that come through these nodes; nothing where a node is not known here."""
    files = [_file_of(chain) for chain in (sketch, render)]
    if files[0] is None or files[1] is None:
        return Verdict()
    found = verdict(files[0], files[1], own_prompts)
    several = any(node["type"] == "SRModel" for node in (*sketch, *render))
    return Verdict(found.problem, "" if several else found.note)


def _file_of(chain: Chain) -> ModelFile | None:
    """The file at the end of a chain whose other nodes leave the latent as it is."""
    *between, loader = chain or [{"type": "", "values": {}}]
    name = loader["values"].get(LOADERS.get(loader["type"], ""))
    known = all(node["type"] in (*KEEP_SCHEDULE, SHIFTS, "SRModel") for node in between)
    here = listed(name) if known and isinstance(name, str) else None
    if here is None:
        return None
    file = ModelFile.at(path_of(here))
    shifted = any(node["type"] == SHIFTS for node in between)
    return None if shifted and not is_flow(file) else file  # of another kind, that node makes it a flow model


def fault_of(loader: type) -> str | None:
    """Why a pair that this loader is a part of would be refused; None where nothing is known to be wrong.

    The host validates the loader now. Said on the render's loader, or on the sketch's where the render comes from
    another.
    """
    with page_only(NOT_TOLD):
        asked, me = _asked.get({}), str(loader.hidden.unique_id)  # type: ignore[attr-defined]
        for sketch, render, own_prompts in _pairs(asked.get("graph"), asked.get("outputs")):
            ends = [chain[-1] for chain in (render, sketch) if chain and chain[-1]["type"] in OURS]
            if ends and ends[0]["id"] == me and (problem := verdict_on(sketch, render, own_prompts).problem):
                return problem
    return None


def _pairs(graph: Any, outputs: Any) -> Iterator[tuple[Chain, Chain, bool]]:
    """The pairs of a prompt that its outputs need."""
    graph = graph if isinstance(graph, dict) else {}
    kinds = nodes.NODE_CLASS_MAPPINGS
    ends = outputs or [i for i, node in graph.items() if getattr(kinds.get(node["class_type"]), "OUTPUT_NODE", False)]
    needed = set().union(*({str(end)} | live.before(graph, str(end)) for end in ends))
    for node_id in sorted(needed):
        if graph[node_id]["class_type"] in PAIRING:
            own_prompts = isinstance(graph[node_id]["inputs"].get("render_positive"), list)
            yield _chain(graph, node_id, "sketch"), _chain(graph, node_id, "render"), own_prompts


def _chain(graph: dict[str, Any], node_id: str, name: str) -> Chain:
    """The nodes that an input of this node comes through."""
    found: list[dict[str, Any]] = []
    link = graph[node_id]["inputs"].get(name)
    while isinstance(link, list) and len(found) < FARTHEST:
        node = graph[str(link[0])]
        values = {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
        found.append({"type": node["class_type"], "values": values, "id": str(link[0])})
        link = node["inputs"].get("model", node["inputs"].get("sketch"))
    return found
