"""EasyCache and LazyCache, which skip steps: report, Measure Pair and hand-over know what was really computed."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import runs
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from hosting import module

figures, text = module("srd_core.report.figures"), module("srd_core.report.text")
measure, measure_text = module("srd_core.measure.run"), module("srd_core.measure.text")
STEPS, COMPUTED, REUSED = 30, 1.0, 0.01  # seconds of a step


def with_cache(node: Any, model: Any, threshold: float = 1.0) -> Any:
    return node.execute(model, threshold, 0.15, 0.95, False).args[0]


def easy(model: Any, threshold: float = 1.0) -> Any:
    return with_cache(EasyCacheNode, model, threshold)


def lazy(model: Any, threshold: float = 1.0) -> Any:
    return with_cache(LazyCacheNode, model, threshold)


def counting(model: Any) -> tuple[Any, list[None]]:
    """(model, list that grows with each forward of its network)."""
    forwards: list[None] = []
    model.model.diffusion_model.blocks[0].register_forward_pre_hook(lambda *_: forwards.append(None))
    return model, forwards


def reported(sketch: Any, render: Any, switch: Any) -> Any:
    """The report of a run without guidance, with seconds that are the same on every machine."""
    report = runs.Report()
    helpers.ksampler(runs.sr_model(sketch, render, switch, report), STEPS, cfg=1.0)
    for step in report.steps:
        step.seconds = REUSED if step.reused else COMPUTED
    return report


def measured(sketch: Any, render: Any, **how: Any) -> Any:
    found = measure.Measured()
    helpers.ksampler(measure.measuring(sketch, render, runs.RenderSettings(), 12, found), STEPS, **how)
    return found


@pytest.mark.parametrize("cache", [easy, lazy])
def test_steps_that_a_cache_skips_are_reused_in_the_report(cache: Any, wan: Any) -> None:
    render, forwards = counting(wan(seed=1))
    report = reported(wan(), cache(render), 10)
    assert 0 < len(forwards) < 20
    assert report.reused("render") == 20 - len(forwards)
    assert f"Render: 20 steps ({20 - len(forwards)} of them reused by a cache)" in text.summarize(report)
    assert not report.reused("sketch")


def test_the_speed_up_counts_what_the_render_s_cache_skips(wan: Any) -> None:
    report = reported(wan(), easy(wan(seed=1)), 10)
    skipped = report.reused("render")
    assert skipped and figures.speed_up(report) == pytest.approx(STEPS / (STEPS - skipped + REUSED * skipped))


def test_what_another_delta_would_have_cost_is_not_said_where_a_cache_skips_steps(wan: Any) -> None:
    rule = runs.Switch("adaptive", delta=0.9, fix_step=10)
    for render, known in ((wan(seed=1), True), (easy(wan(seed=1)), False)):
        rows = figures.what_if(reported(wan(), render, rule))
        assert rows and [row["seconds"] is not None for row in rows] == [known] * len(rows)


def test_no_speed_up_is_said_where_a_cache_would_skip_steps_of_the_sketch_alone(wan: Any) -> None:
    report = reported(easy(wan()), wan(seed=1), 15)
    assert report.reused("sketch") and figures.speed_up(report) is None
    assert "as fast as" not in text.summarize(report)


@pytest.mark.parametrize("after", [4, 12])
def test_the_speed_up_is_over_the_sketch_with_its_own_teacache(after: int) -> None:
    def sketch() -> Any:
        return runs.cached(runs.slow_wan(), 0.3)

    alone = reported(sketch(), runs.slow_wan(1), STEPS)
    report = reported(sketch(), runs.slow_wan(1), after)
    seconds, took = (sum(step.seconds for step in each.steps) for each in (alone, report))
    assert alone.reused("sketch") and figures.speed_up(report) == pytest.approx(seconds / took)


@pytest.mark.parametrize("on", ["sketch", "render"])
def test_measure_pair_computes_every_call_and_says_which_cache_it_left_out(on: str, wan: Any) -> None:
    pair = {"sketch": wan(), "render": wan(seed=1)}
    plain = measured(**pair)
    found = measured(**pair | {on: lazy(pair[on])})
    assert [p.differences for p in found.points] == [p.differences for p in plain.points]
    said = measure_text.describe(found, measure_text.advise(found, 2.5), 2.5)
    assert "Measured without LazyCache" in said


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "res_multistep_cfg_pp"])
def test_a_sketch_with_lazycache_is_rendered_as_in_sr_sampler(sampler: str, wan: Any) -> None:
    how: dict[str, Any] = {"steps": 20, "switch_step": 10, "sampler_name": sampler}
    one = runs.sr_sampler(lazy(wan(), 0.5), wan(seed=1), **how)
    record = runs.sketched(lazy(wan(), 0.5), **how)[0]
    assert torch.equal(runs.rendered(record, wan(seed=1))[0]["samples"], one)
