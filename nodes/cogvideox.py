"""CogVideoX Sampling Fix: a CogVideoX MODEL of any loader, corrected."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.cogvideox import correct
from .common import CATEGORY, SEARCH_ALIASES


class SRCogVideoXFix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRCogVideoXFix",
            display_name="CogVideoX Sampling Fix",
            category=CATEGORY,
            search_aliases=[*SEARCH_ALIASES, "CogVideoX 5B 2B", "dynamic CFG", "v prediction"],
            description="Makes a CogVideoX MODEL sample as the official pipelines do, whatever loaded it. "
            "Load Sketch DiT and Load Render DiT have done so already: after them it only adds dynamic CFG.",
            inputs=[
                io.Model.Input("model", tooltip="A text-to-video CogVideoX: 2B, 5B or 1.5 5B."),
                io.Boolean.Input(
                    "dynamic_cfg",
                    default=False,
                    optional=True,
                    tooltip="Guidance as in the official 5B pipeline: a wave between 1 and 1 + cfg of the sampler, "
                    "which it uses at cfg 6. Replaces other nodes' guidance (RescaleCFG).",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, dynamic_cfg: bool = False) -> io.NodeOutput:
        return io.NodeOutput(correct(model, dynamic_cfg))
