"""The two stages in two runs, maybe on two machines: one that only sketches, and one that goes on from its record.

The first is a run of the sketch that stops where the rule hands over. The second is a whole run of the host's sampler
under the same mechanism as any other (cooperation.py): a model without weights, which answers from the record, stands for
the sketch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import comfyui_version
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from .calls import OUTER_SAMPLE, PREDICT_NOISE
from .cooperation import KEY, RenderSettings, Run, Stage, begin_run, carry_out, check_plain, check_run, cooperate
from .criterion import RENDER, SKETCH, Switch
from .handover import NOTED, Call, Schedule, SketchRecord, damaged, difference, merge_reports, read, samples_of
from .latent import FULL_NAME, LatentMap, check_pair, latent_facts, name_of
from .report import Report
from .steps import StepCounter

POST_CFG = "sampler_post_cfg_function"  # model option: what *_cfg_pp samplers add a function to
SAME_LEVEL = 1e-4  # relative difference of two noise levels, by rounding
SAME_NOISE = 0.02  # relative difference of x up to which another machine's rounding explains it


# --- sketching ----------------------------------------------------------------------------------------------------------


class HandedOver(BaseException):
    """Ends the sampler where the sketch hands over. No Exception, so that nobody on the way takes it for an error."""


def sketch_alone(sketch: ModelPatcher, switch: Switch, record: SketchRecord) -> ModelPatcher:
    """A MODEL that samples as ``sketch`` until ``switch`` hands over and then ends the run with the x0 prediction for the
    latent; ``record`` is filled meanwhile. Raises ValueError for a MODEL that already cooperates."""
    check_plain(SKETCH, sketch)
    model = sketch.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, switch=switch, record=record))
    return model


def _sample(
    executor: WrapperExecutor, *args: Any, switch: Switch, record: SketchRecord, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host, or the beginning of one."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    no_render = Stage(guider.model_patcher, {}, LatentMap(1.0))
    kind = partial(SketchRun, record=record)
    run = begin_run(guider, call.arguments, no_render, switch, RenderSettings(), record.report, kind)
    record.report.render = "not yet, see SR Render"

    def prepare() -> None:
        check_run(guider, call.arguments, run.counter.sigmas)
        if len(call.arguments.get("latent_shapes") or []) > 1:
            raise ValueError("A latent of several parts (video with sound) can't be sketched alone; use SR Sampler.")
        if run.rule.stage(0, run.counter.sigmas[0])[0] == RENDER:
            raise ValueError("The sketch would run no step. Set switch_step to 1 or more, or switch_sigma lower.")
        _begin_record(record, guider.model_patcher, call.arguments)

    try:
        return carry_out(run, executor, call, prepare)
    except HandedOver:  # what the host does after a run; it has cleaned up the model already
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)
        del guider.inner_model, guider.loaded_models
        record.report.status = "done"
        record.report.changed()
        return preview_of(record)


def _begin_record(record: SketchRecord, sketch: ModelPatcher, call: dict[str, Any]) -> None:
    record.sigmas, record.latent_image = call["sigmas"].detach().cpu().clone(), call["latent_image"].detach().cpu().clone()
    record.calls, record.x = [], None
    record.latent_facts = dict(latent_facts(sketch))
    record.schedule = _schedule_of(sketch.get_model_object("model_sampling"))
    record.host = comfyui_version.__version__


@dataclass
class SketchRun(Run):
    """A run that records the sketch's calls and ends where another would hand over."""

    record: SketchRecord = field(kw_only=True)

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        guider, noted = executor.class_obj, {}  # type: Any, dict[str, torch.Tensor]
        call = PREDICT_NOISE.bind(guider, x, timestep, *args, **kwargs)
        options = call.arguments.get("model_options", {})
        added_from = len(guider.model_options.get(POST_CFG, []))
        if functions := options.get(POST_CFG, [])[added_from:]:
            own = options[POST_CFG][:added_from]
            call.arguments["model_options"] = {**options, POST_CFG: [*own, partial(_note, noted), *functions]}
        sampled = samples_of(x)
        prediction = super().predict(executor, *call.args[1:], **call.kwargs)
        kept = prediction.detach().to("cpu", copy=True)
        self.record.calls.append(Call(float(timestep[0]), kept, sampled, noted))
        return prediction

    def _hand_over(self, guider: comfy.samplers.CFGGuider, x: torch.Tensor, to: str, reason: str, sigma: float) -> None:
        self._book_hand_over(to, reason, sigma, 0.0)
        self.record.x = x.detach().to("cpu", copy=True)
        raise HandedOver


def _note(noted: dict[str, torch.Tensor], args: dict[str, Any]) -> torch.Tensor:
    """In front of the functions that a sampler added to the guidance: keep what they are given."""
    noted.update({name: args[name].detach().to("cpu", copy=True) for name in NOTED})
    return args["denoised"]


def preview_of(record: SketchRecord) -> torch.Tensor:
    """The sketch's last x0 prediction as the host's LATENT holds it [B, C, ...], for VAE Decode. Raises ValueError for a
    latent that this host does not know."""
    latent_format, last, mask = _latent_format(record), record.calls[-1].prediction.float(), record.noise_mask
    if mask is not None and record.latent_image.shape == last.shape:
        mask = comfy.utils.reshape_mask(mask.float(), last.shape)
        last = last * mask + latent_format.process_in(record.latent_image.float()) * (1 - mask)
    return latent_format.process_out(last)


def _latent_format(record: SketchRecord) -> Any:
    """The host's latent format of the record's name, with the record's scale."""
    name = record.latent_facts["latent format"]
    kind = next((k for k in _descendants(comfy.latent_formats.LatentFormat) if k.__name__ == name), None)
    if kind is None:
        raise ValueError(
            f"The hand-over holds a latent of {name[:40]!r}, which this ComfyUI does not know (it was sketched with "
            f"ComfyUI {record.host[:20]})."
        )
    latent_format = kind()
    theirs, ours = _layout(record.calls[0].prediction), (latent_format.latent_channels, latent_format.latent_dimensions)
    if theirs != ours:
        raise ValueError(
            f"The hand-over's latent has {theirs[0]} channels and {theirs[1]} dimensions, but {name[:40]} has {ours[0]} and "
            f"{ours[1]}. {_what_to_do(record)}"
        )
    if latent_format.scale_factor != record.latent_facts["scale"]:
        latent_format.scale_factor = record.latent_facts["scale"]
    return latent_format


def _layout(latent: torch.Tensor) -> tuple[int, int]:
    """(channels, dimensions without batch and channels) of a latent [B, C, ...]."""
    return latent.shape[1], latent.ndim - 2


def _descendants(kind: type) -> Iterator[type]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def _schedule_of(sampling: Any) -> Schedule:
    """The host's noise schedule as data."""
    plain = (bool, int, float)
    values = {k: v for k, v in vars(sampling).items() if type(v) in plain and not k.startswith("_") and k != "training"}
    tables = {k: v.detach().cpu().clone() for k, v in sampling.named_buffers() if v.is_floating_point()}
    return Schedule(_kinds(sampling), values, tables)


def _kinds(sampling: Any) -> list[str]:
    """The host's classes that a noise schedule is made of."""
    return [kind.__name__ for kind in type(sampling).__mro__ if _is_the_hosts(kind)]


def _is_the_hosts(kind: type) -> bool:
    return getattr(comfy.model_sampling, kind.__name__, None) is kind


# --- from a file --------------------------------------------------------------------------------------------------------


def load(path: Path) -> SketchRecord:
    """The record of a hand-over file whose parts are those of one run. Raises ValueError as ``handover.read`` does."""
    record = read(path)
    facts, indices = record.latent_facts, record.settings.batch_index
    first, highest = record.calls[0], float(record.sigmas[0]) * (1 + SAME_LEVEL)
    schedule = StepCounter(record.sigmas.tolist())
    table = record.schedule.tables.get("sigmas")
    for what, holds in {  # only what holds for every sampler: some call twice a step, between the levels, or ahead
        "its latent is not of its latent format": _layout(first.prediction) == (facts.get("channels"), facts.get("dimensions")),
        "its batch_index is not of its batch": indices is None or len(indices) == len(first.prediction),
        "its calls are not those of its report": record.report.calls == {SKETCH: len(record.calls), RENDER: 0},
        "its calls are not at its noise levels": first.sigma > 0 and all(0 <= call.sigma <= highest for call in record.calls),
        "its hand-over is not at its noise level": all(
            schedule.interval(hand_over.sigma) == hand_over.after_step for hand_over in record.report.hand_overs
        ),
        "its noise schedule is not above 0": table is None or bool((table > 0).all()),
    }.items():
        if not holds:
            raise damaged(path, what)
    return record


# --- going on -----------------------------------------------------------------------------------------------------------


def render_from(record: SketchRecord, render: ModelPatcher, settings: RenderSettings, report: Report) -> dict[str, Any]:
    """Go on from ``record`` with ``render``; returns the host's LATENT, what one run of both would have given.

    A sketch that ran to the end needs no render; its latent is returned. Raises ValueError, before anything is loaded,
    when the render does not share the record's latent or this host can't repeat its settings.
    """
    if record.settings.sampler_name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(
            f"The hand-over was sketched with the sampler {record.settings.sampler_name[:40]!r}, which this ComfyUI "
            f"does not have (sketched with ComfyUI {record.host})."
        )
    stand_in = _stand_in(record, render)
    stand_in.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_nothing)
    stand_in.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, f"{KEY}_record", Replay(record, report).predict)
    model = cooperate(stand_in, render, Switch("step", switch_step=record.steps), settings, report)
    watch, report.watch = report.watch, partial(_tell_merged, record.report, report.watch, [])
    try:
        samples = _run_sampler(model, record)
    finally:
        report.watch = watch
        merge_reports(record.report, report)
    kept = {"noise_mask": record.noise_mask, "batch_index": record.settings.batch_index}
    return record.extra | {"samples": samples} | {name: value for name, value in kept.items() if value is not None}


def _tell_merged(sketched: Report, watch: Callable[[Report], None] | None, merged: list[bool], report: Report) -> None:
    """Watcher of a run that goes on: from the hand-over on, those who look see the sketch's own seconds and reason."""
    if report.hand_overs and not merged:
        merged.append(True)
        merge_reports(sketched, report)  # tells again
    elif watch:
        watch(report)


def _run_sampler(model: ModelPatcher, record: SketchRecord) -> torch.Tensor:
    """What the host's KSampler does, over the noise levels of the record."""
    settings, latent = record.settings, record.latent_image
    return comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, settings.seed, settings.batch_index),
        settings.cfg,
        comfy.samplers.sampler_object(settings.sampler_name),
        record.sigmas.clone(),  # uni_pc writes into it
        [],
        [],
        latent,
        noise_mask=record.noise_mask,
        callback=latent_preview.prepare_callback(model, len(record.sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )


def _load_nothing(executor: Any, model: ModelPatcher, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING wrapper of the stand-in: it has no weights."""
    return model.model, conds, []


@dataclass
class Replay:
    """Answers the sketch's calls from a record, in their order."""

    record: SketchRecord
    report: Report
    _calls: Iterator[Call] = field(init=False)
    _warned: bool = False

    def __post_init__(self) -> None:
        self._calls = iter(self.record.calls)

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: x [B, C, ...], timestep [B]; returns the recorded x0 like x. Raises RuntimeError when the
        sampler makes other calls than it made for the sketch."""
        guider, call = executor.class_obj, next(self._calls, None)
        sigma = float(timestep[0])
        if call is None or call.prediction.shape != x.shape or abs(call.sigma - sigma) > SAME_LEVEL * call.sigma:
            raise RuntimeError(
                f"{self.record.settings.sampler_name} makes other calls here than it made for the sketch (at sigma "
                f"{sigma:.4g}). {_what_to_do(self.record)}"
            )
        self._compare(call, x)
        options = PREDICT_NOISE.bind(guider, x, timestep, *args, **kwargs).arguments.get("model_options", {})
        for function in options.get(POST_CFG, [])[len(guider.model_options.get(POST_CFG, [])) :]:
            self._tell(function, call, guider, options, x, timestep)
        return call.prediction.to(x.device, copy=True)

    def _tell(
        self, function: Callable[[dict[str, Any]], Any], call: Call, guider: Any, options: Any, x: Any, sigma: Any
    ) -> None:
        """Give a function that the sampler added what it was given while sketching: it keeps what it needs."""
        if not call.noted:
            raise RuntimeError(f"The hand-over misses what {self.record.settings.sampler_name} needs: sketch again.")
        noted = {name: value.to(x.device) for name, value in call.noted.items()}
        function({**noted, "model": guider.inner_model, "model_options": options, "cond_scale": guider.cfg,
                  "cond": [], "uncond": [], "input": x, "sigma": sigma})  # fmt: skip

    def _compare(self, call: Call, x: torch.Tensor) -> None:
        """Note in the report where this machine's noise is not that of the sketch's."""
        if self._warned or difference(call.x, samples_of(x)) <= SAME_NOISE:
            return
        self._warned = True
        self.report.notes.append(
            "The noise here differs from that of the sketch's machine (another device or version of torch draws it), so the "
            "video is not exactly that of one run. Samplers without noise of their own (euler, uni_pc, dpmpp_2m) avoid that."
        )


def _stand_in(record: SketchRecord, render: ModelPatcher) -> ModelPatcher:
    """A MODEL without weights that is, to the host's samplers and to the pair's check, the sketch of ``record``."""
    kind = type(render.model)
    model: Any = object.__new__(kind)  # the class's own ways of masking, with the sketch's latent and schedule
    torch.nn.Module.__init__(model)
    model.diffusion_model = torch.nn.Module()
    model.diffusion_model.dtype = render.model_dtype()
    model.model_config, model.device, model.current_patcher = render.model.model_config, render.offload_device, None
    model.latent_format = _latent_format(record)
    _check_family(record, model.latent_format, render)
    model.model_sampling = _sampling(record, render)
    patcher = ModelPatcher(model, render.load_device, render.offload_device)
    patcher.attachments[FULL_NAME] = record.report.sketch
    check_pair(patcher, render)
    if (found := dict(latent_facts(patcher))) != record.latent_facts:
        names = [*found, *(name[:40] for name in record.latent_facts if name not in found)]
        what = [name for name in names if name not in found or found[name] != record.latent_facts.get(name)]
        raise ValueError(
            f"The hand-over's latent is {record.latent_facts['latent format']}, but not as this ComfyUI knows it "
            f"(different: {', '.join(what[:9])}). {_what_to_do(record)}"
        )
    return patcher


def _what_to_do(record: SketchRecord) -> str:
    """About a record that this host can't follow."""
    here = comfyui_version.__version__
    if record.host == here:
        return (
            f"Both are ComfyUI {here}: the hand-over is damaged, or was made with other nodes or on another kind of machine. "
            "Sketch again here."
        )
    return f"The sketch is from ComfyUI {record.host[:20]}, this is {here}: use one version for both."


def _name_of_schedule(schedule: Schedule) -> str:
    """The kinds of a noise schedule and the shapes of its tables."""
    return " ".join([*schedule.kinds, *(f"{name} {list(table.shape)}" for name, table in sorted(schedule.tables.items()))])


def _check_family(record: SketchRecord, latent_format: Any, render: ModelPatcher) -> None:
    """Raises ValueError when the record's latent is of another family than the render's."""
    ours, theirs = type(latent_format), type(render.get_model_object("latent_format"))
    if not (issubclass(ours, theirs) or issubclass(theirs, ours)):
        raise ValueError(
            f"The hand-over holds a latent of {ours.__name__} (sketched by {record.report.sketch}), but the render "
            f"{name_of(render)} works on {theirs.__name__}. Choose a render of the sketch's family."
        )


def _sampling(record: SketchRecord, render: ModelPatcher) -> Any:
    """The sketch's noise schedule: the render's object with the record's values. Raises ValueError if it is another kind."""
    sampling, schedule = copy.deepcopy(render.get_model_object("model_sampling")), record.schedule
    own = _schedule_of(sampling)
    ours, theirs = _name_of_schedule(schedule), _name_of_schedule(own)
    if ours != theirs:
        raise ValueError(
            f"The hand-over was sketched by {record.report.sketch} with the noise schedule {ours[:120]}, but the render "
            f"{name_of(render)} has {theirs}. Put the same sampling node (ModelSamplingSD3, CogVideoX Sampling Fix ...) on the "
            "render as on the sketch."
        )
    for name, value in schedule.values.items():
        if type(own.values.get(name)) in (int, float, bool):
            setattr(sampling, name, value)
    for name, table in schedule.tables.items():
        sampling.register_buffer(name, table.clone())
    return sampling.to(render.load_device)
