"""Whom a LoRA or a patch reaches: what an artist put on a MODEL that does not act as meant goes into the report."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .calls import MASK_FUNCTION
from .latent import IMAGE, image_channels, name_of

WEIGHTS = "LoRA"  # what messages call a change of weights
METADATA = "lora_metadata"  # attachment that the host's LoRA loader leaves
# What acts on the whole run, wherever it stands: the sketch's noise schedule, and what is around the sampler.
WHOLE_RUN = ("model_sampling", MASK_FUNCTION, WrappersMP.OUTER_SAMPLE, WrappersMP.SAMPLER_SAMPLE)
VACE = "vace_frames"  # what VACE's node puts on conditioning
SHOWN = 3  # names in a message

Things = set[tuple[str, Any]]  # (what it is called, which one it is)


def misfit_notes(stage: str, model: ModelPatcher) -> list[str]:
    """What to say of LoRAs on the model of ``stage`` that the host leaves out, in part or whole. Never fails a run."""
    try:
        fits = [_fits(model, key, patch[1], patch[3]) for key, found in model.patches.items() for patch in found]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as fault:  # another pack's own kind of patch
        logging.info("SRDiffusion: LoRAs on the %s were not looked at (%s: %s).", stage, type(fault).__name__, fault)
        return []
    left_out, notes = fits.count(False), []
    if left_out:
        notes.append(f"{left_out} of {len(fits)} changes that LoRAs make to the {stage} do not fit its layers")
    if _a_lora_changed_nothing(model):
        notes.append(f"A LoRA on the {stage} does not fit any of its layers")
    return [f"{note}, and ComfyUI leaves them out. Use a LoRA that was made for {name_of(model)}." for note in notes]


def _fits(model: ModelPatcher, key: str, patch: Any, offset: Any) -> bool:
    """Whether a patch has the shape of its weight, for the kinds whose shape is plain to see; True for all others."""
    weight = comfy.utils.get_attr(model.model, key)
    shape = list(getattr(weight, "tensor_shape", weight.shape))  # ComfyUI-GGUF holds packed bytes
    if offset is not None:
        shape[offset[0]] = offset[2]
    if getattr(patch, "name", "") == "lora":
        up, down, _, middle, _, padded = patch.weights
        up, down = up.flatten(start_dim=1), down.flatten(start_dim=1)
        plain = middle is None and padded is None
        return not plain or bool(up.shape[1] == down.shape[0] and up.shape[0] * down.shape[1] == math.prod(shape))
    if isinstance(patch, (tuple, list)) and patch[0] == "diff" and len(patch[1]) == 1:
        return list(patch[1][0].shape) == shape
    return True


def _a_lora_changed_nothing(model: ModelPatcher) -> bool:
    """Whether the host put a LoRA on this MODEL, or one it was cloned from, that changed no weight.

    The host drops keys that it does not know. What it leaves is the LoRA's metadata, if that has any.
    """
    child, parent = model, model.parent
    while parent is not None:
        loaded = child.attachments.get(METADATA)
        is_new = loaded is not None and loaded is not parent.attachments.get(METADATA)
        if is_new and _changes(child) == _changes(parent):
            return True
        child, parent = parent, parent.parent
    return False


def _changes(model: ModelPatcher) -> int:
    return sum(map(len, model.patches.values()))


def things_on(model: ModelPatcher) -> Things:
    """What nodes have put on a MODEL that acts on that model alone."""
    found: Things = {(WEIGHTS, _changes(model))} | {(name, id(one)) for name, one in model.object_patches.items()}
    wrappers = {kind: known for kind, known in model.wrappers.items() if kind not in WHOLE_RUN}
    found |= set(_leaves(model.model_options)) | set(_leaves(wrappers))
    return {one for one in found if one[0] not in WHOLE_RUN}


def _leaves(options: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """(name, which) of every object in nested options."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield from ((str(name), id(one)) for one in (value if isinstance(value, list) else [value]))


def mask_note(first: ModelPatcher, others: Iterable[ModelPatcher]) -> list[str]:
    """What to say of a masked run that ``first`` begins, where only later models change the mask."""
    if MASK_FUNCTION in first.model_options or not any(MASK_FUNCTION in other.model_options for other in others):
        return []
    return [
        "A node on the render changes the mask with the noise level (Differential Diffusion), but the model that "
        "begins the run decides. Put it on the sketch."
    ]


def unseen_notes(stage: str, model: ModelPatcher, first: ModelPatcher, conds: dict[str, Any]) -> list[str]:
    """What to say of an image or of frames on ``conds`` that ``first`` begins with and a later ``stage`` can't see."""
    kinds = {
        IMAGE: (image_channels, "image", "an image to video model there, such as Wan2.1 Fun InP 1.3B"),
        VACE: (_vace_blocks, "control frames", "a VACE model there, such as Wan2.1 VACE 1.3B"),
    }
    given = {name for of_role in conds.values() for cond in of_role for name in cond}
    return [
        f"The {stage} does not take the {what} on the prompts, so it does not see what the sketch saw. Use {instead}."
        for name, (taken, what, instead) in kinds.items()
        if name in given and taken(first) and not taken(model)
    ]


def _vace_blocks(model: ModelPatcher) -> int:
    return len(getattr(model.model.diffusion_model, "vace_blocks", ()))


def one_stage_note(model: ModelPatcher, before: Things) -> list[str]:
    """What to say where nodes stand between Sketch-Render Model, whose MODEL had ``before`` on it, and the sampler."""
    names = sorted({name for name, _ in things_on(model) - before})
    if not names:
        return []
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [
        f"A node after Sketch-Render Model ({shown}) acts on the sketch only. Put it before Sketch-Render Model: once "
        "on the sketch, and once on the render if it is meant for both."
    ]
