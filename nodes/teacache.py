"""Render TeaCache: TeaCache for any supported DiT, under any sampler node."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.checks import check_plain
from ..srd_core.teacache.host import TeaCache, with_teacache
from ..srd_core.teacache.plan import FORMS
from .common import CATEGORY, SEARCH_ALIASES

KEEP_ON = ["gpu", "cpu"]


class SRTeaCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRTeaCache",
            display_name="Render TeaCache",
            category=CATEGORY,
            search_aliases=[*SEARCH_ALIASES, "TeaCache", "step cache", "skip steps", "faster video"],
            description="Skips the transformer blocks of steps that change little and reuses the last computed step. "
            "For Wan and CogVideoX, with any sampler node, alone or as the render (or sketch) of a Sketch-Render run.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan or CogVideoX, before it goes into Sketch-Render Model. One that TeaCache does not "
                    "know runs unchanged and says so.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.08,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Larger reuses more steps: faster, less exact. 0: off. Advised by TeaCache's "
                    "authors: Wan 1.3B 0.05 to 0.08, 14B 0.14 to 0.2, i2v 480p 0.13 to 0.26, i2v 720p 0.18 to "
                    "0.3; CogVideoX 0.1 to 0.3. The paper: 0.14 on the render of Wan, 0.1 on CogVideoX's.",
                ),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default="e",
                    optional=True,
                    advanced=True,
                    tooltip="What the change is measured on. e: the time embedding. e0: its projection, with the "
                    'first five steps of a run computed ("ret steps"); its thresholds are Wan 1.3B 0.05 to '
                    "0.1, 14B 0.1 to 0.2, i2v 0.2 to 0.3.",
                ),
                io.Combo.Input(
                    "keep_on",
                    options=KEEP_ON,
                    default="gpu",
                    optional=True,
                    advanced=True,
                    tooltip="Where the last computed step is kept. cpu saves one residual for each prompt on "
                    "the GPU (Wan 1.3B, 832x480x81: 0.1 GB each) and costs a copy at each reuse.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, threshold: float, form: str = "e", keep_on: str = "gpu") -> io.NodeOutput:
        check_plain("model of Render TeaCache", model)
        return io.NodeOutput(with_teacache(model, TeaCache(threshold, form, keep_on == "cpu")))
