"""D and its fall (Sec. 3.3, Eq. 3-5) on hand-computed sequences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hosting import module

criterion = module("srd_core.criterion")
Criterion, relative_change = criterion.Criterion, criterion.relative_change


def after(changes: list[float], length: float = 1.0) -> Any:
    """What is known after len(changes) + 1 steps, each ``length`` 50ths long; predictions differ by these ratios."""
    seen, value = Criterion(), 1.0
    for step, change in enumerate([0.0, *changes]):
        value *= 1 + change
        seen.observe(torch.full((1, 4), value), 1 - step * length / 50)
    return seen


# --- D ----------------------------------------------------------------------------------------------------------------


def test_d_of_two_zero_predictions_is_zero_and_from_zero_to_something_is_one() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert relative_change(zero, zero).tolist() == [0.0]
    assert relative_change(one, zero).tolist() == [1.0]


def test_d_of_half_precision_predictions_is_computed_in_float32() -> None:
    before = torch.full((1, 100_000), 60.0, dtype=torch.float16)  # the sum overflows float16
    assert relative_change(before * 1.5, before).tolist() == pytest.approx([math.tanh(0.5)], rel=1e-3)


def test_d_counts_only_what_is_generated() -> None:
    before, now = torch.tensor([[[1.0, 1.0, 5.0, 5.0]]]), torch.tensor([[[1.5, 1.0, 5.0, 5.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert relative_change(now, before, mask).tolist() == pytest.approx([math.tanh(0.5 / 2)])
    assert relative_change(now, before, torch.zeros(1, 1, 4)).tolist() == [0.0]


# --- its fall ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1.0, 2.5, 6.25])
def test_the_fall_is_taken_per_step_of_50(length: float) -> None:
    """Steps twice as long change twice as much, and that change falls four times as much."""
    whole = math.tanh(0.2) - math.tanh(0.15)
    assert after([0.2, 0.15], length).fall == pytest.approx([whole / length**2], rel=1e-5)


def test_the_fall_between_steps_of_different_lengths_is_divided_by_both() -> None:
    seen = Criterion()
    for value, place in ((1.0, 1.0), (1.2, 0.96), (1.2 * 1.15, 0.9)):
        seen.observe(torch.full((1, 4), value), place)
    assert seen.fall == pytest.approx([(math.tanh(0.2) - math.tanh(0.15)) / (2 * 3)], rel=1e-5)


def test_predictions_nearer_than_a_step_of_50_are_not_compared() -> None:
    """100 steps mean what 50 mean: every second one is looked at."""
    fine, coarse = Criterion(), Criterion()
    looked = []
    for step in range(9):
        prediction = torch.full((1, 4), 1 + 0.02 * step)
        looked.append(fine.observe(prediction, 1 - step / 100))
        if step % 2 == 0:
            coarse.observe(prediction, 1 - step / 100)
    assert looked == [True, False] * 4 + [True]
    assert (fine.d, fine.fall) == (coarse.d, coarse.fall)


def test_a_recorded_curve_replays_as_the_run_was() -> None:
    """Also where a run of many steps left out those that are too near: their D is None."""
    seen, replayed = Criterion(), Criterion()
    for step in range(11):
        looked = seen.observe(torch.full((1, 4), 1 + 0.02 * step), 1 - step / 80)
        replayed.note(seen.d if looked else None, 1 - step / 80)
        assert (replayed.d, replayed.fall) == (seen.d, seen.fall)


@pytest.mark.parametrize(
    ("changes", "settled"),
    [
        ([0.10, 0.095], True),  # falls, slowly
        ([0.10, 0.05], False),  # still falls by more than delta
        ([0.05, 0.055], False),  # rises
        ([0.10, 0.05, 0.10, 0.05], False),  # oscillates
        ([1.0, 1.0], False),  # constant: not above 0 (doubling is exact in float32)
        ([0.0, 0.0], False),  # nothing changes at all
        ([0.10], False),  # one D has no fall
        ([], False),
    ],
    ids=["falling", "steep", "rising", "oscillating", "constant", "zero", "one D", "nothing"],
)
def test_settled_when_d_falls_by_less_than_delta(changes: list[float], settled: bool) -> None:
    assert after(changes).settled(0.01) is settled


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_never_settles_and_the_rule_recovers(bad: float) -> None:
    seen = after([0.1, 0.095])
    seen.observe(torch.full((1, 4), bad), 1 - 3 / 50)
    assert not seen.settled(0.01)
    for step, value in enumerate((1.0, 1.1, 1.1 * 1.095), start=4):
        seen.observe(torch.full((1, 4), value), 1 - step / 50)
    assert seen.settled(0.01)


def test_a_batch_settles_when_every_sample_has() -> None:
    def of_batch(second: float) -> Any:
        seen = Criterion()
        for step, (one, other) in enumerate(((1.0, 1.0), (1.1, 1.1), (1.1 * 1.095, 1.1 * second))):
            seen.observe(torch.tensor([[one, one], [other, other]]), 1 - step / 50)
        return seen

    assert not of_batch(1.05).settled(0.01)
    assert of_batch(1.095).settled(0.01)


@pytest.mark.parametrize(("width", "place"), [(8, 0.5), (4, 1 - 2 / 50)], ids=["another size", "the same level"])
def test_what_can_not_be_compared_starts_the_comparison_anew(width: int, place: float) -> None:
    seen = after([0.1, 0.095])
    seen.observe(torch.ones(1, width), place)
    assert seen.d is None and not seen.settled(0.01)


def test_a_step_that_was_not_observed_makes_the_next_one_longer() -> None:
    """Every second prediction of a steady change: the same rate, so the same answer."""
    every, second = Criterion(), Criterion()
    for step in range(9):
        prediction = torch.full((1, 4), 1 + 0.02 * step)
        every.observe(prediction, 1 - step / 50)
        if step % 2 == 0:
            second.observe(prediction, 1 - step / 50)
    assert second.fall == pytest.approx(every.fall, rel=0.25)
