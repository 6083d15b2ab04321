"""What no run can be made of: refused in a sentence, before any step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import comfy.controlnet
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .calls import KEY
from .latent import IMAGE, check_latent, check_pair, check_same_images, check_same_prompts, name_of
from .route import LISTED, Pair
from .stage import Conds, RenderSettings, controls_on
from .steps import innermost, is_padded


def check_plain(role: str, model: ModelPatcher) -> None:
    """Raises ValueError when the MODEL that is to be the ``role`` already cooperates."""
    if KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        raise ValueError(
            f"The {role} already is a Sketch-Render Model; connect a plain MODEL (what changes one model goes before "
            "the two meet)."
        )


def check_together(sketch: ModelPatcher, other: ModelPatcher, settings: RenderSettings) -> None:
    """Raises ValueError when ``other`` can't take over from ``sketch``: another latent, or other prompts."""
    check_pair(sketch, other)
    if settings.positive is None:
        check_same_prompts(sketch, other, "positive")
        check_same_images(sketch, other)


def check_levels(sigmas: Sequence[float]) -> None:
    """Raises ValueError for noise levels that are not finite."""
    if not all(map(math.isfinite, sigmas)):
        raise ValueError(
            f"The scheduler gives noise levels that are not finite ({', '.join(f'{s:.4g}' for s in sigmas[:8])}). Take "
            "more steps (kl_optimal needs 2) or another scheduler."
        )


def check_run(guider: comfy.samplers.CFGGuider, call: dict[str, Any], sigmas: Sequence[float]) -> None:
    """Raises ValueError for a latent, a schedule or a guidance scale that no hand-over works with."""
    packed = len(call.get("latent_shapes") or []) > 1  # several latents (video and sound) come as one row of values
    check_latent(call["latent_image"], guider.model_patcher, any_shape=packed)
    mask = call.get("denoise_mask")
    if mask is not None and not torch.isfinite(mask).all():
        raise ValueError(
            "The LATENT's noise_mask has values that are not finite (NaN or infinity). Make the mask again, or take it "
            "off."
        )
    if KEY in getattr(getattr(guider, "uncond_model_patcher", None), "attachments", {}):
        raise ValueError(
            f"{type(guider).__name__} runs another model for the negative prompt, and a Sketch-Render Model can't "
            "switch there. Use CFGGuider, or connect a plain MODEL for the negative."
        )
    _check_falling(sigmas)
    if is_padded(call["sigmas"].tolist()) and _is_the_hosts(innermost(call["sampler"])):
        raise ValueError(
            "The schedule begins at noise level 0, which the resample mode of another pack's sampler nodes (RES4LYF) "
            "puts there. Only that pack's samplers can start from it: choose one, or set the mode to standard."
        )
    cfg = getattr(guider, "cfg", 1.0)  # a guider of another node may have none
    if isinstance(cfg, float) and not math.isfinite(cfg):
        raise ValueError(f"cfg is {cfg}; it must be a number (Wan: 5 to 6, and 1 for no guidance).")


def _check_falling(sigmas: Sequence[float]) -> None:
    rise = next((i for i, (a, b) in enumerate(pairwise(sigmas), 1) if b > a), None)
    if rise is not None:
        raise ValueError(
            f"The noise level rises in step {rise} of {len(sigmas) - 1}; Sketch-Render needs a schedule that never "
            "rises. FlipSigmas, restarts and the unsample mode of other packs' sampler nodes (RES4LYF) make such a "
            "schedule: use the sketch or the render alone there."
        )


def _is_the_hosts(sampler: Any) -> bool:
    made_by = getattr(sampler, "sampler_function", type(sampler)).__module__
    return made_by.split(".")[0] in ("comfy", "comfy_extras")


def check_switch(pair: Pair, places: Sequence[float], given: int = 0) -> None:
    """Raises ValueError for a rule that can't be followed in a run whose steps begin at ``places``.

    ``given``: how many steps there were before render_steps.
    """
    switch, steps = pair.switch, len(places)
    fewer = f", because render_steps makes them of {given}" if given not in (0, steps) else ""
    earliest = switch.earliest(places)
    if switch.mode == "adaptive" and 0 < switch.max_step < earliest <= steps:
        raise ValueError(
            f"max_step is {switch.max_step}, but the rule of adaptive decides after step {earliest} of {steps} at the "
            f"earliest (fix_step {switch.fix_step} of 50). Raise max_step, lower fix_step, or set switch_mode to step."
        )
    if switch.mode == LISTED:
        if max(switch.listed) > steps:
            raise ValueError(
                f"sketch_steps names step {max(switch.listed)}, but the run has {steps} steps{fewer}. Name steps from "
                f"1 to {steps}, or take more steps."
            )
        if pair.render_steps and max(switch.listed) == steps:
            raise ValueError(
                f"render_steps is {pair.render_steps}, but by sketch_steps the sketch runs the last step, so the "
                "render has no rest. Set render_steps to 0, or leave the last steps to the render."
            )


def check_controls(stage: str, model: ModelPatcher, conds: Conds) -> None:
    """Raises ValueError for a ControlNet on the conds of ``stage`` that the host can't set up for its model.

    SD3.5's take an embedder of the model.
    """
    for control in chain.from_iterable(map(controls_on, conds.values())):
        if not isinstance(control, comfy.controlnet.ControlNetSD35):
            continue
        network, double = control.control_model, control.control_model.double_y_emb
        own = _shapes(network.orig_y_embedder if double else network.x_embedder)
        theirs = _shapes(getattr(model.model.diffusion_model, "y_embedder" if double else "x_embedder"))
        if any(own[name] != theirs[name] for name in own.keys() & theirs):
            raise ValueError(
                f"The ControlNet on the prompts is not for the {stage} {name_of(model)}. Connect render_positive and "
                "render_negative: with a ControlNet of the render's own, or without one."
            )


def _shapes(network: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def check_settings(guider: comfy.samplers.CFGGuider, render: ModelPatcher, settings: RenderSettings) -> None:
    """Raises ValueError for settings of the render that the guider can't follow."""
    for role, own in (("positive", settings.positive), ("negative", settings.negative)):
        conds = guider.original_conds.get(role)
        if own is None and conds is not None:
            check_same_prompts(guider.model_patcher, render, role)
            if any(IMAGE in cond for cond in conds):
                check_same_images(guider.model_patcher, render)
        if own is not None and conds is None:
            raise ValueError(f"render_{role} is connected, but the guider ({type(guider).__name__}) takes none.")
    plain_cfg = type(guider).set_cfg is comfy.samplers.CFGGuider.set_cfg
    if settings.cfg and not (plain_cfg and "negative" in guider.original_conds):
        raise ValueError(
            f"render_cfg is {settings.cfg}, but {type(guider).__name__} has no single guidance scale with a negative "
            "prompt. Set render_cfg to 0 or use CFGGuider."
        )
