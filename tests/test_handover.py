"""Sketch once, render many: SR Sketch and SR Render (design section 4). The file: test_handover_file.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.model_management
import comfy.sample
import helpers
import pytest
import runs
import safetensors.torch
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hosting import module
from test_host_features import windows

cogvideox, report_text = module("srd_core.cogvideox"), module("srd_core.report.text")
record_module, sketch_module = module("srd_core.handover.record"), module("srd_core.handover.sketch")


# --- the two halves are the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "batch"), [("uni_pc", 1), ("dpmpp_2m_sde", 2)])
def test_an_encoded_video_with_a_mask_and_denoise_below_1_goes_along(
    sampler: str, batch: int, wan: Any, tmp_path: Path
) -> None:
    sketch, render, mask = wan(), wan(seed=1), runs.right_half()
    how: dict[str, Any] = {
        "sampler_name": sampler,
        "denoise": 0.7,
        "latent": {"samples": runs.a_video(batch), "noise_mask": mask},
    }
    latent, _ = runs.rendered(runs.through_a_file(runs.sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, **how))
    assert torch.equal(latent["noise_mask"], mask)


def test_the_noise_of_a_batch_taken_apart_goes_along(wan: Any, tmp_path: Path) -> None:
    sketch, render = wan(), wan(seed=1)
    how: dict[str, Any] = {"latent": helpers.empty_latent(2) | {"batch_index": [3, 1]}}
    latent, _ = runs.rendered(runs.through_a_file(runs.sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, **how)) and latent["batch_index"] == [3, 1]


def test_the_noise_of_any_place_in_a_batch_goes_through_a_file(a_file: Path, tmp_path: Path) -> None:
    record = runs.half_render.load(a_file)
    object.__setattr__(record.settings, "batch_index", [50_001])
    assert runs.through_a_file(record, tmp_path).settings.batch_index == [50_001]


def test_what_else_a_latent_has_comes_out_as_out_of_sr_sampler(wan: Any) -> None:
    latent = helpers.empty_latent() | {"downscale_ratio_spacial": 8, "type": "video"}
    ours = runs.rendered(runs.sketched(wan(), latent=latent)[0], wan(seed=1))[0]
    whole = runs.sr_outputs(wan(), wan(seed=1), latent=latent)[0]
    assert set(ours) == set(whole) == {"samples", "type"} and ours["type"] == "video"


def test_the_run_follows_the_sketchs_schedule_where_the_render_has_another_shift(wan: Any, tmp_path: Path) -> None:
    (sketch,), (render,) = ModelSamplingSD3().patch(wan(), 3.0), ModelSamplingSD3().patch(wan(seed=1), 9.0)
    record = runs.through_a_file(runs.sketched(sketch, sampler_name="sa_solver")[0], tmp_path)
    latent, _ = runs.rendered(record, render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, sampler_name="sa_solver"))


def test_render_cfg_teacache_and_other_prompts_of_the_render_work_as_in_sr_sampler(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    own = {"positive": helpers.prompt(5), "negative": helpers.prompt(6)}
    how = {"render_cfg": 1.5, "teacache": 0.3}
    latent, report = runs.rendered(runs.sketched(sketch, steps=12, sampler_name="uni_pc")[0], render, **own, **how)
    inputs = {f"render_{role}": conds for role, conds in own.items()}
    whole = runs.sr_sampler(sketch, render, 12, sampler_name="uni_pc", **how, **inputs)
    assert torch.equal(latent["samples"], whole) and report.stage("render").teacache["threshold"] == 0.3


@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m_sde"])
def test_noise_that_a_node_of_the_sketch_rearranged_goes_along(sampler: str, wan: Any, tmp_path: Path) -> None:
    """Context windows shuffle the noise (freenoise) in a wrapper around the sampler."""
    sketch, render = windows(wan(), freenoise=True), windows(wan(seed=1), freenoise=True)
    how: dict[str, Any] = {"latent": helpers.empty_latent(frames=6), "sampler_name": sampler}
    assert not torch.equal(helpers.ksampler(sketch, **how), helpers.ksampler(windows(wan()), **how))
    latent, report = runs.rendered(runs.through_a_file(runs.sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, **how)) and not report.notes


def test_noise_that_is_the_seed_s_is_not_written(a_file: Path) -> None:
    assert "noise" not in safetensors.torch.load_file(a_file)
    assert runs.half_render.load(a_file).noise is None


def test_a_file_from_before_noise_was_written_renders_and_says_what_may_differ(wan: Any, tmp_path: Path) -> None:
    sketch, how = windows(wan(), freenoise=True), {"latent": helpers.empty_latent(frames=6)}
    record = runs.sketched(sketch, **how)[0]
    record.noise = None
    _, report = runs.rendered(runs.through_a_file(record, tmp_path), wan(seed=1))
    (note,) = report.notes
    assert "context windows" in note and "Sketch again" in note


def test_one_sketch_serves_many_renders_and_stays_as_it_was(wan: Any) -> None:
    sketch = wan()
    record = runs.sketched(sketch, sampler_name="uni_pc")[0]
    renders = [wan(seed=1), wan(seed=2), wan(seed=1)]
    first, other, again = (runs.rendered(record, render)[0]["samples"] for render in renders)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(other, runs.sr_sampler(sketch, renders[1], sampler_name="uni_pc"))


def test_no_sketch_is_loaded_or_called_to_render(wan: Any) -> None:
    record, (render, calls) = runs.sketched(wan())[0], helpers.count_calls(wan(seed=1))
    comfy.model_management.unload_all_models()
    runs.rendered(record, render)
    (loaded,) = comfy.model_management.loaded_models()
    assert loaded.model is render.model and len(calls) == runs.STEPS - 3


def test_sketching_runs_no_step_after_the_hand_over_and_leaves_nothing_behind(wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    before = helpers.ksampler(sketch)
    calls.clear()
    runs.sketched(sketch)
    assert len(calls) == 3
    assert torch.equal(helpers.ksampler(sketch), before)


def test_a_sketch_that_never_hands_over_comes_back_finished(wan: Any, tmp_path: Path) -> None:
    sketch, (render, calls) = wan(), helpers.count_calls(wan(seed=1))
    record, preview, report = runs.sketched(sketch, switch_step=runs.STEPS, sampler_name="dpmpp_2m")
    latent, _ = runs.rendered(runs.through_a_file(record, tmp_path), render)
    plain = helpers.ksampler(sketch, sampler_name="dpmpp_2m")
    assert torch.equal(latent["samples"], plain) and torch.equal(preview["samples"], plain)
    assert not report.hand_overs and not calls


# CogVideoX: two latent spaces, and one schedule each
@pytest.mark.parametrize("sampler", ["uni_pc", "dpmpp_2m", "euler_cfg_pp"])
def test_a_latent_of_another_scale_is_mapped_as_in_sr_sampler_bit_for_bit(
    sampler: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    sketch, render = cogvideox.load(folders["5b"]), cogvideox.load(folders["2b"])
    denoise = 1.0 if sampler == "uni_pc" else 0.6
    video = oracle.random(1, 16, 2, 8, 12, seed=9)
    how: dict[str, Any] = {"latent": {"samples": video * (denoise < 1)}, "denoise": denoise, "sampler_name": sampler}
    record, preview, _ = runs.sketched(sketch, **oracle.prompts(), **how)
    latent, report = runs.rendered(runs.through_a_file(record, tmp_path), render, **oracle.prompts())
    assert (
        torch.equal(latent["samples"], runs.sr_sampler(sketch, render, **oracle.prompts(), **how)) and not report.notes
    )
    assert preview["samples"].shape == video.shape


@pytest.mark.parametrize("denoise", [1.0, 0.7])
def test_a_scale_that_another_node_put_on_the_sketch_goes_along(denoise: float, wan: Any, tmp_path: Path) -> None:
    sketch, render = wan(), wan(seed=1)
    how: dict[str, Any] = {"latent": {"samples": runs.a_video()}, "denoise": denoise}
    latent_format = type(sketch.model.latent_format)()
    latent_format.scale_factor = 0.5
    sketch.add_object_patch("latent_format", latent_format)
    latent, _ = runs.rendered(runs.through_a_file(runs.sketched(sketch, **how)[0], tmp_path), render)
    assert torch.equal(latent["samples"], runs.sr_sampler(sketch, render, **how))


# --- what the artist sees ---------------------------------------------------------------------------------------------


def test_the_preview_is_the_sketchs_last_x0_prediction_with_the_masked_part_kept(wan: Any, monkeypatch: Any) -> None:
    import latent_preview

    seen: list[torch.Tensor] = []
    keep = lambda model, steps: lambda i, x0, x, total: seen.append(x0.clone())  # noqa: E731
    monkeypatch.setattr(latent_preview, "prepare_callback", keep)
    sketch, latent = wan(), {"samples": runs.a_video(), "noise_mask": runs.right_half()}
    record, preview, _ = runs.sketched(sketch, latent=latent)
    expected = sketch.model.process_latent_out(seen[-1])
    assert len(seen) == 3 and torch.allclose(preview["samples"], expected, atol=1e-5)
    assert torch.allclose(preview["samples"][..., :4], latent["samples"][..., :4], atol=1e-5)
    assert torch.equal(sketch_module.preview_of(record), preview["samples"])


def test_the_reports_of_both_halves_together_are_that_of_one_run(wan: Any, tmp_path: Path) -> None:
    sketch, render = wan(), wan(seed=1)
    rule = {"switch_mode": "adaptive", "delta": 1.0, "fix_step": 1, "steps": 10}
    record, _, first = runs.sketched(sketch, **rule)
    _, report = runs.rendered(runs.through_a_file(record, tmp_path), render)
    whole = runs.sr_outputs(sketch, render, **rule)[1]
    for name in ("switch", "earliest", "latest", "sampler", "shape", "sigmas", "status"):
        assert getattr(report, name) == getattr(whole, name), name
    for ours, theirs, names in (
        (report.stages, whole.stages, ("name", "model", "calls")),
        (report.steps, whole.steps, ("step", "sigma", "stage", "d", "fall")),
        (report.hand_overs, whole.hand_overs, ("after_step", "reason", "d", "sigma")),
    ):
        assert [[getattr(x, n) for n in names] for x in ours] == [[getattr(x, n) for n in names] for x in theirs]
    assert report.total_seconds > first.total_seconds > 0 and first.status == "done"
    assert report.stage("sketch").seconds == first.stage("sketch").seconds


def test_while_it_renders_those_who_look_see_the_sketchs_own_seconds_and_reason(wan: Any) -> None:
    record, _, first = runs.sketched(wan(), switch_mode="adaptive", delta=1.0, fix_step=1, steps=10)
    seen: list[tuple[float, str]] = []
    report = runs.Report()
    report.watch = lambda now: now.hand_overs and seen.append((now.stage("sketch").seconds, now.hand_overs[0].reason))
    settings = runs.half_render.RenderSettings(0.0, helpers.prompt(1), helpers.prompt(2), 0.0)
    runs.half_render.render_from(record, wan(seed=1), settings, report)
    assert len(seen) > 3 and set(seen) == {(first.stage("sketch").seconds, "criterion")}


def test_samples_of_a_tensor_too_large_for_float32_places_end_at_its_last_value() -> None:
    x = torch.zeros(2**24 + 2**16 * 4)
    x[0], x[-1] = 1.0, 2.0
    samples = record_module.samples_of(x)
    assert (len(samples), samples[0], samples[-1]) == (record_module.SAMPLES, 1.0, 2.0)


def test_noise_that_differs_from_the_sketchs_is_said_in_the_report(wan: Any) -> None:
    record = runs.sketched(wan())[0]
    object.__setattr__(record.settings, "seed", 8)  # as another machine's generator would draw it
    (note,) = runs.rendered(record, wan(seed=1))[1].notes
    assert note.startswith("The noise differs") and "torch drew it" in note


def test_noise_that_only_the_sampler_draws_otherwise_is_said_to_be_the_sampler_s(wan: Any) -> None:
    record = runs.sketched(wan(), sampler_name="euler_ancestral")[0]
    record.noise = comfy.sample.prepare_noise(record.latent_image, 7)
    object.__setattr__(record.settings, "seed", 8)
    (note,) = runs.rendered(record, wan(seed=1))[1].notes
    assert "euler_ancestral draws noise in its steps" in note and "another device" in note


# --- refused with a sentence, before anything is loaded ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"denoise": 0.0}, "denoise is 0"),
        ({"switch_step": 0}, "would run no step"),
        ({"switch_mode": "sigma", "switch_sigma": 2.0}, "would run no step"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8) + 1}}, "needs [batch, 16, frames"),
        ({"switch_step": runs.STEPS + 1}, f"switch_step is {runs.STEPS + 1}, but the run has {runs.STEPS} steps"),
    ],
    ids=["denoise 0", "step 0", "sigma", "latent", "beyond"],
)
def test_a_sketch_that_makes_no_sense_is_refused(how: dict[str, Any], words: str, wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError) as error:
        runs.sketched(sketch, **how)
    assert words in str(error.value) and not calls


Change = Callable[[Any], Any]


def fact(name: str, value: Any) -> Change:
    return lambda record: record.latent_facts.update({name: value})


def schedule(*shape: int) -> tuple[Change, str]:
    """A noise schedule of another size, and what names both sizes."""
    return lambda record: record.schedule.tables.update(sigmas=torch.ones(shape)), (
        rf"(?s)(?=.*{re.escape(f'sigmas {list(shape)}')})(?=.*sigmas \[1000\])"
    )


REFUSED: dict[str, tuple[Change, str]] = {
    "another latent": (fact("latent format", "HunyuanVideo"), "HunyuanVideo.*Wan21"),
    "no latent": (fact("latent format", "os.system"), "does not know"),
    "a fact more": (fact("more", [1]), r"different: more\)\. Both are ComfyUI"),
    "another fact": (fact("channel means", None), r"different: channel means\)\. Both are ComfyUI"),
    "another schedule": (lambda record: record.schedule.kinds.insert(0, "ModelSamplingFlux"), "Flux.*DiscreteFlow"),
    "a short schedule": schedule(3),
    "a square schedule": schedule(3, 3),
    "a long schedule": schedule(1001),
    "no sampler": (lambda record: object.__setattr__(record.settings, "sampler_name", "__import__"), "__import__"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_sketch_that_the_render_can_not_follow_is_refused_before_any_step(what: str, wan: Any) -> None:
    record, (render, calls) = runs.sketched(wan())[0], helpers.count_calls(wan(seed=1))
    change, words = REFUSED[what]
    change(record)
    with pytest.raises(ValueError, match=words):
        runs.rendered(record, render)
    assert not calls


def test_a_sampler_that_makes_other_calls_than_it_did_is_refused_naming_both_hosts(wan: Any) -> None:
    record = runs.sketched(wan(), sampler_name="heun")[0]
    object.__setattr__(record.settings, "sampler_name", "euler")
    with pytest.raises(RuntimeError, match="Both are ComfyUI .* damaged.* Sketch again here") as error:
        runs.rendered(record, wan(seed=1))
    assert "use one version" not in str(error.value)
    record.host = "0.17.0"
    with pytest.raises(RuntimeError, match="from ComfyUI 0.17.0, this is .*: use one version"):
        runs.rendered(record, wan(seed=1))


@pytest.mark.parametrize("name", ["Wan22", "SDXL", "LatentFormat"])
def test_neither_preview_nor_render_takes_a_latent_that_its_format_can_not_be(name: str, wan: Any) -> None:
    record = runs.sketched(wan())[0]
    record.latent_facts["latent format"] = name
    for half in (lambda: sketch_module.preview_of(record), lambda: runs.rendered(record, wan(seed=1))):
        with pytest.raises(ValueError, match=f"has 16 channels and 3 dimensions, but {name} has"):
            half()


# What the host's schedulers give that no run can follow, and scales that are no number.
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"scheduler": "kl_optimal", "steps": 1, "switch_step": 1}, "not finite .nan, 0.. Take more steps .kl_optimal"),
        ({"cfg": float("nan")}, "cfg is nan"),
    ],
    ids=["schedule", "cfg"],
)
def test_levels_and_scales_that_are_not_finite_are_refused_by_both_samplers(
    how: dict[str, Any], words: str, wan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match=words):
        runs.sketched(sketch, **how)
    with pytest.raises(ValueError, match=words):
        runs.sr_sampler(
            sketch, wan(seed=1), how.get("steps", runs.STEPS), **{k: v for k, v in how.items() if k != "steps"}
        )
    assert not calls and "is not told" not in caplog.text


def test_a_render_cfg_that_is_no_number_is_refused_before_any_step(wan: Any) -> None:
    record, (render, calls) = runs.sketched(wan())[0], helpers.count_calls(wan(seed=1))
    with pytest.raises(ValueError, match="render_cfg is nan"):
        runs.rendered(record, render, render_cfg=float("nan"))
    with pytest.raises(ValueError, match="render_cfg is nan"):
        runs.sr_sampler(wan(), render, render_cfg=float("nan"))
    assert not calls


def test_neither_half_takes_a_sketch_render_model(wan: Any) -> None:
    both = runs.sr_model(wan(), wan(seed=1))
    record = runs.sketched(wan())[0]
    with pytest.raises(ValueError, match="The sketch already is a Sketch-Render Model"):
        runs.sketched(both)
    with pytest.raises(ValueError, match="The render already is a Sketch-Render Model"):
        runs.rendered(record, both)


def test_an_interrupt_while_sketching_gives_no_hand_over(wan: Any) -> None:
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        runs.sketched(runs.interrupting(wan(), 2))


def test_differential_diffusion_on_both_halves_gives_the_one_runs_video(wan: Any, tmp_path: Path) -> None:
    sketch, render, latent = runs.soft(wan()), wan(seed=1), runs.softly_masked()
    record = runs.through_a_file(runs.sketched(sketch, latent=latent)[0], tmp_path)
    rendered, report = runs.rendered(record, runs.soft(render))
    assert torch.equal(rendered["samples"], runs.sr_sampler(sketch, render, latent=latent)) and not report.notes
    with pytest.raises(ValueError, match="Differential Diffusion.*Put the same one on the render"):
        runs.rendered(record, render)
    unmasked = runs.sketched(sketch)[0]
    assert torch.equal(runs.rendered(unmasked, render)[0]["samples"], runs.sr_sampler(sketch, render))


@pytest.mark.parametrize(
    "rule",
    [
        {"switch_mode": "sigma", "switch_sigma": 0.95},
        {"switch_mode": "adaptive", "delta": 0.9, "fix_step": 3, "switch_sigma": 0.0},
        {"switch_mode": "adaptive", "delta": 0.0001, "fix_step": 3, "max_step": 9},
        {"switch_mode": "adaptive", "delta": 0.0001, "fix_step": 2, "switch_sigma": 0.93},
    ],
    ids=["sigma", "criterion", "max_step", "latest"],
)
def test_sr_render_says_why_the_sketch_switched(rule: dict[str, Any], wan: Any) -> None:
    record, _, ours = runs.sketched(wan(), steps=20, **rule)
    theirs = runs.rendered(record, wan(seed=1))[1]
    said = [report_text.describe_hand_over(report.hand_overs[0], report) for report in (ours, theirs)]
    assert said[0] == said[1]
