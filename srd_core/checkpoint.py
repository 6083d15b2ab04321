"""Is this file a video DiT? Read from the safetensors header alone, before gigabytes are loaded."""

from __future__ import annotations

import json
import logging
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.utils
import safetensors
import torch

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# bytes; a model's header is below 1 MB, and text of this size becomes half a gigabyte at worst
HEADER_LIMIT = 16_000_000
SAFETENSORS = (".safetensors", ".sft")
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")  # how the Hub names one of several files of a model
WEIGHTS = "diffusion_pytorch_model.safetensors"  # how the Hub calls the one file of a model
INDEX = ".safetensors.index.json"  # after the stem: which tensor lies in which shard

GET = "Get the version for ComfyUI"
SUCH_AS = "such as wan2.1_t2v_14B_fp8_scaled.safetensors."


class OddNumber(ValueError):
    """A number that the weights of a model can't have; the text: a part of a sentence."""


def model_names(files: Iterable[str]) -> list[str]:
    """What a loader offers for the ``files`` of a models folder (relative paths), sorted.

    Shards of one model become one name: that of their folder, or of their index where they lie in the models folder
    itself. A file of the Hub's name for "the weights" is offered by its folder too. Folders are written with / on every
    system, so that a workflow finds them on all.
    """
    names = set()
    for file in files:
        path = Path(file)
        found, folder = SHARD.fullmatch(path.name), path.parent.as_posix()
        if not found:
            names.add(file)
        elif folder == ".":
            names.add(found["stem"] + INDEX)
        if folder != "." and (found or path.name == WEIGHTS):
            names.add(folder)
    return sorted(names)


def called(path: Path) -> str:
    """How messages name a model: by its file; a common file name comes with the folder around it."""
    common = path.is_dir() or path.name.startswith(Path(WEIGHTS).stem)
    return f"{path.parent.name}/{path.name}" if common else path.name


def holds_a_model(folder: Path) -> bool:
    """Whether a folder is one that ``model_names`` offers."""
    return any(SHARD.fullmatch(file.name) or file.name == WEIGHTS for file in folder.iterdir())


def weight_files(path: Path) -> list[Path]:
    """``path``, or all shards of the model for a folder, an index or a shard. Raises ValueError: what is missing."""
    if path.is_dir():
        indices, files = sorted(path.glob(f"*{INDEX}")), sorted(path.glob("*.safetensors"))
        if not indices and path / WEIGHTS in files:  # whatever else is there, such as a LoRA
            return [path / WEIGHTS]
        if len(indices) != 1:
            raise ValueError(
                f"{called(path)} must hold the shards of one model and their index (*{INDEX}); it has {len(indices)} "
                "indices. Download that repository folder whole."
            )
        path = indices[0]
    shard = SHARD.fullmatch(path.name)
    index = path.with_name(shard["stem"] + INDEX) if shard else path
    if not index.name.endswith(INDEX):
        return [path]
    if not index.is_file():
        raise ValueError(f"{path.name} is one of several shards, but {index.name} is not beside it. Download it too.")
    try:
        names = sorted({Path(name).name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        files = [index.with_name(name) for name in names]
        absent = [file.name for file in files if not file.is_file()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{index.name} is damaged: it names no shards. Get it again.") from error
    if absent:
        raise ValueError(f"{called(index)} names {', '.join(absent)}, which is not beside it. Download it too.")
    return files


def check_video_dit(path: Path) -> None:
    """Raises ValueError if ``path``, a file or a folder, is not a video DiT of the host. All but safetensors passes."""
    if not path.exists():
        raise ValueError(f"{path.name} is not there any more. Put it into models/diffusion_models and press R.")
    shards = weight_files(path)
    if len(shards) > 1:
        raise ValueError(
            f"{called(path)} is a {_kind(read_headers(shards)[0])} in {len(shards)} shards. Only CogVideoX is loaded "
            f"from shards. {GET}, one file, {SUCH_AS}"
        )
    path = shards[0]
    if path.suffix.lower() not in SAFETENSORS:
        return
    header, metadata = read_headers(shards)
    try:
        config = model_config(on_meta(header), metadata)
    except (NotImplementedError, RuntimeError) as error:  # detection that reads values, which a header does not have
        logging.info("SRDiffusion: %s can't be judged by its header (%s); loading it.", path.name, error)
        return
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{called(path)} {_no_model(header, metadata, error)}") from error
    if config is None:
        raise ValueError(f"{called(path)} {_no_model(header, metadata)}")
    if config.latent_format.latent_dimensions != 3:
        raise ValueError(
            f"{called(path)} is {type(config).__name__}, not a video DiT. Choose one (Wan, LTX-Video, ...); for a pair "
            "of image models use the node Load Diffusion Model twice with Sketch-Render Model."
        )


def _no_model(header: dict[str, Any], metadata: dict[str, str], error: Exception | None = None) -> str:
    """What a whole file is of which the host's detection makes no model, and what to get: the rest of a sentence."""
    if error is not None and (odd := _odd_config(metadata, error)):
        return f"is whole, but its metadata (config) {odd}, so ComfyUI cannot read it. {GET}, {SUCH_AS}"
    if any(".attn1.to_q." in key and "lora" not in key for key in header):
        return f"is a {_kind(header)} in diffusers' format, which ComfyUI does not load. {GET}, {SUCH_AS}"
    if isinstance(error, (KeyError, IndexError, TypeError, AttributeError)):  # detection that misses tensors
        return (
            f"holds only a part of a model ({error} is missing): one of several shards? Choose the single-file version "
            "of this model."
        )
    reason = f" ({str(error)[:200]})" if error else ""
    return (
        f"is not a diffusion model that this ComfyUI knows{reason}. It may be a VAE, a text encoder, a LoRA or one of "
        f"several shards. Choose the DiT of a video model, {SUCH_AS}"
    )


def _kind(header: dict[str, Any]) -> str:
    """What to call a model of which only the tensors' names are known."""
    return "Wan" if any("condition_embedder." in key for key in header) else "model"


def _odd_config(metadata: dict[str, str], error: Exception) -> str:
    """What is wrong with the model's description in a file's metadata; empty if nothing is."""
    if "config" not in metadata:
        return ""
    try:
        config = json.loads(metadata["config"])
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(config, dict) or not isinstance(config.get("transformer", {}), dict):
        return "is not a description of a model"
    return str(error) if isinstance(error, OddNumber) else ""


def read_header(path: Path, limit: int = HEADER_LIMIT) -> dict[str, Any]:
    """Of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and __metadata__. Raises ValueError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, limit):
            raise ValueError(f"{path.name} is not a safetensors file, or its download broke off: get it again.")
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path.name} is damaged: its header is not readable. Get it again.") from error
    if size < needed:
        raise ValueError(
            f"{path.name} is cut short: {size / 1e6:.1f} MB of {needed / 1e6:.1f} MB. "
            "The download or copy broke off; get it again."
        )
    try:
        with safetensors.safe_open(path, framework="np"):  # checks types, shapes and offsets; reads no tensor
            return header
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged: {str(error)[:200]}. Get it again.") from error


def read_headers(files: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The shards of a model together: (tensor name -> {dtype, shape, data_offsets}, metadata).

    Empty for files that are not safetensors by their name. Raises ValueError as ``read_header`` does.
    """
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if file.suffix.lower() in SAFETENSORS:
            tensors.update(read_header(file))
            metadata.update(tensors.pop("__metadata__", None) or {})
    return tensors, metadata


def on_meta(header: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a header (without __metadata__) without data, as the host's detection wants them."""
    state_dict = {
        key: torch.empty(t["shape"], dtype=DTYPES.get(t["dtype"], torch.uint8), device="meta")
        for key, t in header.items()
    }
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state_dict)
    return comfy.utils.state_dict_prefix_replace(state_dict, {prefix: ""}, filter_keys=True) or state_dict


def model_config(state_dict: dict[str, torch.Tensor], metadata: dict[str, str]) -> Any | None:
    """The host's own detection, run on tensors without data (see ``on_meta``)."""
    config = comfy.model_detection.model_config_from_unet(state_dict, "", metadata=metadata)
    if config is not None:
        _check_numbers(config.unet_config, max((max(t.shape, default=0) for t in state_dict.values()), default=0))
    return config


def _check_numbers(described: dict[str, Any], largest: int) -> None:
    """Raises OddNumber for a size in the metadata that the weights can't have: the host would build it."""
    for name, value in described.items():
        is_size = isinstance(value, int) and any(part in name for part in ("layers", "blocks", "dim"))
        if is_size and value > max(largest, 1 << 16):
            raise OddNumber(f"says {name} {value}")
