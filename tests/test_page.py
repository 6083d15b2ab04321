"""The live Switch Inspector in the host's own page: a real server, a real browser, the tiny family.

Screenshots are kept in the folder that SRD_ARTEFACTS names, or in pytest's own.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import REPOSITORY, host_module, load_by_path, module

page_module = load_by_path("srd_page", REPOSITORY / "demo" / "page.py")
report_module = module("srd_core.report.data")
workflow_module = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")

DEMO = REPOSITORY / "demo" / "demo.json"
FIRST_RELEASE = Path(__file__).parent / "data" / "workflow_first_release.json"
# What the page adds to nodes of the first release: fade, sketch_steps, render_steps, sketch_scale, preset; save_report.
LATER = {"SRSampler": [0, "", 0, 1, "custom"], "SRSwitchInspector": [""]}
SAMPLER, INSPECTOR, LOADERS, SHIFT = 8, 12, (1, 2), 7  # node ids in the demo's workflow
VERSION_1 = Path(__file__).parent / "data" / "report_version_1.json"
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
DROP = """([text, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([text], name, {type: 'application/json'}));
  const options = {dataTransfer: files, bubbles: true, cancelable: true, clientX: 640, clientY: 420};
  const target = document.querySelector('#graph-canvas');
  for (const kind of ['dragenter', 'dragover', 'drop']) target.dispatchEvent(new DragEvent(kind, options));
}"""
IDLE = "The chart appears here during a run."
TO_WORKFLOW = """async path => {
  const store = app.extensionManager.workflow, workflow = store.getWorkflowByPath(path);
  await app.loadGraphData(workflow.activeState, true, true, workflow);
}"""
WIDGETS = "(values) => { for (const [id, name, value] of values) {"
WIDGETS += " app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value } }"
VALUE = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"
CHART = "document.querySelectorAll('.srd-chart')"
# The chart of a node, wherever the renderer has put it.
ELEMENT = "app.graph.getNodeById(%d).widgets.find(w => w.name === 'srd_chart').element"
# Note how many bars the Inspector's chart has whenever it is drawn, from now on.
WATCH = f"""() => {{
  const chart = {ELEMENT % INSPECTOR};
  window.bars = [];
  new MutationObserver(() => {{
    if (/running|done/.test(chart.querySelector('.srd-status').dataset.status) && window.bars.at(-1) !== 50)
      window.bars.push(chart.querySelectorAll('.srd-bar').length);
  }}).observe(chart.querySelector('svg'), {{childList: true}});
}}"""
# The lowest contrast (WCAG 2) of a chart's words with what is behind them, [contrast, words]; colours as the browser draws them.
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
PALETTES = ("dark", "light", "solarized", "arc", "nord", "github")
TWIN = """() => {
  const first = app.graph.getNodeById(8), twin = LiteGraph.createNode('SRSampler');
  app.graph.add(twin);
  first.widgets.forEach((widget, i) => { if (widget.name !== 'srd_chart') twin.widgets[i].value = widget.value });
  first.inputs.forEach((_, slot) => {
    const link = first.isInputConnected(slot) && first.getInputLink(slot);
    if (link) app.graph.getNodeById(link.origin_id).connect(link.origin_slot, twin, slot);
  });
  const inspector = LiteGraph.createNode('SRSwitchInspector');
  app.graph.add(inspector);
  twin.connect(1, inspector, 0);
  return [Number(twin.id), Number(inspector.id)];
}"""


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SRD_ARTEFACTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def opened(server: Any, browser: Any) -> Iterator[Any]:
    page = page_module.open_page(browser, server.url)
    yield page
    page.close()


@pytest.fixture
def page(opened: Any, server: Any) -> Iterator[Any]:
    """The page with the demo's workflow in it, its charts in view; and no error said when the test is over."""
    errors: list[str] = []
    noted = {
        "console": lambda m: m.type == "error" and errors.append(m.text),
        "pageerror": lambda e: errors.append(str(e)),
    }
    for event, note in noted.items():
        opened.on(event, note)
    show(opened, DEMO)
    yield opened
    server.interrupt()
    until_idle(server)
    for event, note in noted.items():
        opened.remove_listener(event, note)
    assert not [text for text in errors if not any(own in text for own in ITS_OWN)]


def show(page: Any, path: Path) -> None:
    page.evaluate(OPEN, json.loads(path.read_text("utf-8")))
    page.wait_for_function(f"{CHART}.length >= 2")
    look_at(page)


def look_at(page: Any, scale: float = 0.8) -> None:
    """Bring SR Sampler and the Inspector into view."""
    page.evaluate(
        "([a, b, scale]) => { const at = Math.min(a, b); app.canvas.ds.scale = scale; app.canvas.ds.offset = [120 - at, 100];"
        " app.canvas.setDirty(true, true) }",
        [*(page.evaluate(f"app.graph.getNodeById({node}).pos[0]") for node in (SAMPLER, INSPECTOR)), scale],
    )


def queue(page: Any, *values: tuple[int, str, Any]) -> None:
    """Set widgets, then queue the graph as it is, by the page's own button's command."""
    page.evaluate(WIDGETS, [list(value) for value in values])
    page.evaluate("app.queuePrompt(0, 1)")


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


def text_of(page: Any, selector: str, node: int = INSPECTOR) -> str:
    return page.evaluate(f"selector => ({ELEMENT % node}).querySelector(selector).textContent", selector)


def hover(page: Any, selector: str = ".srd-status", node: int = INSPECTOR) -> str:
    """What is said to whoever points there."""
    return page.evaluate(f"selector => ({ELEMENT % node}).querySelector(selector).title", selector)


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


def renderer(page: Any, name: str) -> None:
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", RENDERERS[name])
    page.wait_for_timeout(500)


# --- a run, as an artist sees it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RENDERERS)
def test_a_dropped_workflow_runs_and_its_chart_grows_step_by_step(
    name: str, page: Any, server: Any, artefacts: Path
) -> None:
    renderer(page, name)
    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, [DEMO.read_text("utf-8"), "demo.json"])
    page.wait_for_function(f"{CHART}.length >= 2")
    look_at(page)
    assert page.evaluate("app.graph._nodes.every(node => LiteGraph.registered_node_types[node.type])")
    page.evaluate(WATCH)
    queue(page, (SAMPLER, "delta", 0.03), (SAMPLER, "seed", random.randrange(1 << 30)))
    page.wait_for_function("window.bars.includes(50)", timeout=120_000)
    until_done(page)
    until_idle(server)
    grown = page.evaluate("window.bars")
    assert grown == sorted(grown) and len(set(grown)) > 4 and grown[0] < 25
    report = reports(server)[-1][str(INSPECTOR)]
    (hand_over,) = report["hand_overs"]
    assert report["switch"]["delta"] == 0.03 and hand_over["reason"] in ("criterion", "earliest")
    marked = page.evaluate(f"({ELEMENT % INSPECTOR}).querySelector('.srd-mark').dataset.after")
    assert int(marked) == hand_over["after_step"] == count(page, BARS[0])
    after = hand_over["after_step"]
    assert re.fullmatch(rf"\d\.\d+x( \(slower\))?, switched at {after} of 50, [\d.]+ s", status(page)) and status(
        page, SAMPLER
    ) == status(page)
    assert "the sketch alone (estimated)" in hover(page) and "50 steps in " in hover(page)
    label = page.evaluate(f"({ELEMENT % INSPECTOR}).querySelector('svg[role=img]').ariaLabel")
    assert f"at step {marked} of 50" in label
    page.wait_for_function("!!document.querySelector('video')")
    page.evaluate(f"({ELEMENT % SAMPLER}).querySelector('.srd-toggle').click()")
    page.wait_for_function(f"({ELEMENT % SAMPLER}).querySelectorAll('{BARS[1]}').length > 10")
    for theme in ("dark", "light"):
        page.evaluate("theme => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', theme)", theme)
        for scale in (0.8, 0.6):
            look_at(page, scale)
            page.wait_for_timeout(400)
            page.screenshot(path=artefacts / f"{name}_{theme}_{scale * 100:.0f}.png")
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'dark')")
    renderer(page, "classic")


def queue_long(page: Any) -> None:
    """A run that ends when it is interrupted."""
    long = {"switch_mode": "step", "switch_step": 5000, "steps": 5000, "seed": random.randrange(1 << 30)}
    queue(page, *((SAMPLER, name, value) for name, value in long.items()))
    until(page, "Sketching")


def grows(page: Any) -> None:
    before = count(page, BARS[0])
    page.wait_for_function(f"({ELEMENT % INSPECTOR}).querySelectorAll('{BARS[0]}').length > {before}")


def test_a_reload_in_mid_run_shows_the_run_that_continues(page: Any) -> None:
    queue_long(page)
    before = count(page, BARS[0])
    page.reload()
    page.wait_for_function(page_module.READY, timeout=120_000)
    page.wait_for_function(f"{CHART}.length >= 2")
    page.wait_for_function(f"({ELEMENT % INSPECTOR}).querySelectorAll('{BARS[0]}').length > {before}")
    page.evaluate("fetch('/interrupt', {method: 'POST'})")
    assert "of 5000" in until(page, "Interrupted after step")


def test_a_tab_shows_the_runs_that_it_queued_and_those_of_tabs_that_are_closed(
    page: Any, server: Any, browser: Any
) -> None:
    first, second = page_module.open_page(browser, server.url), page_module.open_page(browser, server.url)
    for tab in (first, second):
        show(tab, DEMO)
    queue_long(first)
    grows(first)
    assert status(second) == status(page) == IDLE
    first.close()
    third = page_module.open_page(browser, server.url)
    show(third, DEMO)
    until(third, "Sketching")
    grows(third)
    assert status(second) == status(page) == IDLE
    third.evaluate("fetch('/interrupt', {method: 'POST'})")
    until(third, "Interrupted after step")
    second.close(), third.close()


def test_a_chart_belongs_to_the_workflow_that_queued_its_run(page: Any, server: Any) -> None:
    """Whatever else is opened: shipped workflows share their id."""
    queue(page, (SAMPLER, "steps", 6), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    ran = until_done(page)
    first = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    show(page, DEMO)  # a fresh drop of the same file
    page.wait_for_timeout(500)
    assert status(page) == status(page, SAMPLER) == IDLE
    queue(page, (SAMPLER, "steps", 300), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    second = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate(TO_WORKFLOW, first)
    page.wait_for_function(f"{CHART}.length >= 2")
    page.wait_for_timeout(500)
    assert status(page) == status(page, SAMPLER) == ran and second != first
    page.evaluate(TO_WORKFLOW, second)
    until(page, "Sketching")
    page.evaluate("fetch('/interrupt', {method: 'POST'})")
    until(page, "Interrupted")


@pytest.mark.parametrize(
    "wrong",
    [
        [(SAMPLER, "switch_mode", "step"), (SAMPLER, "switch_step", 60)],
        [(LOADERS[0], "model_name", "missing.safetensors")],
    ],
)
def test_what_an_older_run_left_is_gone_when_the_next_one_is_refused(wrong: list[Any], page: Any, server: Any) -> None:
    queue(page, (SAMPLER, "steps", 6), (SAMPLER, "seed", random.randrange(1 << 30)))
    until_done(page)
    until_idle(server)
    queue(page, *wrong)
    page.wait_for_timeout(500)
    until_idle(server)
    assert status(page) == status(page, SAMPLER) == IDLE


def test_a_run_that_comes_from_the_cache_keeps_its_chart(page: Any, server: Any) -> None:
    queue(page, (SAMPLER, "steps", 6), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    ran = until_done(page)
    queue(page)
    until_idle(server)
    page.wait_for_timeout(500)
    assert status(page) == status(page, SAMPLER) == ran


def test_an_interrupt_in_either_stage_is_said_and_the_next_run_starts_clean(page: Any, server: Any) -> None:
    for mode, stage in (("adaptive", "Sketching"), ("step", "Rendering")):
        queue(
            page,
            (SAMPLER, "switch_mode", mode),
            (SAMPLER, "switch_step", 2),
            (SAMPLER, "steps", 400),
            (SAMPLER, "seed", random.randrange(1 << 30)),
        )
        until(page, stage)
        page.evaluate("fetch('/interrupt', {method: 'POST'})")
        said = until(page, "Interrupted after step")
        counted = sum(int(number) for number in re.findall(r": (\d+) steps", text_of(page, ".srd-legend")))
        assert said == f"Interrupted after step {counted} of 400"
        until_idle(server)
    queue(page, (SAMPLER, "steps", 12))
    assert "switched at 2 of 12" in until_done(page)
    assert count(page, BARS[0]) == 2 and count(page, BARS[1]) == 10


def test_two_samplers_and_two_queued_runs_never_mix(page: Any, server: Any) -> None:
    twin, inspector = page.evaluate(TWIN)
    page.evaluate("""() => {
      window.seen = [];
      app.api.addEventListener('srdiffusion.run', ({detail: {prompt_id, node_id, nodes, report}}) =>
        window.seen.push([prompt_id, node_id, nodes.join(), report.switch?.switch_step]));
    }""")
    runs = [{SAMPLER: 3, twin: 5}, {SAMPLER: 7, twin: 9}]
    for run in runs:
        values = [
            (node, name, value)
            for node, step in run.items()
            for name, value in (("switch_mode", "step"), ("switch_step", step), ("steps", 14))
        ]
        queue(page, *values)
    page.wait_for_function("window.seen.length > 40")
    until_idle(server)
    told = {(prompt, node, nodes, step) for prompt, node, nodes, step in page.evaluate("window.seen")}
    samplers = [entry for entry in told if entry[1] in (str(SAMPLER), str(twin))]
    assert {nodes for _, _, nodes, _ in samplers} == {f"{SAMPLER},{INSPECTOR}", f"{twin},{inspector}"}
    assert sorted(step for *_, step in samplers) == [3, 5, 7, 9]  # one setting a sampler and prompt
    for node, viewer in ((SAMPLER, INSPECTOR), (twin, inspector)):
        until_done(page, viewer)
        assert f"at step {runs[-1][node]} of 14" in text_of(page, ".srd-detail", viewer)
    for run, shown in zip(runs, reports(server)[-2:]):
        for node, viewer in ((SAMPLER, INSPECTOR), (twin, inspector)):
            assert shown[str(viewer)]["hand_overs"][0]["after_step"] == run[node]


# --- before the run ---------------------------------------------------------------------------------------------------

IN_A_MODE = {
    "adaptive": ["delta", "fix_step", "max_step", "switch_sigma"],
    "step": ["switch_step"],
    "sigma": ["switch_sigma"],
}
BY_HAND = """([id, values]) => { for (const [name, value] of Object.entries(values)) {
  const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
  widget.value = value; widget.callback?.(value); } }"""
LOOK = """() => {  // the page looks for changes, as after a click
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
PLAN = "app.graph.getNodeById(%d).widgets.find(w => w.name === 'srd_plan').element"


def choose(page: Any, node: int = SAMPLER, **values: Any) -> None:
    """Set widgets as the user does."""
    page.evaluate(BY_HAND, [node, values])


def widgets_in_view(page: Any, name: str, node: int = SAMPLER) -> set[str]:
    """The widgets of a node that somebody sees in that renderer, those behind "advanced" left out in Nodes 2.0."""
    page.wait_for_timeout(400)
    if name == "classic":
        return set(
            page.evaluate(
                "id => app.graph.getNodeById(id).widgets.filter(w => !w.options.hidden).map(w => w.name)", node
            )
        )
    shown = page.evaluate("id => document.querySelector(`[data-node-id='${id}']`).innerText", node)
    return set(shown.split())


def plan_of(page: Any, start: str, node: int = SAMPLER) -> bool:
    """Wait until a node's line begins so; returns whether it is amber."""
    page.wait_for_function(f"start => ({PLAN % node}).textContent.startsWith(start)", arg=start, timeout=20_000)
    return page.evaluate(f"({PLAN % node}).classList.contains('srd-problem')")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_mode_shows_its_own_widgets_and_the_workflow_keeps_all_values(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    behind = {"max_step", "switch_sigma"} if name == "vue" else set()  # in adaptive "advanced"
    values = page.evaluate(f"app.graph.getNodeById({SAMPLER}).serialize().widgets_values")
    shipped = next(n for n in json.loads(DEMO.read_text("utf-8"))["nodes"] if n["id"] == SAMPLER)["widgets_values"]
    assert values[: len(shipped)] == shipped  # newer widgets come last
    for mode in ("adaptive", "step", "sigma", "adaptive"):
        choose(page, switch_mode=mode)
        every = {widget for widgets in IN_A_MODE.values() for widget in widgets}
        wanted = set(IN_A_MODE[mode]) - (behind if mode == "adaptive" else set())
        assert widgets_in_view(page, name) & every == wanted and {"steps", "cfg"} <= widgets_in_view(page, name)
        saved = page.evaluate(f"app.graph.getNodeById({SAMPLER}).serialize().widgets_values")
        assert saved == [mode if value == "adaptive" else value for value in values]
    queued = page.evaluate("app.graphToPrompt().then(({output}) => output)")[str(SAMPLER)]["inputs"]
    assert {*IN_A_MODE["adaptive"], "switch_step", "offload_sketch"} <= set(queued)
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_widget_that_a_link_sets_stays_in_view(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    assert "switch_step" not in widgets_in_view(page, name)
    page.evaluate(
        """id => {
          const source = LiteGraph.createNode('PrimitiveInt'), node = app.graph.getNodeById(id);
          app.graph.add(source);
          source.connect(0, node, node.inputs.findIndex(input => input.name === 'switch_step'));
        }""",
        SAMPLER,
    )
    assert "switch_step" in widgets_in_view(page, name)
    page.evaluate(OPEN, json.loads(page.evaluate("JSON.stringify(app.graph.serialize())")))
    assert "switch_step" in widgets_in_view(page, name)
    page.evaluate(
        "id => { const node = app.graph.getNodeById(id);"
        " node.disconnectInput(node.inputs.findIndex(input => input.name === 'switch_step')) }",
        SAMPLER,
    )
    assert "switch_step" not in widgets_in_view(page, name)
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_line_says_what_the_settings_mean_and_is_amber_where_they_contradict(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    assert not plan_of(page, "50 steps: earliest 6, latest 16 (sigma 0.81)")
    choose(page, steps=20)
    assert not plan_of(page, "20 steps: earliest 3, latest 7 (sigma ")
    choose(page, switch_mode="step", switch_step=60)
    assert plan_of(page, "switch_step is 60, but the run has 20 steps")
    lowest, words = page.evaluate(f"({CONTRAST})({PLAN % SAMPLER})")
    assert lowest >= 7, words
    choose(page, switch_step=4)
    assert not plan_of(page, "20 steps: sketch 4, render 16")
    choose(page, switch_mode="adaptive")
    choose(page, SHIFT, shift=8)
    page.evaluate(LOOK)
    plan_of(page, "20 steps: earliest 7, latest 13 (sigma ")
    page.evaluate(f"app.graph.getNodeById({SAMPLER}).disconnectInput(0)")
    plan_of(page, "switches once the composition has settled")
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_the_line_asks_whether_the_two_are_swapped_as_soon_as_the_files_are_chosen(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    assert not plan_of(page, "50 steps: earliest 6, latest 16 (sigma 0.81)")
    large, small = (page.evaluate(VALUE, [node, "model_name"]) for node in LOADERS)
    choose(page, LOADERS[0], model_name=small)
    choose(page, LOADERS[1], model_name=large)
    page.evaluate(LOOK)
    assert plan_of(page, "The render is larger than the sketch. Are the two swapped? 50 steps: earliest 6, latest 16")
    page.evaluate("id => { app.graph.getNodeById(id).mode = 4 }", SHIFT)  # a bypassed node changes nothing
    page.evaluate(LOOK)
    plan_of(
        page, "The render is larger than the sketch. Are the two swapped? switches once the composition has settled"
    )
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_the_line_knows_the_models_that_come_through_a_reroute(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(
        """ids => ids.forEach(id => {
          const loader = app.graph.getNodeById(id), reroute = LiteGraph.createNode('Reroute');
          const links = loader.outputs[0].links.map(link => app.graph.getLink?.(link) ?? app.graph.links[link]);
          app.graph.add(reroute);
          const ends = links.map(link => [app.graph.getNodeById(link.target_id), link.target_slot]);
          loader.connect(0, reroute, 0);
          for (const [node, slot] of ends) reroute.connect(0, node, slot);
        })""",
        [*LOADERS, SHIFT],
    )
    large, small = (page.evaluate(VALUE, [node, "model_name"]) for node in LOADERS)
    choose(page, LOADERS[0], model_name=small)
    choose(page, LOADERS[1], model_name=large)
    page.evaluate(LOOK)
    assert plan_of(page, "The render is larger than the sketch. Are the two swapped? 50 steps: earliest 6, latest 16")
    renderer(page, "classic")


def shown_values(page: Any, node: int = SAMPLER) -> dict[str, Any]:
    """The values of a node's widgets, by name."""
    return page.evaluate(
        "id => Object.fromEntries(app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))", node
    )


PRESETS = module("nodes.presets").PRESETS
CLICKED = """([id, name, value]) => {  // as a click in that renderer does: it sets the value and calls back
  const node = app.graph.getNodeById(id), widget = node.widgets.find(w => w.name === name);
  if (widget.setValue) widget.setValue(value, {e: {}, node, canvas: app.canvas});
  else { widget.value = value; widget.callback?.(value, app.canvas, node, [0, 0], {}); }
}"""


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_writes_its_widgets_and_changing_one_makes_it_custom(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    before = shown_values(page)
    assert before["preset"] == "custom" and "preset" in widgets_in_view(page, name)
    for preset, table in PRESETS.items():
        page.evaluate(CLICKED, [SAMPLER, "preset", preset])
        page.wait_for_timeout(200)
        now = shown_values(page)
        assert {key: now[key] for key in table} == table
        assert now["preset"] == preset and now["cfg"] == before["cfg"] and now["seed"] == before["seed"]
        queued = page.evaluate(QUEUED)[str(SAMPLER)]["inputs"]
        assert {key: queued[key] for key in table} == table and queued[
            "preset"
        ] == "custom"  # its values are in the widgets
        assert preset in page.evaluate(f"app.graph.getNodeById({SAMPLER}).serialize().widgets_values")
    assert not plan_of(page, "50 steps: sketch 10, render 4")
    page.evaluate(CLICKED, [SAMPLER, "cfg", 2.5])
    assert shown_values(page)["preset"] == "few-step render"  # cfg belongs to none
    page.evaluate(CLICKED, [SAMPLER, "fade", 0.5])
    page.wait_for_timeout(200)
    assert shown_values(page)["preset"] == "custom" and shown_values(page)["render_steps"] == 4
    page.evaluate(CLICKED, [SAMPLER, "preset", "balanced"])
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    page.evaluate(OPEN, saved)
    assert shown_values(page)["preset"] == "balanced" and shown_values(page)["steps"] == 20
    (node,) = (node for node in saved["nodes"] if node["id"] == SAMPLER)
    node["widgets_values"][node["widgets_values"].index(1.1)] = (
        0.7  # a file whose values are not its preset's runs as it is shown
    )
    page.evaluate(OPEN, saved)
    page.wait_for_timeout(300)
    assert (shown_values(page)["fade"], shown_values(page)["preset"]) == (0.7, "custom")
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_leaves_what_a_link_sets(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(
        """id => {
          const source = LiteGraph.createNode('PrimitiveInt'), node = app.graph.getNodeById(id);
          app.graph.add(source);
          source.widgets[0].value = 7;
          source.connect(0, node, node.inputs.findIndex(input => input.name === 'steps'));
        }""",
        SAMPLER,
    )
    page.evaluate(CLICKED, [SAMPLER, "preset", "fast"])
    page.wait_for_timeout(200)
    now, queued = shown_values(page), page.evaluate(QUEUED)[str(SAMPLER)]["inputs"]
    assert now["preset"] == "fast" and now["render_cfg"] == 1 and now["steps"] == 50
    assert isinstance(queued["steps"], list) and queued["preset"] == "custom"
    renderer(page, "classic")


PRIMITIVE = """([id, name, value]) => {  // the page's own node: its value is queued as if it were typed into the widget
  const source = LiteGraph.createNode('PrimitiveNode'), node = app.graph.getNodeById(id);
  app.graph.add(source);
  source.connect(0, node, node.inputs.findIndex(input => input.name === name));
  source.widgets[0].value = value;
  source.widgets[0].callback?.(value);
}"""
PROMOTE = """([id, values]) => {  // puts a node into a subgraph, whose inputs set these widgets
  const {subgraph, node} = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)])), [inner] = subgraph.nodes;
  for (const [name, value] of Object.entries(values)) {
    const slot = inner.inputs.find(input => input.name === name);
    subgraph.addInput(name, slot.type).connect(slot, inner);
    const widget = node.widgets.find(widget => widget.name === name);
    widget.value = value;
    widget.callback?.(value);
  }
  window.inner = inner;
}"""
INNER = "window.inner.widgets.find(w => w.name === 'srd_plan').element"
INNER_CLICKED = """([name, value]) => {
  const widget = window.inner.widgets.find(w => w.name === name);
  widget.value = value;
  widget.callback?.(value, app.canvas, window.inner, [0, 0], {});
}"""


def queued_sampler(page: Any) -> dict[str, Any]:
    """The inputs of the one SR Sampler that the page would queue."""
    (node,) = (node for node in page.evaluate(QUEUED).values() if node["class_type"] == "SRSampler")
    return node["inputs"]


def run_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """The values that the server runs with, of what a preset stands for."""
    table = PRESETS["fast"]
    values = {key: inputs[key] for key in (*table, "preset")}
    chosen = module("nodes.presets").chosen(values, [key for key, value in values.items() if isinstance(value, list)])
    return {key: chosen[key] for key in table}


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_leaves_what_a_node_of_the_page_sets(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(PRIMITIVE, [SAMPLER, "steps", 30])
    page.evaluate(CLICKED, [SAMPLER, "preset", "fast"])
    page.wait_for_timeout(300)
    assert run_of(queued_sampler(page)) == PRESETS["fast"] | {"steps": 30}
    assert shown_values(page)["preset"] == "fast"
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_in_a_subgraph_leaves_what_the_subgraph_s_node_sets(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(PROMOTE, [SAMPLER, {"steps": 30}])
    page.evaluate(INNER_CLICKED, ["preset", "fast"])
    page.wait_for_timeout(300)
    assert run_of(queued_sampler(page)) == PRESETS["fast"] | {"steps": 30}
    assert "fast" in page.evaluate("window.inner.serialize().widgets_values")
    renderer(page, "classic")


OUTSIDE = "Preset fast is set from outside: it replaces "


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_that_a_node_of_the_page_sets_says_what_it_replaces(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(PRIMITIVE, [SAMPLER, "preset", "fast"])
    page.evaluate(PRIMITIVE, [SAMPLER, "delta", 0.05])
    for widget, value in (("fade", 0.3), ("steps", 30)):
        page.evaluate(CLICKED, [SAMPLER, widget, value])
    page.evaluate(LOOK)
    assert plan_of(page, OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. 20 steps: earliest 2, latest 5 (sigma ")
    assert run_of(queued_sampler(page)) == PRESETS["fast"]
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.evaluate(OPEN, json.loads(saved))
    plan_of(page, OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. 20 steps: ")
    assert run_of(queued_sampler(page)) == PRESETS["fast"]
    page.evaluate(
        "id => { const node = app.graph.getNodeById(id);"
        " node.disconnectInput(node.inputs.findIndex(input => input.name === 'preset')) }",
        SAMPLER,
    )
    plan_of(page, "30 steps: ")
    assert shown_values(page)["preset"] == "custom" and run_of(queued_sampler(page))["steps"] == 30
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_that_a_subgraph_s_node_sets_says_what_it_replaces(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(PROMOTE, [SAMPLER, {"preset": "fast"}])
    for widget, value in (("fade", 0.3), ("steps", 30)):
        page.evaluate(INNER_CLICKED, [widget, value])
    page.evaluate(LOOK)
    page.wait_for_function(
        f"start => ({INNER}).textContent.startsWith(start)",
        arg=OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. ",
    )
    assert run_of(queued_sampler(page)) == PRESETS["fast"]
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_preset_that_another_node_s_output_sets_says_that_it_replaces_widgets(name: str, page: Any) -> None:
    renderer(page, name)
    show(page, DEMO)
    page.evaluate(
        """id => {
          const source = LiteGraph.createNode('PrimitiveString'), node = app.graph.getNodeById(id);
          app.graph.add(source);
          source.outputs[0].type = '*';  // as nodes of other packs give a choice
          source.connect(0, node, node.inputs.findIndex(input => input.name === 'preset'));
        }""",
        SAMPLER,
    )
    page.evaluate(LOOK)
    assert plan_of(page, "The preset is set from outside: it replaces the widgets that it stands for.")
    assert isinstance(queued_sampler(page)["preset"], list)
    renderer(page, "classic")


# --- after the run ----------------------------------------------------------------------------------------------------


def test_what_if_tells_another_delta_s_hand_over_and_use_this_delta_writes_it_to_the_sampler(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    queue(page, (SAMPLER, "delta", 0.01), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    until_done(page)
    slide(page, -1)
    outcome = text_of(page, ".srd-outcome")
    assert outcome.startswith("delta 0.1: after step ") and outcome.endswith(" s")
    page.evaluate(
        f"[...({ELEMENT % INSPECTOR}).querySelectorAll('button')].find(b => b.textContent === 'use this delta').click()"
    )
    assert page.evaluate(VALUE, [SAMPLER, "delta"]) == 0.1
    page.evaluate(
        f"[...({ELEMENT % INSPECTOR}).querySelectorAll('button')].find(b => b.textContent === 'copy report').click()"
    )
    page.wait_for_timeout(300)
    copied = report_module.Report.from_json(page.evaluate("navigator.clipboard.readText()"))
    assert copied.status == "done" and len(copied.steps) == 50
    predicted = int(outcome.split("after step ")[1].split()[0])
    queue(page)
    until(page, "Sketching")
    until_done(page)
    assert f"at step {predicted} of 50" in text_of(page, ".srd-detail")


# --- blueprint and app mode -------------------------------------------------------------------------------------------

BLUEPRINT = REPOSITORY / "subgraphs" / "Text to video, Wan 14B + 1.3B.json"
MAIN = REPOSITORY / "workflows" / "wan2.1_t2v_14B_to_1.3B.json"
QUEUED = "app.graphToPrompt().then(({output}) => output)"


def queued_as(page: Any) -> dict[str, dict[str, Any]]:
    """The inputs that the page would queue, by the node's type; the links left out."""
    prompt = page.evaluate(QUEUED)
    return {
        f"{node['class_type']} {node['_meta']['title']}": {
            k: v for k, v in node["inputs"].items() if not isinstance(v, list)
        }
        for node in prompt.values()
    }


@pytest.mark.parametrize("name", RENDERERS)
def test_the_blueprint_is_listed_and_gives_what_the_main_workflow_gives(name: str, page: Any, server: Any) -> None:
    listed = [found for found in server.get("/global_subgraphs").values() if found["source"] == "custom_node"]
    assert [(found["name"], found["info"]["node_pack"]) for found in listed] == [
        (BLUEPRINT.stem, "custom_nodes.ComfyUI-SRDiffusion")
    ]
    renderer(page, name)
    page.evaluate(OPEN, json.loads(MAIN.read_text("utf-8")))
    wanted = queued_as(page)
    page.evaluate(OPEN, json.loads(BLUEPRINT.read_text("utf-8")))
    found = queued_as(page)
    assert set(found) - set(wanted) == {"PrimitiveFloat Seconds", "ComfyMathExpression Frames: 16 a second, and one"}
    for node, inputs in wanted.items():
        if not node.startswith(("SaveVideo", "SRSwitchInspector")):
            assert found[node] == {k: v for k, v in inputs.items() if k != "length"}, node
    node = int(page.evaluate("app.graph._nodes[0].id"))
    values = {
        "prompt": "a cat",
        "width": 640,
        "height": 640,
        "seconds": 3.0,
        "seed": 7,
        "sketch_file": "a",
        "render_file": "b",
        "text_encoder": "c",
        "vae": "d",
    }
    page.evaluate(WIDGETS, [[node, name, value] for name, value in values.items()])
    changed = {v for inputs in queued_as(page).values() for v in inputs.values()}
    assert set(values.values()) <= changed
    renderer(page, "classic")


def test_the_main_workflow_fills_app_mode(page: Any) -> None:
    page.evaluate(OPEN, json.loads(MAIN.read_text("utf-8")))
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    try:
        for words in ("text", "width", "height", "length", "seed", "steps"):
            page.wait_for_function(
                "words => document.body.innerText.split(/\\n/).includes(words)", arg=words, timeout=20_000
            )
    finally:
        page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")


# --- workflows and old reports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DEMO, FIRST_RELEASE], ids=lambda path: path.stem)
def test_a_workflow_saved_from_the_page_and_loaded_again_is_unchanged(path: Path, page: Any) -> None:
    show(page, path)
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.evaluate(OPEN, json.loads(saved))
    again = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    saved = json.loads(saved)
    for workflow in (saved, again):
        workflow["extra"].pop("ds", None)  # where the canvas is looked at
    assert again == saved
    shipped = {node["id"]: node for node in json.loads(path.read_text("utf-8"))["nodes"]}
    for node in saved["nodes"]:
        if node["type"].startswith("SR"):
            values, before = (each.get("widgets_values") or [] for each in (node, shipped[int(node["id"])]))
            assert values[: len(before)] == before
            assert values[len(before) :] == (LATER.get(node["type"], []) if path == FIRST_RELEASE else [])
        if node["type"] == "SRSwitchInspector":
            assert [output["name"] for output in node["outputs"]] == ["plot", "summary", "report_json"]


CHOOSE = """() => {
  const resize = LiteGraph.createNode('ResizeImageMaskNode'), save = app.graph.nodes.find(node => node.type === 'SaveVideo');
  app.graph.add(resize);
  app.graph.nodes.find(node => node.type === 'VAEDecode').connect(0, resize, 0);
  const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value };
  set(resize, 'resize_type', 'scale longer dimension');
  set(resize, 'resize_type.longer_size', 96);
  for (const [name, value] of [['codec', 'h264'], ['codec.encoding', 're-encode'], ['codec.encoding.crf', 31]]) set(save, name, value);
}"""


def test_choices_that_bring_inputs_are_queued_by_the_demo_as_by_the_page(page: Any, server: Any) -> None:
    page.evaluate(CHOOSE)
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    queued = json.loads(page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))"))
    graph = workflow_module.to_api(saved, server.object_info())
    save = next(node["inputs"] for node in graph.values() if node["class_type"] == "SaveVideo")
    assert (save["codec"], save["codec.encoding"], save["codec.encoding.crf"]) == ("h264", "re-encode", 31)
    assert {key: node["inputs"] for key, node in graph.items()} == {key: node["inputs"] for key, node in queued.items()}


def open_saved(page: Any, report: Any, key: str = str(SAMPLER)) -> None:
    """Open the demo's workflow as a saved video carries it, with this report in it."""
    workflow = json.loads(DEMO.read_text("utf-8"))
    workflow["extra"] = {"srdiffusion": {key: report}}
    page.evaluate(OPEN, workflow)


def detail(page: Any, node: int = INSPECTOR) -> str:
    return text_of(page, ".srd-detail", node)


def test_a_video_s_workflow_opens_with_the_chart_of_its_run_and_stays_as_it_was(page: Any) -> None:
    open_saved(page, json.loads(a_report("Sketcher", "Renderer").to_json()))
    assert until_done(page) == "1.0x, switched at 2 of 4, 4 s"
    assert "at step 2 of 4" in detail(page, SAMPLER)
    assert "srdiffusion" not in page.evaluate("app.graph.serialize().extra ?? {}")


def test_a_video_of_the_first_releases_still_opens_with_its_chart(page: Any) -> None:
    open_saved(page, json.loads(VERSION_1.read_text("utf-8")))
    assert until_done(page) == "1.8x, switched at 4 of 10, 16.5 s"
    assert detail(page) == "Switched at step 4 of 10 (40 %): the composition settled."
    assert hover(page, ".srd-detail").endswith(", D fell by 0.008, less than 0.01 (delta)")
    assert hover(page).startswith(
        "1.82x as fast as the sketch alone (estimated)\n10 steps in 16.5 s\nrender from sigma "
    )
    assert [count(page, bars) for bars in BARS] == [4, 6, 0, 0] and count(page, ".srd-reused") == 2
    assert text_of(page, ".srd-legend") == "sketch: 4 steps, 12 srender: 6 steps (2 reused, hatched), 4.5 s"
    assert text_of(page, ".srd-notes") == "A note."
    slide(page, -2)
    assert text_of(page, ".srd-outcome") == "delta 0.01: after step 4 (criterion), about 16.5 s"
    slide(page, -1)
    assert text_of(page, ".srd-outcome").startswith("delta 0.1: after step 3 (criterion), about ")


def test_a_run_that_is_slower_says_so_and_a_swapped_pair_is_asked_about(page: Any) -> None:
    report = a_report("Small", "Big")
    report.notes = [module("srd_core.pair").LARGER]
    for step in report.steps[2:]:
        step.seconds = 3.0
    open_saved(page, json.loads(report.to_json()))
    assert until_done(page) == "0.50x (slower), switched at 2 of 4, 4 s"
    assert hover(page).startswith("0.50x: slower than the sketch alone (estimated)\n")
    assert text_of(page, ".srd-notes") == "The render is larger than the sketch. Are the two swapped?"


def test_a_render_larger_than_the_sketch_is_noted_in_the_chart(page: Any) -> None:
    swapped = [page.evaluate(VALUE, [node, "model_name"]) for node in LOADERS]
    small_first = [(node, "model_name", name) for node, name in zip(LOADERS, swapped[::-1])]
    queue(page, *small_first, (SAMPLER, "steps", 8), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    until_done(page)
    assert "Are the two swapped?" in text_of(page, ".srd-notes")


@pytest.mark.parametrize(
    ("reason", "switch", "sentence"),
    [
        ("earliest", {"fix_step": 5}, "the composition had settled before fix_step 5 allowed it"),
        ("latest", {"max_step": 2}, "max_step is 2"),
        ("latest", {"max_step": 0, "switch_sigma": 0.875}, "below switch_sigma 0.875"),
        ("latest", {"max_step": 0, "switch_sigma": 0.2}, "latest step"),
        ("step", {}, "switch_step is 2"),
        ("sigma", {"switch_sigma": 0.875}, "below switch_sigma 0.875"),
        ("another", {}, "another"),
    ],
)
def test_every_reason_of_a_hand_over_has_its_sentence(
    reason: str, switch: dict[str, Any], sentence: str, page: Any
) -> None:
    report = a_report("Big", "Small")
    report.hand_overs[0].reason, report.switch = reason, {"mode": "adaptive", "delta": 0.01, "switch_step": 2} | switch
    open_saved(page, json.loads(report.to_json()))
    until_done(page)
    assert detail(page) == f"Switched at step 2 of 4 (50 %): {sentence}."


@pytest.mark.parametrize("name", RENDERERS)
def test_the_folded_chart_is_a_line_that_is_not_cut_and_the_panel_lists_none(
    name: str, page: Any, artefacts: Path
) -> None:
    renderer(page, name)
    workflow = json.loads(DEMO.read_text("utf-8"))
    workflow["extra"] = {"srdiffusion": {str(SAMPLER): json.loads(a_report("Big", "Small").to_json())}}
    page.evaluate(OPEN, workflow)
    page.evaluate(
        """node => {
      node = app.graph.getNodeById(node);
      node.setSize([LiteGraph.createNode('SRSampler').size[0], 900]);  // as wide as a new one, and higher than it needs to be
    }""",
        SAMPLER,
    )
    until_done(page, SAMPLER)
    look_at(page)
    page.wait_for_timeout(600)
    chart, toggle = page.evaluate(f"""() => {{
      const chart = {ELEMENT % SAMPLER}, line = chart.querySelector('.srd-toggle');
      return [chart.getBoundingClientRect().height / app.canvas.ds.scale, [line.scrollWidth, line.clientWidth]];
    }}""")
    page.screenshot(path=artefacts / f"folded_{name}.png")
    assert 20 < chart < 36 and toggle[0] <= toggle[1]
    assert page.evaluate(
        f"app.graph.getNodeById({SAMPLER}).widgets.find(w => w.name === 'srd_chart').options.hideInPanel"
    )
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_run_of_three_stages_has_a_colour_and_a_line_for_each(name: str, page: Any, artefacts: Path) -> None:
    renderer(page, name)
    open_saved(page, json.loads(three_stages().to_json()))
    assert until_done(page).startswith("1.4x, switched at 9, 18 of 30, ")
    assert detail(page).startswith(
        "Switched to low at step 9 of 30 (30 %): the composition settled. Switched to small at step 18 of"
    )
    assert (
        [count(page, bars) for bars in BARS] == [9, 9, 12, 0]
        and count(page, ".srd-key") == 3
        and count(page, ".srd-mark") == 2
    )
    tones = page.evaluate(
        f"[...({ELEMENT % INSPECTOR}).querySelectorAll('.srd-bar')].map(bar => getComputedStyle(bar).fill)"
    )
    assert len(set(tones)) == 3
    assert text_of(page, ".srd-outcome").endswith("(criterion)")  # seconds of another hand-over are not known
    page.evaluate(f"({ELEMENT % SAMPLER}).querySelector('.srd-toggle').click()")
    for theme in ("light", "dark"):
        page.evaluate("theme => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', theme)", theme)
        look_at(page)
        page.wait_for_timeout(600)
        page.screenshot(path=artefacts / f"three_{name}_{theme}.png")
    renderer(page, "classic")


@pytest.mark.parametrize("name", RENDERERS)
def test_every_word_of_the_chart_is_readable_in_every_palette(name: str, page: Any) -> None:
    renderer(page, name)
    for report in (three_stages(), a_report("Big", "Small", "it broke")):
        open_saved(page, json.loads(report.to_json()))
        page.wait_for_function(f"!!({ELEMENT % INSPECTOR}).querySelector('.srd-bar')")
        for palette in PALETTES:
            page.evaluate("theme => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', theme)", palette)
            lowest, words = page.evaluate(f"({CONTRAST})({ELEMENT % INSPECTOR})")
            assert lowest >= 7, (palette, words)
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'dark')")
    renderer(page, "classic")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"status": "<img src=x onerror='window.hacked = 1'>"}, "not a sketch-render report"),
        ("text", "not a sketch-render report"),
        (
            {"version": 2, "status": "done", "sigmas": "<img src=x onerror='window.hacked = 1'>"},
            'damaged: sigmas is "<img src=x',
        ),
    ],
)
def test_a_foreign_report_in_a_workflow_gets_a_sentence_and_is_never_html(report: Any, words: str, page: Any) -> None:
    open_saved(page, report)
    page.wait_for_function(f"words => ({ELEMENT % INSPECTOR}).textContent.includes(words)", arg=words)
    assert count(page, "img") == 0 and page.evaluate("window.hacked") is None


def test_an_old_report_is_shown_from_its_text_and_a_malformed_one_gets_a_sentence(page: Any, server: Any) -> None:
    good = a_report("<b>Sketcher</b>", "<img src=x onerror='window.hacked = 1'>", "<i>failed</i>")
    for text, words in ((good.to_json(), "<i>failed</i>"), ("no JSON", "This is not a report")):
        page.evaluate(OPEN, {"nodes": [], "links": [], "version": 0.4})
        inspector = page.evaluate(
            """text => {
              const source = LiteGraph.createNode('PrimitiveStringMultiline'), node = LiteGraph.createNode('SRSwitchInspector');
              app.graph.add(source); app.graph.add(node);
              source.widgets[0].value = text;
              source.connect(0, node, node.inputs.findIndex(input => input.name === 'report_json'));
              return Number(node.id);
            }""",
            text,
        )
        queue(page)
        page.wait_for_function(f"words => ({ELEMENT % inspector}).textContent.includes(words)", arg=words)
        until_idle(server)
        assert count(page, "b, img, i", inspector) == 0 and page.evaluate("window.hacked") is None


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
    report, stage, steps = report_module.Report(), report_module.StageReport, 30
    cache = {"table": "Wan 2.1 t2v 1.3B", "threshold": 0.14, "reuse": [i % 3 == 2 for i in range(12)], "first_step": 18}
    report.begin(
        stages=[
            stage("high", "Wan 2.2 high noise", 9, 27.0),
            stage("low", "Wan 2.2 low noise", 9, 27.0),
            stage("small", "Wan 2.1 1.3B", 12, 8.8, teacache=cache),
        ],
        switch={
            "mode": "adaptive",
            "delta": 0.01,
            "fix_step": 5,
            "max_step": 0,
            "switch_step": 18,
            "switch_sigma": 0.875,
        },
        earliest=4,
        latest=12,
        sigmas=[1 - i / steps for i in range(steps + 1)],
    )
    for i in range(steps):
        name = "high" if i < 9 else "low" if i < 18 else "small"
        reused = name == "small" and cache["reuse"][i - 18]
        d, fall = (0.6 / (i + 1), 0.3 / (i + 1) ** 1.6) if 1 < i < 18 else (None, None)
        seconds = 0.1 if reused else 1.0 if name == "small" else 3.0
        report.steps.append(report_module.Step(i + 1, report.sigmas[i], name, seconds, d, fall, fall, reused))
    report.hand_overs = [
        report_module.HandOver(9, "low", "criterion", 0.7, 30.0, 0.07, 0.0089),
        report_module.HandOver(18, "small", "step", 0.4, 60.0),
    ]
    report.notes = ["The render is larger than the sketch. Are the two swapped?"]
    report.status = "done"
    return report
