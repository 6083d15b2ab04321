"""The demo inside the host's Python: run the workflow in the real server three ways, compare, and leave what it made.

Started by demo/run.py, which says how.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import host
import numpy as np
import run
import torch
import video
import workflow
from client import Server
from PIL import Image
from progress import Progress
from table import RUNS, disturbed, table

sys.path.append(str(run.HERE / "family"))

# isort: split
from oracle import score
from text import known_and_unknown, parse, vocabulary

likeness = host.load_by_path("srd_likeness", host.REPOSITORY / "srd_core" / "likeness.py")  # as SR Compare shows it

VIDEOS = ("sketch.mp4", "render.mp4", "sr.mp4", "side-by-side.mp4")
FILES = (*VIDEOS, "switch.png", "overview.png", "report.json", "table.md", "server.log")
WARM_UP_STEPS = 2
TURNS = 5  # of each run, one after the other: what disturbs the machine for a while disturbs all three
STILLS = (  # beside the user's prompt
    "a yellow star moves right below a purple circle",
    "two green triangles above a red square",
)
TIMEOUT = 1800.0  # seconds for one run
SWITCH = (
    "When it switched: how much the large model's prediction still changed (D), and the seconds of each step. "
    "Blue: sketch, orange: render."
)
HEADLINE = 108  # pixels of the Inspector's picture that hold its words and its own estimate


@dataclass
class Take:
    """One of the three runs, measured in several turns."""

    frames: video.Video  # of the first turn
    seconds: list[float] = field(default_factory=list)  # wall time of the sampler node, by turn
    step_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # by stage, but the first
    plot: bytes = b""  # the Inspector's, PNG
    report: dict[str, Any] = field(default_factory=dict)  # the Inspector's, of the first turn


def main() -> int:
    """The command; returns the exit status."""
    asked, began = run.arguments(), time.perf_counter()
    output = asked.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (output / name).unlink(missing_ok=True)
        film(host.find_or_make(), asked)
    except (host.HostError, workflow.WorkflowError, OSError) as error:
        log = output / "server.log"
        first, *others = str(error).splitlines()
        said = f"{first} {others[0]}" if first.endswith(":") and others else first
        host.say(f"demo: {said}" + (f" The server's log: {log}" if log.is_file() else ""))
        return 1
    except KeyboardInterrupt:
        host.say("\ndemo: stopped, and the server with it.")
        return 130
    host.say(f"\n{time.perf_counter() - began:.0f} s. Videos, plot, report and table are in {output}")
    return 0


def film(chosen: host.Host, asked: Namespace) -> None:
    """Make everything that the demo leaves."""
    output, saved = asked.output, workflow.load(asked.workflow)
    os.environ["OMP_NUM_THREADS"] = "1"  # one thread: two on a shared machine wait for each other in every operation
    with server(chosen, asked.weights, output) as running:
        graph = prepared(workflow.to_api(saved, running.object_info()), asked)
        prompt = graph[prompt_node(graph)]["inputs"]["text"]
        words = sort_words(prompt)
        graphs = three(graph)
        takes = {name: record(running, f"{i}/3 {RUNS[name]}", name, graphs[name]) for i, name in enumerate(RUNS, 1)}
        for turn in range(2, TURNS + 1):
            for name, take in takes.items():
                again(running, f"turn {turn} of {TURNS}, {RUNS[name]}", name, graphs[name], take, turn)
        stills = {other: shots(running, other, graph) for other in STILLS}
    report = compare(chosen, graph, prompt, words, takes)
    write_videos(output, report, takes, {prompt: {name: take.frames for name, take in takes.items()}, **stills})
    (output / "switch.png").write_bytes(takes["sr"].plot)
    (output / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (output / "table.md").write_text(table(report), "utf-8")
    print("\n" + table(report), flush=True)


def three(graph: workflow.Graph) -> dict[str, workflow.Graph]:
    """The graphs of the three runs, in RUNS' order."""
    return {"sketch": workflow.alone(graph, "sketch"), "render": workflow.alone(graph, "render"), "sr": graph}


@contextlib.contextmanager
def server(chosen: host.Host, weights: Path, output: Path) -> Iterator[Server]:
    """The real server with the pack, the demo's text node and the tiny family; its log is kept if something fails."""
    host.say(f"Starting ComfyUI {chosen.version} ({chosen.path})")
    with tempfile.TemporaryDirectory(prefix="srd-demo-", ignore_cleanup_errors=True) as base:
        try:
            with host.serve(chosen, Path(base), host.DEMO_PACKS, host.tiny_family(weights)) as running:
                yield running
        except Exception:
            with contextlib.suppress(OSError):  # no log, no copy; the error itself is raised
                shutil.copyfile(Path(base) / "server.log", output / "server.log")
            raise


def prompt_node(graph: workflow.Graph) -> str:
    """The text node whose words the video should show."""
    node_id: str = graph[workflow.find(graph, "SRSampler")]["inputs"]["positive"][0]
    return node_id


def prepared(graph: workflow.Graph, asked: Namespace) -> workflow.Graph:
    """The workflow's graph with the user's words and settings; without them as shipped."""
    if os.environ.get("PROMPT", "").strip():
        prompt = os.fsencode(os.environ["PROMPT"]).decode("utf-8", "replace")  # a terminal may give any bytes
        graph = workflow.set_inputs(graph, prompt_node(graph), text=prompt)
    given = {name: getattr(asked, name) for name in ("steps", "seed") if getattr(asked, name) is not None}
    return workflow.set_inputs(graph, workflow.find(graph, "SRSampler"), **given)


def sort_words(prompt: str) -> dict[str, list[str]]:
    """The prompt's words that the family knows and those that it ignores; says both."""
    known, unknown = (list(dict.fromkeys(words)) for words in known_and_unknown(prompt))
    host.say(f"Prompt: {prompt}\nWords it knows: {', '.join(known) or 'none'}")
    if unknown:
        host.say(f"Words it ignores: {', '.join(unknown)}. It was taught: {', '.join(vocabulary())}")
    if unknown and not known:
        host.say("It knows none of these words, so it draws what it likes.")
    return {"known": known, "unknown": unknown}


def sampler_of(graph: workflow.Graph) -> str:
    """The id of the node that samples."""
    kinds = {node["class_type"] for node in graph.values()}
    return workflow.find(graph, "SRSampler" if "SRSampler" in kinds else "KSampler")


def record(running: Server, label: str, name: str, graph: workflow.Graph) -> Take:
    """The first turn: a run up to its latent for warming up, then the whole graph for the record."""
    sampler = sampler_of(graph)
    both_stages = {"switch_mode": "step", "switch_step": 1} if name == "sr" else {}
    # Another seed: the server would take a run with equal inputs from its cache.
    seed = (graph[sampler]["inputs"]["seed"] + TURNS) % 2**64
    warm_up = workflow.set_inputs(graph, sampler, steps=WARM_UP_STEPS, seed=seed, **both_stages)
    follow(running, f"{label}, warm-up", workflow.up_to_latent(warm_up, sampler))
    graph, frames = workflow.keep_frames(graph)
    entry, progress = follow(running, label, graph)
    take = Take(decoded(running, entry, frames))
    if name == "sr":
        take.plot = running.view(shown(entry, graph)["plot"][0])
        take.report = json.loads(shown(entry, graph)["report"][0])
    measure(take, name, entry, graph, progress)
    return take


def again(running: Server, label: str, name: str, graph: workflow.Graph, take: Take, turn: int) -> None:
    """Another turn, with another seed and nothing decoded: only its seconds count."""
    sampler = sampler_of(graph)
    graph = workflow.set_inputs(graph, sampler, seed=(graph[sampler]["inputs"]["seed"] + turn - 1) % 2**64)
    if name == "sr":  # the Inspector has the seconds of each stage
        graph = workflow.needed_for(graph, workflow.find(graph, "SRSwitchInspector"))
    else:
        graph = workflow.up_to_latent(graph, sampler)
    entry, progress = follow(running, label, graph)
    measure(take, name, entry, graph, progress)


def measure(take: Take, name: str, entry: Mapping[str, Any], graph: workflow.Graph, progress: Progress) -> None:
    """Take down a turn's seconds."""
    sampler = sampler_of(graph)
    take.seconds.append(progress.seconds[sampler])
    if name != "sr":
        take.step_seconds[name] += progress.steps.get(sampler, [])
        return
    for step in json.loads(shown(entry, graph)["report"][0])["steps"][1:]:
        if step["seconds"] is not None:
            take.step_seconds[step["stage"]].append(step["seconds"])


def shown(entry: Mapping[str, Any], graph: workflow.Graph) -> dict[str, Any]:
    """What the Inspector shows of a run."""
    outputs: dict[str, Any] = entry["outputs"][workflow.find(graph, "SRSwitchInspector")]
    return outputs


def shots(running: Server, prompt: str, graph: workflow.Graph) -> dict[str, video.Video]:
    """The videos of the three runs with another prompt."""
    found = {}
    for name, own in three(workflow.set_inputs(graph, prompt_node(graph), text=prompt)).items():
        kept, frames = workflow.keep_frames(own)
        entry, _ = follow(running, f"{prompt}, {RUNS[name]}", workflow.needed_for(kept, frames))
        found[name] = decoded(running, entry, frames)
    return found


def decoded(running: Server, entry: Mapping[str, Any], node_id: str) -> video.Video:
    """The video whose frames a node saved as pictures."""
    pictures = (Image.open(io.BytesIO(running.view(file))) for file in entry["outputs"][node_id]["images"])
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def follow(running: Server, label: str, graph: workflow.Graph) -> tuple[dict[str, Any], Progress]:
    """Run a graph under a progress bar; its history entry, and the bar with the seconds it took down."""
    with contextlib.closing(Progress(label, graph)) as progress:
        return running.run(graph, progress, TIMEOUT), progress


# --- the comparison ---------------------------------------------------------------------------------------------------


def compare(
    chosen: host.Host, graph: workflow.Graph, prompt: str, words: Mapping[str, list[str]], takes: Mapping[str, Take]
) -> dict[str, Any]:
    """Everything measured, as report.json holds it."""
    settings = dict(graph[workflow.find(graph, "SRSampler")]["inputs"])
    videos = {name: take.frames for name, take in takes.items()}
    scores, note = oracle(prompt, videos)
    runs: dict[str, dict[str, Any]] = {}
    units = {name: torch.from_numpy(frames).double() / 255 for name, frames in videos.items()}
    for name, take in takes.items():
        psnr = float(likeness.psnr(units[name], units["sketch"]))
        steps, each = steps_of(name, take, settings["steps"]), medians(take)
        by_stage = {stage: count * each[stage] for stage, count in steps.items()}
        runs[name] = {
            "name": RUNS[name],
            "seconds": sum(by_stage.values()),
            "wall_seconds": statistics.median(take.seconds),
            "steps": steps,
            "stage_seconds": by_stage,
            "median_step_seconds": each,
            "slowest_step": max(max(s) / each[stage] for stage, s in take.step_seconds.items()),
            "psnr": None if math.isinf(psnr) else psnr,  # no difference, as JSON can hold it
            "ssim": float(likeness.ssim(units[name], units["sketch"]).mean()),
            "oracle": scores.get(name),
        }
    for one in runs.values():
        one["speed_up"] = runs["sketch"]["seconds"] / one["seconds"]
    own = takes["sr"].report
    return {
        "prompt": prompt,
        "words": dict(words),
        "settings": {key: value for key, value in settings.items() if not isinstance(value, list)},
        "host": {"version": chosen.version, "source": chosen.source, "cpus": os.cpu_count(), "turns": TURNS},
        "runs": runs,
        "hand_overs": [hand_over(h, settings["steps"]) for h in own["hand_overs"]],
        "oracle_note": note,
        "sr_report": own,
    }


def steps_of(name: str, take: Take, steps: int) -> dict[str, int]:
    """Steps of each stage in the run of that name."""
    if name == "sr":
        return {stage: sum(step["stage"] == stage for step in take.report["steps"]) for stage in ("sketch", "render")}
    return {"sketch": 0, "render": 0} | {name: steps}


def medians(take: Take) -> dict[str, float]:
    """Median seconds of a step of each stage: what a step costs, whatever else the machine did now and then."""
    return {"sketch": 0.0, "render": 0.0} | {stage: statistics.median(s) for stage, s in take.step_seconds.items()}


def hand_over(h: Mapping[str, Any], steps: int) -> str:
    """A hand-over of the report in words."""
    reason = h["reason"]
    if reason == "criterion" and h["fall"] is not None:
        reason += f", D fell by {h['fall']:.4f}"
    return f"to the {h['to']} after step {h['after_step']} of {steps}, at sigma {h['sigma']:.4f}; reason: {reason}"


def oracle(prompt: str, videos: Mapping[str, Any]) -> tuple[dict[str, dict[str, float]], str]:
    """What the family's oracle reads from each video, and a sentence about it; no scores where it can't judge."""
    scene, _ = parse(prompt)
    if len(scene.groups) < 2:
        scene = dataclasses.replace(scene, relation=None)
    colours = [group.colour for group in scene.groups]
    named = all(group.colour and group.shape and group.count for group in scene.groups)
    if not scene.groups or not named or len(set(colours)) < len(colours):
        return {}, (
            "Not scored by the oracle: it judges prompts that name the colour and the shape of every object, and "
            "different colours, e.g. a red circle above a blue square."
        )
    note = "The oracle reads colour, shape, count, place and motion from the decoded frames; no model is involved."
    return {name: {k: float(v) for k, v in score(clip / 255, scene).items()} for name, clip in videos.items()}, note


# --- what people look at ----------------------------------------------------------------------------------------------


def write_videos(
    output: Path, report: Mapping[str, Any], takes: Mapping[str, Take], stills: Mapping[str, Mapping[str, video.Video]]
) -> None:
    """The four videos, and the picture: the three runs on the user's prompt and on others, the switch below."""
    large = {name: video.enlarged(take.frames) for name, take in takes.items()}
    for name, frames in large.items():
        video.write_mp4(output / f"{name}.mp4", video.looped(frames))
    titles = [(RUNS[name], under(report["runs"][name], timed=not disturbed(report))) for name in takes]
    beside = video.side_by_side(report["prompt"], titles, list(large.values()))
    video.write_mp4(output / "side-by-side.mp4", video.looped(beside))
    rows = {prompt: [video.strip(frames) for frames in runs.values()] for prompt, runs in stills.items()}
    plot = Image.open(io.BytesIO(takes["sr"].plot))
    picture = video.grid(headline(report), titles, rows)
    video.stacked(picture, SWITCH, plot.crop((0, HEADLINE, *plot.size))).save(output / "overview.png", optimize=True)


def headline(report: Mapping[str, Any]) -> str:
    """The picture in one line."""
    if disturbed(report):
        return "The large model's composition, with most steps by the small one"
    return f"The large model's composition, {report['runs']['sr']['speed_up']:.1f} times as fast"


def under(run: Mapping[str, Any], timed: bool) -> str:
    """The line under a video's title; without the seconds where they are not to be relied on."""
    steps = " + ".join(str(n) for n in run["steps"].values() if n) + " steps"
    return f"{steps}, {run['seconds']:.1f} s, {run['speed_up']:.1f}x" if timed else steps


if __name__ == "__main__":
    sys.exit(main())
