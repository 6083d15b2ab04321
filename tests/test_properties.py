"""What holds for every input: the switching rule, the maps between latent spaces, the step counter, the skip plan, the
report and the hand-over's file, on thousands of drawn cases. The draws are the same in every run.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hosting import module
from hypothesis import HealthCheck, Phase, assume, configuration, given, settings
from test_faults import other_format

configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "srdiffusion-hypothesis"))

criterion, route, latent = module("srd_core.criterion"), module("srd_core.route"), module("srd_core.latent")
handover, record_module = module("srd_core.handover.file"), module("srd_core.handover.record")
figures, plot = module("srd_core.report.figures"), module("srd_core.report.plot")
report_module, steps_module = module("srd_core.report.data"), module("srd_core.steps")
teacache = module("srd_core.teacache.plan")
Report, Step, HandOver, Switch = report_module.Report, report_module.Step, report_module.HandOver, route.Switch
StageReport, VERSION_1 = (
    report_module.StageReport,
    (Path(__file__).parent / "data" / "report_version_1.json").read_text("utf-8"),
)
LatentMap, Route, StepCounter = latent.LatentMap, route.Route, steps_module.StepCounter
SKETCH, RENDER = route.SKETCH, route.RENDER

pytestmark = pytest.mark.long

DRAWN: list[int] = []


def cases(count: int, slow: bool = False) -> Callable[[Any], Any]:
    """``count`` examples for the test below it. ``slow``: a case that fails is shown as it is, not made smaller first."""
    DRAWN.append(count)
    phases = [Phase.explicit, Phase.generate] if slow else list(Phase)
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def finite(low: float = -1e6, high: float = 1e6) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


wild = st.floats(allow_nan=True, allow_infinity=True)


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
            assert (turn.to, turn.forward, turn.last) == (RENDER, True, True)
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
def test_the_render_is_called_with_what_its_own_latent_would_be_at_its_own_noise_level(
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
def test_a_sampler_with_any_number_of_calls_a_step_between_its_levels_is_counted_by_steps(
    levels: list[float], more: int
) -> None:
    """The further calls lie between a step's level and the next one; the callback follows the first call."""
    schedule = [*sorted(levels, reverse=True), 0.0]
    counter = StepCounter(schedule)
    for i, (level, following) in enumerate(zip(schedule, schedule[1:])):
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
    plan = teacache.skip_plan(d, poly, threshold, first)
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


# --- the report -------------------------------------------------------------------------------------------------------

NAMES = [SKETCH, RENDER, "third"]
named = st.sampled_from(NAMES)
maybe = st.one_of(st.none(), finite())
words = st.text(max_size=12)
plans = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"threshold": finite(0, 1), "table": words},
        optional={
            "growth": st.lists(finite(0, 9), max_size=14),
            "reuse": st.lists(st.booleans(), max_size=12),
            "first_step": st.integers(0, 9),
            "form": st.sampled_from(["e", "e0"]),
        },
    ),
)
reports = st.builds(
    Report,
    status=st.sampled_from(["not run", "running", "done", "interrupted", "failed"]),
    stages=st.tuples(
        *(
            st.builds(
                StageReport,
                st.just(name),
                words,
                st.integers(0, 99),
                finite(0, 1e3),
                finite(0, 1e3),
                plans,
                st.integers(0, 1 << 40),
                st.integers(0, 1 << 40),
            )
            for name in NAMES
        )
    ).map(list),
    switch=st.fixed_dictionaries({"mode": st.sampled_from(route.MODES), "delta": finite(0, 1)}),
    earliest=st.integers(0, 99),
    latest=st.integers(0, 99),
    sampler=words,
    sampler_node=words,
    error=words,
    notes=st.lists(words, max_size=2),
    shape=st.lists(st.integers(1, 99), max_size=5),
    sigmas=st.lists(finite(0, 1e3), max_size=12),
    steps=st.lists(
        st.builds(
            Step,
            st.integers(1, 99),
            finite(0, 1e3),
            named,
            seconds=maybe,
            d=maybe,
            fall=maybe,
            fall_low=maybe,
            reused=st.booleans(),
        ),
        max_size=8,
    ),
    hand_overs=st.lists(
        st.builds(
            HandOver,
            st.integers(0, 99),
            named,
            words,
            finite(),
            finite(0, 100),
            maybe,
            maybe,
            finite(0, 1e3),
            fade=st.lists(finite(0, 1), max_size=4),
        ),
        max_size=3,
    ),
    total_seconds=finite(0, 1e4),
    given_steps=st.integers(0, 99),
    render_steps=st.integers(0, 99),
    device_bytes=st.integers(0, 1 << 40),
    small_shape=st.lists(st.integers(1, 99), max_size=5),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), wild, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def usable(report: Any, picture: bool = False) -> None:
    """Whatever is taken for a report can be shown and written again."""
    assert isinstance(module("srd_core.report.text").summarize(report), str)
    shown = figures.figures(report)
    assert shown["speed_up"] is None or shown["speed_up"] >= 0
    json.dumps(shown, allow_nan=False)
    assert Report.from_json(report.to_json()) == report
    if picture:
        plot.draw(report)


@cases(1000)
@given(reports)
def test_every_report_survives_json_and_can_be_summed_up(report: Any) -> None:
    assert Report.from_json(report.to_json()) == report
    usable(report)


@cases(40, slow=True)
@given(reports)
def test_every_report_can_be_drawn(report: Any) -> None:
    plot.draw(report)


@cases(1500)
@given(
    st.one_of(
        st.text(max_size=60),
        json_values.map(json.dumps),
        st.integers(1, 10**5).map("[".__mul__),
        st.builds(
            lambda version, value: json.dumps({"version": version, "steps": value}),
            st.sampled_from([1, 2]),
            json_values,
        ),
    )
)
def test_text_that_is_no_report_is_refused_with_a_sentence(text: str) -> None:
    try:
        usable(Report.from_json(text))
    except ValueError as error:
        assert "report" in str(error)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in JSON data, outermost first."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [p for key, value in inner for p in places(value, (*path, key))]


def damage(facts: Any, data: st.DataObject) -> None:
    """Put one value of any kind anywhere into JSON data, or take one out."""
    *path, last = data.draw(st.sampled_from(places(facts)))
    for key in path:
        facts = facts[key]
    if data.draw(st.booleans()):
        facts[last] = data.draw(json_values)
    else:
        del facts[last]


@cases(1000, slow=True)
@given(st.data())
def test_a_damaged_report_of_version_1_is_refused_with_a_sentence_or_still_usable(data: st.DataObject) -> None:
    damaged = json.loads(VERSION_1)
    damage(damaged, data)
    try:
        usable(Report.from_json(json.dumps(damaged)))
    except ValueError as error:
        assert "report" in str(error)


@cases(1500, slow=True)
@given(reports, st.data())
def test_a_damaged_report_is_refused_with_a_sentence_or_still_usable(report: Any, data: st.DataObject) -> None:
    damaged = asdict(report)
    damage(damaged, data)
    try:
        usable(Report.from_json(json.dumps(damaged)), picture=data.draw(st.integers(0, 40)) == 40)
    except ValueError as error:
        assert "report" in str(error)


def test_every_field_of_a_report_is_drawn_from() -> None:
    """A field that is added to the report without its draws here stays at its default and is only seen as damaged."""
    told = {
        "status",
        "stages",
        "switch",
        "earliest",
        "latest",
        "sampler",
        "sampler_node",
        "shape",
        "sigmas",
        "steps",
        "hand_overs",
        "total_seconds",
        "notes",
        "error",
        "version",
        "given_steps",
        "render_steps",
        "device_bytes",
        "small_shape",
    }
    assert {f.name for f in fields(Report)} == told


# --- another delta ----------------------------------------------------------------------------------------------------


@st.composite
def curves(draw: st.DrawFn) -> tuple[Any, list[list[float] | None], float]:
    """(switch, the fall of D at every step for each sample, another delta), in and around the band."""
    steps, batch = draw(st.integers(2, 30)), draw(st.integers(1, 3))
    fall = st.one_of(st.none(), st.lists(st.floats(-0.0625, 0.125, width=32), min_size=batch, max_size=batch))
    falls = [None, None, *draw(st.lists(fall, min_size=steps - 2, max_size=steps - 2))]
    switch = Switch(
        "adaptive",
        draw(st.floats(1e-4, 0.2)),
        draw(st.integers(0, 30)),
        draw(st.integers(0, 20)),
        10,
        draw(st.floats(0, 1)),
    )
    known = [value for values in falls if values for value in values if value > 0]
    return switch, falls, draw(st.one_of(st.floats(1e-4, 0.2), st.sampled_from(known or [0.01])))


def route_on(switch: Any, falls: list[list[float] | None]) -> list[tuple[str, str]]:
    """(stage, reason) of every step as srd_core.route has them where the criterion says ``falls``."""
    steps = len(falls)
    places = [1 - step / steps for step in range(steps)]
    way = Route(route.Pair(SKETCH, RENDER, switch), places, places)
    found = []
    for step, values in enumerate(falls):
        turn = way.turn(step)
        found.append((way.in_charge, turn.reason if turn else ""))
        if not way.final:
            with pytest.MonkeyPatch.context() as patch:
                seen = way.criterion.fall if values is None else values  # None: a step that is not looked at
                patch.setattr(way.criterion, "observe", lambda *_, now=seen: setattr(way.criterion, "fall", now))
                way.observe(step, torch.zeros(1))
    return found


def recorded(switch: Any, falls: list[list[float] | None]) -> Any:
    """The report of that run; every step of the sketch takes 3 seconds, of the render 1."""
    ran, steps = route_on(switch, falls), len(falls)
    places = [1 - step / steps for step in range(steps)]
    report = Report(
        status="done",
        stages=[StageReport(SKETCH), StageReport(RENDER)],
        switch=dict(vars(switch)),
        earliest=switch.earliest(places),
        latest=switch.latest(places),
        sigmas=[*places, 0.0],
    )
    for step, (stage, reason) in enumerate(ran):
        if reason:
            report.hand_overs.append(HandOver(step, RENDER, reason, places[step], 100 * step / steps))
        fall = falls[step] if stage == SKETCH else None
        seconds = 3.0 if stage == SKETCH else 1.0
        low, high = (min(fall), max(fall)) if fall else (None, None)
        report.steps.append(Step(step + 1, places[step], stage, seconds, 0.1, high, low))
    return report


@cases(2500)
@given(curves())
def test_what_if_tells_where_the_route_would_have_handed_over(
    drawn: tuple[Any, list[list[float] | None], float],
) -> None:
    switch, falls, delta = drawn
    report = recorded(switch, falls)
    rows = figures.what_if(report)
    if report.steps[0].stage != SKETCH:
        assert rows == []
        return
    assert [row["delta"] for row in rows] == sorted((row["delta"] for row in rows), reverse=True) and rows[-1][
        "delta"
    ] == 0
    sketched = sum(step.stage == SKETCH for step in report.steps)
    for asked in (delta, switch.delta):
        row = next(row for row in rows if row["delta"] < asked)
        other = route_on(replace(switch, delta=asked), falls)
        after, reason = next(((step, why) for step, (_, why) in enumerate(other) if why), (None, ""))
        if row["after"] is None:
            assert after is None or after > sketched
        else:
            assert (row["after"], row["reason"]) == (after, reason)
            assert row["seconds"] is None or row["seconds"] == pytest.approx(3 * after + len(falls) - after)
            assert row["seconds"] is not None or sketched == len(falls)


@cases(500)
@given(st.data())
def test_what_if_s_seconds_are_those_of_the_plan_that_teacache_would_make(data: st.DataObject) -> None:
    steps = data.draw(st.integers(4, 30))
    after, growth = (
        data.draw(st.integers(1, steps - 1)),
        [0.0, *data.draw(st.lists(st.floats(0, 0.1), min_size=29, max_size=29))],
    )
    threshold, form = data.draw(st.sampled_from([0.05, 0.14, 5.0])), data.draw(st.sampled_from(["e", "e0"]))

    def planned(begin: int) -> list[bool]:
        first = max(teacache.RET_STEPS - begin, 1) if form == "e0" else 1
        return teacache.skip_plan(growth[begin + 1 : steps], (1.0, 0.0), threshold, first)

    falls = [
        None,
        None,
        *data.draw(st.lists(st.lists(st.floats(0.001, 0.1), min_size=1, max_size=1), min_size=28, max_size=28)),
    ]
    report = recorded(Switch("adaptive", 1e-9, 0, after), falls[:steps])
    plan = planned(after)
    report.stage(RENDER).teacache = {
        "table": "of a test",
        "threshold": threshold,
        "form": form,
        "growth": growth[:steps],
        "first_step": after,
        "reuse": plan,
    }
    for step, reused in zip(report.steps[after:], plan):
        step.reused, step.seconds = reused, 0.25 if reused else 1.0
    for row in figures.what_if(report):
        if row["after"] is not None:
            reused = sum(planned(row["after"])) if any(plan) else 0
            assert row["seconds"] == pytest.approx(3 * row["after"] + 0.25 * reused + steps - row["after"] - reused)


# --- the hand-over's file ---------------------------------------------------------------------------------------------


@st.composite
def records(draw: st.DrawFn) -> Any:
    """A finished sketch of tiny tensors: every sampler's kinds of calls, with and without a mask, handed over or not."""
    shape = tuple(draw(st.lists(st.integers(1, 2), min_size=3, max_size=5)))
    steps, ndim = draw(st.integers(2, 6)), len(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))

    def tensor(*size: int) -> torch.Tensor:
        return torch.randn(size or shape, generator=generator).to(dtype if not size else torch.float32)

    names = draw(st.sampled_from([(), record_module.NOTED]))
    calls = [
        record_module.Call(
            draw(finite(0, 1e3)), tensor(), tensor(record_module.SAMPLES), {name: tensor() for name in names}
        )
        for _ in range(draw(st.integers(1, 4)))
    ]
    handed_over = draw(st.booleans())
    hand_over = HandOver(draw(st.integers(1, steps - 1)), RENDER, "step", 0.5, 50.0)
    switch = {"mode": "step", "switch_step": hand_over.after_step}
    return record_module.SketchRecord(
        draw(
            st.builds(
                record_module.Settings,
                st.integers(0, 2**64 - 1),
                words,
                words,
                st.integers(1, 10_000),
                finite(0, 1000),
                finite(0, 1),
                st.one_of(st.none(), st.lists(st.integers(0, 99_999), min_size=1, max_size=3)),
            )
        ),
        Report(
            status="done",
            stages=[StageReport(SKETCH, calls=len(calls)), StageReport(RENDER)],
            switch=switch,
            hand_overs=[hand_over] * handed_over,
        ),
        noise_mask=draw(st.sampled_from([None, torch.ones((1,) * (ndim - 1)), torch.zeros((1,) * ndim)])),
        latent_image=draw(st.sampled_from([torch.zeros(shape), torch.full(shape, 0.25)])),
        sigmas=torch.linspace(1, 0, steps + 1),
        x=tensor() if handed_over else None,
        calls=calls,
        latent_facts={"latent format": draw(words), "scale": draw(finite(0.0625, 64))},
        schedule=record_module.Schedule(
            draw(st.lists(words, max_size=2)), draw(st.dictionaries(words, finite(), max_size=2)), {"sigmas": tensor(3)}
        ),
        host=draw(words),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hand_overs")


def same(one: Any, other: Any) -> bool:
    """Whether two parts of a record are equal, tensors to the bit and the type."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (list, dict)):
        keys = range(len(one)) if isinstance(one, list) else one
        return type(one) is type(other) and len(one) == len(other) and all(same(one[key], other[key]) for key in keys)
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") else one == other


@cases(300, slow=True)
@given(record=records())
def test_every_hand_over_survives_its_file_to_the_bit(record: Any, folder: Path) -> None:
    path = folder / f"whole{handover.SUFFIX}"
    handover.write(record, path)
    assert same(handover.read(path), record)


@cases(1200, slow=True)
@given(record=records(), data=st.data())
def test_a_damaged_hand_over_is_refused_with_a_sentence_or_still_makes_sense(
    record: Any, data: st.DataObject, folder: Path
) -> None:
    """One fact of any kind anywhere, one that is gone, or a tensor that is gone, of another shape, type or name."""
    path = folder / f"damaged{handover.SUFFIX}"
    handover.write(record, path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    if data.draw(st.booleans()):
        facts = json.loads(metadata[handover.FACTS])
        damage(facts, data)
        metadata[handover.FACTS] = json.dumps(facts)
    else:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        other = data.draw(
            st.sampled_from(
                [
                    None,
                    tensor.flatten(),
                    tensor[None],
                    tensor[:0],
                    tensor * math.nan,
                    tensor.double(),
                    tensor.int(),
                    -tensor,
                    torch.cat([tensor, tensor]),
                ]
            )
        )
        if other is not None:
            tensors[data.draw(st.sampled_from([name, name, name, *sorted(tensors), "another"]))] = other
    safetensors.torch.save_file(tensors, path, metadata)
    try:
        found = handover.read(path)
    except ValueError as error:
        assert str(error).startswith(path.name) and str(error).endswith("."), error
    else:
        handover.write(found, path)
        assert same(handover.read(path), found) and 0 < found.steps < len(found.sigmas)
        usable(found.report)


def test_twenty_thousand_cases_are_drawn() -> None:
    assert sum(DRAWN) >= 20_000
