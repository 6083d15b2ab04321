"""Test-only nodes and routes for a real server.

Faults at chosen places, digests, a census of what is alive, and a log of what the server writes and connects to. Linked
into `custom_nodes` by the tests; its name there sorts before the pack's.
"""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths
import safetensors.torch
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from comfy.utils import ProgressBar
from server import PromptServer

PLACES = {
    "none": None,
    "load": WrappersMP.PREPARE_SAMPLING,
    "call": WrappersMP.APPLY_MODEL,
    "clean-up": WrappersMP.OUTER_SAMPLE,
}
ACTS = ["error", "interrupt", "out of memory", "wait"]
EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "socket.connect",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "pickle.find_class",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

log: list[dict[str, Any]] = []
state: dict[str, Any] = {"waiting": "", "wait at": "", "faults": 0}


def act(what: str, place: str) -> None:
    """Do what a fault is to do, and count it."""
    state["faults"] += 1
    if what == "interrupt":
        comfy.model_management.interrupt_current_processing()
    elif what == "wait":
        state["waiting"] = place
        time.sleep(600)
    elif what == "out of memory":
        raise torch.OutOfMemoryError(f"test: {place}")
    else:
        raise RuntimeError(f"test: {place}")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: note what writes or leaves the machine, and whether the pack is on the stack."""
    if event not in EVENTS or (event == "open" and not writes(*arguments[1:3])):
        return
    files = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    ours = any("srd_core" in file or "SRDiffusion" in file for file in files) and "importlib" not in " ".join(files[:4])
    log.append({"event": event, "target": str(arguments[1 if event == "socket.connect" else 0]), "ours": ours})
    if state["wait at"] == event and ours:
        act("wait", event)


def writes(mode: Any, flags: Any) -> bool:
    return bool(set(str(mode or "")) & set("wax+")) or (isinstance(flags, int) and bool(flags & WRITING))


sys.addaudithook(watch)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Prompt:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {})}}

    def run(self, seed: int) -> tuple[Any]:
        return ([[random(seed, 1, 4, 4096), {}]],)


class Text:
    """Made-up embeddings of a text encoder's width."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {}), "width": ("INT", {"default": 4096, "max": 99999})}}

    def run(self, text: str, width: int) -> tuple[Any]:
        return ([[random(len(text), 1, 8, width), {}]],)


class Vision:
    """What CLIP vision would see, made up."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image: torch.Tensor) -> tuple[Any]:
        return (SimpleNamespace(penultimate_hidden_states=random(1, 1, 257, 1280)),)


class Decode:
    """The first three channels of a latent as a picture, for a family whose VAE cannot be tiny."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples: Any) -> tuple[Any]:
        return (samples["samples"][:, :3].movedim(1, -1).sigmoid(),)


class UnetLoaderGGUF:
    """Stands in for ComfyUI-GGUF's node of this name: its inputs and output, and a file that holds plain tensors."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("MODEL",)

    @staticmethod
    def files() -> dict[str, Path]:
        folders = map(Path, folder_paths.get_folder_paths("diffusion_models"))
        return {path.name: path for folder in folders for path in folder.glob("*.gguf")}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"unet_name": (list(cls.files()),)}}

    def run(self, unet_name: str) -> tuple[Any]:
        return (comfy.sd.load_diffusion_model_state_dict(safetensors.torch.load_file(self.files()[unet_name])),)


class Fault:
    """A clone of a MODEL that fails at a place: when it is loaded for a run, at its call number ``at``, or after it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "place": (list(PLACES),),
                "act": (ACTS,),
                "at": ("INT", {"default": 1}),
                "run": ("INT", {"default": 0}),
            }
        }

    def run(self, model: Any, place: str, act: str, at: int, run: int) -> tuple[Any]:
        model, calls = model.clone(), [0]

        def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            done = executor(*args, **kwargs) if place == "clean-up" else None
            if calls[0] == at:
                globals()["act"](act, place)
            return done if place == "clean-up" else executor(*args, **kwargs)

        if place != "none":
            model.add_wrapper_with_key(PLACES[place], "fault", fail)
        return (model,)


class Slow:
    """A clone of a MODEL whose calls take long and cost nothing: the processor stays free for the page."""

    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: Any) -> tuple[Any]:
        def wait(executor: Any, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.4)
            return executor(*args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "slow", wait)
        return (model,)


class Count:
    """Counts with a progress bar, 50 a second, or fails."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "run", ("INT",), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"to": ("INT", {"min": 0, "max": 1000}), "fail": ("BOOLEAN", {"default": False})}}

    def run(self, to: int, fail: bool) -> dict[str, Any]:
        if fail:
            raise ValueError("the reason")
        bar = ProgressBar(to)
        for _ in range(to):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.02)
            bar.update(1)
        return {"ui": {"counted": [to]}, "result": (to,)}


class FaultyVAE:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",), "act": (ACTS,)}}

    def run(self, latent: Any, act: str) -> tuple[Any]:
        globals()["act"](act, "vae")
        comfy.model_management.throw_exception_if_processing_interrupted()
        return (torch.zeros(1, 8, 8, 3),)


class Digest:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "run", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",), "run": ("INT", {"default": 0})}}

    def run(self, latent: Any, run: int) -> dict[str, Any]:
        content = latent["samples"].contiguous().cpu().numpy().tobytes()
        return {"ui": {"digest": [hashlib.sha256(content).hexdigest()]}}


class Sink:
    """An output node for an IMAGE."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "test", "run", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image: Any) -> dict[str, Any]:
        return {"ui": {"digest": ["image"]}}


OWN: tuple[type, ...] = (Prompt, Text, Vision, Decode, Fault, Slow, Count, FaultyVAE, Digest, Sink)
NODE_CLASS_MAPPINGS = {f"SRTest{node.__name__}": node for node in OWN} | {"UnetLoaderGGUF": UnetLoaderGGUF}


@PromptServer.instance.routes.get("/srd_test/census")
async def census(request: web.Request) -> web.Response:
    """What is alive, after a collection, and the memory of the process in bytes."""
    gc.collect()
    counts = dict.fromkeys(["models", "patchers", "runs"], 0)
    for kind, count in Counter(map(type, gc.get_objects())).items():
        counts["models"] += count * issubclass(kind, comfy.model_base.BaseModel)
        counts["patchers"] += count * issubclass(kind, comfy.model_patcher.ModelPatcher)
        counts["runs"] += count * (kind.__name__ in ("Run", "Stage", "CachedRun") and "srd_core" in kind.__module__)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return web.json_response({"pid": os.getpid(), "memory": pages * os.sysconf("SC_PAGESIZE"), **counts, **state})


@PromptServer.instance.routes.get("/srd_test/log")
async def events(request: web.Request) -> web.Response:
    return web.json_response(log)


@PromptServer.instance.routes.get("/srd_test/wait_at/{event}")
async def wait_at(request: web.Request) -> web.Response:
    """From now on the pack waits in its first such event, e.g. os.rename."""
    state["wait at"] = request.match_info["event"]
    return web.json_response({})
