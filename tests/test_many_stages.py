"""Three models and more: a Sketch-Render Model as a stage of another; and runs that change their stage often."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import helpers
import pytest
import runs
import torch

STEPS = 8


def by_stage(report: Any) -> str:
    """The stages of the steps, by their place in the route: 0011222."""
    names = [stage.name for stage in report.stages]
    return "".join(str(names.index(step.stage)) for step in report.steps)


@pytest.mark.parametrize("nested", ["sketch", "render"])
def test_three_models_run_as_three_legs(nested: str, wan: Any) -> None:
    report, high, low, small = runs.Report(), wan(), wan(seed=1), wan(seed=2)
    if nested == "sketch":
        model = runs.sr_model(runs.sr_model(high, low, 2), small, 5, report)
    else:
        model = runs.sr_model(high, runs.sr_model(low, small, 5), 2, report)
    latent = helpers.ksampler(model, STEPS)
    assert by_stage(report) == "00111222"
    assert [(h.after_step, h.reason, h.rule["switch_step"]) for h in report.hand_overs] == [
        (2, "step", 2),
        (5, "step", 5),
    ]
    names = {"sketch": ["sketch", "sketch 2", "render"], "render": ["sketch", "render", "render 2"]}
    assert [stage.name for stage in report.stages] == names[nested]
    other = (
        runs.sr_model(high, runs.sr_model(low, small, 5), 2)
        if nested == "sketch"
        else runs.sr_model(runs.sr_model(high, low, 2), small, 5)
    )
    assert torch.equal(helpers.ksampler(other, STEPS), latent)


def test_wan_2_2_complete_and_then_the_small_one(wan: Any) -> None:
    """High noise until sigma .875, low noise for a few steps, then the small model: rules of different kinds."""
    report = runs.Report()
    experts = runs.sr_model(wan(), wan(seed=1), runs.Switch("sigma", switch_sigma=0.875))
    helpers.ksampler(runs.sr_model(experts, wan(seed=2), 16, report), 20)
    assert [(h.to, h.reason) for h in report.hand_overs] == [("sketch 2", "sigma"), ("render", "step")]
    assert all((s.sigma >= 0.875) == (s.stage == "sketch") for s in report.steps)


def test_each_stage_has_its_own_guidance_and_prompts(wan: Any) -> None:
    seen: dict[str, list[int]] = {}
    models = []
    for name in ("high", "low", "small"):
        model, seen[name] = helpers.count_calls(wan(seed=len(seen)))
        models.append(model)
    high, low, small = models
    inner = runs.sr_model(high, low, 2, cfg=1.0)
    helpers.ksampler(runs.sr_model(inner, small, 5, positive=helpers.prompt(5)), STEPS)
    assert seen == {"high": [2, 2], "low": [1, 1, 1], "small": [2, 2, 2]}


def test_the_last_models_own_prompt_reaches_it(wan: Any) -> None:
    inner, small = runs.sr_model(wan(), wan(seed=1), 2), wan(seed=2)
    asked = helpers.ksampler(runs.sr_model(inner, small, 5, positive=helpers.prompt(5)), STEPS)
    assert not torch.equal(asked, helpers.ksampler(runs.sr_model(inner, small, 5), STEPS))
    same = runs.sr_model(inner, small, 5, positive=helpers.prompt(1))  # the run's own
    assert torch.equal(helpers.ksampler(same, STEPS), helpers.ksampler(runs.sr_model(inner, small, 5), STEPS))


def test_a_stage_inside_takes_what_it_has_not_set_from_outside(wan: Any) -> None:
    outer = runs.RenderSettings(cfg=1.0, positive=helpers.prompt(3))
    inner = runs.RenderSettings(cfg=4.0).within(outer)
    assert inner.cfg == 4.0 and inner.positive is outer.positive and runs.RenderSettings().within(outer).cfg == 1.0


def test_teacache_works_on_the_stage_it_is_set_for() -> None:
    report = runs.Report()
    inner = runs.sr_model(runs.slow_wan(), runs.slow_wan(1), 2, teacache=runs.THRESHOLD)
    helpers.ksampler(runs.sr_model(inner, runs.slow_wan(2), 10, report), 12)
    assert report.reused("sketch 2") > 0 and report.reused("render") == 0


def test_a_patch_on_the_inner_pair_reaches_its_first_model(wan: Any) -> None:
    """Nodes between the two Sketch-Render Models change the clone that the outer one gets."""
    inner = runs.sr_model(wan(), wan(seed=1), 2)
    patched, calls = helpers.count_calls(inner)
    helpers.ksampler(runs.sr_model(patched, wan(seed=2), 5), STEPS)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("at", "fault"), [("sketch", runs.failing), ("low", runs.interrupting), ("render", runs.failing)]
)
def test_a_fault_in_any_of_three_stages_leaves_all_models_as_they_were(at: str, fault: Any, wan: Any) -> None:
    models = {"sketch": wan(), "low": wan(seed=1), "render": wan(seed=2)}
    sketch, low, render = {**models, at: fault(models[at], 2)}.values()
    with runs.left_as_before(*models.values()):
        helpers.ksampler(runs.sr_model(runs.sr_model(sketch, low, 2, fade=1.1), render, 5, fade=1.1), STEPS)


@pytest.mark.parametrize(("fault", "render_steps"), [(runs.failing, 0), (runs.interrupting, 2)])
def test_a_fault_after_the_sketch_came_back_leaves_all_models_as_they_were(
    fault: Any, render_steps: int, wan: Any
) -> None:
    sketch, render = wan(), wan(seed=1)
    with runs.left_as_before(sketch, render):
        helpers.ksampler(runs.sr_model(fault(sketch, 3), render, "1-2, 4", fade=1.1, render_steps=render_steps), STEPS)


@pytest.mark.parametrize("at_call", [1, 3, 4])
def test_out_of_memory_in_any_leg_of_the_sketch_gets_a_second_try_and_the_same_video(at_call: int, wan: Any) -> None:
    """The third call is the first after the sketch came back."""
    report, how = runs.Report(), {"fade": 1.1, "render_steps": 1}
    short = runs.sr_model(runs.out_of_memory(wan(), at_call), wan(seed=1), "1-2, 5-6", report, **how)
    expected = helpers.ksampler(runs.sr_model(wan(), wan(seed=1), "1-2, 5-6", **how), STEPS)
    assert torch.equal(helpers.ksampler(short, STEPS), expected)
    assert any("Out of memory in the sketch" in note for note in report.notes)


@pytest.mark.parametrize("policy", ["auto", "always", "never"])
def test_every_memory_policy_gives_the_same_bits_on_a_route_of_many_changes(
    policy: str, wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sketch, plain = wan(), helpers.ksampler(wan(), STEPS)
    monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", 2**60)
    assert torch.equal(helpers.ksampler(runs.sr_model(sketch, wan(), "1, 3, 5-6", offload_sketch=policy), STEPS), plain)
    three = runs.sr_model(runs.sr_model(sketch, wan(), 2, offload_sketch=policy), wan(), 5, offload_sketch=policy)
    assert torch.equal(helpers.ksampler(three, STEPS), plain)


def test_a_run_that_loads_again_at_each_change_says_so_before_it(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = runs.Report()
    helpers.ksampler(runs.sr_model(wan(), wan(seed=1), "1, 3, 5-6", report), STEPS)
    assert not any("again" in note for note in report.notes)
    helpers.ksampler(runs.sr_model(wan(), wan(seed=1), "1, 3, 5-6", report, offload_sketch="always"), STEPS)
    assert any("changes between its models 5 times, and offload_sketch is always" in note for note in report.notes)
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_, **__: 4e6)
    helpers.ksampler(runs.sr_model(wan(), wan(seed=1), "1, 3, 5-6", report), STEPS)
    assert any("GB together, the device has 0.0: each change loads up to" in note for note in report.notes)
    helpers.ksampler(runs.sr_model(wan(), wan(seed=1), 3, report), STEPS)
    assert not any("again" in note for note in report.notes)


def test_a_pair_inside_that_loads_again_at_each_change_says_so_too(wan: Any) -> None:
    report = runs.Report()
    inner = runs.sr_model(wan(), wan(seed=1), "1, 3, 5", offload_sketch="always")
    helpers.ksampler(runs.sr_model(inner, wan(seed=2), 6, report), STEPS)
    assert any("changes between its models 5 times, and offload_sketch is always" in note for note in report.notes)


def test_a_step_beyond_the_run_is_refused_before_any_step(wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match="sketch_steps names step 46, but the run has 8 steps"):
        helpers.ksampler(runs.sr_model(sketch, wan(seed=1), "1-4, 46"), STEPS)
    assert not calls
