"""One sampling run over the legs of a route.

A PREDICT_NOISE wrapper, ``Run.predict``, stands in the options of one sampling run. The sampler runs once over all
noise levels, so its history survives every hand-over, and asks ``Run.predict`` for each prediction:

    steps   which scheduler step is this call of?
    route   who is in charge of that step?     a change: hand over
    stage   makes the prediction
    route   sees it, where a rule needs it
    fade    mixes in what the stage before it left
    books   note it

All state belongs to the run, and is cleaned up also after an interrupt or an error.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP, add_wrapper_with_key

from . import memory
from .attention import backend_of
from .books import Books
from .calls import KEY, PREDICT_NOISE, SAMPLER_SAMPLE
from .computed import Computed
from .fade import Fade
from .finite import FiniteGuard, complaint
from .latent import name_of
from .leg import LegsLevels
from .levels import places_of
from .rest import Rest, begun_anew, resampled
from .route import SKETCH, Pair, Route, Turn
from .smaller import Smaller
from .stage import GuidersStage, Stage, follow_schedule
from .steps import StepCounter
from .teacache.host import run_of

AtHandOver = Callable[[torch.Tensor, Turn], None]  # (x, the change), before the stage that takes over is loaded

NO_FADE = "No fade to the {stage}: it needs two steps before the switch, in a latent of one size."
SWINGS = "The prediction still changes much before the {stage} (guard {guard:.2f}), so the fade is held back."
NOT_WALKED = (
    "render_steps is not followed: {sampler} chooses its own noise levels or sizes, so it can't begin anew at the "
    "switch."
)
ANEW = "{sampler} begins anew after step {step}, {why}; a multistep sampler starts its history again."
STAYED_SMALL = (
    "{sampler} ended before the switch, so the latent is still as small as the sketch's. Choose another sampler, or "
    "set sketch_scale to 1."
)
OTHER_SIZE = (
    "{sampler} changed the size of the latent, so a smaller sketch can't be enlarged. Choose another sampler, or set "
    "sketch_scale to 1."
)


@dataclass
class Run:
    """State of one sampling run; dies with it."""

    stages: dict[str, GuidersStage | Stage]  # by the names that the route's legs use
    route: Route
    steps: StepCounter
    books: Books
    request: dict[str, Any]  # the run's noise, latent_image, denoise_mask, seed, latent_shapes
    host_callback: Callable[..., Any] | None
    walked: set[Pair]  # of the route, whose part of the schedule has been set already
    fade: Fade | None = None  # None: every hand-over is a cut
    smaller: Smaller | None = None  # the latent is smaller; None: it has its full size, from here on at least
    in_charge: str = SKETCH
    leg: LegsLevels = field(default_factory=LegsLevels)  # of the present leg
    finite: FiniteGuard = field(default_factory=FiniteGuard)
    computed: Computed = field(default_factory=Computed)
    outside: Sequence[Callable[..., torch.Tensor]] = ()  # PREDICT_NOISE wrappers around every call of the run
    at_hand_over: AtHandOver | None = None
    at_end: Callable[[], None] | None = None  # when the sampler has ended, while all models are prepared
    _left: list[ModelPatcher] = field(default_factory=list)  # off the device, with patched objects that had to stay

    def shape_of(self, stage: str) -> torch.Size:
        """[B, C, ...] of the latent that ``stage`` runs on."""
        whole = self.smaller and stage not in self.smaller.stages
        return (self.smaller.request if self.smaller and whole else self.request)["noise"].shape

    def others(self) -> list[Stage]:
        """The stages that the host does not prepare by itself."""
        return [stage for stage in self.stages.values() if isinstance(stage, Stage)]

    def options_for(self, guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
        """The run's options: the guider's, with our PREDICT_NOISE wrapper outermost.

        So another stage meets no wrapper of the guider's model. A run of one other stage alone has that one's options.
        """
        first, alone = self.route.start()
        alone = alone and isinstance(self.stages[first], Stage)
        name = first if alone else SKETCH
        options = comfy.model_patcher.create_model_options_clone(self.stages[name].options)
        others = [(name, stage.options) for name, stage in self.stages.items() if isinstance(stage, Stage)]
        for stage, each in ((name, options), *others):
            self.computed.watch(stage, each)
            self.leg.tell(each)
        wrappers = options.setdefault("transformer_options", {}).setdefault("wrappers", {})
        calls = [*self.outside, self.predict]
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: calls, **wrappers.get(WrappersMP.PREDICT_NOISE, {})}
        # the innermost
        add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sample, options, is_model_options=True)
        if alone:  # the host still loads the guider's model: by that model's own wrappers
            own = guider.model_options.get("transformer_options", {}).get("wrappers", {})
            wrappers[WrappersMP.PREPARE_SAMPLING] = own.get(WrappersMP.PREPARE_SAMPLING, {})
        return options

    def sample(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """SAMPLER_SAMPLE wrapper: the sampler, and again for the rest after each hand-over that asks for it."""
        call = first = SAMPLER_SAMPLE.bind(executor.class_obj, *args, **kwargs)
        if self.smaller:
            self._begin_small(self.smaller, call)
        while True:
            try:
                latent = executor(*call.args[1:], **call.kwargs)
                if self.smaller:
                    raise RuntimeError(STAYED_SMALL.format(sampler=self.books.report.sampler))
                if self.at_end:
                    self.at_end()
                return latent
            except Rest as rest:
                first = rest.call or first
                call = begun_anew(first, rest, self.steps.sigmas)

    def _begin_small(self, smaller: Smaller, call: inspect.BoundArguments) -> None:
        """Let ranges of steps mean the run's schedule, which the small levels stand for."""
        smaller.begin(call)
        schedule = smaller.schedule(self._schedules_model().get_model_object("model_sampling"))
        for of_role in call.arguments["model_wrap"].conds.values():
            follow_schedule(of_role, SimpleNamespace(model_sampling=schedule))

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: one call of the sampler. x [B, C, ...], timestep [B]; returns the guided x0 like x."""
        call = PREDICT_NOISE.bind(executor.class_obj, x, timestep, *args, **kwargs)
        begins = self._begins_step(timestep)
        self.finite.check()
        self.books.tick(self.in_charge)
        if begins:
            self._choose_stage(x, timestep)
        name, stage, forwards = self.in_charge, self.stages[self.in_charge], self.computed.forwards(self.in_charge)
        self.books.report.stage(name).calls += 1
        self._let_others_follow(call)
        prediction = memory.try_twice(partial(stage.predict, call, executor), self.make_room)
        if plan := self.computed.new_plan(name, stage.options):
            self.books.report.stage(name).teacache = asdict(plan)
        self.finite.watch(prediction, partial(self.not_finite, name, self._known_step(), timestep))
        if begins and not self.route.final and self.computed.is_new(name, self.steps.step, forwards):
            self._observe(prediction)
        if self.fade:
            prediction = self.fade.blend(x, timestep, prediction)
            if begins and not self.route.final:
                self.fade.note(x, timestep, prediction)
                if self.smaller:
                    self.smaller.latest.append((x.clone(), timestep, prediction))
        self.finite.check()
        return prediction

    def callback(self, step: int, *args: Any, **kwargs: Any) -> Any:
        """The sampler's step callback: the host's own (progress, preview), with the step noted."""
        self.steps.on_callback(step)
        self.computed.end_step(self.in_charge, self.steps.step)
        self.books.end_step(self.steps.step, self.in_charge, self.computed.is_reused)
        return self.host_callback(step, *args, **kwargs) if self.host_callback else None

    def close(self) -> None:
        """Give back what the run has, also after an interrupt or an error; all of it, even if a part fails."""
        with contextlib.ExitStack() as parts:  # the last one first
            parts.callback(self.books.report.changed)
            parts.callback(self._forget)
            for stage in self.others():
                parts.callback(stage.close)
            self._close_books()

    def _close_books(self) -> None:
        report = self.books.report
        self.books.close(self.in_charge)
        if self.steps.other_steps and report.status == "done":
            self._note("{sampler} chooses its own noise levels: its steps are not those of the schedule.")
        for step in report.steps:
            step.reused = self.computed.is_reused(step)
        report.notes += self.computed.notes()

    def _forget(self) -> None:
        for model in self._left:
            if not memory.is_loaded(model):
                model.unpatch_model(unpatch_weights=False)
        self._left.clear()
        self.computed.forget()
        self.finite.forget()
        self.route.criterion.forget()
        if self.fade:
            self.fade.forget()
        self.request.clear()
        self.host_callback = self.at_end = None
        self.smaller, self.outside = None, ()

    def _begins_step(self, timestep: torch.Tensor) -> bool:
        """Whether this call begins a step.

        Reading the noise level waits for the device, so that the seconds before it are the stage's own; it is read only
        while it can matter: once the route is final, nothing here waits.
        """
        if self.route.final:
            return False
        return self.steps.on_call(float(timestep[0]) if self.steps.needs_sigma else None)

    def _choose_stage(self, x: torch.Tensor, timestep: torch.Tensor) -> None:
        step, turn = self.steps.step, self.route.turn(self.steps.step)
        if turn is None:
            self.books.begin_step(step, self.in_charge)
            return
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.at_hand_over:
            self.at_hand_over(x, turn)
        smaller = self.smaller if self.smaller and turn.to not in self.smaller.stages else None
        if smaller:
            x = self._enlarge(smaller, x, timestep, step)
        anew = turn.walker is not None and turn.walker not in self.walked
        if anew and (self.steps.own_levels or x.shape != self.request["latent_image"].shape):
            anew = False
            self._note(NOT_WALKED)
        if anew and turn.walker:
            self._walk_rest(turn.walker, step)
        self._hand_over(x, turn, smaller)
        self.books.begin_step(step, self.in_charge)
        if anew or smaller:
            if not self.route.final:  # the sampler will make this call again, and it will be counted then
                self.steps.forget_call()
            raise Rest(x.clone(), step, smaller.call if smaller else None)

    def _enlarge(self, smaller: Smaller, x: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """Enlarge x [B, C, ...] before ``step`` (0-based); from here on the run has the full size and schedule."""
        if x.shape != self.request["latent_image"].shape:
            raise RuntimeError(OTHER_SIZE.format(sampler=self.books.report.sampler))
        if self.fade:
            for call in smaller.enlarged_calls():
                self.fade.note(*call)
        levels = list(smaller.levels)
        if self.steps.own_levels:  # its call is between the levels
            levels[step] = float(smaller.scale.level(timestep[0]))
        x = smaller.enlarged(x, timestep)
        self.smaller, self.request = None, smaller.request
        self._follow(levels)
        self._note(ANEW, step=step, why="where the latent is enlarged")
        return x

    def _hand_over(self, x: torch.Tensor, turn: Turn, smaller: Smaller | None) -> None:
        """``x`` [B, C, ...] has the size from here on; ``smaller``: how it was smaller until now."""
        self.leg.count = 0 if self.steps.padded else self.steps.steps + 1 - self.steps.step
        begin, leaving, coming = time.perf_counter(), self.stages[self.in_charge].model, self.stages[turn.to].model
        models = {name: stage.model for name, stage in self.stages.items()}
        bytes_at = {"before": memory.snapshot(coming, models)}
        memory.end_malloc_graph()
        if memory.leaves(turn.pair.offload_sketch, leaving, coming):
            memory.release(leaving)
        bytes_at["at"] = memory.snapshot(coming, models)
        self.load(turn.to, x)
        bytes_at["after"] = memory.snapshot(coming, models)
        shares = self._fade_shares(x, turn, smaller)
        self.books.hand_over(self.steps.step, turn, shares, time.perf_counter() - begin, bytes_at)

    def load(self, stage: str, x: torch.Tensor) -> None:
        """``stage`` is in charge and loaded, for a latent of the size of x [B, C, ...]."""
        noise = self.request["noise"] if self.request["noise"].shape == x.shape else x
        self.in_charge = stage
        load = partial(self.stages[stage].load, noise, self.request, self.schedule_of(stage))
        memory.try_twice(load, self.make_room)
        self._keep_objects()

    def schedule_of(self, stage: str) -> Any:
        """The model_sampling that ``stage`` follows: the run's, or that of its smaller latent."""
        schedule = self._schedules_model().get_model_object("model_sampling")
        return self.smaller.schedule(schedule) if self.smaller and stage in self.smaller.stages else schedule

    def _let_others_follow(self, call: inspect.BoundArguments) -> None:
        """Keyframes of hooks that only the conds of other stages have follow this call too."""
        if self.route.final or not any(stage.keyframes() for stage in self.stages.values()):
            return
        told = self.stages[self.in_charge].keyframes()
        sigma = call.arguments["timestep"][0]
        sigmas = call.arguments["model_options"]["transformer_options"]["sample_sigmas"]
        for name, stage in self.stages.items():
            if self.smaller and name not in self.smaller.stages:
                stage.follow(self.smaller.scale.level(sigma), self.smaller.scale.level(sigmas), told)
            else:
                stage.follow(sigma, sigmas, told)

    def _fade_shares(self, x: torch.Tensor, turn: Turn, smaller: Smaller | None) -> list[float]:
        """The fade of a hand-over begins; returns the share of what is held in each step from here on."""
        if self.fade is None:
            return []
        guards = self.fade.begin(turn.fade, self.mask_for(x), smaller.scale.known if smaller else None)
        if turn.fade and not guards:
            self._note(NO_FADE, stage=turn.to)
        elif guards and min(guards) < 0.5:
            self._note(SWINGS, stage=turn.to, guard=min(guards))
        return self.fade.shares(self.steps.sigmas[self.steps.step : -1])

    def _walk_rest(self, pair: Pair, step: int) -> None:
        """The rest of the schedule from ``step`` (0-based) on gets the pair's own number of steps."""
        levels = [*self.books.sigmas[:step], *resampled(self.books.sigmas[step:], pair.render_steps)]
        self.walked.add(pair)
        self._follow(levels)
        self._note(ANEW, step=step, why="because the rest has its own steps")

    def _follow(self, levels: list[float]) -> None:
        """These are the run's levels now, for all steps from the first; a smaller latent has its own for them."""
        self.steps.sigmas = self.books.sigmas = self.books.report.sigmas = levels
        if self.smaller:
            self.smaller.levels, self.steps.sigmas = levels, self.smaller.scale.small_levels(levels)
        schedule = self._schedules_model().get_model_object("model_sampling")
        self.route.follow(levels[:-1], places_of(schedule, levels)[:-1])
        for stage in self.others():
            if cached := run_of(stage.options):
                cached.follow(self.steps.sigmas)

    def _note(self, words: str, **places: Any) -> None:
        self.books.report.notes.append(words.format(sampler=self.books.report.sampler, **places))

    def make_room(self) -> str:
        """After the stage in charge ran out of memory: the others leave. Returns what to say if that does not help."""
        others = {name: stage.model for name, stage in self.stages.items() if name != self.in_charge}
        note, give_up = memory.make_room(self.in_charge, self.stages[self.in_charge].model, others, not self.at_end)
        self._keep_objects()
        self.books.report.notes.append(note)
        logging.warning("SRDiffusion: %s", note)
        return give_up

    def _schedules_model(self) -> ModelPatcher:
        """The model whose noise schedule the sampler reads."""
        return self.stages[SKETCH].model

    def _keep_objects(self) -> None:
        """Put the patched objects of the sketch's model back, without weights, if it left with them.

        The sampler still reads them from the guider's model (the noise schedule of ModelSamplingSD3).
        """
        model = self._schedules_model()
        gone = not memory.is_loaded(model) and not model.is_clone(self.stages[self.in_charge].model)
        if gone and model.object_patches:
            model.patch_model(load_weights=False)
            self._left.append(model)

    def _observe(self, prediction: torch.Tensor) -> None:
        if self.route.observe(self.steps.step, prediction, self.mask_for(prediction)):
            self.books.observed(self.route.criterion.d, self.route.criterion.fall)

    def mask_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """The run's mask where it fits x [B, ...]: 1 where the latent is generated."""
        mask = self.request["denoise_mask"]
        return mask.to(x.device) if mask is not None and mask.shape[2:] == x.shape[2:] else None

    def _known_step(self) -> int | None:
        """The present step (0-based); None where calls are not counted any more."""
        return None if self.route.final else self.steps.step

    def not_finite(self, name: str, step: int | None, timestep: torch.Tensor) -> str:
        """What to say of a prediction of the stage ``name`` in ``step`` (0-based; None: as its timestep [B] says)."""
        sigma, stage = float(timestep[0]), self.stages[name]
        step = self.steps.interval(sigma) if step is None else step
        weights = str(stage.model.model_dtype()).removeprefix("torch.")
        place = f"step {step + 1} of {self.steps.steps} (sigma {sigma:.4g})"
        return complaint(name, place, name_of(stage.model), backend_of(stage.options), weights)
