"""Live reports: what a run's report says goes to the page while it runs, and into what the host saves of it.

The page hears EVENT through the host's own message channel; a page that is opened later, or has missed a message, asks
ROUTE for the newest runs, QUEUED for the prompts that it has in the queue, and READ for what a saved report says.
Nothing here changes how a run goes, and a step costs nothing while nobody listens. What the host or a client does
differently costs the page what it would show, never the run or a node: see page_only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from aiohttp import web
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..srd_core.report.data import Report
from ..srd_core.report.figures import figures
from .common import page_only, server

EVENT = "srdiffusion.run"
ROUTE = "/srdiffusion/runs"
READ = "/srdiffusion/read"
QUEUED = "/srdiffusion/queued"
METADATA = "srdiffusion"  # the key in the metadata of saved files and in their workflow's `extra`
INSPECTOR = "SRSwitchInspector"
KEPT = 16  # runs of which a page that is opened later can still be told
NOT_TOLD = "the page is not told of this run"

# what the page needs to know of a run: where it belongs, its report and the figures that follow from it
Run = dict[str, Any]

# By prompt, the node that made the report and the node that sampled, oldest first: several may sample with one MODEL.
_runs: OrderedDict[tuple[str, str, str], Run] = OrderedDict()


@page_only("the page is not told of runs before it was opened")
def add_route() -> None:
    """Answer GET on ROUTE ({"runs": [...]}, oldest first) and QUEUED, and POST of a report's JSON on READ."""
    if (running := server()) is not None:
        running.routes.get(ROUTE)(_answer)
        running.routes.get(QUEUED)(_queued)
        running.routes.post(READ)(_read)


@page_only("the page's questions are not answered")
def answer_posts(path: str, reply: Callable[[Any], dict[str, Any]]) -> None:
    """Answer POST of JSON on ``path`` by what ``reply`` makes of it, in a thread; what it can't read, by status 400."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(reply, await request.json()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return web.json_response({"problem": str(error)}, status=400)

    if (running := server()) is not None:
        running.routes.post(path)(answer)


async def _answer(request: web.Request) -> web.Response:
    return web.json_response({"runs": [_with_left(whole(run)) for run in list(_runs.values())]})


def _with_left(run: Run) -> Run:
    """The run, and whether the tab that queued it has been closed: it is then any tab's of its workflow."""
    return run | {"left": run["client_id"] not in (getattr(server(), "sockets", None) or {})}


async def _queued(request: web.Request) -> web.Response:
    """Answer {"prompts": [...]}: those of the client `client_id` in the queue, with the running one."""
    client, host = request.query.get("client_id"), server()
    prompts: list[str] = []
    with page_only("the page is not told which prompts are its own"):
        assert host is not None
        running, waiting = host.prompt_queue.get_current_queue_volatile()[:2]
        prompts = [item[1] for item in (*running, *waiting) if _object(item[3]).get("client_id") == client]
    return web.json_response({"prompts": prompts})


async def _read(request: web.Request) -> web.Response:
    """Answer {"report": ..., "figures": ...} for a saved report of any version; for other text, what is wrong."""
    return web.json_response(await asyncio.to_thread(_told_of, await request.text()))


def _told_of(text: str) -> dict[str, Any]:
    try:
        return told(Report.from_json(text))
    except ValueError as error:
        return told(str(error))


def told(report: Report | str) -> dict[str, Any]:
    """A report and its figures, or a sentence instead of them, as plain data."""
    if isinstance(report, str):
        return {"report": {"status": "unreadable", "error": report}, "figures": {}}
    return {"report": asdict(report), "figures": figures(report)}


@page_only(NOT_TOLD)
def follow(node: type[io.ComfyNode], report: Report) -> None:
    """From now on the page hears of every run that ``report`` is filled with, as the run of this (executing) node."""
    hidden, context = getattr(node, "hidden", None), get_executing_context()
    report.ask_node = executing_node
    if server() is not None and context is not None and hidden is not None and hidden.unique_id:
        of_run = {"node_id": hidden.unique_id, "made_for": context.prompt_id, "metadata": hidden.extra_pnginfo}
        report.watch = partial(_tell, **of_run)


@page_only(NOT_TOLD)
def show(node: type[io.ComfyNode], report: Report | str) -> None:
    """Show a report that is complete, or a sentence instead of one, on this (executing) node."""
    hidden, context, running = getattr(node, "hidden", None), get_executing_context(), server()
    if running is None or context is None or hidden is None or not hidden.unique_id:
        return
    run = _begin(running, context.prompt_id, hidden.unique_id, report, source_of(hidden))
    run |= told(report)
    if _heard(running):
        running.send_sync(EVENT, run)


@page_only(NOT_TOLD)
def keep(node: type[io.ComfyNode], report: Report) -> None:
    """Put the report that came into this (executing) node's input `report` into what the host saves from now on."""
    hidden = getattr(node, "hidden", None)
    if hidden is not None and (source := source_of(hidden)):
        _store(hidden.extra_pnginfo, source, report)


def executing_node() -> str:
    """The id of the node that executes now; "" if none does, or the host does not say."""
    with page_only(NOT_TOLD):
        context = get_executing_context()
        return str(context.node_id) if context else ""
    return ""


def source_of(hidden: io.HiddenHolder) -> str:
    """The node that an executing node's input `report` is linked to; "" if to none."""
    return _links(hidden.prompt, hidden.unique_id).get("report", "")


def waits_for(node: type[io.ComfyNode]) -> set[str]:
    """The nodes that this (executing) node's input `after` comes from; none if the host does not say."""
    with page_only(NOT_TOLD):
        hidden = getattr(node, "hidden", None)
        return before(hidden.prompt, hidden.unique_id, "after") if hidden is not None else set()
    return set()


def linked(node: type[io.ComfyNode]) -> set[str]:
    """The inputs of this (executing) node that links set; none if the host does not say."""
    with page_only("a preset replaces what links give, too"):
        hidden = getattr(node, "hidden", None)
        return set(_links(hidden.prompt, hidden.unique_id)) if hidden is not None else set()
    return set()


def before(graph: dict[str, Any], node_id: str, name: str = "") -> set[str]:
    """The nodes of a prompt that this one's input ``name`` (all inputs if "") comes from, itself not among them."""
    found: set[str] = set()
    ahead = [source for key, source in _links(graph, node_id).items() if name in ("", key)]
    while ahead:
        if (node := ahead.pop()) not in found:
            found.add(node)
            ahead += _links(graph, node).values()
    return found


@page_only(NOT_TOLD)
def _tell(report: Report, node_id: str, made_for: str, metadata: Any) -> None:
    """A report has changed: the node that made it is ``node_id``, the node that samples is executing now."""
    over, running = report.status != "running", server()
    if running is None or (report.steps and not over and not _heard(running)):
        return  # a step, and nobody listens
    context = get_executing_context()
    if context is None:
        return
    if over and made_for == context.prompt_id:
        _store(metadata, node_id, report)
    known = _runs.get((context.prompt_id, node_id, report.sampler_node)) if report.steps or over else None
    run = known or _begin(running, context.prompt_id, node_id, report, node_id)
    if over:
        run |= told(report)  # the next run fills the same object
    if _heard(running):
        if over or not known:
            running.send_sync(EVENT, whole(run))
        else:
            running.send_sync(EVENT, _with_left(run | {"report": newest(report), "figures": figures(report)}))


def _heard(running: Any) -> bool:
    """Whether a page listens; where the host does not tell, one may."""
    return bool(getattr(running, "sockets", True))


def _begin(running: Any, prompt_id: str, node_id: str, report: Report | str, sampler: str) -> Run:
    """Note a run of this node; ``sampler``: the node that has the switching inputs."""
    samples = "" if isinstance(report, str) or node_id != sampler else report.sampler_node
    run: Run = {"prompt_id": prompt_id, "node_id": node_id, "samples": samples, "sampler": sampler, "report": report}
    run |= _place(running, prompt_id, node_id, samples)
    _runs.pop((prompt_id, node_id, samples), None)
    _runs[prompt_id, node_id, samples] = run
    while len(_runs) > KEPT:
        _runs.popitem(last=False)
    return run


def _place(running: Any, prompt_id: str, node_id: str, samples: str) -> dict[str, Any]:
    """The workflow and the client ("" if unknown) of a run, and the nodes that show it: its own and its Inspectors."""
    graph: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    with page_only("the page is not told where runs belong"):
        queued = (item for item in running.prompt_queue.get_current_queue_volatile()[0] if item[1] == prompt_id)
        graph, extra = map(_object, next(queued, (0, prompt_id, {}, {}))[2:4])
    inspectors = [node for node in graph if _shows(graph, node, node_id, samples)]
    workflow = _object(_object(extra.get("extra_pnginfo")).get("workflow"))
    client = str(extra.get("client_id") or "")
    return {"workflow_id": str(workflow.get("id") or ""), "client_id": client, "nodes": [node_id, *inspectors]}


def _shows(graph: dict[str, Any], node: str, node_id: str, samples: str) -> bool:
    """Whether a node is an Inspector that shows a run sampled by ``samples``: each, unless `after` tells of another."""
    if _object(graph[node]).get("class_type") != INSPECTOR or _links(graph, node).get("report") != node_id:
        return False
    chosen = before(graph, node, "after")
    return node_id not in chosen or samples not in graph or samples in chosen or samples == node_id


def _links(graph: Any, node: Any) -> dict[str, str]:
    """The inputs of a prompt's node that are links, with the nodes that these come from."""
    inputs = _object(_object(_object(graph).get(node)).get("inputs"))
    return {name: str(link[0]) for name, link in inputs.items() if isinstance(link, list) and len(link) == 2}


def _object(value: Any) -> dict[str, Any]:
    """``value`` if it is a JSON object: what a client sends can have any shape."""
    return value if isinstance(value, dict) else {}


def whole(run: Run) -> Run:
    """The run with all that its report says now."""
    return {**run, **told(run["report"])} if isinstance(run["report"], Report) else run


def newest(report: Report) -> dict[str, Any]:
    """What changed since the message before: all but the schedule and the older steps."""
    small = asdict(replace(report, steps=report.steps[-2:], sigmas=[])) | {"count": len(report.steps)}
    del small["sigmas"]
    return small


@page_only("saved files do not carry the report")
def _store(metadata: Any, node_id: str, report: Report) -> None:
    """Files that the host saves carry the report beside the workflow, and in the workflow, where the page finds it.

    ``metadata``: a run's extra_pnginfo, whatever a client sent; only an object, and in it a workflow that is an object
    with room for `extra`, can take the report.
    """
    if not metadata:
        return
    if not isinstance(metadata, dict):
        raise TypeError(f"extra_pnginfo is a {type(metadata).__name__}")
    reports = metadata[METADATA] = _object(metadata.get(METADATA))
    other = report.sampler_node not in ("", node_id)  # several may sample with one MODEL
    reports[f"{node_id} {report.sampler_node}" if other else node_id] = {**asdict(report), "figures": figures(report)}
    workflow = metadata.get("workflow")
    if isinstance(workflow, dict) and isinstance(extra := workflow.get("extra") or {}, dict):
        workflow["extra"] = {**extra, METADATA: reports}
