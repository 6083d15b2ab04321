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
from comfy.patcher_extension import WrappersMP
from hosting import module
from torch.utils._python_dispatch import TorchDispatchMode

cogvideox, files, latent = module("srd_core.cogvideox"), module("srd_core.cogvideox.files"), module("srd_core.latent")
checkpoint, families = module("srd_core.checkpoint"), module("srd_core.families")

KINDS = ["2b", "5b", "1.5"]
SINGLE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def networks() -> dict[str, Any]:
    return {kind: oracle.transformer(kind, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture(scope="session")
def folders(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The official repositories' transformer folders, in tiny."""
    root = tmp_path_factory.mktemp("diffusion_models")
    return {kind: oracle.write(network, root / kind) for kind, network in networks.items()}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(seed: int, tokens: int = oracle.TOKENS) -> torch.Tensor:
    return random(1, tokens, oracle.TEXT_DIM, seed=seed)


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def forward(model: Any, x: torch.Tensor, prompt: torch.Tensor, timestep: int) -> torch.Tensor:
    """The network of a MODEL with its patches on, as the host loads it."""
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model(x, torch.tensor([float(timestep)] * len(x)), prompt.expand(len(x), -1, -1))


def sample(
    model: Any, noise: torch.Tensor, steps: int = 10, cfg: float = 6.0, sampler: str = "euler", **how: Any
) -> torch.Tensor:
    """The host's KSampler with our noise; the latent in the VAE's scale."""
    prompts = {"positive": [[text(1), {}]], "negative": [[text(2), {}]]} | how
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        "simple",
        prompts["positive"],
        prompts["negative"],
        torch.zeros_like(noise),
        seed=0,
        disable_pbar=True,
    )


# --- one forward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width, frames", [(60, 90, 1), (40, 56, 2), (20, 64, 3)])
@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_one_forward_is_diffusers_at_every_size(
    kind: str, height: int, width: int, frames: int, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    x = random(1, 16, frames, height, width)
    reference = oracle.forward(networks[kind], kind, x, text(1), 500)
    assert relative(forward(cogvideox.load(folders[kind]), x, text(1), 500), reference) <= 1e-6


@pytest.mark.parametrize("height, width, frames", [(16, 24, 4), (24, 16, 2)])
def test_one_forward_of_1_5_is_diffusers(
    height: int, width: int, frames: int, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    x = random(2, 16, frames, height, width)
    reference = oracle.forward(networks["1.5"], "1.5", x, text(1).expand(2, -1, -1), 999)
    assert relative(forward(cogvideox.load(folders["1.5"]), x, text(1), 999), reference) <= 1e-6


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


@pytest.mark.parametrize("steps", [50, 10])
@pytest.mark.parametrize("cfg", [1.0, 6.0])
@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_sampling_is_the_official_pipeline(
    kind: str, cfg: float, steps: int, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    noise = random(1, 16, 2, 8, 12, seed=5)
    ours = sample(cogvideox.load(folders[kind]), noise, steps, cfg)
    assert relative(ours, reference_sample(networks[kind], kind, noise, steps, cfg)) <= 5e-5
    if steps == 10:  # what the host's terminal alpha costs: measured 1.1e-4 at 10 and at 50 steps
        assert relative(ours, reference_sample(networks[kind], kind, noise, steps, cfg, clamp=False)) <= 2e-4


def test_sampling_of_1_5_is_the_official_pipeline(networks: dict[str, Any], folders: dict[str, Path]) -> None:
    noise = random(1, 16, 2, 8, 12, seed=5)
    ours = sample(cogvideox.load(folders["1.5"]), noise, 10, 6.0)
    assert relative(ours, reference_sample(networks["1.5"], "1.5", noise, 10, 6.0)) <= 5e-5


@pytest.mark.parametrize("kind", ["2b", "5b"])
def test_dynamic_cfg_is_that_of_the_official_pipeline(
    kind: str, networks: dict[str, Any], folders: dict[str, Path]
) -> None:
    noise = random(1, 16, 2, 8, 12, seed=6)
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


# --- the forms of a checkpoint ----------------------------------------------------------------------------------------


def same_as(reference: Any, model: Any) -> bool:
    """Do two MODELs compute the same, bit for bit?"""
    x = random(1, 16, 2, 12, 20)
    return torch.equal(forward(reference, x, text(3), 321), forward(model, x, text(3), 321))


def host_file(network: Any, path: Path, prefix: str = "", **extra: torch.Tensor) -> Path:
    """The network as one file in the host's key layout."""
    tensors = {prefix + files.host_key(key): value for key, value in network.state_dict().items()}
    comfy.utils.save_torch_file({**tensors, **extra}, str(path), metadata={})
    return path


def official(kind: str, heads: int, layers: int = 1, **config: Any) -> dict[str, Any]:
    """Name -> shape of every tensor of a transformer of official width."""
    with torch.device("meta"):
        network = oracle.CogVideoXTransformer3DModel(
            **{
                **oracle.CONFIGS[kind],
                "num_attention_heads": heads,
                "num_layers": layers,
                "sample_height": 2,
                "sample_width": 2,
                "sample_frames": 1,
                "time_embed_dim": 512,
                "text_embed_dim": 4096,
                **config,
            }
        )
    return {key: list(value.shape) for key, value in network.state_dict().items()}


def hollow_file(path: Path, shapes: dict[str, Any], **metadata: str) -> Path:
    """A safetensors file of half precision whose data is a hole: full size on paper, a few kilobytes on disk."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text_ = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text_).to_bytes(8, "little") + text_)
        file.truncate(8 + len(text_) + end)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_folder_its_index_and_any_of_its_shards_are_the_single_file(
    kind: str, networks: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = oracle.write(networks[kind], tmp_path / "CogVideoX", shards=3)
    reference = cogvideox.load(folders[kind] / SINGLE)
    for path in (folder, next(folder.glob("*.index.json")), sorted(folder.glob("*.safetensors"))[1]):
        assert cogvideox.is_cogvideox(path) and same_as(reference, cogvideox.load(path))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_in_the_host_s_layout_is_the_official_one(
    prefix: str, networks: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    oracle.write_config(networks["2b"], tmp_path)
    extra = {"vae.encoder.weight": torch.zeros(2)} if prefix else {}
    path = host_file(networks["2b"], tmp_path / "model.safetensors", prefix, **extra)
    assert same_as(cogvideox.load(folders["2b"]), cogvideox.load(path))


def test_a_table_of_positions_in_the_file_is_not_added_a_second_time(
    networks: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    oracle.write_config(networks["2b"], tmp_path)
    table = networks["2b"].patch_embed.pos_embedding
    whole, other = (
        host_file(
            networks["2b"], tmp_path / f"{name}.safetensors", **{"patch_embed.pos_embedding": table[:, :length].clone()}
        )
        for name, length in (("whole", None), ("other", 500))  # of another size the host could not even load it
    )
    reference = cogvideox.load(folders["2b"])
    assert same_as(reference, cogvideox.load(other))
    assert same_as(reference, cogvideox.correct(comfy.sd.load_diffusion_model(str(whole))))


def test_the_config_in_the_metadata_comes_before_the_one_beside_the_file(
    networks: dict[str, Any], tmp_path: Path
) -> None:
    """Two configs that fit the weights: one calls them rotary, the other not."""
    path = tmp_path / "model.safetensors"
    oracle.write_config(networks["2b"], tmp_path)
    config = json.dumps(oracle.config_of(networks["5b"]))
    comfy.utils.save_torch_file(networks["5b"].state_dict(), str(path), metadata={"config": config})
    assert cogvideox.identify(path).member.name == "CogVideoX 5B"
    comfy.utils.save_torch_file(networks["5b"].state_dict(), str(path), metadata={})
    assert cogvideox.identify(path).member.name == "CogVideoX 2B"


def test_sizes_and_scales_of_the_config_are_followed(tmp_path: Path) -> None:
    x = random(1, 16, 2, 20, 12)
    for kind, changes in (
        ("5b", {"sample_height": 24, "sample_width": 16}),
        ("2b", {"spatial_interpolation_scale": 1.5, "temporal_interpolation_scale": 2.0}),
    ):
        network = oracle.transformer(kind, seed=8, **changes)
        folder = oracle.write(network, tmp_path / kind)
        reference = oracle.forward(network, kind, x, text(1), 500)
        assert relative(forward(cogvideox.load(folder), x, text(1), 500), reference) <= 1e-6
        plain = oracle.write(oracle.transformer(kind, seed=8), tmp_path / f"{kind} plain")
        assert relative(forward(cogvideox.load(plain), x, text(1), 500), reference) > 1e-3


@pytest.mark.parametrize("kind, heads, name", [("2b", 30, "2B"), ("5b", 48, "5B"), ("1.5", 48, "1.5 5B")])
def test_without_a_config_the_width_tells_the_variant(kind: str, heads: int, name: str, tmp_path: Path) -> None:
    shapes = official(kind, heads)
    path = hollow_file(tmp_path / "model.safetensors", shapes)
    sizes = {"sample_height": 8, "num_attention_heads": heads, "patch_size_t": 2 if kind == "1.5" else None}
    for of_another_file in (
        {"_class_name": "WanTransformer3DModel", **sizes},
        {"_class_name": "CogVideoXTransformer3DModel", **sizes, "num_attention_heads": 12},
    ):
        (tmp_path / "config.json").write_text(json.dumps(of_another_file), "utf-8")
        layout = cogvideox.identify(path)
        assert layout.member.name == f"CogVideoX {name}"
        assert (layout.rows, layout.columns, layout.spatial_scale) == (30, 45, 1.875)


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_weights_in_fp8(weight_dtype: str, folders: dict[str, Path]) -> None:
    model = cogvideox.load(folders["5b"], weight_dtype)
    dtype = torch.float8_e5m2 if weight_dtype == "fp8_e5m2" else torch.float8_e4m3fn
    assert model.model.diffusion_model.blocks[1].ff_proj.weight.dtype == dtype
    x = random(1, 16, 2, 12, 20)
    ours, exact = (forward(m, x, text(3), 500) for m in (model, cogvideox.load(folders["5b"])))
    assert 1e-4 < relative(ours, exact) < 0.5


def test_names_of_quantised_layers_are_renamed_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "quantised.safetensors"
    layers = {"transformer_blocks.0.attn1.to_out.0": {"format": "float8_e4m3fn"}}
    comfy.utils.save_torch_file(
        {key: torch.zeros(1) for key in official("5b", 48)},
        str(path),
        metadata={"_quantization_metadata": json.dumps({"layers": layers})},
    )
    _, metadata = files.read(path)
    assert list(json.loads(metadata["_quantization_metadata"])["layers"]) == ["blocks.0.attn_out"]
    assert files.host_key("transformer_blocks.3.attn1.to_q.scale_weight") == "blocks.3.q.scale_weight"


def test_the_weights_are_not_in_memory_twice(folders: dict[str, Path]) -> None:
    state_dict, _ = files.read(folders["5b"])
    tensors = {id(value) for value in state_dict.values()}
    before = state_dict
    files.rename(state_dict)
    assert state_dict is before and {id(value) for value in state_dict.values()} == tensors
    comfy.sd.load_diffusion_model_state_dict(state_dict)
    assert not state_dict  # the host has taken them all: none missing, none unexpected, none kept


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        cogvideox.load(path)
    assert all(word in str(caught.value) for word in (path.name, *words)), caught.value


def test_what_is_no_text_to_video_cogvideox_is_refused_in_words(
    networks: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    refused(hollow_file(path, official("5b", 48, in_channels=32)), "image", "32 input channels", "CogVideoX-5b")
    refused(hollow_file(path, official("1.5", 48, ofs_embed_dim=512)), "image", "Choose")
    refused(hollow_file(path, official("5b", 40)), "width 2560", "1920 (CogVideoX 2B)", "config.json")
    shapes = official("5b", 48, layers=2)
    refused(hollow_file(path, {k: v for k, v in shapes.items() if "blocks.1.ff" not in k}), "only a part", "3 more")
    refused(
        hollow_file(path, {k: v for k, v in shapes.items() if "proj_out" not in k}), "only a part", "proj_out.weight"
    )
    refused(hollow_file(path, {"blocks.0.weight": [2]}), "not a CogVideoX", "Choose")
    (tmp_path / "config.json").write_text(json.dumps({**oracle.config_of(networks["5b"]), "patch_size": 4}), "utf-8")
    comfy.utils.save_torch_file(networks["5b"].state_dict(), str(path))
    refused(path, "can't build", "Choose")


def test_shards_that_are_not_whole_are_refused_with_what_is_missing(networks: dict[str, Any], tmp_path: Path) -> None:
    folder = oracle.write(networks["5b"], tmp_path / "CogVideoX-5b", shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    whole = second.read_bytes()
    second.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=f"{second.name} is cut short"):
        cogvideox.load(folder)
    second.unlink()
    with pytest.raises(ValueError, match=f"CogVideoX-5b/.*index.json names {second.name}, which is not beside"):
        cogvideox.load(folder)
    (index,) = folder.glob("*.index.json")
    index.write_text("[]", "utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        cogvideox.load(folder)
    index.unlink()
    with pytest.raises(ValueError, match="is not beside it"):
        cogvideox.load(first)
    with pytest.raises(ValueError, match="/CogVideoX-5b must hold the shards .* it has 0 indices"):
        cogvideox.load(folder)


def test_files_of_other_families_are_left_to_the_host(tiny_file: Callable[..., Path], tmp_path: Path) -> None:
    wan = tiny_file()
    assert not cogvideox.is_cogvideox(wan) and not cogvideox.is_cogvideox(tmp_path / "absent.safetensors")
    pickled = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1)}, pickled)
    assert not cogvideox.is_cogvideox(pickled)
    image = {
        key.replace("time_embedding.", "time_condition_embed."): shape for key, shape in official("5b", 48).items()
    }
    assert not cogvideox.is_cogvideox(hollow_file(tmp_path / "cogview.safetensors", image))
    checkpoint.check_video_dit(wan)
    folder = tmp_path / "shards"
    folder.mkdir()
    parts = [hollow_file(folder / f"wan-0000{i}-of-00002.safetensors", {f"{i}": [1]}) for i in (1, 2)]
    index = {"weight_map": {str(i): part.name for i, part in enumerate(parts)}}
    (folder / "wan.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    for path in (folder, parts[1]):
        with pytest.raises(ValueError, match="is a model in 2 shards. Only CogVideoX"):
            checkpoint.check_video_dit(path)


def test_the_loader_offers_one_name_for_the_shards_of_a_model() -> None:
    shards = [f"diffusion_pytorch_model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    single = str(Path("CogVideoX-2b", "transformer", SINGLE))
    files = ["wan.safetensors", single, *(str(Path("CogVideoX-5b", "transformer", s)) for s in shards), *shards, SINGLE]
    assert checkpoint.model_names(files) == sorted(
        [
            "CogVideoX-2b/transformer",
            "CogVideoX-5b/transformer",
            single,
            SINGLE,
            "diffusion_pytorch_model.safetensors.index.json",
            "wan.safetensors",
        ]
    )


# --- the fix for MODELs of other loaders ------------------------------------------------------------------------------


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
    expected = sample(ours, noise, 4)
    assert torch.equal(sample(fixed, noise, 4), expected)
    (again,) = node.execute(fixed, False).args  # twice is once
    assert torch.equal(sample(again, noise, 4), expected)
    assert len(again.wrappers[WrappersMP.OUTER_SAMPLE][module("srd_core.cogvideox.layout").KEY]) == 1
    assert not torch.equal(sample(plain, noise, 4), expected) and not plain.object_patches and not plain.wrappers


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
    prompts = {"positive": [[text(1), {}]], "negative": [[text(2), {}]]} | how
    return helpers.ksampler(model, steps=2, latent={"samples": torch.zeros(1, 16, frames, 8, 8)}, **prompts)


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


def test_the_fix_without_dynamic_cfg_takes_that_of_another_fix_off_and_leaves_what_others_set(
    folders: dict[str, Path],
) -> None:
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample_height", None),
        ("sample_height", "60"),
        ("sample_width", 1),
        ("spatial_interpolation_scale", 0),
        ("spatial_interpolation_scale", None),
        ("temporal_interpolation_scale", float("inf")),
        ("temporal_interpolation_scale", True),
    ],
)
def test_a_number_of_the_config_that_no_model_has_is_refused_naming_it(
    key: str, value: Any, networks: dict[str, Any], tmp_path: Path
) -> None:
    folder = oracle.write(networks["2b"], tmp_path)
    (folder / "config.json").write_text(json.dumps({**oracle.config_of(networks["2b"]), key: value}), "utf-8")
    with pytest.raises(ValueError, match=f"config.json says {key} '{value}'; a number from"):
        cogvideox.identify(folder)


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


# --- between the latents of 5B and 2B (its runs: test_cogvideox_hand_over.py) -----------------------------------------


@pytest.mark.parametrize("kind", [latent.FLOW, latent.VARIANCE_EXPLODING])
def test_the_map_takes_a_noisy_latent_to_what_the_render_would_have_seen(kind: str) -> None:
    clean, noise = random(3, 2, 2, 2).double(), random(3, 2, 2, 2, seed=1).double()
    sigma = torch.tensor([1.0, 0.6, 0.0] if kind == latent.FLOW else [4518.8, 1.0, 0.0], dtype=torch.float64)

    def noisy(scale: float, sigma: torch.Tensor) -> torch.Tensor:
        weight = 1 - sigma if kind == latent.FLOW else torch.ones_like(sigma)
        return weight.view(-1, 1, 1, 1) * scale * clean + sigma.view(-1, 1, 1, 1) * noise

    mapping = latent.LatentMap(1.2 / 0.7, kind)
    x, mapped = mapping.to_render(noisy(0.7, sigma), sigma)
    assert torch.allclose(x, noisy(1.2, mapped), rtol=1e-12, atol=1e-12)
    assert torch.allclose(mapping.clean_to_sketch(1.2 * clean), 0.7 * clean)
    assert torch.allclose(mapping.clean_to_render(0.7 * clean), 1.2 * clean)
    single = mapping.to_render(noisy(0.7, sigma)[:1], sigma[0])
    assert torch.equal(single[0], x[:1]) and single[1] == mapped[0]
    same = latent.LatentMap(1.0, kind)
    assert same.is_identity and all(a is b for a, b in zip(same.to_render(clean, sigma), (clean, sigma)))


def test_an_impossible_map_is_refused() -> None:
    for ratio, kind in ((0.0, latent.FLOW), (float("nan"), latent.FLOW), (1.0, "DDPM")):
        with pytest.raises(ValueError, match="No map"):
            latent.LatentMap(ratio, kind)


def test_the_scales_are_the_official_ones(folders: dict[str, Path]) -> None:
    for kind in KINDS:
        model = cogvideox.load(folders[kind])
        member = cogvideox.layout_of(model).member
        assert model.get_model_object("latent_format").scale_factor == member.latent_scale == oracle.SCALE[kind]
