"""What a sampler's settings mean, before the run: the page shows it under the node's settings, and asks PLAN for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_sampling
import comfy.samplers

from ..srd_core.checks import check_switch
from ..srd_core.levels import places_of
from ..srd_core.route import FULL_SIZE, LISTED, MOST_STEPS, RENDER, SKETCH, Pair, Switch
from ..srd_core.smaller import check_one_switch
from . import live
from .before_run import KEEP_SCHEDULE, SHIFTS, verdict_on
from .common import defaults, page_only
from .presets import chosen
from .sampler import RULE, as_in_sr_sampler, check_sampling, mode_of, switch_of

PLAN = "/srdiffusion/plan"


def add_route() -> None:
    """Answer POST of {settings, models, render, own_prompts} on PLAN."""
    live.answer_posts(PLAN, answer)


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The plan for a node's settings; with ``problem`` where sketch and render do not fit, and ``note``."""
    models = asked.get("models", [])
    found = plan(asked["settings"], models)
    with page_only("the page is not told whether two models fit"):
        pair = verdict_on(models, asked.get("render", []), bool(asked.get("own_prompts")))
        found |= {name: said for name, said in vars(pair).items() if said}
    return found


def plan(settings: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    """{mode, steps, earliest, latest, sigma, rest} of a run with these widget values, or {mode, steps, problem}.

    Its sketch comes through these nodes ({type, values}, the nearest first). What is not known is missing: values that
    come from another node, and steps that depend on a schedule that is not known. rest: the steps of the render where
    it has its own steps.
    """
    settings = chosen(settings)
    if not settings.keys() >= set(RULE):
        return {"mode": settings.get("switch_mode")}
    found: dict[str, Any] = {"mode": mode_of(settings), "steps": settings.get("steps")}
    try:
        return found | _steps_of_the_stages(settings, models)
    except ValueError as error:
        return found | {"problem": str(error)}


def _steps_of_the_stages(settings: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    """{earliest, latest, sigma, rest} of a plan, as far as known. Raises ValueError for what no run could follow."""
    widgets = defaults(as_in_sr_sampler(*RULE))
    rule: dict[str, Any] = {name: type(default)(settings[name]) for name, default in widgets.items()}
    switch = switch_of(rule | {"sketch_steps": settings.get("sketch_steps")})
    steps = settings.get("steps")
    if not isinstance(steps, int) or not 0 < steps <= MOST_STEPS:
        return {}
    check_sampling(steps, 1.0, 1.0, settings)
    pair = Pair(SKETCH, RENDER, switch, render_steps=int(settings.get("render_steps") or 0))
    between = max(switch.listed, default=0) - len(switch.listed)  # the render's, before the rest
    rest = {"rest": between + pair.render_steps} if pair.render_steps else {}
    small = float(settings.get("sketch_scale") or FULL_SIZE) < FULL_SIZE
    if switch.mode in ("step", LISTED):
        check_switch(pair, [1.0] * steps)
        if small:
            check_one_switch(switch, [1.0] * steps)
        latest = len(switch.listed) or switch.switch_step
        return {"latest": latest} | (rest if latest < steps else {})
    denoise, shift = float(settings.get("denoise", 1.0)), shift_of(models)
    if denoise <= 0:
        raise ValueError("denoise is 0, so no step runs. Raise denoise.")
    if shift is None or steps / denoise > MOST_STEPS:  # so many levels the host makes of it
        return {}
    sigmas, places = schedule(settings, shift)
    if small:
        check_one_switch(switch, sigmas[:-1])
    found = _on_schedule(pair, sigmas, places)
    return found | (rest if found["latest"] < steps else {})


def shift_of(models: list[dict[str, Any]]) -> float | None:
    """The shift of the flow schedule that a MODEL has which comes through these nodes; None where they don't tell."""
    for node in models:
        if node["type"] == SHIFTS:
            shift = node["values"].get("shift")
            return float(shift) if shift else None
        if node["type"] not in KEEP_SCHEDULE:
            return None
    return None


def schedule(settings: dict[str, Any], shift: float) -> tuple[list[float], list[float]]:
    """(noise levels [steps + 1], where the steps begin) of the host's KSampler on a flow model of that shift."""

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        """As the node SHIFTS makes it."""

    sampling = Sampling()
    sampling.set_parameters(shift=shift, multiplier=1000)
    model = SimpleNamespace(get_model_object=lambda name: sampling)
    how = {name: settings[name] for name in ("scheduler", "denoise") if name in settings}
    how["sampler"] = settings.get("sampler_name")
    sigmas = [float(s) for s in comfy.samplers.KSampler(model, settings["steps"], "cpu", **how).sigmas]
    return sigmas, places_of(sampling, sigmas[:-1])


def _on_schedule(pair: Pair, sigmas: list[float], places: list[float]) -> dict[str, Any]:
    """The part of a plan that the schedule decides. Raises ValueError for a rule that has nothing to decide."""
    switch, steps = pair.switch, len(places)
    if switch.mode == "sigma":
        latest = Switch(switch_sigma=switch.switch_sigma).latest(sigmas[:-1])
        return {"latest": latest, "sigma": sigmas[latest]}
    earliest, latest = switch.earliest(places), min(switch.latest(sigmas[:-1]), steps)
    check_switch(pair, places)
    if latest == steps <= earliest:
        raise ValueError(
            f"Never switches, so the sketch runs all steps: adaptive decides from step {earliest} on, and the run has "
            f"{steps}. Lower fix_step, take more steps, or set switch_mode to step."
        )
    if 0 < latest <= earliest:
        limit = "max_step" if switch.max_step else "switch_sigma"
        way = "raise" if switch.max_step else "lower"
        raise ValueError(
            f"Always switches after step {latest}: fix_step lets adaptive decide from step {earliest} on, {limit} ends "
            f"it before. Lower fix_step, {way} {limit}, or set switch_mode to step."
        )
    return {"earliest": min(earliest, latest), "latest": latest, "sigma": sigmas[latest]}
