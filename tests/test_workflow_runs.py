"""Each workflow as shipped, in the real server, with tiny random files under the shipped names.

Only two things are changed: the size of the video, and CLIPLoader with CLIPTextEncode (no text encoder of Wan's can be
tiny), which become a test node that makes up embeddings of the right width. The tiny VAE is Wan's in all of them: the
host builds CogVideoX's at full size only, and its latents have the same shape.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import av
import numpy as np
import pytest
import workflow_files as wf
from PIL import Image
from workflow_files import NAMES, shipped, workflow

SMALL = {"width": 64, "height": 32, "length": 5}
SIZES = ("EmptyHunyuanLatentVideo", "WanImageToVideo", "WanVaceToVideo", "EmptyFlux2LatentImage")
WINDOW = {"context_length": 9, "context_overlap": 4}  # of 13 frames
WIDE = {wf.COMPARE: 2 * 64, wf.SWEEP: 3 * 64 + 2 * 8}  # pixels of the saved video: clips side by side, 8 pixels between
STEPS = {wf.FEW_STEP: 14, wf.MOE_LORA: 13}  # of a workflow in which the render walks the rest in its own steps
STAGES = {wf.THREE: ["sketch", "sketch 2", "render"]}
TEXT_WIDTHS = {"mistral_3_small_flux2_fp8.safetensors": 15360, "qwen_3_4b.safetensors": 7680}
# Of a workflow that saves more than one, without numbers.
VIDEOS = {wf.ONCE: ["render", "render_teacache", "sketch_preview"]}
Ran = Callable[[str], dict[str, Any]]
KSAMPLER_OF = {name: f"{name}_ksampler" for name in (wf.WAN21, wf.COG)}


def run(server: Any, graph: Mapping[str, Any]) -> dict[str, Any]:
    """Run a graph; its outputs by node id."""
    return server.run(graph, timeout=300)["outputs"]


@pytest.fixture(scope="module")
def ran(server: Any, info: Mapping[str, Any]) -> Ran:
    """By a shipped workflow's name: the outputs of its one run."""
    return cache(lambda name: run(server, ready(name, info)))


def ready(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """A shipped workflow as the API takes it, small, with the test's text node where it needs a real text encoder."""
    graph = workflow.to_api(shipped(name), info)
    for node_id, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] in SIZES:
            small = SMALL | ({"length": 13} if name == wf.LONG else {})
            inputs |= {key: value for key, value in small.items() if key in inputs}
        if node["class_type"] == "WanContextWindowsManual":
            inputs |= WINDOW
        if node["class_type"] == "CLIPTextEncode":
            width = TEXT_WIDTHS.get(graph[inputs["clip"][0]]["inputs"]["clip_name"], 4096)
            graph[node_id] = {"class_type": "SRTestText", "inputs": {"text": inputs["text"], "width": width}}
        if node["class_type"] == "CLIPVisionEncode":
            graph[node_id] = {"class_type": "SRTestVision", "inputs": {"image": inputs["image"]}}
        if node["class_type"] == "VAEDecode" and name == wf.FLUX:
            graph[node_id] = {"class_type": "SRTestDecode", "inputs": {"samples": inputs["samples"]}}
    return graph


def report_of(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The report that the Inspector shows."""
    (report,) = reports_of(outputs)
    return report


def sigmas_of(report: Mapping[str, Any], stage: str) -> list[float]:
    """The noise of the steps that a stage ran."""
    return [step["sigma"] for step in report["steps"] if step["stage"] == stage]


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


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_runs_in_the_real_server_and_saves_its_video(
    name: str, server: Any, ran: Ran, info: Mapping[str, Any]
) -> None:
    graph, outputs = ready(name, info), ran(name)
    assert name not in VIDEOS or sorted(videos_of(outputs)) == VIDEOS[name]
    if name == wf.FLUX:
        (saved,) = (f for output in outputs.values() for f in output.get("images", []) if f["type"] == "output")
        assert Image.open(io.BytesIO(server.view(saved))).size == (4, 2)  # the test's node shows the latent
    for video in VIDEOS.get(name, [None] * (name != wf.FLUX)):
        shape = (13 if name == wf.LONG else SMALL["length"], SMALL["height"], WIDE.get(name, SMALL["width"]), 3)
        assert frames_of(server, outputs, video).shape == shape
    steps = next(node["inputs"]["steps"] for node in graph.values() if "steps" in node["inputs"])
    walked, stages = STEPS.get(name, steps), STAGES.get(name, ["sketch", "render"])
    reports = reports_of(outputs)
    assert len(reports) == sum(node["class_type"] == "SRSwitchInspector" for node in graph.values())
    for report in reports:
        calls = sum(stage["calls"] for stage in report["stages"])
        assert report["status"] == "done" and len(report["steps"]) == walked == calls
        assert report["given_steps"] in (steps, 0)
        if report["switch"]["delta"] >= 0.01:  # a smaller one may never be reached by random weights
            assert [hand_over["to"] for hand_over in report["hand_overs"]] == stages[1:]
            assert {step["stage"] for step in report["steps"]} == set(stages)


def test_wan_2_2_high_low_and_the_small_model_each_run_the_steps_of_the_note(ran: Ran, info: Mapping[str, Any]) -> None:
    graph = ready(wf.THREE, info)
    (first,) = [node["inputs"] for node in graph.values() if node["class_type"] == "SRModel"]
    assert graph[first["sketch"][0]]["class_type"] == "ModelSamplingSD3"  # the schedule is the high noise model's
    report = report_of(ran(wf.THREE))
    high, low, small = (sigmas_of(report, stage) for stage in STAGES[wf.THREE])
    assert min(high) >= 0.875 > max(low) and (len(high), len(low), len(small)) == (13, 5, 12)
    assert [(h["after_step"], h["reason"]) for h in report["hand_overs"]] == [(13, "sigma"), (18, "step")]
    assert [bool(hand_over["fade"]) for hand_over in report["hand_overs"]] == [False, True]


def test_the_few_step_render_runs_in_one_go_with_a_lora_that_the_sketch_does_not_see(
    server: Any, ran: Ran, info: Mapping[str, Any]
) -> None:
    graph = ready(wf.FEW_STEP, info)
    lora, loader = (workflow.find(graph, kind) for kind in ("LoraLoaderModelOnly", "SRLoadSketchDiT"))
    report, frames = report_of(ran(wf.FEW_STEP)), frames_of(server, ran(wf.FEW_STEP))
    assert (report["given_steps"], len(report["sigmas"]) - 1, report["sampler"]) == (50, STEPS[wf.FEW_STEP], "euler")
    assert [(h["after_step"], h["reason"]) for h in report["hand_overs"]] == [(10, "step")]
    assert not [note for note in report["notes"] if "anew" in note]
    again = graph[loader] | {"class_type": "SRLoadRenderDiT"}  # weights of its own under the LoRA: the same video
    apart = workflow.set_inputs(graph | {"again": again}, lora, model=["again", 0])
    assert np.array_equal(frames_of(server, run(server, apart)), frames)
    without = workflow.set_inputs(graph, lora, strength_model=0.0)
    assert not np.array_equal(frames_of(server, run(server, without)), frames)


@pytest.mark.parametrize(
    ("name", "boundary", "steps"),
    [(wf.WAN22, 0.875, (13, 17)), (wf.MOE, 0.875, None), (wf.MOE_LORA, 0.875, (9, 4)), (wf.MOE_IMAGE, 0.9, None)],
    ids=["small render", "low noise", "LoRA", "image"],
)
def test_wan_2_2_gives_each_model_the_noise_it_was_trained_for(
    name: str, boundary: float, steps: tuple[int, int] | None, ran: Ran
) -> None:
    """And the steps that the workflow's note says."""
    report = report_of(ran(name))
    high, low = sigmas_of(report, "sketch"), sigmas_of(report, "render")
    assert min(high) >= boundary > max(low) and steps in (None, (len(high), len(low)))


def test_the_720p_workflow_is_the_plain_one_with_a_smaller_sketch(ran: Ran, info: Mapping[str, Any]) -> None:
    plain, hd = (workflow.to_api(shipped(name), info) for name in (wf.WAN21, wf.HD))
    sampler, latent, save = (
        workflow.find(plain, kind) for kind in ("SRSampler", "EmptyHunyuanLatentVideo", "SaveVideo")
    )
    expected = workflow.set_inputs(plain, sampler, sketch_scale=0.667)
    expected = workflow.set_inputs(expected, latent, width=1280, height=720, length=81)
    assert hd == workflow.set_inputs(expected, save, filename_prefix=hd[save]["inputs"]["filename_prefix"])
    assert any("on a latent of 2 x 4 instead of 4 x 8" in note for note in report_of(ran(wf.HD))["notes"])


@pytest.mark.parametrize("name", KSAMPLER_OF)
def test_sr_sampler_and_sketch_render_model_with_ksampler_make_the_same_video(name: str, server: Any, ran: Ran) -> None:
    assert np.array_equal(frames_of(server, ran(name)), frames_of(server, ran(KSAMPLER_OF[name])))


def test_the_compared_runs_differ_in_nothing_but_the_hand_over(ran: Ran, info: Mapping[str, Any]) -> None:
    graph = ready(wf.COMPARE, info)
    plain, both = (graph[workflow.find(graph, kind)]["inputs"] for kind in ("KSampler", "SRSampler"))
    shared = {"seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "positive", "negative"}
    assert {name: plain[name] for name in shared} == {name: both[name] for name in shared}
    assert (plain["model"], plain["latent_image"]) == (both["sketch"], both["latent"])
    shown = ran(wf.COMPARE)[workflow.find(graph, "SRCompare")]
    assert shown["text"][0].startswith("sketch + render compared with sketch only") and "PSNR: " in shown["text"][0]


def test_sketch_once_render_many_makes_sr_sampler_s_video_and_sketches_once(
    server: Any, ran: Ran, info: Mapping[str, Any]
) -> None:
    in_one = ready(wf.WAN21, info)
    seed = in_one[workflow.find(in_one, "SRSampler")]["inputs"]["seed"]
    graph = ready(wf.ONCE, info)
    graph = workflow.set_inputs(graph, workflow.find(graph, "SRSketch"), seed=seed)
    expected = frames_of(server, ran(wf.WAN21))
    assert np.array_equal(frames_of(server, run(server, graph), "render"), expected)
    cached = next(n for n, node in graph.items() if node["class_type"] == "SRRender" and node["inputs"]["teacache"])
    history = server.run(workflow.set_inputs(graph, cached, teacache=0.3, render_cfg=3.0), timeout=300)
    (kept,) = [data["nodes"] for what, data in history["status"]["messages"] if what == "execution_cached"]
    assert workflow.find(graph, "SRSketch") in kept and cached not in kept
