"""ComfyUI-SRDiffusion: a large video DiT sketches, a small one renders."""

import logging

from .srd_core.host_check import complaint

if lacking := complaint():
    logging.error(lacking)  # without an entry point the host lists the pack as not imported, and goes on
else:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
