"""The live Switch Inspector and the chart on SR Sampler, during a run and after it."""

from __future__ import annotations

import contextlib
import random
import re
from typing import Any

import pages
import pytest

TO_WORKFLOW = """async path => {
  const store = app.extensionManager.workflow, workflow = store.getWorkflowByPath(path);
  await app.loadGraphData(workflow.activeState, true, true, workflow);
}"""
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

# The slider is moved as soon as the sampler has ended, before the Inspector itself runs.
SLIDE_AT_THE_END = """([sampler, place]) => {
  const slide = ({detail}) => {
    if (detail.node_id !== sampler || detail.report.status !== 'done') return;
    app.api.removeEventListener('srdiffusion.run', slide);
    const slider = (%s).querySelector('input[type=range]');
    slider.value = place;
    slider.dispatchEvent(new Event('input'));
  };
  app.api.addEventListener('srdiffusion.run', slide);
}""" % (pages.ELEMENT % pages.INSPECTOR)


# From now on the page tells 1.5 seconds late which workflow is the open one, as on a machine that is busy.
OPENS_LATE = """() => {
  const store = app.extensionManager.workflow, open = window.opensNow = store.openWorkflow;
  store.openWorkflow = async (...given) => {
    await new Promise(resolve => setTimeout(resolve, 1500));
    window.openedLate = true;
    return open(...given);
  };
}"""


def a_seed() -> tuple[int, str, int]:
    """What keeps a run from coming from the cache."""
    return pages.SAMPLER, "seed", random.randrange(1 << 30)


def queue_long(page: Any) -> None:
    """A run of minutes, which ends when it is interrupted."""
    page.evaluate(pages.SLOWED, pages.SAMPLER)
    step, steps = ((pages.SAMPLER, name, 400) for name in ("switch_step", "steps"))
    pages.queue(page, (pages.SAMPLER, "switch_mode", "step"), step, steps, a_seed())
    pages.until(page, "Sketching")


def grows(page: Any, before: int | None = None) -> None:
    before = pages.count(page, pages.BARS[0]) if before is None else before
    page.wait_for_function(f"({pages.ELEMENT % pages.INSPECTOR}).querySelectorAll('{pages.BARS[0]}').length > {before}")


def interrupt(page: Any) -> str:
    """Press Cancel; returns what the chart says then."""
    page.evaluate("fetch('/interrupt', {method: 'POST'})")
    return pages.until(page, "Interrupted after step")


def test_a_reload_in_mid_run_shows_the_run_that_continues(page: Any) -> None:
    queue_long(page)
    before = pages.count(page, pages.BARS[0])
    page.reload()
    page.wait_for_function(pages.page_module.READY, timeout=120_000)
    page.wait_for_function(f"{pages.CHART}.length >= 2")
    grows(page, before)
    assert "of 400" in interrupt(page)


def as_if_it_were_open(route: Any) -> None:
    """Answer for the server: every tab that queued a run is still there."""
    answer = route.fetch().json()
    route.fulfill(json={"runs": [run | {"left": False} for run in answer["runs"]]})


def test_a_tab_shows_the_runs_that_it_queued_and_those_of_tabs_that_are_closed(
    page: Any, server: Any, browser: Any
) -> None:
    first = pages.page_module.open_page(browser, server.url)
    pages.show(first)
    queue_long(first)
    grows(first)
    assert pages.status(page) == pages.IDLE
    first.close()
    context = browser.new_context()
    context.route("**/srdiffusion/runs", as_if_it_were_open)  # as where the server has not noticed yet
    second = pages.page_module.open_page(context, server.url)
    second.evaluate(OPENS_LATE)
    pages.show(second)
    pages.until(second, "Sketching")
    grows(second)
    assert second.evaluate("window.openedLate") and pages.status(page) == pages.IDLE
    interrupt(second)
    context.close()


def test_a_chart_belongs_to_the_workflow_that_queued_its_run(page: Any, server: Any) -> None:
    """Whatever else is opened: shipped workflows share their id."""
    ran = pages.run(page, (pages.SAMPLER, "steps", 6), a_seed())
    first = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    pages.show(page)  # a fresh drop of the same file
    page.wait_for_timeout(500)
    assert pages.statuses(page) == [pages.IDLE, pages.IDLE]
    queue_long(page)
    second = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    page.evaluate(TO_WORKFLOW, first)
    page.wait_for_function(f"{pages.CHART}.length >= 2")
    pages.eventually(page, lambda: pages.statuses(page), [ran, ran])
    assert second != first
    page.evaluate(TO_WORKFLOW, second)
    pages.until(page, "Sketching")
    interrupt(page)


def test_a_page_that_opens_a_workflow_late_shows_no_run_of_the_one_before(page: Any, server: Any) -> None:
    pages.run(page, (pages.SAMPLER, "steps", 6), a_seed())
    page.evaluate(OPENS_LATE)
    pages.show(page)  # a fresh drop of the same file
    pages.eventually(page, lambda: page.evaluate("window.openedLate") and pages.statuses(page), [pages.IDLE] * 2)
    page.evaluate("() => { app.extensionManager.workflow.openWorkflow = window.opensNow }")


def test_a_run_that_was_queued_just_before_another_workflow_is_opened_is_not_that_one_s(page: Any, server: Any) -> None:
    queue_long(page)  # what is queued next waits
    first = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    pages.show(page)
    page.wait_for_timeout(500)
    second = page.evaluate("app.extensionManager.workflow.activeWorkflow.path")
    with pages.answered_late(page, "**/srdiffusion/queued?*"):
        for steps in (6, 8):
            short = {"switch_mode": "step", "switch_step": 3, "steps": steps}
            pages.queue(page, *((pages.SAMPLER, name, value) for name, value in short.items()), a_seed())
            page.evaluate(TO_WORKFLOW, first)
        page.wait_for_timeout(3000)
    page.evaluate("fetch('/interrupt', {method: 'POST'})")
    for path, steps in ((second, 6), (first, 8)):
        page.evaluate(TO_WORKFLOW, path)
        page.wait_for_function(
            f"end => [...{pages.CHART}].every(chart => chart.querySelector('.srd-status').textContent.includes(end))",
            arg=f"switched at 3 of {steps},",
        )


@pytest.mark.parametrize(
    "wrong",
    [
        [(pages.SAMPLER, "switch_mode", "step"), (pages.SAMPLER, "switch_step", 60)],
        [(pages.LOADERS[0], "model_name", "missing.safetensors")],
    ],
    ids=["by the run", "when queued"],
)
def test_what_an_older_run_left_is_gone_when_the_next_one_is_refused(wrong: list[Any], page: Any, server: Any) -> None:
    pages.run(page, (pages.SAMPLER, "steps", 6), a_seed())
    pages.until_idle(server)
    pages.queue(page, *wrong)
    pages.eventually(page, lambda: pages.statuses(page), [pages.IDLE, pages.IDLE])
    pages.until_idle(server)
    page.wait_for_timeout(500)
    assert pages.statuses(page) == [pages.IDLE, pages.IDLE]  # still


def test_a_run_that_comes_from_the_cache_keeps_its_chart(page: Any, server: Any) -> None:
    """Also where the server tells which prompts are the tab's when such a run is already over."""
    ran = pages.run(page, (pages.SAMPLER, "steps", 6), a_seed())
    for late in (False, True):
        with pages.answered_late(page, "**/srdiffusion/queued?*") if late else contextlib.nullcontext():
            pages.queue(page)
            pages.until_idle(server)
            page.wait_for_timeout(1500 if late else 500)
        pages.eventually(page, lambda: pages.statuses(page), [ran, ran])


def test_an_interrupt_in_either_stage_is_said_and_the_next_run_starts_clean(page: Any, server: Any) -> None:
    page.evaluate(pages.SLOWED, pages.SAMPLER)
    for mode, stage in (("adaptive", "Sketching"), ("step", "Rendering")):
        step, steps = (pages.SAMPLER, "switch_step", 2), (pages.SAMPLER, "steps", 400)
        pages.queue(page, (pages.SAMPLER, "switch_mode", mode), step, steps, a_seed())
        pages.until(page, stage)
        said = interrupt(page)
        counted = sum(int(number) for number in re.findall(r": (\d+) steps", pages.text_of(page, ".srd-legend")))
        assert said == f"Interrupted after step {counted} of 400"
        pages.until_idle(server)
    pages.queue(page, (pages.SAMPLER, "steps", 6))
    assert "switched at 2 of 6" in pages.until_done(page)
    pages.until_bars(page, 2, 4, 0, 0)


def test_two_samplers_and_two_queued_runs_never_mix(page: Any, server: Any) -> None:
    page.evaluate(pages.WIDGETS, [[pages.SAMPLER, "switch_mode", "step"], [pages.SAMPLER, "steps", 14]])
    twin, inspector = page.evaluate(TWIN)
    runs = [{pages.SAMPLER: 3, twin: 5}, {pages.SAMPLER: 7, twin: 9}]
    for run in runs:
        pages.queue(page, *((node, "switch_step", step) for node, step in run.items()))
    pages.until_idle(server)
    for viewer, step, share in ((pages.INSPECTOR, 7, 50), (inspector, 9, 64)):
        pages.until_detail(page, f"Switched at step {step} of 14 ({share} %): switch_step is {step}.", viewer)
    for run, shown in zip(runs, pages.reports(server)[-2:]):
        for node, viewer in ((pages.SAMPLER, pages.INSPECTOR), (twin, inspector)):
            assert shown[str(viewer)]["hand_overs"][0]["after_step"] == run[node]


def test_what_if_tells_another_delta_s_hand_over_and_use_this_delta_writes_it(page: Any, server: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(SLIDE_AT_THE_END, [str(pages.SAMPLER), -1])
    pages.run(page, (pages.SAMPLER, "delta", 0.01), a_seed())
    pages.until_idle(server)  # the Inspector itself has run by then, and has told of itself
    outcome = pages.text_of(page, ".srd-outcome")
    assert outcome.startswith("delta 0.1: after step ") and outcome.endswith(" s")
    pages.press(page, "use this delta")
    page.wait_for_function(f"({pages.VALUE})([{pages.SAMPLER}, 'delta']) === 0.1")
    pages.press(page, "copy report")
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('hand_overs'))")
    copied = pages.report_module.Report.from_json(page.evaluate("navigator.clipboard.readText()"))
    assert copied.status == "done" and len(copied.steps) == 50
    predicted = int(outcome.split("after step ")[1].split()[0])
    pages.run(page)
    assert f"at step {predicted} of 50" in pages.text_of(page, ".srd-detail")
    pages.slide(page, -3)  # the page asks anew for all runs, of which two are this chart's: the choice stays
    with page.expect_response(lambda answer: answer.url.endswith("/srdiffusion/runs")):
        page.evaluate("app.api.dispatchCustomEvent('reconnected')")
    pages.until_idle(server)
    page.wait_for_timeout(500)
    assert pages.text_of(page, ".srd-outcome").startswith("delta 0.001: ")


def test_an_old_report_is_shown_from_its_text_and_a_malformed_one_gets_a_sentence(page: Any, server: Any) -> None:
    good = pages.a_report("<b>Sketcher</b>", "<img src=x onerror='window.hacked = 1'>", "<i>failed</i>")
    for text, words in ((good.to_json(), "<i>failed</i>"), ("no JSON", "This is not a report")):
        page.evaluate(pages.OPEN, {"nodes": [], "links": [], "version": 0.4})
        inspector = page.evaluate(
            """text => {
              const kinds = ['PrimitiveStringMultiline', 'SRSwitchInspector'];
              const [source, node] = kinds.map(kind => LiteGraph.createNode(kind));
              app.graph.add(source);
              app.graph.add(node);
              source.widgets[0].value = text;
              source.connect(0, node, node.inputs.findIndex(input => input.name === 'report_json'));
              return Number(node.id);
            }""",
            text,
        )
        pages.queue(page)
        page.wait_for_function(f"words => ({pages.ELEMENT % inspector}).textContent.includes(words)", arg=words)
        pages.until_idle(server)
        assert pages.count(page, "b, img, i", inspector) == 0 and page.evaluate("window.hacked") is None
