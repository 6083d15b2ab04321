"""What TeaCache holds: as much as the host is asked for, for each cond, and nothing after the run."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import comfy.model_management
import comfy.sd
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from runs import THRESHOLD, asked_for, cached, reuse, slow_state_dict, slow_wan, sr_model, vace_state_dict, wrapped
from test_compiled import compiled_whole

STEPS = 12


# --- memory -----------------------------------------------------------------------------------------------------------

WIDE = {"latent": helpers.empty_latent(side=12)}


@pytest.mark.parametrize("conds", [2, {"positive": [{}], "negative": [{}]}], ids=["number", "conds"])
def test_a_14b_at_720p_holds_0_77_gb_for_each_prompt(conds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cached(slow_wan())
    monkeypatch.setattr(model.model.diffusion_model, "dim", 5120)
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.bfloat16)
    assert reuse.held_bytes(model, (1, 16, 21, 90, 160), conds) == 2 * 75_600 * 5120 * 2
    assert reuse.held_bytes(model, (3, 16, 21, 90, 160), 1) == 3 * 75_600 * 5120 * 2
    assert reuse.held_bytes(model, (1, 16, 1, 91, 159), 1) == 46 * 80 * 5120 * 2, "the host pads to whole patches"


def test_nothing_is_held_without_a_cache_in_main_memory_or_by_an_unknown_model() -> None:
    shape = (1, 16, 21, 90, 160)
    assert reuse.held_bytes(slow_wan(), shape, 2) == 0
    assert reuse.held_bytes(cached(cached(slow_wan()), 0.0), shape, 2) == 0
    assert reuse.held_bytes(cached(slow_wan(), residual_on_cpu=True), shape, 2) == 0
    assert reuse.held_bytes(compiled_whole(cached(slow_wan())), shape, 2) == 0
    vace = comfy.sd.load_diffusion_model_state_dict(slow_state_dict(build=vace_state_dict))
    assert reuse.held_bytes(cached(vace), shape, 2) == 0


def test_what_is_held_is_as_large_as_what_is_kept() -> None:
    sizes: list[int] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        sizes.append(sum(kept.nbytes for kept in reuse.run_of(args[2]).residuals._kept.values()))
        return out

    model = wrapped(slow_wan(), look, WrappersMP.PREDICT_NOISE)
    latent = helpers.empty_latent(batch=2)
    helpers.ksampler(cached(model), STEPS, latent=latent)
    assert max(sizes) == reuse.held_bytes(cached(model), latent["samples"].shape, 2) > 0


def test_the_host_is_asked_for_what_the_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = slow_wan()
    ours = cached(model)
    held = reuse.held_bytes(ours, WIDE["latent"]["samples"].shape, 2)
    (plain,) = asked_for(lambda: helpers.ksampler(model, 1, **WIDE), monkeypatch)
    (found,) = asked_for(lambda: helpers.ksampler(ours, 1, **WIDE), monkeypatch)
    (on_cpu,) = asked_for(lambda: helpers.ksampler(cached(model, residual_on_cpu=True), 1, **WIDE), monkeypatch)
    assert held > 0 and found - plain == pytest.approx(held, rel=1e-6) and on_cpu == plain


def test_it_is_asked_for_with_the_stage_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, render = slow_wan(), slow_wan(1)
    held = reuse.held_bytes(cached(render), WIDE["latent"]["samples"].shape, 2)
    plain = asked_for(lambda: helpers.ksampler(sr_model(sketch, render, 1), 2, **WIDE), monkeypatch)
    found = asked_for(lambda: helpers.ksampler(sr_model(sketch, cached(render), 1), 2, **WIDE), monkeypatch)
    assert [b - a for a, b in zip(plain, found)] == [0, pytest.approx(held, rel=1e-6)]


# --- nothing stays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [None, "interrupt", "error"])
def test_residuals_are_one_for_each_cond_and_are_freed_with_the_run(stop: str | None) -> None:
    kept: list[weakref.ref[torch.Tensor]] = []
    runs: list[Any] = []  # an error's traceback may hold the run for long: it has to free them by itself
    counts: list[int] = []

    def look(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        run = reuse.run_of(args[2])
        runs.append(run)
        counts.append(len(run.residuals))
        kept.extend(weakref.ref(tensor) for tensor in run.residuals._kept.values())
        if stop and run.reused:
            if stop == "error":
                raise RuntimeError("stopped by the test")
            raise comfy.model_management.InterruptProcessingException
        return out

    model = wrapped(cached(slow_wan()), look, WrappersMP.PREDICT_NOISE)
    if stop:
        with pytest.raises((RuntimeError, comfy.model_management.InterruptProcessingException)):
            helpers.ksampler(model, STEPS)
    else:
        helpers.ksampler(model, STEPS)
    gc.collect()
    assert max(counts) == 2 and kept and runs
    assert all(tensor() is None for tensor in kept)


def test_a_second_run_with_other_settings_is_as_in_a_fresh_process() -> None:
    def run(model: Any, seed: int, side: int, threshold: float) -> torch.Tensor:
        return helpers.ksampler(cached(model, threshold), STEPS, seed=seed, latent=helpers.empty_latent(side=side))

    model = slow_wan()
    run(model, 7, 8, 0.2)
    for seed, side, threshold in [(8, 8, 0.2), (7, 12, 0.2), (7, 8, 0.3)]:
        assert torch.equal(run(model, seed, side, threshold), run(slow_wan(), seed, side, threshold))
    assert torch.equal(helpers.ksampler(model, STEPS), helpers.ksampler(slow_wan(), STEPS))


def test_a_second_sr_run_with_another_hand_over_is_as_in_a_fresh_process() -> None:
    sketch, render = slow_wan(), slow_wan(1)
    helpers.ksampler(sr_model(sketch, render, 3, teacache=THRESHOLD), STEPS)
    again = helpers.ksampler(sr_model(sketch, render, 5, teacache=THRESHOLD), STEPS)
    assert torch.equal(again, helpers.ksampler(sr_model(slow_wan(), slow_wan(1), 5, teacache=THRESHOLD), STEPS))


def test_residuals_can_be_kept_in_main_memory_with_the_same_result() -> None:
    model = slow_wan()
    assert torch.equal(
        helpers.ksampler(cached(model, residual_on_cpu=True), STEPS), helpers.ksampler(cached(model), STEPS)
    )
