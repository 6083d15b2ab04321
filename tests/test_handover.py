"""Sketch once, render many, and elsewhere: SR Sketch, SR Render and the file between them (design section 4)."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sample
import folder_paths
import helpers
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hosting import module
from test_cogvideox import cogvideox, folders, networks, random, text  # noqa: F401
from test_cooperation import SAMPLERS, STEPS, sr_sampler
from test_families import family, load  # noqa: F401
from test_host_features import windows

handover, apart, node = module("srd_core.handover.file"), module("srd_core.handover.render"), module("nodes.handover")
SRSampler = module("nodes.sampler").SRSampler
record_module, sketch_module = module("srd_core.handover.record"), module("srd_core.handover.sketch")
RULE: dict[str, Any] = {
    "switch_mode": "step",
    "delta": 0.01,
    "fix_step": 5,
    "max_step": 0,
    "switch_step": 3,
    "switch_sigma": 0.875,
}


def sketched(sketch: Any, **how: Any) -> Any:
    """SR Sketch's outputs: hand-over, preview, report."""
    call: dict[str, Any] = {
        "positive": helpers.prompt(1),
        "negative": helpers.prompt(2),
        "latent": helpers.empty_latent(),
        "seed": 7,
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        **RULE,
    } | how
    return node.SRSketch.execute(sketch, **call).args


def rendered(record: Any, render: Any, **how: Any) -> Any:
    """SR Render's outputs: latent, report."""
    call: dict[str, Any] = {
        "positive": helpers.prompt(1),
        "negative": helpers.prompt(2),
        "render_cfg": 0.0,
        "teacache": 0.0,
    } | how
    return node.SRRender.execute(record, render, **call).args


def through_a_file(record: Any, folder: Path) -> Any:
    path = folder / f"a{handover.SUFFIX}"
    handover.write(record, path)
    return apart.load(path)


def an_encoded_video(batch: int = 1) -> dict[str, Any]:
    return {"samples": torch.randn(batch, 16, 2, 8, 8, generator=torch.Generator().manual_seed(3))}


@pytest.fixture
def a_file(wan: Any, tmp_path: Path) -> Path:
    """A whole hand-over file."""
    path = tmp_path / f"whole{handover.SUFFIX}"
    handover.write(sketched(wan())[0], path)
    return path


# --- the two halves are the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_for_every_sampler_sketch_and_render_through_a_file_are_sr_sampler_bit_for_bit(
    sampler: str, wan: Any, tmp_path: Path
) -> None:
    sketch, render = wan(), wan(seed=1)
    record = sketched(sketch, sampler_name=sampler)[0]
    latent, report = rendered(through_a_file(record, tmp_path), render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, sampler_name=sampler))
    assert not report.notes or "its own noise levels" in report.notes[0]
    assert report.status == "done" and report.stage("sketch").calls == len(record.calls)


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m_sde", "euler_cfg_pp", "heun"])
@pytest.mark.parametrize("batch", [1, 2])
def test_an_encoded_video_with_a_mask_and_denoise_below_1_goes_along(
    sampler: str, batch: int, wan: Any, tmp_path: Path
) -> None:
    sketch, render = wan(), wan(seed=1)
    mask = torch.zeros(2, 8, 8)
    mask[:, 2:6] = 1
    how = {"sampler_name": sampler, "denoise": 0.7, "latent": an_encoded_video(batch) | {"noise_mask": mask}}
    latent, _ = rendered(through_a_file(sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, **how))
    assert torch.equal(latent["noise_mask"], mask)


def test_the_noise_of_a_batch_taken_apart_goes_along(wan: Any, tmp_path: Path) -> None:
    sketch, render = wan(), wan(seed=1)
    how = {"latent": helpers.empty_latent(2) | {"batch_index": [3, 1]}}
    latent, _ = rendered(through_a_file(sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, **how)) and latent["batch_index"] == [3, 1]


def test_the_noise_of_any_place_in_a_batch_goes_through_a_file(wan: Any, tmp_path: Path) -> None:
    how = {"latent": helpers.empty_latent() | {"batch_index": [100_001]}}
    assert through_a_file(sketched(wan(), **how)[0], tmp_path).settings.batch_index == [100_001]


def test_what_else_a_latent_has_comes_out_as_out_of_sr_sampler(wan: Any) -> None:
    latent = helpers.empty_latent() | {"downscale_ratio_spacial": 8, "type": "video"}
    ours = rendered(sketched(wan(), latent=latent)[0], wan(seed=1))[0]
    whole = SRSampler.execute(
        wan(),
        wan(seed=1),
        positive=helpers.prompt(1),
        negative=helpers.prompt(2),
        latent=latent,
        seed=7,
        steps=STEPS,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        render_cfg=0.0,
        teacache=0.0,
        offload_sketch="auto",
        **RULE,
    ).args[0]
    assert set(ours) == set(whole) == {"samples", "type"} and ours["type"] == "video"


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_sde", "sa_solver", "dpmpp_2m_cfg_pp"])
def test_the_run_follows_the_sketchs_schedule_where_the_render_has_another_shift(
    sampler: str, wan: Any, tmp_path: Path
) -> None:
    (sketch,), (render,) = ModelSamplingSD3().patch(wan(), 3.0), ModelSamplingSD3().patch(wan(seed=1), 9.0)
    record = through_a_file(sketched(sketch, sampler_name=sampler)[0], tmp_path)
    latent, _ = rendered(record, render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, sampler_name=sampler))


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "euler_ancestral"])
def test_render_cfg_teacache_and_other_prompts_of_the_render_work_as_in_sr_sampler(sampler: str, wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    own = {"positive": helpers.prompt(5), "negative": helpers.prompt(6)}
    how = {"render_cfg": 1.5, "teacache": 0.3}
    latent, report = rendered(sketched(sketch, steps=12, sampler_name=sampler)[0], render, **own, **how)
    whole = sr_sampler(
        sketch,
        render,
        12,
        sampler_name=sampler,
        **how,
        render_positive=own["positive"],
        render_negative=own["negative"],
    )
    assert torch.equal(latent["samples"], whole) and report.stage("render").teacache["threshold"] == 0.3


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpmpp_2m_sde"])
def test_noise_that_a_node_of_the_sketch_rearranged_goes_along(sampler: str, wan: Any, tmp_path: Path) -> None:
    """Context windows shuffle the noise (freenoise) in a wrapper around the sampler."""
    sketch, render = windows(wan(), freenoise=True), windows(wan(seed=1), freenoise=True)
    how: dict[str, Any] = {"latent": helpers.empty_latent(frames=6), "sampler_name": sampler}
    assert not torch.equal(helpers.ksampler(sketch, **how), helpers.ksampler(windows(wan()), **how))
    latent, report = rendered(through_a_file(sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, **how)) and not report.notes


def test_noise_that_is_the_seed_s_is_not_written(a_file: Path, wan: Any) -> None:
    assert "noise" not in safetensors.torch.load_file(a_file)
    assert apart.load(a_file).noise is None


def test_a_file_from_before_noise_was_written_renders_and_says_what_may_have_changed_it(
    wan: Any, tmp_path: Path
) -> None:
    sketch, how = windows(wan(), freenoise=True), {"latent": helpers.empty_latent(frames=6)}
    record = sketched(sketch, **how)[0]
    record.noise = None
    _, report = rendered(through_a_file(record, tmp_path), wan(seed=1))
    (note,) = report.notes
    assert "context windows" in note and "Sketch again" in note


def test_one_sketch_serves_many_renders_and_stays_as_it_was(wan: Any) -> None:
    sketch = wan()
    record = sketched(sketch, sampler_name="uni_pc")[0]
    renders = [wan(seed=1), wan(seed=2), wan(seed=1)]
    first, other, again = (rendered(record, render)[0]["samples"] for render in renders)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(other, sr_sampler(sketch, renders[1], sampler_name="uni_pc"))


def test_no_sketch_is_loaded_or_called_to_render(wan: Any) -> None:
    import comfy.model_management

    record, (render, calls) = sketched(wan())[0], helpers.count_calls(wan(seed=1))
    comfy.model_management.unload_all_models()
    rendered(record, render)
    (loaded,) = comfy.model_management.loaded_models()
    assert loaded.model is render.model and len(calls) == STEPS - 3


def test_sketching_runs_no_step_after_the_hand_over_and_leaves_nothing_behind(wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    before = helpers.ksampler(sketch)
    calls.clear()
    sketched(sketch)
    assert len(calls) == 3
    assert torch.equal(helpers.ksampler(sketch), before)


def test_a_sketch_that_never_hands_over_comes_back_finished(wan: Any, tmp_path: Path) -> None:
    sketch, (render, calls) = wan(), helpers.count_calls(wan(seed=1))
    record, preview, report = sketched(sketch, switch_step=STEPS, sampler_name="dpmpp_2m")
    latent, _ = rendered(through_a_file(record, tmp_path), render)
    plain = helpers.ksampler(sketch, sampler_name="dpmpp_2m")
    assert torch.equal(latent["samples"], plain) and torch.equal(preview["samples"], plain)
    assert not report.hand_overs and not calls


# CogVideoX: two latent spaces, and one schedule each
DDPM_SAMPLERS = ["euler", "dpmpp_2m", "heun", "euler_cfg_pp", "dpmpp_sde", "uni_pc"]


@pytest.mark.parametrize("sampler", DDPM_SAMPLERS)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
def test_a_latent_of_another_scale_is_mapped_as_in_sr_sampler_bit_for_bit(
    sampler: str,
    denoise: float,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    sketch, render = cogvideox.load(folders["5b"]), cogvideox.load(folders["2b"])
    prompts = {"positive": [[text(1), {}]], "negative": [[text(2), {}]]}
    video = random(1, 16, 2, 8, 12, seed=9)
    how = prompts | {"latent": {"samples": video * (denoise < 1)}, "denoise": denoise, "sampler_name": sampler}
    record, preview, _ = sketched(sketch, **how)
    latent, report = rendered(through_a_file(record, tmp_path), render, **prompts)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, **how)) and not report.notes
    assert preview["samples"].shape == video.shape


@pytest.mark.parametrize("denoise", [1.0, 0.7])
def test_a_scale_that_another_node_put_on_the_sketch_goes_along(denoise: float, wan: Any, tmp_path: Path) -> None:
    sketch, render, how = wan(), wan(seed=1), {"latent": an_encoded_video(), "denoise": denoise}
    latent_format = type(sketch.model.latent_format)()
    latent_format.scale_factor = 0.5
    sketch.add_object_patch("latent_format", latent_format)
    latent, _ = rendered(through_a_file(sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], sr_sampler(sketch, render, **how))


@pytest.mark.parametrize("sampler", ["uni_pc", "euler_ancestral"])
def test_every_family_goes_through_a_file_as_in_sr_sampler(
    sampler: str, family: Any, load: Any, tmp_path: Path
) -> None:  # noqa: F811
    sketch, render, own = load("sketch"), load("render"), family.own_prompts()
    prompts = {"positive": family.prompt(1), "negative": family.prompt(2)}
    how = prompts | family.start() | {"sampler_name": sampler}
    latent, _ = rendered(through_a_file(sketched(sketch, **how)[0], tmp_path), render, **(own or prompts))
    whole = sr_sampler(sketch, render, **how, **{f"render_{role}": conds for role, conds in own.items()})
    assert torch.equal(latent["samples"], whole)


# --- what the artist sees ---------------------------------------------------------------------------------------------


def test_the_preview_is_the_sketchs_last_x0_prediction_with_the_masked_part_kept(wan: Any, monkeypatch: Any) -> None:
    import latent_preview

    seen: list[torch.Tensor] = []
    keep = lambda model, steps: lambda i, x0, x, total: seen.append(x0.clone())  # noqa: E731
    monkeypatch.setattr(latent_preview, "prepare_callback", keep)
    sketch, latent = wan(), an_encoded_video()
    latent["noise_mask"] = torch.zeros(2, 8, 8)
    latent["noise_mask"][:, 4:] = 1
    record, preview, _ = sketched(sketch, latent=latent)
    expected = sketch.model.process_latent_out(seen[-1])
    assert len(seen) == 3 and torch.allclose(preview["samples"], expected, atol=1e-5)
    assert torch.allclose(preview["samples"][:, :, :, :4], latent["samples"][:, :, :, :4], atol=1e-5)
    assert torch.equal(sketch_module.preview_of(record), preview["samples"])


def test_the_reports_of_both_halves_together_are_that_of_one_run(wan: Any, tmp_path: Path) -> None:
    sketch, render = wan(), wan(seed=1)
    rule = {"switch_mode": "adaptive", "delta": 1.0, "fix_step": 1, "steps": 10}
    record, _, first = sketched(sketch, **rule)
    _, report = rendered(through_a_file(record, tmp_path), render)
    whole = SRSampler.execute(
        sketch,
        render,
        positive=helpers.prompt(1),
        negative=helpers.prompt(2),
        latent=helpers.empty_latent(),
        seed=7,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        render_cfg=0.0,
        teacache=0.0,
        offload_sketch="auto",
        **(RULE | rule),
    ).args[1]
    for name in ("switch", "earliest", "latest", "sampler", "shape", "sigmas", "status"):
        assert getattr(report, name) == getattr(whole, name), name
    for ours, theirs in zip(report.stages, whole.stages, strict=True):
        assert (ours.name, ours.model, ours.calls) == (theirs.name, theirs.model, theirs.calls)
    assert [(s.step, s.sigma, s.stage, s.d, s.fall) for s in report.steps] == [
        (s.step, s.sigma, s.stage, s.d, s.fall) for s in whole.steps
    ]
    ours, theirs = report.hand_overs[0], whole.hand_overs[0]
    assert (ours.after_step, ours.reason, ours.d, ours.sigma) == (
        theirs.after_step,
        theirs.reason,
        theirs.d,
        theirs.sigma,
    )
    assert report.total_seconds > first.total_seconds > 0 and first.status == "done"
    assert report.stage("sketch").seconds == first.stage("sketch").seconds


def test_while_it_renders_those_who_look_see_the_sketchs_own_seconds_and_reason(wan: Any) -> None:
    record, _, first = sketched(wan(), switch_mode="adaptive", delta=1.0, fix_step=1, steps=10)
    seen: list[tuple[float, str]] = []
    report = module("srd_core.report.data").Report()
    report.watch = lambda now: now.hand_overs and seen.append((now.stage("sketch").seconds, now.hand_overs[0].reason))
    apart.render_from(record, wan(seed=1), apart.RenderSettings(0.0, helpers.prompt(1), helpers.prompt(2), 0.0), report)
    assert len(seen) > 3 and set(seen) == {(first.stage("sketch").seconds, "criterion")}


def test_samples_of_a_tensor_too_large_for_float32_places_end_at_its_last_value() -> None:
    x = torch.zeros(2**24 + 2**16 * 4)
    x[0], x[-1] = 1.0, 2.0
    samples = record_module.samples_of(x)
    assert (len(samples), samples[0], samples[-1]) == (record_module.SAMPLES, 1.0, 2.0)


def test_noise_that_differs_from_the_sketchs_is_said_in_the_report(wan: Any) -> None:
    record = sketched(wan())[0]
    object.__setattr__(record.settings, "seed", 8)  # as another machine's generator would draw it
    (note,) = rendered(record, wan(seed=1))[1].notes
    assert note.startswith("The noise differs") and "torch drew it" in note


def test_noise_that_only_the_sampler_draws_otherwise_is_said_to_be_the_sampler_s(wan: Any) -> None:
    record = sketched(wan(), sampler_name="euler_ancestral")[0]
    record.noise = comfy.sample.prepare_noise(record.latent_image, 7)
    object.__setattr__(record.settings, "seed", 8)
    (note,) = rendered(record, wan(seed=1))[1].notes
    assert "euler_ancestral draws noise in its steps" in note and "another device" in note


# --- refused with a sentence, before anything is loaded ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"denoise": 0.0}, "denoise is 0"),
        ({"switch_step": 0}, "would run no step"),
        ({"switch_mode": "sigma", "switch_sigma": 2.0}, "would run no step"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8) + 1}}, "needs [batch, 16, frames"),
        ({"switch_step": STEPS + 1}, f"switch_step is {STEPS + 1}, but the run has {STEPS} steps"),
        ({"cfg": float("nan")}, "cfg is nan; it must be a number"),
    ],
    ids=["denoise 0", "step 0", "sigma", "latent", "beyond", "cfg nan"],
)
def test_a_sketch_that_makes_no_sense_is_refused(how: dict[str, Any], words: str, wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError) as error:
        sketched(sketch, **how)
    assert words in str(error.value) and not calls


def test_a_render_of_another_latent_is_refused_naming_both(wan: Any) -> None:
    record, (render, calls) = sketched(wan())[0], helpers.count_calls(wan(seed=1))
    record.latent_facts["latent format"] = "HunyuanVideo"
    with pytest.raises(ValueError, match="HunyuanVideo.*Wan21"):
        rendered(record, render)
    record.latent_facts["latent format"] = "os.system"
    with pytest.raises(ValueError, match="does not know"):
        rendered(record, render)
    assert not calls


def test_another_kind_of_noise_schedule_and_an_unknown_sampler_are_refused(wan: Any) -> None:
    record, render = sketched(wan())[0], wan(seed=1)
    record.schedule.kinds[0] = "ModelSamplingFlux"
    with pytest.raises(ValueError, match="ModelSamplingFlux.*ModelSamplingDiscreteFlow"):
        rendered(record, render)
    object.__setattr__(record.settings, "sampler_name", "__import__")
    with pytest.raises(ValueError, match="__import__"):
        rendered(record, render)


def test_a_sampler_that_makes_other_calls_than_it_did_is_refused_naming_the_versions_where_they_differ(
    wan: Any,
) -> None:
    record = sketched(wan(), sampler_name="heun")[0]
    object.__setattr__(record.settings, "sampler_name", "euler")
    with pytest.raises(RuntimeError, match="Both are ComfyUI .* damaged.* Sketch again here") as error:
        rendered(record, wan(seed=1))
    assert "use one version" not in str(error.value)
    record.host = "0.17.0"
    with pytest.raises(RuntimeError, match="from ComfyUI 0.17.0, this is .*: use one version"):
        rendered(record, wan(seed=1))


@pytest.mark.parametrize(("change", "named"), [({"more": [1]}, "more"), ({"channel means": None}, "channel means")])
def test_a_latent_that_this_host_knows_otherwise_is_refused_naming_every_difference(
    change: Any, named: str, wan: Any
) -> None:
    record = sketched(wan())[0]
    record.latent_facts |= change
    with pytest.raises(ValueError, match=rf"different: {named}\)\. Both are ComfyUI"):
        rendered(record, wan(seed=1))


@pytest.mark.parametrize("shape", [(3,), (3, 3), (1001,)], ids=str)
def test_a_noise_schedule_of_another_size_is_refused_with_both_sizes(shape: tuple[int, ...], wan: Any) -> None:
    record, (render, calls) = sketched(wan())[0], helpers.count_calls(wan(seed=1))
    record.schedule.tables["sigmas"] = torch.ones(shape)
    with pytest.raises(ValueError) as error:
        rendered(record, render)
    assert f"sigmas {list(shape)}" in str(error.value) and "sigmas [1000]" in str(error.value) and not calls


@pytest.mark.parametrize("name", ["Wan22", "SDXL", "LatentFormat"])
def test_neither_preview_nor_render_takes_a_latent_that_its_format_can_not_be(name: str, wan: Any) -> None:
    record = sketched(wan())[0]
    record.latent_facts["latent format"] = name
    for half in (lambda: sketch_module.preview_of(record), lambda: rendered(record, wan(seed=1))):
        with pytest.raises(ValueError, match=f"has 16 channels and 3 dimensions, but {name} has"):
            half()


# What the host's schedulers give that no run can follow, and scales that are no number.
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scheduler": "kl_optimal", "steps": 1, "switch_step": 1}, "not finite .nan, 0.. Take more steps .kl_optimal"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"cfg": float("inf")}, "cfg is inf"),
    ],
    ids=["schedule", "cfg nan", "cfg inf"],
)
def test_levels_and_scales_that_are_not_finite_are_refused_before_any_step_by_both_samplers(
    how: dict[str, Any], words: str, wan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match=words):
        sketched(sketch, **how)
    with pytest.raises(ValueError, match=words):
        sr_sampler(sketch, wan(seed=1), how.get("steps", STEPS), **{k: v for k, v in how.items() if k != "steps"})
    assert not calls and "is not told" not in caplog.text


def test_a_render_cfg_that_is_no_number_is_refused_before_any_step(wan: Any) -> None:
    record, (render, calls) = sketched(wan())[0], helpers.count_calls(wan(seed=1))
    with pytest.raises(ValueError, match="render_cfg is nan"):
        rendered(record, render, render_cfg=float("nan"))
    with pytest.raises(ValueError, match="render_cfg is nan"):
        sr_sampler(wan(), render, render_cfg=float("nan"))
    assert not calls


def test_neither_half_takes_a_sketch_render_model(wan: Any) -> None:
    both = module("srd_core.pair").cooperate(
        wan(),
        wan(seed=1),
        module("srd_core.route").Switch(),
        module("srd_core.pair").RenderSettings(),
        module("srd_core.report.data").Report(),
    )
    record = sketched(wan())[0]
    for half in (lambda: sketched(both), lambda: rendered(record, both)):
        with pytest.raises(ValueError, match="already is a Sketch-Render Model"):
            half()


def test_an_interrupt_while_sketching_gives_no_hand_over(wan: Any) -> None:
    import comfy.model_management

    class Interrupt:
        def __call__(self, *args: Any) -> None:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

    sketch = wan()
    sketch.set_model_sampler_post_cfg_function(Interrupt())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sketched(sketch)


# --- the file ---------------------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The file with its facts and tensors changed."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(metadata[handover.FACTS])
    change(facts, tensors)
    metadata[handover.FACTS] = json.dumps(facts)
    changed = path.with_name(f"changed{handover.SUFFIX}")
    safetensors.torch.save_file(tensors, changed, metadata)
    return changed


def as_version_1(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """The report as the first releases wrote it."""
    new = facts["report"]
    sketch, render = new["stages"]
    names = {"fall": "derivative", "fall_low": "derivative_low"}
    old: dict[str, Any] = {
        key: new[key] for key in ("status", "switch", "sampler", "shape", "sigmas", "total_seconds", "notes", "error")
    }
    old |= {
        "version": 1,
        "sketch": sketch["model"],
        "render": render["model"],
        "delta": 0.0,
        "fix_step": 0,
        "limit": 0,
        "teacache": {},
    }
    for key in ("calls", "seconds", "load_seconds"):
        old[key] = {stage["name"]: stage[key] for stage in (sketch, render)}
    for key in ("steps", "hand_overs"):
        old[key] = [{names.get(name, name): value for name, value in part.items()} for part in new[key]]
    facts["report"] = old


def test_a_file_of_the_first_release_renders_as_one_of_today(a_file: Path, wan: Any) -> None:
    path = rewritten(a_file, as_version_1)
    path.write_bytes(path.read_bytes().replace(b'hand_over":"2"', b'hand_over":"1"'))
    render = wan(seed=1)
    old, new = (rendered(apart.load(file), render)[0]["samples"] for file in (path, a_file))
    assert torch.equal(old, new)


def test_a_file_gives_back_every_value_bit_for_bit(wan: Any, tmp_path: Path) -> None:
    record = sketched(wan(), sampler_name="euler_cfg_pp", latent=an_encoded_video(), denoise=0.8)[0]
    back = through_a_file(record, tmp_path)
    assert back.settings == record.settings and back.report.to_json() == record.report.to_json()
    assert back.latent_facts == record.latent_facts and back.host == record.host and back.steps == 3
    for name in ("latent_image", "sigmas", "x"):
        assert torch.equal(getattr(back, name), getattr(record, name)), name
    for ours, theirs in zip(back.calls, record.calls, strict=True):
        assert ours.sigma == theirs.sigma and torch.equal(ours.prediction, theirs.prediction)
        assert set(ours.noted) == set(theirs.noted) == set(record_module.NOTED)
        assert all(torch.equal(ours.noted[name], theirs.noted[name]) for name in ours.noted)
    assert back.schedule.values == record.schedule.values and [p.name for p in tmp_path.iterdir()] == [
        f"a{handover.SUFFIX}"
    ]


def test_a_file_holds_one_latent_a_call_and_little_else(a_file: Path, wan: Any) -> None:
    record, one = handover.read(a_file), 16 * 2 * 8 * 8 * 4
    assert a_file.stat().st_size < (len(record.calls) + 1) * one + 20_000


def set_fact(*keys: str, value: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(facts: dict[str, Any], tensors: Any) -> None:
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


def set_tensor(
    name: str, of: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[[Any, dict[str, torch.Tensor]], None]:
    def change(facts: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensor = of(tensors.pop(name))
        if tensor is not None:
            tensors[name] = tensor.contiguous()

    return change


def spoiled(tensor: torch.Tensor) -> torch.Tensor:
    tensor.flatten()[0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    "change",
    [
        set_fact("settings", "seed", value="7"),
        set_fact("settings", "seed", value=-1),
        set_fact("settings", "cfg", value="1e9"),
        set_fact("settings", "batch_index", value=["a"]),
        set_fact("settings", value=[]),
        set_fact("latent", "scale", value=0),
        set_fact("latent", value="Wan21"),
        set_fact("schedule", "values", value={"shift": "8"}),
        set_fact("schedule", "kinds", value="CONST"),
        set_fact("host", value=1),
        set_fact("report", value={}),
        set_fact("report", "calls", value=7),
        set_fact("report", "notes", value="x"),
        set_fact("report", "stages", 0, "seconds", value="1"),
        set_fact("report", "hand_overs", value=[]),
        set_tensor("sigmas", spoiled),
        set_tensor("sigmas", lambda t: t.flip(0)),
        set_tensor("sigmas", lambda t: t[:1]),
        set_tensor("sigmas", lambda t: t.to(torch.int32)),
        set_tensor("call_sigmas", lambda t: t[:-1]),
        set_tensor("call_x", lambda t: t[:, :9]),
        set_tensor("prediction.1", lambda t: None),
        set_tensor("prediction.1", spoiled),
        set_tensor("prediction.1", lambda t: t[:, :3]),
        set_tensor("prediction.0", lambda t: t.half().view(torch.uint8)),
        set_tensor("x", lambda t: None),
        lambda facts, tensors: tensors.update(more=torch.zeros(1)),
        lambda facts, tensors: tensors.update(noise=torch.zeros(1, 16, 3, 8, 8)),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_with_a_sentence_that_names_it(change: Any, a_file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^changed\.sketch\.safetensors is damaged: .*\. Copy it again, or sketch again\.$"
    ):
        handover.read(rewritten(a_file, change))


def drop_last_call(facts: Any, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["prediction.2"]
    for name in ("call_x", "call_sigmas"):
        tensors[name] = tensors[name][:2].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_fact("latent", "channels", value=48), "latent format"),
        (set_fact("latent", "dimensions", value=None), "latent format"),
        (set_fact("settings", "batch_index", value=[1, 2, 3]), "batch_index"),
        (set_fact("report", "hand_overs", 0, "after_step", value=1), "hand-over is not at"),
        (set_fact("report", "hand_overs", 0, "after_step", value=5), "hand-over is not at"),
        (set_fact("report", "stages", 0, "calls", value=2), "report"),
        (drop_last_call, "report"),
        (set_tensor("call_sigmas", lambda t: t * 0), "noise levels"),
        (set_tensor("call_sigmas", lambda t: t * 1.01), "noise levels"),
        (set_tensor("sigmas", lambda t: t * 0 + 0.5), "noise levels"),
        (set_tensor("sigmas", lambda t: t * 1e30), "hand-over is not at"),
        (set_tensor("schedule.sigmas", lambda t: t * 0), "noise schedule"),
    ],
)
def test_a_file_whose_parts_are_not_of_one_run_is_refused_as_damaged(
    change: Any, words: str, a_file: Path, host_folders: Path
) -> None:
    changed = rewritten(a_file, change)
    (host_folders / "input" / changed.name).write_bytes(changed.read_bytes())
    with pytest.raises(ValueError, match=rf"^changed\.sketch\.safetensors is damaged: .*{words}.* or sketch again\.$"):
        node.SRLoadHandOver.execute(changed.name)


def test_files_of_another_version_foreign_and_cut_files_are_refused_with_a_sentence(
    a_file: Path, wan: Any, tmp_path: Path
) -> None:
    whole = a_file.read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "version": (whole.replace(b'hand_over":"2"', b'hand_over":"9"'), "version '9'"),
        "cut": (whole[:-100], "cut short"),
        "header": (whole[:60], "not a safetensors file"),
        "empty": (b"", "not a safetensors file"),
        "huge header": (struct.pack("<Q", 1 << 40) + whole[8:], "not a safetensors file"),
        "pickle": (b"\x80\x04\x95" + bytes(100), "not a safetensors file"),
    }
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3)}, foreign)
    cases["foreign"] = (foreign.read_bytes(), "not a hand-over")
    for name, (content, words) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            handover.read(path)
        assert words in str(error.value) and path.name in str(error.value), name


def test_a_file_is_whole_or_not_there(wan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, path = sketched(wan())[0], tmp_path / f"a{handover.SUFFIX}"
    seen: list[str] = []

    def full_disk(tensors: Any, target: Path, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        seen.extend(p.name for p in tmp_path.iterdir())
        raise OSError("No space left on device")

    def killed(self: Path, target: Path) -> None:
        raise OSError("killed before the file got its name")

    for owner, name, fault in ((safetensors.torch, "save_file", full_disk), (Path, "replace", killed)):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="No space|killed"):
            broken.setattr(owner, name, fault)
            handover.write(record, path)
        assert not list(tmp_path.iterdir())
    assert path.name not in seen and len(seen) == 1


def test_the_next_hand_over_removes_what_a_killed_server_left_there_and_nothing_else(wan: Any, tmp_path: Path) -> None:
    record, old = sketched(wan())[0], time.time() - 2 * 24 * 3600
    left, being_written, others = (
        tmp_path / name
        for name in (f".left{handover.SUFFIX}.partial", f".b{handover.SUFFIX}.partial", ".other.safetensors.partial")
    )
    for path in (left, being_written, others):
        path.write_bytes(b"half")
    for path in (left, others):
        os.utime(path, (old, old))
    through_a_file(record, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {being_written.name, others.name, f"a{handover.SUFFIX}"}


# --- the nodes that save and load -------------------------------------------------------------------------------------


@pytest.fixture
def host_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's input and output folder, empty."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def offered() -> list[str]:
    return node.SRLoadHandOver.define_schema().inputs[0].options


def test_a_saved_hand_over_is_offered_and_loads_with_its_preview_and_report(host_folders: Path, wan: Any) -> None:
    record, preview, report = sketched(wan())
    names = [node.SRSaveHandOver.execute(record, "srdiffusion/idea").ui["hand_overs"][0] for _ in range(2)]
    assert [n["filename"] for n in names] == [f"idea_0000{i}_{handover.SUFFIX}" for i in (1, 2)]
    assert offered() == [f"srdiffusion/idea_0000{i}_{handover.SUFFIX} [output]" for i in (1, 2)]
    back, shown, its_report = node.SRLoadHandOver.execute(offered()[0]).args
    assert node.SRLoadHandOver.validate_inputs(offered()[0]) is True
    assert torch.equal(shown["samples"], preview["samples"]) and its_report.to_json() == report.to_json()
    (host_folders / "input" / f"moved{handover.SUFFIX}").write_bytes(
        (host_folders / "output" / "srdiffusion" / names[0]["filename"]).read_bytes()
    )
    assert offered()[0] == f"moved{handover.SUFFIX}"


def test_a_changed_file_is_seen_at_the_next_queue_without_reading_it(
    host_folders: Path, a_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = host_folders / "input" / f"a{handover.SUFFIX}"
    path.write_bytes(a_file.read_bytes())
    os.utime(path, ns=(10**18, 10**18))
    fingerprint = node.SRLoadHandOver.fingerprint_inputs
    with monkeypatch.context() as patched:
        for module_name in ("io", "builtins"):
            patched.setattr(f"{module_name}.open", lambda *args, **how: pytest.fail("the file is opened"))
        first = fingerprint(path.name)
        assert fingerprint(path.name) == first
    os.utime(path, ns=(10**18, 10**18 + 1000))  # the same size, another content
    later = fingerprint(path.name)
    path.write_bytes(a_file.read_bytes() + b"x")
    os.utime(path, ns=(10**18, 10**18 + 1000))
    other = host_folders / "input" / f"b{handover.SUFFIX}"
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(10**18, 10**18 + 1000))
    assert len({first, later, fingerprint(path.name), fingerprint(other.name)}) == 4


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "gone", "../output/x [input]", "", "a\0b", "srdiffusion", 3, ["a"]], ids=repr
)
def test_names_outside_the_hosts_folders_and_missing_files_are_refused_at_queue_time(
    name: Any, host_folders: Path
) -> None:
    (host_folders / "secret").write_bytes(b"x")
    (host_folders / "output" / "x").write_bytes(b"x")
    (host_folders / "input" / "srdiffusion").mkdir()
    assert "There is no hand-over file" in str(node.SRLoadHandOver.validate_inputs(name))


@pytest.mark.parametrize("prefix", ["../../x", "../x", "/etc/x", "a/../../x"])
def test_a_place_outside_the_output_folder_is_refused_before_the_sketch(prefix: str, host_folders: Path) -> None:
    said = node.SRSaveHandOver.validate_inputs(prefix)
    assert prefix in said and "Name a folder and a file inside ComfyUI's output folder" in said
    assert str(host_folders) not in said


def test_a_place_inside_the_output_folder_or_from_another_node_is_taken(host_folders: Path) -> None:
    assert node.SRSaveHandOver.validate_inputs("srdiffusion/%year%/idea") is True
    assert node.SRSaveHandOver.validate_inputs() is True


def test_a_damaged_file_is_refused_at_queue_time(host_folders: Path, a_file: Path) -> None:
    name = f"half{handover.SUFFIX}"
    (host_folders / "input" / name).write_bytes(a_file.read_bytes()[:-9])
    assert "cut short" in str(node.SRLoadHandOver.validate_inputs(name))


def test_the_inputs_of_both_halves_are_those_of_sr_sampler_under_the_same_names() -> None:
    whole = {i.id: i.as_dict() for i in SRSampler.define_schema().inputs}
    halves = [*node.SRSketch.define_schema().inputs, *node.SRRender.define_schema().inputs]
    for i in halves:
        assert i.id == "hand_over" or i.as_dict() == whole[i.id], i.id
