"""The node contract (design section 3): what shared workflow JSON stores does not change."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import comfy.samplers
import helpers
import pytest
import torch
from hosting import REPOSITORY, module, pack
from runs import SWITCHING

MODELS = ["sketch", "render"]
SWITCH = [*SWITCHING, "render_positive", "render_negative"]
SWITCH += ["fade", "sketch_steps", "render_steps", "sketch_scale", "preset"]
SAMPLER = ["positive", "negative", "latent", "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"]
RULE = ["switch_mode", "delta", "fix_step", "max_step", "switch_step", "switch_sigma"]
LOADER = ["model_name", "weight_dtype", "attention"]
CONTRACT = {
    "SRLoadSketchDiT": ("Load Sketch DiT", LOADER, ["MODEL"]),
    "SRLoadRenderDiT": ("Load Render DiT", LOADER, ["MODEL"]),
    "SRSampler": ("SR Sampler", [*MODELS, *SAMPLER, *SWITCH], ["LATENT", "SR_REPORT"]),
    "SRModel": ("Sketch-Render Model", [*MODELS, *SWITCH], ["MODEL", "SR_REPORT"]),
    "SRSketch": ("SR Sketch", ["sketch", *SAMPLER, *RULE, "sketch_scale"], ["SR_HAND_OVER", "LATENT", "SR_REPORT"]),
    "SRRender": (
        "SR Render",
        ["hand_over", "render", "positive", "negative", "render_cfg", "teacache", "fade", "render_steps"],
        ["LATENT", "SR_REPORT"],
    ),
    "SRSaveHandOver": ("Save Hand-over", ["hand_over", "filename_prefix"], ["SR_HAND_OVER"]),
    "SRLoadHandOver": ("Load Hand-over", ["hand_over"], ["SR_HAND_OVER", "LATENT", "SR_REPORT"]),
    "SRTeaCache": ("Render TeaCache", ["model", "threshold", "form", "keep_on"], ["MODEL"]),
    "SRAttention": ("Set Attention", ["model", "attention"], ["MODEL"]),
    "SRCompare": (
        "SR Compare",
        ["a", "b", "label_a", "label_b", "layout", "position", "lpips"],
        ["IMAGE", "IMAGE", "STRING"],
    ),
    "SRCogVideoXFix": ("CogVideoX Sampling Fix", ["model", "dynamic_cfg"], ["MODEL"]),
    "SRMeasurePair": (
        "Measure Pair",
        [*MODELS, *SAMPLER, "speed_up", "points", "render_positive", "render_negative"],
        ["FLOAT", "INT", "IMAGE", "STRING"],
    ),
    "SRSwitchInspector": (
        "Switch Inspector",
        ["report", "after", "report_json", "save_report"],
        ["IMAGE", "STRING", "STRING"],
    ),
}
DEFAULTS = {
    "steps": 50,
    "cfg": 5.0,
    "sampler_name": "uni_pc",
    "scheduler": "simple",
    "denoise": 1.0,
    **SWITCHING,
    "switch_mode": "adaptive",
    "switch_step": 10,
    "weight_dtype": "default",
    "attention": "auto",
    "threshold": 0.08,
    "form": "e",
    "keep_on": "gpu",
    "fade": 0.0,
    "sketch_steps": "",
    "render_steps": 0,
    "sketch_scale": 1.0,
    "save_report": "",
    "preset": "custom",
}
ADVANCED = {"max_step", "switch_step", "switch_sigma", "render_cfg", "teacache", "offload_sketch", "form", "keep_on"}
ADVANCED |= {"lpips", "fade", "sketch_steps", "render_steps", "sketch_scale", "points", "save_report"}


def node_classes() -> list[Any]:
    async def nodes() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return asyncio.run(nodes())


@pytest.fixture(params=node_classes(), ids=lambda node: node.GET_SCHEMA().node_id)
def schema(request: pytest.FixtureRequest) -> Any:
    return request.param.GET_SCHEMA()


def test_the_pack_has_exactly_the_nodes_of_the_contract() -> None:
    assert {node.GET_SCHEMA().node_id for node in node_classes()} == set(CONTRACT)


def test_names_inputs_in_order_and_outputs_are_those_of_the_contract(schema: Any) -> None:
    display_name, inputs, outputs = CONTRACT[schema.node_id]
    assert schema.display_name == display_name
    assert [i.id for i in schema.inputs] == inputs
    assert [o.io_type for o in schema.outputs] == outputs
    assert schema.category == "SRDiffusion"
    assert "SRDiffusion" in schema.search_aliases


# What people type -> the nodes that come up for it, and no others.
SEARCHES = {
    "moe": {"SRSampler", "SRModel"},
    "high noise low noise": {"SRSampler", "SRModel"},
    "dual model": {"SRSampler", "SRModel"},
    "two ksampler": {"SRSampler"},
    "refiner": {"SRSampler", "SRModel"},
    "faster video": {"SRSampler", "SRTeaCache"},
    "compare video": {"SRCompare"},
    "video sampler": {"SRSampler"},
    "step cache": {"SRTeaCache"},
    "cogvideox 5b": {"SRCogVideoXFix"},
    "sage attention": {"SRLoadSketchDiT", "SRLoadRenderDiT", "SRAttention"},
    "gguf": {"SRAttention"},
}


@pytest.mark.parametrize("words", SEARCHES)
def test_a_search_finds_the_nodes_that_fit(words: str) -> None:
    schemas = [node.GET_SCHEMA() for node in node_classes()]
    assert {s.node_id for s in schemas if any(words in alias.lower() for alias in s.search_aliases)} == SEARCHES[words]


def test_defaults_are_those_of_the_contract(schema: Any) -> None:
    for i in schema.inputs:
        if i.id in DEFAULTS:
            assert i.default == DEFAULTS[i.id], i.id
        assert bool(getattr(i, "advanced", None)) == (i.id in ADVANCED), i.id


LATER_OPTIONAL = {*SWITCHING, "weight_dtype", "attention", "form", "keep_on", "dynamic_cfg", "label_a", "label_b"}
LATER_OPTIONAL |= {"layout", "position", "lpips", "save_report", "preset"}


def test_an_input_with_a_default_may_be_missing_and_keeps_its_place(schema: Any) -> None:
    for i in schema.inputs:
        if i.id in LATER_OPTIONAL:
            assert i.optional and i.default is not None, i.id
    page = [*(i.id for i in schema.inputs if not i.optional), *(i.id for i in schema.inputs if i.optional)]
    assert page == [
        i.id for i in schema.inputs
    ]  # the page shows the required ones first; a file's values go by that order


def test_every_input_has_a_tooltip_and_every_node_a_description(schema: Any) -> None:
    assert all(i.tooltip for i in schema.inputs) and schema.description


def test_samplers_and_schedulers_are_all_of_the_host() -> None:
    inputs = {i.id: i for i in module("nodes.sampler").SRSampler.GET_SCHEMA().inputs}
    assert inputs["sampler_name"].options == comfy.samplers.KSampler.SAMPLERS
    assert inputs["scheduler"].options == comfy.samplers.KSampler.SCHEDULERS


def test_sketch_render_model_under_ksampler_is_sr_sampler(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    nodes = module("nodes.sampler")
    model, through_model = nodes.SRModel.execute(sketch, render, **SWITCHING).args
    call = helpers.sampling_inputs(sampler_name="uni_pc", scheduler="beta")
    latent, through_sampler = nodes.SRSampler.execute(sketch, render, **call, **SWITCHING).args
    assert torch.equal(latent["samples"], helpers.ksampler(model, **call))
    assert [s.stage for s in through_model.steps] == [s.stage for s in through_sampler.steps]


def test_the_inspector_gives_picture_and_summary_and_shows_both_on_the_node(tmp_path: Any, monkeypatch: Any) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    report = module("srd_core.report.data").Report()
    inspector = module("nodes.inspector").SRSwitchInspector.PREPARE_CLASS_CLONE({})
    output = inspector.execute(report)
    plot, summary, text = output.args
    assert module("srd_core.report.data").Report.from_json(text) == report and output.ui["report"] == (text,)
    assert plot.shape == (1, module("srd_core.report.plot").HEIGHT, module("srd_core.report.plot").WIDTH, 3)
    assert plot.min() >= 0 and plot.max() <= 1 and "No run yet" in summary
    assert output.ui["text"] == (summary,) and len(list(tmp_path.glob("*.png"))) == len(output.ui["plot"]) == 1


# --- layout (design section 2) ----------------------------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """Absolute module names and, with leading dots, relative ones."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def test_data_flows_from_nodes_to_core_to_host() -> None:
    core = REPOSITORY / "srd_core"
    for path in core.rglob("*.py"):
        above = "." * (len(path.relative_to(core).parts) + 1)
        assert not any(name.startswith(above) or name == "nodes" for name in imports_of(path)), path.name


def test_the_algorithm_does_not_know_the_host() -> None:
    core = REPOSITORY / "srd_core"
    alone = [core / f"{name}.py" for name in ("criterion", "route", "steps", "families", "likeness", "compare")]
    for path in (*alone, core / "teacache" / "plan.py", *(core / "report").glob("*.py")):
        assert not any(name.startswith("comfy") for name in imports_of(path)), path.name
