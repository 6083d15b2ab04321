"""A finished sketch stage as data: all that is needed to continue from it later or elsewhere.

What a sampler does follows from the noise, the latent, the noise levels, the seed and what its model calls return. So a
sketch is kept as the predictions that its calls returned, one after the other, beside the settings of the run. Whoever
continues lets the sampler run over all steps, answers the sketch's calls from here and the rest by the render: history
of multistep samplers and noise of stochastic ones need nothing extra, and the result is that of one run, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, FiniteFloat

from ..report.data import Report
from ..route import FULL_SIZE, SKETCH, SMALLEST

SAMPLES = 256  # values of x that are kept of each call
# What the functions that *_cfg_pp samplers add to the guidance are given and read.
NOTED = ("denoised", "cond_denoised", "uncond_denoised")

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)  # of what is read from a file
Index = Annotated[int, Field(ge=0, lt=2**16)]  # the host draws the noise of every one up to the highest
Value = Annotated[int | FiniteFloat, Field(gt=-(2**63), lt=2**63)]


@dataclass(frozen=True)
class Settings:
    """Of the sampling run, as the artist set them."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    sampler_name: str
    scheduler: str
    steps: Annotated[int, Field(gt=0, le=10_000)]
    cfg: Annotated[FiniteFloat, Field(ge=0, le=1000)]
    denoise: Annotated[FiniteFloat, Field(ge=0, le=1)]
    # which noise of the seed each latent of a batch gets; None: one after the other
    batch_index: Annotated[list[Index], Field(min_length=1)] | None = None
    # share of the latent's height and width that the sketch ran at; 1: all
    sketch_scale: Annotated[FiniteFloat, Field(ge=SMALLEST, le=FULL_SIZE)] = FULL_SIZE


@dataclass(frozen=True)
class Call:
    """One call of the sketch, tensors on the CPU."""

    sigma: float
    prediction: torch.Tensor  # the guided x0 prediction [B, C, ...], in the sketch's space
    x: torch.Tensor  # [SAMPLES] values of the call's x, float32, see ``samples_of``
    noted: dict[str, torch.Tensor] = field(default_factory=dict)  # by NOTED; empty: the sampler added no function


@dataclass(frozen=True)
class Schedule:
    """A model's noise schedule: the host's object as plain data."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    kinds: list[str]  # the host's classes that it is made of
    values: dict[str, Value | bool]
    tables: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class SketchRecord:
    """A sketch stage; filled while it runs, complete afterwards."""

    settings: Settings
    report: Report = field(default_factory=Report)
    noise_mask: torch.Tensor | None = None  # as the LATENT had it
    latent_image: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # [B, C, ...], as the LATENT had it
    noise: torch.Tensor | None = None  # that the sampler started from; None: what the host draws for the seed
    sigmas: torch.Tensor = field(default_factory=lambda: torch.zeros(0))  # [steps + 1], of the whole run
    x: torch.Tensor | None = None  # the latent at the hand-over, in the sketch's space; None: the sketch ran to the end
    calls: list[Call] = field(default_factory=list)
    latent_facts: dict[str, Any] = field(default_factory=dict)  # see latent.latent_facts
    # what else the LATENT has; in memory only, a file does not hold it
    extra: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=lambda: Schedule([], {}))
    mask_changes: bool = False  # with the noise level, by a node on the sketch (Differential Diffusion)
    host: str = ""  # version of the ComfyUI that sketched

    @property
    def sketch_size(self) -> tuple[int, int] | None:
        """Height and width of a latent that was smaller than the run's; None: it had the run's size."""
        height, width = self.calls[0].prediction.shape[-2:]
        is_small = self.settings.sketch_scale < FULL_SIZE and (height, width) != tuple(self.latent_image.shape[-2:])
        return (height, width) if is_small else None

    @property
    def steps(self) -> int:
        """Scheduler steps that the sketch ran."""
        return self.report.hand_overs[0].after_step if self.report.hand_overs else len(self.sigmas) - 1


def samples_of(x: torch.Tensor) -> torch.Tensor:
    """[SAMPLES] values of a tensor of any shape, evenly spread, float32 on the CPU: enough to recognise it."""
    places = torch.arange(SAMPLES, device=x.device) * (x.numel() - 1) // (SAMPLES - 1)  # in integers: no rounding
    return x.flatten()[places].float().cpu()


def difference(samples: torch.Tensor, others: torch.Tensor) -> float:
    """The largest difference of two sets of samples, over the largest value of the first; 0 for two zeros."""
    return float((samples - others).abs().max() / samples.abs().max().clamp(min=1e-30))


def merge_reports(sketched: Report, report: Report) -> None:
    """Put what the sketch's own run reported into the ``report`` of the run that continued; may be repeated."""
    ran = [replace(step) for step in sketched.steps if step.stage == SKETCH]
    report.steps[: len(ran)] = ran
    for name in ("switch", "earliest", "latest"):
        setattr(report, name, getattr(sketched, name))
    for before, now in zip(sketched.hand_overs, report.hand_overs):
        now.reason, now.d, now.fall, now.rule = before.reason, before.d, before.fall, before.rule
    report.stages = [replace(sketched.stage(SKETCH)), *(stage for stage in report.stages if stage.name != SKETCH)]
    report.total_seconds += sketched.total_seconds
    report.notes = [*sketched.notes, *(note for note in report.notes if note not in sketched.notes)]
    report.changed()
