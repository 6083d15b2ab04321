"""SR Compare: two clips in one picture, and how near they are."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..srd_core.compare import LAYOUTS, compare, picture, plot, summarize
from ..srd_core.likeness import LPIPS_NETS
from .common import as_image, optional, preview, schema


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
            ["compare video", "side by side", "before after", "wipe", "A/B", "PSNR", "SSIM", "LPIPS"],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        a: torch.Tensor,
        b: torch.Tensor,
        label_a: str = "sketch only",
        label_b: str = "sketch + render",
        layout: str = LAYOUTS[0],
        position: float = 0.5,
        lpips: str = LPIPS_NETS[0],
    ) -> io.NodeOutput:
        names = (label_a.strip() or "a", label_b.strip() or "b")
        found = compare(a, b, names, lpips)
        shown = picture(a, b, (label_a, label_b), layout, position)
        curves, summary = as_image(plot(found)), summarize(found)
        return io.NodeOutput(shown, curves, summary, ui=preview(cls, curves, summary))
