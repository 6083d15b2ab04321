"""Text encoding for the demo's tiny Wan family: one node, no text encoder weights.

Link or copy this folder into `custom_nodes`; it finds `../family/text.py` from its own real path.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from types import ModuleType

from comfy_api.latest import ComfyExtension, io

_TEXT = os.path.join(os.path.dirname(os.path.realpath(__file__)), os.pardir, "family", "text.py")


def _load(path: str, name: str) -> ModuleType:
    """Import one file under its own name, so that nothing has to be on sys.path."""
    spec = importlib.util.spec_from_file_location(name, os.path.normpath(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


text = _load(_TEXT, "srdiffusion_demo_text")


class SRDemoTextEncode(io.ComfyNode):
    """Prompt -> conditioning for the tiny family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRDemoTextEncode",
            display_name="Demo Text Encode (tiny Wan)",
            category="SRDiffusion/demo",
            description="Encodes a prompt for the tiny Wan family that ships with SRDiffusion. "
            "It knows a few dozen words: " + ", ".join(text.vocabulary()) + ".",
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a red circle moves left above a blue square",
                    tooltip="For example: two yellow stars on a black background. Leave empty for the negative prompt.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="Goes to the positive or negative input of a sampler.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(encode(text))


def encode(prompt: str) -> list:
    """CONDITIONING [1, TEXT_TOKENS, TEXT_DIM] of a prompt; words that the family does not know are named, not used."""
    _, unknown = text.known_and_unknown(prompt)
    if unknown:
        logging.warning(
            "SRDemoTextEncode ignores %s. Words it knows: %s.",
            ", ".join(map(repr, unknown)),
            ", ".join(text.vocabulary()),
        )
    return [[text.encode(prompt)[None].clone(), {}]]


class DemoText(ComfyExtension):
    """The pack: one node."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SRDemoTextEncode]


async def comfy_entrypoint() -> DemoText:
    """Called by ComfyUI."""
    return DemoText()
