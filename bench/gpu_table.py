"""The closing table of bench/gpu.py, and which promises its rows hold: from measured rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Line = dict[str, Any]
MARKS = ("<!-- speed: made by python3 bench/gpu.py --table -->", "<!-- /speed -->")
NOTHING = [
    "Nothing was measured on a GPU yet, so there are no seconds here. `python3 bench/gpu.py` measures them on yours, "
    "with random weights of the true shapes: no model files are needed."
]
GB = 1e9


@dataclass(frozen=True)
class Measured:
    """The rows of one stage, by name: the newest of each round. Those that could not be measured are not among them."""

    rows: dict[str, list[Line]]

    @classmethod
    def of(cls, rows: list[Line], stage: str) -> Measured:
        """Those of this stage."""
        found: dict[str, dict[int, Line]] = {}
        for row in rows:
            if row["stage"] == stage and not {"error", "unavailable", "why", "outcome"} & row.keys():
                found.setdefault(row["row"], {})[row.get("round", 0)] = row
        return cls({name: list(rounds.values()) for name, rounds in found.items()})

    def step(self, name: str) -> float | None:
        """Median seconds of a step; None where it was not measured."""
        return median(each for row in self.rows[name] for each in row["steps"]) if name in self.rows else None

    def run(self, name: str) -> float | None:
        """Median seconds of a whole run."""
        return median(row["seconds"] for row in self.rows[name]) if name in self.rows else None

    def speed_up(self, name: str) -> float | None:
        """Over the sketch alone, with as many steps."""
        run, alone = self.run(name), self.run("sketch only")
        return alone / run if run and alone else None

    def by_steps(self, k: int, n: int = 50) -> float | None:
        """The speed-up of n steps, k of them by the sketch, over the sketch alone, from measured steps alone."""
        sketch, render = self.step("sketch step"), self.step("render step")
        return n * sketch / (k * sketch + (n - k) * render) if sketch and render else None

    def of_ideal(self, name: str) -> float | None:
        """K t_s + (N - k) t_r over the run's seconds, by the models' own runs of the same round: the rounds' median."""
        sketch, render = (
            {row["round"]: row["seconds"] / row["n"] for row in self.rows.get(f"{stage} only", [])}
            for stage in ("sketch", "render")
        )
        found = [
            (row["k"] * sketch[row["round"]] + (row["n"] - row["k"]) * render[row["round"]]) / row["seconds"]
            for row in self.rows.get(name, [])
            if row["round"] in sketch and row["round"] in render
        ]
        return median(found) if found else None

    def most(self, name: str, of: Callable[[Line], float | None]) -> float | None:
        """The largest of a value that rows of that name have."""
        return max((value for row in self.rows.get(name, []) if (value := of(row)) is not None), default=None)


def table(facts: Line, rows: list[Line]) -> list[str]:
    """All of a card's results, as markdown. facts: what all rows were measured with."""
    b, c, d, e, f, g = (Measured.of(rows, letter) for letter in "bcdefg")
    out = [
        " ".join([f"**{facts['card']}**,", *(f"{facts[of]}," for of in ("host", "versions", "date")), facts["commit"]])
    ]
    if facts["rehearsal"]:
        out = ["**A rehearsal on the CPU, with tiny shapes: no number here says anything of a GPU.**", "", *out]
    for what, measured in (("Wan 480p", b), ("Wan 720p", f), ("CogVideoX", e)):
        out += steps(what, measured)
    for what, measured in (("Wan 480p", c), ("CogVideoX", e), ("Wan 480p, dynamic VRAM", g)):
        out += runs(what, measured)
    held = [
        (what, number(value), "a rehearsal" if facts["rehearsal"] else verdict(value, target, at_most))
        for what, value, target, at_most in promises(b, c, d, e, f)
    ]
    out += grid(("promise", "measured", ""), held)
    for title, items in (
        ("3 steps of Wan 480p, 33 frames, with little memory; a late render step:", others(rows)),
        ("The pack's tests:", tests(rows)),
        ("Not measured:", missing(rows)),
    ):
        if listed := [f"- {item}" for item in items]:
            out += ["", title, "", *listed]
    return out


Promise = tuple[str, float | None, float, bool]  # what, measured, target, whether that is the most that may be


def promises(b: Measured, c: Measured, d: Measured, e: Measured, f: Measured) -> list[Promise]:
    """What the paper and this pack promise, by stage."""
    peaks = [c.most(name, lambda row: row.get("peak")) for name in ("SR", "sketch only", "render only")]
    known = [peak for peak in peaks if peak]
    helped = [found for name in c.rows if name.startswith("all") and (found := c.speed_up(name))]
    return [
        ("Wan 480p, SR, k = 10 of 50, by steps: at least 2.84x", b.by_steps(10), 2.84, False),
        ("Wan 480p, SR, whole run: at least 2.84x", c.speed_up("SR"), 2.84, False),
        ("Wan 480p, SR with TeaCache: at least 3.91x", c.speed_up("SR, TeaCache"), 3.91, False),
        ("Wan 480p, all that helps: at least 6.22x", max(helped, default=None), 6.22, False),
        ("Wan 720p, SR, k = 10 of 50, by steps: at least 2.84x", f.by_steps(10), 2.84, False),
        ("CogVideoX, SR, k = 15 of 50, by steps: at least 1.82x", e.by_steps(15), 1.82, False),
        ("Wan 480p, SR: at least 0.99 of k t_s + (N - k) t_r", c.of_ideal("SR"), 0.99, False),
        ("switch from main memory: at most 1.1x the render's bytes", c.most("SR from main memory", carried), 1.1, True),
        (
            "peak of SR: at most 1.05x of the larger stage's own",
            known[0] / max(known[1:]) if len(known) == len(peaks) else None,
            1.05,
            True,
        ),
        ("waits of the pack in a render step: none", d.most("SR", lambda row: sum(row["own_waits"].values())), 0, True),
    ]


def carried(row: Line) -> float | None:
    """Bytes that came at the switch, over the render's; None where nothing moves, as on a CPU."""
    return row["hand_over"]["in"] / row["render_bytes"] if row["hand_over"]["in"] else None


def verdict(value: float | None, target: float, at_most: bool) -> str:
    """Whether a promise is held."""
    if value is None:
        return "not measured"
    return "held" if (value <= target if at_most else value >= target) else "**not held**"


def number(value: float | None, unit: float = 1.0) -> str:
    """Three digits; nothing for None."""
    return "" if value is None else f"{value / unit:.3g}"


def grid(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A markdown table after an empty line; nothing without rows."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines)] if rows else []


def steps(what: str, measured: Measured) -> list[str]:
    """The table of single steps."""
    found = {name: rows[-1] for name, rows in measured.rows.items() if "steps" in rows[-1]}
    size = next((row["size"] for row in found.values()), "")
    return grid(
        (f"{what}, {size}", "s a step", "peak GB"),
        [(name, number(measured.step(name)), number(row.get("peak"), GB)) for name, row in found.items()],
    )


def runs(what: str, measured: Measured) -> list[str]:
    """The table of whole runs, and of the run that starts with nothing on the device."""
    lines = []
    for name, found in measured.rows.items():
        row, over = found[-1], found[-1].get("hand_over")
        if "steps" in row:
            continue
        whole = "n" in row
        lines.append(
            (
                name,
                f"{row['k']} of {row['n']}" if whole else "",
                number(row.get("reused")),
                ", ".join(number(each["seconds"]) for each in found),
                number(measured.speed_up(name)) if whole else "",
                number(measured.of_ideal(name)) if name in ("SR", "two KSamplers") else "",
                number(measured.most(name, lambda row: row.get("peak")), GB),
                f"{number(over['seconds'])} s, {number(over['in'], GB)} GB in" if over else "",
            )
        )
    heads = "sketch steps", "reused", "s, each run", "speed-up", "of the ideal", "peak GB", "switch"
    return grid((f"{what}, whole runs", *heads), lines)


def others(rows: list[Line]) -> Iterator[str]:
    """Runs with little memory, and where a step's time goes."""
    for row in rows:
        if not ({"status", "busy"} & row.keys()):
            continue
        told = {name: row[name] for name in ("status", "said", "waits", "own_waits") if row.get(name)}
        told |= {"seconds": number(row["seconds"]), "peak GB": number(row.get("peak"), GB)}
        if "kernels" in row:
            largest = list(row["kernels"].items())[:3]
            told["kernels"] = ", ".join(f"{kernel[:50]} {seconds / row['seconds']:.0%}" for kernel, seconds in largest)
        yield f"{row['part']}, {row['row']}: " + "; ".join(f"{name} {value}" for name, value in told.items() if value)


def tests(rows: list[Line]) -> Iterator[str]:
    """How many of the pack's tests passed in each part."""
    newest = {(row["part"], row["row"]): row["outcome"] for row in rows if "outcome" in row}
    for part in dict.fromkeys(part for part, _ in newest):
        outcomes = {name.split("::")[-1]: outcome for (of, name), outcome in newest.items() if of == part}
        failed = ", ".join(name for name, outcome in outcomes.items() if outcome == "failed")
        passed = list(outcomes.values()).count("passed")
        yield f"{part}: {passed} of {len(outcomes)} passed" + (f"; failed: {failed}" if failed else "")


def missing(rows: list[Line]) -> Iterator[str]:
    """What could not be measured, and which parts did not come to their end."""
    newest = {(row["stage"], row["part"], row["row"], row.get("round")): row for row in rows if "outcome" not in row}
    for (stage, part, name, _), row in newest.items():
        if why := row.get("error") or row.get("unavailable"):
            yield f"{stage}, {name}: {why.strip().splitlines()[0][:300]}"
        elif row.get("why", "whole") != "whole":
            yield f"{stage}, {part}: {row['why']}"
