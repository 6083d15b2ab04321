"""What several nodes share."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

SRReport = io.Custom("SR_REPORT")
HIDDEN = (io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo)
TEXTS = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"

said: set[tuple[str, str]] = set()  # (what does not work, kind of fault) that the log has already


@lru_cache(maxsize=1)
def _texts() -> dict[str, Any]:
    return dict(json.loads(TEXTS.read_text("utf-8")))


def schema(node_id: str, inputs: list[io.Input], outputs: dict[str, Any], aliases: list[str], **more: Any) -> io.Schema:
    """A node's schema; its name, its description and its tooltips come from TEXTS.

    ``outputs``: type by name; ``aliases``: what people search for beside the pack's name; ``more``: as in io.Schema.
    """
    texts = _texts()[node_id]
    for i in inputs:
        i.tooltip = texts["inputs"][i.id]["tooltip"]
    tooltips = [texts["outputs"][str(place)].get("tooltip") for place in range(len(outputs))]
    return io.Schema(
        node_id,
        texts["display_name"],
        category="SRDiffusion",
        inputs=inputs,
        outputs=[kind.Output(display_name=n, tooltip=t) for (n, kind), t in zip(outputs.items(), tooltips)],
        description=texts["description"],
        search_aliases=["SRDiffusion", *aliases],
        **more,
    )


def optional(*inputs: io.Input) -> list[io.Input]:
    """Inputs that a graph may leave out, as one does that was saved before they existed.

    Each has a default and comes after the required ones, which the page puts first: a file's values go by that order.
    """
    for i in inputs:
        i.optional = True
    return list(inputs)


def defaults(inputs: list[io.Input]) -> dict[str, Any]:
    """What the widgets among these inputs are where a graph does not name them."""
    return {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}


def server() -> Any | None:
    """The host's server, when one runs in this process; nodes also run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


@contextmanager
def page_only(what: str) -> Iterator[None]:
    """For a block or a function that returns None: a fault costs the page or a file's metadata, never the run.

    The log says once what does not work, ``what``, and why.
    """
    try:
        yield
    except Exception as fault:  # noqa: BLE001  (what another host or client does differently can raise anything)
        kind = type(fault).__name__
        if (what, kind) not in said:
            said.add((what, kind))
            logging.warning("SRDiffusion: %s (%s: %s).", what, kind, fault)


@page_only("the page is not shown a node's text")
def show_on_node(node: type[io.ComfyNode], text: str) -> None:
    """Show ``text`` on the running node in the page, as the host shows progress texts."""
    running, hidden = server(), getattr(node, "hidden", None)
    if running is not None and hidden is not None and hidden.unique_id:
        running.send_progress_text(text, hidden.unique_id)


def place_of(prefix: str, ending: str = "") -> tuple[Path, dict[str, str]]:
    """A new file in the host's output folder, and what a node says of it in the page. The host raises any exception."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    path = Path(folder, f"{name}_{counter:05}_{ending}")
    return path, {"filename": path.name, "subfolder": subfolder, "type": "output"}


def unsavable(name: str, prefix: str, such_as: str) -> str | None:
    """Why nothing can be saved under this ``prefix``, the value of the widget ``name``; None: it can."""
    try:
        place_of(prefix)
    except Exception:  # noqa: BLE001  (the host raises nothing narrower for a folder outside its own)
        return (
            f"{name} is {prefix[:200]!r}; nothing can be saved there. Name a folder and a file inside ComfyUI's output "
            f"folder, such as {such_as}."
        )
    return None


def as_image(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as the host's IMAGE [1, height, width, 3], values in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def picture(node: type[io.ComfyNode], image: torch.Tensor) -> dict[str, Any]:
    """An IMAGE as a node shows it, with the client's workflow in its file; empty where that can't be written."""
    metadata = getattr(getattr(node, "hidden", None), "extra_pnginfo", None)
    with page_only("a node's picture is not shown"):
        return dict(ui.PreviewImage(image, cls=node if isinstance(metadata or {}, dict) else None).as_dict())
    return {}


def preview(node: type[io.ComfyNode], image: torch.Tensor, text: str) -> dict[str, Any]:
    """What a node shows of itself in the page: an IMAGE and a text."""
    return picture(node, image) | ui.PreviewText(text).as_dict()
