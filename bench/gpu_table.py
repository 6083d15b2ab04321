"""The closing table of bench/gpu.py, and which promises its rows hold. Nothing is reckoned where nothing was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]
MARKS = ("<!-- speed: made by python3 bench/gpu.py --table -->", "<!-- /speed -->")
NOTHING = [
    "Nothing was measured on a GPU yet, so there are no seconds here. `python3 bench/gpu.py` measures them on yours, with random "
    "weights of the true shapes: no model files are needed."
]
GB = 1e9


@dataclass(frozen=True)
class Measured:
    """The rows of one stage, by name: the newest of each round. Those that could not be measured are not among them."""

    rows: dict[str, list[Line]]

    @classmethod
    def of(cls, rows: list[Line], stage: str, part: str = "") -> Measured:
        found: dict[str, dict[int, Line]] = {}
        for row in rows:
            if row["stage"] == stage and row["part"].startswith(part) and row["row"] != "end":
                if "error" in row or "unavailable" in row:
                    continue
                found.setdefault(row["row"], {})[row.get("round", 0)] = row
        return cls({name: list(rounds.values()) for name, rounds in found.items()})

    def step(self, name: str) -> float | None:
        """Median seconds of a step; None where it was not measured."""
        return (
            statistics.median(row_step for row in self.rows[name] for row_step in row["steps"])
            if name in self.rows
            else None
        )

    def run(self, name: str) -> float | None:
        """Median seconds of a whole run."""
        return statistics.median(row["seconds"] for row in self.rows[name]) if name in self.rows else None

    def speed_up(self, name: str) -> float | None:
        """Over the sketch alone, with as many steps."""
        run, alone = self.run(name), self.run("sketch only")
        return alone / run if run and alone else None

    def of_ideal(self, name: str) -> float | None:
        """K t_s + (N - k) t_r over the run's seconds, by the steps of the two models' own runs in the same round: the median of the rounds."""
        both = [
            {row["round"]: row["seconds"] for row in self.rows.get(each, [])} for each in ("sketch only", "render only")
        ]
        found = [
            (row["k"] * both[0][row["round"]] + (row["n"] - row["k"]) * both[1][row["round"]])
            / row["n"]
            / row["seconds"]
            for row in self.rows.get(name, [])
            if all(row["round"] in seconds for seconds in both)
        ]
        return statistics.median(found) if found else None

    def most(self, name: str, of: Callable[[Line], float | None]) -> float | None:
        """The largest of a value that rows of that name have."""
        return max((value for row in self.rows.get(name, []) if (value := of(row)) is not None), default=None)


def by_steps(steps: Measured, k: int, n: int = 50) -> float | None:
    """The speed-up of n steps, k of them by the sketch, over the sketch alone, from measured steps alone."""
    sketch, render = steps.step("sketch step"), steps.step("render step")
    return n * sketch / (k * sketch + (n - k) * render) if sketch and render else None


def table(session: Line, rows: list[Line]) -> list[str]:
    """All of a card's results, as markdown."""
    b, c, e, f, g = (Measured.of(rows, letter) for letter in "bcefg")
    out = [
        f"**{session['card']}**, {session['host']}, {session['versions']}, {session['date']}, commit {session['commit']}."
        f" Matrix products {session['flops'] / 1e12:.3g} TFLOP/s, copies {session['copy'] / GB:.3g} GB/s, bus {session['bus'] / GB:.3g} GB/s."
    ]
    if session["rehearsal"]:
        out = ["**A rehearsal on the CPU, with tiny shapes: no number here says anything of a GPU.**", "", *out]
    for what, measured in (("Wan 480p", b), ("Wan 720p", f), ("CogVideoX", e)):
        out += _steps(what, measured)
    for what, measured in (("Wan 480p", c), ("CogVideoX", e), ("Wan 480p, dynamic VRAM", g)):
        out += _runs(what, measured)
    out += _limits(rows) + _profiles(Measured.of(rows, "d")) + ["", "| promise | measured | |", "| --- | ---: | --- |"]
    for what, value, target, at_most in promises(b, c, e, f, rows):
        out.append(
            f"| {what} | {_number(value)} | {'a rehearsal' if session['rehearsal'] else _held(value, target, at_most)} |"
        )
    return [*out, *_tests(rows), *_missing(rows)]


def promises(
    b: Measured, c: Measured, e: Measured, f: Measured, rows: list[Line]
) -> list[tuple[str, float | None, float, bool]]:
    """(what, measured, target, whether it is the most that may be)."""
    carried = lambda row: row["hand_over"]["in"] / row["render_bytes"] if row["hand_over"]["in"] else None  # noqa: E731
    peaks = [c.most(name, lambda row: row.get("peak")) for name in ("SR", "sketch only", "render only")]
    peak = peaks[0] / max(peaks[1:]) if all(peaks) else None  # type: ignore[operator, type-var]
    profiled = Measured.of(rows, "d")
    return [
        ("Wan 480p, SR, k = 10 of 50, by steps: at least 2.84x", by_steps(b, 10), 2.84, False),
        ("Wan 480p, SR, whole run: at least 2.84x", c.speed_up("SR"), 2.84, False),
        ("Wan 480p, SR with TeaCache: at least 3.91x", c.speed_up("SR, TeaCache"), 3.91, False),
        (
            "Wan 480p, all that helps: at least 6.22x",
            max((c.speed_up(name) or 0 for name in c.rows if name.startswith("all")), default=None),
            6.22,
            False,
        ),
        ("Wan 720p, SR, k = 10 of 50, by steps: at least 2.84x", by_steps(f, 10), 2.84, False),
        ("CogVideoX, SR, k = 15 of 50, by steps: at least 1.82x", by_steps(e, 15), 1.82, False),
        ("Wan 480p, SR: at least 0.99 of k t_s + (N - k) t_r", c.of_ideal("SR"), 0.99, False),
        (
            "hand-over from main memory: at most 1.1x the render's bytes",
            c.most("SR from main memory", carried),
            1.1,
            True,
        ),
        ("peak of SR: at most 1.05x of the larger stage's own", peak, 1.05, True),
        (
            "waits of the pack in a render step: none",
            profiled.most("SR", lambda row: sum(row["own_waits"].values())),
            0,
            True,
        ),
    ]


def _held(value: float | None, target: float, at_most: bool) -> str:
    if value is None:
        return "not measured"
    return "held" if (value <= target if at_most else value >= target) else "**not held**"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _steps(what: str, measured: Measured) -> list[str]:
    names = [name for name, found in measured.rows.items() if "steps" in found[0]]
    if not names:
        return []
    sketch = measured.step("sketch step")
    out = [
        "",
        f"| {what}, {measured.rows[names[0]][0]['size']} | s a step | of the sketch's | TFLOP/s | peak GB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        seconds, row = measured.step(name), measured.rows[name][-1]
        share = seconds / sketch if seconds and sketch else None
        out.append(
            f"| {name} ({row['dtype']}) | {_number(seconds)} | {_number(share)} | {_number(row['flops'] / 1e12) if 'flops' in row else ''} | {_gb(row.get('peak'))} |"
        )
    return out


def _runs(what: str, measured: Measured) -> list[str]:
    names = [name for name, found in measured.rows.items() if "n" in found[0]]
    if not names:
        return []
    out = [
        "",
        f"| {what}, whole runs | sketch steps of all | reused | s, each run | speed-up | of the ideal | peak GB | switch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in [*names, *(name for name in measured.rows if name == "SR from main memory")]:
        found = measured.rows[name]
        row = found[-1]
        cells = [f"{row['k']} of {row['n']}", _number(row.get("reused"))] if "n" in row else ["", ""]
        plain = name in ("SR", "two KSamplers")
        cells += [
            ", ".join(_number(each["seconds"], 4) for each in found),
            _number(measured.speed_up(name)) if "n" in row else "",
            _number(measured.of_ideal(name)) if plain else "",
            _gb(measured.most(name, lambda row: row.get("peak"))),
        ]
        over = row.get("hand_over")
        out.append(
            f"| {name} | {' | '.join(cells)} | "
            + (f"{over['seconds']:.3g} s, {over['in'] / GB:.3g} GB in" if over else "")
            + " |"
        )
    return out


def _gb(value: float | None) -> str:
    return "" if value is None else f"{value / GB:.1f}"


def _limits(rows: list[Line]) -> list[str]:
    out = []
    for part in ("limits, classic", "limits, dynamic"):
        for name, (*_, row) in Measured.of(rows, "a", part).rows.items():
            said = f": {row['said']}" if row["said"] else ""
            out.append(
                f"- {name} free ({part.split(', ')[1]} memory): {row['status']}, {row['seconds']:.3g} s, peak {_gb(row.get('peak')) or '?'} GB{said}"
            )
    return ["", "3 steps of Wan 480p, 33 frames, with little memory:", "", *out] if out else []


def _profiles(measured: Measured) -> list[str]:
    out = []
    for name, (*_, row) in measured.rows.items():
        largest = ", ".join(
            f"{kernel[:50]} {seconds / row['seconds']:.0%}" for kernel, seconds in list(row["kernels"].items())[:3]
        )
        waits = ", ".join(f"{times} {what}" for what, times in row["waits"].items()) or "none"
        own = ", ".join(row["own_waits"]) or "none"
        out.append(
            f"- a render step, {name}: {row['seconds']:.3g} s, kernels {row['busy']:.0%} of it ({largest}); waits: {waits}; the pack's own: {own}"
        )
    return ["", *out] if out else []


def _tests(rows: list[Line]) -> list[str]:
    newest = {(row["part"], row["row"]): row for row in rows if "outcome" in row}
    out = []
    for part in dict.fromkeys(part for part, _ in newest):
        outcomes = [row["outcome"] for (of, _), row in newest.items() if of == part]
        failed = [
            name.split("::")[-1] for (of, name), row in newest.items() if of == part and row["outcome"] == "failed"
        ]
        out.append(
            f"- {part}: {outcomes.count('passed')} of {len(outcomes)} passed"
            + (f"; failed: {', '.join(failed)}" if failed else "")
        )
    return ["", "The pack's tests:", "", *out] if out else []


def _missing(rows: list[Line]) -> list[str]:
    """What could not be measured, and which parts did not come to their end."""
    measured = {(row["stage"], row["row"]) for row in rows if "error" not in row and "unavailable" not in row}
    newest = {(row["stage"], row["part"], row["row"]): row for row in rows}
    out = []
    for (stage, part, name), row in newest.items():
        why = row.get("error") or row.get("unavailable")
        if why and "outcome" not in row and (stage, name) not in measured:
            out.append(f"- {stage}, {name}: {why.strip().splitlines()[0][:300]}")
        elif name == "end" and row["why"] != "whole":
            out.append(f"- {stage}, {part}: {row['why']}")
    return ["", "Not measured:", "", *out] if out else []
