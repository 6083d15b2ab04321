"""Which member of the family it is, from its tensors' shapes and its config.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import called
from ..families import COGVIDEOX, ROTARY, SINCOS, SLICE, CogVideoX

HEAD = 64  # channels of an attention head; fixed in the host
CHANNELS = 16  # of the latent
KEY = "srdiffusion_cogvideox"  # a corrected MODEL's attachment with its layout, its wrapper, its hook
CLASS_NAME = "CogVideoXTransformer3DModel"  # in the official config.json


@dataclass(frozen=True)
class Layout:
    """A member of the family with what the positions need to know: the sizes it was trained at."""

    member: CogVideoX
    rows: int = 30  # patches of the training size 720x480
    columns: int = 45
    spatial_scale: float = 1.875  # sincos: positions are divided by these
    temporal_scale: float = 1.0


@dataclass(frozen=True)
class Facts:
    """What the weights themselves say."""

    dim: int
    in_channels: int
    frame_patch: int  # latent frames in one patch
    has_ofs: bool  # an embedding that only the image-to-video model of 1.5 has


def facts_of_weights(shapes: Mapping[str, Any]) -> Facts:
    """``shapes``: the host's name of a tensor -> its shape; all of a transformer's."""
    projection = shapes["patch_embed.proj.weight"]
    flat = len(projection) == 2  # 1.5: patches of 2 x 2 x 2 as one row of values; before: a convolution
    return Facts(
        dim=shapes["patch_embed.text_proj.weight"][0],
        in_channels=projection[1] // 8 if flat else projection[1],
        frame_patch=2 if flat else 1,
        has_ofs=any(key.startswith("ofs_embedding_linear_1") for key in shapes),
    )


def layout_from(name: str, facts: Facts, config: Mapping[str, Any] | None) -> Layout:
    """Without a ``config``, the transformer's config.json, the width says which member of the family it is.

    Raises ValueError for a file that is not a text-to-video CogVideoX, or is an unknown one.
    """
    if facts.in_channels != CHANNELS or facts.has_ofs:
        raise ValueError(
            f"{name} is a CogVideoX that needs an image or a video to start from ({facts.in_channels} input channels), "
            "which is not supported here. Choose a text-to-video one: CogVideoX-5b or CogVideoX-2b."
        )
    if config is None:
        known = [m for m in COGVIDEOX if m.heads * HEAD == facts.dim and m.frame_patch == facts.frame_patch]
        if not known:
            widths = " and ".join(f"{m.heads * HEAD} ({m.name})" for m in COGVIDEOX)
            raise ValueError(
                f"{name} is a CogVideoX of width {facts.dim}; known are {widths}. "
                "Put the config.json of its transformer beside it."
            )
        return Layout(known[0])
    rotary = config.get("use_rotary_positional_embeddings", False)
    positions = SLICE if facts.frame_patch > 1 else ROTARY if rotary else SINCOS
    sizes = (config.get("attention_head_dim", HEAD), config.get("patch_size", 2))
    if sizes != (HEAD, 2) or (positions == SLICE and not rotary):
        raise ValueError(
            f"{name}: its config.json describes a CogVideoX that ComfyUI can't build (heads of 64 channels, patches of "
            "2 x 2 and, for 1.5, rotary positions are expected). Choose CogVideoX-5b or CogVideoX-2b."
        )
    return Layout(
        member=next(m for m in COGVIDEOX if m.positions == positions),
        rows=int(_number(name, config, "sample_height", 60, 2)) // 2,
        columns=int(_number(name, config, "sample_width", 90, 2)) // 2,
        spatial_scale=_number(name, config, "spatial_interpolation_scale", 1.875, 1e-3),
        temporal_scale=_number(name, config, "temporal_interpolation_scale", 1.0, 1e-3),
    )


def _number(name: str, config: Mapping[str, Any], key: str, default: float, least: float) -> float:
    """config[key], from ``least`` to a million. Raises ValueError with a sentence for anything else."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not least <= value <= 1e6:
        raise ValueError(
            f"{name}: its config.json says {key} {str(value)[:40]!r}; a number from {least:g} on is needed there. "
            "Get that file again."
        )
    return float(value)


def config_of(path: Path, metadata: Mapping[str, str], facts: Facts) -> Mapping[str, Any] | None:
    """The transformer's config.json: from the file's metadata ("config"), else from beside it, else None.

    One that does not describe these weights belongs to another file of the folder and is passed over.
    """
    folder = path if path.is_dir() else path.parent
    beside = folder / "config.json"
    for text in (metadata.get("config"), beside.read_bytes() if beside.is_file() else None):
        try:
            config = json.loads(text or "null")
            config = config.get("transformer", config) if isinstance(config, dict) else None
            if config and config.get("_class_name", CLASS_NAME) == CLASS_NAME and _describes(config, facts):
                return config
        except (ValueError, TypeError, AttributeError, RecursionError):
            logging.warning("SRDiffusion: the config.json of %s is not readable; going by its weights.", called(path))
    return None


def _describes(config: Mapping[str, Any], facts: Facts) -> bool:
    said = (
        config.get("num_attention_heads", 30) * config.get("attention_head_dim", HEAD),
        config.get("in_channels", CHANNELS),
        config.get("patch_size_t") or 1,
    )
    return said == (facts.dim, facts.in_channels, facts.frame_patch)
