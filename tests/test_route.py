"""Who runs which step: legs and what ends them, on hand-made schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from comfy.model_sampling import CONST, EPS, ModelSamplingDiscrete, ModelSamplingDiscreteFlow
from comfy.samplers import calculate_sigmas
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hosting import module

criterion, levels, route_module = (module(f"srd_core.{name}") for name in ("criterion", "levels", "route"))
Pair, Route, Switch = route_module.Pair, route_module.Route, route_module.Switch
SKETCH, RENDER = route_module.SKETCH, route_module.RENDER


def two_legs(switch: Any) -> Any:
    return Pair(SKETCH, RENDER, switch)


def stages(route: Any) -> list[str]:
    """Who runs each step."""
    return [(route.turn(step) and route.in_charge) or route.in_charge for step in range(len(route.sigmas))]


def uniform(steps: int, first: float = 1.0) -> list[float]:
    """The places of ``steps`` uniform timesteps from ``first`` on."""
    return [first * (1 - i / steps) for i in range(steps)]


def sigmas_of(places: Sequence[float], shift: float = levels.SHIFT) -> list[float]:
    return [shift * u / (1 + (shift - 1) * u) for u in places]


def hands_over(falls: Sequence[float | None], places: Sequence[float], **settings: object) -> Any:
    """(steps, reason) of the hand-over in a run whose criterion says ``falls`` after each step; None: never."""
    route = Route(two_legs(Switch(**settings)), sigmas_of(places), places)
    for step in range(len(places)):
        if turn := route.turn(step):
            return step, turn.reason
        route.criterion.fall = [falls[step]] if step < len(falls) else None
        route._look(step)
    return None


STEEP, FLAT = [1.0] * 100, [0.001] * 50  # never settled, always
HAND_OVERS: dict[str, tuple[list[float], dict[str, Any], Any]] = {
    "held before it was allowed to": (FLAT, {}, (6, "earliest")),
    "holds for the first time when allowed": ([1.0] * 5 + [0.001], {}, (6, "criterion")),
    "holds for the first time": ([1.0] * 9 + [0.001], {}, (10, "criterion")),
    "holds again": ([0.001] * 3 + [1.0] * 6 + [0.001], {}, (10, "criterion")),
    "max_step before switch_sigma": (STEEP, {"max_step": 12}, (12, "latest")),
    "max_step after switch_sigma": (STEEP, {"max_step": 30}, (30, "latest")),
    "latest before earliest": (STEEP, {"max_step": 3, "fix_step": 5}, (3, "latest")),
    "no limit": (STEEP, {"switch_sigma": 0.0}, None),
    "step": (FLAT, {"mode": "step", "switch_step": 7}, (7, "step")),
    "step 0": ([], {"mode": "step", "switch_step": 0}, (0, "step")),
    "step beyond": ([], {"mode": "step", "switch_step": 99}, None),
}


@pytest.mark.parametrize("name", HAND_OVERS)
def test_a_run_of_50_steps_hands_over_where_and_why_its_settings_say(name: str) -> None:
    falls, settings, expected = HAND_OVERS[name]
    assert hands_over(falls, uniform(50), **settings) == expected


def test_a_run_that_begins_below_switch_sigma_is_the_renders() -> None:
    assert hands_over([], uniform(10, first=0.5), switch_sigma=0.875) == (0, "latest")


# --- adaptive: the earliest moment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fix_step", "first"), [(0, 1), (3, 4), (5, 6), (10, 11)])
def test_at_50_steps_the_earliest_hand_over_is_after_step_fix_step_plus_one(fix_step: int, first: int) -> None:
    assert hands_over([0.001] * 50, uniform(50), fix_step=fix_step)[0] == first


@pytest.mark.parametrize(("steps", "first"), [(8, 2), (20, 3), (30, 4), (50, 6), (100, 11)])
def test_fix_step_is_one_noise_level_at_any_step_count(steps: int, first: int) -> None:
    """A tenth of the way: the first step that begins there may be the last of the sketch."""
    places = uniform(steps)
    assert Switch(fix_step=5).earliest(places) == first
    assert places[first - 1] <= 0.9 < places[first - 2]


def test_fix_step_is_one_noise_level_in_a_slice_of_a_schedule() -> None:
    places = uniform(50)
    found = [Switch(fix_step=5).earliest(part) for part in (places[:20], places[3:], places[10:])]
    assert found == [6, 3, 1] and Switch(fix_step=50).earliest(uniform(20)) == 21  # no step is below its level


# --- adaptive: the latest moment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [8, 20, 50, 100])
def test_a_rule_that_never_holds_hands_over_below_switch_sigma(steps: int) -> None:
    places = uniform(steps)
    after, reason = hands_over(STEEP, places, switch_sigma=0.875)
    assert reason == "latest"
    assert sigmas_of(places)[after] < 0.875 <= sigmas_of(places)[after - 1]


# --- the other modes --------------------------------------------------------------------------------------------------


def test_mode_sigma_hands_over_below_switch_sigma() -> None:
    route = Route(two_legs(Switch(mode="sigma", switch_sigma=0.875)), [1.0, 0.875, 0.874, 0.5], uniform(4))
    assert [turn and (turn.to, turn.reason) for turn in map(route.turn, range(4))] == [
        None,
        None,
        (RENDER, "sigma"),
        None,
    ]


# --- legs -------------------------------------------------------------------------------------------------------------


SIX = [1.0, 0.9, 0.8, 0.6, 0.4, 0.2]


def test_a_pair_may_be_the_first_part_of_another() -> None:
    high_low = Pair("high", "low", Switch("sigma", switch_sigma=0.85))
    route = Route(Pair(high_low, "small", Switch("step", switch_step=4)), SIX, uniform(6))
    assert stages(route) == ["high", "high", "low", "low", "small", "small"]
    assert route.final


def test_a_pair_may_be_the_second_part_of_another() -> None:
    small_low = Pair("small", "low", Switch("step", switch_step=4))
    route = Route(Pair("high", small_low, Switch("step", switch_step=2)), SIX, uniform(6))
    assert stages(route) == ["high", "high", "small", "small", "low", "low"]
    assert route.final


def test_the_outer_rule_ends_all_legs_of_its_first_part() -> None:
    whole = Pair(Pair("high", "low", Switch("step", switch_step=5)), "small", Switch("step", switch_step=2))
    assert stages(Route(whole, SIX, uniform(6))) == ["high"] * 2 + ["small"] * 4


def test_a_leg_without_a_step_is_passed_over() -> None:
    inner = Pair("a", "b", Switch("step", switch_step=0))
    assert Route(Pair(inner, "c", Switch("step", switch_step=0)), [1.0], [1.0]).start() == ("c", True)


@pytest.mark.parametrize(
    ("text", "steps"), [("1-3", {1, 2, 3}), (" 1 - 2 ,5", {1, 2, 5}), ("4,4,4-4,", {4}), ("1–2，4、６", {1, 2, 4, 6})]
)
def test_listed_steps_are_read(text: str, steps: set[int]) -> None:
    assert Switch("listed", sketch_steps=text).listed == steps


@pytest.mark.parametrize(
    "text", ["1-", "-3", "5-2", "0", "0-4", "one", "1;2", "1.5", "1-2-3", "9" * 50, "²", " , "], ids=lambda t: t[:5]
)
def test_a_list_that_names_no_steps_is_refused_with_the_part_that_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match="names no step"):
        Switch("listed", sketch_steps=text)


def test_listed_steps_are_the_sketchs_and_every_change_is_told() -> None:
    route = Route(two_legs(Switch("listed", sketch_steps="2-3, 5")), SIX, uniform(6))
    turns = [route.turn(step) for step in range(6)]
    assert [turn and turn.to for turn in turns] == [RENDER, SKETCH, None, RENDER, SKETCH, RENDER]
    assert {turn.reason for turn in turns if turn} == {"listed"}


def test_a_list_is_final_once_nothing_changes_any_more() -> None:
    route = Route(two_legs(Switch("listed", sketch_steps="1-2, 4")), SIX, uniform(6))
    final = []
    for step in range(6):
        route.turn(step)
        final.append(route.final)
    assert final == [False, False, False, False, True, True]


def test_a_part_that_comes_back_does_not_go_by_what_another_stage_showed() -> None:
    inner = Pair("a", "b", Switch(switch_sigma=0.0))
    route = Route(Pair(inner, "c", Switch("listed", sketch_steps="1-3, 9-20")), sigmas_of(uniform(20)), uniform(20))
    for step in range(9):
        route.turn(step)
        route.criterion.note([0.5 - 0.0001 * step], route.places[step])
        route._look(step)
    assert route.in_charge == "a"


def test_a_returning_pair_continues_where_it_was() -> None:
    """A pair inside has handed over once and for all."""
    high_low = Pair("high", "low", Switch("step", switch_step=1))
    route = Route(Pair(high_low, "small", Switch("listed", sketch_steps="1-2, 5")), SIX, uniform(6))
    assert stages(route) == ["high", "low", "small", "small", "low", "small"]


def test_looking_at_the_start_does_not_begin_the_route() -> None:
    route = Route(two_legs(Switch("step", switch_step=0)), [1.0, 0.5], [1.0, 0.5])
    assert route.start() == (RENDER, True)
    assert not route.final


@pytest.mark.parametrize("mode", ["adaptive", "step", "sigma"])
def test_a_schedule_without_a_step_has_a_route(mode: str) -> None:
    assert Route(two_legs(Switch(mode)), [], []).start() == (SKETCH, True)


# --- where noise levels lie -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scheduler"), [(2.0, "simple"), (3.0, "beta"), (5.0, "karras"), (8.0, "beta")])
def test_one_level_of_a_flow_model_has_one_place_in_every_schedule(shift: float, scheduler: str) -> None:
    sampling = ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=shift)
    sampling.__class__ = type("Flow", (ModelSamplingDiscreteFlow, CONST), {})
    sigmas = [float(s) for s in calculate_sigmas(sampling, scheduler, 20)]
    assert levels.places_of(sampling, sigmas) == pytest.approx([s / (5 - 4 * s) for s in sigmas], abs=1e-6)


def test_levels_above_pure_noise_count_as_pure_noise(wan: Any) -> None:
    sampling = wan().get_model_object("model_sampling")
    assert levels.places_of(sampling, [1.5, 1.25, 1.1, 1.0, 0.0]) == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_wans_own_schedule_of_50_steps_is_the_papers(wan: Any) -> None:
    model = ModelSamplingSD3().patch(wan(), 5.0)[0]
    sampling = model.get_model_object("model_sampling")
    sigmas = [float(s) for s in calculate_sigmas(sampling, "simple", 50)]
    assert levels.places_of(sampling, sigmas) == pytest.approx([1 - i / 50 for i in range(51)], abs=1e-3)


def test_other_models_are_measured_by_their_own_timesteps() -> None:
    class Sampling(ModelSamplingDiscrete, EPS):
        pass

    sampling = Sampling()
    sigmas = [float(sampling.sigma(torch.tensor(t))) for t in (999.0, 499.5, 0.0)]
    assert levels.places_of(sampling, [*sigmas, 0.0]) == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-3)


# --- two pairs that change at one step --------------------------------------------------------------------------------


@pytest.mark.parametrize("inner_at", [2, 3], ids=["inner first", "at once"])
@pytest.mark.parametrize(
    ("outer", "inner"), [({"fade": 1.1}, {"render_steps": 2}), ({"render_steps": 2}, {"fade": 1.1})]
)
def test_pairs_that_change_at_once_each_say_how(outer: dict[str, Any], inner: dict[str, Any], inner_at: int) -> None:
    """The small model comes in at step 3, from the outer pair's rule and, inside its second part, the inner one's."""
    within = Pair("low", "small", Switch("step", switch_step=inner_at), **inner)
    whole = Pair("high", within, Switch("step", switch_step=3), **outer)
    turn = next(filter(None, map(Route(whole, sigmas_of(uniform(8)), uniform(8)).turn, range(8))))
    assert (turn.to, turn.pair, turn.fade) == ("small", whole, 1.1)
    assert turn.walker is (whole if outer.get("render_steps") else within)


def test_of_two_fades_that_begin_at_once_the_outer_one_counts() -> None:
    within = Pair("low", "small", Switch("step", switch_step=3), fade=0.5)
    whole = Pair("high", within, Switch("step", switch_step=3), fade=1.1)
    route = Route(whole, sigmas_of(uniform(8)), uniform(8))
    assert [turn.fade for turn in map(route.turn, range(8)) if turn] == [1.1]


def test_nothing_fades_inside_a_part_that_comes_back() -> None:
    within = Pair("high", "low", Switch("step", switch_step=6), fade=1.1)
    whole = Pair(within, "small", Switch("listed", sketch_steps="1-4, 7-8"))
    turns = [turn for turn in map(Route(whole, sigmas_of(uniform(8)), uniform(8)).turn, range(8)) if turn]
    assert [(turn.to, turn.fade) for turn in turns] == [("small", 0.0), ("low", 0.0)]
