"""A sketch of fewer pixels: the first part of a route runs on a smaller latent, over the same steps.

The host is given a small call in place of the whole one (noise, latent, mask, levels, conditioning), so that memory,
previews and conditioning are those of a small run. At the switch the sampler ends, x is enlarged (enlarge.py), and the
sampler begins anew on the rest of the whole schedule. The small noise is the low frequencies of the run's own noise;
the others come in there.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from .calls import MASK_FUNCTION, SAMPLER_SAMPLE, freeing_by
from .enlarge import Enlargement, Size, small_size
from .latent import FLOW, FLOW_COSMOS, VARIANCE_EXPLODING, kind_of, name_of
from .route import FULL_SIZE, LISTED, Pair, Switch, stages_of
from .stage import Conds, Request
from .steps import is_padded

PURE_NOISE = 0.98  # place in the timesteps from which on a run begins with noise alone
PATCH = 2  # of a network that does not tell its own

Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x [B, C, ...], sigma [B], x0 prediction [B, C, ...]


@dataclass
class Smaller:
    """The part of a run in which its latent is smaller; it ends with it."""

    scale: Enlargement
    stages: frozenset[str]  # that run in it
    request: Request  # the run's own, of the full size
    levels: list[float]  # of the whole schedule, for the full size
    from_noise: bool  # the run begins with noise alone: its latent says nothing of what is to come
    # the first calls of the last two steps, for a fade
    latest: deque[Call] = field(default_factory=lambda: deque(maxlen=2))
    call: inspect.BoundArguments | None = None  # of SAMPLER_SAMPLE, as it would be for the full size
    _noise: torch.Tensor | None = None  # [B, C, ...] of the full size, for the new frequencies
    _latent: torch.Tensor | None = None  # the same: what is known of the clean latent

    def begin(self, small: inspect.BoundArguments) -> None:
        """The sampler is about to be called so: the same call for the full size is made here."""
        model, noise = small.arguments["model_wrap"].inner_model, self.request["noise"].to(small.arguments["noise"])
        latent = self.request["latent_image"].to(noise)
        if torch.count_nonzero(latent) > 0:  # an empty latent stays zero, as in the host
            latent = model.process_latent_in(latent)
        own = torch.count_nonzero(noise) > 0
        # a run that adds no noise has some in its latent
        self._noise = noise if own else _drawn(noise, self.request["seed"])
        self._latent = latent if own and not self.from_noise else torch.zeros_like(latent)
        self.call = SAMPLER_SAMPLE.bind(*small.args, **small.kwargs)
        self.call.arguments.update(noise=noise, latent_image=latent, denoise_mask=self.request["denoise_mask"])
        extra = small.arguments["extra_args"]
        options = freeing_by(extra["model_options"], self._where)
        small.arguments["extra_args"] = {**extra, "model_options": options}

    def _where(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale.level(sigma), sigma.new_tensor(self.levels)

    def enlarged(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The small x [B, C, ...] at ``sigma`` [B] as a full one at ``scale.level(sigma)``."""
        assert self.call is not None
        given, level = self.call.arguments, self.scale.level(sigma[:1])
        scaling, mask = given["model_wrap"].inner_model.model_sampling.noise_scaling, self._mask_at(sigma)
        x = self.scale.enlarge(x, sigma[:1], scaling(level, self._noise, self._latent))
        if mask is None:
            return x
        # What is kept is as the host would have it there. Where a part of it is, the small x has that in it already.
        to_kept = scaling(level, given["noise"], given["latent_image"]) - x
        return x + torch.where(mask == 0, to_kept, (1 - mask) * self.scale.high(to_kept))

    def _mask_at(self, sigma: torch.Tensor) -> torch.Tensor | None:
        """The mask of the full size in a call at ``sigma`` [B] of the small latent."""
        assert self.call is not None
        given = self.call.arguments
        mask, options = given["denoise_mask"], freeing_by(given["extra_args"]["model_options"], self._where)
        if mask is None or MASK_FUNCTION not in options:
            return mask
        return options[MASK_FUNCTION](sigma, mask, extra_options={"model": given["model_wrap"]})

    def enlarged_calls(self) -> list[Call]:
        """The latest calls, as they would have been at the full size."""
        return [(self.enlarged(x, sigma), self.scale.level(sigma), self.scale.grow(x0)) for x, sigma, x0 in self.latest]

    def schedule(self, schedule: Any) -> Any:
        """What the host asks for a percentage of the run's ``schedule``: the level there, of the small latent."""

        def percent_to_sigma(percent: float) -> float:
            # as the schedule's own levels are
            level = torch.tensor(schedule.percent_to_sigma(percent), dtype=torch.float32)
            return self.scale.small_levels([float(level)])[0]

        return SimpleNamespace(percent_to_sigma=percent_to_sigma)


def _drawn(like: torch.Tensor, seed: int | None) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed or 0)).to(like)


# --- which size ---


def enlargement(pair: Pair, latent: torch.Tensor, models: Sequence[ModelPatcher]) -> Enlargement:
    """To the size of the ``latent`` [B, C, ..., H, W], from that of ``pair``'s first part with these ``models``."""
    height, width = latent.shape[-2:]
    small = pair.sketch_size or small_size((height, width), pair.sketch_scale, math.lcm(*map(patch_of, models)))
    flow = kind_of(models[0].get_model_object("model_sampling")) == FLOW
    return Enlargement((height, width), small, flow)


def patch_of(model: ModelPatcher) -> int:
    """Height and width of a patch of the network, in values of the latent."""
    network = model.model.diffusion_model
    patch = getattr(network, "patch_size", getattr(network, "patch_spatial", PATCH))
    patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
    return patch if isinstance(patch, int) and patch > 0 else PATCH


# --- what is made small ---


def small_request(request: Request, scale: Enlargement) -> Request:
    """The run's noise, latent, mask and shapes for the small size."""
    latent = scale.shrink(request["latent_image"].float())
    mask, shapes = request["denoise_mask"], request["latent_shapes"]
    small = {"noise": scale.low(request["noise"].float()), "latent_image": latent}
    mask = mask if mask is None else resized(mask, scale.small)
    return {**request, **small, "denoise_mask": mask, "latent_shapes": shapes if shapes is None else [latent.shape]}


def resized(x: torch.Tensor, size: Size) -> torch.Tensor:
    """The means of areas of x [..., H, W]."""
    rows = x.reshape(-1, 1, *x.shape[-2:]).float()
    return torch.nn.functional.interpolate(rows, size, mode="area").reshape(*x.shape[:-2], *size).to(x.dtype)


# Conditioning whose size can't be told from the latent's, or that counts in tokens of the full size.
FIXED = ("gligen", "keyframe_idxs", "guide_attention_entries", "minimax_keyframes", "minimax_refs")
# Conditioning that has to have the latent's size, or this many times it.
AS_LARGE = ("vace_frames", "vace_mask", "control_video", "pose_video_latent", "driving_mask_28ch", "noise_concat")
OF_THE_LATENT = dict.fromkeys(AS_LARGE, 1) | {"camera_conditions": 8}


def small_conds(conds: Conds, scale: Enlargement) -> Conds:
    """Conditioning for the small size: what has the latent's size is resized, areas too; else ValueError.

    What the host resizes by itself stays: masks of prompts, hints of ControlNets, areas in percent.
    """
    return {
        role: [{key: _small_value(key, value, scale) for key, value in cond.items()} for cond in of_role]
        for role, of_role in conds.items()
    }


def _small_value(key: str, value: Any, scale: Enlargement) -> Any:
    if key in FIXED and value is not None:
        raise ValueError(_cant_resize(key))
    if key == "area" and value is not None and value[0] != "percentage":
        return _small_area(value, scale)
    if isinstance(value, (list, tuple)) and any(isinstance(each, torch.Tensor) for each in value):
        return type(value)(_small_value(key, each, scale) for each in value)
    if not isinstance(value, torch.Tensor) or value.ndim < 4:
        return value
    times, (height, width), (small_height, small_width) = OF_THE_LATENT.get(key, 1), scale.large, scale.small
    if tuple(value.shape[-2:]) == (times * height, times * width):
        return resized(value, (times * small_height, times * small_width))
    if key in OF_THE_LATENT:
        raise ValueError(_cant_resize(key))
    return value


def _small_area(area: Sequence[int], scale: Enlargement) -> tuple[int, ...]:
    """An area of the host: lengths and places of the latent's axes, of which the last two are height and width."""
    lengths, places = list(area[: len(area) // 2]), list(area[len(area) // 2 :])
    for axis, small, large in zip((-2, -1), scale.small, scale.large):
        lengths[axis] = max(round(lengths[axis] * small / large), 1)
        places[axis] = min(round(places[axis] * small / large), small - 1)
        lengths[axis] = min(lengths[axis], small - places[axis])
    return (*lengths, *places)


def _cant_resize(key: str) -> str:
    return (
        f"The conditioning has {key!r}, which can't be resized for a smaller sketch. Set sketch_scale to 1, or leave "
        "out the node that adds it."
    )


# --- what can't be ---


def check_smaller(pair: Pair, call: dict[str, Any], sketch: ModelPatcher, sigmas: Sequence[float]) -> None:
    """Raises ValueError where the first part of ``pair`` can't run smaller; the steps begin at ``sigmas``."""
    kind = kind_of(sketch.get_model_object("model_sampling"))
    if kind not in (FLOW, FLOW_COSMOS, VARIANCE_EXPLODING):
        raise ValueError(
            f"A smaller sketch is not known for the noise schedule of {name_of(sketch)} ({kind}). Set sketch_scale to "
            "1, or put CogVideoX Sampling Fix on a CogVideoX model."
        )
    if len(call.get("latent_shapes") or []) > 1 or call["latent_image"].ndim < 4:
        raise ValueError(
            "A smaller sketch needs one latent with height and width, but this one has several parts or is sound. Set "
            "sketch_scale to 1."
        )
    if is_padded(call["sigmas"].tolist()):
        raise ValueError(
            "A smaller sketch needs a plain schedule, but the sampler's mode puts a level in front of it and drops it "
            "itself. Set the mode to standard, or sketch_scale to 1."
        )
    check_one_switch(pair.switch, sigmas)


def check_one_switch(switch: Switch, sigmas: Sequence[float]) -> None:
    """Raises ValueError unless the first part runs first, and the second one surely the last step after one switch.

    ``sigmas``: where the run's steps begin.
    """
    if switch.mode == LISTED:
        once = max(switch.listed) == len(switch.listed) < len(sigmas)
        way = "List the sketch's steps from 1 on without a gap, and leave the last ones to the render"
    elif switch.mode == "step":
        once, way = switch.switch_step < len(sigmas), "Lower switch_step"
    elif switch.mode == "sigma":
        once, way = sigmas[-1] < switch.switch_sigma, "Raise switch_sigma"
    else:
        once, way = switch.latest(sigmas) < len(sigmas), "Lower max_step" if switch.max_step else "Raise switch_sigma"
    if not once:
        raise ValueError(
            "With sketch_scale below 1 the sketch must run first and the render the last step, with one switch between "
            f"them. {way}."
        )


def small_stages(pair: Pair) -> frozenset[str]:
    """The stages that run on a smaller latent."""
    is_small = pair.sketch_scale < FULL_SIZE or pair.sketch_size is not None
    return frozenset(stages_of(pair.first)) if is_small else frozenset()
