"""Two MODELs as one: a clone of the sketch whose sampling runs hand over to the render.

Its OUTER_SAMPLE wrapper begins a run (run.py) whenever the host samples with it, whatever guider and sampler it uses.
Either of the two may be such a MODEL itself: it brings its stages along.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP

from . import memory
from .begin import begin_run, carry_out, make_small
from .calls import KEY, OUTER_SAMPLE
from .checks import check_controls, check_run, check_settings, check_switch, check_together
from .latent import FULL_NAME, check_pair, parameters_of
from .reach import Things, mask_note, misfit_notes, one_stage_note, things_on, unseen_notes
from .report.data import Report
from .route import RENDER, SKETCH, Pair, Part, Switch, TakeOver, pairs_of, stages_of
from .run import AtHandOver, Run
from .smaller import small_stages
from .stage import RenderSettings, Stage
from .teacache.host import TeaCache, is_cached, with_teacache

INNER = (
    "A Sketch-Render Model whose sketch_scale is below 1 is connected to another one. Set it to 1 there; the last "
    "node's sketch_scale is for all that is connected as its sketch."
)
LARGER = "The render is larger than the sketch. Are the two swapped?"


@dataclass(frozen=True)
class Member:
    """One stage's model, and what it does otherwise than the guider says."""

    model: ModelPatcher
    settings: RenderSettings


@dataclass(frozen=True)
class Plan:
    """What a Sketch-Render Model does: an attachment of the MODEL, for the pair that it may become a part of."""

    whole: Pair
    members: dict[str, Member]  # by stage; the first one's model is that of the guider
    things: Things  # what is on the MODEL already, see reach.py
    notes: list[str]  # of the parts that are pairs


def cooperate(
    sketch: ModelPatcher,
    render: ModelPatcher,
    switch: Switch,
    settings: RenderSettings,
    report: Report,
    at_hand_over: AtHandOver | None = None,
) -> ModelPatcher:
    """A MODEL that samples as ``sketch`` until ``switch`` says so, then as ``render``; ``report`` is filled meanwhile.

    Raises ValueError when the stages do not share a latent or would need other prompts, and for a TeaCache that is
    asked for twice.
    """
    plan = _plan(sketch, render, switch, settings)
    first, *others = plan.members.values()
    for member in others:
        check_together(first.model, member.model, member.settings)
    model = _plain(sketch)
    model.set_attachments(KEY, plan)
    sample = partial(_sample, plan=plan, report=report, at_hand_over=at_hand_over)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    return model


def _plan(sketch: ModelPatcher, render: ModelPatcher, switch: Switch, settings: RenderSettings) -> Plan:
    first, ours = _part(SKETCH, sketch)
    then, theirs = _part(RENDER, render)
    if settings.teacache:
        name, member = next(iter(theirs.items()))
        theirs[name] = replace(member, model=_cached(member.model, settings.teacache))
    theirs = {name: replace(member, settings=member.settings.within(settings)) for name, member in theirs.items()}
    pair = Pair(first, then, switch, **{field.name: getattr(settings, field.name) for field in fields(TakeOver)})
    if small_stages(pair):  # the sampler begins anew anyway, so the sketch's steps stay those of the schedule
        pair = replace(pair, anew=True)
    if any(small_stages(inner) for inner in pairs_of(pair) if inner is not pair):
        raise ValueError(INNER)
    return Plan(pair, ours | theirs, things_on(_plain(sketch)), _notes_of(sketch) + _notes_of(render))


def _notes_of(part: ModelPatcher) -> list[str]:
    """What a part that is a pair has to say: of nodes between it and the pair that it becomes a part of."""
    plan: Plan | None = part.get_attachment(KEY)
    return [] if plan is None else plan.notes + one_stage_note(_plain(part), plan.things)


def _cached(render: ModelPatcher, threshold: float) -> ModelPatcher:
    if is_cached(render):
        raise ValueError(
            f"teacache is {threshold:g}, but the render MODEL already comes from Render TeaCache. "
            "Set teacache to 0 or leave that node out."
        )
    return with_teacache(render, TeaCache(threshold))


def _part(role: str, model: ModelPatcher) -> tuple[Part, dict[str, Member]]:
    """The part of a route that ``model`` is, and its stages, named after their ``role``: sketch, sketch 2, ..."""
    plan: Plan | None = model.get_attachment(KEY)
    if plan is None:
        return role, {role: Member(model, RenderSettings())}
    names = {name: role if i == 0 else f"{role} {i + 1}" for i, name in enumerate(stages_of(plan.whole))}
    members = {names[name]: member for name, member in plan.members.items()}
    members[role] = replace(members[role], model=_plain(model))
    return _renamed(plan.whole, names), members


def _renamed(part: Part, names: dict[str, str]) -> Part:
    if isinstance(part, str):
        return names[part]
    return replace(part, first=_renamed(part.first, names), then=_renamed(part.then, names))


def _plain(model: ModelPatcher) -> ModelPatcher:
    """A clone that samples alone."""
    model = model.clone()
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.remove_attachments(KEY)
    return model


def _sample(
    executor: WrapperExecutor, *args: Any, plan: Plan, report: Report, at_hand_over: AtHandOver | None, **kwargs: Any
) -> torch.Tensor:
    """OUTER_SAMPLE wrapper: one sampling run of the host, whatever guider and sampler it uses."""
    guider = executor.class_obj
    call = OUTER_SAMPLE.bind(guider, *args, **kwargs)
    stages = {}
    for name in stages_of(plan.whole)[1:]:
        member = plan.members[name]
        model = _with_those_that_stay(plan, name, member.model, guider.model_patcher)
        stages[name] = Stage.beside(guider, model, member.settings, check_pair(guider.model_patcher, member.model))
    run = begin_run(guider, call.arguments, stages, plan.whole, report)
    run.at_hand_over = at_hand_over

    def prepare() -> None:
        check_run(guider, call.arguments, run.steps.sigmas)
        for pair in pairs_of(plan.whole):
            check_switch(pair, run.route.places, report.given_steps)
        for name in stages:
            check_settings(guider, plan.members[name].model, plan.members[name].settings)
            check_controls(name, plan.members[name].model, stages[name].guider.conds)
        if len(stages) == 1 and 0 < parameters_of(guider.model_patcher) < parameters_of(plan.members[RENDER].model):
            report.notes.append(LARGER)  # 0: it stands for a sketch of another run
        report.notes += plan.notes + one_stage_note(guider.model_patcher, plan.things)
        for name in stages_of(plan.whole):
            report.notes += misfit_notes(name, run.stages[name].model)
        for name, stage in stages.items():
            report.notes += unseen_notes(name, stage.model, guider.model_patcher, stage.guider.conds)
        if call.arguments.get("denoise_mask") is not None:
            first, *others = (run.stages[name].model for name in (run.route.start()[0], *stages))
            report.notes += mask_note(first, others)
        make_small(run, guider, call.arguments, plan.whole)
        for name, stage in stages.items():
            stage.prepare(run.schedule_of(name))
        _reckon_memory(run)
        if again := _loads_again(run, plan.whole):
            report.notes.append(again)
            logging.warning("SRDiffusion: %s", again)

    return carry_out(run, executor, call, prepare)


def _reckon_memory(run: Run) -> None:
    """Note what the run will need, before anything is loaded."""
    report = run.books.report
    report.device_bytes = memory.size_of_device(run.stages[SKETCH].model)
    for name, stage in run.stages.items():
        if FULL_NAME not in stage.model.attachments:  # else it stands for a sketch of another run
            entry = report.stage(name)
            entry.weight_bytes, entry.step_bytes = memory.reckon(stage.model, run.shape_of(name), stage.guider.conds)


def _loads_again(run: Run, whole: Pair) -> str:
    """What to say of a run that changes its stage more than once, see memory.reload_note."""
    for pair in pairs_of(whole):
        names = stages_of(pair)
        models = {name: run.stages[name].model for name in names}
        changes = pair.switch.changes(run.steps.steps)
        if note := memory.reload_note(models, run.shape_of(names[-1]), pair.offload_sketch, changes):
            return note
    return ""


def _with_those_that_stay(plan: Plan, name: str, model: ModelPatcher, sketch: ModelPatcher) -> ModelPatcher:
    """``model`` of the stage ``name``, beside the models that offload_sketch keeps on the device when it comes."""
    names = stages_of(plan.whole)
    for pair in pairs_of(plan.whole):
        if pair.offload_sketch == memory.NEVER and name in stages_of(pair.then):
            stays = stages_of(pair.first)[0]
            model = memory.with_beside(model, sketch if stays == names[0] else plan.members[stays].model)
    return model
