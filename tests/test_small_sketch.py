"""A sketch of fewer pixels in every kind of run (its algebra: test_enlarge.py; each sampler: test_every_sampler.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import helpers
import pytest
import runs
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode
from hosting import module
from test_host_features import windows

cogvideox, smaller, figures = (
    module("srd_core.cogvideox"),
    module("srd_core.smaller"),
    module("srd_core.report.figures"),
)
Enlargement = module("srd_core.enlarge").Enlargement
HALF = {"steps": 8, "switch_step": 4, "sketch_scale": 0.5}  # inputs of SR Sketch


def scaled(sketch: Any, render: Any, scale: float = 0.5, report: Any = None, switch: Any = 4, **settings: Any) -> Any:
    return runs.sr_model(sketch, render, switch, report, sketch_scale=scale, **settings)


# --- every kind of run ------------------------------------------------------------------------------------------------


def test_off_is_todays_run_bit_for_bit_and_by_todays_code(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(smaller.Smaller, "__init__", None)  # nothing of it is made
        today = helpers.ksampler(runs.sr_model(wan(), wan(seed=1), 4), 8)
        assert torch.equal(helpers.ksampler(scaled(wan(), wan(seed=1), 1.0), 8), today)
    report = runs.Report()
    whole_patches_of_the_same_size = scaled(wan(), wan(seed=1), 0.97, report)
    assert torch.equal(helpers.ksampler(whole_patches_of_the_same_size, 8), today)
    assert any("sketch_scale does nothing" in note for note in report.notes)


RULES = {
    "adaptive": runs.Switch("adaptive", delta=1e9, fix_step=5, switch_sigma=0.0, max_step=9),
    "sigma": runs.Switch("sigma", switch_sigma=0.95),
    "listed": "1-5",
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_means_the_steps_and_levels_of_the_whole_schedule(name: str, wan: Any) -> None:
    full, small = runs.Report(), runs.Report()
    helpers.ksampler(scaled(wan(), wan(seed=1), 1.0, full, RULES[name]), 20)
    helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, small, RULES[name]), 20)
    if name != "adaptive":  # random weights settle at another step at another size
        assert small.hand_overs[0].after_step == full.hand_overs[0].after_step
    assert small.sigmas == full.sigmas and (small.earliest, small.latest) == (full.earliest, full.latest)
    assert small.hand_overs[0].sigma == full.sigmas[small.hand_overs[0].after_step]


def test_a_run_that_the_render_begins_is_the_renders_own(wan: Any) -> None:
    render = wan(seed=1)
    latent = helpers.ksampler(scaled(wan(), render, switch=0), 6)
    assert torch.equal(latent, helpers.ksampler(render, 6))


def test_a_batch_is_enlarged_sample_by_sample(wan: Any) -> None:
    model = scaled(wan(), wan(seed=1), 0.5, fade=1.1)
    both = helpers.ksampler(model, 8, latent=helpers.empty_latent(batch=2))
    one = helpers.ksampler(model, 8)
    assert runs.distance(both[:1], one) < 1e-4 and runs.distance(both[1:], one) > 0.1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_masked_run_keeps_what_it_should(share: float, wan: Any) -> None:
    given = runs.a_video()
    latent = {"samples": given, "noise_mask": runs.right_half(share)}
    for sampler in ("euler", "ddim", "euler_ancestral"):
        out = helpers.ksampler(scaled(wan(), wan(seed=1)), 8, latent=latent, sampler_name=sampler)
        assert torch.allclose(out[..., :4], given[..., :4], atol=1e-4)
        assert not torch.allclose(out[..., 4:], given[..., 4:], atol=0.1)


def test_progress_and_previews_follow_the_size(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview

    told: list[tuple[int, tuple[int, ...], int]] = []
    tell = lambda model, steps: lambda step, x0, x, total: told.append((step, tuple(x0.shape[-2:]), total))  # noqa: E731
    monkeypatch.setattr(latent_preview, "prepare_callback", tell)
    helpers.ksampler(scaled(wan(), wan(seed=1)), 8)
    assert told == [(step, (4, 4) if step < 4 else (8, 8), 8) for step in range(8)]


def test_a_speed_up_over_a_sketch_that_did_not_run_at_full_size_is_not_made_up(wan: Any) -> None:
    report, left = runs.Report(), []
    report.watch = lambda running: left.append((running.count("render"), figures.remaining(running)))
    helpers.ksampler(scaled(wan(), wan(seed=1), 0.5, report), 8)
    assert report.shape == [1, 16, 2, 8, 8] and report.small_shape == [1, 16, 2, 4, 4]
    assert figures.speed_up(report) is None
    assert not any(found for renders, found in left if not renders)
    assert any(found for renders, found in left if renders > 1)
    assert runs.Report.from_json(report.to_json()).small_shape == report.small_shape


def test_teacache_plans_the_renders_steps_at_its_size(wan: Any) -> None:
    report = runs.Report()
    helpers.ksampler(scaled(runs.slow_wan(), runs.slow_wan(1), 0.5, report, teacache=runs.THRESHOLD), 20)
    plan = report.stage("render").teacache
    assert plan["first_step"] == 4 and len(plan["reuse"]) <= 16 and report.reused("render") == sum(plan["reuse"]) > 0


def test_step_caches_and_context_windows_of_the_host_stay_in_step(wan: Any) -> None:
    def cached(model: Any) -> Any:
        return EasyCacheNode.execute(model, 0.2, 0.1, 0.9, False).args[0]

    for change in (cached, windows):
        report = runs.Report()
        model = scaled(change(wan()), change(wan(seed=1)), 0.5, report)
        latent = helpers.ksampler(model, 10, latent=helpers.empty_latent(frames=6))
        assert torch.isfinite(latent).all() and report.status == "done" and len(report.steps) == 10


@pytest.mark.parametrize(("stage", "fault"), [("sketch", runs.failing), ("render", runs.interrupting)])
def test_an_interrupted_or_failing_run_leaves_nothing(stage: str, fault: Any, wan: Any) -> None:
    sketch, render, report = wan(), wan(seed=1), runs.Report()
    before = helpers.ksampler(scaled(sketch, render), 8)
    pair = (fault(sketch, 2), render) if stage == "sketch" else (sketch, fault(render, 2))
    with runs.left_as_before(sketch, render):
        helpers.ksampler(scaled(*pair, report=report), 8)
    assert report.status == ("failed" if fault is runs.failing else "interrupted")
    assert torch.equal(helpers.ksampler(scaled(sketch, render), 8), before)


# --- what has the latent's size ---------------------------------------------------------------------------------------


def test_the_image_of_an_image_to_video_model_comes_at_each_stages_own_size(wan: Any) -> None:
    sketch, small = runs.shapes_of(wan(kind="i2v"), WrappersMP.DIFFUSION_MODEL)
    render, large = runs.shapes_of(wan(seed=1, kind="i2v"), WrappersMP.DIFFUSION_MODEL)
    image: dict[str, Any] = {
        "concat_latent_image": torch.randn(1, 16, 2, 8, 8),
        "concat_mask": torch.zeros(1, 1, 2, 8, 8),
    }
    prompts = {"positive": helpers.prompt(1, **image), "negative": helpers.prompt(2, **image)}
    assert torch.isfinite(helpers.ksampler(scaled(sketch, render), 8, **prompts)).all()
    assert {s[1:] for s in small} == {(36, 2, 4, 4)} and {s[1:] for s in large} == {(36, 2, 8, 8)}
    assert image["concat_latent_image"].shape[-1] == 8  # the artist's own conditioning stays as it was


def test_tensors_masks_and_areas_of_the_latents_size_are_resized_and_others_stay() -> None:
    scale = Enlargement((8, 12), (4, 6), True)
    frames, face = torch.arange(96.0).reshape(1, 1, 1, 8, 12), torch.zeros(1, 3, 2, 512, 512)
    cond = {
        "vace_frames": [frames],
        "vace_mask": [torch.ones(1, 64, 1, 8, 12)],
        "area": (4, 6, 4, 6),
        "face_video_pixels": face,
        "camera_conditions": torch.ones(1, 6, 1, 64, 96),
        "cross_attn": torch.zeros(1, 8, 12),
        "strength": 1.0,
    }
    small = smaller.small_conds({"positive": [cond]}, scale)["positive"][0]
    vace = small["vace_frames"][0]
    assert vace.shape[-2:] == (4, 6) and vace[0, 0, 0, 0, 0] == frames[0, 0, 0, :2, :2].mean()
    assert (small["vace_mask"][0] == 1).all() and small["area"] == (2, 3, 2, 3)
    assert small["camera_conditions"].shape[-2:] == (32, 48)
    assert small["face_video_pixels"] is face and small["cross_attn"] is cond["cross_attn"]
    relative = {"area": ("percentage", 0.5, 0.5, 0, 0)}
    assert smaller.small_conds({"positive": [relative]}, scale)["positive"][0]["area"] == relative["area"]


@pytest.mark.parametrize(
    "extra",
    [{"gligen": ("position", None, [])}, {"vace_frames": [torch.zeros(1, 32, 2, 6, 6)]}],
    ids=["gligen", "vace"],
)
def test_conditioning_that_can_not_be_resized_is_refused_before_any_step(extra: dict[str, Any], wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    with pytest.raises(ValueError, match=f"{next(iter(extra))!r}, which can't be resized"):
        helpers.ksampler(scaled(sketch, wan(seed=1)), 8, positive=helpers.prompt(1, **extra))
    assert not calls


def test_ranges_of_steps_mean_the_steps_of_the_run(wan: Any) -> None:
    """A prompt that ends after 10 % of the run ends at the same step, small or not."""
    calls: dict[float, int] = {}
    for scale in (1.0, 0.5):
        sketch, batches = helpers.count_calls(wan())
        prompts = [
            *helpers.prompt(1, start_percent=0.0, end_percent=0.1),
            *helpers.prompt(3, start_percent=0.0, end_percent=1.0),
        ]
        helpers.ksampler(scaled(sketch, wan(seed=1), scale, switch=12), 20, positive=prompts)
        calls[scale] = sum(batches)
    assert calls[1.0] == calls[0.5]


def test_memory_is_asked_for_at_the_small_size(wan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full, small = runs.Report(), runs.Report()
    sketch, render = wan(), wan(seed=1)
    for scale, report in ((1.0, full), (0.5, small)):
        helpers.ksampler(scaled(sketch, render, scale, report, 1), 2, latent=helpers.empty_latent(side=64), cfg=1.0)
    needed = [[report.stage(name).step_bytes for name in ("sketch", "render")] for report in (full, small)]
    assert needed[0][1] == needed[1][1] and needed[1][0] < 0.3 * needed[0][0]
    asked: list[tuple[bool, tuple[int, ...]]] = []
    own = comfy.sampler_helpers.estimate_memory

    def note(model: Any, shape: Any, conds: Any) -> Any:
        asked.append((model.is_clone(sketch), tuple(shape)))
        return own(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", note)
    helpers.ksampler(scaled(sketch, render), 8)
    assert set(asked) == {(True, (1, 16, 2, 4, 4)), (False, (1, 16, 2, 8, 8))}


# --- three models, two halves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"fade": 1.1}, {"render_steps": 5}], ids=["fade", "steps"])
def test_all_that_is_connected_as_the_sketch_runs_small(settings: dict[str, Any], wan: Any) -> None:
    watches, report = [runs.shapes_of(wan(seed=i)) for i in range(3)], runs.Report()
    inner = runs.sr_model(watches[0][0], watches[1][0], 3, **settings)
    latent = helpers.ksampler(scaled(inner, watches[2][0], 0.5, report, 5, fade=1.1), 10)
    assert torch.isfinite(latent).all() and [h.after_step for h in report.hand_overs] == [3, 5]
    assert [{shape[-2:] for shape in shapes} for _, shapes in watches] == [{(4, 4)}, {(4, 4)}, {(8, 8)}]


def test_an_inner_rule_that_decides_while_it_is_small_may_have_steps_of_its_own(wan: Any) -> None:
    report = runs.Report()
    rule = runs.Switch("adaptive", delta=1e9, fix_step=5, switch_sigma=0.0)
    inner = runs.sr_model(wan(), wan(seed=1), rule, render_steps=6)
    latent = helpers.ksampler(scaled(inner, wan(seed=2), 0.5, report, runs.Switch("sigma", switch_sigma=0.8)), 20)
    assert torch.isfinite(latent).all() and len(report.hand_overs) == 2 and max(report.sigmas) == report.sigmas[0]
    assert len(report.steps) == len(report.sigmas) - 1


def test_a_scale_within_a_part_is_refused(wan: Any) -> None:
    for inner in ("sketch", "render"):
        parts = {"sketch": wan(), "render": wan(seed=1), inner: scaled(wan(seed=2), wan(seed=3))}
        with pytest.raises(ValueError, match="whose sketch_scale is below 1 is connected to another"):
            runs.sr_model(parts["sketch"], parts["render"], 4)


def test_the_halves_of_a_run_whose_noise_a_node_changes_are_one_run_up_to_rounding(wan: Any) -> None:
    """The low frequencies of the record's noise (freenoise of context windows) are those that the sketch began with."""
    latent = {"latent": helpers.empty_latent(frames=6)}
    one = helpers.ksampler(scaled(windows(wan(), freenoise=True), windows(wan(seed=1))), 8, **latent)
    record = runs.sketched(windows(wan(), freenoise=True), **HALF, **latent)[0]
    assert record.noise is not None and record.noise.shape == record.latent_image.shape
    assert runs.distance(runs.rendered(record, windows(wan(seed=1)))[0]["samples"], one) < 1e-4


def test_the_halves_of_a_masked_video_are_one_run(wan: Any) -> None:
    how = {"latent": {"samples": runs.a_video(), "noise_mask": runs.right_half()}, "denoise": 0.8}
    one = helpers.ksampler(scaled(wan(), wan(seed=1)), 8, **how)
    assert torch.equal(runs.rendered(runs.sketched(wan(), **HALF, **how)[0], wan(seed=1))[0]["samples"], one)


def test_only_the_file_of_a_small_sketch_has_the_newer_version(wan: Any, tmp_path: Path) -> None:
    for scale, version in ((1.0, "2"), (0.5, "3")):
        path = tmp_path / f"{version}{runs.handover.SUFFIX}"
        runs.handover.write(runs.sketched(wan(), **HALF | {"sketch_scale": scale})[0], path)
        assert module("srd_core.checkpoint").read_header(path, 10**7)["__metadata__"][runs.handover.MARK] == version
        assert runs.handover.read(path).settings.sketch_scale == scale


@pytest.mark.parametrize("size", [(10, 4), (4, 10)], ids=str)
def test_a_file_whose_sketch_is_larger_than_its_latent_is_damaged(size: Any, wan: Any, tmp_path: Path) -> None:
    record = runs.sketched(wan(), **HALF)[0]
    record.calls = [dataclasses.replace(call, prediction=torch.zeros(1, 16, 2, *size)) for call in record.calls]
    with pytest.raises(ValueError, match="its sketch is larger than its latent"):
        runs.through_a_file(record, tmp_path)


# --- CogVideoX, and what is refused -----------------------------------------------------------------------------------


def test_cogvideox_is_enlarged_in_its_own_coordinates(folders: dict[str, Path]) -> None:
    sketch, small = runs.shapes_of(cogvideox.load(folders["5b"]))
    render, large = runs.shapes_of(cogvideox.load(folders["2b"]))
    empty = {"samples": torch.zeros(1, 16, 2, 8, 12)}
    latent = helpers.ksampler(
        scaled(sketch, render, fade=1.1), 8, sampler_name="uni_pc", latent=empty, **oracle.prompts()
    )
    assert torch.isfinite(latent).all() and latent.shape[-2:] == (8, 12)
    assert {s[-2:] for s in small} == {(4, 6)} and {s[-2:] for s in large} == {(8, 12)}


REFUSED = {
    "step": (8, "Lower switch_step."),
    "sigma": (runs.Switch("sigma", switch_sigma=0.0), "Raise switch_sigma."),
    "adaptive": (runs.Switch("adaptive", switch_sigma=0.0), "Raise switch_sigma."),
    "max_step": (runs.Switch("adaptive", max_step=8), "Lower max_step."),
    "listed": ("1-3, 7", "List the sketch's steps from 1 on without a gap"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_might_end_small_or_come_back_is_refused_before_any_step(name: str, wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    switch, way = REFUSED[name]
    report = runs.Report()
    with pytest.raises(ValueError, match=f"the render the last step, with one switch between them. {way}"):
        helpers.ksampler(scaled(sketch, wan(seed=1), 0.5, report, switch), 8)
    assert not calls and report.status == "failed"


@pytest.mark.parametrize("scale", [0.4, 1.1, 0.0, float("nan")])
def test_a_share_that_is_none_is_refused(scale: float, wan: Any) -> None:
    with pytest.raises(ValueError, match="sketch_scale is"):
        runs.RenderSettings(sketch_scale=scale)
    with pytest.raises(ValueError, match="sketch_scale is"):
        runs.sketched(wan(), sketch_scale=scale)


def test_a_sampler_that_changes_the_size_is_told_so(wan: Any) -> None:
    model = scaled(wan(), wan(seed=1))
    with pytest.raises(RuntimeError, match="changed the size of the latent"):
        runs.sampled(model, comfy.samplers.KSAMPLER(runs.growing), runs.levels_of(model, 8))


def test_differential_diffusion_frees_the_same_parts_in_a_smaller_sketch(wan: Any) -> None:
    blocks = torch.tensor([0.5, 0.8, 0.9, 1.0]).repeat_interleave(4).expand(1, 16, 16)
    latent = {"samples": torch.randn(1, 16, 2, 16, 16), "noise_mask": blocks}

    def freed(scale: float) -> list[float]:
        model, shares = runs.soft(wan()), []
        own = model.model_options["denoise_mask_function"]

        def note(*args: Any, **kwargs: Any) -> torch.Tensor:
            mask: torch.Tensor = own(*args, **kwargs)
            shares.append(float(mask.mean()))
            return mask

        model.model_options["denoise_mask_function"] = note
        helpers.ksampler(runs.sr_model(model, runs.soft(wan(seed=1)), 16, sketch_scale=scale), 20, latent=latent)
        return shares[:16] + shares[-4:]  # the call at which the latent is enlarged is made twice

    assert freed(0.5) == freed(1.0) and len(set(freed(1.0))) > 1


def test_what_a_soft_mask_keeps_in_part_is_kept_once_in_the_enlarged_latent(
    wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    enlarged = smaller.Smaller.enlarged

    def watched(self: Any, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        large: torch.Tensor = enlarged(self, x, sigma)
        seen.append((self.scale.factor(sigma[0]) * x, self.scale.low(large)))
        return large

    monkeypatch.setattr(smaller.Smaller, "enlarged", watched)
    latent = {"samples": runs.a_video(), "noise_mask": torch.full((1, 1, 2, 8, 8), 0.8)}
    helpers.ksampler(scaled(wan(), wan(seed=1), fade=1.1), 8, latent=latent)
    assert len(seen) == 3 and all(torch.allclose(large, small, atol=1e-5) for small, large in seen)


def test_what_differential_diffusion_still_keeps_is_whole_in_the_enlarged_latent(wan: Any) -> None:
    blocks = torch.tensor([0.2, 1.0]).repeat_interleave(8).expand(1, 16, 16)
    latent = {"samples": torch.randn(1, 16, 2, 16, 16), "noise_mask": blocks}
    seen: list[Any] = []

    def see(executor: Any, x: torch.Tensor, sigma: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((x, sigma))
        result: torch.Tensor = executor(x, sigma, *args, **kwargs)
        return result

    render = runs.wrapped(runs.soft(wan(seed=1)), see, WrappersMP.APPLY_MODEL)
    helpers.ksampler(scaled(runs.soft(wan()), render), 8, latent=latent)
    x, sigma = seen[0]
    noise, clean = comfy.sample.prepare_noise(latent["samples"], 7), wan().model.process_latent_in(latent["samples"])
    assert torch.allclose(x[:1, ..., :8], (sigma[0] * noise + (1 - sigma[0]) * clean)[..., :8], atol=1e-4)
