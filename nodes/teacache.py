"""Render TeaCache: TeaCache for any supported DiT, under any sampler node."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..srd_core.checks import check_plain
from ..srd_core.teacache.host import TeaCache, with_teacache
from ..srd_core.teacache.plan import FORMS
from .common import optional, schema

KEEP_ON = ["gpu", "cpu"]


class SRTeaCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRTeaCache",
            [
                io.Model.Input("model"),
                io.Float.Input("threshold", default=0.08, min=0.0, max=1.0, step=0.01, round=0.001),
                *optional(
                    io.Combo.Input("form", options=list(FORMS), default="e", advanced=True),
                    io.Combo.Input("keep_on", options=KEEP_ON, default="gpu", advanced=True),
                ),
            ],
            {"model": io.Model},
            ["TeaCache", "step cache", "skip steps", "faster video"],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, threshold: float, form: str = "e", keep_on: str = "gpu") -> io.NodeOutput:
        check_plain("model of Render TeaCache", model)
        return io.NodeOutput(with_teacache(model, TeaCache(threshold, form, keep_on == "cpu")))
