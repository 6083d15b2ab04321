"""From result lines to Markdown: every number here is computed from a line, none is typed.

Prompts are the unit of every interval: a prompt's seeds are averaged first, then prompts are drawn anew 2000 times.
"""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from quality_rows import RENDER, SKETCH, TABLES, Row
from scipy.stats import DegenerateDataWarning, bootstrap

Line = dict[str, Any]
Run = tuple[int, str]  # steps and sampler
Value = Callable[[Line], float | None]

MARKS = ("<!-- tables: made by python3 bench/quality.py -->", "<!-- /tables -->")
EVIDENCE_MARKS = ("<!-- evidence: made by python3 bench/quality.py -->", "<!-- /evidence -->")
CARD_MARKS = ("<!-- scores: made by python3 bench/quality.py -->", "<!-- /scores -->")
DRAWS = 2000
ENDS = ("sketch only", "render only")
MAIN_RUN = (50, "euler")
DEFAULT, ANEW = "adaptive, delta 0.01", "sigma 0.875, re-noised"
ROWS: dict[tuple[str, Run], Row] = {(row.name, row.run): row for rows in TABLES.values() for row in rows()}

NOTE = """\
Score: of the oracle (demo/family/oracle.py), on held-out prompts. PSNR, SSIM, CVVDP (ColorVideoVDP, 10: no visible
difference) and LPIPS: to the sketch alone of the same prompt, seed, steps and sampler. Flicker: mean change of a value
between frames. In brackets: 95 % bootstrap intervals over prompts. Speed-up: each model's steps at what a step of it
takes alone, median; where a cache works, guidance is left out or the sketch has fewer pixels, times the share that
timed runs took of the same row without. The host's EasyCache writes into the network's input, in float32 the sampler's
latent; here it gets a copy, so it is better than as it is."""

# --- statistics -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stat:
    """A mean, or a ratio of means, with its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int  # prompts

    def text(self, form: str = ".3f") -> str:
        """As in a table's cell."""
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


def stat(*samples: Sequence[float], of: Callable[..., Any] = np.mean) -> Stat | None:
    """Bootstrap over prompts, which are drawn together: each sample has one value a prompt. None: no value."""
    values = [np.array(sample, float) for sample in samples]
    mean = float(of(*values, axis=-1)) if len(values[0]) else np.nan
    if np.isnan(mean):
        return None
    if len(values[0]) == 1:
        return Stat(mean, mean, mean, 1)
    with warnings.catch_warnings():  # draws without a share are left out of the interval
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(values, of, n_resamples=DRAWS, paired=True, vectorized=True, method="percentile", rng=0)
    low, high = np.nanquantile(found.bootstrap_distribution, (0.025, 0.975))
    return Stat(mean, float(low), float(high), len(values[0]))


def share(own: Any, render: Any, sketch: Any, axis: int) -> Any:
    """(own - render) / (sketch - render) of the means along an axis; nan where the sketch is not ahead."""
    gap = (sketch - render).mean(axis)
    return np.where(gap > 0, (own - render).mean(axis) / np.where(gap > 0, gap, 1), np.nan)


def by_prompt(lines: Iterable[Line], value: Value) -> dict[str, float]:
    """Prompt -> mean over its seeds, of the lines that have the value; in the prompts' order."""
    found: dict[tuple[int, str], list[float]] = {}
    for line in lines:
        if (known := value(line)) is not None:
            found.setdefault((line["number"], line["prompt"]), []).append(known)
    return {prompt: statistics.fmean(found[number, prompt]) for number, prompt in sorted(found)}


def mean_of(lines: Iterable[Line], value: Value) -> Stat | None:
    """A row's mean of a value."""
    return stat(list(by_prompt(lines, value).values()))


def score(name: str) -> Value:
    """A score of the oracle."""
    return lambda line: (line["scores"] or {}).get(name)


def number(name: str) -> Value:
    """A number of the line itself."""
    return lambda line: line.get(name)


# --- the lines --------------------------------------------------------------------------------------------------------


def run_of(line: Line) -> Run:
    """(steps, sampler) of a line."""
    return line["steps"], line["sampler"]


def place(line: Line) -> tuple[Any, ...]:
    """What a cell shares with those it is compared with."""
    return *run_of(line), line["prompt"], line["seed"]


def shared(*rows: Iterable[Line]) -> list[list[Line]]:
    """The lines of each row on the prompts and seeds that all of them have, in one order."""
    known = [{place(line): line for line in lines} for lines in rows]
    both = [at for at in known[0] if all(at in lines for lines in known)]
    return [[lines[at] for at in both] for lines in known]


class Results:
    """The lines by run and row, and what a step of either model costs."""

    def __init__(self, lines: Sequence[Line]) -> None:
        # A cell that was sampled again, because something has changed since, counts as it is now.
        self.scored = list({(line["row"], *place(line)): line for line in lines if "flicker" in line}.values())
        self.timed = list({(line["row"], *place(line)): line for line in lines if line["seconds"]}.values())
        self.step = functools.cache(self._step)

    def runs(self) -> list[Run]:
        """Those that there are, the longest first."""
        return sorted({run_of(line) for line in self.scored}, key=lambda run: (-run[0], run[1] != MAIN_RUN[1], run[1]))

    def rows(self, run: Run) -> dict[str, list[Line]]:
        """The lines of every row of a run, in the table's order; rows that are not sampled any more come last."""
        found: dict[str, list[Line]] = {}
        for line in self.scored:
            if run_of(line) == run:
                found.setdefault(line["row"], []).append(line)
        order = [name for name, _ in ROWS]
        return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))

    def _step(self, run: Run | None, row: str, model: str) -> float | None:
        """Seconds of a step, of the median timed run of a row: what disturbed one run does not count. run None: any."""
        own = [
            line for line in self.timed if line["row"] == row and run in (None, run_of(line)) and line["calls"][model]
        ]
        return statistics.median(line["seconds"][model] / line["calls"][model] for line in own) if own else None

    def cost(self, run: Run, model: str) -> float | None:
        """Seconds of a step of one model alone: of this run where both models have run alone in it, else of any."""
        here = [self.step(run, row, own) for row, own in zip(ENDS, (SKETCH, RENDER))]
        return self.step(run if all(here) else None, f"{model} only", model)

    def speed_up(self, line: Line) -> float | None:
        """Over the sketch alone with as many steps: each model's steps at what a step of it costs.

        A row with cheaper steps has the share of it that its timed runs took of those of the row without.
        """
        run, seconds = run_of(line), 0.0
        whole = self.cost(run, SKETCH)
        row = ROWS.get((line["row"], run))
        for model, calls in line["calls"].items():
            cost = self.cost(run, model)
            if row and calls and model == row.cheaper:
                own, without = self.step(run, row.name, model), self.step(run, row.like, model)
                cost = cost * own / without if cost and own and without else None
            if cost is None:
                return None
            seconds += calls * cost
        return line["steps"] * whole / seconds if whole else None


def gain(rows: Mapping[str, list[Line]], name: str) -> Stat | None:
    """The share of the score's way from render only to sketch only, on the prompts and seeds that all three have."""
    if any(other not in rows for other in (*ENDS, name)):
        return None
    scores = [by_prompt(lines, score("mean")) for lines in shared(rows[name], rows[ENDS[1]], rows[ENDS[0]])]
    return stat(*(list(values.values()) for values in scores), of=share)


def paired(own: Iterable[Line], others: Iterable[Line], value: Value) -> list[float]:
    """Differences of a value, one a prompt, on the prompts and seeds that both rows have."""
    a, b = (by_prompt(lines, value) for lines in shared(own, others))
    return [a[prompt] - b[prompt] for prompt in a if prompt in b]


# --- the documents ----------------------------------------------------------------------------------------------------


def text_of(found: Stat | None, form: str = ".3f", of: Sequence[Line] = ()) -> str:
    """A cell of a table. of: the row's lines, where some may lack the value: then how many prompts have it is said."""
    if found is None:
        return "-"
    fewer = found.count < len({line["prompt"] for line in of})
    return found.text(form) + (f", {found.count} prompts" if fewer else "")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines, without columns that hold nothing."""
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] != "-" for row in rows)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return [f"| {' | '.join(line[i] for i in kept)} |" for line in lines]


def markdown(lines: Sequence[Line], no_lpips: str) -> list[str]:
    """All runs with what they were measured on."""
    results = Results(lines)
    told = {name: ", ".join(sorted({line[name] for line in lines})) for name in ("date", "host", "machine", "commit")}
    setup = f"{lines[0]['setup']}, scheduler simple; weights {lines[0]['weights']}"
    out = [f"{told['date']}; {told['host']}; {told['machine']}; commits {told['commit']}. {setup}.", "", NOTE]
    if loads := [line["load"] for line in results.timed if line["load"]]:
        out += ["", f"Other programs ran while it was timed: the load was {statistics.median(loads):.1f} (median)."]
    if no_lpips and not any(line.get("lpips") for line in lines):
        out += ["", f"LPIPS was not measured. {no_lpips}"]
    for run in results.runs():
        out += ["", f"## {run[0]} steps, {run[1]}", "", *main_table(results, run), "", *against_cut(results.rows(run))]
    return out


def main_table(results: Results, run: Run) -> list[str]:
    """The rows of one run."""
    heads = ["row", "prompts x seeds", "score", "its shapes", "share of the gain", "PSNR, dB", "SSIM", "CVVDP", "LPIPS"]
    heads += ["flicker, %", "sketch steps", "speed-up"]
    rows = results.rows(run)
    cells = []
    for name, lines in rows.items():
        speed = mean_of(lines, results.speed_up)
        cells.append(
            [
                name,
                prompts_and_seeds(lines),
                *(text_of(mean_of(lines, score(part))) for part in ("mean", "shape")),
                text_of(gain(rows, name), ".2f"),
                text_of(mean_of(lines, number("psnr")), ".2f"),
                *(text_of(mean_of(lines, number(part)), of=lines) for part in ("ssim", "cvvdp", "lpips")),
                text_of(mean_of(lines, lambda line: 100 * line["flicker"]), ".2f"),
                f"{statistics.fmean(line['calls'][SKETCH] for line in lines):.1f}",
                f"{speed.mean:.2f}" if speed else "-",
            ]
        )
    return markdown_table(heads, cells)


def prompts_and_seeds(lines: Sequence[Line]) -> str:
    """How many cells a mean is of."""
    return f"{len({line['prompt'] for line in lines})} x {len({line['seed'] for line in lines})}"


def against_cut(rows: Mapping[str, list[Line]]) -> list[str]:
    """Every row minus the first cut of the run, on the prompts that both have."""
    cut = next((name for name in rows if name.startswith("fixed")), None)
    cells = []
    for name in [name for name in rows if cut and name not in (cut, *ENDS)]:
        psnr, own = (paired(rows[name], rows[cut or ""], value) for value in (number("psnr"), score("mean")))
        if psnr:
            nearer = f"{sum(value > 0 for value in psnr)} of {len(psnr)}"
            cells.append([name, text_of(stat(psnr), "+.2f"), nearer, f"{min(psnr):+.1f}", text_of(stat(own), "+.3f")])
    heads = [f"minus {cut}, same prompts", "PSNR, dB", "nearer on", "worst, dB", "score"]
    return markdown_table(heads, cells) if cells else []


def evidence(lines: Sequence[Line]) -> list[str]:
    """What docs/evidence.md says: the main run, and the default beside the switch that noises anew."""
    results = Results(lines)
    rows = results.rows(MAIN_RUN)
    cells = []
    for name, own in rows.items():
        speed = mean_of(own, results.speed_up)
        cells.append(
            [
                name,
                prompts_and_seeds(own),
                text_of(gain(rows, name), ".2f"),
                text_of(mean_of(own, number("psnr")), ".1f"),
                text_of(mean_of(own, number("cvvdp")), ".2f", own),
                f"{speed.mean:.2f}" if speed else "-",
            ]
        )
    heads = ["tiny family, 50 steps, euler", "prompts x seeds", "share of the sketch's gain", "PSNR, dB", "CVVDP"]
    out = markdown_table([*heads, "speed-up"], cells)
    if DEFAULT in rows and ANEW in rows:
        both, psnr = (stat(paired(rows[DEFAULT], rows[ANEW], value)) for value in (score("mean"), number("psnr")))
        out += [
            "",
            f"The default minus the switch at sigma 0.875 that noises the video anew: score {text_of(both, '+.3f')}, "
            f"PSNR {text_of(psnr, '+.2f')} dB on the same prompts. In brackets: 95 % intervals.",
        ]
    return out


def card(lines: Sequence[Line]) -> list[str]:
    """What the family's card says: every score of some rows of the main run."""
    rows, parts = Results(lines).rows(MAIN_RUN), ("mean", "colour", "shape", "count", "place", "motion", "off")
    names = [name for name in (*ENDS, "fixed, step 10", "fixed, step 15") if name in rows]
    cells = [[name, *(text_of(mean_of(rows[name], score(part))) for part in parts)] for name in names]
    return markdown_table(["bench/results/quality.jsonl, 50 steps, euler", *parts], cells)
