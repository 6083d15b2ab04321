"""SR Compare: two clips in one picture, and how near they are."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..srd_core.compare import LAYOUTS, compare, picture, plot, summarize
from ..srd_core.likeness import LPIPS_NETS
from .common import as_image, defaults, optional, preview, schema
from .sampler import check_numbers


class SRCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRCompare",
            [
                io.Image.Input("a"),
                io.Image.Input("b"),
                *optional(
                    io.String.Input("label_a", default="sketch only"),
                    io.String.Input("label_b", default="sketch + render"),
                    io.Combo.Input("layout", options=list(LAYOUTS), default=LAYOUTS[0]),
                    io.Float.Input("position", default=0.5, min=0.0, max=1.0, step=0.01),
                    io.Combo.Input("lpips", options=[*LPIPS_NETS, "off"], default=LPIPS_NETS[0], advanced=True),
                ),
            ],
            {"comparison": io.Image, "plot": io.Image, "summary": io.String},
            [
                "compare video",
                "compare two videos",
                "side by side",
                "before after",
                "wipe",
                "A/B",
                "PSNR",
                "SSIM",
                "LPIPS",
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, a: torch.Tensor, b: torch.Tensor, **values: Any) -> io.NodeOutput:
        values = defaults(cls.define_schema().inputs) | values
        check_numbers(position=values["position"])
        labels = " ".join(values["label_a"].split()), " ".join(values["label_b"].split())  # a prompt may have lines
        found = compare(a, b, (labels[0] or "a", labels[1] or "b"), values["lpips"])
        shown = picture(a, b, labels, values["layout"], values["position"])
        curves, summary = as_image(plot(found)), summarize(found)
        return io.NodeOutput(shown, curves, summary, ui=preview(cls, curves, summary))
