"""What has to hold on a GPU too: there `python3 bench/gpu.py` runs these tests, with dynamic VRAM and without it.

Nothing here asks where the models are, but by the host's own books.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import helpers
import pytest
import torch
from hosting import module
from runs import FAULTS, broken_from, left_as_before, out_of_memory, sr_model

memory, reports = module("srd_core.memory"), module("srd_core.report.data")
STEPS = 8


@pytest.mark.parametrize("step", [0, 1, 4, 7, STEPS])
def test_with_two_loads_of_the_same_weights_every_switch_gives_the_plain_run(step: int, wan: Any) -> None:
    plain = helpers.ksampler(wan(), STEPS)
    assert torch.equal(helpers.ksampler(sr_model(wan(), wan(), step), STEPS), plain)


@pytest.mark.parametrize("offload", memory.POLICIES)
def test_where_the_models_are_changes_nothing_of_the_result(
    offload: str, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch, render, report = wan(), wan(seed=1), reports.Report()
    with_room = helpers.ksampler(sr_model(sketch, render, 3), STEPS)
    monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", 2**60)  # as --reserve-vram, beyond any device
    without = helpers.ksampler(sr_model(sketch, render, 3, report, offload_sketch=offload), STEPS)
    assert torch.equal(with_room, without) and report.status == "done" and len(report.hand_overs) == 1


def test_the_sketch_leaves_before_the_render_comes_where_it_shall(wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), reports.Report()
    helpers.ksampler(sr_model(sketch, render, 3, report, offload_sketch="always"), STEPS)
    (hand_over,) = report.hand_overs
    assert hand_over.memory["after"]["sketch"] == 0 and not memory.is_loaded(sketch)


@pytest.mark.parametrize("stage", ["sketch", "render"])
@FAULTS
def test_after_an_interrupt_or_an_error_the_next_run_is_as_ever(fault: Any, stage: str, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), reports.Report()
    before = helpers.ksampler(sr_model(sketch, render), STEPS)
    pair = (fault(sketch, 2), render) if stage == "sketch" else (sketch, fault(render, 2))
    with left_as_before(sketch, render):
        helpers.ksampler(sr_model(*pair, 3, report), STEPS)
    assert report.status in ("failed", "interrupted")
    assert torch.equal(helpers.ksampler(sr_model(sketch, render), STEPS), before)


def test_a_step_that_runs_out_of_memory_is_tried_once_more(wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), reports.Report()
    expected = helpers.ksampler(sr_model(sketch, render), STEPS)
    assert torch.equal(helpers.ksampler(sr_model(sketch, out_of_memory(render), 3, report), STEPS), expected)
    assert any("Out of memory in the render" in note for note in report.notes)


def test_a_prediction_that_is_not_finite_stops_the_run_and_says_whose_it_was(wan: Any) -> None:
    report = reports.Report()
    with pytest.raises(RuntimeError, match="render"):
        helpers.ksampler(sr_model(wan(), broken_from(wan(seed=1), 1, float("nan"))[0], 3, report), STEPS)
    assert report.status == "failed" and len(report.steps) <= 5  # by the end of the next step


def test_teacache_fade_and_a_render_without_guidance_repeat_bit_for_bit(wan: Any) -> None:
    settings = {"teacache": 0.3, "fade": 1.1, "cfg": 1.0}
    sketch, render = wan(), wan(seed=1)
    first, again = (helpers.ksampler(sr_model(sketch, render, 3, **settings), STEPS) for _ in range(2))
    assert torch.equal(first, again) and torch.isfinite(first).all()


def test_teacache_at_threshold_0_changes_nothing(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    plain, cached = (
        helpers.ksampler(sr_model(sketch, render, 3, teacache=threshold), STEPS) for threshold in (0.0, 1e-9)
    )
    assert torch.equal(plain, cached)
