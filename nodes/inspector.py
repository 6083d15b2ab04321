"""Switch Inspector: where the run handed over and why, as a picture and in words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..srd_core.plot import draw
from ..srd_core.report import Report, summarize
from .common import CATEGORY, SEARCH_ALIASES, SRReport, as_image, preview


class SRSwitchInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRSwitchInspector",
            display_name="Switch Inspector",
            category=CATEGORY,
            search_aliases=[*SEARCH_ALIASES, "plot", "report"],
            description="Shows when and why the run handed over from sketch to render, and what each step cost.",
            is_output_node=True,
            inputs=[
                SRReport.Input("report", tooltip="The report of SR Sampler or Sketch-Render Model."),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="With Sketch-Render Model: connect the sampler's latent here, so that this node waits for it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="summary"),
            ],
        )

    @classmethod
    def execute(cls, report: Report, after: Any = None) -> io.NodeOutput:
        plot = as_image(draw(report))
        summary = summarize(report)
        # "report" is for programs: the run as JSON, in the server's history and in its message about this node.
        shown = preview(cls, plot, summary) | {"report": (report.to_json(),)}
        return io.NodeOutput(plot, summary, ui=shown)
