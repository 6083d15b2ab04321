"""Graphs for a real server with the test's own nodes (tests/server_pack) and tiny random Wan models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helpers
from hosting import REPOSITORY, host_module

Graph = dict[str, dict[str, Any]]
PACKS = {**host_module.DEMO_PACKS, "0_srd_test": REPOSITORY / "tests" / "server_pack"}
SAMPLING, SWITCHING, RENDERING = helpers.SAMPLING, helpers.RULE, helpers.RENDERING


def wan_files(folder: Path) -> dict[str, list[Path]]:
    """A sketch, a render, and a render whose download broke off."""
    folder.mkdir(parents=True, exist_ok=True)
    sketch, render = helpers.wan_file(folder, seed=0, layers=2), helpers.wan_file(folder, seed=1)
    broken = folder / "broken.safetensors"
    content = render.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    names = {"sketch.safetensors": sketch, "render.safetensors": render}
    return {"diffusion_models": [path.rename(folder / name) for name, path in names.items()] + [broken]}


@contextmanager
def serving(base: Path, files: dict[str, list[Path]], *more: str) -> Iterator[Any]:
    """The real server with the pack and the test's nodes. On the CPU, at one thread (the environment says so)."""
    with host_module.serve(host_module.find_or_make(), base, PACKS, files, extra_args=more) as server:
        yield server


def loaded(which: str, render_file: str = "render.safetensors") -> dict[str, Any]:
    kind, file = ("SRLoadSketchDiT", "sketch.safetensors") if which == "sketch" else ("SRLoadRenderDiT", render_file)
    return {"class_type": kind, "inputs": {"model_name": file, "weight_dtype": "default", "attention": "auto"}}


def common(render_file: str = "render.safetensors", frames: int = 5, side: int = 64) -> Graph:
    """Models (sketch, render), prompts (yes, no) and an empty latent."""
    size = {"width": side, "height": side, "length": frames, "batch_size": 1}
    return {
        "sketch": loaded("sketch"),
        "render": loaded("render", render_file),
        "yes": {"class_type": "SRTestPrompt", "inputs": {"seed": 1}},
        "no": {"class_type": "SRTestPrompt", "inputs": {"seed": 2}},
        "empty": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
    }


def prompts() -> dict[str, Any]:
    return {"positive": ["yes", 0], "negative": ["no", 0]}


def digest(of: str, run: int) -> Graph:
    return {"digest": {"class_type": "SRTestDigest", "inputs": {"latent": [of, 0], "run": run}}}


def plain(run: int = 0) -> Graph:
    """The host's KSampler with the sketch alone."""
    inputs = {"model": ["sketch", 0], "latent_image": ["empty", 0], **prompts(), **SAMPLING}
    return common() | {"sampler": {"class_type": "KSampler", "inputs": inputs}} | digest("sampler", run)


def faulty(graph: Graph, stage: str, run: int = 0, **fault: Any) -> tuple[Graph, list[Any]]:
    """(graph with a fault behind a stage's loader, where the stage's MODEL now comes from)."""
    node = {"class_type": "SRTestFault", "inputs": {"model": [stage, 0], "run": run, **fault}}
    return graph | {f"{stage} fault": node}, [f"{stage} fault", 0]


def cooperating(
    run: int = 0,
    node: str = "SRSampler",
    stage: str = "sketch",
    fault: dict[str, Any] | None = None,
    sampling: dict[str, Any] | None = None,
    switching: dict[str, Any] | None = None,
    **how: Any,
) -> Graph:
    """SR Sampler, or Sketch-Render Model under KSampler, with a fault in one stage."""
    graph = common(**how)
    models = {"sketch": ["sketch", 0], "render": ["render", 0]}
    if fault:
        graph, models[stage] = faulty(graph, stage, run, **fault)
    settings, switch = SAMPLING | (sampling or {}), SWITCHING | RENDERING | (switching or {})
    if node == "SRSampler":
        inputs = {**models, **prompts(), "latent": ["empty", 0], **settings, **switch}
        return graph | {"sampler": {"class_type": node, "inputs": inputs}} | digest("sampler", run)
    graph |= {"model": {"class_type": "SRModel", "inputs": {**models, **switch}}}
    inputs = {"model": ["model", 0], "latent_image": ["empty", 0], **prompts(), **settings}
    return graph | {"sampler": {"class_type": "KSampler", "inputs": inputs}} | digest("sampler", run)


def sketch_saved(run: int = 0, prefix: str = "srdiffusion/sketch") -> Graph:
    """SR Sketch and Save Hand-over."""
    inputs = {"sketch": ["sketch", 0], **prompts(), "latent": ["empty", 0], **SAMPLING, **SWITCHING}
    return common() | {
        "sampler": {"class_type": "SRSketch", "inputs": inputs},
        "save": {"class_type": "SRSaveHandOver", "inputs": {"hand_over": ["sampler", 0], "filename_prefix": prefix}},
    }


def census(server: Any) -> dict[str, Any]:
    """What is alive in the server; see tests/server_pack."""
    found: dict[str, Any] = server.get("/srd_test/census")
    return found


def digest_of(entry: dict[str, Any]) -> str:
    """The digest of a run's latent."""
    return str(entry["outputs"]["digest"]["digest"][0])
