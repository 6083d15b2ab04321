"""What holds for every input: the switching rule, the maps between latent spaces, the step counter, the skip plan."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from drawn import LONG, cases, finite, wild
from hosting import module
from hypothesis import assume, given
from runs import Switch
from test_faults import other_format

criterion, route, latent = module("srd_core.criterion"), module("srd_core.route"), module("srd_core.latent")
teacache, StepCounter = module("srd_core.teacache.plan"), module("srd_core.steps").StepCounter
LatentMap, Route, SKETCH, RENDER = latent.LatentMap, route.Route, route.SKETCH, route.RENDER

pytestmark = LONG


@st.composite
def predictions(draw: st.DrawFn, count: int | None = None, values: Any = None) -> list[torch.Tensor]:
    """Predictions of consecutive steps: [B, n], one shape and dtype."""
    batch, width = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    count = count or draw(st.integers(1, 12))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    size = batch * width * count
    numbers = draw(st.lists(finite(-6e4, 6e4) if values is None else values, min_size=size, max_size=size))
    return list(torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(count, batch, width))


# --- the rule ---------------------------------------------------------------------------------------------------------


@cases(2500)
@given(predictions(count=2))
def test_d_lies_between_0_and_1_and_agrees_with_python_numbers(pair: list[torch.Tensor]) -> None:
    before, after = pair
    found = criterion.relative_change(after, before).tolist()
    for d, p, q in zip(found, after.double().tolist(), before.double().tolist()):
        change, size = sum(abs(a - b) for a, b in zip(p, q)), sum(map(abs, q))
        expected = 0.0 if change == 0 else math.tanh(change / size) if size else 1.0
        assert 0 <= d <= 1
        assert d == pytest.approx(expected, rel=1e-3, abs=1e-6)


@cases(1000)
@given(predictions(count=2), st.integers(-10, 10))
def test_d_does_not_depend_on_the_scale_of_the_latents(pair: list[torch.Tensor], power: int) -> None:
    before, after = (p.double().float() for p in pair)
    tiny = torch.finfo(torch.float32).tiny * 2**12
    assume(all(v == 0 or abs(v) > tiny for p in (before, after, before - after) for v in p.flatten().tolist()))
    d = criterion.relative_change(after, before)
    assert torch.equal(criterion.relative_change(after * 2.0**power, before * 2.0**power), d)


switches = st.builds(
    Switch,
    mode=st.sampled_from(route.MODES),
    delta=st.floats(1e-6, 2.0),
    fix_step=st.integers(0, 60),
    max_step=st.integers(0, 60),
    switch_step=st.integers(0, 60),
    switch_sigma=finite(-1, 20),
)


@cases(1000)
@given(switches, st.integers(1, 120), st.floats(0.1, 20), st.lists(st.lists(wild, min_size=1, max_size=3), max_size=12))
def test_a_run_hands_over_at_most_once_within_its_bounds_and_for_a_reason(
    switch: Any, steps: int, highest: float, shown: list[list[float]]
) -> None:
    """Whatever the predictions are, also where they are not finite or change their size."""
    sigmas = [highest * (1 - step / steps) for step in range(steps)]
    places = [1 - step / steps for step in range(steps)]
    way = Route(route.Pair(SKETCH, RENDER, switch), sigmas, places)
    earliest, latest = switch.earliest(places), switch.latest(sigmas)
    assert 1 <= earliest <= steps + 1
    switched = None
    for step in range(steps):
        if turn := way.turn(step):
            assert (turn.to, way.final) == (RENDER, True)
            switched, reason = step, turn.reason
            break
        assert way.in_charge == SKETCH
        if step < len(shown):
            way.observe(step, torch.tensor([shown[step]]))
        settled = way.criterion.settled(switch.delta)
    if switched is None:
        assert switch.mode != "adaptive" or latest >= steps
        return
    assert way.final
    if switch.mode == "adaptive":
        assert reason in ("criterion", "earliest", "latest") and switched <= latest
        assert (reason == "latest") == (switched == latest)
        assert reason == "latest" or (switched >= earliest and settled)
        assert reason != "earliest" or switched == earliest
    elif switch.mode == "step":
        assert reason == "step" and switched == switch.switch_step
    else:
        assert reason == "sigma" and sigmas[switched] < switch.switch_sigma
        assert all(sigma >= switch.switch_sigma for sigma in sigmas[:switched])


@cases(1000)
@given(predictions(values=wild))
def test_what_the_rule_reports_is_a_number_of_every_sample_or_nothing(shown: list[torch.Tensor]) -> None:
    seen = criterion.Criterion()
    for i, prediction in enumerate(shown):
        seen.observe(prediction, 1 - i / 50)
        assert (seen.d is None) == (i < 1) and (seen.fall is None) == (i < 2)
        for values, low, high in ((seen.d, 0, 1), (seen.fall, -1.01, 1.01)):
            if values is not None:
                assert len(values) == len(prediction)
                assert all(low <= v <= high for v in values if not math.isnan(v))
        if seen.settled(0.01):
            assert all(0 < v < 0.01 for v in seen.fall)
    if all(p.float().abs().max() < 1e30 for p in shown[-3:]):  # NaN compares false
        assert all(map(math.isfinite, (seen.d or []) + (seen.fall or [])))


numbers = st.one_of(wild, st.integers(-3, 100).map(float))


@cases(2500)
@given(
    st.sampled_from([*route.MODES, "auto", ""]),
    numbers,
    st.integers(-2, 9),
    st.integers(-2, 9),
    st.integers(-2, 9),
    numbers,
)
def test_switch_settings_are_refused_exactly_where_no_run_could_follow_them(
    mode: str, delta: float, fix_step: int, max_step: int, switch_step: int, switch_sigma: float
) -> None:
    followable = mode in route.MODES and min(fix_step, max_step, switch_step) >= 0
    followable &= math.isfinite(delta) and math.isfinite(switch_sigma) and (mode != "adaptive" or delta > 0)
    asked = (mode, delta, fix_step, max_step, switch_step, switch_sigma)
    if followable:
        Switch(*asked)
    else:
        with pytest.raises(ValueError, match=r"(switch_mode|delta|_step|switch_sigma) is .*[;.]"):
            Switch(*asked)


# --- the maps between latent spaces -----------------------------------------------------------------------------------

ratios = st.floats(1e-3, 1e3)
maps = st.builds(LatentMap, ratio=ratios, kind=st.sampled_from([latent.FLOW, latent.VARIANCE_EXPLODING]))


@cases(2500)
@given(maps, finite(-10, 10), finite(-10, 10), st.floats(0, 1))
def test_the_render_is_called_with_its_own_latent_at_its_own_noise_level(
    space: Any, clean: float, noise: float, sigma: float
) -> None:
    """X of the sketch's z and eps becomes x of the render's z (ratio times as large) and the same eps."""
    level = torch.tensor(sigma, dtype=torch.float64)

    def noised(scale: float, at: torch.Tensor) -> torch.Tensor:
        kept = 1 - at if space.kind == latent.FLOW else 1.0
        return kept * scale * clean + at * noise

    x, at = space.to_render(noised(1.0, level).reshape(1, 1), level.reshape(1))
    assert torch.isfinite(x).all() and torch.isfinite(at).all()
    assert x.item() == pytest.approx(noised(space.ratio, at).item(), rel=1e-9, abs=1e-9 * (1 + space.ratio))
    back = space.clean_to_sketch(space.clean_to_render(x))
    assert back.item() == pytest.approx(x.item(), rel=1e-12)


@cases(1500)
@given(maps, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_schedule_keeps_its_order_its_ends_and_has_a_way_back(space: Any, levels: list[float]) -> None:
    ours = torch.tensor([1.0, *sorted(levels, reverse=True), 0.0], dtype=torch.float64)
    theirs = space.sigmas(ours)
    assert torch.isfinite(theirs).all() and (theirs[:-1] >= theirs[1:] - 1e-15).all() and theirs[-1] == 0
    assert space.kind != latent.FLOW or theirs[0] == pytest.approx(1, rel=1e-12)
    back = LatentMap(1 / space.ratio, space.kind).sigmas(theirs)
    assert torch.allclose(back, ours, rtol=1e-9, atol=1e-12)


@cases(1000)
@given(wild, st.sampled_from([latent.FLOW, latent.VARIANCE_EXPLODING, "DDPM", ""]))
def test_a_map_is_refused_exactly_where_its_ratio_or_its_kind_of_noise_has_none(ratio: float, kind: str) -> None:
    if math.isfinite(ratio) and ratio > 0 and kind in (latent.FLOW, latent.VARIANCE_EXPLODING):
        assert LatentMap(ratio, kind).is_identity == (ratio == 1)
    else:
        with pytest.raises(ValueError, match="No map between latents"):
            LatentMap(ratio, kind)


@cases(300)
@given(
    st.sampled_from([16, 48]), st.sampled_from([2, 3]), st.sampled_from([1.0, 0.7, 1.5]), st.booleans(), st.booleans()
)
def test_two_models_fit_exactly_where_nothing_but_the_scale_differs(
    two_models: tuple[Any, Any], channels: int, dimensions: int, scale: float, compression: bool, statistics: bool
) -> None:
    sketch, render = two_models
    facts: dict[str, Any] = {"latent_channels": channels, "latent_dimensions": dimensions, "scale_factor": scale}
    facts |= {"spacial_downscale_ratio": 5} if compression else {}
    facts |= {"latents_mean": torch.ones(16)} if statistics else {}
    theirs = other_format(render, **facts)
    if (channels, dimensions, compression, statistics) == (16, 3, False, False):
        assert latent.check_pair(sketch, theirs).ratio == scale
    else:
        with pytest.raises(ValueError, match="so they do not fit together"):
            latent.check_pair(sketch, theirs)


@pytest.fixture(scope="module")
def two_models(wan: Callable[..., Any]) -> tuple[Any, Any]:
    return wan(), wan(seed=1)


# --- steps ------------------------------------------------------------------------------------------------------------


@cases(1000)
@given(st.lists(st.floats(0.001, 80), min_size=1, max_size=30, unique_by=lambda s: round(s, 2)), st.integers(0, 3))
def test_any_number_of_calls_between_two_levels_is_one_step(levels: list[float], more: int) -> None:
    """The further calls lie between a step's level and the next one; the callback follows the first call."""
    schedule = [*sorted(levels, reverse=True), 0.0]
    counter = StepCounter(schedule)
    for i, (level, following) in enumerate(itertools.pairwise(schedule)):
        for k in range(more + 1):
            sigma = level + (following - level) * k / (more + 1)
            assert counter.on_call(sigma if counter.needs_sigma else None) == (k == 0) and counter.step == i
            if k == 0:
                counter.on_callback(i)


@cases(1000)
@given(st.lists(st.floats(0.001, 80), min_size=1, max_size=30), wild)
def test_every_noise_level_belongs_to_a_step_of_the_run(levels: list[float], sigma: float) -> None:
    counter = StepCounter([*sorted(levels, reverse=True), 0.0])
    assert 0 <= counter.interval(sigma) < counter.steps
    counter.on_call(sigma)
    assert 0 <= counter.step < counter.steps


# --- TeaCache ---------------------------------------------------------------------------------------------------------

changes = st.lists(st.one_of(st.floats(0, 2), wild), max_size=60)
coefficients = st.lists(st.one_of(finite(-1e4, 1e4), wild), min_size=1, max_size=5)


@cases(2500)
@given(changes, coefficients, st.one_of(st.just(0.0), st.floats(0, 2)), st.integers(0, 8))
def test_a_skip_plan_computes_what_it_must_and_reuses_only_below_the_threshold(
    d: list[float], poly: list[float], threshold: float, first: int
) -> None:
    plan = teacache.reuse_plan(teacache.growth(d, poly), threshold, first)
    assert len(plan) == len(d) + 1 and not plan[0] and not plan[-1] and not any(plan[:first])
    assert threshold or not any(plan)
    assert len(plan) >= teacache.MIN_STEPS or not any(plan)
    in_a_row, total = 0, 0.0
    for step, reuse in enumerate(plan):
        if step:
            total += max(teacache.polynomial(poly, d[step - 1]), 0.0)
        if reuse:
            assert total < threshold
        in_a_row = in_a_row + 1 if reuse else 0
        total = total if reuse else 0.0
        assert in_a_row <= teacache.MAX_REUSES


@cases(500)
@given(st.integers(1, 20000), st.booleans(), st.integers(1, 10**6))
def test_every_width_and_size_of_wan_has_coefficients(dim: int, image: bool, pixels: int) -> None:
    table, note = teacache.wan_table(dim, image, pixels)
    assert len(table.e) == len(table.e0) == 5 and all(map(math.isfinite, table.e + table.e0))
    assert bool(note) == (table.dim != dim or (image and table in teacache.WAN_T2V))


@cases(500)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_residuals_are_given_back_to_the_conds_they_were_kept_for(rows: list[int], data: st.DataObject) -> None:
    kept = module("srd_core.teacache.run").Residuals()
    batch, keys = rows[0], list(range(len(rows)))
    whole = torch.arange(len(keys) * batch * 2.0).reshape(len(keys) * batch, 1, 2)
    kept.keep(keys, whole)
    wanted = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    count = data.draw(st.integers(1, 12))
    found = kept.recall(wanted, count)
    if all(key in keys for key in wanted) and count == batch * len(wanted):
        assert torch.equal(found, torch.cat([whole[key * batch : (key + 1) * batch] for key in wanted]))
    else:
        assert found is None
