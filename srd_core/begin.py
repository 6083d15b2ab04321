"""From a sampling call of the host to a run, and the run from its checks to its clean-up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from .books import Books
from .checks import check_levels
from .fade import Fade
from .latent import FLOW, kind_of, name_of
from .levels import places_of
from .report.data import Report, StageReport
from .rest import known
from .route import SKETCH, Pair, Route, pairs_of
from .run import Run
from .smaller import PURE_NOISE, Smaller, check_smaller, enlargement, small_conds, small_request, small_stages
from .stage import GuidersStage, Stage
from .steps import counter_for, is_padded, sampler_name

NO_STEPS_OF_ITS_OWN = (
    "render_steps is not followed: the sampler's mode puts a level in front of the schedule and drops it itself."
)
SMALL = "The sketch runs on a latent of {small} instead of {large} (height x width), over the same steps{lower}."
LOWER = ", at lower noise levels (where the run is at sigma {sigma:.3g} it sees {small:.3g})"
EXAMPLE = 0.875  # a noise level of the run
AS_LARGE = "sketch_scale does nothing here: in whole patches the sketch is as large as the render."


def begin_run(
    guider: comfy.samplers.CFGGuider, call: dict[str, Any], others: dict[str, Stage], whole: Pair, report: Report
) -> Run:
    """The state of a sampling run of the host with the arguments ``call``, over the route ``whole``.

    The guider's model is the sketch; ``report`` starts anew. The call's sigmas become those of the route, where it
    walks a part of them in its own steps. Raises ValueError for a schedule that is not finite.
    """
    given = [float(sigma) for sigma in call["sigmas"]]
    check_levels(given)  # before they go into the report, whose JSON holds numbers only
    stages: dict[str, GuidersStage | Stage] = {SKETCH: GuidersStage(guider), **others}
    schedule = guider.model_patcher.get_model_object("model_sampling")
    padded = is_padded(given)
    levels, walked = (given, set(pairs_of(whole))) if padded else known(whole, given, partial(places_of, schedule))
    if levels != given:
        call["sigmas"] = call["sigmas"].new_tensor(levels)
    steps = counter_for(call["sampler"], levels)
    route = Route(whole, steps.sigmas[:-1], places_of(schedule, steps.sigmas)[:-1])
    switch = whole.switch
    report.begin(
        stages=[StageReport(name, name_of(stage.model)) for name, stage in stages.items()],
        switch=switch.settings(),
        earliest=switch.earliest(route.places),
        latest=switch.latest(route.sigmas),
        sampler=sampler_name(call["sampler"]).removeprefix("sample_"),
        shape=list(call["noise"].shape),
        given_steps=steps.steps if padded else len(given) - 1,
        render_steps=whole.render_steps,
        sigmas=list(steps.sigmas),
        notes=[NO_STEPS_OF_ITS_OWN] if padded and whole.render_steps else [],
    )
    return Run(
        stages=stages,
        route=route,
        steps=steps,
        books=Books(report, steps.sigmas, SKETCH),
        request={k: call.get(k) for k in ("noise", "latent_image", "denoise_mask", "seed", "latent_shapes")},
        host_callback=call["callback"],
        walked=walked,
        fade=Fade(kind_of(schedule) == FLOW) if any(pair.fade for pair in pairs_of(whole)) else None,
    )


def make_small(run: Run, guider: comfy.samplers.CFGGuider, call: dict[str, Any], whole: Pair) -> None:
    """Make the run small until the hand-over, where the first part of ``whole`` is to run on a smaller latent.

    The host's ``call``, the run and its conditioning change; nothing is loaded. Raises ValueError where that can't be.
    """
    stages = small_stages(whole)
    if run.route.start()[0] not in stages:
        return
    check_smaller(whole, call, guider.model_patcher, run.route.sigmas)
    models = [stage.model for name, stage in run.stages.items() if name in stages]
    scale = enlargement(whole, call["latent_image"], models)
    if scale.small == scale.large:
        run.books.report.notes.append(AS_LARGE)
        return
    run.smaller = Smaller(scale, stages, run.request, list(run.steps.sigmas), run.route.places[0] >= PURE_NOISE)
    run.request = small_request(run.request, scale)
    run.steps.sigmas = scale.small_levels(run.steps.sigmas)
    call.update({name: value for name, value in run.request.items() if name in call})
    call["sigmas"] = call["sigmas"].new_tensor(run.steps.sigmas)
    for name in stages:
        own = run.stages[name].guider
        own.conds = small_conds(own.conds, scale)
    run.books.report.small_shape = list(run.request["noise"].shape)
    small, large = (" x ".join(map(str, size)) for size in (scale.small, scale.large))
    lower = LOWER.format(sigma=EXAMPLE, small=scale.small_levels([EXAMPLE])[0]) if scale.flow else ""
    run.books.report.notes.append(SMALL.format(small=small, large=large, lower=lower))


def carry_out(
    run: Run, executor: WrapperExecutor, call: inspect.BoundArguments, prepare: Callable[[], None]
) -> torch.Tensor:
    """The host's sampling run ``call`` with ``run`` in it, from ``prepare`` (checks, nothing loaded) to the clean-up.

    Returns the latent [B, C, ...]; the report says how it ended, also when it did not end well.
    """
    guider, report = executor.class_obj, run.books.report
    call.arguments["callback"] = run.callback
    own_options = guider.model_options
    try:
        prepare()
        guider.model_options = run.options_for(guider)
        latent = _inside_wrappers(run, executor)(*call.args[1:], **call.kwargs)
        latent.flatten()[:1].cpu()  # wait for the device once: what it still has to do belongs to the last step
        if report.steps and report.steps[-1].seconds is not None:
            run.books.add_seconds()
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
        run.close()


def _inside_wrappers(run: Run, executor: WrapperExecutor) -> Callable[..., torch.Tensor]:
    """The run inside the other stages' wrappers around a whole run (EasyCache), which can't be entered in mid-run."""
    sample: Callable[..., torch.Tensor] = executor
    for stage in run.others():
        wrappers = get_all_wrappers(WrappersMP.OUTER_SAMPLE, stage.options, is_model_options=True)
        sample = WrapperExecutor.new_class_executor(sample, stage.guider, wrappers).execute
    return sample
