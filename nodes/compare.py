"""SR Compare: two clips in one picture, and how near they are."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..srd_core.compare import LAYOUTS, compare, picture, plot, summarize
from ..srd_core.likeness import LPIPS_NETS
from .common import CATEGORY, SEARCH_ALIASES, as_image, optional, preview


class SRCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRCompare",
            display_name="SR Compare",
            category=CATEGORY,
            search_aliases=[
                *SEARCH_ALIASES,
                "compare video",
                "side by side",
                "before after",
                "wipe",
                "A/B",
                "PSNR",
                "SSIM",
                "LPIPS",
            ],
            description="Puts two clips into one picture, side by side or as a wipe, and measures how near they are: "
            "PSNR, SSIM and LPIPS, for the clip and frame by frame.",
            is_output_node=True,
            inputs=[
                io.Image.Input("a", tooltip="The clip to compare with, for example sketch only."),
                io.Image.Input("b", tooltip="The clip that is compared: same size and same number of frames as a."),
                *optional(
                    io.String.Input("label_a", default="sketch only", tooltip="Written on a. Empty: nothing."),
                    io.String.Input("label_b", default="sketch + render", tooltip="Written on b. Empty: nothing."),
                    io.Combo.Input(
                        "layout",
                        options=list(LAYOUTS),
                        default=LAYOUTS[0],
                        tooltip="side by side: a left, b right. wipe: a left of the edge, b right of it. moving wipe: "
                        "the edge goes there and back over the clip. difference: what differs, four times as strong.",
                    ),
                    io.Float.Input(
                        "position",
                        default=0.5,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="wipe: where the edge is. 0: all b. 1: all a.",
                    ),
                    io.Combo.Input(
                        "lpips",
                        options=[*LPIPS_NETS, "off"],
                        default=LPIPS_NETS[0],
                        advanced=True,
                        tooltip="Network of LPIPS. It needs the package torchmetrics and the network's weights; "
                        "without them the text says how to get them, and the rest is measured all the same.",
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(display_name="comparison"),
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="summary"),
            ],
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
