"""SR Sketch: a run of the sketch alone that stops where the rule hands over, with a record of its calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.latent_formats
import comfy.model_sampling
import comfy.sample
import comfy.sampler_helpers
import comfy.utils
import comfyui_version
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from ..begin import begin_run, carry_out, make_small
from ..calls import KEY, MASK_FUNCTION, OUTER_SAMPLE, PREDICT_NOISE, SAMPLER_SAMPLE
from ..checks import check_plain, check_run, check_switch
from ..enlarge import Enlargement
from ..latent import latent_facts
from ..reach import misfit_notes
from ..report.data import StageReport
from ..route import RENDER, SKETCH, Pair, Switch, Turn
from ..run import Run
from .record import NOTED, Call, Schedule, SketchRecord, samples_of

Keep = Callable[[torch.Tensor], torch.Tensor]
POST_CFG = "sampler_post_cfg_function"  # model option: what *_cfg_pp samplers add a function to


class HandedOver(BaseException):
    """Ends the sampler where the sketch hands over. No Exception, so that nobody on the way takes it for an error."""


def sketch_alone(sketch: ModelPatcher, switch: Switch, record: SketchRecord) -> ModelPatcher:
    """A MODEL that samples as ``sketch`` until ``switch`` hands over, then ends with the x0 prediction.

    ``record`` is filled meanwhile. Raises ValueError for a MODEL that already cooperates.
    """
    check_plain(SKETCH, sketch)
    model = sketch.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(_sample, switch=switch, record=record))
    # inside those it has
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, partial(_note_noise, record=record))
    return model


def _note_noise(executor: WrapperExecutor, *args: Any, record: SketchRecord, **kwargs: Any) -> Any:
    """SAMPLER_SAMPLE wrapper: a node of the sketch may have changed the noise before (freenoise of context windows)."""
    drawn = comfy.sample.prepare_noise(record.latent_image, record.settings.seed, record.settings.batch_index)
    started = _on_the_cpu(SAMPLER_SAMPLE.bind(executor.class_obj, *args, **kwargs).arguments["noise"])
    record.noise = _noise_of(started, drawn.to(started.dtype))
    return executor(*args, **kwargs)


def _noise_of(started: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor | None:
    """The noise of a run whose sampler got ``started``, low frequencies if the sketch is smaller; None: as drawn."""
    if started.shape == drawn.shape:
        return None if torch.equal(started, drawn) else started
    (height, width), (small_height, small_width) = drawn.shape[-2:], started.shape[-2:]
    scale = Enlargement((height, width), (small_height, small_width), flow=True)
    return None if torch.equal(started, scale.low(drawn)) else scale.back(started) + scale.high(drawn)


def _sample(executor: WrapperExecutor, *args: Any, switch: Switch, record: SketchRecord, **kwargs: Any) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host, or the beginning of one."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    pair = Pair(SKETCH, RENDER, switch, sketch_scale=record.settings.sketch_scale)
    run = begin_run(guider, call.arguments, {}, pair, record.report)
    record.report.stages.append(StageReport(RENDER, "not yet, see SR Render"))
    recorder = Recorder(record, run)
    run.outside, run.at_hand_over = [recorder.predict], recorder.hand_over

    def prepare() -> None:
        check_run(guider, call.arguments, run.steps.sigmas)
        check_switch(pair, run.route.places)
        if len(call.arguments.get("latent_shapes") or []) > 1:
            raise ValueError("A latent of several parts (video with sound) can't be sketched alone; use SR Sampler.")
        if run.route.start()[0] == RENDER:
            raise ValueError("The sketch would run no step. Set switch_step to 1 or more, or switch_sigma lower.")
        _begin_record(record, guider.model_patcher, call.arguments)
        record.report.notes += misfit_notes(SKETCH, guider.model_patcher)
        make_small(run, guider, call.arguments, pair)

    try:
        return carry_out(run, executor, call, prepare)
    except HandedOver:  # what the host does after a run; it has cleaned up the model already
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)
        del guider.inner_model, guider.loaded_models
        record.report.status = "done"
        record.report.changed()
        return preview_of(record)


def _begin_record(record: SketchRecord, sketch: ModelPatcher, call: dict[str, Any]) -> None:
    record.sigmas, record.latent_image = (call[name].detach().cpu().clone() for name in ("sigmas", "latent_image"))
    record.calls, record.x = [], None
    record.latent_facts = dict(latent_facts(sketch))
    record.schedule = schedule_of(sketch.get_model_object("model_sampling"))
    record.mask_changes = call.get("denoise_mask") is not None and MASK_FUNCTION in sketch.model_options
    record.host = comfyui_version.__version__


@dataclass
class Recorder:
    """Keeps a run's calls, and ends it where another would hand over."""

    record: SketchRecord
    run: Run

    def predict(
        self, executor: WrapperExecutor, x: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """PREDICT_NOISE wrapper around the run's own: x [B, C, ...], timestep [B]; returns what the run returns."""
        call = PREDICT_NOISE.bind(executor.class_obj, x, timestep, *args, **kwargs)
        call, noted = noting(executor.class_obj, call, only_beside_others=True)
        sampled = samples_of(x)
        prediction = executor(*call.args[1:], **call.kwargs)
        self.record.calls.append(Call(float(timestep[0]), _on_the_cpu(prediction), sampled, noted))
        return prediction

    def hand_over(self, x: torch.Tensor, turn: Turn) -> None:
        """Raises HandedOver."""
        self.run.books.hand_over(self.run.steps.step, turn, [], 0.0, {})
        self.record.x = _on_the_cpu(x)
        raise HandedOver


def _on_the_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def noting(
    guider: Any, call: inspect.BoundArguments, only_beside_others: bool = False, keep: Keep = _on_the_cpu
) -> tuple[inspect.BoundArguments, dict[str, torch.Tensor]]:
    """A PREDICT_NOISE ``call`` that notes what functions added to the guidance are given, and those tensors.

    ``only_beside_others``: where the sampler added such functions itself. ``keep``: what becomes of a tensor.
    """
    noted: dict[str, torch.Tensor] = {}
    options = call.arguments.get("model_options", {})
    added_from = len(guider.model_options.get(POST_CFG, []))
    functions = options.get(POST_CFG, [])[added_from:]
    if functions or not only_beside_others:
        call = PREDICT_NOISE.bind(*call.args, **call.kwargs)
        own = options.get(POST_CFG, [])[:added_from]
        call.arguments["model_options"] = {**options, POST_CFG: [*own, partial(_note, noted, keep), *functions]}
    return call, noted


def _note(noted: dict[str, torch.Tensor], keep: Keep, args: dict[str, Any]) -> torch.Tensor:
    """In front of the functions that a sampler added to the guidance: keep what they are given."""
    noted.update({name: keep(args[name]) for name in NOTED})
    return args["denoised"]


def preview_of(record: SketchRecord) -> torch.Tensor:
    """The sketch's last x0 prediction as the host's LATENT [B, C, ...]. Raises ValueError for an unknown latent."""
    latent_format, last, mask = latent_format_of(record), record.calls[-1].prediction.float(), record.noise_mask
    if mask is not None and record.latent_image.shape == last.shape:
        mask = comfy.utils.reshape_mask(mask.float(), last.shape)
        last = last * mask + latent_format.process_in(record.latent_image.float()) * (1 - mask)
    return latent_format.process_out(last)


def latent_format_of(record: SketchRecord) -> Any:
    """The host's latent format of the record's name, with the record's scale."""
    name = record.latent_facts["latent format"]
    kind = next((k for k in _descendants(comfy.latent_formats.LatentFormat) if k.__name__ == name), None)
    if kind is None:
        raise ValueError(
            f"The hand-over holds a latent of {name[:40]!r}, which this ComfyUI does not know (it was sketched with "
            f"ComfyUI {record.host[:20]})."
        )
    latent_format = kind()
    theirs = layout_of(record.calls[0].prediction)
    ours = latent_format.latent_channels, latent_format.latent_dimensions
    if theirs != ours:
        raise ValueError(
            f"The hand-over's latent has {theirs[0]} channels and {theirs[1]} dimensions, but {name[:40]} has "
            f"{ours[0]} and {ours[1]}. {what_to_do(record)}"
        )
    latent_format.scale_factor = record.latent_facts["scale"]
    return latent_format


def layout_of(latent: torch.Tensor) -> tuple[int, int]:
    """(channels, dimensions without batch and channels) of a latent [B, C, ...]."""
    return latent.shape[1], latent.ndim - 2


def _descendants(kind: type) -> Iterator[type]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def schedule_of(sampling: Any) -> Schedule:
    """The host's noise schedule as data."""
    plain = (bool, int, float)
    values = {k: v for k, v in vars(sampling).items() if type(v) in plain and not k.startswith("_") and k != "training"}
    tables = {k: v.detach().cpu().clone() for k, v in sampling.named_buffers() if v.is_floating_point()}
    hosts = [kind for kind in type(sampling).__mro__ if getattr(comfy.model_sampling, kind.__name__, None) is kind]
    return Schedule([kind.__name__ for kind in hosts], values, tables)


def what_to_do(record: SketchRecord) -> str:
    """About a record that this host can't follow."""
    here = comfyui_version.__version__
    if record.host == here:
        return (
            f"Both are ComfyUI {here}: the hand-over is damaged, or was made with other nodes or on another kind of "
            "machine. Sketch again here."
        )
    return f"The sketch is from ComfyUI {record.host[:20]}, this is {here}: use one version for both."
