"""Model files: what loads, and what is refused by a sentence before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import helpers
import pytest
import torch
from hosting import module
from runs import load, loaders

checkpoint = module("srd_core.checkpoint")


@pytest.mark.parametrize("node", [loaders.SRLoadSketchDiT, loaders.SRLoadRenderDiT], ids=["sketch", "render"])
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
    def shape(self) -> torch.Size:  # type: ignore[override]
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
    ("weight_dtype", "expected"), [("fp8_e4m3fn", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)], ids=str
)
def test_weight_dtype_is_the_precision_in_memory(weight_dtype: str, expected: torch.dtype, models_folder: Path) -> None:
    name = helpers.wan_file(models_folder, seed=0).name
    assert load(name, weight_dtype=weight_dtype).model.diffusion_model.blocks[0].ffn[0].weight.dtype == expected


def test_a_missing_file_is_named(models_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        load("gone.safetensors")
    with pytest.raises(ValueError, match="gone.safetensors is not there any more"):
        checkpoint.check_video_dit(models_folder / "gone.safetensors")


@pytest.mark.parametrize("keep", [5, -1000])
def test_a_file_that_broke_off_is_named_with_what_to_do(keep: int, models_folder: Path) -> None:
    path = helpers.wan_file(models_folder, seed=0)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{path.name}.*(get|Get) it again"):
        load(path.name)


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


def test_a_folder_of_the_same_name_in_another_models_folder_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [tmp_path / name for name in ("unet", "diffusion_models")]
    for root in roots:
        (root / "wan").mkdir(parents=True)
    (roots[0] / "wan" / "other.gguf").write_bytes(b"")
    comfy.utils.save_torch_file(helpers.wan_state_dict(), str(roots[1] / "wan" / "a_lora.safetensors"))
    comfy.utils.save_torch_file(helpers.wan_state_dict(), str(roots[1] / "wan" / "diffusion_pytorch_model.safetensors"))
    for order in (roots, roots[::-1]):
        known = ([str(root) for root in order], {".safetensors", ".gguf"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", known)
        folder_paths.filename_list_cache.clear()
        assert loaders.SRLoadSketchDiT.validate_inputs("wan") is True
        load("wan")
    folder_paths.filename_list_cache.clear()


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
    ids=["text", "list", "number", "null", "layers"],
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
