"""What the tests of the page do there: a real browser, the tests' server and the tiny family."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from hosting import REPOSITORY, load_by_path, module

page_module = load_by_path("srd_page", REPOSITORY / "demo" / "page.py")
report_module = module("srd_core.report.data")
DEMO = REPOSITORY / "demo" / "demo.json"
SAMPLER, INSPECTOR, LOADERS, SHIFT, VIDEO = 8, 12, (1, 2), 7, {3, 9, 10, 11}  # node ids in the demo's workflow
BARS = [f".srd-bar.srd-stage-{place}" for place in range(4)]  # of the sketch, the render and further stages
RENDERERS = {"classic": False, "vue": True}
# What the page itself says of a refused prompt, and of a server that is off the network and has no saved workflows yet.
ITS_OWN = (
    "PromptExecutionError",
    "Failed to load resource",
    "Content Security Policy",
    "Fetch API cannot load",
    "graph accessed before",
)
OPEN = "async (saved) => { await app.loadGraphData(saved); }"
IDLE = "Run it to see the chart."
WIDGETS = """values => { for (const [id, name, value] of values)
  app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value }"""
VALUE = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
CHART = "document.querySelectorAll('.srd-chart')"
# The chart of a node, wherever the renderer has put it.
ELEMENT = "app.graph.getNodeById(%d).widgets.find(w => w.name === 'srd_chart').element"
BY_HAND = """([id, values]) => { for (const [name, value] of Object.entries(values)) {
  const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
  widget.value = value; widget.callback?.(value); } }"""
LOOK = """() => {  // the page looks for changes, as after a click
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
PLAN = "app.graph.getNodeById(%d).widgets.find(w => w.name === 'srd_plan').element"
CLICKED = """([id, name, value]) => {  // as a click in that renderer does: it sets the value and calls back
  const node = app.graph.getNodeById(id), widget = node.widgets.find(w => w.name === name);
  if (widget.setValue) widget.setValue(value, {e: {}, node, canvas: app.canvas});
  else { widget.value = value; widget.callback?.(value, app.canvas, node, [0, 0], {}); }
}"""
QUEUED = "app.graphToPrompt().then(({output}) => output)"
CONNECT = """([id, name, type, value]) => {  // a new node, whose first widget is set, into that input
  const source = LiteGraph.createNode(type), node = app.graph.getNodeById(id);
  app.graph.add(source);
  source.connect(0, node, node.inputs.findIndex(input => input.name === name));
  if (value == null) return;
  source.widgets[0].value = value;
  source.widgets[0].callback?.(value);
}"""
# Queue the graph and wait for its sampler's last message; the charts' own listeners were there before this one.
UNTIL_THE_END = """sampler => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error('the run has not ended after two minutes')), 120_000);
  app.api.addEventListener('srdiffusion.run', function heard({detail: {node_id, report}}) {
    if (node_id !== sampler || report.status !== 'done') return;
    app.api.removeEventListener('srdiffusion.run', heard);
    resolve();
  });
  app.queuePrompt(0, 1);
})"""
SLOWED = """id => {  // a node before each model of SR Sampler, with which a step takes long and costs nothing
  const sampler = app.graph.getNodeById(id);
  for (const slot of [0, 1]) {
    const slow = LiteGraph.createNode('SRTestSlow'), link = sampler.getInputLink(slot);
    app.graph.add(slow);
    app.graph.getNodeById(link.origin_id).connect(link.origin_slot, slow, 0);
    slow.connect(0, sampler, slot);
  }
}"""
DISCONNECT = """([id, name]) => {
  const node = app.graph.getNodeById(id);
  node.disconnectInput(node.inputs.findIndex(input => input.name === name));
}"""
# The lowest contrast (WCAG 2) of a chart's words with what is behind them, as the browser draws it: [contrast, words].
CONTRAST = """chart => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true, colorSpace: 'srgb'});
  const drawn = (...colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const paper = getComputedStyle(chart).backgroundColor;
  const behind = luminance(drawn('black', paper));
  if (Math.abs(luminance(drawn('white', paper)) - behind) > 0.01) return [0, 'the chart has no own ground'];
  const words = [...chart.querySelectorAll('*')].filter(e => !e.closest('title, [hidden], :disabled')
    && [...e.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
  return words.map(element => {
    const style = getComputedStyle(element);
    const text = luminance(drawn(paper, element.namespaceURI.endsWith('svg') ? style.fill : style.color));
    return [(Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05), element.textContent];
  }).sort((a, b) => a[0] - b[0])[0];
}"""


def demo() -> dict[str, Any]:
    """The demo's workflow without its video: neither decoded nor saved."""
    saved = json.loads(DEMO.read_text("utf-8"))
    saved["links"] = [link for link in saved["links"] if not {link[1], link[3]} & VIDEO]
    saved["nodes"] = [node for node in saved["nodes"] if node["id"] not in VIDEO]
    there = {link[0] for link in saved["links"]}
    for output in (output for node in saved["nodes"] for output in node.get("outputs", [])):
        output["links"] = [link for link in output["links"] or [] if link in there]
    return saved


def show(page: Any, saved: Any = None) -> None:
    """Open a workflow, the demo's if none is given, its charts in view."""
    page.evaluate(OPEN, saved or demo())
    page.wait_for_function(f"{CHART}.length >= 2")
    look_at(page)


def look_at(page: Any, scale: float = 0.8) -> None:
    """Bring SR Sampler and the Inspector into view."""
    page.evaluate(
        "([a, b, scale]) => { app.canvas.ds.scale = scale; app.canvas.ds.offset = [120 - Math.min(a, b), 100];"
        " app.canvas.setDirty(true, true) }",
        [*(page.evaluate(f"app.graph.getNodeById({node}).pos[0]") for node in (SAMPLER, INSPECTOR)), scale],
    )


def queue(page: Any, *values: tuple[int, str, Any]) -> None:
    """Set widgets, then queue the graph as it is, by the page's own button's command."""
    page.evaluate(WIDGETS, [list(value) for value in values])
    page.evaluate("app.queuePrompt(0, 1)")


def run(page: Any, *values: tuple[int, str, Any]) -> str:
    """Set widgets, queue the graph and wait until its run has ended well; returns what the chart says of it.

    A short run is over before a look at the page finds it begun.
    """
    page.evaluate(WIDGETS, [list(value) for value in values])
    page.evaluate(UNTIL_THE_END, str(SAMPLER))
    return until_done(page)


@contextlib.contextmanager
def answered_late(page: Any, address: str) -> Iterator[None]:
    """The server answers such requests a second late."""

    def answer(route: Any) -> None:
        time.sleep(1)
        route.continue_()

    page.route(address, answer)
    yield
    page.unroute(address)


def eventually(page: Any, probe: Callable[[], Any], expected: Any, seconds: float = 20) -> None:
    """Wait until the page has come to what is expected; a busy machine draws late."""
    end = time.monotonic() + seconds
    while (found := probe()) != expected and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert found == expected


def settled(page: Any, probe: Callable[[], Any], seconds: float = 0.8) -> Any:
    """What ``probe`` gives once it has given the same for so long."""
    found, since = probe(), time.monotonic()
    while time.monotonic() - since < seconds:
        page.wait_for_timeout(50)
        if (now := probe()) != found:
            found, since = now, time.monotonic()
    return found


def statuses(page: Any) -> list[str]:
    """What the Inspector's chart and SR Sampler's say of their run."""
    return [status(page, node) for node in (INSPECTOR, SAMPLER)]


def status(page: Any, node: int = INSPECTOR) -> str:
    return page.evaluate(f"({ELEMENT % node}).querySelector('.srd-status').textContent")


def until(page: Any, start: str, node: int = INSPECTOR, seconds: float = 120) -> str:
    """Wait until a chart's status begins so; returns it."""
    element = ELEMENT % node
    page.wait_for_function(
        f"start => ({element}).querySelector('.srd-status').textContent.startsWith(start)",
        arg=start,
        timeout=1000 * seconds,
    )
    return status(page, node)


def until_done(page: Any, node: int = INSPECTOR, seconds: float = 120) -> str:
    """Wait until a chart's run has ended well; returns what it says of it."""
    page.wait_for_function(
        f"({ELEMENT % node}).querySelector('.srd-status').dataset.status === 'done'", timeout=1000 * seconds
    )
    return status(page, node)


def until_idle(server: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        queued = server.get("/queue")
        if not queued["queue_running"] and not queued["queue_pending"]:
            return
        time.sleep(0.2)
    raise AssertionError("the server does not become idle")


def count(page: Any, selector: str, node: int = INSPECTOR) -> int:
    return page.evaluate(f"selector => ({ELEMENT % node}).querySelectorAll(selector).length", selector)


def until_bars(page: Any, *counts: int, node: int = INSPECTOR) -> None:
    """Wait until the chart has so many bars of each stage: it is drawn at the page's next frame."""
    page.wait_for_function(
        f"([bars, counts]) => bars.every((name, i) => ({ELEMENT % node}).querySelectorAll(name).length === counts[i])",
        arg=[BARS, counts],
    )


def text_of(page: Any, selector: str, node: int = INSPECTOR) -> str:
    return page.evaluate(f"selector => ({ELEMENT % node}).querySelector(selector).textContent", selector)


def detail(page: Any, node: int = INSPECTOR) -> str:
    return text_of(page, ".srd-detail", node)


def until_detail(page: Any, text: str, node: int = INSPECTOR) -> None:
    """Wait until the chart says this of its switch; just after another workflow has come it may show the old one."""
    says = f"text => ({ELEMENT % node})?.querySelector('.srd-detail')?.textContent === text"
    page.wait_for_function(says, arg=text, timeout=30_000)


def hover(page: Any, selector: str = ".srd-status", node: int = INSPECTOR) -> str:
    """What is said to whoever points there."""
    return page.evaluate(f"selector => ({ELEMENT % node}).querySelector(selector).title", selector)


def press(page: Any, button: str, node: int = INSPECTOR) -> None:
    """Click a chart's button."""
    buttons = f"[...({ELEMENT % node}).querySelectorAll('button')]"
    page.evaluate(f"text => {buttons}.find(button => button.textContent === text).click()", button)


def slide(page: Any, place: float, node: int = INSPECTOR) -> None:
    """Move the "what if" slider: log10 of delta."""
    page.evaluate(
        f"place => {{ const slider = ({ELEMENT % node}).querySelector('input[type=range]'); slider.value = place;"
        " slider.dispatchEvent(new Event('input')) }",
        place,
    )


def reports(server: Any) -> list[dict[str, Any]]:
    """The Inspectors' reports of all runs in the server's history, by node id; oldest first."""
    entries = sorted(server.get("/history").values(), key=lambda entry: entry["prompt"][0])
    return [
        {node: json.loads(out["report"][0]) for node, out in entry["outputs"].items() if "report" in out}
        for entry in entries
    ]


def choose(page: Any, node: int = SAMPLER, **values: Any) -> None:
    """Set widgets as the user does."""
    page.evaluate(BY_HAND, [node, values])


def shown_values(page: Any, node: int = SAMPLER) -> dict[str, Any]:
    """The values of a node's widgets, by name."""
    return page.evaluate(
        "id => Object.fromEntries(app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))", node
    )


def until_values(page: Any, **expected: Any) -> None:
    """Wait until these widgets of SR Sampler have these values."""
    eventually(page, lambda: {name: shown_values(page)[name] for name in expected}, expected)


def plan_of(page: Any, start: str, node: int = SAMPLER) -> bool:
    """Wait until a node's line begins so; returns whether it is amber."""
    page.wait_for_function(f"start => ({PLAN % node}).textContent.startsWith(start)", arg=start, timeout=20_000)
    return page.evaluate(f"({PLAN % node}).classList.contains('srd-problem')")


def connect(page: Any, name: str, kind: str, value: Any = None) -> None:
    """Put a new node of that kind into an input of SR Sampler, with a value in the node's first widget."""
    page.evaluate(CONNECT, [SAMPLER, name, kind, value])


def disconnect(page: Any, name: str) -> None:
    page.evaluate(DISCONNECT, [SAMPLER, name])


def reopened(page: Any) -> Any:
    """Save the workflow and open what was saved; returns it."""
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    page.evaluate(OPEN, saved)
    return saved


def saved_workflow(report: Any, key: str = str(SAMPLER)) -> Any:
    """The demo's workflow as a saved video carries it, with this report in it."""
    return demo() | {"extra": {"srdiffusion": {key: report}}}


def open_saved(page: Any, report: Any, key: str = str(SAMPLER)) -> None:
    page.evaluate(OPEN, saved_workflow(report, key))


def a_report(sketch: str, render: str, error: str = "") -> Any:
    report, stage = report_module.Report(), report_module.StageReport
    report.begin(
        stages=[stage("sketch", sketch, 2, 2.0), stage("render", render, 2, 2.0)],
        switch={"mode": "step", "switch_step": 2},
        sigmas=[1.0, 0.7, 0.4, 0.2, 0.0],
    )
    report.hand_overs.append(report_module.HandOver(2, "render", "step", 0.4, 50.0))
    report.steps = [report_module.Step(i + 1, 1.0, "render" if i > 1 else "sketch", 1.0) for i in range(4)]
    report.status, report.error = ("failed", error) if error else ("done", "")
    return report


def three_stages() -> Any:
    """A run of 9 steps high, 9 low and 12 small, TeaCache on the last."""
    stage, hand_over = report_module.StageReport, report_module.HandOver
    reuse = [i % 3 == 2 for i in range(12)]
    cache = {"table": "Wan 2.1 t2v 1.3B", "threshold": 0.14, "reuse": reuse, "first_step": 18}
    switch = {"mode": "adaptive", "delta": 0.01, "fix_step": 5, "max_step": 0, "switch_step": 18, "switch_sigma": 0.875}
    high, low = (stage(name, f"Wan 2.2 {name} noise", 9, 27.0) for name in ("high", "low"))
    stages = [high, low, stage("small", "Wan 2.1 1.3B", 12, 8.8, teacache=cache)]
    report = report_module.Report()
    report.begin(stages=stages, switch=switch, earliest=4, latest=12, sigmas=[1 - i / 30 for i in range(31)])
    for i, name in enumerate(["high"] * 9 + ["low"] * 9 + ["small"] * 12):
        reused = name == "small" and reuse[i - 18]
        d, fall = (0.6 / (i + 1), 0.3 / (i + 1) ** 1.6) if 1 < i < 18 else (None, None)
        seconds = 0.1 if reused else 1.0 if name == "small" else 3.0
        report.steps.append(report_module.Step(i + 1, report.sigmas[i], name, seconds, d, fall, fall, reused))
    report.hand_overs = [
        hand_over(9, "low", "criterion", 0.7, 30.0, 0.07, 0.0089),
        hand_over(18, "small", "step", 0.4, 60.0),
    ]
    report.notes = ["The render is larger than the sketch. Are the two swapped?"]
    report.status = "done"
    return report
