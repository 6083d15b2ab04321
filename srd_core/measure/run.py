"""A run of the sketch alone that keeps some of its calls; afterwards the render answers them too.

So each model is loaded once, and the measurement takes about the time of one sketch run.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .. import memory
from ..begin import begin_run, carry_out
from ..calls import KEY, OUTER_SAMPLE, PREDICT_NOISE
from ..checks import check_controls, check_plain, check_run, check_settings, check_together
from ..fade import log_snr, velocity
from ..handover.sketch import noting
from ..latent import FLOW, check_pair, kind_of, name_of
from ..pair import Member
from ..report.data import Report
from ..report.figures import step_seconds
from ..route import RENDER, SKETCH, Pair, Switch
from ..run import Run
from ..stage import RenderSettings, Stage
from .fit import KEPT, Pull, chosen, difference, pull

NEVER = Switch("step", switch_step=10_000)
CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}  # keys of the host's nodes, which reuse outputs


@dataclass(frozen=True)
class Point:
    """A measured step, 0-based: relative differences of the velocities, render to sketch."""

    step: int
    sigma: float
    differences: dict[str, float]  # by KEPT; cond and uncond only with guidance


@dataclass
class Measured:
    """What Measure Pair found; filled by the run."""

    sketch: str = ""  # names
    render: str = ""
    steps: int = 0
    sketch_seconds: float = 0.0  # of a step
    render_seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    guided: list[Pull] = field(default_factory=list)  # of the render with guidance
    unguided: list[Pull] = field(default_factory=list)  # and without
    without: list[str] = field(default_factory=list)  # nodes on the models that were left out


@dataclass
class Kept:
    """One call of the sketch, on the CPU."""

    step: int
    x: torch.Tensor  # [B, C, ...]
    sigma: torch.Tensor  # [B]
    predictions: dict[str, torch.Tensor]  # x0 by KEPT

    def velocity(self, name: str = "guided") -> torch.Tensor:
        """[B, C, ...], of the prediction of that name."""
        return velocity(self.x, self.sigma, self.predictions[name])


def measuring(
    sketch: ModelPatcher, render: ModelPatcher, settings: RenderSettings, points: int, measured: Measured
) -> ModelPatcher:
    """A MODEL that samples as ``sketch`` and fills ``measured`` at its end. Raises ValueError as ``cooperate``."""
    for role, model in ((SKETCH, sketch), (RENDER, render)):
        check_plain(role, model)
    check_together(sketch, render, settings)
    model, render = _without_caches(sketch, measured), _without_caches(render, measured)
    sample = partial(_sample, render=Member(render, settings), points=points, measured=measured)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    return model


def _without_caches(model: ModelPatcher, measured: Measured) -> ModelPatcher:
    """A clone that computes every call: the kept ones lie several steps apart, and their seconds are to be a step's."""
    model = model.clone()
    for wrappers in model.wrappers.values():
        for key in CACHES.keys() & wrappers:
            del wrappers[key]
            measured.without = sorted({*measured.without, CACHES[key]})
    return model


def _sample(
    executor: WrapperExecutor, *args: Any, render: Member, points: int, measured: Measured, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    stage = Stage.beside(guider, render.model, render.settings, check_pair(guider.model_patcher, render.model))
    run = begin_run(guider, call.arguments, {RENDER: stage}, Pair(SKETCH, RENDER, NEVER), Report())
    recorder = Recorder(run, chosen(run.steps.steps, points))
    run.outside = [recorder.predict]
    run.at_end = partial(_compare, recorder, stage, measured)

    def prepare() -> None:
        check_run(guider, call.arguments, run.steps.sigmas)
        check_settings(guider, render.model, render.settings)
        check_controls(RENDER, render.model, stage.guider.conds)
        if (mask := call.arguments.get("denoise_mask")) is not None and not mask.any():
            raise ValueError("The LATENT's noise_mask keeps all of it, so there is nothing to measure. Take it off.")
        if run.steps.steps < 4:
            raise ValueError(
                f"Measure Pair needs 4 steps or more; this run has {run.steps.steps}. Raise steps, or denoise."
            )
        stage.prepare(run.schedule_of(RENDER))

    try:
        return carry_out(run, executor, call, prepare)
    finally:
        recorder.kept.clear()  # the run's parts know each other: without this the latents wait for a garbage collection


@dataclass
class Recorder:
    """Keeps the first call of each chosen step."""

    run: Run
    chosen: list[int]  # 0-based
    kept: list[Kept] = field(default_factory=list)
    call: inspect.BoundArguments = field(init=False)  # the newest, as the sampler made it

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper around the run's own: x [B, C, ...], timestep [B]; returns what the run returns."""
        self.call = PREDICT_NOISE.bind(executor.class_obj, x, timestep, *args, **kwargs)
        call, noted = noting(executor.class_obj, self.call, keep=torch.Tensor.detach)
        before = self.run.steps.step
        prediction = executor(*call.args[1:], **call.kwargs)
        step = self.run.steps.step
        if step != before and step in self.chosen:
            x0 = {"guided": prediction, **_parts(noted)}
            kept = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in x0.items()}
            self.kept.append(Kept(step, x.detach().to("cpu", torch.float32, copy=True), timestep.detach().cpu(), kept))
        return prediction


def _parts(noted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cond and uncond of a guided call; a call without guidance has none."""
    cond, uncond = noted.get("cond_denoised"), noted.get("uncond_denoised")
    if cond is None or uncond is None or not torch.count_nonzero(uncond):
        return {}
    return {"cond": cond, "uncond": uncond}


def _compare(recorder: Recorder, stage: Stage, measured: Measured) -> None:
    """At the end of the sampler: the render's predictions at what was kept, and how far they are."""
    run = recorder.run
    measured.steps = run.steps.steps
    measured.sketch, measured.render = (name_of(run.stages[role].model) for role in (SKETCH, RENDER))
    measured.sketch_seconds = step_seconds(run.books.report, SKETCH) or 0.0
    flow = kind_of(run.stages[SKETCH].model.get_model_object("model_sampling")) == FLOW
    if len(recorder.kept) < 2:
        raise ValueError(
            f"{run.books.report.sampler} took too few of the schedule's steps to measure. Choose another sampler or "
            "more steps."
        )
    memory.end_malloc_graph()
    run.load(RENDER, recorder.kept[0].x)
    for keyframe in stage.keyframes():  # of hooks: the run has walked through them
        keyframe.reset()
    levels, passed = torch.tensor(run.steps.sigmas), 0
    seconds, progress = [], comfy.utils.ProgressBar(len(recorder.kept))
    for at, kept in enumerate(recorder.kept):
        comfy.model_management.throw_exception_if_processing_interrupted()
        for level in levels[passed : kept.step]:
            stage.follow(level, levels, ())
        stage.model.clear_cached_hook_weights()
        passed, begin = kept.step + 1, time.perf_counter()
        rendered = memory.try_twice(partial(_rendered, recorder, stage, kept), run.make_room)
        seconds.append(time.perf_counter() - begin)
        mask = run.mask_for(kept.x)
        _note(measured, recorder.kept[:at], kept, rendered, flow, 1.0 if mask is None else mask)
        progress.update(1)
    calls = run.books.report.stage(SKETCH).calls / measured.steps
    measured.render_seconds = median(seconds[1:]) * calls  # the first one warms up


def _rendered(recorder: Recorder, stage: Stage, kept: Kept) -> dict[str, torch.Tensor]:
    """The render's x0 at a kept call, by KEPT, on the CPU."""
    call, guider = recorder.call, recorder.call.arguments["self"]
    device = call.arguments["x"].device
    own, noted = noting(guider, call, keep=torch.Tensor.detach)
    own.arguments["x"], own.arguments["timestep"] = kept.x.to(device), kept.sigma.to(device)
    prediction = stage.predict(own)
    recorder.run.finite.watch(prediction, partial(recorder.run.not_finite, RENDER, kept.step, kept.sigma))
    recorder.run.finite.check(wait=True)
    return {name: value.detach().float().cpu() for name, value in {"guided": prediction, **_parts(noted)}.items()}


def _note(
    measured: Measured,
    before: list[Kept],
    kept: Kept,
    rendered: dict[str, torch.Tensor],
    flow: bool,
    mask: torch.Tensor | float,
) -> None:
    """``mask``: 1 where the latent is generated, which is what counts."""
    velocities = {name: mask * velocity(kept.x, kept.sigma, value) for name, value in rendered.items()}
    names = [name for name in KEPT if name in velocities and name in kept.predictions]
    differences = {name: difference(velocities[name], mask * kept.velocity(name)) for name in names}
    measured.points.append(Point(kept.step, float(kept.sigma[0]), differences))
    sketch = mask * kept.velocity()
    for earlier in before:
        away = float(log_snr(kept.sigma[:1].double(), flow) - log_snr(earlier.sigma[:1].double(), flow))
        v_j = mask * earlier.velocity()
        measured.guided.append(pull(earlier.step, kept.step, away, v_j, sketch, velocities["guided"]))
        if "cond" in velocities:
            measured.unguided.append(pull(earlier.step, kept.step, away, v_j, sketch, velocities["cond"]))
