"""The shipped workflows as files: every node, link and value fits the host's /object_info."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfyui_workflow_templates_core
import pytest
import workflow_files as wf
from hosting import REPOSITORY, module
from workflow_files import NAMES, shipped, workflow

FIRST = {wf.WAN21, wf.WAN21_KSAMPLER, wf.WAN22, wf.COG, wf.COG_KSAMPLER, wf.COMPARE, wf.SWEEP, wf.ONCE}  # releases
PAIR = ("SRLoadSketchDiT", "SRLoadRenderDiT")
LOADERS = (*PAIR, "UNETLoader", "UnetLoaderGGUF", "LoraLoaderModelOnly", "CLIPLoader", "VAELoader", "CLIPVisionLoader")
LOADED = {
    wf.THREE: [*PAIR, "SRLoadRenderDiT", "CLIPLoader", "VAELoader"],
    wf.FEW_STEP: ["SRLoadSketchDiT", "LoraLoaderModelOnly", "CLIPLoader", "VAELoader"],
    wf.MOE_LORA: [*PAIR, "LoraLoaderModelOnly", "CLIPLoader", "VAELoader"],
    wf.IMAGE: [*PAIR, "CLIPLoader", "VAELoader", "CLIPVisionLoader"],
    wf.GGUF: ["UnetLoaderGGUF", "SRLoadRenderDiT", "CLIPLoader", "VAELoader"],
    wf.FLUX: ["UNETLoader", "UNETLoader", "CLIPLoader", "CLIPLoader", "VAELoader"],
}
OFFICIAL = tuple(
    f"https://huggingface.co/Comfy-Org/{name}" for name in ("Wan_2.1_", "Wan_2.2_", "flux2-dev/", "flux2-klein/")
)
QUANTIZED = "https://huggingface.co/city96/Wan2.1-T2V-14B-gguf/resolve/main/"
KIJAI = "https://huggingface.co/Kijai/WanVideo_comfy/resolve/main/Lightx2v/"  # of LoRAs
# Widgets that a file of the first release has no value for.
LATER = {"SRSampler": 5, "SRModel": 5, "SRSketch": 1, "SRRender": 2, "SRSwitchInspector": 1}


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
    own = [node for node in shipped(name)["nodes"] if re.match("SR(?!Demo)", node["type"])]
    assert own and all(node["properties"]["cnr_id"] == project for node in own)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (wf.DEMO, wf.COG, wf.COG_KSAMPLER)])
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


@pytest.mark.parametrize("name", [wf.COG, wf.COG_KSAMPLER])
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
    wan = (name for name in NAMES if name.startswith("wan2") and name != wf.GGUF)
    # void: made of CogVideoX, with its VAE and text encoder.
    for name, subject in (dict.fromkeys(wan, "wan") | {wf.COG: "void", wf.FLUX: "flux2"}).items():
        pattern = f"comfyui_workflow_templates*/**/*{subject}*.json"
        texts = [path.read_text("utf-8") for folder in folders for path in folder.glob(pattern)]
        for node in shipped(name)["nodes"]:
            for model in node["properties"].get("models", []):
                assert any(model["url"] in text for text in texts), model["url"]


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
    if name in FIRST:
        assert plain == json.loads(json.dumps(shipped(name)).replace('"paper"', '"custom"'))


def missing_are_new(class_type: str, missing: int) -> bool:
    """Newer hosts have more widgets on these nodes; files are written for the oldest host and get the defaults."""
    return (class_type, missing) in (("CreateVideo", 1), ("WanContextWindowsManual", 2))


def test_a_workflow_with_too_many_or_unknown_values_is_refused_in_words(info: Mapping[str, Any]) -> None:
    saved = json.loads(json.dumps(shipped(wf.DEMO)))
    sampler = next(node for node in saved["nodes"] if node["type"] == "SRSampler")
    sampler["widgets_values"].append(1)
    with pytest.raises(workflow.WorkflowError, match=r"SRSampler.*left over"):
        workflow.to_api(saved, info)
    sampler["type"] = "SRNoSuchNode"
    with pytest.raises(workflow.WorkflowError, match=r"SRNoSuchNode.*not a node of this server"):
        workflow.to_api(saved, info)


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A document", ": .*Choose"),
        ('{"3": {"class_type": "KSampler"}}', r" .*not Export \(API\)"),
        ("[]", " .*Use Save"),
    ],
    ids=["no JSON", "API", "a list"],
)
def test_a_file_that_the_page_did_not_save_is_called_that(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text, "utf-8")
    with pytest.raises(workflow.WorkflowError, match=f"other.json is not a workflow{words}"):
        workflow.load(tmp_path / "other.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_note_has_no_code_spans_which_nodes_2_0_draws_blue_on_blue(name: str) -> None:
    assert not [
        node for node in shipped(name)["nodes"] if node["type"] in workflow.NOTES and "`" in node["widgets_values"][0]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_which_preset_its_values_are(name: str, info: Mapping[str, Any]) -> None:
    presets = module("nodes.presets").PRESETS
    named = {wf.WAN21: "paper", wf.BALANCED: "balanced", wf.FAST: "fast", wf.FEW_STEP: "few-step render"}
    for node in workflow.to_api(shipped(name), info).values():
        if node["class_type"] == "SRSampler":
            fitting = {preset for preset, values in presets.items() if values.items() <= node["inputs"].items()}
            expected = {named[name]} if name in named else {"custom"} if name == wf.SWEEP else fitting or {"custom"}
            assert node["inputs"]["preset"] in expected and expected & (fitting | {"custom"})


def test_every_workflow_has_an_id_of_its_own() -> None:
    """The page knows by it which runs are an open workflow's."""
    ids = [shipped(name)["id"] for name in NAMES]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("plain", "name", "changes"),
    [
        (wf.WAN21, wf.BALANCED, {"fade": 1.1, "steps": 20, "preset": "balanced"}),
        (wf.BALANCED, wf.FAST, {"render_cfg": 1, "preset": "fast"}),
    ],
    ids=["balanced", "fast"],
)
def test_a_faster_workflow_is_the_plainer_one_but_for_these_values(
    plain: str, name: str, changes: dict[str, Any], info: Mapping[str, Any]
) -> None:
    before, after = (workflow.to_api(shipped(each), info) for each in (plain, name))
    assert after == workflow.set_inputs(before, workflow.find(before, "SRSampler"), **changes)


def test_the_delta_sweep_differs_in_delta_only(info: Mapping[str, Any]) -> None:
    graph = workflow.to_api(shipped(wf.SWEEP), info)
    samplers = [node["inputs"] for node in graph.values() if node["class_type"] == "SRSampler"]
    assert [inputs["delta"] for inputs in samplers] == [0.002, 0.01, 0.03]
    assert len({json.dumps({**inputs, "delta": None}, sort_keys=True) for inputs in samplers}) == 1
