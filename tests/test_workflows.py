"""The shipped workflows fit the host: every node, link and value against its /object_info, then run in its real server.

The runs take each workflow as shipped, with tiny random files under the shipped names. Only two things are changed: the
size of the video, and CLIPLoader with CLIPTextEncode (no text encoder of Wan's can be tiny), which become a test node
that makes up embeddings of the right width. The tiny VAE is Wan's in all of them: the host builds CogVideoX's at full
size only, and its latents have the same shape.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import comfyui_workflow_templates_core
import numpy as np
import pytest
from hosting import REPOSITORY, load_by_path, module
from PIL import Image

workflow = load_by_path("srd_workflow", REPOSITORY / "demo" / "workflow.py")

FOLDER = REPOSITORY / "workflows"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.json"))
WAN21, WAN21_KSAMPLER = "wan2.1_t2v_14B_to_1.3B", "wan2.1_t2v_14B_to_1.3B_ksampler"
WAN22, DEMO = "wan2.2_high_noise_to_wan2.1_1.3B", "demo"
NAMES = [*TEMPLATES, DEMO]  # the demo's is not a template: its text node is not part of the pack
COG, COG_KSAMPLER = "cogvideox_5B_to_2B", "cogvideox_5B_to_2B_ksampler"
COMPARE, SWEEP, ONCE = "compare_wan2.1_t2v_14B_to_1.3B", "delta_sweep", "sketch_once_render_many"
FAST, FEW_STEP, THREE = f"{WAN21}_fast", "wan2.1_t2v_14B_few_step_render", "wan2.2_high_low_to_wan2.1_1.3B"
BALANCED, LONG, GGUF = f"{WAN21}_balanced", f"{WAN21}_long", "wan2.1_t2v_14B_gguf_to_1.3B"
MOE, MOE_LORA, MOE_IMAGE = (
    "wan2.2_t2v_14B_high_to_low",
    "wan2.2_t2v_14B_high_to_low_lightx2v",
    "wan2.2_i2v_14B_high_to_low",
)
IMAGE, VACE, FLUX = "wan2.1_i2v_14B_to_fun_inp_1.3B", "wan2.1_vace_14B_to_1.3B", "flux2_dev_to_klein_4B"
HD = f"{WAN21}_720p"
NEWER = {FAST, FEW_STEP, THREE, BALANCED, LONG, GGUF, MOE, MOE_LORA, MOE_IMAGE, IMAGE, VACE, FLUX, HD}
KSAMPLER_OF = {name: f"{name}_ksampler" for name in (WAN21, COG)}
OWN = (
    "SRLoadSketchDiT",
    "SRLoadRenderDiT",
    "SRSampler",
    "SRModel",
    "SRSwitchInspector",
    "SRCompare",
    "SRCogVideoXFix",
    "SRTeaCache",
    "SRSketch",
    "SRRender",
    "SRSaveHandOver",
    "SRLoadHandOver",
    "SRMeasurePair",
    "SRAttention",
)
SMALL = {"width": 64, "height": 32, "length": 5}
SIZES = ("EmptyHunyuanLatentVideo", "WanImageToVideo", "WanVaceToVideo", "EmptyFlux2LatentImage")
WINDOW = {"context_length": 9, "context_overlap": 4}  # of 13 frames
WIDE = {COMPARE: 2 * 64, SWEEP: 3 * 64 + 2 * 8}  # pixels of the saved video: clips side by side, 8 pixels between
PAIR = ("SRLoadSketchDiT", "SRLoadRenderDiT")
LOADERS = (*PAIR, "UNETLoader", "UnetLoaderGGUF", "LoraLoaderModelOnly", "CLIPLoader", "VAELoader", "CLIPVisionLoader")
LOADED = {
    THREE: [*PAIR, "SRLoadRenderDiT", "CLIPLoader", "VAELoader"],
    FEW_STEP: ["SRLoadSketchDiT", "LoraLoaderModelOnly", "CLIPLoader", "VAELoader"],
    MOE_LORA: [*PAIR, "LoraLoaderModelOnly", "CLIPLoader", "VAELoader"],
    IMAGE: [*PAIR, "CLIPLoader", "VAELoader", "CLIPVisionLoader"],
    GGUF: ["UnetLoaderGGUF", "SRLoadRenderDiT", "CLIPLoader", "VAELoader"],
    FLUX: ["UNETLoader", "UNETLoader", "CLIPLoader", "CLIPLoader", "VAELoader"],
}
OFFICIAL = tuple(
    f"https://huggingface.co/Comfy-Org/{name}" for name in ("Wan_2.1_", "Wan_2.2_", "flux2-dev/", "flux2-klein/")
)
QUANTIZED = "https://huggingface.co/city96/Wan2.1-T2V-14B-gguf/resolve/main/"
KIJAI = "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/Lightx2v/"  # of LoRAs
LATER = {
    "SRSampler": 5,
    "SRModel": 5,
    "SRSketch": 1,
    "SRRender": 2,
    "SRSwitchInspector": 1,
}  # widgets that a file of the first release has no value for
STEPS = {FEW_STEP: 14, MOE_LORA: 13}  # of a workflow in which the render walks the rest in its own steps
STAGES = {THREE: ["sketch", "sketch 2", "render"]}
TEXT_WIDTHS = {"mistral_3_small_flux2_fp8.safetensors": 15360, "qwen_3_4b.safetensors": 7680}
VIDEOS = {
    ONCE: ["render", "render_teacache", "sketch_preview"]
}  # of a workflow that saves more than one, without numbers


def shipped(name: str) -> dict[str, Any]:
    return workflow.load((REPOSITORY / "demo" if name == DEMO else FOLDER) / f"{name}.json")


def run(server: Any, graph: Mapping[str, Any]) -> dict[str, Any]:
    """Run a graph; its outputs by node id."""
    return server.run(graph, timeout=300)["outputs"]


def ready(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """A shipped workflow as the API takes it, small, with the test's text node where it needs a real text encoder."""
    graph = workflow.to_api(shipped(name), info)
    for node_id, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] in SIZES:
            small = SMALL | ({"length": 13} if name == LONG else {})
            inputs |= {key: value for key, value in small.items() if key in inputs}
        if node["class_type"] == "WanContextWindowsManual":
            inputs |= WINDOW
        if node["class_type"] == "CLIPTextEncode":
            width = TEXT_WIDTHS.get(graph[inputs["clip"][0]]["inputs"]["clip_name"], 4096)
            graph[node_id] = {"class_type": "SRTestText", "inputs": {"text": inputs["text"], "width": width}}
        if node["class_type"] == "CLIPVisionEncode":
            graph[node_id] = {"class_type": "SRTestVision", "inputs": {"image": inputs["image"]}}
        if node["class_type"] == "VAEDecode" and name == FLUX:
            graph[node_id] = {"class_type": "SRTestDecode", "inputs": {"samples": inputs["samples"]}}
    return graph


def report_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The report that the Inspector shows."""
    (report,) = reports_of(outputs)
    return report


def reports_of(outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reports that the Inspectors show."""
    return [json.loads(output["report"][0]) for output in outputs.values() if "report" in output]


def videos_of(outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The videos that a run saved, by their names without the number."""
    files = [f for output in outputs.values() for f in output.get("images", []) if f["filename"].endswith(".mp4")]
    found = {re.sub(r"_\d+_\.mp4$", "", file["filename"]): file for file in files}
    assert len(found) == len(files)
    return found


def frames_of(server: Any, outputs: Mapping[str, Any], name: str | None = None) -> np.ndarray:
    """The frames [n, height, width, 3] of the video of this name, or of the only one."""
    files = videos_of(outputs)
    (file,) = files.values() if name is None else [files[name]]
    with av.open(io.BytesIO(server.view(file))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# --- as files ---------------------------------------------------------------------------------------------------------


def test_there_is_a_workflow_for_each_promise() -> None:
    plain, further = {WAN21, WAN21_KSAMPLER, WAN22, COG, COG_KSAMPLER}, {COMPARE, SWEEP, ONCE}
    assert plain | further | NEWER == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_workflow_has_a_picture_that_the_template_browser_shows(name: str) -> None:
    with Image.open(FOLDER / f"{name}.jpg") as picture:  # the page looks for a .jpg of the workflow's name
        assert picture.format == "JPEG" and min(picture.size) >= 400


@pytest.mark.parametrize("name", NAMES)
def test_nodes_links_and_slots_of_a_file_agree_with_each_other(name: str) -> None:
    saved = shipped(name)
    nodes = {node["id"]: node for node in saved["nodes"]}
    assert len(nodes) == len(saved["nodes"]) and max(nodes) == saved["last_node_id"]
    seen = set()
    for link, source, out, target, slot, kind in saved["links"]:
        assert link in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][slot]["link"] == link
        assert kind in (nodes[source]["outputs"][out]["type"], "*")
        seen.add(link)
    used = {s["link"] for node in nodes.values() for s in node.get("inputs", []) if s["link"] is not None}
    assert used == seen and max(seen) == saved["last_link_id"]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_nodes_of_a_workflow_cover_each_other(name: str) -> None:
    boxes = [(node["pos"], node["size"]) for node in shipped(name)["nodes"]]
    title = 30  # pixels above a node's position
    for i, ((x, y), (w, h)) in enumerate(boxes):
        for (u, v), (a, b) in boxes[i + 1 :]:
            assert x + w <= u or u + a <= x or y + h <= v - title or v + b <= y - title


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_the_pack_carry_the_registry_s_name_so_that_the_manager_finds_it(name: str) -> None:
    (project,) = re.findall(r'^name = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    own = [node for node in shipped(name)["nodes"] if node["type"] in OWN]
    assert own and all(node["properties"]["cnr_id"] == project for node in own)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (DEMO, COG, COG_KSAMPLER)])
def test_every_model_file_comes_with_its_official_address(name: str) -> None:
    nodes = shipped(name)["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] in workflow.NOTES]
    chosen = [node for node in nodes if node["type"] in LOADERS]
    usual = ["SRLoadSketchDiT", "SRLoadRenderDiT", "CLIPLoader", "VAELoader"]
    assert sorted(node["type"] for node in chosen) == sorted(LOADED.get(name, usual))
    for node in chosen:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        if model["directory"] == "loras" and not model["url"].startswith(OFFICIAL):
            assert model["url"] == KIJAI + model["name"]
        elif node["type"] == "UnetLoaderGGUF":
            assert model["url"] == QUANTIZED + model["name"]
        else:
            assert model["url"].startswith(OFFICIAL) and model["url"].endswith(f"/{model['directory']}/{model['name']}")
        assert f"[{model['name']}]({model['url']}) in **models/{model['directory']}**" in note


@pytest.mark.parametrize("name", [COG, COG_KSAMPLER])
def test_every_model_folder_comes_with_its_official_address_in_the_note(name: str) -> None:
    nodes = shipped(name)["nodes"]
    (note,) = [node["widgets_values"][0] for node in nodes if node["type"] in workflow.NOTES]
    chosen = [node for node in nodes if node["type"] in ("SRLoadSketchDiT", "SRLoadRenderDiT")]
    assert len(chosen) == 2
    for node in chosen:
        repository, inner = node["widgets_values"][0].split("/")
        assert f"https://huggingface.co/zai-org/{repository}/tree/main/{inner})" in note
        assert f"**models/diffusion_models/{repository}/{inner}**" in note
    files = [node for node in nodes if node["type"] in ("CLIPLoader", "VAELoader")]
    assert len(files) == 2
    for node in files:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0] == model["url"].rpartition("/")[2]
        assert f"({model['url']}) in **models/{model['directory']}**" in note


def test_the_file_names_and_addresses_are_those_of_the_host_s_own_templates() -> None:
    folders = [Path(path).parent for path in comfyui_workflow_templates_core.__path__]
    wan = (WAN21, WAN22, FEW_STEP, THREE, BALANCED, LONG, MOE, MOE_LORA, MOE_IMAGE, IMAGE, VACE)
    subjects = dict.fromkeys(wan, "wan") | {
        COG: "void",
        FLUX: "flux2",
    }  # void: made of CogVideoX, with its VAE and text encoder
    for name in subjects.keys() & set(NAMES):
        pattern = f"comfyui_workflow_templates*/**/*{subjects[name]}*.json"
        texts = [path.read_text("utf-8") for folder in folders for path in folder.glob(pattern)]
        for node in shipped(name)["nodes"]:
            for model in node["properties"].get("models", []):
                assert any(model["url"] in text for text in texts), model["url"]


# --- against the host -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_node_link_and_value_is_one_the_host_knows(name: str, info: Mapping[str, Any]) -> None:
    saved = shipped(name)
    nodes = {node["id"]: node for node in saved["nodes"]}
    for node in nodes.values():
        if node["type"] in workflow.NOTES:
            continue
        definition = info[node["type"]]
        declared = {input_name: (kind, options) for input_name, kind, options in workflow.specs(definition)}
        for slot in node["inputs"]:
            kind, _ = declared[slot["name"]]
            assert slot["type"] == ("COMBO" if isinstance(kind, list) else kind)
        outputs = [slot["type"] for slot in node["outputs"]]
        assert outputs == list(definition["output"])[: len(outputs)]  # newer hosts have outputs more
    for _, source, out, target, slot, _ in saved["links"]:
        given = info[nodes[source]["type"]]["output"][out]
        kinds = {input_name: kind for input_name, kind, _ in workflow.specs(info[nodes[target]["type"]])}
        wanted = kinds[nodes[target]["inputs"][slot]["name"]]
        assert wanted in (given, "*")


@pytest.mark.parametrize("name", NAMES)
def test_every_widget_has_exactly_one_value_and_it_is_allowed(name: str, info: Mapping[str, Any]) -> None:
    saved = {str(node["id"]): node for node in shipped(name)["nodes"]}
    for node_id, node in workflow.to_api(shipped(name), info).items():  # raises for values too few or too many
        widgets = [s for s in workflow.specs(info[node["class_type"]]) if workflow.is_widget(*s[1:])]
        controls = sum(
            bool(options.get("control_after_generate") or options.get("image_upload")) for _, _, options in widgets
        )
        missing = len(widgets) + controls - len(saved[node_id].get("widgets_values") or [])
        assert missing == 0 or missing_are_new(node["class_type"], missing)
        for input_name, kind, options in widgets:
            value = node["inputs"][input_name]
            if isinstance(value, list):
                continue  # linked: the seed comes from its own node
            allowed = workflow.choices(kind, options)
            assert allowed is None or value in allowed, (node["class_type"], input_name, value)
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options.get("max", value), (node["class_type"], input_name, value)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_from_before_the_newest_widgets_gives_the_same_graph(name: str, info: Mapping[str, Any]) -> None:
    before, plain = (json.loads(json.dumps(shipped(name))) for _ in range(2))
    own = [pair for pair in zip(before["nodes"], plain["nodes"]) if pair[0]["type"] in LATER]
    for old, new in own:
        count = LATER[old["type"]]
        del old["widgets_values"][-count:]
        defaults = [
            options["default"]
            for _, kind, options in workflow.specs(info[old["type"]])
            if workflow.is_widget(kind, options)
        ]
        new["widgets_values"][-count:] = defaults[-count:]
    assert own and workflow.to_api(before, info) == workflow.to_api(plain, info)
    if name not in NEWER | {DEMO}:
        assert plain == shipped(name)


def missing_are_new(class_type: str, missing: int) -> bool:
    """Newer hosts have more widgets on these nodes; files are written for the oldest host and get the defaults."""
    return (class_type, missing) in (("CreateVideo", 1), ("WanContextWindowsManual", 2))


def test_the_page_lists_the_workflows_as_templates_of_the_pack(server: Any) -> None:
    assert set(TEMPLATES) <= set(server.get("/api/workflow_templates")["ComfyUI-SRDiffusion"])


def test_a_workflow_with_too_many_or_unknown_values_is_refused_in_words(info: Mapping[str, Any]) -> None:
    saved = json.loads(json.dumps(shipped(DEMO)))
    sampler = next(node for node in saved["nodes"] if node["type"] == "SRSampler")
    sampler["widgets_values"].append(1)
    with pytest.raises(workflow.WorkflowError, match=r"SRSampler.*left over"):
        workflow.to_api(saved, info)
    sampler["type"] = "SRNoSuchNode"
    with pytest.raises(workflow.WorkflowError, match=r"SRNoSuchNode.*not a node of this server"):
        workflow.to_api(saved, info)


def test_inputs_that_a_choice_brings_are_named_after_it_and_its_values_follow_in_the_file() -> None:
    crf = {"crf": ["FLOAT", {"default": 23.0}]}
    encoding = {"options": [{"key": "auto", "inputs": {"required": {}}}, {"key": "again", "inputs": {"required": crf}}]}
    inputs = {"codec": ["COMBO", {"options": ["auto", "h264"]}], "encoding": ["COMFY_DYNAMICCOMBO_V3", encoding]}
    format_ = {"options": [{"key": "auto", "inputs": {"required": {}}}, {"key": "mp4", "inputs": {"required": inputs}}]}
    declared = {"format": ["COMFY_DYNAMICCOMBO_V3", format_], "name": ["STRING", {"default": "video"}]}
    info = {"Save": {"input": {"required": declared}}}

    def inputs_of(*values: Any) -> dict[str, Any]:
        node = {"id": 1, "type": "Save", "widgets_values": list(values)}
        return workflow.to_api({"nodes": [node], "links": []}, info)["1"]["inputs"]

    whole = inputs_of("mp4", "h264", "again", 30.0, "clip")
    assert whole == {
        "format": "mp4",
        "format.codec": "h264",
        "format.encoding": "again",
        "format.encoding.crf": 30.0,
        "name": "clip",
    }
    assert inputs_of("auto", "clip") == {"format": "auto", "name": "clip"}
    assert inputs_of("mp4") == {"format": "mp4", "format.codec": "auto", "format.encoding": "auto", "name": "video"}
    with pytest.raises(workflow.WorkflowError, match="left over"):
        inputs_of("auto", "h264", "clip")


# --- in the host ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_runs_in_the_real_server_and_saves_its_video(
    name: str, server: Any, info: Mapping[str, Any]
) -> None:
    graph = ready(name, info)
    outputs = run(server, graph)
    assert name not in VIDEOS or sorted(videos_of(outputs)) == VIDEOS[name]
    if name == FLUX:
        (saved,) = [
            file for output in outputs.values() for file in output.get("images", []) if file["type"] == "output"
        ]
        assert Image.open(io.BytesIO(server.view(saved))).size == (4, 2)  # the test's node shows the latent
    for video in VIDEOS.get(name, [None] * (name != FLUX)):
        shape = (13 if name == LONG else SMALL["length"], SMALL["height"], WIDE.get(name, SMALL["width"]), 3)
        assert frames_of(server, outputs, video).shape == shape
    steps = next(node["inputs"]["steps"] for node in graph.values() if "steps" in node["inputs"])
    walked, stages = STEPS.get(name, steps), STAGES.get(name, ["sketch", "render"])
    reports = reports_of(outputs)
    assert len(reports) == sum(node["class_type"] == "SRSwitchInspector" for node in graph.values())
    for report in reports:
        assert report["status"] == "done" and len(report["steps"]) == walked == sum(
            stage["calls"] for stage in report["stages"]
        )
        assert report["given_steps"] in (steps, 0)
        if report["switch"]["delta"] >= 0.01:  # a smaller one may never be reached by random weights
            assert [hand_over["to"] for hand_over in report["hand_overs"]] == stages[1:]
            assert {step["stage"] for step in report["steps"]} == set(stages)


def test_the_wan_2_2_high_noise_model_never_runs_below_the_noise_it_was_trained_for(
    server: Any, info: Mapping[str, Any]
) -> None:
    report = report_of(run(server, ready(WAN22, info)))
    sketch = [step["sigma"] for step in report["steps"] if step["stage"] == "sketch"]
    render = [step["sigma"] for step in report["steps"] if step["stage"] == "render"]
    assert min(sketch) >= 0.875 > max(render)
    assert len(sketch) == 13  # what the workflow's note says


def test_wan_2_2_high_noise_low_noise_and_the_small_model_each_run_the_steps_of_the_note(
    server: Any, info: Mapping[str, Any]
) -> None:
    graph = ready(THREE, info)
    (first,) = [node["inputs"] for node in graph.values() if node["class_type"] == "SRModel"]
    assert graph[first["sketch"][0]]["class_type"] == "ModelSamplingSD3"  # the schedule is the high noise model's
    report = report_of(run(server, graph))
    sigmas = {stage: [step["sigma"] for step in report["steps"] if step["stage"] == stage] for stage in STAGES[THREE]}
    assert min(sigmas["sketch"]) >= 0.875 > max(sigmas["sketch 2"])
    assert [len(of_stage) for of_stage in sigmas.values()] == [13, 5, 12]
    assert [(h["after_step"], h["reason"]) for h in report["hand_overs"]] == [(13, "sigma"), (18, "step")]
    assert [bool(hand_over["fade"]) for hand_over in report["hand_overs"]] == [False, True]


def test_the_few_step_render_runs_in_one_go_with_a_lora_that_the_sketch_does_not_see(
    server: Any, info: Mapping[str, Any]
) -> None:
    graph = ready(FEW_STEP, info)
    lora, loader = (workflow.find(graph, kind) for kind in ("LoraLoaderModelOnly", "SRLoadSketchDiT"))
    outputs = run(server, graph)
    report, frames = report_of(outputs), frames_of(server, outputs)
    assert (report["given_steps"], len(report["sigmas"]) - 1, report["sampler"]) == (50, STEPS[FEW_STEP], "euler")
    assert [(h["after_step"], h["reason"]) for h in report["hand_overs"]] == [(10, "step")]
    assert not [note for note in report["notes"] if "anew" in note]
    again = graph[loader] | {"class_type": "SRLoadRenderDiT"}  # weights of its own under the LoRA: the same video
    apart = workflow.set_inputs(graph | {"again": again}, lora, model=["again", 0])
    assert np.array_equal(frames_of(server, run(server, apart)), frames)
    without = workflow.set_inputs(graph, lora, strength_model=0.0)
    assert not np.array_equal(frames_of(server, run(server, without)), frames)


def test_wan_2_2_in_one_sampler_gives_each_model_the_noise_it_was_trained_for(
    server: Any, info: Mapping[str, Any]
) -> None:
    for name, boundary in ((MOE, 0.875), (MOE_LORA, 0.875), (MOE_IMAGE, 0.9)):
        report = report_of(run(server, ready(name, info)))
        high, low = (
            [step["sigma"] for step in report["steps"] if step["stage"] == stage] for stage in ("sketch", "render")
        )
        assert min(high) >= boundary > max(low)
        if name == MOE_LORA:
            assert (len(high), len(low), report["given_steps"]) == (9, 4, 20)  # as the note says


def test_the_balanced_workflow_is_the_plain_one_with_20_steps_and_a_fade(info: Mapping[str, Any]) -> None:
    plain, balanced = (workflow.to_api(shipped(name), info) for name in (WAN21, BALANCED))
    assert balanced == workflow.set_inputs(plain, workflow.find(plain, "SRSampler"), fade=1.1, steps=20)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_with_its_note_and_all_loaders_in_view(name: str) -> None:
    """In a window of 1920 x 1080, large enough to read."""
    saved = shipped(name)
    scale, (left, top) = saved["extra"]["ds"]["scale"], saved["extra"]["ds"]["offset"]
    assert scale >= 0.62
    shown = [node for node in saved["nodes"] if node["type"] in (*LOADERS, *workflow.NOTES)]
    for (x, y), (w, h) in ((node["pos"], node["size"]) for node in shown):
        assert (x + left) * scale >= 60 and (x + w + left) * scale <= 1920  # the page's side bar is 60 pixels wide
        assert (y - 30 + top) * scale >= 110 and (y + h + top) * scale <= 1080  # its tabs and its menu take 110


@pytest.mark.parametrize("name", NAMES)
def test_a_note_has_no_code_spans_which_nodes_2_0_draws_blue_on_blue(name: str) -> None:
    assert not [
        node for node in shipped(name)["nodes"] if node["type"] in workflow.NOTES and "`" in node["widgets_values"][0]
    ]


@pytest.mark.parametrize(
    ("name", "preset"), [(WAN21, "paper"), (BALANCED, "balanced"), (FAST, "fast"), (FEW_STEP, "few-step render")]
)
def test_a_workflow_that_has_a_preset_s_name_has_its_values(name: str, preset: str, info: Mapping[str, Any]) -> None:
    graph = workflow.to_api(shipped(name), info)
    values = graph[workflow.find(graph, "SRSampler")]["inputs"]
    assert module("nodes.presets").PRESETS[preset].items() <= values.items()


def test_the_fast_workflow_is_the_balanced_one_with_a_render_without_guidance(info: Mapping[str, Any]) -> None:
    balanced, fast = (workflow.to_api(shipped(name), info) for name in (BALANCED, FAST))
    assert fast == workflow.set_inputs(balanced, workflow.find(balanced, "SRSampler"), render_cfg=1)


def test_the_720p_workflow_is_the_plain_one_with_a_smaller_sketch(server: Any, info: Mapping[str, Any]) -> None:
    plain, hd = (workflow.to_api(shipped(name), info) for name in (WAN21, HD))
    sampler, latent, save = (
        workflow.find(plain, kind) for kind in ("SRSampler", "EmptyHunyuanLatentVideo", "SaveVideo")
    )
    expected = workflow.set_inputs(plain, sampler, sketch_scale=0.667)
    expected = workflow.set_inputs(expected, latent, width=1280, height=720, length=81)
    assert hd == workflow.set_inputs(expected, save, filename_prefix=hd[save]["inputs"]["filename_prefix"])
    assert any(
        "on a latent of 2 x 4 instead of 4 x 8" in note for note in report_of(run(server, ready(HD, info)))["notes"]
    )


@pytest.mark.parametrize("name", KSAMPLER_OF)
def test_sr_sampler_and_sketch_render_model_with_ksampler_make_the_same_video(
    name: str, server: Any, info: Mapping[str, Any]
) -> None:
    videos = [frames_of(server, run(server, ready(which, info))) for which in (name, KSAMPLER_OF[name])]
    assert np.array_equal(videos[0], videos[1])


def test_the_compare_workflow_compares_two_runs_that_differ_in_nothing_but_the_hand_over(
    server: Any, info: Mapping[str, Any]
) -> None:
    graph = ready(COMPARE, info)
    plain, both = (graph[workflow.find(graph, kind)]["inputs"] for kind in ("KSampler", "SRSampler"))
    shared = {"seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "positive", "negative"}
    assert {name: plain[name] for name in shared} == {name: both[name] for name in shared}
    assert (plain["model"], plain["latent_image"]) == (both["sketch"], both["latent"])
    shown = run(server, graph)[workflow.find(graph, "SRCompare")]
    assert shown["text"][0].startswith("sketch + render compared with sketch only") and "PSNR: " in shown["text"][0]


def test_sketch_once_render_many_makes_sr_sampler_s_video_and_does_not_sketch_for_another_render(
    server: Any, info: Mapping[str, Any]
) -> None:
    graph, graph_in_one = ready(ONCE, info), ready(WAN21, info)
    seed = graph[workflow.find(graph, "SRSketch")]["inputs"]["seed"]
    in_one = run(server, workflow.set_inputs(graph_in_one, workflow.find(graph_in_one, "SRSampler"), seed=seed))
    assert np.array_equal(frames_of(server, run(server, graph), "render"), frames_of(server, in_one))
    cached = next(n for n, node in graph.items() if node["class_type"] == "SRRender" and node["inputs"]["teacache"])
    history = server.run(workflow.set_inputs(graph, cached, teacache=0.3, render_cfg=3.0), timeout=300)
    (kept,) = [data["nodes"] for what, data in history["status"]["messages"] if what == "execution_cached"]
    assert workflow.find(graph, "SRSketch") in kept and cached not in kept


def test_the_delta_sweep_differs_in_delta_only(info: Mapping[str, Any]) -> None:
    graph = workflow.to_api(shipped(SWEEP), info)
    samplers = [node["inputs"] for node in graph.values() if node["class_type"] == "SRSampler"]
    assert [inputs["delta"] for inputs in samplers] == [0.002, 0.01, 0.03]
    assert len({json.dumps({**inputs, "delta": None}, sort_keys=True) for inputs in samplers}) == 1


DOCUMENTS = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
    *(f"web/docs/{n}.md" for n in OWN),
]

# --- what the README and the help pages say ---------------------------------------------------------------------------


def test_the_readme_s_table_of_pairs_is_the_data() -> None:
    readme = (REPOSITORY / "docs" / "pairs.md").read_text("utf-8")
    for pair in module("srd_core.families").PAIRS:
        assert f"| {pair.sketch} | {pair.render} | {pair.tried} |" in readme


@pytest.mark.parametrize("node_id", OWN)
def test_every_node_has_a_help_page_that_names_each_input_and_output(node_id: str, info: Mapping[str, Any]) -> None:
    page = (REPOSITORY / "web" / "docs" / f"{node_id}.md").read_text("utf-8")
    names = [name for name, _, _ in workflow.specs(info[node_id])] + list(info[node_id]["output_name"])
    assert page.startswith(f"# {info[node_id]['display_name']}\n")
    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_or_names_is_there(document: str) -> None:
    path = REPOSITORY / document
    text = path.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link and "/actions/" not in link]
    assert not [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert not [name for name in re.findall(r"`(workflows/[^`]+)`", text) if not (REPOSITORY / name).is_file()]


@pytest.mark.parametrize("document", ["README.md", "README.zh.md"])
def test_both_readmes_name_every_workflow_but_those_of_other_samplers(document: str) -> None:
    named = set(re.findall(r"\]\(workflows/([^)]+)\.json\)", (REPOSITORY / document).read_text("utf-8")))
    assert named == set(TEMPLATES) - {WAN21_KSAMPLER, COG_KSAMPLER}
