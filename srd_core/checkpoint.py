"""Is this file a video DiT? Read from the safetensors header alone, before gigabytes are loaded."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.utils
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
HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library accepts


def check_video_dit(path: Path) -> None:
    """Raises ValueError naming the file, the fault and the next step if ``path`` can't be loaded as a video DiT.

    Only safetensors files are looked into; other formats (.gguf, .pt) are left to the host's loader.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not there any more. Put it into models/diffusion_models and press R.")
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return
    try:
        config = _model_config(path)
    except (NotImplementedError, RuntimeError) as error:  # detection that reads values, which a header does not have
        logging.info("SRDiffusion: %s can't be judged by its header (%s); loading it.", path.name, error)
        return
    except (KeyError, IndexError, TypeError, AttributeError) as error:  # detection that misses tensors
        raise ValueError(
            f"{path.name} holds only a part of a model ({error} is missing): one of several shards? "
            "Choose the single-file version of this model."
        ) from error
    if config is None:
        raise ValueError(
            f"{path.name} is no diffusion model that this ComfyUI knows (a VAE, a text encoder, a LoRA or one of "
            "several shards?). "
            "Choose the DiT of a video model, e.g. wan2.1_t2v_14B_fp8_scaled.safetensors."
        )
    if config.latent_format.latent_dimensions != 3:
        raise ValueError(
            f"{path.name} is {type(config).__name__}, no video DiT. Choose one (Wan, LTX-Video, ...); for a pair of "
            "image models use the node Load Diffusion Model twice with Sketch-Render Model."
        )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor name -> {dtype, shape, data_offsets}, and __metadata__.

    Raises ValueError with a sentence for a file that is no safetensors file or was cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(size - 8, HEADER_LIMIT):
            raise ValueError(f"{path.name} is not a safetensors file, or its download broke off: get it again.")
        try:
            header = json.loads(file.read(length))
            ends = [t["data_offsets"][1] for k, t in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name} is damaged: its header is not readable. Get it again.") from error
    needed = 8 + length + max(ends, default=0)
    if size < needed:
        raise ValueError(
            f"{path.name} is cut short: {size / 1e6:.1f} MB of {needed / 1e6:.1f} MB. "
            "The download or copy broke off; get it again."
        )
    return header


def _model_config(path: Path) -> Any | None:
    """The host's own detection, run on tensors without data."""
    header = read_header(path)
    metadata = header.pop("__metadata__", None)
    state_dict = {
        key: torch.empty(t["shape"], dtype=DTYPES.get(t["dtype"], torch.uint8), device="meta")
        for key, t in header.items()
    }
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state_dict)
    stripped = comfy.utils.state_dict_prefix_replace(state_dict, {prefix: ""}, filter_keys=True)
    if stripped:
        state_dict = stripped
    return comfy.model_detection.model_config_from_unet(state_dict, "", metadata=metadata)
