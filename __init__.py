"""ComfyUI-SRDiffusion: a large video DiT sketches, a small one renders."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
