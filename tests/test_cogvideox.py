"""CogVideoX in the host against diffusers: tiny random models, real code on both sides, float32."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import helpers
import pytest
import torch
from cogvideox_oracle import host_sample as sample
from cogvideox_oracle import prompts, random, relative, text
from comfy.patcher_extension import WrappersMP
from hosting import module
from torch.utils._python_dispatch import TorchDispatchMode

cogvideox, files = module("srd_core.cogvideox"), module("srd_core.cogvideox.files")
KINDS = list(oracle.CONFIGS)


def forward(model: Any, x: torch.Tensor, prompt: torch.Tensor, timestep: int) -> torch.Tensor:
    """The network of a MODEL with its patches on, as the host loads it."""
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model(x, torch.tensor([float(timestep)] * len(x)), prompt.expand(len(x), -1, -1))


# --- one forward ------------------------------------------------------------------------------------------------------


SIZES = [(kind, *size) for kind in ("2b", "5b") for size in ((60, 90, 1), (20, 64, 3))]


@pytest.mark.parametrize(("kind", "height", "width", "frames"), [*SIZES, ("1.5", 16, 24, 4), ("1.5", 24, 16, 2)])
def test_one_forward_is_diffusers_at_every_size(
    kind: str, height: int, width: int, frames: int, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    batch, timestep = (2, 999) if kind == "1.5" else (1, 500)
    x = random(batch, 16, frames, height, width)
    reference = oracle.forward(networks[kind], kind, x, text(1).expand(batch, -1, -1), timestep)
    assert relative(forward(cogvideox.load(folders[kind]), x, text(1), timestep), reference) <= 1e-6


def test_positions_are_made_and_brought_to_the_device_once_not_in_every_forward(folders: dict[str, Path]) -> None:
    """A copy to a GPU in every forward would wait for it each time. Only the tables are in float64."""
    model, x = cogvideox.load(folders["2b"]), random(1, 16, 3, 8, 12)
    first = forward(model, x, text(1), 500)

    class Float64(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += any(isinstance(arg, torch.Tensor) and arg.dtype == torch.float64 for arg in args)
            return func(*args, **(kwargs or {}))

    with Float64() as mode:
        again = forward(model, x, text(1), 500)
    assert mode.seen == 0 and torch.equal(first, again)


def test_without_the_corrections_the_same_forward_is_wrong(networks: dict[str, Any], folders: dict[str, Path]) -> None:
    """The oracle can tell: the host's own positions are off for 2B and 5B."""
    x = random(1, 16, 1, 40, 56)
    for kind in ("2b", "5b"):
        state_dict, _ = files.read(folders[kind])
        plain = comfy.sd.load_diffusion_model_state_dict(state_dict)
        reference = oracle.forward(networks[kind], kind, x, text(1), 500)
        assert relative(forward(plain, x, text(1), 500), reference) > 1e-2


def test_the_host_s_own_model_is_back_once_the_model_is_unloaded(folders: dict[str, Path]) -> None:
    model = cogvideox.load(folders["2b"])
    network = model.model.diffusion_model
    before = network.use_rotary_positional_embeddings, dict(network.patch_embed._forward_hooks)
    forward(model, random(1, 16, 1, 8, 8), text(1), 1)
    assert network.patch_embed._forward_hooks and not network.use_rotary_positional_embeddings
    comfy.model_management.unload_all_models()
    assert (network.use_rotary_positional_embeddings, dict(network.patch_embed._forward_hooks)) == before == (True, {})


# --- sampling ---------------------------------------------------------------------------------------------------------


def reference_sample(network: Any, kind: str, noise: torch.Tensor, steps: int, cfg: float, **how: Any) -> torch.Tensor:
    clamp = how.pop("clamp", True)
    pipe = oracle.pipeline(network, kind, clamp)
    out = oracle.sample(pipe, noise, text(1), text(2), num_inference_steps=steps, guidance_scale=cfg, **how)
    return out / oracle.SCALE[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_the_official_pipeline(kind: str, networks: dict[str, Any], folders: dict[str, Path]) -> None:
    noise = random(1, 16, 2, 8, 12, seed=5)
    ours = sample(cogvideox.load(folders[kind]), noise, 10, 6.0)
    assert relative(ours, reference_sample(networks[kind], kind, noise, 10, 6.0)) <= 5e-5
    if kind == "2b":  # what the host's terminal alpha costs: measured 1.1e-4 at 10 and at 50 steps
        assert relative(ours, reference_sample(networks[kind], kind, noise, 10, 6.0, clamp=False)) <= 2e-4


def test_dynamic_cfg_is_that_of_the_official_pipeline(networks: dict[str, Any], folders: dict[str, Path]) -> None:
    kind, noise = "5b", random(1, 16, 2, 8, 12, seed=6)
    model = cogvideox.correct(cogvideox.load(folders[kind]), dynamic_cfg=True)
    reference = reference_sample(networks[kind], kind, noise, 10, 6.0, use_dynamic_cfg=True)
    assert relative(sample(model, noise, 10, 6.0), reference) <= 5e-5
    without = reference_sample(networks[kind], kind, noise, 10, 1.0)
    assert relative(sample(model, noise, 10, 1.0), without) <= 5e-5  # cfg 1 means no guidance, as there


def test_the_schedule_is_the_official_one(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        sigmas = cogvideox.load(folders[kind]).get_model_object("model_sampling").sigmas
        alphas = oracle.scheduler(kind).alphas_cumprod.double()
        assert torch.allclose(sigmas.double(), ((1 - alphas) / alphas) ** 0.5, rtol=2e-7)


# --- the fix for MODELs of other loaders ------------------------------------------------------------------------------


def host_file(network: Any, path: Path, prefix: str = "", **extra: torch.Tensor) -> Path:
    """The network as one file in the host's key layout."""
    tensors = {prefix + files.host_key(key): value for key, value in network.state_dict().items()}
    comfy.utils.save_torch_file({**tensors, **extra}, str(path), metadata={})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_fix_makes_a_model_of_the_host_s_loader_the_same_as_ours(
    kind: str, networks: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    oracle.write_config(networks[kind], tmp_path)
    plain = comfy.sd.load_diffusion_model(str(host_file(networks[kind], tmp_path / "model.safetensors")))
    node = module("nodes.cogvideox").SRCogVideoXFix
    (fixed,) = node.execute(plain, False).args
    ours = cogvideox.load(folders[kind])
    noise = random(1, 16, 2, 8, 12)
    expected = sample(ours, noise, 2)
    assert torch.equal(sample(fixed, noise, 2), expected)
    (again,) = node.execute(fixed, False).args  # twice is once
    assert torch.equal(sample(again, noise, 2), expected)
    assert len(again.wrappers[WrappersMP.OUTER_SAMPLE][module("srd_core.cogvideox.layout").KEY]) == 1
    assert not torch.equal(sample(plain, noise, 2), expected) and not plain.object_patches and not plain.wrappers


def test_the_fix_of_another_model_is_refused(wan: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="WAN21, no CogVideoX"):
        cogvideox.correct(wan())


def test_a_clone_with_weights_of_its_own_computes_with_those(folders: dict[str, Path]) -> None:
    """The host makes such clones for a second GPU: no patch may hold on to the first one's modules."""
    model = cogvideox.load(folders["2b"])
    x, prompt = random(1, 16, 1, 8, 8), text(1)
    expected = forward(model, x, prompt, 5)
    twin = model.deepclone_multigpu()
    assert twin.model is not model.model
    for parameter in model.model.diffusion_model.parameters():
        parameter.zero_()
    assert torch.equal(forward(twin, x, prompt, 5), expected)


# --- what a run may ask for -------------------------------------------------------------------------------------------


def run(model: Any, frames: int, **how: Any) -> torch.Tensor:
    latent = {"samples": torch.zeros(1, 16, frames, 8, 8)}
    return helpers.ksampler(model, steps=2, latent=latent, **prompts() | how)


def test_a_prompt_longer_than_226_tokens_is_cut_with_one_line(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = cogvideox.load(folders["2b"])
    long = text(3, tokens=300)
    expected = run(model, 1, positive=[[long[:, :226], {}]])
    with caplog.at_level(logging.INFO):
        assert torch.equal(run(model, 1, positive=[[long, {}]]), expected)
    lines = [r.getMessage() for r in caplog.records if "SRDiffusion" in r.getMessage()]
    assert lines == ["SRDiffusion: CogVideoX reads 226 tokens of a prompt; cut: positive 300."]


def test_the_fix_without_dynamic_cfg_takes_only_that_of_another_fix_off(folders: dict[str, Path]) -> None:
    model = cogvideox.load(folders["5b"])
    dynamic = cogvideox.correct(model, dynamic_cfg=True)
    assert torch.equal(run(cogvideox.correct(dynamic), 1), run(model, 1)) and not torch.equal(
        run(dynamic, 1), run(model, 1)
    )
    other = model.clone()
    other.set_model_sampler_cfg_function(lambda args: args["cond"])
    assert torch.equal(run(cogvideox.correct(other), 1), run(other, 1))


def test_226_tokens_are_read_whatever_the_config_says_as_the_official_pipelines_do(
    networks: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = oracle.write(networks["5b"], tmp_path)
    expected = run(cogvideox.load(folder), 1)
    (folder / "config.json").write_text(
        json.dumps({**oracle.config_of(networks["5b"]), "max_text_seq_length": 224}), "utf-8"
    )
    with caplog.at_level(logging.INFO):
        assert torch.equal(run(cogvideox.load(folder), 1), expected)
    assert not [r for r in caplog.records if "tokens" in r.getMessage()]


def test_frame_counts_that_1_5_can_t_take_are_refused_with_the_nearest(folders: dict[str, Path]) -> None:
    model = cogvideox.load(folders["1.5"])
    with pytest.raises(ValueError, match=r"81 frames make 21\. Set the length of the empty latent to 77 or 85\."):
        run(model, 21)
    with pytest.raises(ValueError, match=r"to 5\."):
        run(model, 1)
    assert run(model, 2).shape[2] == 2
    assert run(cogvideox.load(folders["5b"]), 1).shape[2] == 1


def test_odd_sizes_run_and_keep_their_size(folders: dict[str, Path]) -> None:
    for kind in ("2b", "5b"):
        assert sample(cogvideox.load(folders[kind]), random(1, 16, 1, 7, 9), 1).shape == (1, 16, 1, 7, 9)


def test_the_scales_are_the_official_ones(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        model = cogvideox.load(folders[kind])
        member = cogvideox.layout_of(model).member
        assert model.get_model_object("latent_format").scale_factor == member.latent_scale == oracle.SCALE[kind]
