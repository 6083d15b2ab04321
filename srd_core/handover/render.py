"""SR Render: a whole run of the host's sampler that continues from a record of the sketch.

It is a run like any other (run.py), in which a model without weights, which answers from the record, stands for the
sketch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..calls import KEY, MASK_FUNCTION, PREDICT_NOISE
from ..checks import check_plain
from ..latent import FULL_NAME, check_pair, latent_facts, name_of, of_one_vae
from ..pair import cooperate
from ..report.data import Report
from ..route import RENDER, SKETCH, Switch, Turn
from ..stage import RenderSettings
from ..steps import StepCounter
from .file import damaged, read
from .record import Call, Schedule, SketchRecord, difference, merge_reports, samples_of
from .sketch import POST_CFG, latent_format_of, layout_of, schedule_of, what_to_do

SAME_LEVEL = 1e-4  # relative difference of two noise levels, by rounding
NOISE_DIFFERS = "The noise differs from that of the sketch's run, so the video is not exactly that of one run."
NOISE_AT_THE_START = (
    f"{NOISE_DIFFERS} A node on the sketch changed the noise (context windows with freenoise) and this hand-over does "
    "not hold it, or another version of torch drew it. Sketch again with this version of the pack."
)
NOISE_OF_THE_SAMPLER = (
    f"{NOISE_DIFFERS} {{sampler}} draws noise in its steps, and another device or version of torch draws other noise. "
    "Use a sampler that adds no noise (euler, uni_pc, dpmpp_2m), or render where you sketched."
)
SAME_NOISE = 0.02  # relative difference of x up to which another machine's rounding explains it


def load(path: Path) -> SketchRecord:
    """The record of a hand-over file whose parts are those of one run. Raises ValueError as ``handover.read`` does."""
    record = read(path)
    calls, hand_overs, indices = record.calls, record.report.hand_overs, record.settings.batch_index
    highest = float(record.sigmas[0]) * (1 + SAME_LEVEL)
    layout = record.latent_facts.get("channels"), record.latent_facts.get("dimensions")
    sizes = zip(record.sketch_size or (), record.latent_image.shape[-2:])
    made = [stage.calls for stage in record.report.stages]
    at_level = calls[0].sigma > 0 and all(0 <= call.sigma <= highest for call in calls)
    schedule, table = StepCounter(record.sigmas.tolist()), record.schedule.tables.get("sigmas")
    for what, holds in {  # only what holds for every sampler: some call twice a step, between the levels, or ahead
        "its latent is not of its latent format": layout_of(calls[0].prediction) == layout,
        "its sketch is larger than its latent": all(a <= b for a, b in sizes),
        "its batch_index is not of its batch": indices is None or len(indices) == len(calls[0].prediction),
        "its calls are not those of its report": made == [len(calls), 0],
        "its calls are not at its noise levels": at_level,
        "its hand-over is not at its noise level": all(schedule.interval(h.sigma) == h.after_step for h in hand_overs),
        "its noise schedule is not above 0": table is None or bool((table > 0).all()),
    }.items():
        if not holds:
            raise damaged(path, what)
    return record


def render_from(record: SketchRecord, render: ModelPatcher, settings: RenderSettings, report: Report) -> dict[str, Any]:
    """Continue from ``record`` with ``render``; returns the host's LATENT, what one run of both would have given.

    A sketch that ran to the end needs no render; its latent is returned. Raises ValueError, before anything is loaded,
    when the render does not share the record's latent or this host can't repeat its settings.
    """
    if record.settings.sampler_name not in comfy.samplers.KSampler.SAMPLERS:
        raise ValueError(
            f"The hand-over was sketched with the sampler {record.settings.sampler_name[:40]!r}, which this ComfyUI "
            f"does not have (sketched with ComfyUI {record.host})."
        )
    check_plain(RENDER, render)
    if record.mask_changes and MASK_FUNCTION not in render.model_options:
        raise ValueError(
            "While sketching a node changed the mask with the noise level (Differential Diffusion), but the render has "
            "no such node. Put the same one on the render's MODEL."
        )
    # The sketch's calls are those of the whole schedule, and have its size.
    settings = replace(settings, anew=True, sketch_size=record.sketch_size)
    stand_in = _stand_in(record, render)
    if record.mask_changes:
        stand_in.model_options[MASK_FUNCTION] = render.model_options[MASK_FUNCTION]
    stand_in.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _load_nothing)
    replay = Replay(record, report, iter(record.calls))
    stand_in.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, f"{KEY}_record", replay.predict)
    model = cooperate(stand_in, render, Switch("step", switch_step=record.steps), settings, report, replay.check_latent)
    watch, report.watch = report.watch, partial(_tell_merged, record.report, report.watch, [])
    try:
        samples = _run_sampler(model, record)
    finally:
        report.watch = watch
        merge_reports(record.report, report)
    kept = {"noise_mask": record.noise_mask, "batch_index": record.settings.batch_index}
    return record.extra | {"samples": samples} | {name: value for name, value in kept.items() if value is not None}


def _tell_merged(sketched: Report, watch: Callable[[Report], None] | None, merged: list[bool], report: Report) -> None:
    """Watcher of a run that continues: from the hand-over on, the report has the sketch's seconds and reason."""
    if report.hand_overs and not merged:
        merged.append(True)
        merge_reports(sketched, report)  # tells again
    elif watch:
        watch(report)


def _run_sampler(model: ModelPatcher, record: SketchRecord) -> torch.Tensor:
    """What the host's KSampler does, over the noise levels of the record."""
    settings, latent, noise = record.settings, record.latent_image, record.noise
    if noise is None:
        noise = comfy.sample.prepare_noise(latent, settings.seed, settings.batch_index)
    sampler, sigmas = comfy.samplers.sampler_object(settings.sampler_name), record.sigmas.clone()  # uni_pc writes there
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    how = {"callback": callback, "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED, "seed": settings.seed}
    call: tuple[Any, ...] = (model, noise.clone(), settings.cfg, sampler, sigmas, [], [], latent, record.noise_mask)
    return comfy.sample.sample_custom(*call, **how)


def _load_nothing(executor: Any, model: ModelPatcher, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING wrapper of the stand-in: it has no weights."""
    return model.model, conds, []


@dataclass
class Replay:
    """Answers the sketch's calls from a record, in their order."""

    record: SketchRecord
    report: Report
    _calls: Iterator[Call]  # of the record, that are still to be answered
    _warned: bool = False

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper: x [B, C, ...], timestep [B]; the recorded x0. Raises RuntimeError for other calls."""
        guider, call = executor.class_obj, next(self._calls, None)
        sigma = float(timestep[0])
        if call is None or call.prediction.shape != x.shape or abs(call.sigma - sigma) > SAME_LEVEL * call.sigma:
            raise RuntimeError(
                f"{self.record.settings.sampler_name} makes other calls here than it made for the sketch (at sigma "
                f"{sigma:.4g}). {what_to_do(self.record)}"
            )
        self._compare(call, x)
        options = PREDICT_NOISE.bind(guider, x, timestep, *args, **kwargs).arguments.get("model_options", {})
        for function in options.get(POST_CFG, [])[len(guider.model_options.get(POST_CFG, [])) :]:
            self._tell(function, call, guider, options, x, timestep)
        return call.prediction.to(x.device, copy=True)

    def _tell(self, function: Any, call: Call, guider: Any, options: Any, x: torch.Tensor, sigma: torch.Tensor) -> None:
        """Give a function that the sampler added what it was given while sketching: it keeps what it needs."""
        if not call.noted:
            if self.record.calls[0].noted:  # a cache on the sketch answered: it was not called then
                return
            raise RuntimeError(f"The hand-over misses what {self.record.settings.sampler_name} needs: sketch again.")
        given = {"model": guider.inner_model, "model_options": options, "cond_scale": guider.cfg, "input": x}
        noted = {name: value.to(x.device) for name, value in call.noted.items()}
        function({**noted, **given, "cond": [], "uncond": [], "sigma": sigma})

    def check_latent(self, x: torch.Tensor, turn: Turn) -> None:
        """At the hand-over. Raises RuntimeError where the record's latent is not the one that its calls lead to."""
        kept = self.record.x
        if self._warned or kept is None:
            return
        if kept.shape != x.shape or difference(samples_of(kept), samples_of(x)) > SAME_NOISE:
            raise RuntimeError(
                f"The hand-over's latent is not the one that its predictions lead to. {what_to_do(self.record)}"
            )

    def _compare(self, call: Call, x: torch.Tensor) -> None:
        """Note in the report where the noise is not that of the sketch's run."""
        if self._warned or difference(call.x, samples_of(x)) <= SAME_NOISE:
            return
        self._warned = True
        first = call is self.record.calls[0]
        self.report.notes.append(
            NOISE_AT_THE_START if first else NOISE_OF_THE_SAMPLER.format(sampler=self.record.settings.sampler_name)
        )


def _stand_in(record: SketchRecord, render: ModelPatcher) -> ModelPatcher:
    """A MODEL without weights that is the sketch of ``record`` to the host's samplers and the pair's check.

    It is of the render's class, for its ways of masking, with the sketch's latent and schedule.
    """
    known = render.model.model_config
    config = type(known)({**known.unet_config, "disable_unet_model_creation": True})
    config.__dict__.update({name: value for name, value in vars(known).items() if name != "unet_config"})
    model = type(render.model)(config, model_type=render.model.model_type, device=render.offload_device)
    model.diffusion_model = torch.nn.Module()
    model.diffusion_model.dtype = render.model_dtype()
    model.latent_format = latent_format_of(record)
    _check_family(record, model.latent_format, render)
    model.model_sampling = _sampling(record, render)
    patcher = ModelPatcher(model, render.load_device, render.offload_device)
    patcher.attachments[FULL_NAME] = record.report.stage(SKETCH).model
    check_pair(patcher, render)
    if (found := dict(latent_facts(patcher))) != record.latent_facts:
        names = [*found, *(name[:40] for name in record.latent_facts if name not in found)]
        what = [name for name in names if name not in found or found[name] != record.latent_facts.get(name)]
        raise ValueError(
            f"The hand-over's latent is {record.latent_facts['latent format']}, but not as this ComfyUI knows it "
            f"(different: {', '.join(what[:9])}). {what_to_do(record)}"
        )
    return patcher


def _name_of_schedule(schedule: Schedule) -> str:
    """The kinds of a noise schedule and the shapes of its tables."""
    return " ".join(
        [*schedule.kinds, *(f"{name} {list(table.shape)}" for name, table in sorted(schedule.tables.items()))]
    )


def _check_family(record: SketchRecord, latent_format: Any, render: ModelPatcher) -> None:
    """Raises ValueError when the record's latent is of another family than the render's."""
    ours, theirs = (type(each).__name__ for each in (latent_format, render.get_model_object("latent_format")))
    if not of_one_vae(ours, theirs):
        raise ValueError(
            f"The hand-over holds a latent of {ours} (sketched by {record.report.stage(SKETCH).model}), but the render "
            f"{name_of(render)} works on {theirs}. Choose a render of the sketch's family."
        )


def _sampling(record: SketchRecord, render: ModelPatcher) -> Any:
    """The render's noise schedule with the record's values. Raises ValueError if it is of another kind."""
    sampling, schedule = copy.deepcopy(render.get_model_object("model_sampling")), record.schedule
    own = schedule_of(sampling)
    ours, theirs = _name_of_schedule(schedule), _name_of_schedule(own)
    if ours != theirs:
        raise ValueError(
            f"The hand-over was sketched by {record.report.stage(SKETCH).model} with the noise schedule {ours[:120]}, "
            f"but the render {name_of(render)} has {theirs}. Put the same sampling node (ModelSamplingSD3, CogVideoX "
            "Sampling Fix ...) on the render as on the sketch."
        )
    for name, value in schedule.values.items():
        if name in own.values:
            setattr(sampling, name, value)
    for name, table in schedule.tables.items():
        sampling.register_buffer(name, table.clone())
    return sampling.to(render.load_device)
