r"""Videos for VBench: every prompt of a list, several times, through a workflow, named as the public tool reads them.

    python3 bench/vbench_export.py --prompts prompts.txt --output videos/sr
    python3 bench/vbench_export.py --prompts all_dimension.txt --output videos/sr --url http://127.0.0.1:8188 \\
        --workflow workflows/wan2.1_t2v_14B_to_1.3B.json

Files are <prompt>-<index>.mp4, index from 0. What is there is not made again, so the same command continues after a
stop. --prompts: one prompt a line, or VBench_full_info.json. --url: a ComfyUI that runs and has the models and this
pack; without it, one is started with the tiny family (a workflow of the tiny family only). VBench asks for 5 videos of
every prompt, 25 for its dimension "temporal flickering" (--videos 25). For Table 2 of the paper: the whole list with
sketch only (--alone sketch), then with the switch, into two folders, both with the extended prompts (--texts; the paper
lets a language model extend them); then `vbench evaluate --videos_path videos/sr ...`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "demo"))

import host  # noqa: E402
import workflow  # noqa: E402
from client import Server, files_of  # noqa: E402

LONGEST_NAME = 255  # bytes of a file's name
TIMEOUT = 4 * 3600.0  # seconds for one video


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = arguments(words)
    try:
        prompts = read_prompts(options.prompts)
        texts = read_texts(options.texts, prompts) if options.texts else prompts
        with server(options.url) as running:
            graph = workflow.to_api(workflow.load(options.workflow), running.object_info())
            shown = workflow.alone(graph, options.alone) if options.alone else graph
            export(running, video_graph(shown, frame_rate(graph)), list(zip(prompts, texts)), options)
    except (host.HostError, workflow.WorkflowError, OSError, ValueError) as error:
        host.say(f"vbench_export: {error}")
        return 1
    except KeyboardInterrupt:
        host.say("\nvbench_export: stopped; the same command continues from here.")
        return 130
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument(
        "--texts", type=Path, help="what the models are given for each line of --prompts, line for line"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the videos")
    parser.add_argument("--workflow", type=Path, default=REPOSITORY / "demo" / "demo.json")
    parser.add_argument("--videos", type=int, default=5, help="of every prompt")
    parser.add_argument("--seed", type=int, default=0, help="another one gives another set of videos")
    parser.add_argument("--steps", type=int, help="instead of the workflow's")
    parser.add_argument("--alone", choices=("sketch", "render"), help="one model instead of both (needs an SR Sampler)")
    parser.add_argument("--url", help="of a running ComfyUI")
    return parser.parse_args(words)


def read_prompts(file: Path) -> list[str]:
    """The prompts of a list, each once. Raises ValueError for one that can't be a file's name, before any work."""
    text = file.read_text("utf-8")
    own_list = file.suffix == ".json"  # VBench_full_info.json
    lines = [entry["prompt_en"] for entry in json.loads(text)] if own_list else text.splitlines()
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    for prompt in prompts:
        if "/" in prompt or "\0" in prompt or prompt in (".", "..") or len(f"{prompt}-00.mp4".encode()) > LONGEST_NAME:
            raise ValueError(f"This prompt can't be the name of a file, as VBench wants it: {prompt[:80]!r}")
    if not prompts:
        raise ValueError(f"{file} holds no prompts.")
    return prompts


def read_texts(file: Path, prompts: Sequence[str]) -> list[str]:
    """The longer texts of a list, one for each prompt. Raises ValueError where they are not as many."""
    texts = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if len(texts) != len(prompts):
        raise ValueError(f"{file} holds {len(texts)} texts for {len(prompts)} prompts; one line for each is needed.")
    return texts


@contextlib.contextmanager
def server(url: str | None) -> Iterator[Server]:
    """The running ComfyUI of that address, or one of our own with the tiny family."""
    if url:
        yield Server(url.rstrip("/"))
        return
    with (
        tempfile.TemporaryDirectory(prefix="srd-vbench-", ignore_cleanup_errors=True) as base,
        host.serve(host.find_or_make(), Path(base), host.DEMO_PACKS, host.tiny_family()) as running,
    ):
        yield running


def frame_rate(graph: workflow.Graph) -> float:
    """That of the workflow's videos; Wan's where it makes none."""
    rates = [node["inputs"]["fps"] for node in graph.values() if node["class_type"] == "CreateVideo"]
    return float(rates[0]) if rates and not isinstance(rates[0], list) else 16.0


def video_graph(graph: workflow.Graph, fps: float) -> workflow.Graph:
    """The graph with a node that saves a video: its own, or one behind what it decodes, ``fps`` frames a second."""
    if any(node["class_type"] == "SaveVideo" for node in graph.values()):
        return graph
    decoded: dict[str, Any] = {"images": [workflow.find(graph, "VAEDecode"), 0], "fps": fps}
    save = {"video": ["vbench_video", 0], "filename_prefix": "video/vbench", "format": "auto", "codec": "auto"}
    return graph | {
        "vbench_video": {"class_type": "CreateVideo", "inputs": decoded, "_meta": {"title": "Create Video"}},
        "vbench_save": {"class_type": "SaveVideo", "inputs": save, "_meta": {"title": "Save Video"}},
    }


def export(
    running: Server, graph: workflow.Graph, prompts: Sequence[tuple[str, str]], options: argparse.Namespace
) -> None:
    """Make the videos of the (prompt, text) that are not there. Raises ValueError for a folder of another workflow."""
    if options.steps is not None:
        for node_id in samplers(graph):
            graph = workflow.set_inputs(graph, node_id, steps=options.steps)
    options.output.mkdir(parents=True, exist_ok=True)
    same_workflow_as_before(graph, options)
    missing = [
        (prompt, text, index)
        for prompt, text in prompts
        for index in range(options.videos)
        if not (options.output / f"{prompt}-{index}.mp4").is_file()
    ]
    total, begun = len(prompts) * options.videos, time.monotonic()
    host.say(f"{total - len(missing)} of {total} videos are there already")
    for done, (prompt, text, index) in enumerate(missing, 1):
        entry = running.run(asked(graph, text, seed_of(options.seed, prompt, index)), timeout=TIMEOUT)
        videos = [file for file in files_of(entry) if file["filename"].endswith(".mp4")]
        if len(videos) != 1:
            raise ValueError(f"The workflow saved {len(videos)} mp4 files for one prompt; one is needed.")
        partial = options.output / ".partial"  # its own name: the video's may be as long as a name can be
        partial.write_bytes(running.view(videos[0]))
        partial.replace(options.output / f"{prompt}-{index}.mp4")
        left = (time.monotonic() - begun) / done * (len(missing) - done)
        host.say(f"{total - len(missing) + done}/{total}, about {left / 60:.0f} min left: {prompt}-{index}.mp4")


def same_workflow_as_before(graph: workflow.Graph, options: argparse.Namespace) -> None:
    """Note beside the folder (VBench takes every file in it for a video) what its videos are made with, or compare."""
    plain = json.dumps([node | {"_meta": None} for node in asked(graph, "", 0).values()], sort_keys=True)
    facts = {
        "workflow": options.workflow.name,
        "graph": hashlib.sha256(plain.encode()).hexdigest(),
        "seed": options.seed,
    }
    note = options.output.with_name(f"{options.output.name}.vbench.json")
    if not note.exists():
        note.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    elif json.loads(note.read_text("utf-8")) != facts:
        raise ValueError(
            f"{options.output} holds videos of other settings ({note.name} says which). Choose another folder, or "
            "delete both to make them anew."
        )


def samplers(graph: workflow.Graph) -> list[str]:
    """The nodes that sample: those with a prompt and a seed. Raises ValueError if there is none."""
    found = [
        node_id
        for node_id, node in graph.items()
        if isinstance(node["inputs"].get("positive"), list) and {"seed", "noise_seed"} & set(node["inputs"])
    ]
    if not found:
        raise ValueError("The workflow has no sampler with a positive prompt and a seed (SR Sampler, KSampler ...).")
    return found


def asked(graph: workflow.Graph, prompt: str, seed: int) -> workflow.Graph:
    """The graph for one video. Raises ValueError where the prompt's node takes no text."""
    for sampler in samplers(graph):
        text = graph[sampler]["inputs"]["positive"][0]
        if not isinstance(graph[text]["inputs"].get("text"), str):
            raise ValueError(
                f"Node {text} ({graph[text]['class_type']}), which makes the positive prompt, has no text."
            )
        graph = workflow.set_inputs(graph, text, text=prompt)
        name = "seed" if "seed" in graph[sampler]["inputs"] else "noise_seed"
        source = graph[sampler]["inputs"][name]
        if isinstance(source, list):
            graph = workflow.set_inputs(graph, source[0], value=seed)
        else:
            graph = workflow.set_inputs(graph, sampler, **{name: seed})
    return graph


def seed_of(base: int, prompt: str, index: int) -> int:
    """Its own seed for every video, the same whatever else is in the list and whichever workflow is used."""
    return (base + zlib.crc32(prompt.encode()) + index) % 2**32


if __name__ == "__main__":
    sys.exit(main())
