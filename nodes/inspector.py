"""Switch Inspector: where the run switched and why, as a picture and a text."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..srd_core.report.data import Report
from ..srd_core.report.plot import draw
from ..srd_core.report.text import summarize
from . import live
from .common import HIDDEN, SRReport, as_image, optional, picture, place_of, schema, unsavable

PREFIX = "srdiffusion/report"  # what messages give as an example
NO_REPORT = (
    "No report: connect `report`, or an old report's text to `report_json`. A sampler that is bypassed or muted gives "
    "none."
)
NOTHING = (
    "The report was not saved: there is no run yet. With Sketch-Render Model, connect the sampler's latent to `after`."
)
NOT_SAVED = (
    "The report could not be saved as {place} ({fault}). Make room in ComfyUI's output folder or allow writing there, "
    "and queue again."
)


class SRSwitchInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SRSwitchInspector",
            [
                *optional(
                    SRReport.Input("report"),
                    io.AnyType.Input("after"),
                    io.String.Input("report_json", force_input=True),
                    io.String.Input("save_report", default="", advanced=True),
                )
            ],
            {"plot": io.Image, "summary": io.String, "report_json": io.String},
            ["plot", "report", "when does it switch", "chart"],
            is_output_node=True,
            hidden=[*HIDDEN],
        )

    @classmethod
    def validate_inputs(cls, save_report: str | None = None) -> bool | str:
        prefix = (save_report or "").strip()
        return (unsavable("save_report", prefix, PREFIX) if prefix else None) or True

    @classmethod
    def execute(
        cls, report: Report | None = None, after: Any = None, report_json: str | None = None, save_report: str = ""
    ) -> io.NodeOutput:
        if report_json and report_json.strip():
            try:
                report = Report.from_json(report_json)
            except ValueError as error:
                live.show(cls, str(error))
                raise
        elif report is not None:
            report = report.of_nodes(live.waits_for(cls))
            live.keep(cls, report)
        summary = summarize(report) if report else NO_REPORT
        live.show(cls, report or summary)
        report = report or Report()
        plot = as_image(draw(report))
        # "report" is for programs: the run as JSON, in the server's history and in its message about this node.
        # The picture is not among "images", which the page would show below its own chart of the same.
        text = report.to_json()
        shown = {"plot": picture(cls, plot).get("images", []), "report": (text,)} | ui.PreviewText(summary).as_dict()
        if prefix := save_report.strip():
            said = _saved(text, prefix, shown) if report.status != "not run" else NOTHING
            if said:
                logging.warning("SRDiffusion: %s", said)
                shown |= ui.PreviewText(f"{summary}\n\n{said}").as_dict()
        return io.NodeOutput(plot, summary, text, ui=shown)


def _saved(text: str, prefix: str, shown: dict[str, Any]) -> str:
    """Save a report's JSON and note the file in ``shown``; why not, or "": a fault costs the file, not the run."""
    try:
        path, saved = place_of(prefix, ".json")
        path.write_text(text, encoding="utf-8")
    except Exception as fault:  # noqa: BLE001  (the host raises nothing narrower for a folder outside its own)
        outside = None if isinstance(fault, OSError) else unsavable("save_report", prefix, PREFIX)
        return outside or NOT_SAVED.format(place=f"{prefix[:200]!r}", fault=f"{type(fault).__name__}: {fault}")
    shown["saved"] = [saved]
    return ""
