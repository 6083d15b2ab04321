"""Switch Inspector: where the run handed over and why, as a picture and in words."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..srd_core.report.data import Report
from ..srd_core.report.plot import draw
from ..srd_core.report.text import summarize
from . import live
from .common import CATEGORY, SEARCH_ALIASES, SRReport, as_image, picture


class SRSwitchInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SRSwitchInspector",
            display_name="Switch Inspector",
            category=CATEGORY,
            search_aliases=[*SEARCH_ALIASES, "plot", "report", "when does it switch", "chart"],
            description="Shows when and why the run switched from sketch to render, and what each step cost: as a live chart on this node, "
            "and as a picture and a text for other nodes. It also opens an old report.",
            is_output_node=True,
            inputs=[
                SRReport.Input("report", optional=True, tooltip="The report of SR Sampler or Sketch-Render Model."),
                io.AnyType.Input(
                    "after",
                    optional=True,
                    tooltip="With Sketch-Render Model: connect the sampler's latent here, so that this node waits for it and shows "
                    "its run.",
                ),
                io.String.Input(
                    "report_json",
                    optional=True,
                    force_input=True,
                    tooltip="An old report as text (what \"copy report\" copies), shown instead of a connected report. "
                    "Connect a text node.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot"),
                io.String.Output(display_name="summary"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, report: Report | None = None, after: Any = None, report_json: str | None = None) -> io.NodeOutput:
        if report_json and report_json.strip():
            report = cls._read(report_json)
        elif report is not None:
            report = report.of_nodes(live.waits_for(cls))
            live.keep(cls, report)
        else:
            raise ValueError("Switch Inspector has nothing to show: connect `report`, or an old report's text to `report_json`.")
        plot, summary = as_image(draw(report)), summarize(report)
        live.show(cls, report)
        # "report" is for programs: the run as JSON, in the server's history and in its message about this node. The picture
        # is not among "images", which the page would show below its own chart of the same.
        shown = {"plot": picture(cls, plot)["images"], "report": (report.to_json(),)} | ui.PreviewText(summary).as_dict()
        return io.NodeOutput(plot, summary, ui=shown)

    @classmethod
    def _read(cls, text: str) -> Report:
        try:
            return Report.from_json(text)
        except ValueError as error:
            live.show(cls, str(error))
            raise
