"""What the evaluation compares: its rows, and how the host's own nodes sample each of them, one prompt at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import common
import hosting  # first: it makes `import comfy` mean the host

# isort: split
import comfy.samplers
import comfy.utils
import folder_paths
import nodes
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from comfy_extras.nodes_model_advanced import ModelSamplingSD3

import text

SKETCH, RENDER = "sketch", "render"
NONE = {SKETCH: 0, RENDER: 0}
SCHEDULER = "simple"
PAPER_STEPS, FIX_STEP = 50, 5
BOUNDARY = 0.875  # the noise level at which two-model samplers for Wan 2.2 change models
SPREAD = "1-3, 5, 7, 10, 14, 19, 26, 36"  # ten of 50 steps; chosen on training prompts
FADE: dict[str, Any] = {"fade": 1.1}
NO_GUIDANCE: dict[str, Any] = {"render_cfg": 1.0}

# --- the rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    kind: str  # alone, together, own schedule, two samplers, noised anew: see sample
    model: str = SKETCH  # alone
    value: float = 0  # delta, steps of the first of two samplers, sigma, or a cache's threshold
    cache: str = ""  # alone: EasyCache or TeaCache
    inputs: dict[str, Any] = field(default_factory=dict)  # together: what differs from SR Sampler as it comes
    like: str = ""  # the row with the same steps, without what makes a step of this one cheaper
    steps: int = PAPER_STEPS
    sampler: str = "euler"

    @property
    def cheaper(self) -> str:
        """The model whose steps cost less than in the row that this one is like."""
        if not self.like:
            return ""
        return SKETCH if self.cache or "sketch_scale" in self.inputs else RENDER

    @property
    def run(self) -> tuple[int, str]:
        """Steps and sampler: only rows of one run are compared."""
        return self.steps, self.sampler

    def __str__(self) -> str:
        return f"{self.name} ({self.steps} steps, {self.sampler})"


def cut(step: int, more: str = "", like: str = "", **inputs: Any) -> Row:
    """A switch after so many steps: as a cut, or with further inputs of SR Sampler."""
    name = f"step {step}, {more}" if more else f"fixed, step {step}"
    return Row(name, "together", inputs={"switch_mode": "step", "switch_step": step, **inputs}, like=like)


def beyond(step: int) -> list[Row]:
    """A cut, and what goes beyond the paper at the same step."""
    plain = cut(step)
    return [plain, cut(step, "fade", **FADE), cut(step, "fade, no guidance", plain.name, **FADE, **NO_GUIDANCE)]


def listed(steps: str, more: str = "", **inputs: Any) -> Row:
    """The sketch's steps as a list, with a fade at every switch to the render."""
    name = f"sketch steps {steps}, fade{', ' + more if more else ''}"
    like = "fixed, step 10" if more else ""
    return Row(name, "together", inputs={"sketch_steps": steps, **FADE, **inputs}, like=like)


ALONE = [Row(f"{model} only", "alone", model) for model in (SKETCH, RENDER)]


def main_rows() -> list[Row]:
    """The rows at 50 steps with euler, and the fade in other runs."""
    rows = [
        *ALONE,
        *(Row(f"adaptive, delta {delta}", "own schedule", value=delta) for delta in (0.01, 0.002)),
        Row("adaptive, set as in the demo", "together", inputs={"delta": 0.003, "fix_step": 10, "switch_sigma": 0.82}),
        *beyond(10),
        cut(15),
        cut(20),
        Row("two KSamplers, step 10", "two samplers", value=10),
        Row(f"sigma {BOUNDARY}, re-noised", "noised anew", value=BOUNDARY),
        cut(10, "no guidance", "fixed, step 10", **NO_GUIDANCE),
        cut(10, "fade, no guidance, 20 render steps", "fixed, step 10", **FADE, **NO_GUIDANCE, render_steps=20),
        cut(10, "TeaCache 0.14", "fixed, step 10", teacache=0.14),
        listed("1-8, 20, 35"),
        listed(SPREAD),
        listed(SPREAD, "no guidance", **NO_GUIDANCE),
        listed("1-8, 12, 17, 23, 30, 38, 45", "no guidance", **NO_GUIDANCE),
        *(
            Row(f"{cache} {value} on the sketch", "alone", value=value, cache=cache, like="sketch only")
            for cache, value in (("TeaCache", 0.14), ("EasyCache", 0.1))
        ),
    ]
    short = ((20, "euler", 4), (10, "euler", 3), (8, "euler", 3))
    others = ((50, sampler, 10) for sampler in ("uni_pc", "dpmpp_2m", "dpmpp_2m_sde"))
    spread = {(20, "euler"): [listed("1-2, 5, 10")], (50, "uni_pc"): [listed(SPREAD)]}
    for steps, sampler, step in (*short, *others):
        own = [ALONE[0], *beyond(step), *spread.get((steps, sampler), [])]
        rows += [replace(row, steps=steps, sampler=sampler) for row in own]
    return rows


def small_rows() -> list[Row]:
    """A sketch of fewer pixels, for a size above the family's own."""
    sizes = [
        cut(10, f"sketch_scale {scale}{', fade' if fade else ''}", "fixed, step 10", sketch_scale=scale, **fade)
        for fade in ({}, FADE)
        for scale in (0.5, 0.667, 0.75)
    ]
    return [*ALONE, *beyond(10)[:2], *sizes]


TABLES: dict[str, Callable[[], list[Row]]] = {"quality": main_rows, "small_sketch": small_rows}


# --- the models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The models by file names, as ComfyUI's loaders list them or paths, and how they are used."""

    sketch: str = "tiny_wan_sketch.safetensors"
    render: str = "tiny_wan_render.safetensors"
    vae: str = "tiny_wan_vae.safetensors"
    text: str = ""  # a text encoder; empty: the tiny family's own encoding
    text_type: str = "wan"
    shift: float = 2.0  # ModelSamplingSD3 on both models; 0: as the files say
    cfg: float = 3.0
    size: str = "128x128x9"  # width, height, frames
    negative: str = ""

    def setup(self) -> str:
        """What the cells of one table share, but for the weights."""
        words = [self.size, f"shift {self.shift:g}", f"cfg {self.cfg:g}"]
        return ", ".join([*words, *([f"negative {self.negative}"] if self.negative else [])])

    def files(self) -> list[Path]:
        """The files with the weights. Raises FileNotFoundError with the folders that were looked in."""
        kinds = {"sketch": "diffusion_models", "render": "diffusion_models", "vae": "vae", "text": "text_encoders"}
        return [_file(kind, getattr(self, name)) for name, kind in kinds.items() if getattr(self, name)]


def _file(kind: str, name: str) -> Path:
    if (given := Path(name).expanduser()).is_file():
        folder_paths.add_model_folder_path(kind, str(given.resolve().parent), is_default=True)
        return given
    folder_paths.add_model_folder_path(kind, str(common.REPOSITORY / "demo" / "family" / "weights"))
    if found := folder_paths.get_full_path(kind, name):
        return Path(found)
    raise FileNotFoundError(f"{name}: no such file, and none in {', '.join(folder_paths.get_folder_paths(kind))}.")


@dataclass
class Sampled:
    """One cell's video and how it came about."""

    calls: dict[str, int]  # model -> steps that it ran
    seconds: dict[str, float] = field(default_factory=dict)  # model -> of sampling
    video: torch.Tensor = field(default_factory=lambda: torch.empty(0))  # [frames, height, width, 3] in whole 255ths
    switch_step: int | None = None  # None: no switch
    reason: str = ""
    curve: list[float | None] | None = None  # D after each step, of the sketch alone


class Studio:
    """The loaded models of a family."""

    def __init__(self, family: Family) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        comfy.utils.set_progress_bar_enabled(False)
        family.files()  # tells the host where they lie
        self.family = family
        self.models = {name: self._load(Path(getattr(family, name)).name) for name in (SKETCH, RENDER)}
        (self.vae,) = nodes.VAELoader().load_vae(Path(family.vae).name)
        self.clip = nodes.CLIPLoader().load_clip(Path(family.text).name, family.text_type)[0] if family.text else None

    def _load(self, name: str) -> Any:
        (model,) = nodes.UNETLoader().load_unet(name, "default")
        return ModelSamplingSD3().patch(model, self.family.shift)[0] if self.family.shift else model

    def _encode(self, prompt: str) -> list[Any]:
        if self.clip is not None:
            return list(nodes.CLIPTextEncode().encode(self.clip, prompt)[0])
        return [[text.encode(prompt)[None].clone(), {}]]

    def sample(self, row: Row, prompt: str, number: int, seed: int, curve: Sequence[float | None] = ()) -> Sampled:
        """The video of a row. number: of the prompt; with the seed it chooses the noise. curve: for own schedule.

        alone: the host's KSampler with one model. together: SR Sampler. own schedule: the pack's rule on ``curve``, D
        of the sketch alone, with the run's own steps for the paper's. two samplers: two KSampler Advanced, the second
        continues with the noise of the first. noised anew: the same at a noise level, the second adds its own noise.
        """
        width, height, frames = map(int, self.family.size.split("x"))
        latent = EmptyHunyuanLatentVideo.execute(width, height, frames).args[0] | {"batch_index": [number]}
        ways: dict[str, Callable[..., tuple[Any, Sampled]]] = {
            "alone": self._alone,
            "together": self._together,
            "own schedule": partial(self._own_schedule, curve=curve),
            "two samplers": self._two_samplers,
            "noised anew": self._two_samplers,
        }
        how: dict[str, Any] = {"steps": row.steps, "sampler_name": row.sampler, "scheduler": SCHEDULER}
        how |= {
            "cfg": self.family.cfg,
            "positive": self._encode(prompt),
            "negative": self._encode(self.family.negative),
        }
        samples, sampled = ways[row.kind](row, how, latent, seed)
        video = nodes.VAEDecode().decode(self.vae, samples)[0].reshape(-1, height, width, 3)
        sampled.video = (video.clamp(0, 1) * 255).round().cpu() / 255
        return sampled

    def _alone(self, row: Row, how: dict[str, Any], latent: Any, seed: int) -> tuple[Any, Sampled]:
        model, curve = self.models[row.model], None
        if row.cache == "TeaCache":
            (model,) = hosting.module("nodes.teacache").SRTeaCache.execute(model, row.value).args
        elif row.cache == "EasyCache":
            (model,) = EasyCacheNode.execute(on_own_input(model), row.value, 0.15, 0.95, False).args
        elif row.model == SKETCH:
            model, curve = watched(model)
        (samples,), seconds = timed(nodes.KSampler().sample, model, seed, latent_image=latent, **how)
        return samples, Sampled(NONE | {row.model: row.steps}, NONE | {row.model: seconds}, curve=curve)

    def _together(self, row: Row, how: dict[str, Any], latent: Any, seed: int) -> tuple[Any, Sampled]:
        sampler = hosting.module("nodes.sampler").SRSampler
        models = self.models[SKETCH], self.models[RENDER]
        samples, report = sampler.execute(*models, latent=latent, seed=seed, denoise=1.0, **how, **row.inputs).args
        stages = {name: report.stage(name) for name in (SKETCH, RENDER)}
        sampled = Sampled(
            {name: stage.calls for name, stage in stages.items()},
            {name: stage.seconds for name, stage in stages.items()},
        )
        if report.hand_overs:
            sampled.switch_step, sampled.reason = report.hand_overs[0].after_step, report.hand_overs[0].reason
        return samples, sampled

    def _own_schedule(
        self, row: Row, how: dict[str, Any], latent: Any, seed: int, curve: Sequence[float | None]
    ) -> tuple[Any, Sampled]:
        step, reason = own_step(curve, row.steps, row.value)
        samples, sampled = self._together(cut(step), how, latent, seed)
        sampled.reason = reason
        return samples, sampled

    def _two_samplers(self, row: Row, how: dict[str, Any], latent: Any, seed: int) -> tuple[Any, Sampled]:
        anew, step = row.kind == "noised anew", int(row.value)
        if anew:
            levels = comfy.samplers.KSampler(self.models[SKETCH], row.steps, "cpu", row.sampler, SCHEDULER).sigmas
            step = int((levels[:-1] >= row.value).sum())
        sampled = Sampled(
            {SKETCH: step, RENDER: row.steps - step}, switch_step=step, reason="sigma" if anew else "step"
        )
        for model, adds_noise, leaves_noise, begin, end in (
            (SKETCH, True, not anew, 0, step),
            (RENDER, anew, False, step, row.steps),
        ):
            (latent,), sampled.seconds[model] = timed(
                nodes.KSamplerAdvanced().sample,
                self.models[model],
                "enable" if adds_noise else "disable",
                seed,
                latent_image=latent,
                start_at_step=begin,
                end_at_step=end,
                return_with_leftover_noise="enable" if leaves_noise else "disable",
                **how,
            )
        return latent, sampled


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
    """(what the function returns, its seconds)."""
    begin = time.perf_counter()
    return function(*args, **kwargs), time.perf_counter() - begin


def watched(model: Any) -> tuple[Any, list[float | None]]:
    """(a clone of the model, D after each of its steps, which grows as it runs); None: nothing to compare with."""
    model, curve = model.clone(), []
    last: list[torch.Tensor] = []
    relative_change = hosting.module("srd_core.criterion").relative_change

    def note(arguments: dict[str, Any]) -> torch.Tensor:
        x0: torch.Tensor = arguments["denoised"]
        curve.append(float(f"{relative_change(x0, last[0])[0]:.9g}") if last else None)
        last[:] = [x0.clone()]
        return x0

    model.set_model_sampler_post_cfg_function(note)
    return model, curve


def on_own_input(model: Any) -> Any:
    """A clone of a model whose network gets its own tensor.

    The host's EasyCache writes into its input. In half precision that is a copy, in float32 (the tiny family) it is the
    sampler's own latent, which would be lost.
    """
    model = model.clone()
    own = lambda executor, x, *args, **kwargs: executor(x.clone(), *args, **kwargs)  # noqa: E731
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "bench", own)
    return model


def own_step(curve: Sequence[float | None], steps: int, delta: float) -> tuple[int, str]:
    """(completed sketch steps at the switch, reason) by the pack's rule, fed with D after each step.

    The run's own schedule is taken for the paper's: its steps are uniform, and ``delta`` is set for 50 of them.
    """
    route = hosting.module("srd_core.route")
    places = [1 - i / steps for i in range(steps)]
    switch = route.Switch(delta=delta, fix_step=FIX_STEP, switch_sigma=0.0)
    way = route.Route(route.Pair(SKETCH, RENDER, switch), places, places)
    for step in range(steps):
        if turn := way.turn(step):
            return step, turn.reason
        way.note(step, None if curve[step] is None else [curve[step]])
    return steps, "never"
