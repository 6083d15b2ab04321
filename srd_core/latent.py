"""May these two models share a latent, and how is one mapped onto the other?

Asked before any weight is loaded to the GPU.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher

from .families import advice

FLOW = "flow"
VARIANCE_EXPLODING = "variance exploding"
DDPM = "DDPM"
# The host's kinds of noise schedule, by class name: between two of them a sigma does not mean the same.
FLOW_COSMOS = "flow (Cosmos)"
KINDS = {"CONST": FLOW, "COSMOS_RFLOW": FLOW_COSMOS, "V_PREDICTION_DDPM": DDPM, "EPS": VARIANCE_EXPLODING}
# Where the host keeps the width of a model's text input: in the detected config or, where no weight tells it, on the
# network. LTX-Video's cross_attention_dim is none: it lies behind a projection of the text, and is the model's own
# width.
TEXT_WIDTHS = ("text_dim", "text_embed_dim", "context_in_dim", "context_dim", "caption_channels")
ONE_VAE = {"CogVideoX", "CogVideoX1_5"}  # the host has a latent format for each of its scales
IMAGE = "concat_latent_image"  # what image to video nodes put on conditioning
# Attachment under which our loaders leave the file's name on a MODEL.
FILE_NAME = "srdiffusion_file"
# Attachment with the whole name of a model that stands for one that is not there.
FULL_NAME = "srdiffusion_name"


def name_of(model: ModelPatcher) -> str:
    """How messages and reports call a MODEL: the file if our loader loaded it, else the class; with its size."""
    if FULL_NAME in model.attachments:
        return str(model.attachments[FULL_NAME])
    parameters = parameters_of(model)
    size = f"{parameters / 1e9:.1f}B" if parameters >= 5e7 else f"{parameters / 1e6:.2f}M"
    return f"{model.attachments.get(FILE_NAME) or type(model.model).__name__} ({size} parameters)"


def parameters_of(model: ModelPatcher) -> int:
    """Values in the network's weights."""
    # A weight that ComfyUI-GGUF holds packed says its real shape beside the bytes.
    return sum(math.prod(getattr(p, "tensor_shape", p.shape)) for p in model.model.diffusion_model.parameters())


# --- what a latent of a model is ---


def latent_facts(model: ModelPatcher) -> list[tuple[str, Any]]:
    """What a latent of ``model`` is: (what, value). Two models whose facts are equal share their latents."""
    latent_format = model.get_model_object("latent_format")
    sampling = model.get_model_object("model_sampling")
    return [
        ("latent format", type(latent_format).__name__),
        ("channels", latent_format.latent_channels),
        ("dimensions", latent_format.latent_dimensions),
        ("spatial compression", getattr(latent_format, "spacial_downscale_ratio", None)),
        ("temporal compression", getattr(latent_format, "temporal_downscale_ratio", None)),
        ("scale", latent_format.scale_factor),
        ("channel means", _values(latent_format, "latents_mean")),
        ("channel deviations", _values(latent_format, "latents_std")),
        ("noise schedule", kind_of(sampling)),
    ]


def kind_of(sampling: Any) -> str:
    """The kind of the host's noise schedule, one of KINDS; unknown for any other."""
    bases = {base.__name__ for base in type(sampling).__mro__}
    return next((kind for name, kind in KINDS.items() if name in bases), "unknown")


def _values(latent_format: Any, name: str) -> list[float] | None:
    values = getattr(latent_format, name, None)
    return None if values is None else [round(float(v), 6) for v in torch.as_tensor(values).flatten()]


def check_latent(latent: torch.Tensor, model: ModelPatcher, any_shape: bool = False) -> None:
    """Raises ValueError when ``latent`` [B, C, (T,) H, W] can't be a latent of ``model`` or has non-finite values.

    ``any_shape``: look at the values only.
    """
    latent_format = model.get_model_object("latent_format")
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    shape = tuple(latent.shape)
    if not any_shape and (latent.ndim != dimensions + 2 or shape[1] != channels):
        axes = {1: "[batch, {}, length]", 2: "[batch, {}, height, width]"}.get(
            dimensions, "[batch, {}, frames, height, width]"
        )
        raise ValueError(
            f"The LATENT has shape {list(shape)}, but {name_of(model)} needs {axes.format(channels)}. "
            "Use the empty latent node of this model family, or encode with its VAE."
        )
    if not torch.isfinite(latent).all():
        raise ValueError(
            "The LATENT has values that are not finite (NaN or infinity). The node that made it failed: "
            "often a VAE in half precision; try it in float32."
        )


# --- two models ---


def of_one_vae(latent_format: str, other: str) -> bool:
    """Whether two of the host's latent formats, by class name, are of one VAE, up to a scale."""
    return latent_format == other or {latent_format, other} == ONE_VAE


def check_pair(sketch: ModelPatcher, render: ModelPatcher) -> LatentMap:
    """How latents of the sketch become latents of the render: unchanged, or by a scale (CogVideoX 5B -> 2B).

    Raises ValueError where a latent means something else to the render: another format, channels, statistics,
    compression or kind of noise schedule. The numbers go into the log.
    """
    ours, theirs = (dict(latent_facts(model)) for model in (sketch, render))
    ratio, kind = theirs["scale"] / ours["scale"], ours["noise schedule"]
    different = [what for what in ours if ours[what] != theirs[what]]
    one_vae = of_one_vae(ours["latent format"], theirs["latent format"])
    if one_vae and kind in (FLOW, VARIANCE_EXPLODING) and set(different) <= {"latent format", "scale"}:
        return LatentMap(ratio, kind)
    if different:
        numbers = "; ".join(f"{what} {ours[what]} / {theirs[what]}" for what in different)
        logging.warning("SRDiffusion: latents of sketch / render differ: %s", numbers)
        raise ValueError(
            f"Sketch {name_of(sketch)} and render {name_of(render)} {_difference(ours, theirs, different)}, so they do "
            f"not fit together. {_next_step(ours, theirs, type(sketch.model), type(render.model))}"
        )
    return LatentMap(1.0)


def _difference(ours: dict[str, Any], theirs: dict[str, Any], different: list[str]) -> str:
    if "noise schedule" in different and set(different) <= {
        "latent format",
        "scale",
        "noise schedule",
    }:  # a scale is mapped
        return f"have different noise schedules ({ours['noise schedule']} and {theirs['noise schedule']})"
    if "channels" in different:
        return f"use different VAEs ({ours['channels']} and {theirs['channels']} channels)"
    return f"use different latents ({', '.join(different)})"


def _next_step(ours: dict[str, Any], theirs: dict[str, Any], sketch: type, render: type) -> str:
    raw = [role for role, facts in (("sketch", ours), ("render", theirs)) if facts["noise schedule"] == DDPM]
    if len(raw) == 1:  # the host's own CogVideoX beside a corrected one
        return f"Put CogVideoX Sampling Fix on the {raw[0]}, or load it with this pack's loader."
    if (
        sketch is render
        and ours["latent format"] == theirs["latent format"]
        and ours["noise schedule"] != theirs["noise schedule"]
    ):
        return "Put the same ModelSampling node on both, or on neither."
    return advice(ours["latent format"], sketch.__name__, theirs["latent format"])


def check_same_prompts(sketch: ModelPatcher, render: ModelPatcher, role: str) -> None:
    """Raises ValueError when the sketch's ``role`` prompt means nothing to the render, by family or text width."""
    of_all = set(comfy.model_base.BaseModel.__mro__)
    related = (set(type(sketch.model).__mro__) & set(type(render.model).__mro__)) - of_all
    if not related or _text_widths(sketch) != _text_widths(render):
        raise ValueError(
            f"Sketch {name_of(sketch)} and render {name_of(render)} read different text encoders. "
            f"Connect render_{role}, encoded for the render (and the other conditioning too)."
        )


def check_same_images(sketch: ModelPatcher, render: ModelPatcher) -> None:
    """Raises ValueError when both take images beside the latent, but not as many.

    Of one number of images the host makes what each network takes: a mask goes along or not.
    """
    ours, theirs = image_channels(sketch), image_channels(render)
    size = sketch.get_model_object("latent_format").latent_channels
    if ours and theirs and ours // size != theirs // size:
        raise ValueError(
            f"Sketch {name_of(sketch)} and render {name_of(render)} take images in different ways ({ours} and {theirs} "
            "channels beside the latent). Use two models of one kind, such as Fun InP with Fun InP, or connect "
            "render_positive and render_negative from the render's own node."
        )


def image_channels(model: ModelPatcher) -> int:
    """Channels of the network's input beside those of the latent; 0: none, or not known."""
    config = model.model.model_config.unet_config
    taken = config.get("in_dim", config.get("in_channels", 0))
    return max(taken - model.get_model_object("latent_format").latent_channels, 0)


def _text_widths(model: ModelPatcher) -> list[Any]:
    config, network = model.model.model_config.unet_config, model.model.diffusion_model
    return [config.get(key, getattr(network, key, None)) for key in TEXT_WIDTHS]


# --- from one latent to the other ---


@dataclass(frozen=True)
class LatentMap:
    """One latent in two spaces that differ by a scale: from the sketch's coordinates to the render's and back, exactly.

    Everything outside a render call (sampler state, masks, previews) stays in the sketch's space.

    ``ratio`` r: the render's latent scale over the sketch's. ``kind``: what x is at noise level sigma, for the clean
    latent z of scale s and noise eps: variance exploding x = s z + sigma eps; flow x = (1 - sigma) s z + sigma eps.
    """

    ratio: float
    kind: str = VARIANCE_EXPLODING

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf or self.kind not in (FLOW, VARIANCE_EXPLODING):
            raise ValueError(f"No map between latents with ratio {self.ratio} and noise schedule {self.kind}.")

    @property
    def is_identity(self) -> bool:
        """Whether both spaces are one."""
        return self.ratio == 1

    def factor(self, sigma: torch.Tensor) -> torch.Tensor:
        """What x and sigma are multiplied with at noise level ``sigma`` (any shape) of the sketch.

        Flow: x' = c x must be (1 - sigma') r s z + sigma' eps with sigma' = c sigma, which c = r / (1 - sigma + r
        sigma) solves. At sigma = 1 (noise alone) c is 1.
        """
        if self.kind == VARIANCE_EXPLODING:
            return torch.full_like(sigma, self.ratio)
        return self.ratio / (1 - sigma + self.ratio * sigma)

    def to_render(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, sigma) of the sketch as the render has to be called with. x [B, C, ...], sigma [B] or []."""
        if self.is_identity:  # bit for bit
            return x, sigma
        factor = self.factor(sigma)
        shape = factor.shape[:1] + (1,) * (x.ndim - 1) if factor.ndim else ()
        return factor.to(x.dtype).reshape(shape) * x, self.sigmas(sigma)

    def sigmas(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Noise levels of the sketch (any shape, also a whole schedule or the bounds of a range) as the render's."""
        if self.is_identity:
            return sigmas
        return self.factor(sigmas) * sigmas

    def clean_to_render(self, x0: torch.Tensor) -> torch.Tensor:
        """A clean latent or x0 prediction of the sketch's space in the render's."""
        return x0 if self.is_identity else x0 * self.ratio

    def clean_to_sketch(self, x0: torch.Tensor) -> torch.Tensor:
        """An x0 prediction of the render in the sketch's space."""
        return x0 if self.is_identity else x0 / self.ratio
