"""The live Switch Inspector in the host's own page: a real server, a real browser, the tiny family.

Screenshots are kept in the folder that SRD_ARTEFACTS names, or in pytest's own.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import REPOSITORY, host_module, load_by_path, module

page_module = load_by_path("srd_page", REPOSITORY / "demo" / "page.py")
criterion = module("srd_core.route")
report_module = module("srd_core.report.data")
teacache = module("srd_core.teacache.plan")
cost = load_by_path("srd_cost", REPOSITORY / "bench" / "cost.py")

DEMO = REPOSITORY / "workflows" / "demo.json"
FIRST_RELEASE = Path(__file__).parent / "data" / "workflow_first_release.json"
SAMPLER, INSPECTOR = 8, 12  # node ids in the demo's workflow
RULE = "/extensions/ComfyUI-SRDiffusion/rule.js"
RENDERERS = {"classic": False, "vue": True}
# What the page itself says of a server that is off the network and has no saved workflows yet.
ITS_OWN = ("Failed to load resource", "Content Security Policy", "Fetch API cannot load", "graph accessed before")

OPEN = "async (saved) => { await app.loadGraphData(saved); }"
DROP = """([text, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([text], name, {type: 'application/json'}));
  const options = {dataTransfer: files, bubbles: true, cancelable: true, clientX: 640, clientY: 420};
  const target = document.querySelector('#graph-canvas');
  for (const kind of ['dragenter', 'dragover', 'drop']) target.dispatchEvent(new DragEvent(kind, options));
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
    if (/^(Sketch|Render|Done)/.test(chart.querySelector('.srd-status').textContent) && window.bars.at(-1) !== 50)
      window.bars.push(chart.querySelectorAll('.srd-sketch, .srd-render').length);
  }}).observe(chart.querySelector('svg'), {{childList: true}});
}}"""
TWIN = """() => {
  const first = app.graph.getNodeById(8), twin = LiteGraph.createNode('SRSampler');
  app.graph.add(twin);
  first.widgets.forEach((widget, i) => { if (widget.name !== 'srd_chart') twin.widgets[i].value = widget.value });
  first.inputs.forEach((input, slot) => {
    const link = input.link === null ? null : app.graph.getLink?.(input.link) ?? app.graph.links.get(input.link);
    if (link) app.graph.getNodeById(link.origin_id).connect(link.origin_slot, twin, slot);
  });
  const inspector = LiteGraph.createNode('SRSwitchInspector');
  app.graph.add(inspector);
  twin.connect(1, inspector, 0);
  return [Number(twin.id), Number(inspector.id)];
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    base = tmp_path_factory.mktemp("base")
    page_module.settings(base)
    with host_module.serve(
        host_module.find_or_make(os.environ.get("SRD_HOST_VERSION")), base, host_module.DEMO_PACKS, host_module.tiny_family()
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = page_module.launch(playwright)
        yield browser
        browser.close()


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
    noted = {"console": lambda m: m.type == "error" and errors.append(m.text), "pageerror": lambda e: errors.append(str(e))}
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
        f"start => ({element}).querySelector('.srd-status').textContent.startsWith(start)", arg=start, timeout=1000 * seconds
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


def reports(server: Any) -> list[dict[str, Any]]:
    """The Inspectors' reports of all runs in the server's history, by node id; oldest first."""
    entries = sorted(server.get("/history").values(), key=lambda entry: entry["prompt"][0])
    return [
        {node: json.loads(out["report"][0]) for node, out in entry["outputs"].items() if "report" in out} for entry in entries
    ]


def renderer(page: Any, name: str) -> None:
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", RENDERERS[name])
    page.wait_for_timeout(500)


# --- a run, as an artist sees it ------------------------------------------------------------------------------------------


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
    until(page, "Done")
    until_idle(server)
    grown = page.evaluate("window.bars")
    assert grown == sorted(grown) and len(set(grown)) > 4 and grown[0] < 25
    report = reports(server)[-1][str(INSPECTOR)]
    (hand_over,) = report["hand_overs"]
    assert report["switch"]["delta"] == 0.03 and hand_over["reason"] == "criterion"
    marked = page.evaluate(f"({ELEMENT % INSPECTOR}).querySelector('.srd-mark').dataset.after")
    assert int(marked) == hand_over["after_step"] == count(page, ".srd-sketch")
    assert "over the sketch alone" in status(page) and status(page, SAMPLER) == status(page)
    label = page.evaluate(f"({ELEMENT % INSPECTOR}).querySelector('svg[role=img]').ariaLabel")
    assert f"after step {marked} of 50" in label
    page.wait_for_function("!!document.querySelector('video')")
    page.evaluate(f"({ELEMENT % SAMPLER}).querySelector('.srd-toggle').click()")
    page.wait_for_function(f"({ELEMENT % SAMPLER}).querySelectorAll('.srd-render').length > 10")
    for theme in ("dark", "light"):
        page.evaluate("theme => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', theme)", theme)
        for scale in (0.8, 0.6):
            look_at(page, scale)
            page.wait_for_timeout(400)
            page.screenshot(path=artefacts / f"{name}_{theme}_{scale * 100:.0f}.png")
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'dark')")
    renderer(page, "classic")


def test_a_reload_in_mid_run_and_a_second_tab_show_the_run_that_goes_on(page: Any, server: Any, browser: Any) -> None:
    queue(
        page, (SAMPLER, "switch_mode", "step"), (SAMPLER, "switch_step", 5000), (SAMPLER, "steps", 5000),
        (SAMPLER, "seed", random.randrange(1 << 30)),
    )  # fmt: skip
    until(page, "Sketching")
    before = count(page, ".srd-sketch")
    page.reload()
    page.wait_for_function(page_module.READY, timeout=120_000)
    page.wait_for_function(f"{CHART}.length >= 2")
    page.wait_for_function(f"({ELEMENT % INSPECTOR}).querySelectorAll('.srd-sketch').length > {before}")
    second = page_module.open_page(browser, server.url)
    show(second, DEMO)
    until(second, "Sketching")
    seen = count(second, ".srd-sketch")
    second.wait_for_function(f"({ELEMENT % INSPECTOR}).querySelectorAll('.srd-sketch').length > {seen}")
    second.evaluate("fetch('/interrupt', {method: 'POST'})")
    assert until(second, "Interrupted after step") == until(page, "Interrupted after step")
    second.close()


def test_an_interrupt_in_either_stage_is_said_and_the_next_run_starts_clean(page: Any, server: Any) -> None:
    for mode, stage in (("adaptive", "Sketching"), ("step", "Rendering")):
        queue(
            page, (SAMPLER, "switch_mode", mode), (SAMPLER, "switch_step", 2), (SAMPLER, "steps", 400),
            (SAMPLER, "seed", random.randrange(1 << 30)),
        )  # fmt: skip
        until(page, stage)
        page.evaluate("fetch('/interrupt', {method: 'POST'})")
        assert "of 400" in until(page, "Interrupted after step")
        until_idle(server)
    queue(page, (SAMPLER, "steps", 12))
    assert until(page, "Done").startswith("Done: 12 steps")
    assert count(page, ".srd-sketch") == 2 and count(page, ".srd-render") == 10


def test_two_samplers_and_two_queued_runs_never_mix(page: Any, server: Any) -> None:
    twin, inspector = page.evaluate(TWIN)
    page.evaluate("""() => {
      window.seen = [];
      app.api.addEventListener('srdiffusion.run', ({detail: {prompt_id, node_id, nodes, report}}) =>
        window.seen.push([prompt_id, node_id, nodes.join(), report.switch?.switch_step]));
    }""")
    runs = [{SAMPLER: 3, twin: 5}, {SAMPLER: 7, twin: 9}]
    for run in runs:
        values = [(node, name, value) for node, step in run.items()
                  for name, value in (("switch_mode", "step"), ("switch_step", step), ("steps", 14))]  # fmt: skip
        queue(page, *values)
    page.wait_for_function("window.seen.length > 40")
    until_idle(server)
    told = {(prompt, node, nodes, step) for prompt, node, nodes, step in page.evaluate("window.seen")}
    samplers = [entry for entry in told if entry[1] in (str(SAMPLER), str(twin))]
    assert {nodes for _, _, nodes, _ in samplers} == {f"{SAMPLER},{INSPECTOR}", f"{twin},{inspector}"}
    assert sorted(step for *_, step in samplers) == [3, 5, 7, 9]  # one setting a sampler and prompt
    for node, viewer in ((SAMPLER, INSPECTOR), (twin, inspector)):
        until(page, "Done", viewer)
        assert f"after step {runs[-1][node]} of 14" in text_of(page, ".srd-detail", viewer)
    for run, shown in zip(runs, reports(server)[-2:]):
        for node, viewer in ((SAMPLER, INSPECTOR), (twin, inspector)):
            assert shown[str(viewer)]["hand_overs"][0]["after_step"] == run[node]


# --- after the run --------------------------------------------------------------------------------------------------------


def test_what_if_tells_another_delta_s_hand_over_and_use_this_delta_writes_it_to_the_sampler(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    queue(page, (SAMPLER, "delta", 0.01), (SAMPLER, "seed", random.randrange(1 << 30)))
    until(page, "Sketching")
    until(page, "Done")
    slide = f"""(place) => {{
      const slider = ({ELEMENT % INSPECTOR}).querySelector('input[type=range]');
      slider.value = place; slider.dispatchEvent(new Event('input'));
    }}"""
    page.evaluate(slide, -1)
    outcome = text_of(page, ".srd-outcome")
    assert outcome.startswith("delta 0.1: after step ") and outcome.endswith(" s")
    page.evaluate(f"[...({ELEMENT % INSPECTOR}).querySelectorAll('button')].find(b => b.textContent === 'use this delta').click()")
    assert page.evaluate(VALUE, [SAMPLER, "delta"]) == 0.1
    page.evaluate(f"[...({ELEMENT % INSPECTOR}).querySelectorAll('button')].find(b => b.textContent === 'copy report').click()")
    page.wait_for_timeout(300)
    copied = report_module.Report.from_json(page.evaluate("navigator.clipboard.readText()"))
    assert copied.status == "done" and len(copied.steps) == 50
    predicted = int(outcome.split("after step ")[1].split()[0])
    queue(page)
    until(page, "Sketching")
    until(page, "Done")
    assert f"after step {predicted} of 50" in text_of(page, ".srd-detail")


def test_the_page_s_rule_is_the_pack_s_rule_on_any_curve(page: Any) -> None:
    rng = random.Random(0)
    cases, expected = [], []
    for _ in range(400):
        steps, batch, delta = rng.choice((4, 8, 20, 50, 75)), rng.choice((1, 1, 3)), rng.choice((0.001, 0.01, 0.03, 0.2))
        switch = criterion.Switch("adaptive", delta, rng.randrange(10), rng.choice((0, 0, 6, 30)))
        spread = 4 * switch.delta_for(steps)
        curve = [[rng.uniform(-spread, spread) for _ in range(batch)] for _ in range(steps)]
        cases.append([recorded(switch, curve), delta])
        expected.append(decided(switch, curve))
    found = page.evaluate(f"async cases => {{ const rule = await import('{RULE}'); return cases.map(c => rule.handOverFor(...c)) }}", cases)
    assert found == expected
    assert {entry and entry["reason"] for entry in expected} == {None, "criterion", "max_step"}


def recorded(switch: Any, curve: list[list[float]]) -> dict[str, Any]:
    """What a report of a run holds that the sketch ran alone, with this fall of D (a list for the batch) at every step."""
    steps = [
        {"step": i + 1, "stage": "sketch", "derivative": None if i < 2 else max(fall), "derivative_low": None if i < 2 else min(fall)}
        for i, fall in enumerate(curve)
    ]
    n = len(curve)
    return {"sigmas": [0.0] * (n + 1), "steps": steps, "delta": switch.delta_for(n), "fix_step": switch.fix_step_for(n),
            "limit": switch.limit_for(n)}  # fmt: skip


def decided(switch: Any, curve: list[list[float]]) -> dict[str, Any] | None:
    """Where the pack's own rule hands over on that curve."""
    rule = criterion.Route(switch, len(curve))
    for i in range(1, len(curve)):
        rule.derivative = None if i < 3 else curve[i - 1]
        stage, reason = rule.stage(i, 0.5)
        if stage == criterion.RENDER:
            return {"after": i, "reason": reason}
    return None


def test_the_page_s_seconds_of_another_hand_over_are_those_of_the_pack_s_plan_and_cost_model(page: Any) -> None:
    rng = random.Random(0)
    cases = [a_cached_run(rng) for _ in range(300)]
    found = page.evaluate(f"async cases => {{ const rule = await import('{RULE}'); return cases.map(c => rule.costOf(...c)) }}", cases)
    expected = [modelled_seconds(*case) for case in cases]
    assert [seconds is None for seconds in found] == [seconds is None for seconds in expected]
    assert [seconds or 0 for seconds in found] == pytest.approx([seconds or 0 for seconds in expected])
    assert None in found and len(set(found)) > 200


def a_cached_run(rng: random.Random) -> tuple[dict[str, Any], int]:
    """A report of a run with both stages, TeaCache on one, both or none of them, and another hand-over to ask for. In some
    runs nothing was reused, as planned or against the plan."""
    steps, reuses, kept = rng.choice((4, 8, 20, 50)), rng.random() < 0.8, rng.random() < 0.8
    after = rng.randrange(1, steps)
    told = [
        {"step": i + 1, "stage": "sketch" if i < after else "render", "reused": reuses and i % 3 == 2, "seconds": rng.uniform(0.1, 1)}
        for i in range(steps)
    ]
    growth = [0.0, *(rng.choice((0.0, rng.uniform(0, 0.1))) for _ in range(steps - 1))]
    plan = {"threshold": rng.choice((0.05, 0.14, 5.0)), "form": rng.choice(("e", "e0")), "growth": growth}
    caches: dict[str, Any] = {
        stage: plan | {"table": "of a test", "first_step": 0, "reuse": [kept == step["reused"] for step in told]}
        for stage in ("sketch", "render")
        if rng.random() < 0.7
    }
    return {"sigmas": [0.0] * (steps + 1), "steps": told, "teacache": caches}, rng.randrange(1, steps)


def modelled_seconds(report: dict[str, Any], after: int) -> float | None:
    """What bench/cost.py says of the plan that srd_core/teacache.py makes for that hand-over; None: nobody knows."""
    steps = len(report["steps"])

    def of(stage: str) -> list[dict[str, Any]]:
        return [step for step in report["steps"] if step["stage"] == stage]

    def followed(stage: str) -> bool:
        plan = report["teacache"].get(stage, {}).get("reuse")
        return not plan or all(step["reused"] or not plan[step["step"] - 1] for step in of(stage))

    def reused(stage: str, first: int, end: int) -> int:
        if stage not in report["teacache"] or not followed(stage):
            return 0
        plan = report["teacache"][stage]
        computed_first = max(teacache.RET_STEPS - first, 1) if plan["form"] == "e0" else 1
        return sum(teacache.skip_plan(plan["growth"][first + 1 :], (1.0, 0.0), plan["threshold"], computed_first)[: end - first])

    def seconds(stage: str, reused: bool) -> float | None:
        chosen = [step["seconds"] for step in of(stage) if reused == step["reused"] or not (followed(stage) or reused)]
        return sum(chosen) / len(chosen) if chosen else None if reused else seconds(stage, True)

    plan = cost.Plan(steps, after, reused("sketch", 0, after), reused("render", after, steps))
    sketch, render = ((seconds(stage, False), seconds(stage, True)) for stage in ("sketch", "render"))
    if (plan.sketch_reused and sketch[1] is None) or (plan.render_reused and render[1] is None):
        return None
    return cost.run_seconds(plan, cost.StepSeconds(sketch[0], render[0], sketch[1] or 0, render[1] or 0))


# --- workflows and old reports --------------------------------------------------------------------------------------------


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
            assert (node.get("widgets_values") or []) == (shipped[int(node["id"])].get("widgets_values") or [])


def test_a_video_s_workflow_opens_with_the_chart_of_its_run_and_stays_as_it_was(page: Any) -> None:
    workflow = json.loads(DEMO.read_text("utf-8"))
    workflow["extra"] = {"srdiffusion": {str(SAMPLER): json.loads(a_report("Sketcher", "Renderer").to_json())}}
    page.evaluate(OPEN, workflow)
    assert "after step 2 of 4" in page.evaluate(f"({ELEMENT % SAMPLER}).querySelector('.srd-detail').textContent")
    until(page, "Done: 4 steps")
    assert "srdiffusion" not in page.evaluate("app.graph.serialize().extra ?? {}")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"status": "<img src=x onerror='window.hacked = 1'>"}, "not one of this pack"),
        ("text", "not one of this pack"),
        ({"status": "unreadable", "error": "<img src=x onerror='window.hacked = 1'>"}, "<img src=x"),
    ],
)
def test_a_foreign_report_in_a_workflow_gets_a_sentence_and_is_never_html(report: Any, words: str, page: Any) -> None:
    workflow = json.loads(DEMO.read_text("utf-8"))
    workflow["extra"] = {"srdiffusion": {str(SAMPLER): report}}
    page.evaluate(OPEN, workflow)
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
    report = report_module.Report()
    report.begin(sketch=sketch, render=render, switch={"mode": "step", "switch_step": 2}, sigmas=[1.0, 0.7, 0.4, 0.2, 0.0])
    report.hand_overs.append(report_module.HandOver(2, "render", "step", 0.4, 50.0))
    report.steps = [report_module.Step(i + 1, 1.0, "render" if i > 1 else "sketch", 1.0) for i in range(4)]
    report.calls, report.seconds = {"sketch": 2, "render": 2}, {"sketch": 2.0, "render": 2.0}
    report.status, report.error = ("failed", error) if error else ("done", "")
    return report
