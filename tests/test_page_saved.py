"""Saved workflows and videos in the page: they stay as they were and bring the chart of their run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pages
import pytest
from hosting import module


@pytest.fixture
def page(watched: Any) -> Any:
    """Each test opens its own workflow."""
    return watched


FIRST_RELEASE = Path(__file__).parent / "data" / "workflow_first_release.json"
VERSION_1 = Path(__file__).parent / "data" / "report_version_1.json"
# What the page adds to nodes of the first release: fade, sketch_steps, render_steps, sketch_scale, preset; save_report.
LATER = {"SRSampler": [0, "", 0, 1, "custom"], "SRSwitchInspector": [""]}
# Open a workflow; what its chart says then, at each of the next frames.
SEEN = """async (saved) => {
  await app.loadGraphData(saved);
  const seen = [];
  for (let frame = 0; frame < 60; frame++) {
    await new Promise(requestAnimationFrame);
    seen.push((%s).querySelector('.srd-status').textContent);
  }
  return seen;
}"""


@pytest.mark.parametrize("path", [pages.DEMO, FIRST_RELEASE], ids=lambda path: path.stem)
def test_a_workflow_saved_from_the_page_and_loaded_again_is_unchanged(path: Path, page: Any) -> None:
    pages.show(page, json.loads(path.read_text("utf-8")))
    saved = page.evaluate("JSON.stringify(app.graph.serialize())")
    page.evaluate(pages.OPEN, json.loads(saved))
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


def test_a_video_s_workflow_opens_with_the_chart_of_its_run_and_stays_as_it_was(page: Any) -> None:
    pages.open_saved(page, json.loads(pages.a_report("Sketcher", "Renderer").to_json()))
    assert pages.until_done(page) == "1.0x, switched at 2 of 4, 4 s"
    assert "at step 2 of 4" in pages.detail(page, pages.SAMPLER)
    assert "srdiffusion" not in page.evaluate("app.graph.serialize().extra ?? {}")


def test_a_video_of_the_first_releases_still_opens_with_its_chart(page: Any) -> None:
    pages.open_saved(page, json.loads(VERSION_1.read_text("utf-8")))
    assert pages.until_done(page) == "1.8x, switched at 4 of 10, 16.5 s"
    assert pages.detail(page) == "Switched at step 4 of 10 (40 %): the composition settled."
    assert pages.hover(page, ".srd-detail").endswith(", D fell by 0.008, less than 0.01 (delta)")
    assert pages.hover(page).startswith(
        "1.82x as fast as the sketch alone (estimated)\n10 steps in 16.5 s\nrender from sigma "
    )
    pages.until_bars(page, 4, 6, 0, 0)
    assert pages.count(page, ".srd-reused") == 2
    assert pages.text_of(page, ".srd-legend") == "sketch: 4 steps, 12 srender: 6 steps (2 reused, hatched), 4.5 s"
    assert pages.text_of(page, ".srd-notes") == "A note."
    pages.slide(page, -2)
    assert pages.text_of(page, ".srd-outcome") == "delta 0.01: after step 4 (criterion), about 16.5 s"
    pages.slide(page, -1)
    assert pages.text_of(page, ".srd-outcome").startswith("delta 0.1: after step 3 (criterion), about ")


def test_a_video_s_workflow_never_shows_the_run_of_the_one_before(page: Any) -> None:
    slower = pages.a_report("Big", "Small")
    slower.steps[-1].seconds = 5.0
    pages.open_saved(page, json.loads(slower.to_json()))
    pages.until_done(page)
    workflow = pages.saved_workflow(json.loads(pages.a_report("Big", "Small").to_json()))
    seen = page.evaluate(SEEN % (pages.ELEMENT % pages.INSPECTOR), workflow)
    assert set(seen) <= {pages.IDLE, "1.0x, switched at 2 of 4, 4 s"}


def test_a_run_that_is_slower_says_so_and_a_swapped_pair_is_asked_about(page: Any) -> None:
    report = pages.a_report("Small", "Big")
    report.notes = [module("srd_core.pair").LARGER]
    for step in report.steps[2:]:
        step.seconds = 3.0
    pages.open_saved(page, json.loads(report.to_json()))
    assert pages.until_done(page) == "0.50x (slower), switched at 2 of 4, 4 s"
    assert pages.hover(page).startswith("0.50x: slower than the sketch alone (estimated)\n")
    assert pages.text_of(page, ".srd-notes") == "The render is larger than the sketch. Are the two swapped?"


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
    ids=["earliest", "max_step", "switch_sigma", "latest", "step", "sigma", "other"],
)
def test_every_reason_of_a_hand_over_has_its_sentence(
    reason: str, switch: dict[str, Any], sentence: str, page: Any
) -> None:
    report = pages.a_report("Big", "Small")
    report.hand_overs[0].reason, report.switch = reason, {"mode": "adaptive", "delta": 0.01, "switch_step": 2} | switch
    pages.open_saved(page, json.loads(report.to_json()))
    pages.until_detail(page, f"Switched at step 2 of 4 (50 %): {sentence}.")


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
    ids=["object", "text", "damaged"],
)
def test_a_foreign_report_in_a_workflow_gets_a_sentence_and_is_never_html(report: Any, words: str, page: Any) -> None:
    pages.open_saved(page, report)
    page.wait_for_function(f"words => ({pages.ELEMENT % pages.INSPECTOR}).textContent.includes(words)", arg=words)
    assert pages.count(page, "img") == 0 and page.evaluate("window.hacked") is None
