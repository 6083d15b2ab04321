"""Speed at the real sizes: seconds of a step and of whole runs, beside the peers, with random weights of the true shapes.

    python -m bench.speed --family wan --size 832x480x81 --device cuda
    python -m bench.speed --rounds 1 --minutes 9 --rows "SR, 10 steps|two chained samplers, 10 steps"
    python -m bench.speed --family cogvideox --device cuda
    python3 bench/speed.py --device cpu --shapes small --steps 20      the same from start to table, in minutes
    python3 bench/speed.py --scaling                                   steps at several sizes, for the cost model
    python3 bench/speed.py --profile                                   one render step: its kernels, and who waits
    python3 bench/speed_table.py                                       speed.md, figures and the README's table again

All rows are measured in one process, one after the other and then all again, each after single steps of its models. Every
measurement goes to the results file at once; a command that was stopped, or that its minutes ended, continues there, on the
same machine with the same versions and threads. What can't be measured is kept with why.

--minutes counts from the start. A row that would not end within them, by the steps that were measured, is left out: another
start may have the time, and until then its seconds are those of its steps. Compiling is not foreseen.

The models stay in main memory, in bf16 on a GPU: 32 GB for the Wan pair, 15 GB for CogVideoX, half as much more for the rows
with fp8 and again for those with fp8 scaled; twice the first on the CPU. Where that is too much, one pair is built after the
other, in each round again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__:  # python -m bench.speed: the root on sys.path would hide the host's module `nodes`
    sys.path[0] = str(Path(__file__).resolve().parent)

import common
import cost

if __name__ == "__main__":
    common.run_in_host()

import quality_host  # noqa: E402
import speed_store  # noqa: E402
from speed_store import HAND_OVER  # noqa: E402

STARTED = time.monotonic()
# Sizes at which steps are measured for the cost model: the first and the last give its rates, the others check them.
SCALING: dict[str, dict[str, tuple[str, ...]]] = {
    "real": {"wan": ("832x480x33", "832x480x81", "832x480x121", "1280x720x81"),
             "cogvideox": ("480x320x25", "720x480x25", "720x480x49")},
    "small": dict.fromkeys(("wan", "cogvideox"), ("128x128x5", "192x192x5", "192x192x13", "256x256x13")),
    "tiny": dict.fromkeys(("wan", "cogvideox"), ("64x64x5", "64x64x9", "96x96x9")),
}  # fmt: skip


@dataclass
class Session:
    """One start of the command on one size."""

    options: argparse.Namespace
    bench: Any  # speed_rows.Bench
    store: speed_store.Store
    case: str  # family, size, shapes and steps, which rows are compared within
    ends: float  # time.monotonic
    gained: bool = False  # whether this start has measured anything
    out: Callable[[str], Any] = field(default=lambda text: print(text, flush=True))

    def over(self) -> bool:
        """Whether the minutes are used up; never before something is gained, or short minutes would never end the work."""
        if ended := self.gained and time.monotonic() > self.ends:
            self.out("  the minutes are over; the same command continues")
        return ended

    def leaves_out(self, row: Any) -> bool:
        """Whether the row would not end within the minutes, by what its run or its steps took before."""
        import speed_table

        if not self.options.minutes:
            return False
        seconds, left = speed_table.Case(self.store.alike(), self.case).rows[row.name].median() or 0.0, self.ends - time.monotonic()
        if seconds > left:
            self.out(f"  {row.name}: about {seconds:.0f} s, and {max(left, 0):.0f} s are left; left out")
        return seconds > left

    def missing(self, kind: str, **wanted: Any) -> bool:
        """Whether no line of this case has these values yet."""
        return not self.store.count(kind=kind, case=self.case, **wanted)

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
            keep_reason(session, row.name, why)
        else:
            found.append(row)
    return found


def keep_reason(session: Session, what: str, why: str) -> None:
    """That a row, or another thing, can't be measured here, once."""
    if session.missing("unavailable", row=what, reason=why):
        session.store.add("unavailable", case=session.case, row=what, reason=why)
    session.out(f"  {what}: {why}")


def measure_peaks(session: Session) -> None:
    """The card's matrix and copy peak, and its attention backends, into the session's facts."""
    import speed_measure

    bench, names = session.bench, quality_host.module("srd_core.attention").backends()[1:]
    found = speed_measure.attention_seconds(bench.render, bench.size.tokens, bench.device, names)
    # Starts that took turns between two equally fast ones would be put together in one row.
    before = [s["fastest_attention"] for s in session.store.alike()["sessions"] if s["case"] == session.case
              and s.get("attention_seconds", {}).keys() == found.keys() and "fastest_attention" in s]  # fmt: skip
    bench.fastest = before[0] if before else min(found, key=lambda name: found[name], default="auto")
    facts = {"peak_flops": speed_measure.peak_flops(bench.device), "bandwidth": speed_measure.bandwidth(bench.device),
             "attention_seconds": found, "fastest_attention": bench.fastest}  # fmt: skip
    session.store.session.update(facts)
    session.out(f"  matrix peak {facts['peak_flops'] / 1e12:.3g} TFLOPS, copy {facts['bandwidth'] / 1e9:.3g} GB/s, fastest "
                f"attention {bench.fastest}")  # fmt: skip


def measure_rows(session: Session, selected: Sequence[Any]) -> None:
    """Whole runs, all of a round before the next round."""
    failed: set[str] = set()
    for number, left in enumerate(session.rounds_left(selected)):
        for row in left:
            if session.over():
                return
            if row.name not in failed and not _measure_row(session, row, number):
                failed.add(row.name)
    if time.monotonic() < session.ends:
        measure_hand_over(session)


def _measure_row(session: Session, row: Any, number: int) -> bool:
    """The row's single steps, then a whole run of it if that ends in time; False: it can't be measured."""
    import speed_measure
    import speed_rows

    bench = session.bench
    try:
        for needed in (speed_rows.rows(bench.sketch.family)[0], row):  # the speed-up is over the first one's steps at least
            measure_steps(session, needed, number)
        if session.leaves_out(row):
            return True
        speed_rows.warm_up(row, bench)
        run = speed_rows.prepared(row, bench)
        bench.put_on_device(row)
        with speed_measure.gauge(bench.device) as gauge:
            ran = run()
    except OSError:  # the results can't be written
        raise
    except Exception as error:  # noqa: BLE001  too little memory, or a kernel or a compiler that can't
        keep_error(session, row.name, error)
        return False
    return _keep_run(session, row, number, ran, gauge)


def _keep_run(session: Session, row: Any, number: int, ran: Any, gauge: dict[str, Any]) -> bool:
    """A whole run into the results; False: it is not what was meant."""
    import speed_rows

    bench = session.bench
    if sum(row.reuse) * bench.steps / speed_rows.STEPS >= 1 and not any(ran.reused.values()):
        keep_reason(session, row.name, "TeaCache reused no step here, so it is not the row that was meant.")
        return False
    computed_in = [str(model.model.get_dtype_inference()).removeprefix("torch.") for model in bench.pair(row.variant)]
    session.store.add("whole", case=session.case, row=row.name, round=number, reused=ran.reused, hand_over=ran.hand_over,
                      dtype=sorted(set(computed_in)), **gauge)  # fmt: skip
    session.gained = True
    session.out(f"  {row.name}: {gauge['seconds']:.4g} s")
    return True


def measure_steps(session: Session, row: Any, number: int) -> None:
    """Single steps of both models, computed as the row does, once a round: other rows may have measured them."""
    import speed_rows

    cfg = speed_rows.CFG[session.bench.sketch.family]
    for stage, scale in ((speed_rows.SKETCH, cfg), (speed_rows.RENDER, 1.0 if row.cfg_1 else cfg)):
        what = {"variant": speed_rows.as_dict(row.variant), "stage": stage, "cfg_1": scale == 1, "round": number}
        if session.missing("steps", **what):
            model = session.bench.pair(row.variant)[stage == speed_rows.RENDER]
            seconds = _probe(session, model, scale)
            session.store.add("steps", case=session.case, **what, seconds=seconds)
            session.gained = True
            session.out(f"  a {stage} step, {row.variant}{', cfg 1' if scale == 1 else ''}: {min(seconds):.3g} s")


def _probe(session: Session, model: Any, cfg: float) -> list[float]:
    import speed_rows

    steps = min(session.options.probe, session.bench.steps - 1)
    return speed_rows.probe(model, session.bench, cfg, steps)


def measure_hand_over(session: Session) -> None:
    """The bytes and seconds of HAND_OVER, once."""
    import speed_rows

    if not session.missing("hand_over"):
        return
    try:
        found = speed_rows.cold_hand_over(session.bench)
    except Exception as error:  # noqa: BLE001  too little memory
        keep_error(session, HAND_OVER, error)
        return
    session.store.add("hand_over", case=session.case, **found)
    session.out(f"  {HAND_OVER}: {found['seconds']:.3g} s, {found['in'] / 1e9:.3g} GB in")


def keep_error(session: Session, what: str, error: Exception) -> None:
    """That an error came in the way: its first line in the results; where it is another than want of memory, all of it on
    the terminal."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        traceback.print_exception(error)
    keep_reason(session, what, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300])


def measure_scaling(session: Session) -> None:
    """Steps of both models at several sizes, for the cost model."""
    options, failed = session.options, set()
    for number in range(options.rounds):
        for size in SCALING[options.shapes][options.family]:
            for stage in ("sketch", "render"):
                if (size, stage) in failed or not session.missing("scaling", size=size, stage=stage, round=number):
                    continue
                if session.over():
                    return
                if not _measure_at(session, size, stage, number):
                    failed.add((size, stage))


def _measure_at(session: Session, size: str, stage: str, number: int) -> bool:
    """Single steps of a model at a size; False: they can't be."""
    import speed_rows

    there = dataclasses.replace(session, bench=dataclasses.replace(session.bench, size=cost.Size.parse(size)))
    try:
        model = session.bench.pair(speed_rows.PLAIN)[stage == speed_rows.RENDER]
        seconds = _probe(there, model, speed_rows.CFG[session.options.family])
    except Exception as error:  # noqa: BLE001  too little memory at this size
        keep_error(session, f"a {stage} step at {size}", error)
        return False
    session.store.add("scaling", case=session.case, size=size, stage=stage, round=number, seconds=seconds)
    session.gained = True
    session.out(f"  a {stage} step at {size}: {min(seconds):.3g} s")
    return True


def measure_profile(session: Session) -> None:
    """One render step alone and one of a cooperation: kernels, and what waits for the device, by who asked for it."""
    import speed_profile

    for name in speed_profile.NAMES:
        if not session.missing("profile", what=name):
            continue
        if session.over():
            return
        try:
            found = speed_profile.profiled(session.bench, name)
        except Exception as error:  # noqa: BLE001  too little memory
            keep_error(session, f"a profile of {name}", error)
            continue
        session.store.add("profile", case=session.case, what=name, **found)
        session.gained = True
        session.out(f"  {name}: waits {found['waits']}; the pack's own: {found['own_waits'] or 'none'}")


# --- the command --------------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = arguments(words)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():  # before the host, which can't be loaded for a GPU then
        sys.stderr.write("There is no GPU here that torch can use. Try --device cpu --shapes small.\n")
        return 2
    quality_host.start(cpu=options.device == "cpu", threads=options.threads)
    import speed_measure
    import speed_table

    device = torch.device(options.device)
    try:
        session, selected = begin(options, device)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    session.store.begin(case=session.case, **speed_measure.facts(device))
    session.out(f"{session.case} on {speed_measure.card(device)}, results in {session.store.path.name}")
    with torch.inference_mode():  # as the host runs its nodes, those that load models too
        measure(session, selected)
    session.out("\n".join(speed_table.case_table(session.store.alike(), session.case)))
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
    """(session, rows). Raises ValueError for a size, a row or a results file that can't be, OSError for a results
    file that can't be read."""
    import speed_measure
    import speed_models
    import speed_rows

    sketch, render, size = speed_models.SHAPES[options.shapes][options.family]
    size = cost.Size.parse(options.size) if options.size else size
    bench = speed_rows.Bench(sketch, render, size, device, options.steps)
    case = f"{options.family} {size}, {options.shapes} shapes, {options.steps} steps"
    path = options.results or speed_store.default_path(common.RESULTS, speed_measure.card(device))
    ends = STARTED + 60 * options.minutes if options.minutes else float("inf")
    return Session(options, bench, speed_store.Store(path), case, ends), speed_rows.chosen(options.family, options.rows)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="wan", choices=("wan", "cogvideox"))
    parser.add_argument("--size", default="", metavar="WIDTHxHEIGHTxFRAMES", help="default: the family's 480p")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shapes", default="real", choices=("real", "small", "tiny"), help="of the networks")
    parser.add_argument("--steps", type=int, default=50, help="of a run; the rows' steps are shares of 50")
    parser.add_argument("--rows", default="", help="only rows with these words in their names, separated by |; speed-ups are "
                        "over the steps of sketch only where that row is not among them")
    parser.add_argument("--rounds", type=int, default=3, help="whole runs of every row")
    parser.add_argument("--probe", type=int, default=3, help="single steps that are measured at a time")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all is measured")
    parser.add_argument("--scaling", action="store_true", help="measure steps at several sizes instead of rows")
    parser.add_argument("--profile", action="store_true", help="profile one render step instead of rows")
    parser.add_argument("--results", type=Path, help="default: the card's newest bench/results/speed-<card>-<date>.json")
    parser.add_argument("--threads", type=int, default=os.environ.get("OMP_NUM_THREADS", "0"), help="of the CPU; 0: all")
    options = parser.parse_args(words)
    if options.steps < 6 or options.rounds < 1 or options.probe < 1:
        parser.error("--steps must be 6 or more, --rounds and --probe 1 or more")
    if options.threads < 0 or not 0 <= options.minutes < float("inf"):
        parser.error("--threads and --minutes must be 0 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
