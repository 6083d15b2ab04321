"""Memory at a hand-over: which models are on the device, and what to do when it runs out.

The host's manager does the moving.

Everything here asks the host's own accounting, so that it holds for whole, partly loaded (--lowvram), streamed
(--novram), dynamic and quantised models alike. Nothing is emptied, moved or measured by us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.model_management
import comfy.model_prefetch
import comfy.sampler_helpers
from comfy.model_patcher import ModelPatcher

from .latent import FULL_NAME

# What happens to the model that leaves. auto: the host takes as much of it as the next one needs.
AUTO, ALWAYS, NEVER = POLICIES = ("auto", "always", "never")

BESIDE = "srdiffusion_beside"  # key of the model that another one's clone brings along

SMALLER = "Make the latent smaller (width, height or frames)"
LIGHTER = "load the {stage} with weight_dtype fp8_e4m3fn, or start ComfyUI with --reserve-vram 2."

Result = TypeVar("Result")


def leaves(policy: str, model: ModelPatcher, coming: ModelPatcher) -> bool:
    """Whether ``model`` is to leave its device whole before ``coming`` is loaded.

    Two clones of one model (a LoRA apart) have nothing to leave, and --highvram leaves a model no other place.
    """
    return policy == ALWAYS and not model.is_clone(coming) and not stays_anyway(model)


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


def has_weights_loaded(model: ModelPatcher) -> bool:
    """The same of ``model`` or a clone of it."""
    return any(model.is_clone(loaded) for loaded in comfy.model_management.loaded_models())


def stays_anyway(model: ModelPatcher) -> bool:
    """Whether ``model`` has no other place to go: --highvram and --gpu-only keep all models on the device."""
    device = model.load_device
    return not comfy.model_management.is_device_cpu(device) and model.offload_device == device


def beside(model: ModelPatcher) -> list[ModelPatcher]:
    """What ``with_beside`` added to ``model``, if it did, and what that brings along (its clones on other GPUs)."""
    models: list[ModelPatcher] = model.get_additional_models_with_key(BESIDE)
    return [each for other in models for each in (other, *other.get_nested_additional_models())]


def with_beside(model: ModelPatcher, other: ModelPatcher) -> ModelPatcher:
    """A clone of ``model`` that is loaded together with ``other``, in part if need be, so that neither leaves."""
    if other.is_clone(model):
        return model
    model = model.clone()
    model.set_additional_models(BESIDE, [other])
    return model


def snapshot(coming: ModelPatcher, models: Mapping[str, ModelPatcher]) -> dict[str, int]:
    """Bytes by the host's accounting: free on the device of ``coming``, and loaded of each stage's model."""
    free = comfy.model_management.get_free_memory(coming.load_device)
    return {"free": int(free)} | {name: int(model.loaded_size()) for name, model in models.items()}


def reckon(model: ModelPatcher, noise_shape: Sequence[int], conds: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes of the weights, bytes beside them for one step) that the host asks for at ``noise_shape`` [B, C, ...]."""
    step, _ = comfy.sampler_helpers.estimate_memory(model, list(noise_shape), conds)
    return int(model.model_size()), int(step)


def size_of_device(model: ModelPatcher) -> int:
    """Bytes of memory that the device of ``model`` has."""
    return int(comfy.model_management.get_total_memory(model.load_device))


def reload_note(models: Mapping[str, ModelPatcher], noise_shape: Sequence[int], offload: str, changes: int) -> str:
    """What to say before a run that loads a model at each of ``changes``; "" if all fit, by the host's estimates."""
    first, *others = models.values()
    sizes = [first.model_size(), *(other.model_size() for other in others if not other.is_clone(first))]
    if changes < 2 or len(sizes) < 2 or offload == NEVER or stays_anyway(first):
        return ""
    needed = sum(sizes) + max(model.model.memory_required(list(noise_shape)) for model in models.values())
    total = size_of_device(first)
    if needed <= total and offload != ALWAYS:
        return ""
    why = (
        "offload_sketch is always"
        if offload == ALWAYS
        else f"they need about {needed / 1e9:.1f} GB together, the device has {total / 1e9:.1f}"
    )
    return (
        f"The run changes between its models {changes} times, and {why}: each change loads up to "
        f"{max(sizes) / 1e9:.1f} GB again. Fewer changes in sketch_steps cost less time."
    )


def make_room(
    stage: str, model: ModelPatcher, others: Mapping[str, ModelPatcher], settable: bool = True
) -> tuple[str, str]:
    """After ``model`` ran out of memory, the others leave: (note on the second attempt, what to say if it fails).

    ``settable``: the node has an input offload_sketch.
    """
    for each in (model, *others.values()):
        each.remove_additional_models(BESIDE)
    freed = [name for name, other in others.items() if _release(other, model)]
    comfy.model_management.soft_empty_cache()
    begun = f"Out of memory in the {stage}: the step was tried once more"
    lighter = LIGHTER.format(stage=stage)
    if freed:
        names = " and ".join(freed)
        hint = " Set offload_sketch to always to free it at once." if settable and "sketch" in freed else ""
        return f"{begun}, after the {names} had left the device.{hint}", _give_up(
            stage, SMALLER, lighter, f", also without the {names}"
        )
    if any(FULL_NAME in other.attachments for other in others.values()):  # it stands for a sketch of another run
        return f"{begun}.", _give_up(stage, "The hand-over sets the size of the latent: sketch a smaller one", lighter)
    kept = [name for name, other in others.items() if stays_anyway(other) and not other.is_clone(model)]
    if kept:
        return f"{begun}. ComfyUI was started to keep all models on the GPU, so nothing left it.", (
            f"There is not enough memory for the {stage} beside the {' and '.join(kept)}. Start ComfyUI without "
            "--highvram and --gpu-only, or make the latent smaller (width, height or frames)."
        )
    return f"{begun}; nothing else of this run was on the device.", _give_up(stage, SMALLER, lighter)


def _release(other: ModelPatcher, model: ModelPatcher) -> bool:
    """Whether ``other`` was on the device and has left it."""
    if other.is_clone(model) or stays_anyway(other) or not has_weights_loaded(other):
        return False
    release(other)
    return True


def _give_up(stage: str, smaller: str, lighter: str, without: str = "") -> str:
    return f"There is not enough memory for the {stage}{without}. {smaller}, {lighter}"


def try_twice(attempt: Callable[[], Result], room: Callable[[], str]) -> Result:
    """What ``attempt`` returns. When the device runs out of memory: ``room``, then one more attempt.

    Raises the host's own out-of-memory exception with the sentence that ``room`` returned.
    """
    give_up = ""
    while True:
        try:
            return attempt()
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            if give_up:
                raise comfy.model_management.OOM_EXCEPTION(f"{give_up} ({error})") from error
        give_up = room()  # not in the except block: there the error still holds the failed attempt's tensors


def end_malloc_graph() -> None:
    """Newer hosts record a stage's allocations and play them back: another stage's are others."""
    if end := getattr(comfy.model_prefetch, "cleanup_malloc_graph", None):
        end()
