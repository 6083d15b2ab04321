"""Where the adaptive rule switches in other schedules: replayed by the pack's own rule on recorded changes.

python3 bench/rule.py    the table in bench/results/rule.md again, from bench/results/rule_curves.json
"""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import common

if __name__ == "__main__":
    common.run_in_host()

import hosting

CURVES = common.RESULTS / "rule_curves.json"
MARKS = ("<!-- tables: made by python3 bench/rule.py -->", "<!-- end of the tables -->")
DIGITS = 1e6  # changes are kept as whole numbers of millionths
PAPER_STEPS, WAN, NEAR = 50, 5.0, 3  # the schedule that the rule is set for; NEAR: steps that the promise allows
DEMO = {"delta": 0.003, "fix_step": 10, "switch_sigma": 0.82}  # the tiny family's workflow

criterion, route = (hosting.module(f"srd_core.{name}") for name in ("criterion", "route"))

# A schedule with its sigmas and changes[lag - 1][step][prompt] of a prediction from each of the last few.
Recorded = dict[str, Any]


def name_of(row: Recorded) -> str:
    """A schedule as the table names it."""
    part = f", {row['part']}" if row["part"] else ""  # what a KSampler Advanced, a denoise or a SplitSigmas leaves
    return f"{row['scheduler']} {row['steps']}, shift {row['shift']:g}{part}"


def timestep(sigma: float) -> float:
    """Where a noise level lies in the uniform timesteps of Wan's shift, 1 to 0."""
    return sigma / (WAN - (WAN - 1) * sigma)


def switched_at(row: Recorded, prompt: int, **settings: Any) -> float:
    """Noise level at which the render takes over by the pack's rule; the last recorded one if it never does."""
    sigmas, changes = row["sigmas"], row["changes"]
    places = [timestep(sigma) for sigma in sigmas[:-1]]
    pair = route.Pair(route.SKETCH, route.RENDER, route.Switch(**{"switch_sigma": 0.0, **settings}))
    way, seen = route.Route(pair, sigmas[:-1], places), 0
    for step in range(len(sigmas) - 1):
        if way.turn(step):
            return float(sigmas[step])
        if step >= len(changes[0]):
            break
        if step and PAPER_STEPS * (places[seen] - places[step]) < criterion.NEAREST:
            continue  # the rule leaves it out, and compares the next with the one before
        known = 0 < step - seen <= len(changes)
        way.note(step, [math.tanh(changes[step - seen - 1][step][prompt] / DIGITS)] if known else None)
        seen = step
    return float(sigmas[-1])


def steps_of(row: Recorded, sigma: float) -> float:
    """That noise level in steps of the row's own schedule."""
    sigmas = row["sigmas"]
    after = next((i for i, level in enumerate(sigmas) if level <= sigma), len(sigmas) - 1)
    return after - (sigma - sigmas[after]) / (sigmas[after - 1] - sigmas[after]) if after else 0.0


def kept(row: Recorded, sigma: float, whole: Recorded, expected: float) -> bool:
    """Whether a switch lies within NEAR steps of where the 50 steps have it, in steps of either schedule."""
    expected = max(expected, row["sigmas"][-1])  # a part may end before it
    return min(abs(steps_of(each, sigma) - steps_of(each, expected)) for each in (row, whole)) <= NEAR + 1e-6


def report(recorded: Recorded) -> list[str]:
    """The table, as lines of Markdown."""
    rows = {name_of(row): row for row in recorded["schedules"]}
    prompts = range(len(recorded["schedules"][0]["changes"][0][1]))
    levels = {name: sorted(switched_at(row, prompt) for prompt in prompts) for name, row in rows.items()}
    medians = {name: statistics.median(found) for name, found in levels.items()}
    lines, counts = [], [0, 0]
    for name, row in rows.items():
        wholes = [f"simple {PAPER_STEPS}, shift {shift:g}" for shift in (row["shift"], WAN)]
        hold = [kept(row, medians[name], rows[whole], medians[whole]) for whole in wholes]
        counts = [count + held for count, held in zip(counts, hold)]
        end = row["sigmas"][-1]
        low, high = (f"{sigma:.2f}" if sigma > end else "never" for sigma in (levels[name][1], levels[name][-2]))
        place = PAPER_STEPS * (1 - timestep(medians[name]))
        demo = statistics.fmean(switched_at(row, prompt, **DEMO) for prompt in prompts)
        cells = [name, f"{medians[name]:.3f} ({low}-{high})", f"{place:.1f}", *("yes" if h else "no" for h in hold)]
        lines.append([*cells, f"{demo:.3f}"])
    known = [recorded.get(name, "commit not recorded") for name in ("date", "machine", "host", "versions", "commit")]
    heads = ["schedule", "sigma at the switch", "in 50 steps of shift 5", "kept, own shift", "kept, shift 5"]
    heads += ["sigma, set as in the demo"]
    return [
        f"{', '.join(known)}, `{recorded['command']}`; cfg {recorded['cfg']:g}, {len(prompts)} prompts.",
        "",
        f"**Of {len(rows)} schedules {counts[0]} switch within three steps of where 50 steps of the same shift do, "
        f"{counts[1]} within three of where those of shift 5 do.**",
        "",
        *(f"| {' | '.join(line)} |" for line in (heads, ["---", *["---:"] * (len(heads) - 1)], *lines)),
    ]


def main() -> None:
    """The command."""
    tables = report(json.loads(CURVES.read_text("utf-8")))
    if not common.update_readme(common.RESULTS / "rule.md", MARKS, tables):
        print("\n".join(tables))


if __name__ == "__main__":
    main()
