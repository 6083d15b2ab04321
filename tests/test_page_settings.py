"""What the page does before a run: presets, the line on SR Sampler, the blueprint, app mode."""

from __future__ import annotations

import json
from typing import Any

import pages
from hosting import REPOSITORY, load_by_path, module

workflow_module = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")
PRESETS = module("nodes.presets").PRESETS
BLUEPRINT = REPOSITORY / "subgraphs" / "Text to video, Wan 14B + 1.3B.json"
MAIN = REPOSITORY / "workflows" / "wan2.1_t2v_14B_to_1.3B.json"
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
OUTSIDE = "Preset fast is set from outside: it replaces "
CHOOSE = """() => {
  const resize = LiteGraph.createNode('ResizeImageMaskNode');
  const [save, decode] = ['SaveVideo', 'VAEDecode'].map(type => app.graph.nodes.find(node => node.type === type));
  app.graph.add(resize);
  decode.connect(0, resize, 0);
  const set = (node, name, value) => { node.widgets.find(widget => widget.name === name).value = value };
  set(resize, 'resize_type', 'scale longer dimension');
  set(resize, 'resize_type.longer_size', 96);
  set(save, 'codec', 'h264');
  set(save, 'codec.encoding', 're-encode');
  set(save, 'codec.encoding.crf', 31);
}"""


SWAPPED = "The render is larger than the sketch. Are the two swapped?"


def swap_files(page: Any) -> None:
    """Choose the sketch's file on the render's loader, and the render's on the sketch's."""
    large, small = (page.evaluate(pages.VALUE, [node, "model_name"]) for node in pages.LOADERS)
    pages.choose(page, pages.LOADERS[0], model_name=small)
    pages.choose(page, pages.LOADERS[1], model_name=large)
    page.evaluate(pages.LOOK)


def test_the_line_asks_whether_the_two_are_swapped_as_soon_as_the_files_are_chosen(page: Any) -> None:
    assert not pages.plan_of(page, "50 steps: earliest 6, latest 16 (sigma 0.81)")
    swap_files(page)
    assert pages.plan_of(page, f"{SWAPPED} 50 steps: earliest 6, latest 16")
    page.evaluate("id => { app.graph.getNodeById(id).mode = 4 }", pages.SHIFT)  # a bypassed node changes nothing
    page.evaluate(pages.LOOK)
    pages.plan_of(page, f"{SWAPPED} switches once the composition has settled")


def test_a_question_that_was_not_answered_is_asked_again_when_the_server_is_back(page: Any) -> None:
    pages.plan_of(page, "50 steps: earliest 6, latest 16 (sigma 0.81)")
    page.route("**/srdiffusion/plan", lambda route: route.abort())
    pages.choose(page, steps=20)
    pages.plan_of(page, "")
    page.unroute("**/srdiffusion/plan")
    page.evaluate("app.api.dispatchCustomEvent('reconnected')")
    pages.plan_of(page, "20 steps: ")


def test_the_line_knows_the_models_that_come_through_a_reroute(page: Any) -> None:
    page.evaluate(
        """ids => ids.forEach(id => {
          const loader = app.graph.getNodeById(id), reroute = LiteGraph.createNode('Reroute');
          const links = loader.outputs[0].links.map(link => app.graph.getLink?.(link) ?? app.graph.links[link]);
          app.graph.add(reroute);
          const ends = links.map(link => [app.graph.getNodeById(link.target_id), link.target_slot]);
          loader.connect(0, reroute, 0);
          for (const [node, slot] of ends) reroute.connect(0, node, slot);
        })""",
        [*pages.LOADERS, pages.SHIFT],
    )
    swap_files(page)
    assert pages.plan_of(page, f"{SWAPPED} 50 steps: earliest 6, latest 16")


def test_a_preset_leaves_what_a_link_sets(page: Any) -> None:
    pages.connect(page, "steps", "PrimitiveInt", 7)
    page.evaluate(pages.CLICKED, [pages.SAMPLER, "preset", "fast"])
    pages.until_values(page, preset="fast", render_cfg=1, steps=50)
    queued = page.evaluate(pages.QUEUED)[str(pages.SAMPLER)]["inputs"]
    assert isinstance(queued["steps"], list) and queued["preset"] == "custom"


def queued_sampler(page: Any) -> dict[str, Any]:
    """The inputs of the one SR Sampler that the page would queue."""
    (node,) = (node for node in page.evaluate(pages.QUEUED).values() if node["class_type"] == "SRSampler")
    return node["inputs"]


def run_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """The values that the server runs with, of what a preset stands for."""
    table = PRESETS["fast"]
    values = {key: inputs[key] for key in (*table, "preset")}
    chosen = module("nodes.presets").chosen(values, [key for key, value in values.items() if isinstance(value, list)])
    return {key: chosen[key] for key in table}


def test_a_preset_leaves_what_a_node_of_the_page_sets(page: Any) -> None:
    pages.connect(page, "steps", "PrimitiveNode", 30)  # the page's own node: queued as if it were typed
    page.evaluate(pages.CLICKED, [pages.SAMPLER, "preset", "fast"])
    pages.eventually(page, lambda: run_of(queued_sampler(page)), PRESETS["fast"] | {"steps": 30})
    assert pages.shown_values(page)["preset"] == "fast"


def test_a_preset_in_a_subgraph_leaves_what_the_subgraph_s_node_sets(page: Any) -> None:
    page.evaluate(PROMOTE, [pages.SAMPLER, {"steps": 30}])
    page.evaluate(INNER_CLICKED, ["preset", "fast"])
    pages.eventually(page, lambda: run_of(queued_sampler(page)), PRESETS["fast"] | {"steps": 30})
    assert "fast" in page.evaluate("window.inner.serialize().widgets_values")


def test_a_preset_that_a_node_of_the_page_sets_says_what_it_replaces(page: Any) -> None:
    pages.connect(page, "preset", "PrimitiveNode", "fast")
    pages.connect(page, "delta", "PrimitiveNode", 0.05)
    for widget, value in (("fade", 0.3), ("steps", 30)):
        page.evaluate(pages.CLICKED, [pages.SAMPLER, widget, value])
    page.evaluate(pages.LOOK)
    assert pages.plan_of(
        page, OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. 20 steps: earliest 2, latest 5 (sigma "
    )
    assert run_of(queued_sampler(page)) == PRESETS["fast"]
    pages.reopened(page)
    pages.plan_of(page, OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. 20 steps: ")
    assert run_of(queued_sampler(page)) == PRESETS["fast"]
    pages.disconnect(page, "preset")
    pages.plan_of(page, "30 steps: ")
    assert pages.shown_values(page)["preset"] == "custom" and run_of(queued_sampler(page))["steps"] == 30


def test_a_preset_that_a_subgraph_s_node_sets_says_what_it_replaces(page: Any) -> None:
    page.evaluate(PROMOTE, [pages.SAMPLER, {"preset": "fast"}])
    for widget, value in (("fade", 0.3), ("steps", 30)):
        page.evaluate(INNER_CLICKED, [widget, value])
    page.evaluate(pages.LOOK)
    page.wait_for_function(
        f"start => ({INNER}).textContent.startsWith(start)",
        arg=OUTSIDE + "steps, delta, fix_step, switch_sigma, fade. ",
    )
    assert run_of(queued_sampler(page)) == PRESETS["fast"]


def test_the_line_follows_what_a_subgraph_around_a_subgraph_sets(page: Any) -> None:
    page.evaluate(PROMOTE, [pages.SAMPLER, {"steps": 30}])
    page.evaluate("void (window.sampler = window.inner)")
    page.evaluate(PROMOTE, [page.evaluate("Number(app.graph.nodes.find(node => node.subgraph).id)"), {"steps": 20}])
    page.evaluate("void (window.inner = window.sampler)")
    page.evaluate(INNER_CLICKED, ["switch_mode", "step"])
    page.wait_for_function(f"({INNER}).textContent === '20 steps: sketch 10, render 10'")
    assert queued_sampler(page)["steps"] == 20


def test_a_preset_that_another_node_s_output_sets_says_that_it_replaces_widgets(page: Any) -> None:
    page.evaluate(
        """id => {
          const source = LiteGraph.createNode('PrimitiveString'), node = app.graph.getNodeById(id);
          app.graph.add(source);
          source.outputs[0].type = '*';  // as nodes of other packs give a choice
          source.connect(0, node, node.inputs.findIndex(input => input.name === 'preset'));
        }""",
        pages.SAMPLER,
    )
    page.evaluate(pages.LOOK)
    assert pages.plan_of(page, "The preset is set from outside: it replaces the widgets that it stands for.")
    assert isinstance(queued_sampler(page)["preset"], list)


def queued_as(page: Any) -> dict[str, dict[str, Any]]:
    """The inputs that the page would queue, by the node's type; the links left out."""
    prompt = page.evaluate(pages.QUEUED)
    return {
        f"{node['class_type']} {node['_meta']['title']}": {
            k: v for k, v in node["inputs"].items() if not isinstance(v, list)
        }
        for node in prompt.values()
    }


def test_the_blueprint_is_listed_and_gives_what_the_main_workflow_gives(page: Any, server: Any) -> None:
    listed = [found for found in server.get("/global_subgraphs").values() if found["source"] == "custom_node"]
    assert [(found["name"], found["info"]["node_pack"]) for found in listed] == [
        (BLUEPRINT.stem, "custom_nodes.ComfyUI-SRDiffusion")
    ]
    page.evaluate(pages.OPEN, json.loads(MAIN.read_text("utf-8")))
    wanted = queued_as(page)
    page.evaluate(pages.OPEN, json.loads(BLUEPRINT.read_text("utf-8")))
    found = queued_as(page)
    assert set(found) - set(wanted) == {"PrimitiveFloat Seconds", "ComfyMathExpression Frames: 16 a second, and one"}
    for node, inputs in wanted.items():
        if not node.startswith(("SaveVideo", "SRSwitchInspector")):
            assert found[node] == {k: v for k, v in inputs.items() if k != "length"}, node
    subgraph = int(page.evaluate("app.graph._nodes[0].id"))
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
    page.evaluate(pages.WIDGETS, [[subgraph, name, value] for name, value in values.items()])
    changed = {v for inputs in queued_as(page).values() for v in inputs.values()}
    assert set(values.values()) <= changed


def test_the_main_workflow_fills_app_mode(page: Any) -> None:
    page.evaluate(pages.OPEN, json.loads(MAIN.read_text("utf-8")))
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    try:
        for words in ("text", "width", "height", "length", "seed", "steps"):
            page.wait_for_function(
                "words => document.body.innerText.split(/\\n/).includes(words)", arg=words, timeout=20_000
            )
    finally:
        page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")


def test_choices_that_bring_inputs_are_queued_by_the_demo_as_by_the_page(page: Any, info: Any) -> None:
    pages.show(page, json.loads(pages.DEMO.read_text("utf-8")))
    page.evaluate(CHOOSE)
    saved = json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))
    queued = json.loads(page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))"))
    graph = workflow_module.to_api(saved, info)
    save = next(node["inputs"] for node in graph.values() if node["class_type"] == "SaveVideo")
    assert (save["codec"], save["codec.encoding"], save["codec.encoding.crf"]) == ("h264", "re-encode", 31)
    assert {key: node["inputs"] for key, node in graph.items()} == {key: node["inputs"] for key, node in queued.items()}
