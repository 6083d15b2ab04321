"""The switching rule of Sec. 3.3 (Eq. 3-6) on hand-computed sequences."""

from __future__ import annotations

import math

import pytest
import torch
from hosting import module

criterion = module("srd_core.route")
Switch, SwitchRule, relative_change = criterion.Switch, criterion.Route, criterion.relative_change
SKETCH, RENDER = criterion.SKETCH, criterion.RENDER


def rule_after(changes: list[float], steps: int = 50, **settings: object) -> SwitchRule:
    """A rule that has seen len(changes) + 1 steps, each prediction differing from the last by the given ratio."""
    rule = SwitchRule(Switch(**settings), steps)
    value = 1.0
    rule.observe(torch.full((1, 4), value))
    for change in changes:
        value *= 1 + change
        rule.observe(torch.full((1, 4), value))
    return rule


def test_d_is_tanh_of_the_relative_l1_change():
    before, after = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[2.0, -2.0, 1.0]])
    assert relative_change(after, before).tolist() == pytest.approx([math.tanh(3 / 6)])


def test_d_is_taken_for_every_sample_of_a_batch():
    before, after = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    assert relative_change(after, before).tolist() == pytest.approx([math.tanh(0.5), 0.0])


def test_d_of_two_zero_predictions_is_zero_and_from_zero_to_something_is_one():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert relative_change(zero, zero).tolist() == [0.0]
    assert relative_change(one, zero).tolist() == [1.0]


def test_d_of_half_precision_predictions_is_computed_in_float32():
    before = torch.full((1, 100_000), 60.0, dtype=torch.float16)  # the sum overflows float16
    assert relative_change(before * 1.5, before).tolist() == pytest.approx([math.tanh(0.5)], rel=1e-3)


def test_derivative_is_the_d_before_minus_the_d_now():
    rule = rule_after([0.2, 0.15])
    assert rule.derivative == pytest.approx([math.tanh(0.2) - math.tanh(0.15)], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "settled"),
    [
        ([0.10, 0.095], True),  # falls, slowly
        ([0.10, 0.05], False),  # still falls by more than delta
        ([0.05, 0.055], False),  # rises
        ([0.10, 0.05, 0.10, 0.05], False),  # oscillates
        ([1.0, 1.0], False),  # constant: not above 0 (doubling is exact in float32)
        ([0.0, 0.0], False),  # nothing changes at all
        ([0.10], False),  # one D has no derivative
        ([], False),
    ],
    ids=["falling", "steep", "rising", "oscillating", "constant", "zero", "one D", "nothing"],
)
def test_settled_when_d_falls_by_less_than_delta(changes: list[float], settled: bool):
    assert rule_after(changes, delta=0.01).settled() is settled


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_never_settles_and_the_rule_recovers(bad: float):
    rule = rule_after([0.1, 0.095])
    rule.observe(torch.full((1, 4), bad))
    assert not rule.settled()
    for value in (1.0, 1.1, 1.1 * 1.095):
        rule.observe(torch.full((1, 4), value))
    assert rule.settled()


def test_a_batch_settles_when_every_sample_has():
    rule = SwitchRule(Switch(delta=0.01), 50)
    for first, second in ((1.0, 1.0), (1.1, 1.1), (1.1 * 1.095, 1.1 * 1.05)):
        rule.observe(torch.tensor([[first, first], [second, second]]))
    assert not rule.settled()
    steady = SwitchRule(Switch(delta=0.01), 50)
    for value in (1.0, 1.1, 1.1 * 1.095):
        steady.observe(torch.full((2, 2), value))
    assert steady.settled()


def test_a_change_of_size_starts_the_comparison_anew():
    rule = rule_after([0.1, 0.095])
    rule.observe(torch.ones(1, 8))
    assert rule.d is None and not rule.settled()


@pytest.mark.parametrize("fix_step", [0, 3, 5, 10])
def test_the_earliest_hand_over_is_after_step_fix_step_plus_one(fix_step: int):
    rule = rule_after([0.1, 0.095], fix_step=fix_step)  # settled from here on
    stages = [rule.stage(step, 0.9)[0] for step in range(1, 20)]
    assert stages.index(RENDER) + 1 == fix_step + 1


def test_max_step_bounds_a_rule_that_never_settles_and_says_so():
    rule = rule_after([0.1, 0.2], max_step=12)
    assert rule.stage(11, 0.9) == (SKETCH, "")
    assert rule.stage(12, 0.9) == (RENDER, "max_step")


def test_max_step_bounds_fix_step_too():
    assert rule_after([0.1, 0.2], max_step=3, fix_step=5).stage(3, 0.9) == (RENDER, "max_step")


def test_without_max_step_a_run_of_50_steps_has_no_limit():
    rule = rule_after([0.1, 0.2])
    assert all(rule.stage(step, 0.5)[0] == SKETCH for step in range(1, 50))


@pytest.mark.parametrize(("steps", "latest"), [(1, 1), (2, 2), (4, 3), (8, 5), (20, 12), (49, 30)])
def test_a_short_run_renders_even_if_the_rule_never_settles(steps: int, latest: int):
    rule = rule_after([0.1, 0.2], steps=steps)
    assert rule.stage(latest, 0.5) == (RENDER, "max_step")
    assert rule.stage(latest - 1, 0.5)[0] == SKETCH


@pytest.mark.parametrize(("steps", "used"), [(50, 5), (20, 5), (12, 5), (8, 3), (4, 1), (2, 0)])
def test_fix_step_never_eats_more_than_half_of_a_run(steps: int, used: int):
    assert Switch(fix_step=5).fix_step_for(steps) == used


@pytest.mark.parametrize("steps", [4, 8, 20, 50, 100])
def test_delta_is_set_for_50_steps_and_grows_with_the_square_of_a_steps_length(steps: int):
    longer = 50 / steps  # a step of this run, in steps of a run of 50
    rule = SwitchRule(Switch(delta=0.01), steps)
    for fall, settled in ((0.009, True), (0.011, False)):
        rule.derivative = [fall * longer**2]
        assert rule.settled() is settled


def test_at_50_steps_delta_is_used_as_set():
    assert Switch(delta=0.01).delta_for(50) == 0.01


def test_the_criterion_gives_its_reason():
    assert rule_after([0.1, 0.095]).stage(6, 0.9) == (RENDER, "criterion")


def test_mode_step_hands_over_after_switch_step():
    rule = SwitchRule(Switch(mode="step", switch_step=7), 50)
    assert rule.stage(6, 0.9) == (SKETCH, "")
    assert rule.stage(7, 0.9) == (RENDER, "step")


def test_mode_sigma_hands_over_below_switch_sigma():
    rule = SwitchRule(Switch(mode="sigma", switch_sigma=0.875), 50)
    assert rule.stage(3, 0.875) == (SKETCH, "")
    assert rule.stage(4, 0.874) == (RENDER, "sigma")


@pytest.mark.parametrize("delta", [0.0, -0.01, math.nan, math.inf])
def test_a_delta_that_is_not_above_zero_is_refused_with_what_to_set(delta: float):
    with pytest.raises(ValueError, match=r"delta is .*0\.01"):
        Switch(delta=delta)


def test_an_unknown_mode_is_refused_with_the_modes():
    with pytest.raises(ValueError, match="adaptive, step, sigma"):
        Switch(mode="auto")


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="fix_step is -1"):
        Switch(fix_step=-1)
