"""What several nodes share."""

import sys
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

CATEGORY = "SRDiffusion"
SEARCH_ALIASES = ["SRDiffusion", "refiner", "two-stage", "Wan 14B 1.3B", "accelerate", "speed up"]

SRReport = io.Custom("SR_REPORT")


def out_of_range(node: type[io.ComfyNode], **values: Any) -> str | None:
    """What is wrong with the first of these widget values, by the node's schema; None: nothing, or the input is connected.

    The host leaves that to ``validate_inputs`` for all inputs that are named there.
    """
    for i in node.define_schema().inputs:
        value, options, low = values.get(i.id), getattr(i, "options", None), getattr(i, "min", None)
        if value is None:
            continue
        if options and value not in options:
            return f"{i.id} is {value!r:.80}; choose one of {', '.join(map(str, options))}."
        if low is not None and not (isinstance(value, (int, float)) and low <= value <= i.max):
            return f"{i.id} is {value!r:.80}; it must be a number from {low} to {i.max}."
    return None


def server() -> Any | None:
    """The host's server, when one runs in this process; nodes also run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def show_on_node(node: type[io.ComfyNode], text: str) -> None:
    """Show ``text`` on the running node in the page, as the host shows progress texts."""
    running, hidden = server(), getattr(node, "hidden", None)
    if running is not None and hidden is not None and hidden.unique_id:
        running.send_progress_text(text, hidden.unique_id)


def as_image(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the host's IMAGE [1, height, width, 3], values in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def preview(node: type[io.ComfyNode], image: torch.Tensor, text: str) -> dict[str, Any]:
    """What a node shows of itself in the page: an IMAGE and a text."""
    return ui.PreviewImage(image, cls=node).as_dict() | ui.PreviewText(text).as_dict()
