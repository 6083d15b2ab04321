"""From result lines to the Markdown table: every number here is computed from a line, none is typed.

Prompts are the unit of every interval: a prompt's seeds are averaged first, then prompts are drawn anew 2000 times.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from quality_rows import RENDER, SKETCH, Row, rows_of, rows_of_fifty

Line = dict[str, Any]
Value = Callable[[Line], float | None]
ATTRIBUTES = ("mean", "colour", "shape", "count", "place", "motion")
DRAWS = 2000
DEFAULT = "adaptive, delta 0.01"  # the row that is the pack as it comes
ENOUGH = 0.95  # of the gain of sketch only over render only


@dataclass(frozen=True)
class Stat:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int  # prompts

    def text(self, form: str = ".3f") -> str:
        """As in a table's cell."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def stat(values: Mapping[int, float]) -> Stat | None:
    """Of one value a prompt; None for none."""
    if not values:
        return None
    known = np.array([values[number] for number in sorted(values)])
    means = known[draws(len(known))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Stat(float(known.mean()), float(low), float(high), len(known))


def draws(count: int) -> Any:
    """Indices [DRAWS, count] of prompts drawn with replacement; the same for the same count."""
    return np.random.default_rng(0).integers(0, count, (DRAWS, count))


def by_prompt(lines: Iterable[Line], value: Value) -> dict[int, float]:
    """Prompt's number -> mean over its seeds, of the lines that have the value."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if (known := value(line)) is not None:
            found.setdefault(line["number"], []).append(known)
    return {number: statistics.fmean(values) for number, values in found.items()}


class Results:
    """The lines by run and row, and what a step of either model costs."""

    def __init__(self, lines: Sequence[Line]) -> None:
        # A cell that was sampled again, under another key because something has changed since, counts as it is now.
        newest = {(line["kind"], line["row"], *place(line)): line for line in lines}
        self.scored = [line for line in newest.values() if line["kind"] == "score"]
        self.timed = [line for line in newest.values() if line["kind"] == "time"]
        self._cost: dict[tuple[int, str], dict[str, float]] = {}
        self.references = {place(line): line for line in self.scored if line["row"] == "sketch only"}

    def runs(self) -> list[tuple[int, str]]:
        """(steps, sampler), most cells first."""
        counts: dict[tuple[int, str], int] = {}
        for line in self.scored:
            counts[run_of(line)] = counts.get(run_of(line), 0) + 1
        return sorted(counts, key=lambda run: (-run[0], run[1]))

    def rows(self, run: tuple[int, str]) -> dict[str, list[Line]]:
        """The lines of every row of a run, in the table's order."""
        found: dict[str, list[Line]] = {}
        for line in self.scored:
            if run_of(line) == run:
                found.setdefault(line["row"], []).append(line)
        order = list(known_rows(run[0]))
        return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))

    def step_seconds(self, run: tuple[int, str]) -> dict[str, float]:
        """Median seconds of a step of each model alone, one prompt at a time; of this run, else of any, else from the
        batches. {} where neither model has run alone.
        """
        if run not in self._cost:
            self._cost[run] = self._measured(run)
        return self._cost[run]

    def _measured(self, run: tuple[int, str]) -> dict[str, float]:
        plain = {"sketch only": SKETCH, "render only": RENDER}
        sources = (
            [line for line in self.timed if run_of(line) == run],
            self.timed,
            [line for line in self.scored if run_of(line) == run],
            self.scored,
        )
        for source in sources:
            found = {
                stage: [line["seconds"][stage] / line["calls"][stage] for line in source if line["row"] == row]
                for row, stage in plain.items()
            }
            if all(found.values()):
                return {stage: statistics.median(seconds) for stage, seconds in found.items()}
        return {}

    def seconds(self, line: Line, stage: str) -> float | None:
        """Seconds that a stage takes in that cell: its steps at what a step of it costs. A stage with a cache, and a
        render without guidance, takes the share of it that its timed runs took of the row without, on the same prompts.
        """
        row, run = kind_of(run_of(line), line["row"]), run_of(line)
        cost = self.step_seconds(run)
        share: float | None = 1.0
        unguided = stage == RENDER and dict(row.more).get("render_cfg") == 1
        if line["calls"][stage] and (
            row.kind in ("easycache", "teacache") or (row.cache and stage == RENDER) or unguided
        ):
            without = (
                f"fixed, step {row.value:g}"
                if unguided
                else "sketch only"
                if not row.cache
                else row.name.rpartition(", ")[0]
            )
            own, plain = (self._timed_step(name, run, stage) for name in (row.name, without))
            share = own / plain if own and plain else None
        return line["calls"][stage] * cost[stage] * share if cost and share is not None else None

    def _timed_step(self, name: str, run: tuple[int, str], stage: str) -> float | None:
        """Seconds of a step of that stage, of the median timed run of a row: what disturbed one run does not count."""
        own = [line for line in self.timed if (line["row"], run_of(line)) == (name, run) and line["calls"][stage]]
        return statistics.median(line["seconds"][stage] / line["calls"][stage] for line in own) if own else None

    def speed_up(self, line: Line) -> float | None:
        """Over sketch only with as many steps."""
        parts, cost = [self.seconds(line, stage) for stage in (SKETCH, RENDER)], self.step_seconds(run_of(line))
        if not cost or any(part is None for part in parts):
            return None
        return line["steps"] * cost[SKETCH] / sum(part for part in parts if part is not None)


def place(line: Line) -> tuple[Any, ...]:
    """What a cell shares with sketch only's."""
    return line["steps"], line["sampler"], line["number"], line["seed"]


def run_of(line: Line) -> tuple[int, str]:
    """(steps, sampler) of a line."""
    return line["steps"], line["sampler"]


@lru_cache
def known_rows(steps: int) -> dict[str, Row]:
    """The rows of a run by name, those that this machine can't sample included."""
    rows = rows_of_fifty() if steps == rows_of_fifty()[0].steps else rows_of(steps)
    return {row.name: row for row in rows}


def kind_of(run: tuple[int, str], name: str) -> Row:
    """The row of that name; one that this version does not know any more counts as none of the kinds."""
    return known_rows(run[0]).get(name) or Row(name, "unknown")


def attribute(name: str) -> Value:
    """A score of the oracle."""
    return lambda line: (line["scores"] or {}).get(name)


def field(name: str) -> Value:
    """A number of the line itself."""
    return lambda line: line[name]


# --- the document -----------------------------------------------------------------------------------------------------


def markdown(lines: Sequence[Line], facts: Sequence[str]) -> str:
    """The whole table with its heading, and what must hold."""
    results = Results(lines)
    parts = ["# Quality and speed of the hand-over", "", *facts]
    for run in results.runs():
        parts += ["", f"## {run[0]} steps, {run[1]}", "", *table(results, run)]
        parts += ["", *must_hold(results, run)]
    return "\n".join([*parts, "", *timing(results), ""])


def table(results: Results, run: tuple[int, str]) -> list[str]:
    """The rows of one run."""
    heads = [
        "row",
        "prompts x seeds",
        "score",
        *ATTRIBUTES[1:],
        "PSNR, dB",
        "SSIM",
        "LPIPS",
        "flicker, %",
        "s sketch",
        "s render",
        "speed-up",
        "switch step (sd)",
    ]
    out = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for name, lines in results.rows(run).items():
        seeds = len({line["seed"] for line in lines})
        out.append(
            _row(
                [
                    name,
                    f"{len({line['number'] for line in lines})} x {seeds}",
                    *(cell(lines, attribute(a)) for a in ATTRIBUTES),
                    likeness(lines),
                    cell(lines, field("ssim")),
                    cell(lines, field("lpips")),
                    cell(lines, lambda line: 100 * line["flicker"], ".2f"),
                    *(mean_of(lines, partial(results.seconds, stage=stage)) for stage in (SKETCH, RENDER)),
                    mean_of(lines, results.speed_up),
                    switch(lines),
                ]
            )
        )
    return out


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(lines: Sequence[Line], value: Value, form: str = ".3f") -> str:
    """A mean with its interval, or a dash."""
    found = stat(by_prompt(lines, value))
    return found.text(form) if found else "-"


def mean_of(lines: Sequence[Line], value: Value) -> str:
    """A mean without interval: what rests on a few timed runs has none that prompts could give."""
    found = stat(by_prompt(lines, value))
    return f"{found.mean:.2f}" if found else "-"


def likeness(lines: Sequence[Line]) -> str:
    """PSNR; cells that are the very video of sketch only have none and are counted apart."""
    same = sum(line["psnr"] is None for line in lines)
    if same == len(lines):
        return "identical"
    return cell(lines, field("psnr"), ".2f") + (f" ({same} identical)" if same else "")


def switch(lines: Sequence[Line]) -> str:
    """Mean hand-over step with its interval and standard deviation; sketch steps of a run that never handed over."""
    steps = [sketch_steps(line) for line in lines]
    if all(line["switch_step"] is None for line in lines):
        return "-"
    found = stat(by_prompt(lines, sketch_steps))
    late = sum(line["reason"] in ("max_step", "latest", "never") for line in lines)
    note = f", {late} of {len(lines)} at the limit" if late else ""
    return f"{found.text('.1f') if found else '-'} ({np.std(steps):.1f}){note}"


def sketch_steps(line: Line) -> float:
    """How many steps the sketch ran; all of them where it never handed over."""
    return float(line["steps"] if line["switch_step"] is None else line["switch_step"])


def gain_share(results: Results, run: tuple[int, str], name: str) -> Stat | None:
    """(row - render only) / (sketch only - render only) in score, on the prompts and seeds that all three have."""
    rows = results.rows(run)
    if any(other not in rows for other in ("sketch only", "render only", name)):
        return None
    wanted = {place(line) for line in rows[name]} & {place(line) for line in rows["render only"]}
    scores = [
        by_prompt([line for line in rows[row] if place(line) in wanted], attribute("mean"))
        for row in (name, "render only", "sketch only")
    ]
    if not scores[0]:
        return None
    row, render, sketch = (np.array([s[number] for number in sorted(s)]) for s in scores)
    gap = float((sketch - render).mean())
    if gap <= 0:
        return None
    picked = draws(len(row))
    gaps = (sketch - render)[picked].mean(1)
    shares = (row - render)[picked].mean(1)[gaps > 0] / gaps[gaps > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return Stat(float((row - render).mean()) / gap, float(low), float(high), len(row))


def must_hold(results: Results, run: tuple[int, str]) -> list[str]:
    """Whether the default keeps the gain, and whether a peer of its speed or less is nearer to sketch only."""
    rows, default = results.rows(run), DEFAULT
    out = []
    shares = [
        (name, gain_share(results, run, name))
        for name, lines in rows.items()
        if kind_of(run, name).kind in ("adaptive", "fixed", "chained", "renoised")
    ]
    known = [(name, share) for name, share in shares if share]
    if known:
        out += ["Share of the gain in score that sketch only has over render only:", ""]
        out += [_row(["row", "share of the gain"]), _row(["---", "---:"])]
        out += [_row([name, share.text(".2f")]) for name, share in known]
        own = dict(known).get(default)
        if own:
            says = "holds" if own.low >= ENOUGH else "does not hold" if own.high < ENOUGH else "not decided"
            out += ["", f"**{default} keeps at least {ENOUGH:.0%} of the gain: {says}** ({own.text('.2f')})."]
    if default in rows:
        out += ["", *peers(results, run, default)]
    return [*out, "", *front(results, run)]


def front(results: Results, run: tuple[int, str]) -> list[str]:
    """Whether the rows with TeaCache on the render lie on or above the peers' front of speed and PSNR, on the cells that
    all have.
    """
    rows = shared_cells(results.rows(run))
    found = {
        name: [stat(by_prompt(lines, value)) for value in (results.speed_up, field("psnr"))]
        for name, lines in rows.items()
    }
    places = {name: (speed.mean, psnr.mean) for name, (speed, psnr) in found.items() if speed and psnr}
    out = []
    for name, own in places.items():
        if kind_of(run, name).cache:
            above = [
                peer
                for peer, (speed, psnr) in places.items()
                if kind_of(run, peer).peer and speed >= own[0] and psnr >= own[1]
            ]
            verdict = f"does not hold: {', '.join(above)} faster and nearer" if above else "holds"
            out.append(_row([name, f"{own[0]:.2f}", f"{own[1]:.2f}", verdict]))
    head = [
        _row(["with TeaCache on the render", "speed-up", "PSNR, dB", "no peer is faster and nearer"]),
        _row(["---", "---:", "---:", "---"]),
    ]
    return [*head, *out] if out else []


def peers(results: Results, run: tuple[int, str], default: str) -> list[str]:
    """Each peer row's PSNR against the default's, on the prompts that both have."""
    rows = results.rows(run)
    mine, speed = rows[default], stat(by_prompt(rows[default], results.speed_up))
    out: list[str] = []
    for name, lines in rows.items():
        if not kind_of(run, name).peer:
            continue
        difference = paired(mine, lines, field("psnr"))
        theirs = stat(by_prompt(lines, results.speed_up))
        if difference is None or speed is None or theirs is None:
            continue
        rival = theirs.mean <= speed.mean
        decided = "holds" if difference.low > 0 else "does not hold" if difference.high < 0 else "not decided"
        verdict = decided if rival else "faster than the default"
        out.append(_row([name, f"{theirs.mean:.2f}", difference.text("+.2f"), verdict]))
    head = [
        _row(["peer", "its speed-up", f"PSNR of {default} minus its, dB", "no peer of that speed or less is nearer"]),
        _row(["---", "---:", "---:", "---"]),
    ]
    return [*head, *out] if out else []


def shared_cells(rows: dict[str, list[Line]]) -> dict[str, list[Line]]:
    """Every row's lines of the prompts and seeds that all rows have."""
    shared = set.intersection(*({place(line) for line in lines} for lines in rows.values()))
    return {name: [line for line in lines if place(line) in shared] for name, lines in rows.items()}


def paired(own: Sequence[Line], others: Sequence[Line], value: Value) -> Stat | None:
    """Mean difference of a value on the prompts and seeds that both rows have."""
    rows = shared_cells({"own": list(own), "others": list(others)})
    a, b = (by_prompt(lines, value) for lines in rows.values())
    return stat({number: a[number] - b[number] for number in a.keys() & b.keys()})


def timing(results: Results) -> list[str]:
    """What the seconds rest on."""
    out = ["## Seconds", ""]
    for run in results.runs():
        if (cost := results.step_seconds(run)) and any(run_of(line) == run for line in results.timed):
            out.append(
                f"- {run[0]} steps, {run[1]}: a sketch step {cost[SKETCH]:.4f} s, a render step {cost[RENDER]:.4f} s "
                f"(median), ratio {cost[SKETCH] / cost[RENDER]:.2f}."
            )
    ratios = {}
    for i, line in enumerate(results.timed):
        cost = results.step_seconds(run_of(line))
        if cost and all(line["calls"].values()) and not kind_of(run_of(line), line["row"]).cache:
            ratios[i] = sum(line["seconds"].values()) / sum(line["calls"][s] * cost[s] for s in (SKETCH, RENDER))
    out += [
        "",
        "Seconds and speed-up of a row: its steps by stage, times these; where EasyCache or TeaCache works, "
        "times the share of a step that three timed prompts took of the same row without it. One prompt at a time, "
        "sampling only, without loading.",
    ]
    if ratios and (found := stat(ratios)):
        out.append(f"{found.count} measured runs with both models took {found.text('.3f')} of what that gives.")
    loads = [line["load"] for line in results.timed if line.get("load") is not None]
    cores = os.cpu_count() or 1
    if loads and (busy := statistics.median(loads)) > 1.5 * cores:
        out.append(f"Other programs were busy meanwhile (load {busy:.1f} on {cores} cores): don't rely on the seconds.")
    return out


def facts(evaluation: Any, options: Any, why_no_lpips: str) -> list[str]:
    """What was run on what."""
    import comfyui_version
    import torch

    family = evaluation.family
    lpips = f"LPIPS: {evaluation.net}." if evaluation.net else f"LPIPS was not measured. {why_no_lpips}"
    text = f"text encoder {family.text}" if family.text else "the tiny family's own text encoding"
    oracle = (
        "The score is the oracle's, read from pixels (demo/family/oracle.py), on held-out prompts."
        if evaluation.scenes is not None
        else "No score: the oracle only reads the tiny family's prompts."
    )
    return [
        f"{datetime.date.today().isoformat()}, ComfyUI {comfyui_version.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {os.cpu_count()} CPU cores, {platform.machine()}. Written by "
        f"`python3 bench/{Path(sys.argv[0]).name}`; every line of it is in quality.jsonl.",
        "",
        f"Sketch {family.sketch}, render {family.render}, {text}; weights {evaluation.store.weights}. "
        f"{family.width}x{family.height}, {family.length} frames, cfg {family.cfg:g}, shift {family.shift}, scheduler simple.",
        "",
        f"{oracle} PSNR, SSIM and LPIPS are to sketch only, same prompt, seed, steps and sampler; flicker is the mean "
        "change of a value between frames. In brackets: 95 % bootstrap interval over prompts; seconds and speed-ups rest on "
        "three timed prompts a row and have none. The host's EasyCache writes into the network's input, which in float32 is "
        "the sampler's latent; its rows get a copy there, so they are better than EasyCache as it is.",
        "",
        lpips,
    ]
