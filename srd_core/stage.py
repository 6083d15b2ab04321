"""One model during a sampling run: prepare, load, predict, close. Every stage of a route answers to the same calls.

The host itself prepares the model of its guider (``GuidersStage``); another stage gets what the host gives any model.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.multigpu import MultiGPUThreadPool
from comfy.patcher_extension import WrapperExecutor

from . import memory
from .additions import bring_over, with_sampler_additions
from .calls import PREDICT_NOISE
from .latent import LatentMap
from .route import FULL_SIZE, MOST_STEPS, SMALLEST, TakeOver

Conds = dict[str, list[dict[str, Any]]]  # the host's conditioning by role: positive, negative, ...
Request = dict[str, Any]  # the run's noise, latent_image, denoise_mask, seed, latent_shapes
THREADS = "multigpu_thread_pool"  # the host's model option


def check_scale(sketch_scale: float) -> None:
    """Raises ValueError for a share of the size that no sketch runs at."""
    if not SMALLEST <= sketch_scale <= FULL_SIZE:
        raise ValueError(f"sketch_scale is {sketch_scale}; it must be from 0.5 to 1 (1: the sketch runs at full size).")


@dataclass(frozen=True)
class RenderSettings(TakeOver):
    """What the render does otherwise than the guider says for the sketch, and how it takes over."""

    cfg: float = 0.0  # guidance scale; 0: as the sketch
    positive: list[Any] | None = None  # conditioning in the host's form [[tensor, dict], ...]; None: as the sketch
    negative: list[Any] | None = None
    teacache: float = 0.0  # TeaCache threshold of the render stage; 0: off

    def __post_init__(self) -> None:
        """Raises ValueError for settings that mean nothing."""
        if self.offload_sketch not in memory.POLICIES:
            raise ValueError(f"offload_sketch is {self.offload_sketch!r}; choose one of {', '.join(memory.POLICIES)}.")
        if not math.isfinite(self.cfg):
            raise ValueError(f"render_cfg is {self.cfg}; it must be a number (0: as the sketch).")
        if not (math.isfinite(self.fade) and self.fade >= 0):
            raise ValueError(f"fade is {self.fade}; it must be 0 or more (0: no fade, 1.1: the fitted width).")
        if not 0 <= self.render_steps <= MOST_STEPS:
            raise ValueError(
                f"render_steps is {self.render_steps}; it must be from 0 to {MOST_STEPS} (0: those of the schedule)."
            )
        check_scale(self.sketch_scale)

    def within(self, outer: RenderSettings) -> RenderSettings:
        """The same in a stage of a pair with the settings ``outer``, which hold where this has none."""
        return replace(
            self,
            cfg=self.cfg or outer.cfg,
            positive=outer.positive if self.positive is None else self.positive,
            negative=outer.negative if self.negative is None else self.negative,
        )

    def conds(self, original: Conds) -> Conds:
        """The render's conditioning for a guider with these ``original`` conds: copies, roles unchanged."""
        conds = {role: [cond.copy() for cond in conds] for role, conds in original.items()}
        for role, own in (("positive", self.positive), ("negative", self.negative)):
            if own is not None and role in conds:
                conds[role] = comfy.sampler_helpers.convert_cond(own)
        return conds


@dataclass
class GuidersStage:
    """The stage whose model the guider has: the host prepares, loads and cleans it up."""

    guider: comfy.samplers.CFGGuider

    @property
    def model(self) -> ModelPatcher:
        """That of the guider."""
        return self.guider.model_patcher

    @property
    def options(self) -> dict[str, Any]:
        """The guider's, in this run."""
        return self.guider.model_options

    def load(self, noise: torch.Tensor, request: Request, schedule: Any) -> None:
        """Load it again: the host has done so once, and may have moved its weights meanwhile."""
        self.load_again(noise, SimpleNamespace(model_sampling=schedule))

    def load_again(self, noise: torch.Tensor, schedule_of: Any) -> None:
        """For a latent of the size of ``noise``, where another stage has run meanwhile.

        The host may have moved the weights; what it keeps of hooks' weights is of where their keyframes stood then; and
        a ControlNet that both stages have is set up for the other one.
        """
        model, conds = self.guider.model_patcher, self.guider.conds
        for each in (model, *self.guider.model_options.get("multigpu_clones", {}).values()):
            each.clear_cached_hook_weights()
        comfy.sampler_helpers.prepare_sampling(model, noise.shape, conds, self.guider.model_options)
        model.pre_run()
        with _keyframes_kept(self.keyframes()):
            for of_role in conds.values():
                comfy.samplers.pre_run_control(self.guider.inner_model, of_role)
                follow_schedule(of_role, schedule_of)

    def predict(self, call: inspect.BoundArguments, executor: WrapperExecutor) -> torch.Tensor:
        """The guided x0 prediction [B, C, ...] for a PREDICT_NOISE ``call``; ``executor``: the host's way on."""
        return executor(*call.args[1:], **call.kwargs)

    def keyframes(self, sigma: torch.Tensor | None = None) -> list[Any]:
        """Of the hooks on its conds (a LoRA whose strength changes); ``sigma`` []: on those that count there."""
        conds = [cond for of_role in self.guider.conds.values() for cond in of_role if "hooks" in cond]
        counting = conds if sigma is None else [cond for cond in conds if _counts(cond, sigma)]
        found = [hook.hook_keyframe for cond in counting for hook in cond["hooks"].hooks]
        return [keyframe for keyframe in found if not keyframe.is_empty()]

    def follow(self, sigma: torch.Tensor, sigmas: torch.Tensor, told: Sequence[Any]) -> None:
        """Another stage makes the call at ``sigma`` [] of ``sigmas``: keyframes other than those it has ``told``."""
        for keyframe in self.keyframes(sigma):
            if all(keyframe is not each for each in told):
                keyframe.prepare_current_keyframe(sigma, {"sample_sigmas": sigmas})


@dataclass
class Stage(GuidersStage):
    """Another stage: its guider is a copy of the run's, with this stage's model, options and conds."""

    latent_map: LatentMap  # from the run's space, which is the guider's, to this model's
    cfg: float = 0.0  # own guidance scale; 0: the run's
    _models: list[Any] = field(default_factory=list)  # that came along
    _clones: list[ModelPatcher] = field(default_factory=list)  # of the model, on other GPUs
    # that run the clones: a wrapper around the run may have put other options in the stage's place
    _threads: Any = None
    _loaded: bool = False
    _hook_mode: Any = None  # of the patcher before the run; None: not prepared

    @classmethod
    def beside(
        cls, guider: comfy.samplers.CFGGuider, model: ModelPatcher, settings: RenderSettings, latent_map: LatentMap
    ) -> Stage:
        """The stage of ``model`` in a run of ``guider``."""
        own = copy.copy(guider)
        own.model_patcher, own.model_options = model, model.model_options
        own.original_conds = settings.conds(guider.original_conds)
        own.conds = {role: [cond.copy() for cond in conds] for role, conds in own.original_conds.items()}
        if settings.cfg:
            own.cfg = settings.cfg
        return cls(own, latent_map, settings.cfg)

    def prepare(self, schedule: Any) -> None:
        """What CFGGuider.sample does before a run: own options, hooks registered. Loads nothing.

        ``schedule``: the model_sampling that the run follows until this stage is loaded.
        """
        own = self.guider
        comfy.samplers.preprocess_conds_hooks(own.conds)
        if self.model.is_dynamic() and any("hooks" in cond for conds in own.conds.values() for cond in conds):
            own.model_patcher = self.model.get_non_dynamic_delegate()
        self._hook_mode = self.model.hook_mode
        own.model_options = comfy.model_patcher.create_model_options_clone(self.model.model_options)
        if comfy.samplers.get_total_hook_groups_in_conds(own.conds) <= 1:
            self.model.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.model, own.conds, own.model_options)
        comfy.samplers.filter_registered_hooks_on_conds(own.conds, own.model_options)
        for of_role in own.conds.values():  # keyframes start anew, and follow the calls of the stages before this one
            follow_schedule(of_role, _schedule_in(self.latent_map, schedule))

    def follow(self, sigma: torch.Tensor, sigmas: torch.Tensor, told: Sequence[Any]) -> None:
        """As for the guider's stage; both in the run's space."""
        device = self.model.load_device
        super().follow(self.latent_map.sigmas(sigma.to(device)), self.latent_map.sigmas(sigmas.to(device)), told)

    def load(self, noise: torch.Tensor, request: Request, schedule: Any) -> None:
        """What CFGGuider.outer_sample and inner_sample do before the sampler starts; may be called again.

        ``noise`` [B, C, ...] of the latent's present size; ``schedule``: the model_sampling that the run follows.
        """
        if self._loaded:
            self.load_again(noise, _schedule_in(self.latent_map, schedule))
            for clone in self._clones:
                clone.pre_run()
            return
        own = self.guider
        prepared = comfy.sampler_helpers.prepare_sampling(self.model, noise.shape, own.conds, self.options)
        own.inner_model, conds, models = prepared
        self._models = [model for model in models if model not in memory.beside(self.model)]  # the others to clean up
        comfy.samplers.cast_to_load_options(self.options, device=self.model.load_device, dtype=self.model.model_dtype())
        self._start_clones()
        for model in (self.model, *self._clones):
            model.pre_run()
        own.inner_model.latent_shapes = request["latent_shapes"]  # newer hosts: where the parts of a packed latent lie
        own.conds = self._processed(conds, noise, request, schedule)
        self._loaded = True

    def predict(self, call: inspect.BoundArguments, executor: WrapperExecutor | None = None) -> torch.Tensor:
        """The guided x0 prediction [B, C, ...] for the arguments of a PREDICT_NOISE ``call``, in the run's space."""
        guider, x, sigma = (call.arguments[name] for name in ("self", "x", "timestep"))
        device = self.model.load_device
        options = with_sampler_additions(self.options, call.arguments.get("model_options", {}), guider.model_options)
        if device != x.device or not self.latent_map.is_identity:
            added_from = len(self.options.get("sampler_post_cfg_function", []))
            bring_over(options, added_from, device, self.latent_map, x, sigma)
        own = PREDICT_NOISE.bind(*call.args, **call.kwargs)
        own.arguments["x"], own.arguments["timestep"] = self.latent_map.to_render(x.to(device), sigma.to(device))
        own.arguments["model_options"] = options
        with _pointed_at(guider, self), comfy.model_management.cuda_device_context(device):
            prediction = guider.outer_predict_noise(*own.args[1:], **own.kwargs)
        return self.latent_map.clean_to_sketch(prediction).to(x.device)

    def close(self) -> None:
        """What the host does after a run, also for a stage that was only prepared."""
        if self._hook_mode is None:
            return
        if self._threads is not None:
            self._threads.shutdown()
            self.options.pop(THREADS, None)
        if hasattr(self.guider, "inner_model"):
            for model in (self.model, *self._clones):
                model.cleanup()
            comfy.sampler_helpers.cleanup_models(self.guider.conds, self._models)
            del self.guider.inner_model
        comfy.samplers.cast_to_load_options(self.options, device=self.model.offload_device)
        self.model.hook_mode = self._hook_mode
        self.model.restore_hook_patches()
        self._models, self._clones, self._threads, self._hook_mode, self._loaded = [], [], None, None, False
        self.guider.conds = {}

    def _start_clones(self) -> None:
        """Clones on other GPUs (MultiGPU CFG Split) and the threads that run them."""
        start = comfy.sampler_helpers.prepare_model_patcher_multigpu_clones
        self._clones = start(self.model, self._models, self.options)
        if self._clones and self._threads is None:
            devices = [self.model.load_device, *(clone.load_device for clone in self._clones)]
            self._threads = self.options[THREADS] = MultiGPUThreadPool(devices)

    def _processed(self, conds: Conds, noise: torch.Tensor, request: Request, schedule: Any) -> Conds:
        """The conds with what this model needs of latent, mask and prompt, for the run's own ranges of steps."""
        device, inner = self.model.load_device, self.guider.inner_model
        latent_image = request["latent_image"].to(device=device, dtype=torch.float32)
        if torch.count_nonzero(latent_image) > 0:  # an empty latent stays zero, as in the host
            latent_image = inner.process_latent_in(latent_image)
        mask, noise = request["denoise_mask"], noise.to(device=device, dtype=torch.float32)
        mask = mask if mask is None else mask.to(device)
        with _keyframes_kept(self.keyframes()):
            about = device, latent_image, mask, request["seed"]
            shapes = request["latent_shapes"]
            processed: Conds = comfy.samplers.process_conds(inner, noise, conds.copy(), *about, latent_shapes=shapes)
            for of_role in processed.values():
                follow_schedule(of_role, _schedule_in(self.latent_map, schedule))
        return processed


@contextlib.contextmanager
def _pointed_at(guider: comfy.samplers.CFGGuider, stage: Stage) -> Iterator[None]:
    """Between calls everybody sees the run's own model on the guider; inside this block, the stage's."""
    names = ["model_patcher", "model_options", "inner_model", "conds", *(["cfg"] if stage.cfg else [])]
    own = {name: getattr(guider, name) for name in names}
    guider.__dict__.update({name: getattr(stage.guider, name) for name in names})
    try:
        yield
    finally:
        guider.__dict__.update(own)


@contextlib.contextmanager
def _keyframes_kept(keyframes: Sequence[Any]) -> Iterator[None]:
    """After this block keyframes stand where they stood; the host starts all of them anew, in mid-run."""
    stood = [(keyframe, keyframe.__dict__.copy()) for keyframe in keyframes]
    try:
        yield
    finally:
        for keyframe, position in stood:
            keyframe.__dict__.update(position)


def _counts(cond: dict[str, Any], sigma: torch.Tensor) -> bool:
    """Whether the host looks at a cond at ``sigma``."""
    return bool(sigma <= cond.get("timestep_start", math.inf) and sigma >= cond.get("timestep_end", -math.inf))


def _schedule_in(latent_map: LatentMap, schedule: Any) -> Any:
    """What the host asks for a percentage of the run: the noise level there, in the stage's space."""
    if latent_map.is_identity:
        return SimpleNamespace(model_sampling=schedule)

    def percent_to_sigma(percent: float) -> float:
        sigma = schedule.percent_to_sigma(percent)
        return float(latent_map.sigmas(torch.as_tensor(float(sigma), dtype=torch.float64)))

    return SimpleNamespace(model_sampling=SimpleNamespace(percent_to_sigma=percent_to_sigma))


def follow_schedule(conds: list[dict[str, Any]], schedule_of: Any) -> None:
    """Let start and end percent of prompts, hooks and ControlNets mean the run's schedule, not the stage's shift."""
    comfy.samplers.calculate_start_end_timesteps(schedule_of, conds)
    for cond in conds:
        for hook in cond["hooks"].hooks if "hooks" in cond else ():
            hook.initialize_timesteps(schedule_of)
    to_sigma = schedule_of.model_sampling.percent_to_sigma
    for control in controls_on(conds):
        start, end = control.timestep_percent_range
        control.timestep_range = (to_sigma(start), to_sigma(end))


def controls_on(conds: list[dict[str, Any]]) -> Iterator[Any]:
    """Each ControlNet on the conds, and those chained to it."""
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            yield control
            control = control.previous_controlnet
