"""Interrupts, errors and bad input: a sentence before the work starts, and nothing left behind after it."""

from __future__ import annotations

import gc
import json
import struct
import weakref
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import helpers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)
from hosting import module
from test_cooperation import SWITCHING, sr_model, sr_sampler

cooperation, criterion = module("srd_core.pair"), module("srd_core.route")
checkpoint, loaders = module("srd_core.checkpoint"), module("nodes.loaders")
Report = module("srd_core.report.data").Report
STEPS = 6


class Broken(RuntimeError):
    """What the test's models raise."""


def failing(model: Any, at_call: int) -> Any:
    """A clone whose transformer raises at its at_call-th call."""
    calls = [0]

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at_call:
            raise Broken(f"call {at_call}")
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    return model


def interrupting(model: Any, at_call: int) -> Any:
    """A clone during whose at_call-th call the artist presses Cancel."""
    calls = [0]

    def interrupt(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at_call:
            comfy.model_management.interrupt_current_processing()
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "interrupt", interrupt)
    return model


def state_of(model: Any) -> tuple[Any, ...]:
    """What a run could leave on a MODEL."""
    options = {k: repr(v) for k, v in model.model_options.items()}
    return options, repr(model.wrappers), repr(model.callbacks), model.hook_mode, model.model.current_patcher


def assert_as_before(models: list[Any], plain: list[torch.Tensor], states: list[Any]) -> None:
    for model, latent, state in zip(models, plain, states):
        assert state_of(model) == state
        assert torch.equal(helpers.ksampler(model, STEPS), latent)


@pytest.mark.parametrize("stage", ["sketch", "render"])
@pytest.mark.parametrize("fault", [failing, interrupting])
@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "euler_cfg_pp"])
def test_after_a_fault_in_either_stage_plain_runs_are_as_before(fault: Any, stage: str, sampler: str, wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    plain = [helpers.ksampler(m, STEPS) for m in (sketch, render)]
    states = [state_of(m) for m in (sketch, render)]
    pair = (fault(sketch, 2), render) if stage == "sketch" else (sketch, fault(render, 2))
    report = Report()
    expected = Broken if fault is failing else comfy.model_management.InterruptProcessingException
    with pytest.raises(expected):
        helpers.ksampler(sr_model(*pair, 3, report), STEPS, sampler_name=sampler)
    assert report.status == ("failed" if fault is failing else "interrupted")
    assert ("call 2" in report.error) == (fault is failing)
    assert_as_before([sketch, render], plain, states)


def test_after_a_render_that_can_not_be_loaded_plain_runs_are_as_before(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    plain = [helpers.ksampler(m, STEPS) for m in (sketch, render)]
    states = [state_of(m) for m in (sketch, render)]
    broken = render.clone()

    def fail(executor: Any, *args: Any, **kwargs: Any) -> Any:
        raise Broken("no memory")

    broken.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "fail", fail)
    with pytest.raises(Broken):
        helpers.ksampler(sr_model(sketch, broken, 3), STEPS)
    assert_as_before([sketch, render], plain, states)


def test_an_interrupt_before_the_hand_over_does_not_load_the_render(wan: Any) -> None:
    sketch, (render, loads) = wan(), (wan(seed=1), [])
    render = render.clone()
    render.add_wrapper_with_key(
        WrappersMP.PREPARE_SAMPLING, "spy", lambda executor, *a, **k: (loads.append(1), executor(*a, **k))[1]
    )

    def cancel_after(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        comfy.model_management.interrupt_current_processing()
        return out

    sketch = sketch.clone()
    sketch.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cancel", cancel_after)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        helpers.ksampler(sr_model(sketch, render, 1), STEPS)
    assert not loads


@pytest.mark.parametrize("fault", [None, failing, interrupting], ids=["done", "failed", "interrupted"])
def test_nothing_keeps_a_model_or_a_latent_alive_after_a_run(fault: Any, wan: Any) -> None:
    def run() -> list[weakref.ref[Any]]:
        sketch, render = wan(), wan(seed=1)
        model = sr_model(sketch, fault(render, 2) if fault else render, 3, report)
        latent = helpers.empty_latent()
        try:
            helpers.ksampler(model, STEPS, latent=latent)
        except (Broken, comfy.model_management.InterruptProcessingException):
            assert fault
        return [weakref.ref(x) for x in (sketch, sketch.model, render, render.model, model, latent["samples"])]

    report = Report()  # the Inspector may keep it
    held = run()
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


# --- bad input --------------------------------------------------------------------------------------------------------


def sample_with(guider: Any, sigmas: torch.Tensor | None = None) -> None:
    """The host's SamplerCustomAdvanced on an empty latent."""
    sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0]) if sigmas is None else sigmas
    noise, sampler = RandomNoise.execute(7).args[0], KSamplerSelect.execute("euler").args[0]
    SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, helpers.empty_latent())


def never_called(model: Any) -> Any:
    return failing(model, 1)


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
    ],
)
def test_models_that_do_not_share_a_latent_are_refused_with_the_difference_and_what_fits(
    facts: dict[str, Any], named: str, wan: Any
) -> None:
    with pytest.raises(ValueError) as error:
        sr_model(wan(), other_format(wan(seed=1), **facts))
    message = str(error.value)
    assert named in message and "WAN21" in message and "Wan2.1 T2V 14B -> Wan2.1 T2V 1.3B" in message


def test_models_with_different_kinds_of_noise_schedule_are_refused(wan: Any) -> None:
    import comfy.model_sampling

    render = wan(seed=1).clone()

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    render.add_object_patch("model_sampling", Sampling(render.model.model_config))
    with pytest.raises(
        ValueError,
        match=r"noise schedules \(flow and variance exploding\), so .* Put the same ModelSampling node on both",
    ):
        sr_model(wan(), render)


def test_models_of_different_families_need_conditioning_of_their_own(wan: Any) -> None:
    class OtherFamily(comfy.model_base.BaseModel):
        pass

    sketch, render = wan(), wan(seed=1)
    render.model.__class__ = OtherFamily
    with pytest.raises(ValueError, match="different text encoders.*Connect render_positive"):
        sr_model(sketch, render)
    with pytest.raises(ValueError, match="different text encoders.*Connect render_negative"):
        helpers.ksampler(sr_model(never_called(sketch), render, positive=helpers.prompt(1)), STEPS)
    sr_model(sketch, render, positive=helpers.prompt(1), negative=helpers.prompt(2))


def test_models_of_one_family_with_text_inputs_of_another_width_need_conditioning_of_their_own(wan: Any) -> None:
    sketch, render = wan(), wan(seed=1)
    render.model.model_config.unet_config = {**render.model.model_config.unet_config, "text_dim": 64}
    with pytest.raises(ValueError, match="different text encoders"):
        sr_model(sketch, render)


def test_render_conditioning_that_the_guider_can_not_take_is_refused_before_any_step(wan: Any) -> None:
    model = sr_model(never_called(wan()), never_called(wan(seed=1)), negative=helpers.prompt(2))
    with pytest.raises(ValueError, match="render_negative is connected, but the guider .* takes none"):
        sample_with(BasicGuider.execute(model, helpers.prompt(1)).args[0])


def test_a_schedule_whose_noise_level_rises_is_refused_before_any_step(wan: Any) -> None:
    model = sr_model(never_called(wan()), never_called(wan(seed=1)))
    guider = BasicGuider.execute(model, helpers.prompt(1)).args[0]
    with pytest.raises(ValueError, match="rises in step 1 of 2; .* never rises. FlipSigmas"):
        sample_with(guider, torch.tensor([0.01, 0.5, 0.9]))


def test_an_adaptive_rule_that_could_never_decide_is_refused_before_any_step(wan: Any) -> None:
    switch = criterion.Switch(fix_step=10, max_step=5)
    model = cooperation.cooperate(
        never_called(wan()), never_called(wan(seed=1)), switch, cooperation.RenderSettings(), Report()
    )
    with pytest.raises(
        ValueError, match="max_step is 5, but the rule of adaptive decides after step .* Raise max_step"
    ):
        helpers.ksampler(model, 50)


def test_the_report_of_a_refused_run_says_so_and_not_what_the_run_before_did(wan: Any) -> None:
    report = Report()
    model = sr_model(wan(), wan(seed=1), 3, report)
    helpers.ksampler(model, STEPS)
    with pytest.raises(ValueError):
        helpers.ksampler(model, STEPS, latent={"samples": torch.full((1, 16, 2, 8, 8), torch.nan)})
    assert report.status == "failed" and "not finite" in report.error and not report.steps


def test_the_report_of_a_run_that_failed_in_the_sketch_does_not_claim_that_it_ran_all_steps(wan: Any) -> None:
    report = Report()
    with pytest.raises(Broken):
        helpers.ksampler(sr_model(failing(wan(), 2), wan(seed=1), 3, report), STEPS)
    summary = module("srd_core.report.text").summarize(report)
    assert "Status: failed Broken: call 2" in summary and "Switch: not reached" in summary


def broken_from(model: Any, call: int, bad: float) -> tuple[Any, list[int]]:
    """(clone whose transformer gives one bad value from its call number ``call`` on, list of the calls)."""
    calls: list[int] = []

    def spoil(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        calls.append(1)
        if len(calls) >= call:
            out[0, 3, 0, 2, 1] = bad
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spoil", spoil)
    return model, calls


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("stage", "at"), [("sketch", 2), ("render", 5)])
def test_a_prediction_that_is_not_finite_stops_the_run_at_its_step_and_says_what_to_try(
    stage: str, at: int, bad: float, wan: Any
) -> None:
    broken, calls = broken_from(wan(), at if stage == "sketch" else at - 3, bad)
    pair = (broken, wan(seed=1)) if stage == "sketch" else (wan(), broken)
    report = Report()
    with pytest.raises(
        RuntimeError, match=f"The {stage}'s prediction .*not finite.* at step {at} of {STEPS} .sigma"
    ) as error:
        helpers.ksampler(sr_model(*pair, 3, report), STEPS)
    assert len(calls) == (at if stage == "sketch" else at - 3)
    for fact in ("WAN21", "attention: ", "weights: float32", "broken LoRA"):
        assert fact in str(error.value)
    assert report.status == "failed" and "not finite" in report.error
    json.loads(report.to_json())


def test_the_advice_names_the_attention_backend_and_fp8_weights_when_those_are_used(
    models_folder: Path, monkeypatch: Any
) -> None:
    attention = module("srd_core.attention")
    host = attention.attention
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "sage", host.attention_pytorch)
    name = helpers.wan_file(models_folder, seed=0).name
    broken, _ = broken_from(load(name, attention="sage", weight_dtype="fp8_e4m3fn"), 1, float("nan"))
    with pytest.raises(RuntimeError) as error:
        helpers.ksampler(sr_model(broken, load(name), 3), STEPS)
    for fact in (
        "attention: sage",
        "weights: float8_e4m3fn",
        "Set attention to pytorch on the sketch's loader",
        "Set weight_dtype to default",
    ):
        assert fact in str(error.value)


def wan_22_5b() -> Any:
    """A tiny MODEL with the latent of Wan 2.2 5B: 48 channels, with its own statistics."""
    network = {
        "dim": 128,
        "ffn_dim": 256,
        "num_heads": 1,
        "num_layers": 1,
        "in_dim": 48,
        "out_dim": 48,
        "text_dim": 4096,
    }
    made = comfy.ldm.wan.model.WanModel(model_type="t2v", **network, operations=comfy.ops.disable_weight_init)
    return comfy.sd.load_diffusion_model_state_dict({k: torch.zeros(v.shape) for k, v in made.state_dict().items()})


def test_wan_2_2_5b_is_refused_in_two_lines_with_what_to_take_and_the_numbers_go_to_the_log(
    wan: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = wan_22_5b()
    assert type(other.model.latent_format).__name__ == "Wan22"
    with pytest.raises(ValueError) as error:
        sr_model(wan(), other)
    said = str(error.value)
    assert "use different VAEs (16 and 48 channels), so they do not fit together" in said
    assert (
        "Wan 2.2 5B cannot be paired with any model. Pairs that fit this sketch: Wan2.1 T2V 14B -> Wan2.1 T2V 1.3B"
        in said
    )
    assert "Cosmos" not in said and "CogVideoX" not in said and len(said) < 400 and "channel means" in caplog.text
    with pytest.raises(ValueError, match="Wan 2.2 5B cannot be paired with any model. Use it alone.") as error:
        sr_model(other, wan())
    assert "Pairs" not in str(error.value)


@pytest.mark.parametrize("shape", [(1, 4, 2, 8, 8), (1, 48, 2, 8, 8), (16, 2, 8, 8), (1, 16, 8)])
def test_a_latent_of_wrong_dimensions_is_refused_before_any_step(shape: tuple[int, ...], wan: Any) -> None:
    with pytest.raises(ValueError, match=r"LATENT has shape .* needs \[batch, 16, frames, height, width\]"):
        sr_sampler(never_called(wan()), never_called(wan(seed=1)), latent={"samples": torch.ones(shape)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_is_refused_before_any_step(bad: float, wan: Any) -> None:
    latent = helpers.empty_latent()
    latent["samples"][0, 3, 1, 2, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        sr_sampler(never_called(wan()), never_called(wan(seed=1)), latent=latent)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"delta": 0.0, "switch_mode": "adaptive"}, "delta is 0.0; it must be above 0"),
        ({"delta": -1.0, "switch_mode": "adaptive"}, "delta is -1.0"),
        ({"switch_mode": "percent"}, "choose one of adaptive, step, sigma"),
        ({"teacache": -0.1}, "teacache is -0.1; the threshold must be 0"),
        ({"offload_sketch": "sometimes"}, "offload_sketch is 'sometimes'; choose one of auto, always, never"),
    ],
)
def test_settings_that_can_not_be_followed_are_refused_before_any_step(
    setting: dict[str, Any], message: str, wan: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        sr_sampler(never_called(wan()), never_called(wan(seed=1)), **setting)


def test_render_cfg_without_a_negative_prompt_is_refused_before_any_step(wan: Any) -> None:
    model = sr_model(never_called(wan()), never_called(wan(seed=1)), cfg=2.0)
    guider = BasicGuider.execute(model, helpers.prompt(1)).args[0]
    with pytest.raises(ValueError, match="render_cfg is 2.0.*Set render_cfg to 0"):
        sample_with(guider)


def test_switch_step_beyond_the_steps_is_refused_by_sr_sampler_and_means_never_where_the_steps_are_another_node_s(
    wan: Any,
) -> None:
    sketch = wan()
    with pytest.raises(ValueError, match="switch_step is 99, but the run has 6 steps"):
        sr_sampler(never_called(sketch), never_called(wan(seed=1)), switch_step=99)
    assert torch.equal(helpers.ksampler(sr_model(sketch, wan(seed=1), 99), STEPS), helpers.ksampler(sketch, STEPS))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/diffusion_models of the host."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def load(name: str, node: Any = None, **settings: Any) -> Any:
    node = node or loaders.SRLoadSketchDiT
    return node.execute(name, **{"weight_dtype": "default", "attention": "auto"} | settings).args[0]


@pytest.mark.parametrize("node", [loaders.SRLoadSketchDiT, loaders.SRLoadRenderDiT])
def test_a_wan_file_loads_as_the_hosts_loader_loads_it(node: Any, models_folder: Path) -> None:
    helpers.wan_file(models_folder, seed=0)
    (name,) = folder_paths.get_filename_list("diffusion_models")
    model = load(name, node)
    plain = comfy.sd.load_diffusion_model(str(models_folder / name))
    assert torch.equal(helpers.ksampler(model, 2), helpers.ksampler(plain, 2))
    assert module("srd_core.latent").name_of(model).startswith(name)


class GGMLTensor(torch.Tensor):
    """A quantised weight as ComfyUI-GGUF holds it: packed bytes, with the shape of the real weight beside them."""

    tensor_shape: torch.Size

    @property
    def shape(self) -> torch.Size:
        return self.tensor_shape

    def detach(self) -> GGMLTensor:
        return self


def test_the_size_in_a_name_counts_parameters_also_where_they_are_packed(wan: Any) -> None:
    name_of, plain, packed = module("srd_core.latent").name_of, wan(), wan()
    for part in packed.model.diffusion_model.modules():
        if isinstance(weight := getattr(part, "weight", None), torch.Tensor) and weight.ndim == 2:
            rows, columns = weight.shape
            tensor = torch.zeros(rows, columns // 32 * 18, dtype=torch.uint8).as_subclass(GGMLTensor)  # Q4_0
            tensor.tensor_shape = weight.shape
            part.weight = torch.nn.Parameter(tensor, requires_grad=False)
    parameters = list(packed.model.diffusion_model.parameters())
    assert sum(isinstance(p, GGMLTensor) for p in parameters) > 10
    assert sum(p.numel() for p in parameters) < 0.7 * sum(p.numel() for p in plain.model.diffusion_model.parameters())
    assert name_of(packed) == name_of(plain)


@pytest.mark.parametrize(
    ("weight_dtype", "expected"), [("fp8_e4m3fn", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)]
)
def test_weight_dtype_is_the_precision_in_memory(weight_dtype: str, expected: torch.dtype, models_folder: Path) -> None:
    name = helpers.wan_file(models_folder, seed=0).name
    assert load(name, weight_dtype=weight_dtype).model.diffusion_model.blocks[0].ffn[0].weight.dtype == expected


def test_a_missing_file_is_named(models_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        load("gone.safetensors")
    with pytest.raises(ValueError, match="gone.safetensors is not there any more"):
        checkpoint.check_video_dit(models_folder / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, -1000])
def test_a_file_that_broke_off_is_named_with_what_to_do(keep: int, models_folder: Path) -> None:
    path = helpers.wan_file(models_folder, seed=0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{path.name}.*(get|Get) it again"):
        load(path.name)


def test_a_file_that_is_no_safetensors_is_named(models_folder: Path) -> None:
    for content in (
        b"<!DOCTYPE html><html>Sign in to download</html>",
        struct.pack("<Q", 9) + b"not json!" + b"x" * 50,
    ):
        (models_folder / "page.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="page.safetensors is"):
            load("page.safetensors")


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_up.weight": (4, 4), "blocks.0.lora_down.weight": (4, 4)},
        {"encoder.conv1.weight": (8, 3, 3, 3), "decoder.head.0.gamma": (8, 1, 1, 1)},
        {},
    ],
    ids=["LoRA", "VAE", "empty"],
)
def test_a_file_that_is_no_diffusion_model_is_refused_with_what_to_choose(
    keys: dict[str, Any], models_folder: Path
) -> None:
    comfy.utils.save_torch_file({k: torch.zeros(v) for k, v in keys.items()}, str(models_folder / "other.safetensors"))
    with pytest.raises(ValueError, match="other.safetensors is not a diffusion model.*Choose the DiT of a video model"):
        load("other.safetensors")


def test_one_of_several_shards_is_refused_as_such(models_folder: Path) -> None:
    whole = helpers.wan_state_dict()
    part = {k: v for k, v in whole.items() if k.startswith("head")}
    comfy.utils.save_torch_file(part, str(models_folder / "model-00002-of-00002.safetensors"))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors .*shards"):
        load("model-00002-of-00002.safetensors")


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_a_wan_with_diffusers_names_is_called_that_with_the_file_to_get(prefix: str, models_folder: Path) -> None:
    names = (
        "condition_embedder.time_proj.weight",
        "blocks.0.attn1.to_q.weight",
        "blocks.0.ffn.net.0.proj.weight",
        "proj_out.weight",
    )
    comfy.utils.save_torch_file(
        {prefix + name: torch.zeros(4, 4) for name in names}, str(models_folder / "wan.safetensors")
    )
    with pytest.raises(
        ValueError, match="wan.safetensors is a Wan in diffusers' format.*Get the version for ComfyUI.*wan2.1_t2v_14B"
    ):
        load("wan.safetensors")


def test_a_folder_of_shards_is_called_what_it_is_with_the_file_to_get(models_folder: Path) -> None:
    (models_folder / "transformer").mkdir()
    shards = [models_folder / "transformer" / f"part-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight")
    for name, shard in zip(names, shards):
        comfy.utils.save_torch_file({name: torch.zeros(4, 4)}, str(shard))
    index = {"weight_map": {name: shard.name for name, shard in zip(names, shards)}}
    (models_folder / "transformer" / "part.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    for name in ("transformer", "transformer/part-00002-of-00002.safetensors"):
        with pytest.raises(
            ValueError, match="is a Wan in 2 shards. Only CogVideoX.*Get the version for ComfyUI, one file"
        ):
            load(name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("not JSON", "is not JSON"),
        ("[1]", "is not a description of a model"),
        ('{"transformer": 5}', "is not a description of a model"),
        ("null", "is not a description of a model"),
        ('{"transformer": {"num_layers": 99999999}}', "says num_layers 99999999"),
    ],
)
def test_odd_metadata_of_a_whole_file_is_called_that_and_not_damage(
    config: str, words: str, models_folder: Path
) -> None:
    comfy.utils.save_torch_file(
        helpers.wan_state_dict(), str(models_folder / "odd.safetensors"), metadata={"config": config}
    )
    with pytest.raises(
        ValueError, match=f"odd.safetensors is whole, but its metadata .config. {words}.*Get the version for"
    ) as error:
        load("odd.safetensors")
    assert "damaged" not in str(error.value) and "again" not in str(error.value)


@pytest.mark.parametrize("header", [b"[1]", b'{"a": {"dtype": "F16"}}', b'{"a": 3}'])
def test_a_header_that_makes_no_sense_is_named(header: bytes, models_folder: Path) -> None:
    (models_folder / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(ValueError, match="odd.safetensors is damaged"):
        load("odd.safetensors")


def test_an_image_model_is_refused_with_the_way_for_image_models(models_folder: Path) -> None:
    """The key layout of SD3's transformer: header only, its tensors are never read."""
    shapes = {
        "x_embedder.proj.weight": [64, 16, 2, 2],
        "x_embedder.proj.bias": [64],
        "pos_embed": [1, 4, 64],
        "t_embedder.mlp.0.weight": [64, 256],
        "y_embedder.mlp.0.weight": [64, 2048],
        "context_embedder.weight": [64, 4096],
        "final_layer.linear.weight": [64, 64],
        "joint_blocks.0.x_block.attn.qkv.weight": [192, 64],
        "joint_blocks.0.context_block.attn.qkv.weight": [192, 64],
    }
    comfy.utils.save_torch_file({k: torch.zeros(v) for k, v in shapes.items()}, str(models_folder / "sd3.safetensors"))
    with pytest.raises(ValueError, match="sd3.safetensors is SD3, not a video DiT.*Load Diffusion Model"):
        load("sd3.safetensors")


def test_the_header_is_read_without_the_tensors(models_folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = models_folder / "small.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert checkpoint.read_header(path)["a"]["shape"] == [2]


def test_every_error_in_settings_is_raised_by_sketch_render_model_too(wan: Any) -> None:
    node = module("nodes.sampler").SRModel
    with pytest.raises(ValueError, match="teacache"):
        node.execute(wan(), wan(seed=1), **SWITCHING | {"teacache": -0.2})
