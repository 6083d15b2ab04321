"""Memory at the hand-over: does the sketch stay on the device beside the render? The host's memory manager does the moving.

Everything here asks the host's own accounting, so that it holds for whole, partly loaded (--lowvram), streamed (--novram),
dynamic and quantised models alike. Nothing is emptied, moved or measured by us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import comfy.model_management
import comfy.sampler_helpers
from comfy.model_patcher import ModelPatcher

from .criterion import RENDER, SKETCH
from .latent import FULL_NAME

AUTO, ALWAYS, NEVER = POLICIES = ("auto", "always", "never")

BESIDE = "srdiffusion_beside"  # key of the model that a render's clone brings along
WEIGHT_MARGIN = 1.1  # the host's: what it frees for every byte of weights that comes

# Where the sketch is when the render has run out of memory.
LOADED, GONE, SAME_MODEL, KEPT, ABSENT = "loaded", "gone", "same model", "kept", "absent"
RETRIED = {  # what to say of the second attempt
    LOADED: "Out of memory at the hand-over: the sketch was let go and the render tried once more. Set offload_sketch to always "
    "to let it go at once.",
    GONE: "Out of memory at the hand-over, though the sketch had left: the render was tried once more.",
    SAME_MODEL: "Out of memory at the hand-over: the render was tried once more. It is the sketch's own model, so nothing was "
    "let go.",
    KEPT: "Out of memory at the hand-over: the render was tried once more. ComfyUI was started to keep all models on the GPU, so "
    "nothing was let go.",
    ABSENT: "Out of memory when the render began: it was tried once more.",
}
SMALLER = "Make the latent smaller (width, height or frames)"
LIGHTER = "load the render with weight_dtype fp8_e4m3fn, or start ComfyUI with --reserve-vram 2."
GIVE_UP = {  # what to say when that runs out of memory too
    LOADED: f"There is not enough memory for the render, also without the sketch. {SMALLER}, {LIGHTER}",
    GONE: f"There is not enough memory for the render, also without the sketch. {SMALLER}, {LIGHTER}",
    SAME_MODEL: f"There is not enough memory for the render. {SMALLER}, {LIGHTER}",
    KEPT: "There is not enough memory for the render beside the sketch. Start ComfyUI without --highvram and --gpu-only, or make "
    "the latent smaller (width, height or frames).",
    ABSENT: "There is not enough memory for the render, and the hand-over sets the size of the latent. Sketch a smaller one, "
    f"{LIGHTER}",
}

Result = TypeVar("Result")


def both_fit(free: float, weights: float, activations: float) -> bool:
    """Whether ``weights`` that have still to come fit, with the ``activations`` of a step, into what is ``free``; bytes.

    It is the host's own sum: where this is True, the host takes no other model away when the render loads.
    """
    return free >= WEIGHT_MARGIN * weights + activations


def sketch_leaves(
    policy: str, sketch: ModelPatcher, render: ModelPatcher, shape: Sequence[int], conds: dict[str, list[dict[str, Any]]]
) -> bool:
    """Whether the sketch is to leave the device before the render comes, for a latent of ``shape`` [B, C, ...].

    Two clones of one model (a LoRA apart) have nothing to leave, and --highvram leaves a model no other place. Where both are dynamic, auto leaves it to the host: it
    takes pages of the sketch as the render needs them, and the rest is there for the next run.
    """
    if policy == NEVER or sketch.is_clone(render) or stays_anyway(sketch):
        return False
    if policy == ALWAYS:
        return True
    if sketch.load_device != render.load_device or (sketch.is_dynamic() and render.is_dynamic()):
        return False
    return not both_fit(comfy.model_management.get_free_memory(render.load_device), *needs(render, shape, conds))


def needs(render: ModelPatcher, shape: Sequence[int], conds: dict[str, list[dict[str, Any]]]) -> tuple[float, float]:
    """(weights that have still to come, activations and reserve) in bytes, as the host reckons before it loads."""
    manager = comfy.model_management
    along, controls = comfy.sampler_helpers.get_additional_models(conds, render.model_dtype())
    activations, _ = comfy.sampler_helpers.estimate_memory(render, list(shape), conds)
    reserved = max(manager.minimum_inference_memory(), activations + controls + manager.extra_reserved_memory())
    return sum(model.model_size() - model.loaded_size() for model in (render, *along)), reserved


def release(model: ModelPatcher) -> None:
    """Take ``model``, and the models it brings along, from their device; no other model is touched."""
    own = (model, *model.get_nested_additional_models())
    loaded = comfy.model_management.current_loaded_models
    others = [entry for entry in loaded if not any(mine.is_clone(entry.model) for mine in own)]
    for device in {mine.load_device for mine in own}:
        comfy.model_management.free_memory(1e30, device, keep_loaded=others)  # 1e30: as unload_all_models says "all"


def is_loaded(model: ModelPatcher) -> bool:
    """Whether the host counts ``model`` among those on a device."""
    return any(loaded is model for loaded in comfy.model_management.loaded_models())


def stays_anyway(model: ModelPatcher) -> bool:
    """Whether ``model`` has no other place to go: --highvram and --gpu-only keep all models on the device."""
    device = model.load_device
    return not comfy.model_management.is_device_cpu(device) and model.offload_device == device


def beside(render: ModelPatcher) -> list[ModelPatcher]:
    """What ``with_beside`` added to ``render``, if it did."""
    models: list[ModelPatcher] = render.get_additional_models_with_key(BESIDE)
    return models


def with_beside(render: ModelPatcher, sketch: ModelPatcher) -> ModelPatcher:
    """A clone of ``render`` that the host loads together with ``sketch``, so that neither makes the other leave. What does
    not fit is loaded in part, as with any two models."""
    if sketch.is_clone(render):
        return render
    render = render.clone()
    render.set_additional_models(BESIDE, [sketch])
    return render


def place_of(sketch: ModelPatcher, render: ModelPatcher) -> str:
    """Where the ``sketch`` is when the ``render`` has run out of memory: a key of RETRIED and GIVE_UP. Only LOADED can be let
    go."""
    if FULL_NAME in sketch.attachments:  # it stands for a sketch of another run
        return ABSENT
    if sketch.is_clone(render):
        return SAME_MODEL
    if stays_anyway(sketch):
        return KEPT
    loaded = any(sketch.is_clone(model) for model in comfy.model_management.loaded_models())
    return LOADED if loaded else GONE


def snapshot(sketch: ModelPatcher, render: ModelPatcher) -> dict[str, int]:
    """Bytes by the host's accounting: free on the render's device, and loaded of each model."""
    free = comfy.model_management.get_free_memory(render.load_device)
    return {"free": int(free), SKETCH: int(sketch.loaded_size()), RENDER: int(render.loaded_size())}


def try_twice(attempt: Callable[[], Result], make_room: Callable[[], str]) -> Result:
    """What ``attempt`` returns. When the device runs out of memory: ``make_room``, then one more attempt.

    Raises the host's own out-of-memory exception, with the sentence that ``make_room`` returned, when that runs out of memory
    too.
    """
    try:
        return attempt()
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
    give_up = make_room()  # not in the except block: there the error still holds the failed attempt's tensors
    try:
        return attempt()
    except Exception as error:
        if not comfy.model_management.is_oom(error):
            raise
        raise comfy.model_management.OOM_EXCEPTION(f"{give_up} ({error})") from error
