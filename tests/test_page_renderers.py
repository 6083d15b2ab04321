"""What the page draws, in its classic renderer and in Nodes 2.0 (Vue)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pages
import pytest
from hosting import module


def draw_with(page: Any, name: str) -> None:
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", pages.RENDERERS[name])
    page.wait_for_timeout(500)


@pytest.fixture(scope="module", params=pages.RENDERERS, autouse=True)
def renderer(request: pytest.FixtureRequest, opened: Any) -> Iterator[str]:
    """The page's renderer; the server remembers it, so it is the classic one again afterwards."""
    draw_with(opened, request.param)
    yield request.param
    draw_with(opened, "classic")


DROP = """([text, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([text], name, {type: 'application/json'}));
  const options = {dataTransfer: files, bubbles: true, cancelable: true, clientX: 640, clientY: 420};
  const target = document.querySelector('#graph-canvas');
  for (const kind of ['dragenter', 'dragover', 'drop']) target.dispatchEvent(new DragEvent(kind, options));
}"""
# Note how many bars the Inspector's chart has whenever it is drawn, from now on.
WATCH = f"""() => {{
  const chart = {pages.ELEMENT % pages.INSPECTOR};
  window.bars = [];
  new MutationObserver(() => {{
    if (/running|done/.test(chart.querySelector('.srd-status').dataset.status) && window.bars.at(-1) !== 50)
      window.bars.push(chart.querySelectorAll('.srd-bar').length);
  }}).observe(chart.querySelector('svg'), {{childList: true}});
}}"""
PALETTES = ("dark", "light", "solarized", "arc", "nord", "github")
IN_A_MODE = {
    "adaptive": ["delta", "fix_step", "max_step", "switch_sigma"],
    "step": ["switch_step"],
    "sigma": ["switch_sigma"],
}


CLASSIC = """id => {
  const node = app.graph.getNodeById(id), linked = name => node.inputs.some(i => i.name === name && i.link);
  const shown = w => node.isWidgetVisible(w) || linked(w.name);  // newer pages show a linked one's slot
  return node.widgets.filter(w => !w.options.hidden && shown(w)).map(w => w.name);
}"""
VUE = "id => document.querySelector(`[data-node-id='${id}']`).innerText.split(/\\s+/)"


def until_in_view(page: Any, renderer: str, wanted: dict[str, bool]) -> None:
    """Wait until those of these widgets of SR Sampler are seen that should be; Nodes 2.0 folds "advanced" ones away."""

    def found() -> dict[str, bool]:
        shown = page.evaluate(CLASSIC if renderer == "classic" else VUE, pages.SAMPLER)
        return {name: name in shown for name in wanted}

    pages.eventually(page, found, wanted)


def words_in(page: Any) -> list[str]:
    """The words in the Inspector's picture."""
    texts = f"({pages.ELEMENT % pages.INSPECTOR}).querySelectorAll('svg text')"
    return page.evaluate(f"[...{texts}].map(text => text.textContent)")


def test_a_dropped_workflow_runs_and_its_chart_grows_step_by_step(renderer: str, page: Any, server: Any) -> None:
    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, [pages.DEMO.read_text("utf-8"), "demo.json"])
    page.wait_for_function(f"{pages.CHART}.length >= 2")
    pages.look_at(page)
    assert page.evaluate("app.graph._nodes.every(node => LiteGraph.registered_node_types[node.type])")
    page.evaluate(WATCH)
    pages.queue(page, (pages.SAMPLER, "delta", 0.03), (pages.SAMPLER, "seed", random.randrange(1 << 30)))
    page.wait_for_function("window.bars.includes(50)", timeout=120_000)
    pages.until_done(page)
    pages.until_idle(server)
    grown = page.evaluate("window.bars")
    assert grown == sorted(grown) and len(set(grown)) > 4 and grown[0] < 25
    report = pages.reports(server)[-1][str(pages.INSPECTOR)]
    (hand_over,) = report["hand_overs"]
    assert report["switch"]["delta"] == 0.03 and hand_over["reason"] in ("criterion", "earliest")
    marked = page.evaluate(f"({pages.ELEMENT % pages.INSPECTOR}).querySelector('.srd-mark').dataset.after")
    assert int(marked) == hand_over["after_step"]
    pages.until_bars(page, int(marked), 50 - int(marked), 0, 0)
    after = hand_over["after_step"]
    assert re.fullmatch(rf"\d\.\d+x( \(slower\))?, switched at {after} of 50, [\d.]+ s", pages.status(page))
    assert pages.status(page, pages.SAMPLER) == pages.status(page)
    assert "the sketch alone (estimated)" in pages.hover(page) and "50 steps in " in pages.hover(page)
    label = page.evaluate(f"({pages.ELEMENT % pages.INSPECTOR}).querySelector('svg[role=img]').ariaLabel")
    assert f"at step {marked} of 50" in label
    assert {"D: change of the prediction", "fall of D", "seconds of each step", "step", "50"} <= set(words_in(page))
    page.wait_for_function("!!document.querySelector('video')")
    unfold(page)
    page.wait_for_function(f"({pages.ELEMENT % pages.SAMPLER}).querySelectorAll('{pages.BARS[1]}').length > 10")


def test_a_mode_shows_its_own_widgets_and_the_workflow_keeps_all_values(renderer: str, page: Any) -> None:
    behind = {"max_step", "switch_sigma"} if renderer == "vue" else set()  # in adaptive "advanced"
    values = page.evaluate(f"app.graph.getNodeById({pages.SAMPLER}).serialize().widgets_values")
    shipped = next(n for n in json.loads(pages.DEMO.read_text("utf-8"))["nodes"] if n["id"] == pages.SAMPLER)[
        "widgets_values"
    ]
    assert values[: len(shipped)] == shipped  # newer widgets come last
    for mode in ("adaptive", "step", "sigma", "adaptive"):
        pages.choose(page, switch_mode=mode)
        wanted = set(IN_A_MODE[mode]) - (behind if mode == "adaptive" else set())
        every = {widget: widget in wanted for widgets in IN_A_MODE.values() for widget in widgets}
        until_in_view(page, renderer, every | {"steps": True, "cfg": True})
        saved = page.evaluate(f"app.graph.getNodeById({pages.SAMPLER}).serialize().widgets_values")
        assert saved == [mode if value == "adaptive" else value for value in values]
    queued = page.evaluate("app.graphToPrompt().then(({output}) => output)")[str(pages.SAMPLER)]["inputs"]
    assert {*IN_A_MODE["adaptive"], "switch_step", "offload_sketch"} <= set(queued)


def test_a_widget_that_a_link_sets_stays_in_view(renderer: str, page: Any) -> None:
    until_in_view(page, renderer, {"switch_step": False, "steps": True})
    pages.connect(page, "switch_step", "PrimitiveInt")
    until_in_view(page, renderer, {"switch_step": True})
    pages.reopened(page)
    until_in_view(page, renderer, {"switch_step": True})
    pages.disconnect(page, "switch_step")
    until_in_view(page, renderer, {"switch_step": False, "steps": True})


def test_a_line_says_what_the_settings_mean_and_is_amber_where_they_contradict(renderer: str, page: Any) -> None:
    assert not pages.plan_of(page, "50 steps: earliest 6, latest 16 (sigma 0.81)")
    pages.choose(page, steps=20)
    assert not pages.plan_of(page, "20 steps: earliest 3, latest 7 (sigma ")
    pages.choose(page, switch_mode="step", switch_step=60)
    assert pages.plan_of(page, "switch_step is 60, but the run has 20 steps")
    lowest, words = page.evaluate(f"({pages.CONTRAST})({pages.PLAN % pages.SAMPLER})")
    assert lowest >= 7, words
    pages.choose(page, switch_step=4)
    assert not pages.plan_of(page, "20 steps: sketch 4, render 16")
    pages.choose(page, switch_mode="adaptive")
    pages.choose(page, pages.SHIFT, shift=8)
    page.evaluate(pages.LOOK)
    pages.plan_of(page, "20 steps: earliest 7, latest 13 (sigma ")
    page.evaluate(f"app.graph.getNodeById({pages.SAMPLER}).disconnectInput(0)")
    pages.plan_of(page, "switches once the composition has settled")


def on_screen(page: Any, selector: str) -> list[str]:
    """What the elements say that are in the page, whatever the nodes hold."""
    return page.evaluate("selector => [...document.querySelectorAll(selector)].map(e => e.textContent)", selector)


UNDO = "app.extensionManager.command.execute('Comfy.Undo')"


def undos(page: Any) -> int:
    """How many changes can be undone, once the page has looked. Newer pages join the changes of 50 ms after a look."""
    page.evaluate(pages.LOOK)
    page.wait_for_timeout(100)
    return page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length")


def saved_sampler(page: Any) -> dict[str, Any]:
    return page.evaluate("id => app.graph.getNodeById(id).serialize()", pages.SAMPLER)


@pytest.mark.parametrize("times", [1, 2])
def test_after_an_undo_what_is_on_screen_is_of_the_new_nodes(times: int, renderer: str, page: Any) -> None:
    for steps in (20, 30):
        pages.choose(page, steps=steps)
        pages.until_values(page, steps=steps)
        undos(page)
    for _ in range(times):
        page.evaluate(UNDO)
    pages.until_values(page, steps=(20, 50)[times - 1])
    pages.choose(page, switch_mode="step", switch_step=4, steps=6, seed=random.randrange(1 << 30))
    pages.eventually(page, lambda: on_screen(page, ".srd-plan"), ["6 steps: sketch 4, render 2"])
    ran = pages.run(page)
    pages.eventually(page, lambda: on_screen(page, ".srd-status"), [ran, ran])


@pytest.fixture
def few_nodes(renderer: str, page: Any) -> None:
    """The page has made the demo's nodes as high as this renderer needs them."""
    pages.reopened(page)
    pages.plan_of(page, "50 steps: earliest 6")
    page.wait_for_function("document.querySelector('.srd-plan')?.offsetHeight > 0")
    page.wait_for_timeout(500)
    undos(page)


# By what changes: how the user does that, and how the line under the settings begins then.
CHANGES = {
    "preset": (lambda page: page.evaluate(pages.CLICKED, [pages.SAMPLER, "preset", "fast"]), "20 steps: "),
    "mode": (lambda page: page.evaluate(pages.CLICKED, [pages.SAMPLER, "switch_mode", "step"]), "50 steps: sketch"),
    "long line": (lambda page: page.evaluate(pages.CLICKED, [pages.SAMPLER, "sketch_steps", "1-9, x"]), "sketch_steps"),
    "narrow": (lambda page: widen(page, 250), "50 steps: earliest"),
    "open chart": (lambda page: (unfold(page), pages.choose(page, steps=40)), "40 steps: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_undo_takes_back_one_change_and_leaves_nothing_more(change: str, few_nodes: None, page: Any) -> None:
    before, there = saved_sampler(page), undos(page)
    act, line = CHANGES[change]
    act(page)
    page.evaluate(pages.LOOK)
    pages.plan_of(page, line)
    page.wait_for_timeout(300)  # for what would come after it
    assert undos(page) == there + 1
    page.evaluate(UNDO)
    pages.eventually(page, lambda: saved_sampler(page), before)
    pages.plan_of(page, "50 steps: earliest 6")
    page.wait_for_timeout(300)
    assert undos(page) == there and saved_sampler(page) == before


def test_a_run_and_a_chart_that_opens_leave_nothing_to_undo(few_nodes: None, page: Any) -> None:
    page.evaluate(pages.WIDGETS, [[pages.SAMPLER, "steps", 6], [pages.SAMPLER, "seed", random.randrange(1 << 30)]])
    there = undos(page)
    unfold(page)
    pages.run(page)
    assert undos(page) == there


PRESETS = module("nodes.presets").PRESETS


def test_a_preset_writes_its_widgets_and_changing_one_makes_it_custom(renderer: str, page: Any) -> None:
    before = pages.shown_values(page)
    assert before["preset"] == "custom"
    until_in_view(page, renderer, {"preset": True})
    for preset, table in PRESETS.items():
        page.evaluate(pages.CLICKED, [pages.SAMPLER, "preset", preset])
        pages.until_values(page, **table, preset=preset)
        now = pages.shown_values(page)
        assert now["cfg"] == before["cfg"] and now["seed"] == before["seed"]
        queued = page.evaluate(pages.QUEUED)[str(pages.SAMPLER)]["inputs"]
        assert {key: queued[key] for key in table} == table
        assert queued["preset"] == "custom"  # its values are in the widgets
        assert preset in page.evaluate(f"app.graph.getNodeById({pages.SAMPLER}).serialize().widgets_values")
    assert not pages.plan_of(page, "50 steps: sketch 10, render 4")
    page.evaluate(pages.CLICKED, [pages.SAMPLER, "cfg", 2.5])
    assert pages.shown_values(page)["preset"] == "few-step render"  # cfg belongs to none
    page.evaluate(pages.CLICKED, [pages.SAMPLER, "fade", 0.5])
    pages.until_values(page, preset="custom", render_steps=4)
    page.evaluate(pages.CLICKED, [pages.SAMPLER, "preset", "balanced"])
    saved = pages.reopened(page)
    assert pages.shown_values(page)["preset"] == "balanced" and pages.shown_values(page)["steps"] == 20
    (node,) = (node for node in saved["nodes"] if node["id"] == pages.SAMPLER)
    values = node["widgets_values"]
    values[values.index(1.1)] = 0.7  # a file whose values are not its preset's runs as it is shown
    page.evaluate(pages.OPEN, saved)
    pages.until_values(page, fade=0.7, preset="custom")


def test_the_folded_chart_is_a_line_that_is_not_cut_and_the_panel_lists_none(renderer: str, page: Any) -> None:
    pages.open_saved(page, json.loads(pages.a_report("Big", "Small").to_json()))
    page.evaluate(  # as wide as a new one, and higher than it needs to be
        "id => app.graph.getNodeById(id).setSize([LiteGraph.createNode('SRSampler').size[0], 900])", pages.SAMPLER
    )
    pages.until_done(page, pages.SAMPLER)
    pages.look_at(page)
    page.wait_for_timeout(600)
    chart, toggle = page.evaluate(f"""() => {{
      const chart = {pages.ELEMENT % pages.SAMPLER}, line = chart.querySelector('.srd-toggle');
      return [chart.getBoundingClientRect().height / app.canvas.ds.scale, [line.scrollWidth, line.clientWidth]];
    }}""")
    assert 20 < chart < 36 and toggle[0] <= toggle[1]
    assert page.evaluate(
        f"app.graph.getNodeById({pages.SAMPLER}).widgets.find(w => w.name === 'srd_chart').options.hideInPanel"
    )


def unfold(page: Any) -> None:
    """Open or close SR Sampler's chart."""
    page.evaluate(f"({pages.ELEMENT % pages.SAMPLER}).querySelector('.srd-toggle').click()")


def height_of(page: Any, node: int = pages.SAMPLER) -> float:
    return page.evaluate("id => app.graph.getNodeById(id).size[1]", node)


def test_a_node_with_an_open_chart_is_saved_and_copied_as_high_as_with_a_folded_one(renderer: str, page: Any) -> None:
    folded = height_of(page)
    for _ in range(2):
        unfold(page)
        opened = height_of(page)
        assert opened > folded + 300
        page.evaluate("id => app.canvas.copyToClipboard([app.graph.getNodeById(id)])", pages.SAMPLER)
        copied = page.evaluate("() => { app.canvas.pasteFromClipboard(); return Number(app.graph.nodes.at(-1).id) }")
        assert [height_of(page, node) for node in (copied, pages.SAMPLER)] == [folded, opened]
        pages.reopened(page)
        page.wait_for_function(f"({pages.ELEMENT % pages.SAMPLER})?.isConnected")
        assert height_of(page) == folded


def cut(page: Any, selector: str) -> list[str]:
    """The words of the Inspector's chart that begin left of it or end right of it."""
    return page.evaluate(
        f"""selector => [...({pages.ELEMENT % pages.INSPECTOR}).querySelectorAll(selector)].filter(text => {{
          const {{x, width}} = text.getBBox();
          return x < 0 || x + width > text.ownerSVGElement.clientWidth;
        }}).map(text => text.textContent)""",
        selector,
    )


def test_the_numbers_of_the_axis_are_whole(renderer: str, page: Any) -> None:
    report = pages.a_report("Big", "Small")  # without any D
    pages.open_saved(page, json.loads(report.to_json()))
    pages.until_bars(page, 2, 2, 0, 0)
    assert "1e-6" in words_in(page)
    for step in report.steps:
        step.d, step.fall = 0.00123, -0.00123
    pages.open_saved(page, json.loads(report.to_json()))
    pages.eventually(page, lambda: pages.count(page, ".srd-dot"), 8)
    assert cut(page, ".srd-end") == []


@pytest.mark.parametrize("after", [1, 2, 3])
def test_what_a_switch_is_called_is_whole_in_a_narrow_chart(after: int, renderer: str, page: Any) -> None:
    report = pages.a_report("Big", "Small")
    report.hand_overs[0].reason, report.hand_overs[0].after_step = "latest", after
    page.evaluate("id => app.graph.getNodeById(id).setSize([210, 560])", pages.INSPECTOR)
    narrow = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    page.evaluate(pages.OPEN, narrow | {"extra": {"srdiffusion": {str(pages.SAMPLER): json.loads(report.to_json())}}})
    pages.look_at(page)
    pages.until_done(page)
    pages.eventually(page, lambda: page.evaluate(f"({pages.ELEMENT % pages.INSPECTOR}).clientWidth < 215"), True)
    pages.eventually(page, lambda: pages.count(page, ".srd-mark-text"), 1)
    assert cut(page, ".srd-mark-text") == []


def test_what_a_new_node_says_is_not_cut(renderer: str, page: Any) -> None:
    node = page.evaluate(
        """() => {
          const node = LiteGraph.createNode('SRSampler');
          app.graph.add(node);
          app.canvas.ds.offset = [100 - node.pos[0], 100 - node.pos[1]];
          app.canvas.setDirty(true, true);
          return Number(node.id);
        }"""
    )
    line = f"({pages.ELEMENT % node}).querySelector('.srd-toggle')"
    page.wait_for_function(f"{line}.clientWidth > 0")
    pages.eventually(page, lambda: page.evaluate(f"{line}.scrollWidth <= {line}.clientWidth"), True, seconds=5)
    assert pages.status(page, node) == pages.IDLE


def widen(page: Any, width: float) -> None:
    """Give SR Sampler that width and wait until its line has it."""
    page.evaluate(
        "([id, width]) => { const node = app.graph.getNodeById(id); node.setSize([width, node.size[1]]);"
        " app.canvas.setDirty(true, true) }",
        [pages.SAMPLER, width],
    )
    page.wait_for_function(f"width => Math.abs(({pages.PLAN % pages.SAMPLER}).offsetWidth - width) < 40", arg=width)


# Whether the words of SR Sampler's line end in it, and it ends above the chart.
WHOLE = f"""() => {{
  const line = {pages.PLAN % pages.SAMPLER}, chart = {pages.ELEMENT % pages.SAMPLER};
  const ends = [line.firstChild, line].map(element => element.getBoundingClientRect().bottom);
  return ends[0] > 0 && ends[0] <= ends[1] + 1 && ends[1] <= chart.getBoundingClientRect().top;
}}"""


def test_the_line_is_whole_in_a_node_of_any_width_and_gives_back_the_room_it_took(renderer: str, page: Any) -> None:
    pages.choose(page, switch_mode="step", switch_step=4)
    pages.plan_of(page, "50 steps: sketch 4")
    before = pages.settled(page, lambda: height_of(page))
    pages.choose(page, switch_step=60)
    assert pages.plan_of(page, "switch_step is 60, but the run has 50 steps")
    for width in (400, 270):
        widen(page, width)
        pages.eventually(page, lambda: page.evaluate(WHOLE), True)
    pages.eventually(page, lambda: height_of(page) > before, True)
    higher = pages.settled(page, lambda: height_of(page))
    for _ in range(2):
        pages.reopened(page)
        pages.look_at(page)
        pages.eventually(page, lambda: height_of(page), higher)
        pages.eventually(page, lambda: page.evaluate(WHOLE), True)
    pages.choose(page, switch_step=4)
    pages.plan_of(page, "50 steps: sketch 4")
    pages.eventually(page, lambda: height_of(page), before)


def test_a_run_of_three_stages_has_a_colour_and_a_line_for_each(renderer: str, page: Any) -> None:
    pages.open_saved(page, json.loads(pages.three_stages().to_json()))
    assert pages.until_done(page).startswith("1.4x, switched at 9, 18 of 30, ")
    assert pages.detail(page).startswith(
        "Switched to low at step 9 of 30 (30 %): the composition settled. Switched to small at step 18 of"
    )
    pages.until_bars(page, 9, 9, 12, 0)
    assert (pages.count(page, ".srd-key"), pages.count(page, ".srd-mark")) == (3, 2)
    tones = page.evaluate(
        f"[...({pages.ELEMENT % pages.INSPECTOR}).querySelectorAll('.srd-bar')].map(bar => getComputedStyle(bar).fill)"
    )
    assert len(set(tones)) == 3
    assert pages.text_of(page, ".srd-outcome").endswith("(criterion)")  # seconds of another hand-over are not known
    unfold(page)


def test_every_word_of_the_chart_is_readable_in_every_palette(renderer: str, page: Any) -> None:
    for report in (pages.three_stages(), pages.a_report("Big", "Small", "it broke")):
        pages.open_saved(page, json.loads(report.to_json()))
        page.wait_for_function(f"!!({pages.ELEMENT % pages.INSPECTOR}).querySelector('.srd-bar')")
        for palette in PALETTES:
            page.evaluate("theme => app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', theme)", palette)
            lowest, words = page.evaluate(f"({pages.CONTRAST})({pages.ELEMENT % pages.INSPECTOR})")
            assert lowest >= 7, (palette, words)
    page.evaluate("app.ui.settings.setSettingValueAsync('Comfy.ColorPalette', 'dark')")


def test_what_a_node_is_higher_than_its_widgets_lies_below_line_and_folded_chart(page: Any) -> None:
    page.evaluate(f"app.graph.getNodeById({pages.SAMPLER}).setSize([330, 900])")
    gap = """([above, below]) => Math.round((below.getBoundingClientRect().top - above.getBoundingClientRect().bottom)
      / app.canvas.ds.scale)"""
    line, chart = pages.PLAN % pages.SAMPLER, pages.ELEMENT % pages.SAMPLER
    pages.plan_of(page, "50 steps")
    pages.eventually(page, lambda: 0 <= page.evaluate(f"({gap})([{line}, {chart}])") < 20, True)
