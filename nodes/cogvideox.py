"""CogVideoX Sampling Fix: a CogVideoX MODEL of any loader, corrected."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.cogvideox import correct
from .common import optional, schema


class SRCogVideoXFix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRCogVideoXFix",
            [io.Model.Input("model"), *optional(io.Boolean.Input("dynamic_cfg", default=False))],
            {"MODEL": io.Model},
            ["CogVideoX 5B 2B", "dynamic CFG", "v prediction"],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, dynamic_cfg: bool = False) -> io.NodeOutput:
        return io.NodeOutput(correct(model, dynamic_cfg))
