"""Graphs of real nodes, executed by the host's own executor in this process, many prompts in one latent batch.

Beside the host's nodes and this pack's, a few small nodes live here only: prompts in, noise numbered by prompt, a watch
on a model (seconds, calls, and how much its predictions change), a model that keeps its input, results out.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import common

PACK = "srdiffusion_pack"  # the name that tests/hosting.py uses too: one pack a process
EXTRAS = ("nodes_hunyuan", "nodes_model_advanced", "nodes_easycache", "nodes_images")  # of the host, with nodes we use
READINGS = ("x0", "prediction", "noise", "latent")  # what the criterion could read; x0 is what it does read

Graph = dict[str, dict[str, Any]]


def start(cpu: bool = True, threads: int = 0) -> None:
    """Make `import comfy` mean the real host, load the pack and register all nodes. Once a process; a second call, or
    one after tests/hosting.py, only adds what is missing. threads: of torch on the CPU; 0: as many as there are cores.
    """
    if PACK not in sys.modules:
        host = common.host.find_or_make()
        sys.path.insert(0, str(host.path))
        import comfy.options

        comfy.options.enable_args_parsing(False)
        from comfy.cli_args import args

        args.cpu = cpu
        import torch
        import utils.install_util  # noqa: F401  (as the host's main.py: its nodes.py puts comfy/utils.py before it)

        torch.set_grad_enabled(False)
        torch.set_num_threads(threads or os.cpu_count() or 1)
        logging.getLogger().setLevel(logging.WARNING)
        common.host.load_by_path(PACK, common.REPOSITORY / "__init__.py")
    _register()


def family() -> None:
    """Make the tiny family's modules (text, data, oracle) importable."""
    folder = str(common.REPOSITORY / "demo" / "family")
    if folder not in sys.path:
        sys.path.append(folder)


def module(name: str) -> ModuleType:
    """A module of the pack, e.g. module("srd_core.route")."""
    return importlib.import_module(f"{PACK}.{name}")


def _register() -> None:
    """The host's extra nodes, the pack's and ours, where the host's executor looks for nodes."""
    import folder_paths
    import nodes

    if "SRBenchKeep" in nodes.NODE_CLASS_MAPPINGS:
        return
    extras = Path(nodes.__file__).parent / "comfy_extras"
    for name in EXTRAS:
        asyncio.run(nodes.load_custom_node(str(extras / f"{name}.py"), module_parent="comfy_extras"))
    extension = asyncio.run(sys.modules[PACK].comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
    nodes.NODE_CLASS_MAPPINGS |= {
        "SRBenchPrompts": Prompts,
        "SRBenchNoise": Noise,
        "SRBenchWatch": Watch,
        "SRBenchOwnInput": OwnInput,
        "SRBenchKeep": Keep,
    }
    weights = common.REPOSITORY / "demo" / "family" / "weights"
    for kind in ("diffusion_models", "vae"):
        folder_paths.add_model_folder_path(kind, str(weights))


def has_node(node_id: str) -> bool:
    """Whether the host knows a node of that name now."""
    import nodes

    return node_id in nodes.NODE_CLASS_MAPPINGS


def defaults(node_id: str) -> dict[str, Any]:
    """The values that a node of the pack has before anybody changes them: widgets added later are then as shipped."""
    import nodes

    given = nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA().inputs
    return {i.id: i.default for i in given if getattr(i, "default", None) is not None}


def file_of(kind: str, name: str) -> tuple[Path, str]:
    """(path, name as the host's loaders know it) of a model file: a path, or a name in the host's folder of that kind.

    Raises FileNotFoundError with the folders that were looked in.
    """
    import folder_paths

    given = Path(name).expanduser()
    if given.is_file():
        folder_paths.add_model_folder_path(kind, str(given.resolve().parent), is_default=True)
        return given, given.name
    found = folder_paths.get_full_path(kind, name)
    if not found:
        raise FileNotFoundError(f"{name}: no such file, and none in {', '.join(folder_paths.get_folder_paths(kind))}.")
    return Path(found), name


# --- the nodes --------------------------------------------------------------------------------------------------------


class Prompts:
    """Several prompts -> one CONDITIONING with a batch of embeddings."""

    CATEGORY, FUNCTION, RETURN_TYPES = "SRDiffusion/bench", "run", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"texts": ("STRING", {})}, "optional": {"clip": ("CLIP",)}}

    def run(self, texts: str, clip: Any = None) -> tuple[list[Any]]:
        """texts: a JSON list. Without a text encoder the tiny family's own encoding. Raises ValueError for prompts that
        do not encode to one length.
        """
        import torch

        conds = [_encode(text, clip) for text in json.loads(texts)]
        if any(len(cond) != 1 or cond[0][0].shape != conds[0][0][0].shape for cond in conds):
            raise ValueError("These prompts do not encode to one length, so they can't be one batch: use --batch 1.")
        extra = dict(conds[0][0][1])
        if pooled := [c[0][1]["pooled_output"] for c in conds if c[0][1].get("pooled_output") is not None]:
            extra["pooled_output"] = torch.cat(pooled)
        return ([[torch.cat([cond[0][0] for cond in conds]), extra]],)


def _encode(text: str, clip: Any) -> list[Any]:
    import nodes

    if clip is not None:
        (cond,) = nodes.CLIPTextEncode().encode(clip, text)
        return list(cond)
    family()
    from text import encode

    return [[encode(text)[None].clone(), {}]]


class Noise:
    """Numbers the latents of a batch: the host draws the noise of number n alike in every batch that holds it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "SRDiffusion/bench", "run", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",), "numbers": ("STRING", {}), "run_number": ("INT", {})}}

    def run(self, latent: dict[str, Any], numbers: str, run_number: int) -> tuple[dict[str, Any]]:
        """numbers: a JSON list, one for each latent. run_number: makes the host sample anew, not take its cache."""
        return ({**latent, "batch_index": json.loads(numbers)},)


class Watch:
    """A clone of a model that takes down, for each run, its seconds and calls; ``curves``: also its changes."""

    CATEGORY, FUNCTION, RETURN_TYPES = "SRDiffusion/bench", "run", ("MODEL", "WATCHED")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "stage": ("STRING", {}), "curves": ("BOOLEAN", {})}}

    def run(self, model: Any, stage: str, curves: bool) -> tuple[Any, Watched]:
        from comfy.patcher_extension import WrappersMP

        watched, model = Watched(stage, curves), model.clone()
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "bench", watched.sample)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "bench", watched.predict)
        return model, watched


class OwnInput:
    """A clone of a model whose network gets its own tensor. The host's EasyCache writes into its input; in half
    precision that is a copy, in float32 (the tiny family) it is the sampler's own latent, which would be lost.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = "SRDiffusion/bench", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: Any) -> tuple[Any]:
        from comfy.patcher_extension import WrappersMP

        model = model.clone()
        own_input = lambda executor, x, *args, **kwargs: executor(x.clone(), *args, **kwargs)  # noqa: E731
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", own_input)
        return (model,)


class Keep:
    """Hands results to Python. Both models are held too, so that the executor's cache never drops a loaded one."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "SRDiffusion/bench", "run", (), True
    kept: dict[str, Any] = {}  # noqa: RUF012 (a node is made anew for every graph)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kinds = {
            "report": "SR_REPORT",
            "first": "WATCHED",
            "second": "WATCHED",
            "hold_sketch": "MODEL",
            "hold_render": "MODEL",
        }
        return {"required": {"images": ("IMAGE",)}, "optional": {name: (kind,) for name, kind in kinds.items()}}

    def run(self, images: Any, **others: Any) -> dict[str, Any]:
        Keep.kept = {"images": images, **others}
        return {"ui": {}}


@dataclass
class Watched:
    """What a watch took down of the newest run with its model."""

    stage: str
    curves: bool
    seconds: float = 0.0  # of sampling, with what the host does before and after
    calls: int = 0
    changes: dict[str, list[list[float]]] = field(default_factory=dict)  # reading -> per step: D of every sample
    _last: dict[str, Any] = field(default_factory=dict, repr=False)
    _sigma: float = -1.0

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper."""
        self.seconds, self.calls, self.changes, self._sigma, self._last = 0.0, 0, {}, -1.0, {}
        begin = time.perf_counter()
        try:
            return executor(*args, **kwargs)
        finally:
            self.seconds, self._last = time.perf_counter() - begin, {}

    def predict(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE wrapper: x [B, C, ...], timestep [B]; returns the x0 prediction like x."""
        self.calls += 1
        x0 = executor(x, timestep, *args, **kwargs)
        sigma = float(timestep[0])
        if self.curves and sigma != self._sigma:  # a step's first call, as the criterion reads it
            self._sigma = sigma
            self._note(x, x0, sigma, executor.class_obj.inner_model.model_sampling)
        return x0

    def _note(self, x: Any, x0: Any, sigma: float, model_sampling: Any) -> None:
        import comfy.model_sampling

        prediction = (x - x0) / sigma
        flow = isinstance(model_sampling, comfy.model_sampling.CONST)
        now = {"x0": x0, "prediction": prediction, "noise": x0 + prediction if flow else prediction, "latent": x}
        for reading, tensor in now.items():
            if reading in self._last:
                change = module("srd_core.criterion").relative_change(tensor, self._last[reading])
                self.changes.setdefault(reading, []).append(change.tolist())
            self._last[reading] = tensor.clone()

    def curve(self, sample: int) -> dict[str, list[float | None]]:
        """D after step 1, 2, ... of one sample, for each reading; None where there is nothing to compare yet.

        The latent of a call is what the step before left, so its changes come one step earlier.
        """
        curves: dict[str, list[float | None]] = {}
        for reading, changes in self.changes.items():
            values: list[float | None] = [rounded(step[sample]) for step in changes]
            curves[reading] = [*values, None] if reading == "latent" else [None, *values]
        return curves


def rounded(value: float) -> float:
    """To nine digits: enough to tell any two float32 apart."""
    return float(f"{value:.9g}")


# --- running ----------------------------------------------------------------------------------------------------------


class Executor:
    """The host's executor without its server; what two graphs in a row share (loaded models) is kept by its cache."""

    def __init__(self) -> None:
        import execution

        nobody = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_: None)
        self._numbers = itertools.count()
        sizes = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        self._executor = execution.PromptExecutor(nobody, cache_type=execution.CacheType.CLASSIC, cache_args=sizes)

    def run(self, graph: Graph) -> dict[str, Any]:
        """Execute a graph with one Keep node; what that node was given. Raises RuntimeError with the node's error."""
        number = next(self._numbers)
        for node in graph.values():
            if node["class_type"] == "SRBenchNoise":
                node["inputs"]["run_number"] = number
        Keep.kept = {}
        with _no_bars():
            keep = [node_id for node_id, node in graph.items() if node["class_type"] == "SRBenchKeep"]
            self._executor.execute(graph, f"bench-{number}", {}, keep)
        if not self._executor.success or not Keep.kept:
            raise RuntimeError(_why(self._executor.status_messages))
        return Keep.kept


def _why(messages: Sequence[tuple[str, dict[str, Any]]]) -> str:
    for event, data in messages:
        if event == "execution_interrupted":
            raise KeyboardInterrupt
        if event == "execution_error":
            return f"{data['node_type']}: {data['exception_message']}\n{''.join(data['traceback'])}"
    return "the graph was not executed"


@contextlib.contextmanager
def _no_bars() -> Any:
    """The host's samplers without their progress bars: the bench has its own."""
    import comfy.utils

    before = comfy.utils.PROGRESS_BAR_ENABLED
    comfy.utils.set_progress_bar_enabled(False)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_enabled(before)
