"""What several nodes share."""

import sys

from comfy_api.latest import io

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
