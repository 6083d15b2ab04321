"""The forms in which a CogVideoX comes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cogvideox_oracle as oracle
import comfy.sd
import comfy.utils
import pytest
import torch
from cogvideox_oracle import random, relative, text
from hosting import module
from test_cogvideox import KINDS, forward, host_file

cogvideox, files = module("srd_core.cogvideox"), module("srd_core.cogvideox.files")
checkpoint = module("srd_core.checkpoint")
SINGLE = "diffusion_pytorch_model.safetensors"


# --- the forms of a checkpoint ----------------------------------------------------------------------------------------


def same_as(reference: Any, model: Any) -> bool:
    """Do two MODELs compute the same, bit for bit?"""
    x = random(1, 16, 2, 12, 20)
    return torch.equal(forward(reference, x, text(3), 321), forward(model, x, text(3), 321))


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


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn_fast", "fp8_e5m2"])
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
    odd = ({"blocks.99999999.a.weight": [2]}, {"patch_embed.proj.weight": [2]})  # not counted up to; not indexed
    for change in odd:
        refused(hollow_file(path, shapes | change), "is damaged", "Download it again")
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


NO_NUMBERS = {
    "sample_height": (None, "60"),
    "sample_width": (1,),
    "spatial_interpolation_scale": (0, None),
    "temporal_interpolation_scale": (float("inf"), True),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NO_NUMBERS.items() for value in values])
def test_a_number_of_the_config_that_no_model_has_is_refused_naming_it(
    key: str, value: Any, networks: dict[str, Any], tmp_path: Path
) -> None:
    folder = oracle.write(networks["2b"], tmp_path)
    (folder / "config.json").write_text(json.dumps({**oracle.config_of(networks["2b"]), key: value}), "utf-8")
    with pytest.raises(ValueError, match=f"config.json says {key} '{value}'; a number from"):
        cogvideox.identify(folder)
