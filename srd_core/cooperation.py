"""The run: a clone of the sketch MODEL that, while the host samples with it, hands over to the render.

``cooperate`` adds one OUTER_SAMPLE wrapper to a clone of the sketch. It runs once per sampling run and puts a
PREDICT_NOISE wrapper into that run's own options, which asks for every model call which stage is in charge. The sampler
runs once over all sigmas, so its history survives the hand-over. The render is prepared by the functions that the host
prepares any model with, and cleaned up the same way, also after an interrupt or an error. All state belongs to the run.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from . import memory
from .attention import backend_of
from .calls import OUTER_SAMPLE, PREDICT_NOISE
from .criterion import RENDER, SKETCH, Switch, SwitchRule
from .finite import FiniteGuard
from .latent import LatentMap, check_latent, check_pair, check_same_prompts, name_of
from .report import HandOver, Report, Step, describe_hand_over
from .reuse import CachedRun, TeaCache, is_cached, run_of, with_teacache
from .steps import StepCounter, counter_for, sampler_name

KEY = "srdiffusion"

Conds = dict[str, list[dict[str, Any]]]  # the host's conditioning by role: positive, negative, ...


@dataclass(frozen=True)
class RenderSettings:
    """What the render does otherwise than the guider says for the sketch."""

    cfg: float = 0.0  # guidance scale; 0: as the sketch
    positive: list[Any] | None = None  # conditioning in the host's form [[tensor, dict], ...]; None: as the sketch
    negative: list[Any] | None = None
    teacache: float = 0.0  # TeaCache threshold of the render stage; 0: off
    offload_sketch: str = memory.AUTO  # what happens to the sketch's memory when the render comes, see memory.py

    def __post_init__(self) -> None:
        """Raises ValueError for settings that mean nothing."""
        if self.offload_sketch not in memory.POLICIES:
            raise ValueError(f"offload_sketch is {self.offload_sketch!r}; choose one of {', '.join(memory.POLICIES)}.")
        if not math.isfinite(self.cfg):
            raise ValueError(f"render_cfg is {self.cfg}; it must be a number (0: as the sketch).")

    def conds(self, original: Conds) -> Conds:
        """The render's conditioning for a guider with these ``original`` conds: copies, roles unchanged."""
        conds = {role: [cond.copy() for cond in conds] for role, conds in original.items()}
        for role, own in (("positive", self.positive), ("negative", self.negative)):
            if own is not None and role in conds:
                conds[role] = comfy.sampler_helpers.convert_cond(own)
        return conds


def cooperate(
    sketch: ModelPatcher, render: ModelPatcher, switch: Switch, settings: RenderSettings, report: Report
) -> ModelPatcher:
    """A MODEL that samples as ``sketch`` until ``switch`` says so, then as ``render``; ``report`` is filled meanwhile.

    Raises ValueError when the two do not share a latent, would need other prompts, or one already is such a MODEL; and
    for a TeaCache that is asked for twice.
    """
    for role, plain in ((SKETCH, sketch), (RENDER, render)):
        check_plain(role, plain)
    latent_map = check_pair(sketch, render)
    if settings.positive is None:
        check_same_prompts(sketch, render, "positive")
    if settings.teacache:
        if is_cached(render):
            raise ValueError(
                f"teacache is {settings.teacache:g}, but the render MODEL already comes from Render TeaCache. "
                "Set teacache to 0 or leave that node out."
            )
        render = with_teacache(render, TeaCache(settings.teacache))
    model = sketch.clone()
    outer_sample = partial(
        _sample, render=render, latent_map=latent_map, switch=switch, settings=settings, report=report
    )
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    return model


def check_plain(role: str, model: ModelPatcher) -> None:
    """Raises ValueError when the MODEL that is to be the ``role`` already cooperates."""
    if KEY in model.wrappers.get(WrappersMP.OUTER_SAMPLE, {}):
        raise ValueError(
            f"The {role} already is a Sketch-Render Model; connect a plain MODEL (what changes one model goes before the two meet)."
        )


def _sample(
    executor: WrapperExecutor,
    *args: Any,
    render: ModelPatcher,
    latent_map: LatentMap,
    switch: Switch,
    settings: RenderSettings,
    report: Report,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host, whatever guider and sampler it uses."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    if settings.offload_sketch == memory.NEVER:
        render = memory.with_beside(render, guider.model_patcher)
    stage = Stage(render, settings.conds(guider.original_conds), latent_map)
    run = begin_run(guider, call.arguments, stage, switch, settings, report)

    def prepare() -> None:
        check_run(guider, call.arguments, run.counter.sigmas)
        _check_settings(guider, render, settings)
        run.render.prepare()

    return carry_out(run, executor, call, prepare)


def carry_out(
    run: Run, executor: WrapperExecutor, call: inspect.BoundArguments, prepare: Callable[[], None]
) -> torch.Tensor:
    """The host's sampling run ``call`` with ``run`` in it, from ``prepare`` (checks, nothing loaded) to the clean-up.

    Returns the latent [B, C, ...]; the report says how it ended, also when it did not end well.
    """
    guider, report = executor.class_obj, run.report
    call.arguments["callback"] = run.callback
    own_options = guider.model_options
    try:
        prepare()
        guider.model_options = run.options_for(guider)
        # The render's wrappers around a whole run (EasyCache) can't be entered in mid-run: they go around this one.
        whole_run = WrapperExecutor.new_class_executor(
            executor, run.render, get_all_wrappers(WrappersMP.OUTER_SAMPLE, run.render.model_options, True)
        )
        latent = whole_run.execute(*call.args[1:], **call.kwargs)
        latent.flatten()[:1].cpu()  # wait for the device once: what it still has to do belongs to the last step
        run.end_last_step()
        run.finite.check(wait=True)
        report.status = "done"
        return latent
    except comfy.model_management.InterruptProcessingException:
        report.status = "interrupted"
        raise
    except Exception as error:
        report.status, report.error = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        guider.model_options = own_options
        run.render.close()
        run.finish()


def check_run(guider: comfy.samplers.CFGGuider, call: dict[str, Any], sigmas: Sequence[float]) -> None:
    """Raises ValueError before any step for a latent, a schedule or a guidance scale that no hand-over works with."""
    packed = len(call.get("latent_shapes") or []) > 1  # several latents (video and sound) come as one row of values
    check_latent(call["latent_image"], guider.model_patcher, any_shape=packed)
    if any(b > a for a, b in zip(sigmas, sigmas[1:])):
        raise ValueError(
            "The hand-over needs a schedule whose noise level never rises (no FlipSigmas, no restarts); "
            f"this one is {', '.join(f'{s:.4g}' for s in sigmas)}."
        )
    cfg = getattr(guider, "cfg", 1.0)  # a guider of another node may have none
    if isinstance(cfg, float) and not math.isfinite(cfg):
        raise ValueError(f"cfg is {cfg}; it must be a number (Wan: 5 to 6, and 1 for no guidance).")


def _check_finite(sigmas: Sequence[float]) -> None:
    if not all(map(math.isfinite, sigmas)):
        raise ValueError(
            f"The scheduler gives noise levels that are not finite ({', '.join(f'{s:.4g}' for s in sigmas[:8])}). Take more steps "
            "(kl_optimal needs 2) or another scheduler."
        )


def _check_settings(guider: comfy.samplers.CFGGuider, render: ModelPatcher, settings: RenderSettings) -> None:
    """Raises ValueError before any step for settings of the render that the guider can't follow."""
    for role, own in (("positive", settings.positive), ("negative", settings.negative)):
        if own is None and role in guider.original_conds:
            check_same_prompts(guider.model_patcher, render, role)
        if own is not None and role not in guider.original_conds:
            raise ValueError(f"render_{role} is connected, but the guider ({type(guider).__name__}) takes none.")
    plain_cfg = type(guider).set_cfg is comfy.samplers.CFGGuider.set_cfg
    if settings.cfg and not (plain_cfg and "negative" in guider.original_conds):
        raise ValueError(
            f"render_cfg is {settings.cfg}, but {type(guider).__name__} has no single guidance scale with a negative "
            "prompt. Set render_cfg to 0 or use CFGGuider."
        )


def begin_run(
    guider: comfy.samplers.CFGGuider,
    call: dict[str, Any],
    render: Stage,
    switch: Switch,
    settings: RenderSettings,
    report: Report,
    kind: Callable[..., Run] | None = None,
) -> Run:
    """The state of a sampling run with the arguments ``call``; ``report`` starts anew. ``kind``: what makes it, if not Run.

    Raises ValueError for a schedule that is not finite.
    """
    counter = counter_for(call["sampler"], call["sigmas"])
    steps = counter.steps
    _check_finite(counter.sigmas)  # before they go into the report, whose JSON holds numbers only
    report.begin(
        sketch=name_of(guider.model_patcher),
        render=name_of(render.model_patcher),
        switch=dict(switch.__dict__),
        delta=switch.delta_for(steps),
        fix_step=switch.fix_step_for(steps),
        limit=switch.limit_for(steps),
        sampler=sampler_name(call["sampler"]).removeprefix("sample_"),
        shape=list(call["noise"].shape),
        sigmas=list(counter.sigmas),
    )
    return (kind or Run)(
        render=render,
        settings=settings,
        rule=SwitchRule(switch, steps),
        counter=counter,
        report=report,
        request={k: call.get(k) for k in ("noise", "latent_image", "denoise_mask", "seed", "latent_shapes")},
        host_callback=call["callback"],
    )


@dataclass
class Stage:
    """The render as the host keeps a model during a sampling run; wrappers of the render see it as their guider."""

    model_patcher: ModelPatcher
    conds: Conds
    latent_map: LatentMap  # from the sketch's space, where the run is, to this model's
    model_options: dict[str, Any] = field(default_factory=dict)
    inner_model: Any = None
    loaded_models: list[Any] = field(default_factory=list)
    _hook_mode: Any = None  # of the patcher before the run; None: not prepared

    def prepare(self) -> None:
        """What CFGGuider.sample does before a run: own options, hooks registered. Loads nothing."""
        comfy.samplers.preprocess_conds_hooks(self.conds)
        if self.model_patcher.is_dynamic() and any("hooks" in cond for conds in self.conds.values() for cond in conds):
            self.model_patcher = self.model_patcher.get_non_dynamic_delegate()
        self._hook_mode = self.model_patcher.hook_mode
        self.model_options = comfy.model_patcher.create_model_options_clone(self.model_patcher.model_options)
        if comfy.samplers.get_total_hook_groups_in_conds(self.conds) <= 1:
            self.model_patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.model_patcher, self.conds, self.model_options)
        comfy.samplers.filter_registered_hooks_on_conds(self.conds, self.model_options)

    def load(self, noise: torch.Tensor, request: dict[str, Any], schedule: Any) -> None:
        """What CFGGuider.outer_sample and inner_sample do before the sampler starts; the host decides what leaves. May be
        called again when it fails.

        Args: ``noise`` [B, C, ...] of the latent's present size; ``request`` the run's other facts (see Run);
        ``schedule`` the model_sampling that the run follows.
        """
        patcher = self.model_patcher
        self.inner_model, conds, models = comfy.sampler_helpers.prepare_sampling(
            patcher, noise.shape, self.conds, self.model_options
        )
        self.loaded_models = [model for model in models if model not in memory.beside(patcher)]  # the others to clean up
        device = patcher.load_device
        comfy.samplers.cast_to_load_options(self.model_options, device=device, dtype=patcher.model_dtype())
        patcher.pre_run()
        latent_image = request["latent_image"].to(device=device, dtype=torch.float32)
        if torch.count_nonzero(latent_image) > 0:  # an empty latent stays zero, as in the host
            latent_image = self.inner_model.process_latent_in(latent_image)
        mask = request["denoise_mask"]
        with _keyframes_kept(conds):
            conds = comfy.samplers.process_conds(
                self.inner_model,
                noise.to(device=device, dtype=torch.float32),
                conds.copy(),
                device,
                latent_image,
                mask if mask is None else mask.to(device),
                request["seed"],
                latent_shapes=request["latent_shapes"],
            )
            for of_role in conds.values():
                _follow_schedule(of_role, _schedule_in(self.latent_map, schedule))
        self.conds = conds

    def close(self) -> None:
        """What the host does after a run, also for a stage that was only prepared."""
        if self._hook_mode is None:
            return
        patcher = self.model_patcher
        if self.inner_model is not None:
            patcher.cleanup()
            comfy.sampler_helpers.cleanup_models(self.conds, self.loaded_models)
        comfy.samplers.cast_to_load_options(self.model_options, device=patcher.offload_device)
        patcher.hook_mode = self._hook_mode
        patcher.restore_hook_patches()
        self.inner_model, self.loaded_models, self.conds, self._hook_mode = None, [], {}, None


@contextlib.contextmanager
def _keyframes_kept(conds: Conds) -> Iterator[None]:
    """The host starts the keyframes of all hooks on the conds (a LoRA whose strength changes during the run) anew, but this
    run is on its way: after this block they stand where they stood."""
    hooks = [hook for role in conds.values() for cond in role if "hooks" in cond for hook in cond["hooks"].hooks]
    stood = [(hook.hook_keyframe, hook.hook_keyframe.__dict__.copy()) for hook in hooks]
    try:
        yield
    finally:
        for keyframe, position in stood:
            keyframe.__dict__.update(position)


def _schedule_in(latent_map: LatentMap, schedule: Any) -> Any:
    """What the host asks for a percentage of the run: the noise level there, in the render's space."""
    if latent_map.is_identity:
        return SimpleNamespace(model_sampling=schedule)

    def percent_to_sigma(percent: float) -> float:
        sigma = schedule.percent_to_sigma(percent)
        return float(latent_map.sigmas(torch.as_tensor(float(sigma), dtype=torch.float64)))

    return SimpleNamespace(model_sampling=SimpleNamespace(percent_to_sigma=percent_to_sigma))


def _follow_schedule(conds: list[dict[str, Any]], schedule_of: Any) -> None:
    """Ranges of steps (start and end percent of prompts, hooks and ControlNets) mean the run's schedule, also where the
    render has a shift of its own."""
    comfy.samplers.calculate_start_end_timesteps(schedule_of, conds)
    for cond in conds:
        for hook in cond["hooks"].hooks if "hooks" in cond else ():
            hook.initialize_timesteps(schedule_of)
        control = cond.get("control")
        while control is not None:
            start, end = control.timestep_percent_range
            to_sigma = schedule_of.model_sampling.percent_to_sigma
            control.timestep_range = (to_sigma(start), to_sigma(end))
            control = control.previous_controlnet


@dataclass
class Run:
    """State of one sampling run; dies with it."""

    render: Stage
    settings: RenderSettings
    rule: SwitchRule
    counter: StepCounter
    report: Report
    request: dict[str, Any]  # the run's noise, latent_image, denoise_mask, seed, latent_shapes
    host_callback: Callable[..., Any] | None
    in_charge: str = SKETCH
    finite: FiniteGuard = field(default_factory=FiniteGuard)
    cached: dict[str, CachedRun] = field(default_factory=dict)  # the stages that TeaCache works on
    started: float = field(default_factory=time.perf_counter)
    _clock: float = field(default_factory=time.perf_counter)  # last model call or, before any, the start
    _step_clock: float = field(default_factory=time.perf_counter)  # last callback, moved on by loading times
    _step_open: bool = False  # a step is recorded and its callback has not come
    _first_call: bool = False  # the render is loaded and has not been called
    _unloaded: ModelPatcher | None = None  # the sketch, if it left the device and its patched objects had to stay

    def options_for(self, guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
        """The run's options: the guider's, with our PREDICT_NOISE wrapper outermost, so that a render call meets no
        wrapper of the sketch. A run that the render does alone has the render's options around the sampler too."""
        starts, _ = self.rule.stage(0, self.counter.sigmas[0])
        alone = starts == RENDER and self.rule.final(RENDER)
        options = comfy.model_patcher.create_model_options_clone(
            self.render.model_options if alone else guider.model_options
        )
        wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: [self.predict], **wrappers.get(WrappersMP.PREDICT_NOISE, {})}
        if alone:  # the host still loads the sketch: by the sketch's own wrappers
            own = guider.model_options.get("transformer_options", {}).get("wrappers", {})
            wrappers[WrappersMP.PREPARE_SAMPLING] = own.get(WrappersMP.PREPARE_SAMPLING, {})
        return options

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: send the call to the stage in charge. x [B, C, ...], timestep [B]; returns x0 like x."""
        guider = executor.class_obj
        # Reading the noise level waits for the device, so that the seconds before it are the stage's own. It is read
        # only while it can matter: once the route is final, nothing here waits.
        sigma = None if self.rule.final(self.in_charge) else float(timestep[0])
        self.finite.check()
        self._tick()
        new_step = sigma is not None and self.counter.on_call(sigma)
        if sigma is not None and new_step:
            self._choose_stage(guider, x, sigma)
        self.report.calls[self.in_charge] += 1
        if self.in_charge == RENDER:
            attempt = partial(self._predict_render, guider, x, timestep, *args, **kwargs)
            prediction = memory.try_twice(attempt, partial(self._make_room, guider)) if self._first_call else attempt()
            self._first_call = False
        else:
            prediction = executor(x, timestep, *args, **kwargs)
        self._note_teacache(self.render if self.in_charge == RENDER else guider)
        step = None if sigma is None else self.counter.step
        self.finite.watch(prediction, partial(self._not_finite, guider, self.in_charge, step, timestep))
        if new_step and self.in_charge == SKETCH:
            self._observe(prediction)
        self.finite.check()
        return prediction

    def callback(self, step: int, *args: Any, **kwargs: Any) -> Any:
        """The sampler's step callback: the host's own (progress, preview), with the step's seconds noted."""
        self.counter.on_callback(step)
        if self.report.steps:
            following = self.report.steps[-1].step  # 0-based index of the step after the last recorded one
            if not self._step_open and self.rule.final(self.in_charge) and following < self.counter.steps:
                self._record_step(following)
            last = self._add_seconds()
            last.reused = self._reused(last)
            self._step_open = False
            self.report.changed()
        return self.host_callback(step, *args, **kwargs) if self.host_callback else None

    def end_last_step(self) -> None:
        """After the device is done: a sampler may be ahead of it by up to a step."""
        if self.report.steps and self.report.steps[-1].seconds is not None:
            self._add_seconds()

    def finish(self) -> None:
        """Close the books."""
        self._tick()
        self.report.total_seconds = time.perf_counter() - self.started
        if self.counter.own_levels:
            self.report.notes.append(
                f"{self.report.sampler} chooses its own noise levels: its steps are not those of the schedule."
            )
        for run in self.cached.values():
            if run.plan and run.plan.note:
                self.report.notes.append(run.plan.note)
        for step in self.report.steps:
            step.reused = self._reused(step)
        if self._unloaded is not None and not memory.is_loaded(self._unloaded):
            self._unloaded.unpatch_model(unpatch_weights=False)
        self._unloaded = None
        self.cached.clear()
        self.finite.forget()
        self.rule.forget()
        self.request.clear()
        self.host_callback = None
        self.report.changed()

    def _choose_stage(self, guider: comfy.samplers.CFGGuider, x: torch.Tensor, sigma: float) -> None:
        stage, reason = self.rule.stage(self.counter.step, sigma)
        if stage != self.in_charge:
            self._hand_over(guider, x, stage, reason, sigma)
        self._record_step(self.counter.step)

    def _record_step(self, step: int) -> None:
        self.report.steps.append(Step(step + 1, self.counter.sigmas[step], self.in_charge))
        self._step_open = True

    def _add_seconds(self) -> Step:
        """The last recorded step, with the time since the seconds of a step were last added to."""
        now, last = time.perf_counter(), self.report.steps[-1]
        last.seconds, self._step_clock = (last.seconds or 0) + now - self._step_clock, now
        return last

    def _observe(self, prediction: torch.Tensor) -> None:
        """Feed the criterion with the guided x0 prediction of the step's first call (Eq. 3)."""
        self.rule.observe(prediction)
        step = self.report.steps[-1]
        step.d, step.derivative = _largest(self.rule.d), _largest(self.rule.derivative)
        step.derivative_low = None if step.derivative is None else min(self.rule.derivative or [])

    def _note_teacache(self, stage: Any) -> None:
        """After a call of ``stage`` (guider or Stage): its skip plan, once it is made, goes into the report."""
        run = run_of(stage.model_options)
        if run and run.plan and self.in_charge not in self.cached:
            self.cached[self.in_charge] = run
            self.report.teacache[self.in_charge] = asdict(run.plan)

    def _reused(self, step: Step) -> bool:
        run = self.cached.get(step.stage)
        return run is not None and step.step - 1 in run.reused

    def _not_finite(
        self, guider: comfy.samplers.CFGGuider, in_charge: str, step: int | None, timestep: torch.Tensor
    ) -> str:
        """What to say of a prediction with NaN or infinity in it, made in step ``step`` (0-based; None: as its timestep [B]
        says) by the stage ``in_charge``, and what to try."""
        sigma = float(timestep[0])
        step = self.counter.interval(sigma) if step is None else step
        stage = self.render if in_charge == RENDER else guider
        patcher = stage.model_patcher
        backend, weights = backend_of(stage.model_options), str(patcher.model_dtype()).removeprefix("torch.")
        advice = "Look for a broken LoRA, text encoder or model file."
        if "float8" in weights:
            advice = "Set weight_dtype to default, or use a file that is made for fp8 (fp8_scaled)."
        if backend not in ("pytorch", "basic", "split", "sub_quad"):
            advice = f"Set attention to pytorch on the {in_charge}'s loader. If that does not help: {advice}"
        return (
            f"The {in_charge}'s prediction has values that are not finite (NaN or infinity) at step "
            f"{step + 1} of {self.counter.steps} (sigma {sigma:.4g}), so the run is stopped. Model: "
            f"{name_of(patcher)}, attention: {backend}, weights: {weights}. {advice}"
        )

    def _hand_over(self, guider: comfy.samplers.CFGGuider, x: torch.Tensor, to: str, reason: str, sigma: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        begin = time.perf_counter()
        sketch, render = guider.model_patcher, self.render.model_patcher
        noise = self.request["noise"] if self.request["noise"].shape == x.shape else x
        bytes_at = {"before": memory.snapshot(sketch, render)}
        if to == RENDER:
            if memory.sketch_leaves(self.settings.offload_sketch, sketch, render, noise.shape, self.render.conds):
                memory.release(sketch)
            bytes_at["at"] = memory.snapshot(sketch, render)
            self._bring_render(guider, noise)
        else:
            _load_again(guider, noise)
        bytes_at["after"] = memory.snapshot(sketch, render)
        loading = time.perf_counter() - begin
        self.report.load_seconds[to] += loading
        self._clock += loading
        self._step_clock += loading
        self._book_hand_over(to, reason, sigma, loading, bytes_at)
        self.in_charge = to
        self.report.changed()

    def _bring_render(self, guider: comfy.samplers.CFGGuider, noise: torch.Tensor) -> None:
        """Load the render, for the first time or again; short of memory, once more without the sketch."""
        sketch = guider.model_patcher
        load = partial(self.render.load, noise, self.request, sketch.get_model_object("model_sampling"))
        if self.render.inner_model is not None:
            load = partial(_load_again, self.render, noise)
        memory.try_twice(load, partial(self._make_room, guider))
        self._keep_objects(sketch)
        self._first_call = True
        self.rule.forget()

    def _make_room(self, guider: comfy.samplers.CFGGuider) -> str:
        """After the render ran out of memory: the sketch leaves, whatever offload_sketch says. Returns what to say if that does
        not help."""
        sketch, render = guider.model_patcher, self.render.model_patcher
        place = memory.place_of(sketch, render)
        if place != memory.SAME_MODEL:
            render.remove_additional_models(memory.BESIDE)
            memory.release(sketch)
            self._keep_objects(sketch)
        self.report.notes.append(memory.RETRIED[place])
        logging.warning("SRDiffusion: %s", self.report.notes[-1])
        return memory.GIVE_UP[place]

    def _keep_objects(self, sketch: ModelPatcher) -> None:
        """A model that leaves takes its patched objects along (the noise schedule of ModelSamplingSD3), but the sampler goes
        on to read them from the sketch: they are put back, without weights, for the rest of the run."""
        gone = not memory.is_loaded(sketch) and not sketch.is_clone(self.render.model_patcher)
        if gone and sketch.object_patches:
            sketch.patch_model(load_weights=False)
            self._unloaded = sketch

    def _book_hand_over(
        self, to: str, reason: str, sigma: float, loading: float, bytes_at: dict[str, dict[str, int]] | None = None
    ) -> None:
        last = self.report.steps[-1] if self.report.steps else None
        completed = self.counter.step
        hand_over = HandOver(
            after_step=completed,
            to=to,
            reason=reason,
            sigma=sigma,
            percent=100 * completed / self.counter.steps,
            d=last.d if last else None,
            derivative=last.derivative if last else None,
            seconds=loading,
            memory=bytes_at or {},
        )
        self.report.hand_overs.append(hand_over)
        logging.info("SRDiffusion: %s", describe_hand_over(hand_over, self.report))

    def _predict_render(
        self, guider: comfy.samplers.CFGGuider, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        call = PREDICT_NOISE.bind(guider, x, timestep, *args, **kwargs)
        stage, device = self.render, self.render.model_patcher.load_device
        call.arguments["x"], call.arguments["timestep"] = stage.latent_map.to_render(x.to(device), timestep.to(device))
        options = with_sampler_additions(
            stage.model_options, call.arguments.get("model_options", {}), guider.model_options
        )
        own_functions = len(stage.model_options.get("sampler_post_cfg_function", []))
        if device != x.device or not stage.latent_map.is_identity:
            _for_sampler(options, own_functions, device, stage.latent_map, x, timestep)
        call.arguments["model_options"] = options
        with _pointed_at(guider, stage, self.settings.cfg), _device_context(device):
            prediction = guider.outer_predict_noise(*call.args[1:], **call.kwargs)
        return stage.latent_map.clean_to_sketch(prediction).to(x.device)

    def _tick(self) -> None:
        """Book the time since the last model call began on the stage that ran it."""
        now = time.perf_counter()
        if any(self.report.calls.values()):
            self.report.seconds[self.in_charge] += now - self._clock
        else:  # until now the host loaded the sketch
            self._step_clock, self.report.load_seconds[SKETCH] = now, now - self.started
        self._clock = now


def _load_again(stage: Any, noise: torch.Tensor) -> None:
    """Back to a stage (guider or Stage) that has run: the host may have moved its weights meanwhile."""
    comfy.sampler_helpers.prepare_sampling(stage.model_patcher, noise.shape, stage.conds, stage.model_options)
    stage.model_patcher.pre_run()


def _largest(values: list[float] | None) -> float | None:
    """The largest of a batch; None where there is none, or one that is not finite (JSON has no word for it)."""
    return max(values) if values and all(map(math.isfinite, values)) else None


@contextlib.contextmanager
def _pointed_at(guider: comfy.samplers.CFGGuider, stage: Stage, cfg: float) -> Iterator[None]:
    """Between calls everybody sees the sketch on the guider; inside this block, the stage."""
    own = {name: getattr(guider, name) for name in ("model_patcher", "model_options", "inner_model", "conds", "cfg")}
    guider.model_patcher, guider.model_options = stage.model_patcher, stage.model_options
    guider.inner_model, guider.conds = stage.inner_model, stage.conds
    guider.cfg = cfg or guider.cfg
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(guider, name, value)


def with_sampler_additions(options: dict[str, Any], passed: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """``options`` with what a sampler put into the ``passed`` options of its call beyond the stage's ``base``.

    The *_cfg_pp samplers append a post-CFG function; the host adds sample_sigmas.
    """
    merged = options.copy()
    for key, value in passed.items():
        own = base.get(key)
        if isinstance(value, dict):
            inner = with_sampler_additions(options.get(key) or {}, value, own or {})
            if inner or key in options:
                merged[key] = inner
        elif isinstance(value, list):
            if added := value[len(own or []) :]:
                merged[key] = [*(options.get(key) or []), *added]
        elif value is not own:
            merged[key] = value
    return merged


def _for_sampler(
    options: dict[str, Any], added_from: int, device: torch.device, latent_map: LatentMap, x: torch.Tensor, sigma: torch.Tensor
) -> None:
    """For a render on a device or in a latent space of its own: bring the run's sigmas there, and give the sampler's
    functions (those from index ``added_from`` on) what they know: tensors of the sampler's device and space."""
    transformer_options = options["transformer_options"]
    transformer_options["sample_sigmas"] = latent_map.sigmas(transformer_options["sample_sigmas"].to(device))
    functions = options.get("sampler_post_cfg_function", [])
    functions[added_from:] = [
        partial(_call_there, function, device, latent_map, x, sigma) for function in functions[added_from:]
    ]


def _call_there(
    function: Callable[[dict[str, Any]], torch.Tensor],
    device: torch.device,
    latent_map: LatentMap,
    x: torch.Tensor,
    sigma: torch.Tensor,
    args: dict[str, Any],
) -> torch.Tensor:
    predictions = {
        key: latent_map.clean_to_sketch(value).to(x.device)
        for key, value in args.items()
        if "denoised" in key and isinstance(value, torch.Tensor)
    }
    result = function({**args, **predictions, "input": x, "sigma": sigma})
    return latent_map.clean_to_render(result.to(device))


def _device_context(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The host's device context, on hosts that have one (0.20 and later)."""
    context = getattr(comfy.model_management, "cuda_device_context", None)
    return context(device) if context else contextlib.nullcontext()
