"""Text encoding for the demo's tiny Wan family: one node, no text encoder weights.

Link or copy this folder into `custom_nodes`; it finds `../family/text.py` from its real path.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

NAME = "srdiffusion_demo_text"  # of the family's text.py in the server; its folder stays off sys.path
_file = Path(__file__).resolve().parent.parent / "family" / "text.py"
_spec = importlib.util.spec_from_file_location(NAME, _file)
family = sys.modules[NAME] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(family)


class SRDemoTextEncode:
    """Prompt -> conditioning for the tiny family."""

    CATEGORY, FUNCTION, RETURN_TYPES = "SRDiffusion/demo", "encode", ("CONDITIONING",)
    OUTPUT_TOOLTIPS = ("Goes to the positive or negative input of a sampler.",)
    DESCRIPTION = (
        "Encodes a prompt for the tiny Wan family that ships with SRDiffusion. "
        f"It knows a few dozen words: {', '.join(family.vocabulary())}."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The prompt."""
        options = {
            "multiline": True,
            "default": "a red circle moves left above a blue square",
            "tooltip": "For example: two yellow stars on a black background. Leave empty for the negative prompt.",
        }
        return {"required": {"text": ("STRING", options)}}

    def encode(self, text: str) -> tuple[list[list[Any]]]:
        """CONDITIONING [1, TEXT_TOKENS, TEXT_DIM]; words that the family does not know are named, not used."""
        _, unknown = family.known_and_unknown(text)
        if unknown:
            ignored, known = ", ".join(map(repr, unknown)), ", ".join(family.vocabulary())
            logging.warning("SRDemoTextEncode ignores %s. Words it knows: %s.", ignored, known)
        return ([[family.encode(text)[None].clone(), {}]],)


NODE_CLASS_MAPPINGS = {"SRDemoTextEncode": SRDemoTextEncode}
NODE_DISPLAY_NAME_MAPPINGS = {"SRDemoTextEncode": "Demo Text Encode (tiny Wan)"}
