"""Interrupts, errors and bad input: a sentence before the work starts, and nothing left behind after it."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.sd
import helpers
import pytest
import runs
import torch
from comfy.patcher_extension import WrappersMP
from hosting import module

CANCELLED = comfy.model_management.InterruptProcessingException


@pytest.mark.parametrize(("stage", "sampler"), [("sketch", "uni_pc"), ("render", "euler_cfg_pp")])
@runs.FAULTS
def test_after_a_fault_in_either_stage_plain_runs_are_as_before(fault: Any, stage: str, sampler: str, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), runs.Report()
    pair = (fault(sketch, 2), render) if stage == "sketch" else (sketch, fault(render, 2))
    with runs.left_as_before(sketch, render):
        helpers.ksampler(runs.sr_model(*pair, 3, report), sampler_name=sampler)
    assert report.status == ("failed" if fault is runs.failing else "interrupted")
    assert ("call 2" in report.error) == (fault is runs.failing)


def test_after_a_render_that_can_not_be_loaded_plain_runs_are_as_before(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    with runs.left_as_before(sketch, render):
        helpers.ksampler(runs.sr_model(sketch, runs.failing(render, 1, kind=WrappersMP.PREPARE_SAMPLING), 3))


def test_an_interrupt_before_the_hand_over_does_not_load_the_render(wan: Any) -> None:
    def cancel_after(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        comfy.model_management.interrupt_current_processing()
        return out

    render = runs.failing(wan(seed=1), 1, kind=WrappersMP.PREPARE_SAMPLING)
    with pytest.raises(CANCELLED):
        helpers.ksampler(runs.sr_model(runs.wrapped(wan(), cancel_after), render, 1), runs.STEPS)


@pytest.mark.parametrize("fault", [None, runs.failing, runs.interrupting], ids=["done", "failed", "interrupted"])
def test_nothing_keeps_a_model_or_a_latent_alive_after_a_run(fault: Any, wan: Any) -> None:
    def run() -> list[weakref.ref[Any]]:
        sketch, render = wan(), wan(seed=1)
        model = runs.sr_model(sketch, fault(render, 2) if fault else render, 3, report)
        latent = helpers.empty_latent()
        try:
            helpers.ksampler(model, runs.STEPS, latent=latent)
        except (runs.Broken, CANCELLED):
            assert fault
        return [weakref.ref(x) for x in (sketch, sketch.model, render, render.model, model, latent["samples"])]

    report = runs.Report()  # the Inspector may keep it
    held = run()
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


# --- bad input --------------------------------------------------------------------------------------------------------


def never_called(model: Any) -> Any:
    return runs.failing(model, 1)


def other_format(model: Any, **facts: Any) -> Any:
    """A clone whose latent format differs in the given facts."""
    model = model.clone()
    ours = model.get_model_object("latent_format")
    theirs = type(facts.pop("name", type(ours).__name__), (type(ours),), {})()
    for name, value in facts.items():
        setattr(theirs, name, value)
    model.add_object_patch("latent_format", theirs)
    return model


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"name": "Wan22", "latent_channels": 48}, "different VAEs (16 and 48 channels)"),
        ({"latents_mean": torch.zeros(16)}, "different latents (channel means)"),
        ({"scale_factor": 0.7, "latents_mean": torch.zeros(16)}, "(scale, channel means)"),  # a scale alone is mapped
        ({"temporal_downscale_ratio": 8}, "temporal compression"),
        ({"name": "AnotherVAE"}, "different latents (latent format)"),  # though the host's class is one of the sketch's
    ],
    ids=["VAE", "means", "scale and means", "frames", "name"],
)
def test_models_that_do_not_share_a_latent_are_refused_with_the_difference(
    facts: dict[str, Any], named: str, wan: Any
) -> None:
    with pytest.raises(ValueError) as error:
        runs.sr_model(wan(), other_format(wan(seed=1), **facts))
    message = str(error.value)
    assert named in message and "WAN21" in message and "Wan2.1 T2V 14B -> Wan2.1 T2V 1.3B" in message


def test_models_with_different_kinds_of_noise_schedule_are_refused(wan: Any) -> None:
    render = wan(seed=1).clone()

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    render.add_object_patch("model_sampling", Sampling(render.model.model_config))
    with pytest.raises(
        ValueError,
        match=r"noise schedules \(flow and variance exploding\), so .* Put the same ModelSampling node on both",
    ):
        runs.sr_model(wan(), render)


def test_models_of_different_families_need_conditioning_of_their_own(wan: Any) -> None:
    class OtherFamily(comfy.model_base.BaseModel):
        pass

    sketch, render = wan(), wan(seed=1)
    render.model.__class__ = OtherFamily
    with pytest.raises(ValueError, match="different text encoders.*Connect render_positive"):
        runs.sr_model(sketch, render)
    with pytest.raises(ValueError, match="different text encoders.*Connect render_negative"):
        helpers.ksampler(runs.sr_model(never_called(sketch), render, positive=helpers.prompt(1)), runs.STEPS)
    runs.sr_model(sketch, render, positive=helpers.prompt(1), negative=helpers.prompt(2))


def test_one_family_with_text_inputs_of_another_width_needs_its_own_conditioning(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    render.model.model_config.unet_config = {**render.model.model_config.unet_config, "text_dim": 64}
    with pytest.raises(ValueError, match="different text encoders"):
        runs.sr_model(sketch, render)


UNIFORM = torch.linspace(1, 0, 51)  # at shift 5 the paper's schedule
# Settings of the pair, the call, and what is said.
NO_RUN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "render_negative": ({"negative": helpers.prompt(2)}, {"guider": "BasicGuider"}, "but the guider .* takes none"),
    "render_cfg": ({"cfg": 2.0}, {"guider": "BasicGuider"}, "render_cfg is 2.0.*Set render_cfg to 0"),
    "rising levels": ({}, {"sigmas": torch.tensor([0.01, 0.5, 0.9])}, "rises in step 1 of 2;.* FlipSigmas"),
    "a rule that never decides": (
        {"switch": runs.Switch(fix_step=10, max_step=5)},
        {"sigmas": 5 * UNIFORM / (1 + 4 * UNIFORM)},
        "max_step is 5, but the rule of adaptive decides after step .* Raise max_step",
    ),
}


@pytest.mark.parametrize("what", NO_RUN)
def test_what_no_run_can_follow_is_refused_before_any_step(what: str, wan: Any) -> None:
    settings, how, words = NO_RUN[what]
    model = runs.sr_model(never_called(wan()), never_called(wan(seed=1)), **settings)
    with pytest.raises(ValueError, match=words):
        runs.sampled(model, **how)


def test_the_report_of_a_refused_run_says_so_and_not_what_the_run_before_did(wan: Any) -> None:
    report = runs.Report()
    model = runs.sr_model(wan(), wan(seed=1), 3, report)
    helpers.ksampler(model, runs.STEPS)
    with pytest.raises(ValueError):
        helpers.ksampler(model, runs.STEPS, latent={"samples": torch.full((1, 16, 2, 8, 8), torch.nan)})
    assert report.status == "failed" and "not finite" in report.error and not report.steps


@pytest.mark.parametrize(("stage", "at", "bad"), [("sketch", 2, float("nan")), ("render", 5, float("inf"))])
def test_a_prediction_that_is_not_finite_stops_the_run_and_says_what_to_try(
    stage: str, at: int, bad: float, wan: Any
) -> None:
    broken, calls = runs.broken_from(wan(), at if stage == "sketch" else at - 3, bad)
    pair = (broken, wan(seed=1)) if stage == "sketch" else (wan(), broken)
    report = runs.Report()
    with pytest.raises(
        RuntimeError, match=f"The {stage}'s prediction .*not finite.* at step {at} of {runs.STEPS} .sigma"
    ) as error:
        helpers.ksampler(runs.sr_model(*pair, 3, report), runs.STEPS)
    assert len(calls) == (at if stage == "sketch" else at - 3)
    for fact in ("WAN21", "attention: ", "weights: float32", "broken LoRA"):
        assert fact in str(error.value)
    assert report.status == "failed" and "not finite" in report.error
    json.loads(report.to_json())


def test_the_advice_names_the_attention_backend_and_fp8_weights_when_those_are_used(
    models_folder: Path, monkeypatch: Any
) -> None:
    host = module("srd_core.attention").attention
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "sage", host.attention_pytorch)
    name = helpers.wan_file(models_folder, seed=0).name
    broken, _ = runs.broken_from(runs.load(name, attention="sage", weight_dtype="fp8_e4m3fn"), 1, float("nan"))
    with pytest.raises(RuntimeError) as error:
        helpers.ksampler(runs.sr_model(broken, runs.load(name), 3), runs.STEPS)
    for fact in (
        "attention: sage",
        "weights: float8_e4m3fn",
        "Set attention to pytorch on the sketch's loader",
        "Set weight_dtype to default",
    ):
        assert fact in str(error.value)


def wan_22_5b() -> Any:
    """A tiny MODEL with the latent of Wan 2.2 5B: 48 channels, with its own statistics."""
    layout = helpers.wan_layout() | {"model_type": "t2v", "in_dim": 48, "out_dim": 48}
    return comfy.sd.load_diffusion_model_state_dict(helpers.random_model(comfy.ldm.wan.model.WanModel, 0, **layout))


def test_wan_2_2_5b_is_refused_in_two_lines_and_the_numbers_go_to_the_log(
    wan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = wan_22_5b()
    assert type(other.model.latent_format).__name__ == "Wan22"
    with pytest.raises(ValueError) as error:
        runs.sr_model(wan(), other)
    said = str(error.value)
    assert "use different VAEs (16 and 48 channels), so they do not fit together" in said
    assert (
        "Wan 2.2 5B cannot be paired with any model. Pairs that fit this sketch: Wan2.1 T2V 14B -> Wan2.1 T2V 1.3B"
        in said
    )
    assert "Cosmos" not in said and "CogVideoX" not in said and len(said) < 400 and "channel means" in caplog.text
    with pytest.raises(ValueError, match="Wan 2.2 5B cannot be paired with any model. Use it alone.") as error:
        runs.sr_model(other, wan())
    assert "Pairs" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 48, 2, 8, 8), (16, 2, 8, 8), (1, 16, 8)], ids=str)
def test_a_latent_of_wrong_dimensions_is_refused_before_any_step(shape: tuple[int, ...], wan: Any) -> None:
    with pytest.raises(ValueError, match=r"LATENT has shape .* needs \[batch, 16, frames, height, width\]"):
        runs.sr_sampler(never_called(wan()), never_called(wan(seed=1)), latent={"samples": torch.ones(shape)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_is_refused_before_any_step(bad: float, wan: Any) -> None:
    latent = helpers.empty_latent()
    latent["samples"][0, 3, 1, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        runs.sr_sampler(never_called(wan()), never_called(wan(seed=1)), latent=latent)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"delta": 0.0, "switch_mode": "adaptive"}, "delta is 0.0; it must be above 0"),
        ({"switch_mode": "percent"}, "choose one of adaptive, step, sigma"),
        ({"teacache": -0.1}, "teacache is -0.1; the threshold must be 0"),
        ({"offload_sketch": "sometimes"}, "offload_sketch is 'sometimes'; choose one of auto, always, never"),
        ({"render_cfg": float("nan")}, "render_cfg is nan; it must be a number"),
        ({"delta": float("nan"), "switch_mode": "adaptive"}, "delta is nan; it must be above 0"),
        ({"switch_sigma": float("nan"), "switch_mode": "sigma"}, "switch_sigma is nan; it must be a number"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_can_not_be_followed_are_refused_before_any_step(
    setting: dict[str, Any], message: str, wan: Any
) -> None:
    models = never_called(wan()), never_called(wan(seed=1))
    with pytest.raises(ValueError, match=message):
        runs.sr_sampler(*models, **setting)
    with pytest.raises(ValueError, match=message):
        runs.sampler_nodes.SRModel.execute(*models, **runs.SWITCHING | setting)


def test_switch_step_beyond_the_steps_is_refused_or_means_never(wan: Any) -> None:
    sketch = wan()
    with pytest.raises(ValueError, match="switch_step is 99, but the run has 6 steps"):
        runs.sr_sampler(never_called(sketch), never_called(wan(seed=1)), switch_step=99)
    assert torch.equal(
        helpers.ksampler(runs.sr_model(sketch, wan(seed=1), 99), runs.STEPS), helpers.ksampler(sketch, runs.STEPS)
    )
