"""Speed at the real sizes: seconds of a step and of whole runs, beside the peers, with random weights of the true shapes.

    python -m bench.speed --family wan --size 832x480x81 --device cuda
    python -m bench.speed --family wan --size 1280x720x81 --device cuda --rounds 1 --minutes 9 --rows "SR, 10|chained"
    python -m bench.speed --family cogvideox --device cuda
    python3 bench/speed.py --device cpu --shapes small --steps 20      the same from start to table, in minutes
    python3 bench/speed.py --scaling                                   steps at several sizes, for the cost model
    python3 bench/speed.py --profile                                   one render step: its kernels, and who waits
    python3 bench/speed_table.py                                       speed.md, figures and the README's table again

All rows are measured in one process, one after the other and then all again. Every measurement goes to the results file at
once; a command that was stopped, or that its minutes ended, goes on there. A row that can't be measured is kept with why.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__:  # python -m bench.speed: the root on sys.path would hide the host's module `nodes`
    sys.path[0] = str(Path(__file__).resolve().parent)

import common

if __name__ == "__main__":
    common.run_in_host()

import quality_host  # noqa: E402

Line = dict[str, Any]
# Sizes at which steps are measured for the cost model: the first and the last give its rates, the others check them.
SCALING: dict[str, dict[str, tuple[str, ...]]] = {
    "real": {"wan": ("832x480x33", "832x480x81", "832x480x121", "1280x720x81"),
             "cogvideox": ("480x320x25", "720x480x25", "720x480x49")},
    "small": dict.fromkeys(("wan", "cogvideox"), ("128x128x5", "192x192x5", "192x192x13", "256x256x13")),
    "tiny": dict.fromkeys(("wan", "cogvideox"), ("64x64x5", "64x64x9", "96x96x9")),
}  # fmt: skip


class Store:
    """The results file: sessions (machine, versions, command, date) and lines, written anew after each."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that is none of these results."""
        self.path, self._written = path, time_written(path)
        self.data: dict[str, Any] = {"sessions": [], "lines": []}
        if path.exists():
            self.data = json.loads(path.read_text("utf-8"))
            if not {"sessions", "lines"} <= self.data.keys():
                raise ValueError(f"{path.name} does not hold results of the speed bench. Name another by --results.")

    @property
    def lines(self) -> list[Line]:
        return self.data["lines"]

    def begin(self, **session: Any) -> None:
        """A new session; the lines that follow are its own."""
        self.data["sessions"].append(session)

    def add(self, kind: str, **line: Any) -> None:
        """One measurement. Raises RuntimeError when another command has written to the file meanwhile."""
        if time_written(self.path) != self._written:
            raise RuntimeError(f"Another command writes to {self.path.name} too. Start this one again after it.")
        self.lines.append({"kind": kind, "session": len(self.data["sessions"]) - 1, **line})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(compact(self.data), "utf-8")
        partial.replace(self.path)
        self._written = time_written(self.path)

    def count(self, **wanted: Any) -> int:
        """How many lines have these values."""
        return sum(wanted.items() <= line.items() for line in self.lines)


def time_written(path: Path) -> int:
    """When a file was last written, in nanoseconds; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def compact(data: dict[str, Any]) -> str:
    """JSON with one line for each session and each measurement."""
    parts = [f' "{name}": [\n' + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]" for name, items in data.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


@dataclass
class Session:
    """One start of the command on one size."""

    options: argparse.Namespace
    bench: Any  # speed_rows.Bench
    store: Store
    case: str  # family, size, shapes and steps, which rows are compared within
    ends: float  # time.monotonic
    broken: set[Any] = field(default_factory=set)  # ways of computing that failed
    out: Callable[[str], Any] = field(default=lambda text: print(text, flush=True))

    def over(self) -> bool:
        """Whether the minutes are used up."""
        return time.monotonic() > self.ends

    def rounds_left(self, selected: Sequence[Any]) -> list[list[Any]]:
        """For every round the rows that it has still to measure."""
        done = {row.name: self.store.count(kind="whole", case=self.case, row=row.name) for row in selected}
        return [[row for row in selected if done[row.name] <= i] for i in range(self.options.rounds)]


# --- the measurements ---------------------------------------------------------------------------------------------------


def available_rows(session: Session, selected: Sequence[Any]) -> list[Any]:
    """Those that can be measured; why not is kept of the others."""
    import speed_rows

    found = []
    for row in selected:
        if why := speed_rows.unavailable(row, session.bench):
            keep_reason(session, row, why)
        else:
            found.append(row)
    return found


def keep_reason(session: Session, row: Any, why: str) -> None:
    """That a row can't be measured here, once."""
    if not session.store.count(kind="unavailable", case=session.case, row=row.name, reason=why):
        session.store.add("unavailable", case=session.case, row=row.name, reason=why)
    session.out(f"  {row.name}: {why}")


def measure_peaks(session: Session) -> None:
    """The card's matrix and copy peak, and its attention backends, into the session's facts."""
    import speed_measure

    bench, names = session.bench, quality_host.module("srd_core.attention").backends()[1:]
    found = speed_measure.attention_seconds(bench.render, bench.size.tokens, bench.device, names)
    bench.fastest = min(found, key=lambda name: found[name], default="auto")
    facts = {"peak_flops": speed_measure.peak_flops(bench.device), "bandwidth": speed_measure.bandwidth(bench.device),
             "attention_seconds": found, "fastest_attention": bench.fastest}  # fmt: skip
    session.store.data["sessions"][-1].update(facts)
    session.out(f"  matrix peak {facts['peak_flops'] / 1e12:.3g} TFLOPS, copy {facts['bandwidth'] / 1e9:.3g} GB/s, fastest "
                f"attention {bench.fastest}")  # fmt: skip


def measure_steps(session: Session, selected: Sequence[Any], number: int) -> None:
    """Single steps of both models, each way that the rows compute them, in turn."""
    import speed_rows

    for variant, stage, cfg in _step_kinds(selected, session.bench):
        if session.over() or variant in session.broken:
            continue
        try:
            model = session.bench.pair(variant)[stage == speed_rows.RENDER]
            seconds = _probe(session, model, cfg)
        except RuntimeError as error:
            session.broken.add(variant)
            session.out(f"  {variant}: {first_line(error)}")
            continue
        session.store.add("steps", case=session.case, variant=speed_rows.as_dict(variant), stage=stage, cfg_1=cfg == 1,
                          round=number, seconds=seconds)  # fmt: skip
        session.out(f"  a {stage} step, {variant}{', cfg 1' if cfg == 1 else ''}: {min(seconds):.3g} s")


def _step_kinds(selected: Sequence[Any], bench: Any) -> Iterator[tuple[Any, str, float]]:
    import speed_rows

    cfg = speed_rows.CFG[bench.sketch.family]
    for variant in speed_rows.variants_of(selected):
        yield variant, speed_rows.SKETCH, cfg
        yield variant, speed_rows.RENDER, cfg
        if any(row.cfg_1 and row.variant == variant for row in selected):
            yield variant, speed_rows.RENDER, 1.0


def _probe(session: Session, model: Any, cfg: float) -> list[float]:
    import speed_rows

    steps = min(session.options.probe, session.bench.steps - 1)
    return speed_rows.probe(model, session.bench, cfg, steps)


def measure_hand_over(session: Session) -> None:
    """The hand-over after which the render has to come from main memory: its bytes and seconds."""
    import speed_rows

    if session.store.count(kind="hand_over", case=session.case) or session.over():
        return
    found = speed_rows.cold_hand_over(session.bench)
    session.store.add("hand_over", case=session.case, **found)
    session.out(f"  a hand-over from main memory: {found['seconds']:.3g} s, {found['in'] / 1e9:.3g} GB in")


def measure_rows(session: Session, selected: Sequence[Any]) -> None:
    """Steps and whole runs, all of a round before the next round."""
    failed: set[str] = set()
    for number, left in enumerate(session.rounds_left(selected)):
        left = [row for row in left if row.name not in failed]
        if left and not session.over():
            measure_steps(session, [sketch_only(session), *left], number)
            measure_hand_over(session)
        for row in left:
            if session.over():
                session.out("  the minutes are over; the same command goes on")
                return
            if not _measure_row(session, row, number):
                failed.add(row.name)


def sketch_only(session: Session) -> Any:
    """Sketch only: every session measures its steps."""
    import speed_rows

    return speed_rows.rows(session.options.family)[0]


def _measure_row(session: Session, row: Any, number: int) -> bool:
    import comfy.model_management
    import speed_measure
    import speed_rows

    try:
        speed_rows.warm_up(row, session.bench)
        run = speed_rows.prepared(row, session.bench)
        sketch, render = session.bench.pair(row.variant)
        comfy.model_management.load_models_gpu([sketch if row.sketch else render])
        with speed_measure.gauge(session.bench.device) as gauge:
            ran = run()
    except RuntimeError as error:  # too little memory, a kernel or a compiler that can't
        keep_reason(session, row, first_line(error))
        return False
    session.store.add("whole", case=session.case, row=row.name, round=number, reused=ran.reused, hand_over=ran.hand_over,
                      **gauge)  # fmt: skip
    session.out(f"  {row.name}: {gauge['seconds']:.4g} s")
    return True


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def measure_scaling(session: Session) -> None:
    """Steps of both models at several sizes, for the cost model."""
    import speed_rows

    options = session.options
    for number in range(options.rounds):
        for text in SCALING[options.shapes][options.family]:
            size = speed_rows.cost.Size.parse(text)
            at_size = dataclasses.replace(session.bench, size=size)
            for stage, model in zip((speed_rows.SKETCH, speed_rows.RENDER), session.bench.pair(speed_rows.PLAIN)):
                if session.over():
                    return
                there = dataclasses.replace(session, bench=at_size)
                seconds = _probe(there, model, speed_rows.CFG[options.family])
                session.store.add("scaling", case=session.case, size=text, stage=stage, round=number, seconds=seconds)
                session.out(f"  a {stage} step at {text}: {min(seconds):.3g} s")


def measure_profile(session: Session) -> None:
    """One render step alone and one of a cooperation: kernels, and what waits for the device, by who asked for it."""
    import speed_profile

    for name, found in speed_profile.compare(session.bench).items():
        session.store.add("profile", case=session.case, what=name, **found)
        session.out(f"  {name}: waits {found['waits']}; the pack's own: {found['own_waits'] or 'none'}")


# --- the command --------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = arguments(words)
    quality_host.start(cpu=options.device == "cpu", threads=options.threads)
    import speed_measure
    import torch

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("There is no GPU here that torch can use. Try --device cpu --shapes small.\n")
        return 2
    try:
        session, selected = begin(options, device)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    session.store.begin(case=session.case, **speed_measure.facts(device))
    session.out(f"{session.case} on {speed_measure.card(device)}, results in {session.store.path.name}")
    measure(session, selected)
    import speed_table

    session.out("\n".join(speed_table.case_table(session.store.data, session.case)))
    return 0


def measure(session: Session, selected: Sequence[Any]) -> None:
    """What was asked for and is not there yet."""
    measure_peaks(session)
    if session.options.profile or session.options.scaling:
        if session.options.profile:
            measure_profile(session)
        if session.options.scaling:
            measure_scaling(session)
        return
    left = [row for row in selected if any(row in rows for rows in session.rounds_left(selected))]
    todo = available_rows(session, left)
    measure_rows(session, todo)


def begin(options: argparse.Namespace, device: Any) -> tuple[Session, list[Any]]:
    """(session, rows); raises ValueError for a size, a row or a results file that can't be."""
    import speed_measure
    import speed_rows
    from speed_models import SHAPES

    sketch, render, size = SHAPES[options.shapes][options.family]
    size = speed_rows.cost.Size.parse(options.size) if options.size else size
    bench = speed_rows.Bench(sketch, render, size, device, options.steps)
    case = f"{options.family} {size}, {options.shapes} shapes, {options.steps} steps"
    path = options.results or common.RESULTS / default_name(speed_measure.card(device))
    ends = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    return Session(options, bench, Store(path), case, ends), speed_rows.chosen(options.family, options.rows)


def default_name(card: str) -> str:
    """speed-<card>-<date>.json"""
    return f"speed-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}-{datetime.date.today().isoformat()}.json"


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="wan", choices=("wan", "cogvideox"))
    parser.add_argument("--size", default="", metavar="WIDTHxHEIGHTxFRAMES", help="default: the family's 480p")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shapes", default="real", choices=("real", "small", "tiny"), help="of the networks")
    parser.add_argument("--steps", type=int, default=50, help="of a run; the rows' steps are shares of 50")
    parser.add_argument("--rows", default="", help="only rows with these words in their names, separated by |")
    parser.add_argument("--rounds", type=int, default=3, help="whole runs of every row")
    parser.add_argument("--probe", type=int, default=3, help="single steps that are measured at a time")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all is measured")
    parser.add_argument("--scaling", action="store_true", help="measure steps at several sizes instead of rows")
    parser.add_argument("--profile", action="store_true", help="profile one render step instead of rows")
    parser.add_argument("--results", type=Path, help="default: bench/results/speed-<card>-<date>.json")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)), help="of the CPU; 0: all")
    options = parser.parse_args(words)
    if options.steps < 6 or options.rounds < 1 or options.probe < 1:
        parser.error("--steps must be 6 or more, --rounds and --probe 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
