"""What a stage's network is told of the schedule, and step caches of other packs that go by it."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from runs import ADAPTIVE, Report, sr_model, wrapped

STEPS = 8


def told(model: Any, place: str) -> tuple[Any, list[tuple[float, list[float]]]]:
    """(clone of model, list of (sigma, the levels that are told) of every call, as somebody at ``place`` sees them)."""
    seen: list[tuple[float, list[float]]] = []

    def look(options: dict[str, Any]) -> None:
        seen.append((float(options["sigmas"][0]), options["sample_sigmas"].tolist()))

    def function(apply_model: Any, args: dict[str, Any]) -> Any:
        look(args["c"]["transformer_options"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        look(kwargs.get("transformer_options") or args[5])
        return executor(*args, **kwargs)

    if place == "wrapper":
        return wrapped(model, wrapper, WrappersMP.APPLY_MODEL), seen
    model = model.clone()
    model.set_model_unet_function_wrapper(function)
    return model, seen


@pytest.mark.parametrize("place", ["function", "wrapper"])
def test_the_renders_network_is_told_the_levels_of_its_own_leg(place: str, wan: Any) -> None:
    report, (sketch, at_sketch), (render, at_render) = Report(), told(wan(), place), told(wan(seed=1), place)
    helpers.ksampler(sr_model(sketch, render, 3, report), STEPS)
    levels = pytest.approx(report.sigmas)
    assert [(sigma, seen == levels) for sigma, seen in at_sketch] == [
        (pytest.approx(s), True) for s in report.sigmas[:3]
    ]
    assert all(seen == pytest.approx(report.sigmas[3:]) for _, seen in at_render) and len(at_render) == STEPS - 3
    assert at_render[0][0] == pytest.approx(at_render[0][1][0])


def test_a_sketch_that_comes_back_is_told_its_new_leg(wan: Any) -> None:
    report, (sketch, at_sketch) = Report(), told(wan(), "function")
    helpers.ksampler(sr_model(sketch, wan(seed=1), "1-2, 5", report), STEPS)
    assert [len(seen) for _, seen in at_sketch] == [STEPS + 1, STEPS + 1, STEPS + 1 - 4]


@pytest.mark.parametrize("rule", [3, ADAPTIVE], ids=["step", "adaptive"])
def test_with_steps_of_its_own_the_render_is_told_those(rule: Any, wan: Any) -> None:
    report, (render, at_render) = Report(), told(wan(seed=1), "wrapper")
    helpers.ksampler(sr_model(wan(), render, rule, report, render_steps=4), 20)
    k = report.hand_overs[0].after_step
    assert all(seen == pytest.approx(report.sigmas[k:]) for _, seen in at_render) and len(at_render) == 4


def cached(model: Any) -> Any:
    """A step cache as other packs have them: it begins anew at the first level, and repeats every other step."""
    state: dict[str, Any] = {}

    def function(apply_model: Any, args: dict[str, Any]) -> Any:
        options = args["c"]["transformer_options"]
        if torch.isclose(options["sample_sigmas"][0], options["sigmas"][0]):
            state.clear()
        state["step"] = state.get("step", -1) + 1
        if state["step"] % 2:
            return state["kept"]
        state["kept"] = apply_model(args["input"], args["timestep"], **args["c"])
        return state["kept"]

    model = model.clone()
    model.set_model_unet_function_wrapper(function)
    return model


def test_a_step_cache_on_the_render_gives_one_video_twice_and_takes_another_size(wan: Any) -> None:
    model = sr_model(wan(), cached(wan(seed=1)))
    first = helpers.ksampler(model, STEPS)
    assert torch.equal(helpers.ksampler(model, STEPS), first)
    assert helpers.ksampler(model, STEPS, latent=helpers.empty_latent(side=12)).shape[-1] == 12
    assert torch.equal(helpers.ksampler(model, STEPS), first)
