"""The hand-over together with all else that an artist connects: guidance, masks, i2v, LoRA, windows, caches, shifts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.hooks
import comfy.sd
import comfy_extras.nodes_custom_sampler as custom
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from hosting import module
from runs import GUIDERS, sampled, soft, softly_masked, sr_model, sr_sampler, vace_state_dict

Report = module("srd_core.report.data").Report
STEPS = 4


def assert_seamless(
    sketch: Any, same: Any, render: Any, run: Callable[[Any], torch.Tensor], plain_render: torch.Tensor | None = None
) -> None:
    """Same weights in both stages: the plain run. A switch at step 0: the plain render. In between: neither."""
    plain = run(sketch)
    assert torch.isfinite(plain).all()
    assert torch.equal(run(sr_model(sketch, same, 2)), plain)
    plain_render = run(render) if plain_render is None else plain_render
    assert torch.equal(run(sr_model(sketch, render, 0)), plain_render)
    mixed = run(sr_model(sketch, render, 2))
    assert not torch.equal(mixed, plain) and not torch.equal(mixed, plain_render)


def encoded_video(batch: int = 1) -> dict[str, Any]:
    return {"samples": torch.randn(batch, 16, 2, 8, 8, generator=torch.Generator().manual_seed(5))}


RUNS: dict[str, dict[str, Any]] = {
    "cfg 1": {"cfg": 1.0},
    "batch 2": {"latent": helpers.empty_latent(batch=2)},
    "denoise 0.5 on an encoded video": {"latent": encoded_video(), "denoise": 0.5},
    "a noise mask": {
        "latent": {**encoded_video(), "noise_mask": torch.cat([torch.ones(1, 4, 8), torch.zeros(1, 4, 8)], 1)}
    },
    "two prompts combined": {"positive": helpers.prompt(1) + helpers.prompt(4)},
    "a prompt with a range of steps": {
        "positive": helpers.prompt(1) + helpers.prompt(4, start_percent=0.2, end_percent=0.6)
    },
    "a prompt with a mask": {
        "positive": helpers.prompt(1) + helpers.prompt(4, mask=torch.eye(8)[None], mask_strength=0.7)
    },
    "an odd size": {"latent": helpers.empty_latent(side=7)},
    "the unguided prediction, which CFG++ reads": {"sampler_name": "euler_cfg_pp", "cfg": 1.5},
    "one frame": {"latent": helpers.empty_latent(frames=1)},
    "an image latent, made a video latent by the host": {"latent": {"samples": torch.zeros(1, 4, 8, 8)}},
}


@pytest.mark.parametrize("how", RUNS)
def test_the_hand_over_is_seamless_with(how: str, wan: Any) -> None:
    assert_seamless(wan(), wan(), wan(seed=1), lambda model: helpers.ksampler(model, STEPS, **RUNS[how]))


def test_render_cfg_is_the_renders_guidance_alone(wan: Any) -> None:
    (sketch, at_sketch), (render, at_render) = helpers.count_calls(wan()), helpers.count_calls(wan(seed=1))
    helpers.ksampler(sr_model(sketch, render, 2, cfg=1.0), STEPS, cfg=3.0)
    assert (at_sketch, at_render) == ([2] * 2, [1] * 2)
    helpers.ksampler(sr_model(sketch, render, 2), STEPS, cfg=1.0)
    assert (at_sketch[2:], at_render[2:]) == ([1] * 2, [1] * 2)
    whole = helpers.ksampler(sr_model(sketch, render, 0, cfg=2.0), STEPS, cfg=3.0)
    assert torch.equal(whole, helpers.ksampler(render, STEPS, cfg=2.0))


def test_render_conditioning_is_the_renders_alone(wan: Any) -> None:
    sketch, same, render = wan(), wan(), wan(seed=1)
    own = {"positive": helpers.prompt(8), "negative": helpers.prompt(9)}
    plain_render = helpers.ksampler(render, STEPS, **own)
    assert torch.equal(helpers.ksampler(sr_model(sketch, render, 0, **own), STEPS), plain_render)
    assert torch.equal(helpers.ksampler(sr_model(sketch, render, STEPS, **own), STEPS), helpers.ksampler(sketch, STEPS))
    mixed = helpers.ksampler(sr_model(sketch, render, 3, **own), STEPS)
    assert not torch.equal(mixed, helpers.ksampler(sr_model(sketch, render, 3), STEPS))
    through_node = sr_sampler(sketch, render, STEPS, render_positive=own["positive"], render_negative=own["negative"])
    assert torch.equal(through_node, mixed)
    as_sketch = {"positive": helpers.prompt(1), "negative": helpers.prompt(2)}
    assert torch.equal(helpers.ksampler(sr_model(sketch, same, 3, **as_sketch), STEPS), helpers.ksampler(sketch, STEPS))


def i2v_prompts() -> dict[str, Any]:
    image = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(6))
    extra: dict[str, Any] = {"concat_latent_image": image, "concat_mask": torch.ones(1, 1, 2, 8, 8)}
    return {"positive": helpers.prompt(1, **extra), "negative": helpers.prompt(2, **extra)}


@pytest.mark.parametrize(("sketch", "render"), [("i2v", "i2v"), ("i2v", "t2v"), ("t2v", "i2v")])
def test_image_to_video_latents_fit_each_stages_own_input_channels(sketch: str, render: str, wan: Any) -> None:
    def run(model: Any) -> torch.Tensor:
        return helpers.ksampler(model, STEPS, **i2v_prompts())

    assert_seamless(wan(kind=sketch), wan(kind=sketch), wan(seed=1, kind=render), run)


def test_two_models_that_take_images_in_other_ways_are_refused_before_any_step(wan: Any) -> None:
    """Fun InP has the image and its mask in 20 channels, Fun Control two images in 32."""
    sketch, render = wan(kind="i2v"), wan(seed=1, kind="control")
    with pytest.raises(ValueError, match=r"in different ways \(20 and 32 channels.*connect render_positive"):
        sr_model(sketch, render, 3)
    images: dict[str, Any] = {"concat_latent_image": torch.zeros(1, 32, 2, 8, 8)}
    own = {"positive": helpers.prompt(3, **images), "negative": helpers.prompt(4, **images)}
    helpers.ksampler(sr_model(sketch, render, 3, **own), STEPS, **i2v_prompts())
    sketch, calls = helpers.count_calls(sketch)
    with pytest.raises(ValueError, match="in different ways"):  # the negative is still the sketch's
        helpers.ksampler(sr_model(sketch, render, 3, positive=own["positive"]), STEPS, **i2v_prompts())
    assert not calls


def test_models_of_as_many_images_fit_with_a_mask_or_without_one(wan: Any) -> None:
    """Wan 2.2's Fun Control has two images and a mask in 36 channels, Wan 2.1's two images in 32."""
    images: dict[str, Any] = {"concat_latent_image": torch.ones(1, 32, 2, 8, 8)}
    prompts = {"positive": helpers.prompt(1, **images), "negative": helpers.prompt(2, **images)}
    model = sr_model(wan(kind="control 2.2"), wan(seed=1, kind="control"), 2)
    assert torch.isfinite(helpers.ksampler(model, STEPS, **prompts)).all()


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_an_image_that_the_render_does_not_take_is_noted(kind: str, wan: Any) -> None:
    report = Report()
    helpers.ksampler(sr_model(wan(kind="i2v"), wan(seed=1, kind=kind), 3, report), STEPS, **i2v_prompts())
    assert ["image" in note for note in report.notes] == [True] * (kind == "t2v")


@pytest.mark.parametrize("kind", ["t2v", "vace"])
def test_vace_frames_that_the_render_does_not_see_are_noted(kind: str, wan: Any) -> None:
    frames: dict[str, Any] = {"vace_frames": [torch.randn(1, 32, 2, 8, 8)], "vace_mask": [torch.ones(1, 64, 2, 8, 8)]}
    frames["vace_strength"] = [1.0]
    prompts = {"positive": helpers.prompt(1, **frames), "negative": helpers.prompt(2, **frames)}
    sketch, vace = (comfy.sd.load_diffusion_model_state_dict(vace_state_dict(seed)) for seed in (0, 1))
    report = Report()
    helpers.ksampler(sr_model(sketch, vace if kind == "vace" else wan(seed=1), 3, report), STEPS, **prompts)
    assert ["a VACE model there" in note for note in report.notes] == [True] * (kind == "t2v")


def test_a_guider_with_a_model_of_its_own_for_the_negative_can_t_be_switched(
    wan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dual(model: Any, negative: Any) -> Any:
        return custom.DualModelGuider.execute(model, helpers.prompt(1), 3.0, negative, helpers.prompt(2))

    monkeypatch.setitem(GUIDERS, "DualModelGuider", dual)
    both = sr_model(wan(), wan(seed=1), 3)
    with pytest.raises(ValueError, match="DualModel runs another model.*Use CFGGuider"):
        sampled(both, guider="DualModelGuider", negative=both)
    assert torch.isfinite(sampled(both, guider="DualModelGuider", negative=wan(seed=2))).all()


def lora(scale: float = 0.5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    shapes = {"lora_A.weight": (2, helpers.DIM), "lora_B.weight": (helpers.DIM, 2)}
    return {
        f"diffusion_model.blocks.0.self_attn.q.{name}": scale * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("shared", [False, True], ids=["two loads", "one load, two clones"])
@pytest.mark.parametrize("stage", ["sketch", "render"])
def test_a_lora_on_one_stage_stays_on_that_stage(stage: str, shared: bool, wan: Any) -> None:
    """With one load the stages are clones that share the weights in memory: the host repatches them at the switch."""
    base = wan()
    with_lora, _ = comfy.sd.load_lora_for_models(base if shared else wan(), None, lora(), 1.0, 0)
    apart, _ = comfy.sd.load_lora_for_models(wan(), None, lora(), 1.0, 0)  # the truth: its own weights
    sketch, render = (with_lora, base) if stage == "sketch" else (base, with_lora)
    true_sketch, true_render = (apart, wan()) if stage == "sketch" else (wan(), apart)
    run = helpers.ksampler
    plain = run(true_sketch, STEPS)
    assert not torch.equal(plain, run(true_render, STEPS))
    for step in (0, 2, STEPS):
        expected = run(sr_model(true_sketch, true_render, step), STEPS)
        assert torch.equal(run(sr_model(sketch, render, step), STEPS), expected), f"switch after step {step}"
    assert torch.equal(run(sketch, STEPS), plain)


def hooked_prompts(scale: float = 0.5) -> dict[str, Any]:
    """A LoRA that rides on the positive prompt, from half strength to full in mid-run, by the host's hook nodes."""
    hooks = comfy.hooks.create_hook_lora(lora(scale), 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.3))
    hooks.set_keyframes_on_hooks(keyframes)
    return {"positive": helpers.prompt(1, hooks=hooks), "negative": helpers.prompt(2)}


def test_loras_that_ride_on_a_prompt_work_in_both_stages(wan: Any) -> None:
    def run(model: Any) -> torch.Tensor:
        return helpers.ksampler(model, STEPS, **hooked_prompts())

    sketch = wan()
    assert not torch.equal(run(sketch), helpers.ksampler(sketch, STEPS))
    assert_seamless(sketch, wan(), wan(seed=1), run)


def test_differential_diffusion_of_the_stage_that_begins_decides(wan: Any) -> None:
    run = partial(helpers.ksampler, steps=STEPS, latent=softly_masked())
    sketch, render = wan(), wan(seed=1)
    assert not torch.equal(run(soft(render)), run(render))
    assert torch.equal(run(sr_model(sketch, soft(render), 0)), run(soft(render)))
    assert torch.equal(run(sr_model(soft(sketch), render, 0)), run(render))
    assert torch.equal(run(sr_model(soft(sketch), wan(), 3)), run(soft(sketch)))


def test_options_that_the_host_sets_for_several_gpus_do_not_reach_the_render() -> None:
    merge = module("srd_core.additions").with_sampler_additions
    clones = {"cuda:0": object()}
    passed = {"multigpu_clones": clones, "transformer_options": {"sample_sigmas": 1}}
    assert merge({}, passed, {"multigpu_clones": clones}) == {"transformer_options": {"sample_sigmas": 1}}


def windows(model: Any, freenoise: bool = False, context_schedule: str = "standard_static") -> Any:
    """The host's context windows: 4 latent frames at a time."""
    known = {
        "context_length": 4,
        "context_overlap": 2,
        "context_schedule": context_schedule,
        "context_stride": 1,
        "closed_loop": False,
        "fuse_method": "pyramid",
        "dim": 2,
        "freenoise": freenoise,
        "cond_retain_index_list": "",
        "split_conds_to_windows": False,
        "latent_retain_index_list": "",
        "causal_window_fix": False,
    }
    accepted = inspect.signature(ContextWindowsManualNode.execute).parameters
    return ContextWindowsManualNode.execute(model, **{k: v for k, v in known.items() if k in accepted}).args[0]


@pytest.mark.parametrize("freenoise", [False, True], ids=["plain", "freenoise"])
def test_context_windows_work_in_both_stages(freenoise: bool, wan: Any) -> None:
    run = partial(helpers.ksampler, steps=STEPS, latent=helpers.empty_latent(frames=6))
    assert_seamless(windows(wan(), freenoise), windows(wan(), freenoise), windows(wan(seed=1), freenoise), run)


def test_the_noise_of_context_windows_is_that_of_the_stage_that_begins(wan: Any) -> None:
    """FreeNoise shuffles the noise before the first step, in a wrapper around the sampler."""
    run = partial(helpers.ksampler, steps=STEPS, latent=helpers.empty_latent(frames=6))
    sketch, render = wan(), wan(seed=1)
    assert torch.equal(run(sr_model(sketch, windows(render, True), 0)), run(windows(render, True)))
    assert torch.equal(run(sr_model(windows(sketch, True), render, 0)), run(render))


def test_conditions_of_the_render_are_made_from_the_same_facts_as_in_a_plain_run(wan: Any) -> None:
    """Inpainting models read the encoded video and the mask when their conditioning is processed."""
    sketch, render = wan(), wan(seed=1)
    seen: list[dict[str, Any]] = []
    extra_conds = render.model.extra_conds

    def noting(**facts: Any) -> Any:
        seen.append(facts)
        return extra_conds(**facts)

    render.model.extra_conds = noting
    how = RUNS["a noise mask"]
    helpers.ksampler(render, STEPS, **how)
    plain = seen.copy()
    seen.clear()
    helpers.ksampler(sr_model(sketch, render, 3), STEPS, **how)
    assert len(seen) == len(plain) > 0
    for ours, theirs in zip(seen, plain):
        assert ours.keys() == theirs.keys()
        for name in ("latent_image", "denoise_mask", "noise", "cross_attn"):
            assert torch.equal(ours[name], theirs[name]), name
        assert ours["seed"] == theirs["seed"] and ours["device"] == theirs["device"]


def test_wrappers_around_the_run_find_the_guiders_options_as_they_left_them(wan: Any) -> None:
    seen: list[bool] = []

    def outer(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = executor.class_obj.model_options
        try:
            return executor(*args, **kwargs)
        finally:
            seen.append(executor.class_obj.model_options is options)

    sketch = wan().clone()
    sketch.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "outer", outer)
    helpers.ksampler(sr_model(sketch, wan(seed=1), 3), STEPS)
    assert seen == [True]


def test_context_windows_on_the_render_alone_stay_there(wan: Any) -> None:
    (sketch, at_sketch), (render, at_render) = helpers.count_calls(wan()), helpers.count_calls(windows(wan(seed=1)))
    helpers.ksampler(sr_model(sketch, render, 2), STEPS, latent=helpers.empty_latent(frames=6))
    assert len(at_sketch) == 2 and len(at_render) == 2 * 2  # two windows a step


@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode], ids=["EasyCache", "LazyCache"])
def test_the_hosts_caches_on_the_render_skip_as_in_a_plain_run(cache: Any, wan: Any) -> None:
    """At a switch at step 0 the run with a cached render is the plain cached render, with the same skips."""
    sketch, (cached, calls) = wan(), helpers.count_calls(cache.execute(wan(seed=1), 2.0, 0.1, 0.95, False).args[0])
    plain = helpers.ksampler(cached, 12)
    skipped = 12 - len(calls)
    assert skipped > 0
    calls.clear()
    assert torch.equal(helpers.ksampler(sr_model(sketch, cached, 0), 12), plain)
    assert 12 - len(calls) == skipped
    calls.clear()
    assert torch.isfinite(helpers.ksampler(sr_model(sketch, cached, 4), 12)).all()
    assert 0 < len(calls) < 8
    calls.clear()
    assert torch.equal(helpers.ksampler(cached, 12), plain)  # the cache holds nothing of the mixed run


def test_the_hosts_cache_on_the_sketch_stays_there(wan: Any) -> None:
    cached, at_sketch = helpers.count_calls(EasyCacheNode.execute(wan(), 3.0, 0.0, 1.0, False).args[0])
    render, at_render = helpers.count_calls(wan(seed=1))
    helpers.ksampler(sr_model(cached, render, 8), 12)
    assert len(at_sketch) < 8 and len(at_render) == 4


@pytest.mark.parametrize(("sampler", "switch"), [("euler", 0), ("uni_pc", 2), ("euler_cfg_pp", 5)])
def test_a_flow_model_whose_latents_have_another_scale_is_mapped_exactly(sampler: str, switch: int, wan: Any) -> None:
    """The same network, made to live in a latent space scaled by 0.7: no switch step shows in the result."""
    ratio, latent = 0.7, module("srd_core.latent")
    back = latent.LatentMap(1 / ratio, latent.FLOW)

    def apply_model(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return executor(*back.to_render(x, t), *args, **kwargs) * ratio

    render = wan()
    theirs = type(render.get_model_object("latent_format"))()
    theirs.scale_factor = ratio
    render.add_object_patch("latent_format", theirs)
    render.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "space", apply_model)
    plain = helpers.ksampler(wan(), 8, sampler_name=sampler)
    mixed = helpers.ksampler(sr_model(wan(), render, switch), 8, sampler_name=sampler)
    assert (mixed - plain).abs().max() <= 2e-5 * plain.abs().max()


def shifted(model: Any, shift: float) -> Any:
    return ModelSamplingSD3().patch(model, shift)[0]


def test_the_schedule_is_the_sketchs_and_the_renders_shift_changes_nothing(wan: Any) -> None:
    run = partial(helpers.ksampler, steps=STEPS)
    sketch = shifted(wan(), 5.0)
    plain = run(sketch)
    assert not torch.equal(plain, run(wan()))
    ranged = helpers.prompt(1, end_percent=0.4) + helpers.prompt(4, start_percent=0.4)
    plain_ranged = helpers.ksampler(sketch, 10, positive=ranged)
    for render in (shifted(wan(), 3.0), wan()):
        assert torch.equal(run(sr_model(sketch, render, 3)), plain)
        assert torch.equal(helpers.ksampler(sr_model(sketch, render, 3), 10, positive=ranged), plain_ranged)
    assert_seamless(sketch, shifted(wan(), 5.0), shifted(wan(seed=1), 5.0), run)


def test_guidance_functions_set_by_other_nodes_stay_on_their_stage(wan: Any) -> None:
    rescale = RescaleCFG().patch
    sketch, render = wan(), wan(seed=1)
    run = helpers.ksampler
    on_render, on_sketch = rescale(render, 0.7)[0], rescale(sketch, 0.7)[0]
    assert not torch.equal(run(on_render, STEPS), run(render, STEPS))
    assert torch.equal(run(sr_model(sketch, on_render, 0), STEPS), run(on_render, STEPS))
    assert torch.equal(run(sr_model(on_sketch, render, 0), STEPS), run(render, STEPS))
    assert torch.equal(run(sr_model(on_sketch, rescale(wan(), 0.7)[0], 3), STEPS), run(on_sketch, STEPS))


def function_wrapper(model: Any, note: Callable[[], None]) -> None:
    """The slot that torch.compile-like and caching packs use."""

    def call(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        note()
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(call)


def noise_wrapper(model: Any, note: Callable[[], None]) -> None:
    def call(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        note()
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "spy", call)


@pytest.mark.parametrize("wrap", [function_wrapper, noise_wrapper], ids=["function", "noise"])
def test_a_wrapper_stays_on_its_stage(wrap: Callable[..., None], wan: Any) -> None:
    seen: list[str] = []
    models = [wan().clone(), wan(seed=1).clone()]
    for model, name in zip(models, ("sketch", "render")):
        wrap(model, lambda name=name: seen.append(name))
    helpers.ksampler(sr_model(models[0], models[1], 3), STEPS)
    assert seen == ["sketch"] * 3 + ["render"]


def test_a_lora_after_sketch_render_model_is_the_sketchs(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    after, _ = comfy.sd.load_lora_for_models(sr_model(sketch, render, 3), None, lora(), 1.0, 0)
    before, _ = comfy.sd.load_lora_for_models(sketch, None, lora(), 1.0, 0)
    assert torch.equal(helpers.ksampler(after, STEPS), helpers.ksampler(sr_model(before, render, 3), STEPS))


def test_two_runs_after_each_other_do_not_know_of_each_other(wan: Any) -> None:
    sketch, render, third = wan(), wan(seed=1), wan(seed=2)
    first, second = Report(), Report()
    a = sr_model(sketch, render, 2, first)
    b = sr_model(render, third, 3, second)
    latent_a, latent_b = helpers.ksampler(a, STEPS), helpers.ksampler(b, STEPS)
    chained = helpers.ksampler(b, STEPS, latent={"samples": latent_a}, denoise=0.5)
    assert torch.equal(helpers.ksampler(a, STEPS), latent_a) and torch.equal(helpers.ksampler(b, STEPS), latent_b)
    assert torch.equal(helpers.ksampler(b, STEPS, latent={"samples": latent_a}, denoise=0.5), chained)
    assert [h.after_step for h in first.hand_overs] == [2] and [h.after_step for h in second.hand_overs] == [3]


def test_a_mask_that_is_not_finite_is_called_that_before_any_step(wan: Any) -> None:
    sketch, calls = helpers.count_calls(wan())
    latent = {**encoded_video(), "noise_mask": torch.full((1, 8, 8), float("nan"))}
    with pytest.raises(ValueError, match="noise_mask has values that are not finite"):
        helpers.ksampler(sr_model(sketch, wan(seed=1), 3), STEPS, latent=latent)
    assert not calls
