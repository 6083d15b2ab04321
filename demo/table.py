"""table.md from report.json: every number in it is one of the report's."""

from collections.abc import Callable, Mapping
from typing import Any

Report = Mapping[str, Any]  # what demo/film.py writes as report.json
RUNS = {"sketch": "sketch alone", "render": "render alone", "sr": "sketch, then render"}
DISTURBED = 3.0  # times the median step
# SR Sampler's settings that change what a step of the pair costs or gives, and their values for "not used"
OF_THE_PAIR = {"render_cfg": 0, "fade": 0, "teacache": 0, "render_steps": 0, "sketch_steps": "", "sketch_scale": 1}
IDENTICAL = "identical"


def table(report: Report) -> str:
    """The comparison as Markdown."""
    lines = [f"# {' '.join(report['prompt'].split()) or '(empty prompt)'}", ""]
    lines += [_row("", list(RUNS.values())), _row("---", ["---:"] * len(RUNS))]
    rows = [(label, [cell(run, report["runs"][run]) for run in RUNS]) for label, cell in _ROWS]
    lines += [_row(label, cells) for label, cells in rows if set(cells) != {"-"}]
    lines += ["", *_sentences(report)]
    return "\n".join(lines) + "\n"


def _row(label: str, cells: list[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def _number(key: str, form: str) -> Callable[[str, Mapping[str, Any]], str]:
    return lambda _, run: "-" if run[key] is None else format(run[key], form)


def _stages(key: str, form: str) -> Callable[[str, Mapping[str, Any]], str]:
    return lambda _, run: " + ".join(format(run[key][stage], form) for stage in ("sketch", "render") if run[key][stage])


def _likeness(key: str, form: str) -> Callable[[str, Mapping[str, Any]], str]:
    """Likeness to the sketch alone; null stands for no difference at all."""
    return lambda name, run: "-" if name == "sketch" else IDENTICAL if run[key] is None else format(run[key], form)


def _score(key: str) -> Callable[[str, Mapping[str, Any]], str]:
    return lambda _, run: "-" if (run["oracle"] or {}).get(key) is None else f"{run['oracle'][key]:.2f}"


_ROWS: list[tuple[str, Callable[[str, Mapping[str, Any]], str]]] = [
    ("seconds: median step x steps", _number("seconds", ".2f")),
    ("seconds of the sampler node, median turn", _number("wall_seconds", ".2f")),
    ("steps by stage (sketch + render)", _stages("steps", "d")),
    ("seconds by stage (sketch + render)", _stages("stage_seconds", ".2f")),
    ("median seconds of a step by stage", _stages("median_step_seconds", ".3f")),
    ("speed-up over the sketch alone", _number("speed_up", ".1f")),
    ("PSNR to the sketch alone, dB", _likeness("psnr", ".2f")),
    ("SSIM to the sketch alone", _likeness("ssim", ".3f")),
    ("oracle: mean score, 0 to 1", _score("mean")),
    ("oracle: colour", _score("colour")),
    ("oracle: shape", _score("shape")),
    ("oracle: count", _score("count")),
    ("oracle: place", _score("place")),
    ("oracle: motion", _score("motion")),
    ("share of pixels off the palette (0 is clean)", _score("off")),
]


def _sentences(report: Report) -> list[str]:
    settings, host = report["settings"], report["host"]
    lines = [f"Switch: {line}." for line in report["hand_overs"]] or ["Switch: never; the sketch ran all steps."]
    lines += [
        "",
        f"All three runs: seed {settings['seed']}, {settings['steps']} steps, {settings['sampler_name']}, "
        f"{settings['scheduler']}, cfg {settings['cfg']}, the same schedule, one server session "
        f"(ComfyUI {host['version']}, one thread, {host['cpus']} CPU cores). Sketch alone and render alone are "
        f"the host's KSampler. Each was measured after a warm-up run, in {host['turns']} turns with other seeds: "
        "sketch, render, both, sketch, ... The speed-up is the ratio of the first row." + _of_the_pair(settings),
        "",
        report["oracle_note"],
        "",
        f"Words it knows: {', '.join(report['words']['known']) or 'none'}. "
        f"Words it ignored: {', '.join(report['words']['unknown']) or 'none'}.",
    ]
    if disturbed(report):
        slowest = max(run["slowest_step"] for run in report["runs"].values())
        lines += [
            "",
            f"Disturbed: a step took {slowest:.1f} times the median of its stage, so other programs were busy. "
            "Don't rely on the seconds.",
        ]
    return lines


def _of_the_pair(settings: Mapping[str, Any]) -> str:
    """What is set for sketch, then render alone: without guidance a step of the render costs about half."""
    used = [f"{name} {settings[name]}" for name, off in OF_THE_PAIR.items() if settings.get(name, off) != off]
    if not used:
        return ""
    guidance = " (the render without guidance, so half its calls)" if settings.get("render_cfg") == 1 else ""
    return f" Sketch, then render also has {', '.join(used)}{guidance}."


def disturbed(report: Report) -> bool:
    """Whether a step was so slow that something else ran beside it."""
    return any(run["slowest_step"] > DISTURBED for run in report["runs"].values())
