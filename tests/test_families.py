"""The rule, not the name: any two models that share a latent format in the host cooperate.

Tiny random models of other families, in the real key layout and loaded by the host's own detection, sketch and render
of different width and depth.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import helpers
import pytest
import runs
import torch
from comfy.patcher_extension import WrappersMP
from hosting import module
from runs import STEPS, Report, failing, left_as_before, sr_model

pytestmark = pytest.mark.long

latent, families = module("srd_core.latent"), module("srd_core.families")

SAMPLERS = ("euler", "heun", "uni_pc", "euler_ancestral", "euler_cfg_pp")
NORMS = ("norm", "ln_q", "ln_k")  # layers whose weights are around one


@dataclass(frozen=True)
class Family:
    """Two tiny configurations of one of the host's transformers."""

    transformer: str  # module of the host, and the class in it
    kind: str  # the host's class of the loaded model
    common: dict[str, Any]  # arguments of both
    sketch: dict[str, Any]
    render: dict[str, Any]
    latent: tuple[int, ...]
    text: int  # width of a prompt's embedding
    render_text: int = 0  # of the render's, where it has its own text encoder
    pooled: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # of every conditioning

    def prompt(self, seed: int, text: int = 0) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        pooled = {"pooled_output": torch.randn(1, self.pooled, generator=generator)} if self.pooled else {}
        return [[torch.randn(1, 4, text or self.text, generator=generator), {**pooled, **self.extra}]]

    def own_prompts(self) -> dict[str, Any]:
        """What the render needs beyond the sketch's prompts, as RenderSettings and SR Sampler's inputs end."""
        width = self.render_text
        return {"positive": self.prompt(3, width), "negative": self.prompt(4, width)} if width else {}

    def run(self, model: Any, sampler: str = "euler", as_render: bool = False, **how: Any) -> torch.Tensor:
        """The host's KSampler; ``as_render``: with the render's own prompts."""
        own = self.own_prompts() if as_render else {}
        return helpers.ksampler(model, STEPS, sampler_name=sampler, **self.start() | own, **how)

    def start(self) -> dict[str, Any]:
        """The sketch's prompts and an empty latent."""
        prompts = {"positive": self.prompt(1), "negative": self.prompt(2)}
        return prompts | {"latent": {"samples": torch.zeros(self.latent)}, "cfg": 3.0}


def flux2(hidden: int, text: int, guidance: bool, **depth: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_heads": hidden // 128,
        "context_in_dim": text,
        "guidance_embed": guidance,
        **depth,
    }


def mmdit(depth: int, **more: Any) -> dict[str, Any]:
    text = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64 * depth}}
    return {"depth": depth, "context_embedder_config": text, **more}


# Flux.2's shape as the host's detection has it: numbers that no weight tells.
FLUX2: dict[str, Any] = {"in_channels": 128, "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0}
FLUX2 |= {"axes_dim": [32] * 4, "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3]}
FLUX2 |= {"global_modulation": True, "mlp_silu_act": True, "ops_bias": False}
COSMOS: dict[str, Any] = {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16}
COSMOS |= {"out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True}
COSMOS |= {"pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 256, "rope_h_extrapolation_ratio": 4.0}
COSMOS |= {"rope_w_extrapolation_ratio": 4.0}
FAMILIES = {
    "LTX-Video": Family(
        "comfy.ldm.lightricks.model.LTXVModel",
        "LTXV",
        {},
        sketch={"attention_head_dim": 8, "cross_attention_dim": 256, "num_layers": 3},
        render={"attention_head_dim": 4, "cross_attention_dim": 128, "num_layers": 1},
        latent=(1, 128, 2, 4, 4),
        text=4096,
        extra={"attention_mask": torch.ones(1, 4, dtype=torch.long)},
    ),
    "Kandinsky 5": Family(
        "comfy.ldm.kandinsky5.model.Kandinsky5",
        "Kandinsky5",
        {},
        sketch={"model_dim": 128, "ff_dim": 256, "time_dim": 64, "num_text_blocks": 2, "num_visual_blocks": 3},
        render={"model_dim": 64, "ff_dim": 128, "time_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2},
        latent=(1, 16, 2, 8, 8),
        text=3584,
        pooled=768,
    ),
    # Detection knows the depths of the real widths only and takes ten blocks for any other.
    "Cosmos-Predict2": Family(
        "comfy.ldm.cosmos.predict2.MiniTrainDIT",
        "CosmosPredict2",
        COSMOS,
        sketch={"model_channels": 256},
        render={"model_channels": 192},
        latent=(1, 16, 2, 8, 8),
        text=1024,
    ),
    "SD3.5": Family(
        "comfy.ldm.modules.diffusionmodules.mmdit.MMDiT",
        "SD3",
        {
            "input_size": None,
            "in_channels": 16,
            "out_channels": 16,
            "adm_in_channels": 2048,
            "qk_norm": "rms",
            "num_patches": 256,
            "pos_embed_max_size": 16,
        },
        sketch=mmdit(3),
        render=mmdit(2, x_block_self_attn_layers=[0]),
        latent=(1, 16, 8, 8),
        text=4096,
        pooled=2048,
    ),
    "Flux.2": Family(
        "comfy.ldm.flux.model.Flux",
        "Flux2",
        FLUX2,
        sketch=flux2(256, 48, guidance=True, depth=2, depth_single_blocks=2),
        render=flux2(128, 32, guidance=False, depth=1, depth_single_blocks=2),
        latent=(1, 128, 4, 4),
        text=48,
        render_text=32,
        pooled=768,
        extra={"guidance": 4.0},
    ),
    "Wan2.1 VACE": Family(
        "comfy.ldm.wan.model.VaceWanModel",
        "WAN21_Vace",
        {"vace_in_dim": 96, "text_dim": 4096},
        sketch={"dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 4, "vace_layers": 2},
        render={"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "vace_layers": 1},
        latent=(1, 16, 2, 8, 8),
        text=4096,
    ),
}

Load = Callable[..., Any]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def load(family: Family) -> Load:
    """A function of "sketch" or "render": a tiny random model of that size, by the host's loader; it loads anew."""
    return lambda role, seed=0: comfy.sd.load_diffusion_model_state_dict(weights(family, role, seed))


def weights(family: Family, role: str, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the key layout of the host's own transformer."""
    path, name = family.transformer.rsplit(".", 1)
    made = getattr(importlib.import_module(path), name)(
        **family.common,
        **getattr(family, role),
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(seed + 10 * (role == "render"))
    return {
        key: float(value.ndim == 1 and not key.endswith("bias") and any(norm in key for norm in NORMS))
        + torch.randn(value.shape, generator=generator) * 0.05
        for key, value in made.state_dict().items()
    }


def test_the_hosts_detection_takes_the_tiny_models_for_the_real_family(family: Family, load: Load) -> None:
    """No weight is missing, added or of another shape, and the two stages really differ in size."""
    loaded = {role: load(role) for role in ("sketch", "render")}
    for role, model in loaded.items():
        assert type(model.model).__name__ == family.kind
        ours, theirs = weights(family, role, 0), model.model.diffusion_model.state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    sizes = [sum(p.numel() for p in model.model.diffusion_model.parameters()) for model in loaded.values()]
    assert sizes[0] > sizes[1]
    assert latent.check_pair(*loaded.values()).is_identity


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_hand_over_itself_changes_nothing_in_any_family(sampler: str, family: Family, load: Load) -> None:
    """Invariants 1 to 4 of the design, as for Wan in test_cooperation.py."""
    sketch, same, render = load("sketch"), load("sketch"), load("render")
    counted, calls = runs.shapes_of(sketch)
    own = family.own_prompts()
    plain, plain_render = family.run(counted, sampler), family.run(render, sampler, as_render=True)
    assert torch.isfinite(plain).all() and torch.isfinite(plain_render).all() and not torch.equal(plain, plain_render)
    for step in (STEPS, 0, 1, 3):
        report = Report()
        latent = family.run(sr_model(sketch, same, step, report), sampler)
        assert torch.equal(latent, plain), f"switch after step {step}"
        assert sum(stage.calls for stage in report.stages) == len(calls)
        assert bool(report.hand_overs) == (step < STEPS)
    assert torch.equal(family.run(sr_model(sketch, render, 0, **own), sampler), plain_render)
    assert torch.equal(family.run(sr_model(sketch, render, STEPS, **own), sampler), plain)
    mixed = family.run(sr_model(sketch, render, 3, **own), sampler)
    assert not torch.equal(mixed, plain) and not torch.equal(mixed, plain_render)
    inputs = {f"render_{role}": prompt for role, prompt in own.items()}
    node = runs.sr_sampler(sketch, render, sampler_name=sampler, **family.start(), **inputs)
    assert torch.equal(node, mixed)
    assert torch.equal(family.run(sketch, sampler), plain)


@pytest.mark.parametrize("stage", ["sketch", "render"])
def test_after_a_fault_in_either_stage_plain_runs_of_any_family_are_as_before(
    stage: str, family: Family, load: Load
) -> None:
    sketch, render, own = load("sketch"), load("render"), family.own_prompts()
    apply = WrappersMP.APPLY_MODEL  # which every model has; a wrapper around the transformer is not called by all
    pair = (failing(sketch, 2, kind=apply), render) if stage == "sketch" else (sketch, failing(render, 2, kind=apply))
    with left_as_before(sketch, render, run=lambda model: family.run(model, as_render=model is render)):
        family.run(sr_model(*pair, 3, **own))


@pytest.mark.parametrize(
    ("sampler", "fade"), [("euler", 0.0), ("euler", 1.1), ("uni_pc", 1.1), ("euler_cfg_pp", 0.0), ("dpmpp_sde", 0.0)]
)
@pytest.mark.parametrize("away", ["sketch", "render"])
def test_a_stage_on_another_device_changes_nothing(away: str, sampler: str, fade: float, wan: Load) -> None:
    """A second device that the CPU backs: for the host and the pack it is another one, so all that is moved is moved.

    A tensor does not keep the number of its CPU: what is *not* moved shows on GPUs only.
    """
    sketch, render = wan(layers=2), wan(seed=1)
    plain = helpers.ksampler(sr_model(sketch, render, 3, fade=fade), STEPS, sampler_name=sampler)
    there = torch.device("cpu", 1)
    model = (sketch if away == "sketch" else render).clone()
    model.load_device = model.offload_device = there
    assert there != (render if away == "sketch" else sketch).load_device
    pair = (model, render) if away == "sketch" else (sketch, model)
    assert torch.equal(helpers.ksampler(sr_model(*pair, 3, fade=fade), STEPS, sampler_name=sampler), plain)
    assert torch.equal(helpers.ksampler(sketch, STEPS), helpers.ksampler(wan(layers=2), STEPS))


@pytest.mark.parametrize(
    ("sketch", "render"),
    [
        ("LTX-Video", "Kandinsky 5"),
        ("Kandinsky 5", "Wan2.1 VACE"),
        ("SD3.5", "Flux.2"),
        ("Cosmos-Predict2", "Wan2.1 VACE"),
    ],
)
def test_models_of_two_families_are_refused_with_what_differs(sketch: str, render: str) -> None:
    """Cosmos-Predict2 and Wan share a VAE, but not what a noise level means."""
    pair = [comfy.sd.load_diffusion_model_state_dict(weights(FAMILIES[name], "sketch", 0)) for name in (sketch, render)]
    with pytest.raises(ValueError, match=r"^Sketch .* and render .*, so they do not fit together\.") as error:
        latent.check_pair(*pair)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_of_pairs_says_that_these_were_tried(name: str) -> None:
    tried = [pair.tried for pair in families.PAIRS if pair.sketch.startswith(name)]
    assert tried and all(text.startswith(families.TINY) for text in tried)


@pytest.mark.parametrize("sampler", ["uni_pc", "euler_ancestral"])
def test_every_family_goes_through_a_file_as_in_sr_sampler(
    sampler: str, family: Family, load: Load, tmp_path: Path
) -> None:
    sketch, render, own = load("sketch"), load("render"), family.own_prompts()
    how = family.start() | {"sampler_name": sampler}
    record = runs.through_a_file(runs.sketched(sketch, **how)[0], tmp_path)
    latent, _ = runs.rendered(record, render, **(own or {role: how[role] for role in ("positive", "negative")}))
    whole = runs.sr_sampler(sketch, render, **how, **{f"render_{role}": conds for role, conds in own.items()})
    assert torch.equal(latent["samples"], whole)


def test_every_family_sketches_small(family: Family, load: Load) -> None:
    """Flow and variance exploding, video and image, patches of 1 and 2, and the frames of VACE."""
    sketch, small = runs.shapes_of(load("sketch"))
    render, large = runs.shapes_of(load("render"))
    size = family.latent[2:]
    frames = {"vace_frames": [torch.randn(1, 32, *size)], "vace_mask": [torch.ones(1, 64, *size)]}
    extra = frames if "VACE" in family.kind.upper() else {}
    start = family.start()
    for role in ("positive", "negative"):
        start[role][0][1].update(extra)
    model = sr_model(sketch, render, sketch_scale=0.5, **family.own_prompts())
    latent = helpers.ksampler(model, STEPS, **start)
    assert torch.isfinite(latent).all() and tuple(latent.shape) == family.latent
    assert {shape[-2:] for shape in small} == {tuple(n // 2 for n in size[-2:])}
    assert {shape[-2:] for shape in large} == {size[-2:]}
