"""The noise schedule, the dynamic guidance scale, and what a run may ask for."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import comfy.model_sampling
import torch
from comfy.patcher_extension import WrapperExecutor

from .layout import Layout

TEXT_TOKENS = 226
FRAMES_PER_LATENT = 4


class CogVideoXSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
    """The host's discrete schedule with v-prediction, CogVideoX's SNR shift and a terminal SNR near zero.

    ``snr_shift`` s takes alpha to alpha / (s + (1 - s) alpha), which is sigma times the root of s. The last alpha is
    the host's 4.9e-8 in place of diffusers' 0: a sigma of 4519 in place of an infinite one.
    """

    def __init__(self, model_config: Any = None, zsnr: bool | None = None, snr_shift: float = 1.0) -> None:
        self._snr_shift = snr_shift
        super().__init__(model_config, zsnr=False)
        self.zsnr = True

    def _register_schedule(self, *args: Any, **kwargs: Any) -> None:
        super()._register_schedule(*args, **kwargs)
        ends = self.linear_start**0.5, self.linear_end**0.5
        betas = torch.linspace(*ends, self.num_timesteps, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(dim=0)
        sigmas = (self._snr_shift * (1 - alphas) / alphas) ** 0.5
        self.set_sigmas(comfy.model_sampling.rescale_zero_terminal_snr_sigmas(sigmas))


def dynamic_scale(scale: float, timestep: int, steps: int) -> float:
    """The guidance scale at ``timestep`` (0 to 999) of a run of ``steps`` steps: a wave between 1 and 1 + ``scale``.

    As the official 5B pipeline has it (use_dynamic_cfg, guidance_scale 6). That it takes the timestep for the number of
    the step is intended: the authors keep the wave because it avoids overexposure (zai-org/CogVideo issue 267).
    """
    return 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5)) / 2


def guide_dynamically(args: dict[str, Any]) -> torch.Tensor:
    """The host's sampler_cfg_function: returns the input minus the guided x0 prediction."""
    denoised, scale = args["cond_denoised"], args["cond_scale"]
    if scale > 1:
        steps = len(args["model_options"]["transformer_options"]["sample_sigmas"]) - 1
        timestep = int(args["model"].model_sampling.timestep(args["sigma"]).flatten()[0])
        without = args["uncond_denoised"]
        denoised = without + dynamic_scale(scale, timestep, steps) * (denoised - without)
    return args["input"] - denoised


# --- what a run may ask for ---


def check_run(
    layout: Layout, executor: WrapperExecutor, noise: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: refuse frame counts that the model can't take, cut prompts that are too long."""
    if noise.ndim == 5:
        check_frames(layout, noise.shape[2])
    cut_prompts(getattr(executor.class_obj, "conds", None) or {})
    return executor(noise, *args, **kwargs)


def check_frames(layout: Layout, latent_frames: int) -> None:
    """Raises ValueError with the nearest valid frame counts when the model can't take so many latent frames."""
    size = layout.member.frame_patch
    if latent_frames % size:
        below = latent_frames // size * size
        valid = [str(_frames(n)) for n in (below, below + size) if n]
        raise ValueError(
            f"{layout.member.name} takes {size} latent frames at a time, but {_frames(latent_frames)} frames make "
            f"{latent_frames}. Set the length of the empty latent to {' or '.join(valid)}."
        )


def _frames(latent_frames: int) -> int:
    return (latent_frames - 1) * FRAMES_PER_LATENT + 1


def cut_prompts(conds: Mapping[str, list[dict[str, Any]]]) -> None:
    """Cut the text embeddings of a run's ``conds`` (by role, changed in place) to TEXT_TOKENS."""
    too_long = []
    for role, entries in conds.items():
        for cond in entries:
            text = cond.get("cross_attn")
            if isinstance(text, torch.Tensor) and text.shape[1] > TEXT_TOKENS:
                cond["cross_attn"] = text[:, :TEXT_TOKENS]
                too_long.append(f"{role} {text.shape[1]}")
    if too_long:
        logging.info("SRDiffusion: CogVideoX reads %d tokens of a prompt; cut: %s.", TEXT_TOKENS, ", ".join(too_long))
