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


def not_yet(what: str, value: object, off: object) -> ValueError:
    """The error for a setting that this version knows but can't follow."""
    return ValueError(f"{what} = {value} is not yet supported by this version of ComfyUI-SRDiffusion. Set it to {off}.")


def show_on_node(node: type[io.ComfyNode], text: str) -> None:
    """Show ``text`` on the running node in the page, as the host shows progress texts."""
    module = sys.modules.get("server")  # there when a server runs; nodes also run without one
    server, hidden = getattr(getattr(module, "PromptServer", None), "instance", None), getattr(node, "hidden", None)
    if server is not None and hidden is not None and hidden.unique_id:
        server.send_progress_text(text, hidden.unique_id)


def as_image(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the host's IMAGE [1, height, width, 3], values in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def preview(node: type[io.ComfyNode], image: torch.Tensor, text: str) -> dict[str, Any]:
    """What a node shows of itself in the page: an IMAGE and a text."""
    return ui.PreviewImage(image, cls=node).as_dict() | ui.PreviewText(text).as_dict()
