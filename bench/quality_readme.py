"""What docs/evidence.md says: its marked section, made from result lines as the table is."""

from __future__ import annotations

from collections.abc import Sequence

from quality_table import DEFAULT, Line, Results, Stat, attribute, by_prompt, field, gain_share, mean_of, paired, stat

MARKS = ("<!-- evidence: made by python3 bench/quality.py -->", "<!-- /evidence -->")
RUN = (50, "euler")
SHOWN = (
    "sketch only",
    DEFAULT,
    "adaptive, delta 0.002",
    "fixed, step 10",
    "fixed, step 15",
    "fixed, step 20",
    "two KSamplers, step 10",
    "sigma 0.875, re-noised",
    "step 10, fade",
    "step 10, fade, no guidance",
    "step 10, fade, no guidance, 20 render steps",
    "sketch steps 1-8, 20, 35, fade",
    "TeaCache 0.14 on the sketch",
    "EasyCache 0.1 on the sketch",
    "render only",
)


def section(lines: Sequence[Line]) -> list[str]:
    """A short table of the main run, and what differs from the default at its speed."""
    results = Results(lines)
    rows = results.rows(RUN)
    out = [
        "| tiny family, 50 steps, euler | prompts x seeds | share of the sketch's gain | PSNR, dB | speed-up |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in SHOWN:
        if name in rows:
            own = rows[name]
            seeds = len({line["seed"] for line in own})
            share, likeness = gain_share(results, RUN, name), stat(by_prompt(own, field("psnr")))
            cells = [
                f"{len(own) // seeds} x {seeds}",
                _text(share, ".2f"),
                _text(likeness, ".1f"),
                mean_of(own, results.speed_up),
            ]
            out.append(f"| {name} | {' | '.join(cells)} |")
    if DEFAULT in rows and "sigma 0.875, re-noised" in rows:
        score, psnr = (
            paired(rows[DEFAULT], rows["sigma 0.875, re-noised"], value) for value in (attribute("mean"), field("psnr"))
        )
        out += [
            "",
            f"The default minus the switch at sigma 0.875 that noises the video anew: score {_text(score, '+.3f')}, "
            f"PSNR {_text(psnr, '+.2f')} dB on the same prompts. In brackets: 95 % intervals.",
        ]
    return out


def _text(found: Stat | None, form: str) -> str:
    return found.text(form) if found else "-"
