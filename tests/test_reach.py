"""Whom a LoRA or a patch reaches: what does not fit its stage, or reaches the sketch only, is noted in the report."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import comfy.sd
import helpers
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from hosting import module
from runs import Report, soft, softly_masked, sr_model
from test_host_features import windows

reach = module("srd_core.reach")
STEPS = 4


def a_lora(dim: int, block: int = 0, metadata: dict[str, str] | None = None) -> Any:
    """Puts a LoRA of a model with this width and this number of a block on a MODEL, by the host's loader."""
    one = {"lora_A.weight": torch.ones(2, dim), "lora_B.weight": torch.ones(dim, 2)}
    keys = {f"diffusion_model.blocks.{block}.self_attn.q.{name}": value for name, value in one.items()}
    keys["diffusion_model.blocks.0.self_attn.k.diff_b"] = torch.ones(dim)
    if block:
        del keys["diffusion_model.blocks.0.self_attn.k.diff_b"]
    return lambda model: comfy.sd.load_lora_for_models(model, None, keys, 1.0, 0, lora_metadata=metadata)[0]


@pytest.mark.parametrize("stage", ["sketch", "render"])
def test_a_lora_of_another_width_is_noted_with_the_stage_it_is_on(stage: str, wan: Any) -> None:
    models = {"sketch": wan(), "render": wan(seed=1)}
    models[stage] = a_lora(2 * helpers.DIM)(models[stage])
    report = Report()
    helpers.ksampler(sr_model(models["sketch"], models["render"], 3, report), STEPS)
    (note,) = report.notes
    assert note.startswith(f"2 of 2 changes that LoRAs make to the {stage} do not fit its layers")
    assert "Use a LoRA that was made for WAN21" in note


def test_a_lora_of_which_no_layer_is_known_is_noted(wan: Any) -> None:
    report = Report()
    render = helpers.count_calls(a_lora(helpers.DIM, block=39, metadata={"title": "of the 14B"})(wan(seed=1)))[0]
    helpers.ksampler(sr_model(wan(), render, 3, report), STEPS)
    (note,) = report.notes
    assert note.startswith("A LoRA on the render does not fit any of its layers")


def test_other_changes_of_a_model_are_no_lora(wan: Any) -> None:
    """All that the host marks a MODEL anew for."""
    changed = wan()
    for change in (
        lambda model: model.set_model_compute_dtype(None),
        lambda model: model.set_model_compute_dtype(torch.float64),
        lambda model: model.add_weight_wrapper("diffusion_model.head.head.weight", lambda weight: weight),
        lambda model: model.add_object_patch("anything", object()),
        lambda model: model.add_hook_patches(comfy.hooks.WeightHook(), {"diffusion_model.head.head.weight": ()}),
    ):
        changed = changed.clone()
        change(changed)
        assert reach.misfit_notes("sketch", changed.clone()) == []


def test_loras_that_fit_are_not_noted(wan: Any) -> None:
    report = Report()
    for put in (
        a_lora(helpers.DIM),
        a_lora(helpers.DIM, metadata={"title": "a"}),
        lambda m: a_lora(helpers.DIM)(a_lora(helpers.DIM)(m)),
    ):
        helpers.ksampler(sr_model(put(wan()), put(wan(seed=1)), 3, report), STEPS)
        assert report.notes == []


def after_cfg(model: Any) -> Any:
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    return model


AFTER = {
    "LoRA": a_lora(helpers.DIM),
    "sampler_cfg_function": lambda model: RescaleCFG().patch(model, 0.7)[0],
    "sampler_post_cfg_function": after_cfg,
    "count": lambda model: helpers.count_calls(model)[0],
    "context_handler": lambda model: windows(model),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_stands_after_sketch_render_model_and_reaches_the_sketch_only_is_noted(name: str, wan: Any) -> None:
    report = Report()
    helpers.ksampler(AFTER[name](sr_model(wan(), wan(seed=1), 3, report)), STEPS)
    (note,) = report.notes
    assert note.startswith("A node after Sketch-Render Model") and name in note and "acts on the sketch only" in note
    helpers.ksampler(sr_model(AFTER[name](wan()), wan(seed=1), 3, report), STEPS)
    assert report.notes == []


def test_what_acts_on_the_whole_run_is_not_noted(wan: Any) -> None:
    report = Report()
    model = sr_model(wan(), wan(seed=1), 3, report)
    (model,) = ModelSamplingSD3().patch(model, 3.0)
    helpers.ksampler(soft(model), STEPS)
    assert report.notes == []


def test_a_mask_that_only_the_render_changes_is_noted_with_where_the_node_belongs(wan: Any) -> None:
    def notes(sketch: Any, render: Any, step: int = 3, **latent: Any) -> list[str]:
        helpers.ksampler(sr_model(sketch, render, step, report := Report()), STEPS, **latent)
        return report.notes

    masked: dict[str, Any] = {"latent": softly_masked()}
    (note,) = notes(wan(), soft(wan(seed=1)), **masked)
    assert "Differential Diffusion" in note and note.endswith("Put it on the sketch.")
    assert not notes(wan(), soft(wan(seed=1))) and not notes(wan(), soft(wan(seed=1)), 0, **masked)
    assert not notes(soft(wan()), wan(seed=1), **masked)
