"""The files: is a CogVideoX in there and is it whole, and its tensors under the host's names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.utils
import torch

from ..checkpoint import called, read_headers, weight_files
from .layout import Layout, config_of, facts_of_weights, layout_from

# From the official key layout (diffusers) to the host's; keys that are in the host's already stay as they are.
RENAMES = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^transformer_blocks\.", "blocks."),
        (r"\.attn1\.to_([qkv])(?=\.|$)", r".\1"),
        (r"\.attn1\.to_out\.0(?=\.|$)", ".attn_out"),
        (r"\.attn1\.norm_([qk])(?=\.|$)", r".norm_\1"),
        (r"\.ff\.net\.0\.proj(?=\.|$)", ".ff_proj"),
        (r"\.ff\.net\.2(?=\.|$)", ".ff_out"),
        (r"^(time|ofs)_embedding\.linear_", r"\1_embedding_linear_"),
    )
)
POSITION_TABLE = "patch_embed.pos_embedding"
MARKS = ("patch_embed.text_proj.weight", "patch_embed.proj.weight", "time_embedding_linear_1.weight")
PROJECTIONS = MARKS[:2]  # whose shapes are read
MOST_LAYERS = 1000  # a number above comes from no model, and would be counted up to
ENDS = ("norm_final.weight", "norm_out.linear.weight", "proj_out.weight")  # what a file cut off between layers lacks


def is_cogvideox(path: Path) -> bool:
    """Whether a CogVideoX transformer is in there. Raises ValueError for files that are damaged or missing."""
    return path.exists() and _prefix(read_headers(weight_files(path))[0]) is not None


def identify(path: Path) -> Layout:
    """The layout of the CogVideoX in ``path``, a file or a folder of shards, by headers and config.json alone.

    Raises ValueError for a file that is not a text-to-video CogVideoX, is incomplete or unknown.
    """
    header, metadata = read_headers(weight_files(path))
    prefix = _prefix(header)
    if prefix is None:
        raise ValueError(
            f"{called(path)} is not a CogVideoX transformer. Choose the transformer of CogVideoX-2b or -5b."
        )
    shapes = {host_key(key.removeprefix(prefix)): t["shape"] for key, t in header.items() if key.startswith(prefix)}
    _check_complete(called(path), shapes)
    facts = facts_of_weights(shapes)
    return layout_from(called(path), facts, config_of(path, metadata, facts))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(state dict under the host's keys, metadata). The loader empties the first: a copy would be held twice."""
    state_dict: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(path):
        part, said = comfy.utils.load_torch_file(str(file), return_metadata=True)
        state_dict.update(part)
        metadata.update(said or {})
        del part
    rename(state_dict)
    if quantization := metadata.get("_quantization_metadata"):
        facts = json.loads(quantization)
        facts["layers"] = {host_key(layer): value for layer, value in facts.get("layers", {}).items()}
        metadata["_quantization_metadata"] = json.dumps(facts)
    return state_dict, metadata


def rename(state_dict: dict[str, torch.Tensor]) -> None:
    """Bring the transformer's keys into the host's layout, in place and tensor by tensor.

    What does not belong to it (a VAE in the same file) and a table of positions (made new for every size) are dropped.
    """
    prefix = _prefix(state_dict) or ""
    for key in list(state_dict):
        value = state_dict.pop(key)
        new = host_key(key.removeprefix(prefix))
        if key.startswith(prefix) and new != POSITION_TABLE:
            state_dict[new] = value


def host_key(key: str) -> str:
    """The host's name of a tensor (or a layer) that has the official or already the host's name."""
    for pattern, new in RENAMES:
        key = pattern.sub(new, key)
    return key


def _prefix(keys: Mapping[str, Any]) -> str | None:
    """What stands before every key of a CogVideoX transformer among ``keys``; None if there is none."""
    for key in keys:
        if key.endswith(MARKS[0]):
            prefix = key.removesuffix(MARKS[0])
            names = {host_key(k.removeprefix(prefix)) for k in keys if k.startswith(prefix)}
            return prefix if names.issuperset(MARKS) and any(n.startswith("blocks.") for n in names) else None
    return None


def _check_complete(name: str, shapes: Mapping[str, Any]) -> None:
    """Raises ValueError for weights that lack layers: the host would leave those as chance has them."""
    layers: dict[int, set[str]] = {}
    for key in shapes:
        if found := re.match(r"blocks\.(\d+)\.(.+\.(?:weight|bias))$", key):
            layers.setdefault(int(found[1]), set()).add(found[2])
    missing = [key for key in ENDS if key not in shapes]
    if not layers or max(layers) >= MOST_LAYERS or any(len(shapes[key]) < 2 for key in PROJECTIONS):
        raise ValueError(f"{name} is damaged: it has no layers of a CogVideoX. Download it again.")
    full = set().union(*layers.values())
    missing += [f"blocks.{i}.{key}" for i in range(max(layers) + 1) for key in sorted(full - layers.get(i, set()))]
    if missing:
        raise ValueError(
            f"{name} holds only a part of a CogVideoX ({missing[0]} and {len(missing) - 1} more are missing). "
            "Download it again, with all its shards and the .index.json."
        )
