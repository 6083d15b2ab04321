"""From results of the speed bench to tables: speed.md, the figures and the README's marked section. Every measured number
comes from a line of a results file; every predicted one is arithmetic of bench/cost.py and says so.

    python3 bench/speed_table.py
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import cost

if __name__ == "__main__":
    common.run_in_host()
    import quality_host

    quality_host.start(cpu=True, threads=1)

import speed_paper  # noqa: E402
import speed_rows  # noqa: E402
from speed_models import SHAPES  # noqa: E402
from speed_paper import markdown_row as line_of  # noqa: E402
from speed_rows import RENDER, RENDER_ONLY, SKETCH, SKETCH_ONLY, STEPS, Row  # noqa: E402
from speed_store import HAND_OVER, Line, parts, read  # noqa: E402

README_MARKS = ("<!-- speed: made by python3 bench/speed_table.py -->", "<!-- /speed -->")
IDEAL = 0.99  # share that the pack's own cost must leave
MODEL_ERROR = 0.03
# (case starts with, row, speed-up over sketch only): what the paper measured.
TARGETS = (
    ("wan 832x480x81", "SR, 10 steps", 2.84),
    ("wan 1280x720x81", "SR, 10 steps", 2.84),
    ("wan 832x480x81", "SR, 10 steps, TeaCache 0.14", 3.91),
    ("wan 832x480x81", "SR, 10 steps, TeaCache 0.14, sage attention", 6.22),
    ("wan 832x480x81", "SR, 10 steps, TeaCache 0.14, compiled", 6.22),
    ("wan 832x480x81", "SR, 10 steps, TeaCache 0.14, fp8", 6.22),
    ("cogvideox 720x480x49", "SR, 15 steps", 1.82),
    ("cogvideox 720x480x49", "SR, 15 steps, TeaCache 0.1", 1.99),
)


@dataclass
class Found:
    """What is known of one row of a case."""

    row: Row
    seconds: list[float] = field(default_factory=list)  # whole runs
    speed_ups: list[float] = field(default_factory=list)  # each against sketch only
    ideals: list[float] = field(default_factory=list)  # k t_s + (N - k) t_r over the run's seconds, loading apart
    models: list[float] = field(default_factory=list)  # the cost model's seconds over the run's
    composed: float | None = None  # the cost model's seconds, where no whole run is
    flops: float | None = None
    peak: float | None = None  # operations a second of the card, measured
    lines: list[Line] = field(default_factory=list)
    reason: str = ""  # why there is nothing

    def median(self) -> float | None:
        """Seconds of a whole run, or the cost model's."""
        return statistics.median(self.seconds) if self.seconds else self.composed

    def last(self, key: str) -> Any:
        """A value of the newest whole run."""
        return self.lines[-1].get(key) if self.lines else None


class Case:
    """The lines of one family, size, kind of shapes and number of steps, in one setting (see speed_store.parts). Raises
    ValueError for a case that is none."""

    def __init__(self, data: dict[str, Any], case: str) -> None:
        self.name, self.sessions = case, data["sessions"]
        self.lines = [line for line in data["lines"] if line["case"] == case]
        match = re.fullmatch(r"(\w+) (\w+), (\w+) shapes, (\d+) steps", case)
        if not match or match[1] not in SHAPES.get(match[3], {}):
            raise ValueError(f"{case!r} is not a case of the speed bench.")
        self.family, self.shapes, self.steps = match[1], match[3], int(match[4])
        self.size = cost.Size.parse(match[2])
        self.sketch, self.render, _ = SHAPES[self.shapes][self.family]
        self.rows = {row.name: self._found(row) for row in speed_rows.rows(self.family)}
        self._mix_of_seven_and_eight()

    def step(self, row: Row, near: Line | None = None) -> Any:
        """cost.StepSeconds of the row's way of computing, medians of what was measured nearest to a run (None: of all); None
        where it was not measured."""
        sketch = self._step_seconds(row.variant, SKETCH, False, near)
        render = self._step_seconds(row.variant, RENDER, row.cfg_1, near)
        if sketch is None or render is None:
            return None
        shares = [0.0 if row.skips_all else cost.reused_flops(n, self.size).total / cost.forward_flops(n, self.size).total
                  for n in (self.sketch, self.render)]  # fmt: skip
        return cost.StepSeconds(sketch, render, sketch * shares[0], render * shares[1])

    def _step_seconds(self, variant: Any, stage: str, cfg_1: bool, near: Line | None) -> float | None:
        if near and variant == speed_rows.PLAIN and not cfg_1 and (share := self._share_of_run(stage, near)):
            return share
        wanted = {"kind": "steps", "variant": speed_rows.as_dict(variant), "stage": stage, "cfg_1": cfg_1}
        lines = self._nearest([line for line in self.lines if wanted.items() <= line.items()], near)
        return statistics.median(seconds for line in lines for seconds in line["seconds"]) if lines else None

    def _share_of_run(self, stage: str, near: Line) -> float | None:
        """A step's seconds from whole runs of the one model, which are as warm as other runs; None where there is none, and
        for these runs themselves."""
        name = SKETCH_ONLY if stage == SKETCH else RENDER_ONLY
        whole = [line for line in self.lines if line["kind"] == "whole" and line["row"] == name and near["row"] != name]
        found = [line for line in self._nearest(whole, near) if line["round"] == near["round"]]
        return statistics.median(line["seconds"] for line in found) / self.steps if found else None

    @staticmethod
    def _nearest(lines: list[Line], near: Line | None) -> list[Line]:
        """Those of the run's session and round, for a machine's speed drifts; else of its session, else all: a start does not
        measure again what an earlier one has."""
        if near is None:
            return lines
        of_session = [line for line in lines if line["session"] == near["session"]]
        return [line for line in of_session if line["round"] == near["round"]] or of_session or lines

    def baseline(self, near: Line | None = None) -> float | None:
        """Seconds of sketch only: of its whole runs nearest to a run (None: of all), else of its steps."""
        sketch_only = speed_rows.rows(self.family)[0]
        wanted = {"kind": "whole", "row": SKETCH_ONLY}
        whole = self._nearest([line for line in self.lines if wanted.items() <= line.items()], near)
        step = self.step(sketch_only, near)
        return statistics.median(line["seconds"] for line in whole) if whole else step and self.steps * step.sketch

    def _found(self, row: Row) -> Found:
        found = Found(row)
        found.lines = [line for line in self.lines if line["kind"] == "whole" and line["row"] == row.name]
        for line in found.lines:
            self._add(found, line)
        if not found.lines and (step := self.step(row)):
            found.composed = cost.run_seconds(self._wished(row), step)
        reasons = [line["reason"] for line in self.lines if line["kind"] == "unavailable" and line["row"] == row.name]
        found.reason = reasons[-1] if reasons and not found.lines else ""
        if found.reason:
            found.composed = None
        return found

    def _wished(self, row: Row) -> Any:
        """The plan that the row means, before it has run."""
        share = self.steps / STEPS
        return speed_rows.plan_of(row, self.steps, {SKETCH: row.reuse[0] * share, RENDER: row.reuse[1] * share})

    def _add(self, found: Found, line: Line) -> None:
        row, seconds = found.row, line["seconds"]
        plan = speed_rows.plan_of(row, self.steps, line["reused"])
        found.seconds.append(seconds)
        found.peak = self.sessions[line["session"]].get("peak_flops")
        found.flops = cost.run_flops(plan, self.sketch, self.render, self.size, speed_rows.forwards_of(row), row.skips_all).total
        if baseline := self.baseline(line):
            found.speed_ups.append(baseline / seconds)
        if step := self.step(row, line):
            loading = (line["hand_over"] or {}).get("seconds", 0.0)
            computed = (plan.sketch - plan.sketch_reused) * step.sketch + (plan.render - plan.render_reused) * step.render
            found.ideals.append(computed / (seconds - loading))
            found.models.append((cost.run_seconds(plan, step) + loading) / seconds)

    def _mix_of_seven_and_eight(self) -> None:
        """The paper's mean of 7.6 steps at delta 0.03: 0.4 of the runs with 7, 0.6 of those with 8."""
        parts = [self.rows.get(f"SR, {k} steps") for k in (7, 8)]
        if self.steps != STEPS or not all(part and part.seconds and part.speed_ups for part in parts):
            return
        row, (seven, eight) = Row("SR, 7.6 steps (0.4 of the 7, 0.6 of the 8)", "cooperation", 7.6), parts
        mixed = 0.4 * seven.median() + 0.6 * eight.median()  # type: ignore[union-attr, operator]
        baseline = self.baseline()
        self.rows[row.name] = Found(row, [mixed], [baseline / mixed] if baseline else [])


# --- the tables ---------------------------------------------------------------------------------------------------------


def case_table(data: dict[str, Any], case: str) -> list[str]:
    """Markdown of one case: every row, the measured ones with their spread, the others with why not."""
    found = Case(data, case)
    if not any(line["kind"] in ("steps", "whole") for line in found.lines):
        return [*scaling_table(found), *profile_table(found), "", *session_lines(found), *reason_lines(found)]
    heads = ["row", "seconds (min-max)", "runs", "speed-up", "of the ideal", "cost model", "PFLOP", "of the peak",
             "peak memory, GB", "hand-over", "energy, kJ", "reused"]  # fmt: skip
    out = [line_of(heads), line_of(["---", *["---:"] * (len(heads) - 1)])]
    out += [line_of(_cells(row)) for row in found.rows.values()]
    out += ["", *step_lines(found), *reason_lines(found), *must_hold(found)]
    return [*out, *scaling_table(found), *profile_table(found)]


def _cells(found: Found) -> list[str]:
    name = found.row.name
    if found.reason:
        return [name, f"unavailable: {found.reason}", *["-"] * 10]
    if not found.seconds:
        text = f"{found.composed:.4g}, from steps alone" if found.composed else "not measured"
        return [name, text, *["-"] * 10]
    spread = f" ({min(found.seconds):.4g}-{max(found.seconds):.4g})" if len(found.seconds) > 1 else ""
    median, memory, energy = found.median() or 0.0, found.last("memory"), found.last("energy")
    share = found.flops / median / found.peak if found.flops and found.peak else None
    reused = found.last("reused") or {}
    return [
        name, f"{median:.4g}{spread}", str(len(found.lines)), _middle(found.speed_ups, "{:.2f}"), _middle(found.ideals, "{:.3f}"),
        _middle([m - 1 for m in found.models], "{:+.1%}"), f"{found.flops / 1e15:.3g}" if found.flops else "-",
        f"{share:.0%}" if share else "-", f"{memory / 1e9:.1f}" if memory else "-", _hand_over(found.last("hand_over")),
        f"{energy / 1e3:.1f}" if energy else "-", f"{sum(reused.values()):g}" if any(reused.values()) else "-",
    ]  # fmt: skip


def _middle(values: Sequence[float], form: str) -> str:
    return form.format(statistics.median(values)) if values else "-"


def _hand_over(found: dict[str, float] | None) -> str:
    return f"{found['seconds']:.2g} s, {found['in'] / 1e9:.2g} GB in, {found['out'] / 1e9:.2g} GB out" if found else "-"


def step_lines(case: Case) -> list[str]:
    """What the shares rest on: seconds of a step, the peak, a hand-over from main memory."""
    plain = speed_rows.rows(case.family)[0]
    out = dtype_lines(case)
    if step := case.step(plain):
        out.append(f"- a step (median): sketch {step.sketch:.4g} s, render {step.render:.4g} s, ratio "
                   f"{step.sketch / step.render:.2f}; by operations "
                   f"{cost.forward_flops(case.sketch, case.size).total / cost.forward_flops(case.render, case.size).total:.2f}.")  # fmt: skip
    cold = [line for line in case.lines if line["kind"] == "hand_over"]
    return [*out, *session_lines(case), *(f"- {HAND_OVER}: {_hand_over(line)}." for line in cold[-1:])]


def dtype_lines(case: Case) -> list[str]:
    """In what the networks' products were computed, for each kind of weights."""
    found = {row.row.variant.weights: " and ".join(dtype) for row in case.rows.values() if (dtype := row.last("dtype"))}
    words = [dtype if weights == "default" else f"{weights}: {dtype}" for weights, dtype in found.items()]
    return [f"- computed in {', '.join(words)}."] if words else []


def session_lines(case: Case) -> list[str]:
    """With what the newest session was made."""
    out = []
    for session in [case.sessions[i] for i in sorted({line["session"] for line in case.lines})][-1:]:
        out.append(f"- {session['date']}, {session['card']}, {session['host']}, {session['versions']}, {session['threads']} "
                   f"threads, {session.get('clock', 'wall time')}; matrix peak {session.get('peak_flops', 0) / 1e12:.3g} TFLOPS, copy "
                   f"{session.get('bandwidth', 0) / 1e9:.3g} GB/s, load at the start {session['load'] or 0:.1f}: "
                   f"`{session['command']}`")  # fmt: skip
        if session["device"] != "cpu":
            out.append("- ComfyUI's memory management without its dynamic part, as with --disable-dynamic-vram.")
            if not session.get("fp8_products", True):
                out.append("- This card has no fp8 products: rows with fp8 have their weights in it and compute in another.")
        elif (session["load"] or 0) > 1:
            out.append("- Other programs were busy meanwhile: these seconds show that the bench works, no more.")
    return out


def reason_lines(case: Case) -> list[str]:
    """Why a missing row could not be measured."""
    measured = {f"a {line['stage']} step at {line['size']}" for line in case.lines if line["kind"] == "scaling"}
    measured |= {HAND_OVER for line in case.lines if line["kind"] == "hand_over"}
    reasons = {line["row"]: line["reason"] for line in case.lines if line["kind"] == "unavailable"}
    return [f"- {what}: unavailable: {why}" for what, why in reasons.items() if what not in measured | case.rows.keys()]


def must_hold(case: Case) -> list[str]:
    """Each target with whether it holds; only for real shapes on a GPU."""
    real = case.shapes == "real" and any(case.sessions[line["session"]]["device"] == "cuda" for line in case.lines)
    if not real:
        return ["", "No target is judged here: they are for real shapes on a GPU."]
    out = ["", line_of(["what must hold", "target", "measured", ""]), line_of(["---", "---:", "---:", "---"])]
    for start, name, target in TARGETS:
        found = case.rows.get(name)
        if case.name.startswith(start + ","):
            value = statistics.median(found.speed_ups) if found and found.speed_ups else None
            out.append(_judged(f"{name}, speed-up", target, value, lambda v, t=target: v >= t))  # type: ignore[misc]
    base = case.rows[speed_rows.rows(case.family)[1].name]
    out.append(_judged("share of the ideal", IDEAL, statistics.median(base.ideals) if base.ideals else None, lambda v: v >= IDEAL))
    errors = [abs(m - 1) for found in case.rows.values() for m in found.models]
    out.append(_judged("cost model, largest error", MODEL_ERROR, max(errors, default=None), lambda v: v <= MODEL_ERROR))
    waits = [sum(line["own_waits"].values()) for line in profiles(case).values()]
    out.append(_judged("the pack's waits in a render step", 0, max(waits, default=None), lambda v: v == 0))
    return out


def _judged(what: str, target: float, value: float | None, holds: Callable[[float], bool]) -> str:
    says = "not measured" if value is None else "holds" if holds(value) else "does not hold"
    return line_of([what, f"{target:g}", "-" if value is None else f"{value:.3f}", says])


def scaling_table(case: Case) -> list[str]:
    """Steps at several sizes: the cost model's rates from the smallest and the largest, its error at those between."""
    lines = [line for line in case.lines if line["kind"] == "scaling"]
    if not lines:
        return []
    out = ["", line_of(["step", "size", "tokens", "seconds", "cost model", "error"]), line_of(["---", "---", *["---:"] * 4])]
    for stage, network in ((SKETCH, case.sketch), (RENDER, case.render)):
        points = scaling_points(lines, stage, network)
        for size, _, seconds, predicted in points:
            fitted = size in (points[0][0], points[-1][0])
            out.append(line_of([stage, str(size), str(size.tokens), f"{seconds:.4g}", f"{predicted:.4g}",
                                "fitted" if fitted else f"{predicted / seconds - 1:+.1%}"]))  # fmt: skip
    return out


def scaling_points(lines: Sequence[Line], stage: str, network: Any) -> list[tuple[Any, Any, float, float]]:
    """(size, operations of a step, median seconds, the cost model's seconds), smallest first."""
    seconds: dict[str, list[float]] = {}
    for line in lines:
        if line["stage"] == stage:
            seconds.setdefault(line["size"], []).extend(line["seconds"])
    sizes = sorted(map(cost.Size.parse, seconds), key=lambda size: size.tokens)
    measured = [(cost.forward_flops(network, size).times(2), statistics.median(seconds[str(size)])) for size in sizes]
    if not measured:
        return []
    rates = cost.fit_rates([measured[0], measured[-1]])
    return [(size, flops, found, rates.seconds(flops)) for size, (flops, found) in zip(sizes, measured)]


def profile_table(case: Case) -> list[str]:
    """Kernels and waits of one render step."""
    out: list[str] = []
    found = profiles(case).values()
    for line in found:
        largest = ", ".join(f"{name} {part['share']:.0%}" for name, part in list(line["kernels"].items())[:6])
        waits = ", ".join(f"{name} {count}" for name, count in line["waits"].items()) or "none"
        own = ", ".join(f"{place} {count}" for place, count in line["own_waits"].items()) or "none"
        out += [f"- one step, {line['what']}: {largest}. Waits: {waits}. Asked for by the pack: {own}."]
    if any("srd_core/finite.py" in place for line in found for place in line["own_waits"]):
        out += ["- srd_core/finite.py asks whether a prediction is finite. On the CPU the answer is there when it is read; a GPU's "
                "is read once it has come."]  # fmt: skip
    return ["", *out] if out else []


def profiles(case: Case) -> dict[str, Line]:
    """The newest profile of each of what was profiled."""
    return {line["what"]: line for line in case.lines if line["kind"] == "profile"}


# --- documents ----------------------------------------------------------------------------------------------------------


def load(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file name, data) of every results file, each setting in it by itself. Raises ValueError for another file."""
    return [(path.name, part) for path in sorted(folder.glob("speed-*.json")) for part in parts(read(path))]


def cases(data: dict[str, Any]) -> list[str]:
    """The cases of a file, in the order of their first lines."""
    return list(dict.fromkeys(line["case"] for line in data["lines"]))


def markdown(files: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """speed.md: what is measured, then what is predicted."""
    parts = ["# Speed", "", "Made by `python3 bench/speed_table.py` from bench/results/speed-*.json.", "", "## Measured", ""]
    if not any(session["device"] == "cuda" for _, data in files for session in data["sessions"]):
        parts += ["**Nothing has been measured on a GPU yet.** One command does it, and continues where it stopped:", "",
                  "    python -m bench.speed --family wan --size 832x480x81 --device cuda", ""]  # fmt: skip
    parts += [
        "seconds: median of whole runs. speed-up: over sketch only in the same round, by its steps where it did not run. of "
        "the ideal: k t_s + (N - k) t_r over the run's seconds without loading, steps that a cache reuses counted as nothing; "
        "t_s and t_r are those of the whole runs of one model in the same round, else of single steps. cost model: its "
        "seconds against the run's. of the peak: operations a second over those of one large matrix product on the same "
        "device. reused: steps that a cache reused. TeaCache's "
        "threshold is chosen so that as many steps are reused as the paper's seconds say for the one in the row's name; how "
        "many steps EasyCache reuses depends on the weights, which are random here.",
    ]
    for name, data in files:
        for case in cases(data):
            parts += ["", f"### {case} ({name})", "", *case_table(data, case)]
    return "\n".join([*parts, "", *speed_paper.document(), ""])


def readme_section(files: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the README says of speed: the rows measured on a GPU, else that there are none; and the table for other cards."""
    out: list[str] = []
    for name, data in files:
        for case in cases(data):
            measured = Case(data, case)
            gpu = [i for i, session in enumerate(data["sessions"]) if session["device"] == "cuda"]
            if measured.shapes == "real" and any(line["session"] in gpu for line in measured.lines):
                out += ["", f"{case}, {data['sessions'][gpu[-1]]['card']} ([results](bench/results/{name})):", ""]
                out += [line_of(["row", "seconds", "speed-up"]), line_of(["---", "---:", "---:"])]
                out += [line_of([n, f"{statistics.median(f.seconds):.4g}", _middle(f.speed_ups, "{:.2f}")])
                        for n, f in measured.rows.items() if f.seconds]  # fmt: skip
    none = ["No GPU was there, so none of these seconds is measured here. `python -m bench.speed` measures all rows on yours."]
    return [*(out or none), "", *speed_paper.card_table()]


def main() -> int:
    """The command; returns the exit status."""
    import speed_figures

    try:
        files = load(common.RESULTS)
        text = markdown(files)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    (common.RESULTS / "speed.md").write_text(text, "utf-8")
    speed_figures.write(files, common.RESULTS)
    if not common.update_readme(common.EVIDENCE, README_MARKS, readme_section(files)):
        sys.stderr.write(f"docs/evidence.md has no section between {README_MARKS[0]} and {README_MARKS[1]}; it stays as it is.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
