"""Would the models in two files go together? Told from the files' headers, before a weight is read.

The host's own detection makes the MODEL that its loader would make, on torch's meta device: the same classes and
shapes, without data. The checks of a run (checks.py) then say what they would say. 0.06 s for a 14B; what was said of
known files is remembered, the models are not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher

from .checkpoint import SAFETENSORS, called, model_config, on_meta, read_headers, weight_files
from .checks import check_together
from .cogvideox import is_cogvideox
from .latent import FILE_NAME, FLOW, kind_of, parameters_of
from .pair import LARGER
from .stage import RenderSettings


@dataclass(frozen=True)
class ModelFile:
    """A model in a models folder, as it is now: a changed file is another one."""

    path: Path
    size: int  # bytes
    changed: int  # ns

    @classmethod
    def at(cls, path: Path) -> ModelFile:
        """Raises OSError."""
        is_now = path.stat()
        return cls(path, is_now.st_size, is_now.st_mtime_ns)


@dataclass(frozen=True)
class Verdict:
    """What can be said of a pair; all empty: nothing is known to be wrong."""

    problem: str = ""  # why a run would refuse it
    note: str = ""  # what a run would note


@lru_cache(maxsize=64)
def verdict(sketch: ModelFile, render: ModelFile, own_prompts: bool) -> Verdict:
    """Of the models of two files as sketch and render. ``own_prompts``: the render has its own conditioning."""
    ours, theirs = empty_model(sketch), empty_model(render)
    if ours is None or theirs is None:
        return Verdict()
    try:
        check_together(ours, theirs, RenderSettings(positive=[] if own_prompts else None))
    except ValueError as error:
        return Verdict(problem=str(error))
    return Verdict(note=LARGER if parameters_of(ours) < parameters_of(theirs) else "")


@lru_cache(maxsize=64)
def is_flow(file: ModelFile) -> bool:
    """Whether the model in ``file`` is known to be a flow model."""
    model = empty_model(file)
    return model is not None and kind_of(model.get_model_object("model_sampling")) == FLOW


def empty_model(file: ModelFile) -> ModelPatcher | None:
    """The MODEL that the host's loader would make of ``file``, without weights; None where the header can't tell.

    So it is for other formats, CogVideoX (whose loading changes it), and what would be refused anyway.
    """
    try:
        (path,) = weight_files(file.path)
        if path.suffix.lower() not in SAFETENSORS or is_cogvideox(file.path):
            return None
        header, metadata = read_headers([path])
        weights = on_meta(header)
        config = model_config(weights, metadata)
        if config is None:
            return None
        network = config.get_model(weights, "", device=torch.device("meta"))
    except Exception as error:  # noqa: BLE001  (detection raises anything; the loader says what is wrong with a file)
        why = f"{type(error).__name__}: {error}"
        logging.info("SRDiffusion: %s can't be judged by its header (%s).", file.path.name, why)
        return None
    model = ModelPatcher(network, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    model.set_attachments(FILE_NAME, called(file.path))
    return model
