"""TeaCache's arithmetic: tables, distances, the plan, the kept residuals."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any

import comfy.model_prefetch
import numpy
import pytest
import torch
from hosting import module

teacache, blocks = module("srd_core.teacache.plan"), module("srd_core.teacache.blocks")
Residuals = module("srd_core.teacache.run").Residuals

TABLES = [*teacache.WAN_T2V, teacache.WAN_I2V_480P, teacache.WAN_I2V_720P, *teacache.COGVIDEOX, teacache.COGVIDEOX_1_5]
# What the embeddings vary around, and so how large their relative change is: each fit is meant for another range.
LEVELS = (2.0, 2.4, 3.0, 4.0, 8.0, 16.0, 32.0)


@cache
def embeddings(steps: int, shift: float, level: float = 4.0) -> torch.Tensor:
    """[steps, dim] that change with the timestep as a Wan's do: a smooth function of its sinusoidal embedding."""
    linear = 1 - torch.arange(steps, dtype=torch.float64) / steps
    timesteps = 1000 * shift * linear / (1 + (shift - 1) * linear)
    frequencies = torch.pow(10000.0, -torch.arange(128, dtype=torch.float64) / 128)
    angles = timesteps[:, None] * frequencies
    weights = torch.randn(256, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([angles.cos(), angles.sin()], 1) @ weights / 16 + level


@cache
def upstream_changes(steps: int, shift: float, level: float) -> list[float]:
    """By how much each of these embeddings differs from the one before."""
    pairs = itertools.pairwise(embeddings(steps, shift, level))
    return [float((now - before).abs().mean() / before.abs().mean()) for before, now in pairs]


def upstream_plan(
    changes: list[float], coefficients: tuple[float, ...], threshold: float, ret_steps: bool
) -> list[bool]:
    """The published algorithm for one of the two conds, written from its description.

    Accumulate the rescaled change against the step before; compute when it reaches the threshold, and the first (five)
    and without ret steps the last.
    """
    polynomial = numpy.poly1d(coefficients)
    steps, accumulated, plan = len(changes) + 1, 0.0, [False]
    first, last = (5, steps) if ret_steps else (1, steps - 1)
    for cnt in range(1, steps):
        if cnt < first or cnt >= last:
            should_calc = True
        else:
            accumulated += float(polynomial(changes[cnt - 1]))
            should_calc = not accumulated < threshold
        if should_calc:
            accumulated = 0.0
        plan.append(not should_calc)
    return plan


@pytest.mark.parametrize("form", teacache.FORMS)
@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_the_plan_is_upstreams_where_no_guard_is_needed(table: Any, form: str) -> None:
    """The guards: negative values count as zero, at most MAX_REUSES in a row, the last step computed in both forms."""
    coefficients = table.coefficients(form)
    reused = set()
    for steps, shift, level in itertools.product((50, 30, 20), (3.0, 5.0, 8.0), LEVELS):
        d, changes = teacache.distances(embeddings(steps, shift, level)), upstream_changes(steps, shift, level)
        if min(teacache.polynomial(coefficients, x) for x in d) < 0:
            continue
        for threshold in (0.05, 0.08, 0.14, 0.2, 0.3):
            theirs = upstream_plan(changes, coefficients, threshold, form == "e0")
            if longest(theirs) <= teacache.MAX_REUSES:
                ours = teacache.reuse_plan(teacache.growth(d, coefficients), threshold, 5 if form == "e0" else 1)
                assert ours == [*theirs[:-1], False]
                reused |= {(steps, shift)} if any(ours) else set()
    assert len(reused) == 9, "somewhere nothing was compared"


def longest(plan: list[bool]) -> int:
    """The most reuses in a row."""
    return max(len(run) for run in "".join("r" if reuse else " " for reuse in plan).split(" "))


def test_polynomials_are_the_published_ones_from_the_highest_power() -> None:
    assert teacache.polynomial((2.0, -3.0, 5.0), 10.0) == 175.0
    by_name = {t.name: t for t in TABLES}
    # computed values of the facts page: 1.3B .138 at 0, .042 at .02; 14B -13.0 at 0
    assert teacache.polynomial(by_name["Wan 2.1 t2v 1.3B"].e, 0.0) == pytest.approx(0.138, abs=5e-4)
    assert teacache.polynomial(by_name["Wan 2.1 t2v 1.3B"].e, 0.02) == pytest.approx(0.042, abs=1e-3)
    assert teacache.polynomial(by_name["Wan 2.1 t2v 14B"].e, 0.0) == pytest.approx(-13.02, abs=1e-2)
    assert teacache.polynomial(by_name["Wan 2.1 t2v 14B"].e0, 0.15) == pytest.approx(-39, abs=1)


def test_distances_are_relative_l1_changes_of_neighbours() -> None:
    m = torch.tensor([[1.0, -1.0], [2.0, -1.0], [2.0, -1.0]])
    assert teacache.distances(m) == [0.5, 0.0]


def test_negative_polynomial_values_count_as_nothing_and_never_pay_for_later_steps() -> None:
    negative_then_large = teacache.growth([0.0] * 3 + [1.0] * 6, (2.0, -1.0))  # 2 d - 1: -1, then 1
    plan = teacache.reuse_plan(negative_then_large, threshold=0.5)
    assert plan == [False, True, True, True] + [False] * 6


def test_reuses_in_a_row_are_capped_and_counting_starts_anew_after_each() -> None:
    plan = teacache.reuse_plan([0.0] * 20, threshold=0.1)
    cap = teacache.MAX_REUSES
    assert plan == ([False] + [True] * cap) * 3 + [False, True, False]
    assert sum(plan[-2:]) == 1 and not plan[-1]


def test_a_stage_of_fewer_than_5_steps_reuses_nothing() -> None:
    for steps in (1, 2, 3, 4):
        assert teacache.reuse_plan([0.0] * (steps - 1), 10.0) == [False] * steps
    assert any(teacache.reuse_plan([0.0] * 4, 10.0))


@pytest.mark.parametrize(
    ("dim", "i2v", "pixels", "name", "says"),
    [
        (1536, False, 60 * 104, "Wan 2.1 t2v 1.3B", ""),
        (5120, False, 60 * 104, "Wan 2.1 t2v 14B", ""),
        (5120, True, 60 * 104, "Wan 2.1 i2v 480p", ""),
        (5120, True, 104 * 60, "Wan 2.1 i2v 480p", ""),
        (5120, True, 90 * 160, "Wan 2.1 i2v 720p", ""),
        (1536, True, 60 * 104, "Wan 2.1 t2v 1.3B", "image-to-video"),
        (192, False, 256, "Wan 2.1 t2v 1.3B", "192 wide"),
        (3072, False, 60 * 104, "Wan 2.1 t2v 14B", "3072 wide"),
    ],
    ids=["1.3B", "14B", "480p", "tall", "720p", "1.3B i2v", "192", "3072"],
)
def test_the_table_follows_the_models_shape_and_says_when_it_is_not_the_models_own(
    dim: int, i2v: bool, pixels: int, name: str, says: str
) -> None:
    table, note = teacache.wan_table(dim, i2v, pixels)
    assert table.name == name
    assert (says in note) if says else note == ""


@pytest.mark.parametrize(
    ("dim", "frame_patch", "name", "says"),
    [
        (1920, 1, "CogVideoX 2B", ""),
        (3072, 1, "CogVideoX 5B", ""),
        (3072, 2, "CogVideoX 1.5 5B", ""),
        (192, 1, "CogVideoX 2B", "192 wide"),
    ],
    ids=["2B", "5B", "1.5", "192"],
)
def test_the_table_of_a_cogvideox_follows_its_width_and_patch(dim: int, frame_patch: int, name: str, says: str) -> None:
    table, note = teacache.cogvideox_table(dim, frame_patch)
    assert table.name == name
    assert (says in note) if says else note == ""
    assert table.coefficients("e0") == table.coefficients("e"), "this family has one form"


def test_residuals_of_different_shapes_are_not_put_together_and_all_can_be_dropped() -> None:
    kept = Residuals()
    kept.keep(["a"], torch.zeros(2, 3, 4))
    kept.keep(["b"], torch.zeros(2, 5, 4))
    assert kept.recall(["a", "b"], 4) is None and kept.recall(["a"], 2) is not None and len(kept) == 2
    kept.clear()
    assert len(kept) == 0


# --- the memory that newer hosts give out again -----------------------------------------------------------------------


class Watched:
    """A stand-in for a tensor that says what is done with it."""

    def __init__(self, note: Any) -> None:
        self.note = note

    def clone(self) -> Watched:
        self.note("cloned")
        return self

    def __sub__(self, _: Watched) -> Watched:
        self.note("subtracted")
        return self


def test_residuals_are_taken_while_the_hosts_malloc_graph_is_paused_but_blocks_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, bool]] = []
    paused: list[int] = []

    @contextlib.contextmanager
    def pause_malloc_graph(sync: bool = False) -> Iterator[None]:
        paused.append(1)
        yield
        paused.pop()

    def note(what: str) -> None:
        seen.append((what, bool(paused)))

    def block(args: dict[str, Any]) -> dict[str, Any]:
        note("block")
        return args

    monkeypatch.setattr(comfy.model_prefetch, "pause_malloc_graph", pause_malloc_graph, raising=False)
    replaced = blocks.replacements(2, {}, None, lambda _: note("kept"))
    for i in range(2):
        replaced["double_block", i]({"img": Watched(note)}, {"original_block": block})
    assert seen == [("cloned", True), ("block", False), ("block", False), ("subtracted", True), ("kept", True)]


def test_a_host_without_a_malloc_graph_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(comfy.model_prefetch, "pause_malloc_graph", raising=False)
    with blocks.pause_malloc_graph():
        pass
