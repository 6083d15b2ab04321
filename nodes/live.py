"""Live reports: what a run's report says goes to the page while the run goes on, and into what the host saves of it.

The page hears EVENT through the host's own message channel; a page that is opened later, or has missed a message, asks
ROUTE for the newest runs. Nothing here changes how a run goes, and a step costs nothing while nobody listens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from aiohttp import web
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..srd_core.report.data import Report
from .common import server

EVENT = "srdiffusion.run"
ROUTE = "/srdiffusion/runs"
METADATA = "srdiffusion"  # the key in the metadata of saved files and in their workflow's `extra`
INSPECTOR = "SRSwitchInspector"
KEPT = 16  # runs of which a page that is opened later can still be told
BULKY = ("steps", "sigmas")  # fields of a report that are not sent whole with every step

Run = dict[str, Any]  # what the page needs to know of a run: where it belongs, and its report

_runs: OrderedDict[tuple[str, str], Run] = OrderedDict()  # by prompt and node, oldest first


def add_route() -> None:
    """Answer GET on ROUTE with the newest runs, oldest first: {"runs": [...]}."""
    running = server()
    if running is not None:
        running.routes.get(ROUTE)(_answer)


async def _answer(request: web.Request) -> web.Response:
    return web.json_response({"runs": [whole(run) for run in list(_runs.values())]})


def follow(node: type[io.ComfyNode], report: Report) -> None:
    """From now on the page hears of every run that ``report`` is filled with, as the run of this (executing) node."""
    hidden, context = getattr(node, "hidden", None), get_executing_context()
    if server() is not None and context is not None and hidden is not None and hidden.unique_id:
        metadata = hidden.extra_pnginfo if isinstance(hidden.extra_pnginfo, dict) else None
        report.watch = partial(_tell, node_id=hidden.unique_id, made_for=context.prompt_id, metadata=metadata)


def show(node: type[io.ComfyNode], report: Report | str) -> None:
    """Show a report that is complete, or a sentence instead of one, on this (executing) node."""
    hidden, context, running = getattr(node, "hidden", None), get_executing_context(), server()
    if running is None or context is None or hidden is None or not hidden.unique_id:
        return
    told = {"status": "unreadable", "error": report} if isinstance(report, str) else asdict(report)
    run = _begin(running, context.prompt_id, hidden.unique_id, told, source_of(hidden))
    if running.sockets:
        running.send_sync(EVENT, run)


def keep(node: type[io.ComfyNode], report: Report) -> None:
    """Put the report that came into this (executing) node's input `report` into what the host saves from now on."""
    hidden = getattr(node, "hidden", None)
    if hidden is not None and isinstance(hidden.extra_pnginfo, dict) and (source := source_of(hidden)):
        _store(hidden.extra_pnginfo, source, report)


def source_of(hidden: io.HiddenHolder) -> str:
    """The node that an executing node's input `report` is linked to; "" if to none."""
    node: Mapping[str, Any] = (hidden.prompt or {}).get(hidden.unique_id, {})
    link = node.get("inputs", {}).get("report")
    return str(link[0]) if isinstance(link, list) else ""


def _tell(report: Report, node_id: str, made_for: str, metadata: dict[str, Any] | None) -> None:
    """A report has changed: the node that made it is ``node_id``, the node that samples is executing now."""
    over, running = report.status != "running", server()
    if running is None or (report.steps and not over and not running.sockets):
        return  # a step, and nobody listens
    context = get_executing_context()
    if context is None:
        return
    run = _runs.get((context.prompt_id, node_id))
    begins = run is None or not report.steps and not over
    if run is None or begins:
        run = _begin(running, context.prompt_id, node_id, report, node_id)
    if over:
        run["report"] = asdict(report)  # the next run fills the same object
        if metadata is not None and made_for == context.prompt_id:
            _store(metadata, node_id, report)
    if running.sockets:
        running.send_sync(EVENT, whole(run) if begins or over else {**run, "report": newest(report)})


def _begin(running: Any, prompt_id: str, node_id: str, report: Report | dict[str, Any], sampler: str) -> Run:
    """Note a run of this node; ``sampler``: the node that has the switching inputs."""
    place = _place(running, prompt_id, node_id)
    run = {"prompt_id": prompt_id, "node_id": node_id, "sampler": sampler, **place, "report": report}
    _runs.pop((prompt_id, node_id), None)
    _runs[prompt_id, node_id] = run
    while len(_runs) > KEPT:
        _runs.popitem(last=False)
    return run


def _place(running: Any, prompt_id: str, node_id: str) -> dict[str, Any]:
    """The workflow that the run belongs to ("" if unknown) and the nodes that show it: its own and its Inspectors."""
    queued = next((item for item in running.prompt_queue.get_current_queue_volatile()[0] if item[1] == prompt_id), None)
    graph: Mapping[str, Any] = queued[2] if queued else {}
    inspectors = [
        inspector
        for inspector, node in graph.items()
        if node.get("class_type") == INSPECTOR and (node["inputs"].get("report") or [None])[0] == node_id
    ]
    workflow = ((queued[3] if queued else {}).get("extra_pnginfo") or {}).get("workflow") or {}
    return {"workflow_id": str(workflow.get("id") or ""), "nodes": [node_id, *inspectors]}


def whole(run: Run) -> Run:
    """The run with all that its report says now."""
    report = run["report"]
    return {**run, "report": asdict(report) if isinstance(report, Report) else report}


def newest(report: Report) -> dict[str, Any]:
    """What changed since the message before: all but the schedule and the older steps."""
    small = {field.name: getattr(report, field.name) for field in fields(report) if field.name not in BULKY}
    return {
        **small,
        "hand_overs": [dict(vars(hand_over)) for hand_over in report.hand_overs],
        "steps": [dict(vars(step)) for step in report.steps[-2:]],
        "count": len(report.steps),
        "calls": dict(report.calls),
        "seconds": dict(report.seconds),
    }


def _store(metadata: dict[str, Any], node_id: str, report: Report) -> None:
    """Files that the host saves carry the report beside the workflow, and in the workflow, where the page finds it."""
    reports = metadata.setdefault(METADATA, {})
    reports[node_id] = asdict(report)
    if isinstance(metadata.get("workflow"), dict):
        metadata["workflow"].setdefault("extra", {})[METADATA] = reports
