"""Two MODELs as one: a clone of the sketch whose sampling runs hand over to the render.

Its OUTER_SAMPLE wrapper begins a run (run.py) whenever the host samples with it, whatever guider and sampler it uses.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from . import memory
from .calls import KEY, OUTER_SAMPLE
from .checks import check_plain, check_run, check_settings, check_switch
from .latent import LatentMap, check_pair, check_same_prompts, parameters_of
from .reach import Things, misfit_notes, one_stage_note, things_on
from .report.data import Report
from .route import RENDER, SKETCH, Switch, two_legs
from .run import AtHandOver, begin_run, carry_out
from .stage import RenderSettings, Stage
from .teacache.host import TeaCache, is_cached, with_teacache

LARGER = "The render is larger than the sketch. Are the two swapped?"


def cooperate(
    sketch: ModelPatcher,
    render: ModelPatcher,
    switch: Switch,
    settings: RenderSettings,
    report: Report,
    at_hand_over: AtHandOver | None = None,
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
        _sample,
        render=render,
        latent_map=latent_map,
        switch=switch,
        settings=settings,
        report=report,
        at_hand_over=at_hand_over,
    )
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, partial(outer_sample, before=things_on(model)))
    return model


def _sample(
    executor: WrapperExecutor,
    *args: Any,
    render: ModelPatcher,
    latent_map: LatentMap,
    switch: Switch,
    settings: RenderSettings,
    report: Report,
    at_hand_over: AtHandOver | None,
    before: Things,
    **kwargs: Any,
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host, whatever guider and sampler it uses."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    if settings.offload_sketch == memory.NEVER:
        render = memory.with_beside(render, guider.model_patcher)
    stage = Stage.beside(guider, render, settings, latent_map)
    run = begin_run(guider, call.arguments, {RENDER: stage}, two_legs(switch), report, settings.offload_sketch)
    run.at_hand_over = at_hand_over

    def prepare() -> None:
        check_run(guider, call.arguments, run.steps.sigmas)
        check_switch(switch, run.route.places)
        check_settings(guider, render, settings)
        if 0 < parameters_of(guider.model_patcher) < parameters_of(render):  # 0: it stands for a sketch of another run
            report.notes.append(LARGER)
        report.notes += misfit_notes(SKETCH, guider.model_patcher) + misfit_notes(RENDER, render)
        report.notes += one_stage_note(guider.model_patcher, before)
        stage.prepare()

    return carry_out(run, executor, call, prepare)
