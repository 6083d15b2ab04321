"""What the README says of the evidence: its marked section, made from result lines as the table is."""

from __future__ import annotations

from collections.abc import Sequence

from quality_table import Line, Results, Stat, attribute, by_prompt, field, gain_share, place, stat

MARKS = ("<!-- evidence: made by python3 bench/quality.py -->", "<!-- /evidence -->")
RUN = (50, "euler")
DEFAULT = "adaptive, delta 0.01"
SHOWN = ("sketch only", "adaptive, delta 0.002", DEFAULT, "adaptive, delta 0.03", "fixed, step 10", "sigma 0.875, re-noised",
         "TeaCache 0.14 on the sketch", "EasyCache 0.1 on the sketch", "render only")  # fmt: skip


def section(lines: Sequence[Line]) -> list[str]:
    """A short table of the main run, and what differs from the default at its speed."""
    results = Results(lines)
    rows = results.rows(RUN)
    out = ["| tiny family, 50 steps, euler | prompts x seeds | share of the sketch's gain | PSNR, dB | speed-up |",
           "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for name in SHOWN:
        if name in rows:
            own = rows[name]
            seeds = len({line["seed"] for line in own})
            share, likeness, speed = gain_share(results, RUN, name), stat(by_prompt(own, field("psnr"))), stat(by_prompt(own, results.speed_up))
            cells = [f"{len(own) // seeds} x {seeds}", _text(share, ".2f"), _text(likeness, ".1f"), f"{speed.mean:.2f}" if speed else "-"]
            out.append(f"| {name} | {' | '.join(cells)} |")
    if DEFAULT in rows and "sigma 0.875, re-noised" in rows:
        score, psnr = (paired(rows[DEFAULT], rows["sigma 0.875, re-noised"], name) for name in ("mean", "psnr"))
        out += ["", f"The default minus the switch at sigma 0.875 that noises the video anew: score {_text(score, '+.3f')}, "
                f"PSNR {_text(psnr, '+.2f')} dB on the same prompts. In brackets: 95 % intervals."]  # fmt: skip
    return out


def paired(own: Sequence[Line], others: Sequence[Line], name: str) -> Stat | None:
    """Mean difference of a value on the prompts and seeds that both rows have."""
    value = field("psnr") if name == "psnr" else attribute(name)
    theirs = {place(line): value(line) for line in others}
    found = {}
    for number, lines in _by_number(own).items():
        differences = [a - b for line in lines if (a := value(line)) is not None and (b := theirs.get(place(line))) is not None]
        if differences:
            found[number] = sum(differences) / len(differences)
    return stat(found)


def _by_number(lines: Sequence[Line]) -> dict[int, list[Line]]:
    found: dict[int, list[Line]] = {}
    for line in lines:
        found.setdefault(line["number"], []).append(line)
    return found


def _text(found: Stat | None, form: str) -> str:
    return found.text(form) if found else "-"
