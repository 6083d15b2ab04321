"""A LoRA whose strength changes during the run (hooks with keyframes): it follows the run, whichever stage has it."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import helpers
import pytest
import torch
from hosting import module
from runs import STEPS, RenderSettings, rendered, sketched, sr_model, sr_outputs
from test_host_features import lora

measure_run = module("srd_core.measure.run")
CHANGES = ((0.2, 0.0), (0.6, 0.2), (1.0, 0.6))  # strength, from which part of the run on


def prompt(seed: int = 1, *more: Any) -> Any:
    """A prompt with a LoRA whose strength changes; every call makes new hooks, as another machine would."""
    hooks = [_changing(lora(scale)) for scale in (0.5, *more)]
    return helpers.prompt(seed, hooks=comfy.hooks.HookGroup.combine_all_hooks(hooks))


def _changing(weights: Any) -> Any:
    hooks, keyframes = comfy.hooks.create_hook_lora(weights, 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for strength, start in CHANGES:
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)
    return hooks


@pytest.mark.parametrize(("sampler", "switch"), [("euler", 0), ("heun", 1), ("euler", 4), ("heun", "1, 3-4")])
def test_a_prompt_of_the_render_s_own_follows_the_run_from_its_first_step(switch: Any, sampler: str, wan: Any) -> None:
    plain = helpers.ksampler(wan(), STEPS, positive=prompt(), sampler_name=sampler)
    model = sr_model(wan(), wan(), switch, positive=prompt())
    assert torch.equal(helpers.ksampler(model, STEPS, positive=prompt(), sampler_name=sampler), plain)


@pytest.mark.parametrize("own", [True, False], ids=["own prompts", "shared prompts"])
def test_two_loras_that_the_host_keeps_ready_change_in_both_stages(own: bool, wan: Any) -> None:
    """Of several hook groups the host keeps the weights that it has made, as long as no keyframe changes."""
    both = {"positive": prompt(1), "negative": prompt(2, 0.3)}
    plain = helpers.ksampler(wan(), STEPS, **both)
    theirs = {"positive": prompt(1), "negative": prompt(2, 0.3)} if own else {}
    for _ in range(2):
        assert torch.equal(helpers.ksampler(sr_model(wan(), wan(), "1, 4-5", **theirs), STEPS, **both), plain)


def test_the_same_run_again_is_the_same_video(wan: Any) -> None:
    sketch, render, own = wan(), wan(seed=1), prompt(8)
    first, again = (sr_outputs(sketch, render, render_positive=own, switch_step=1)[0]["samples"] for _ in range(2))
    assert torch.equal(first, again)


def test_the_halves_give_the_video_of_one_run_as_often_as_they_are_rendered(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    whole = sr_outputs(sketch, render, positive=prompt(), switch_step=3)[0]["samples"]
    record, own = sketched(sketch, positive=prompt(), switch_step=3)[0], prompt()
    for _ in range(2):
        assert torch.equal(rendered(record, render, positive=own)[0]["samples"], whole)


@pytest.mark.parametrize("own", [True, False], ids=["own prompts", "shared prompts"])
def test_measure_pair_sees_each_step_as_the_run_does(own: bool, wan: Any) -> None:
    settings = RenderSettings(positive=prompt()) if own else RenderSettings()
    found = measure_run.Measured()
    helpers.ksampler(measure_run.measuring(wan(), wan(), settings, 3, found), 8, positive=prompt())
    assert [point.differences["guided"] for point in found.points] == pytest.approx([0.0] * 3, abs=1e-6)


def test_a_render_s_own_prompt_follows_a_smaller_sketch(wan: Any) -> None:
    """Its one step comes after its last keyframe begins, so it has that strength."""
    latent = helpers.empty_latent(side=16)
    steady = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)
    want, found = (
        helpers.ksampler(sr_model(wan(), wan(seed=1), 5, sketch_scale=0.5, positive=own), STEPS, latent=latent)
        for own in (helpers.prompt(1, hooks=steady), prompt())
    )
    assert torch.equal(found, want)
