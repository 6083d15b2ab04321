"""What several nodes share."""

from comfy_api.latest import io

CATEGORY = "SRDiffusion"
SEARCH_ALIASES = ["SRDiffusion", "refiner", "two-stage", "Wan 14B 1.3B", "accelerate", "speed up"]

SRReport = io.Custom("SR_REPORT")


def not_yet(what: str, value: object, off: object) -> ValueError:
    """The error for a setting that this version knows but can't follow."""
    return ValueError(f"{what} = {value} is not yet supported by this version of ComfyUI-SRDiffusion. Set it to {off}.")
