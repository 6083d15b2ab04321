"""What follows from arithmetic and from the paper's seconds alone: predicted, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import cost
from speed_models import elementwise_bytes
from speed_rows import PAPER_REUSE, SKETCH_STEPS, STEPS

Size = cost.Size
A800 = ("A800", 312.0, 2039.0)  # the paper's card: TFLOPS of dense bf16, GB/s of memory
# Dense bf16 with float32 sums, as the makers' data sheets have it.
CARDS = (
    A800, ("RTX 3090", 71.0, 936.0), ("RTX 4090", 165.2, 1008.0), ("RTX 5090", 209.5, 1792.0), ("L40S", 362.0, 864.0),
    ("H20", 148.0, 4000.0), ("H100 SXM", 989.0, 3350.0), ("H200", 989.0, 4800.0),
)  # fmt: skip
# Seconds of 50 steps on the A800 (Tables 2 and 5): network -> size -> seconds.
SECONDS = {
    cost.WAN_14B: {Size(832, 480, 81): 841, Size(1280, 720, 81): 3130},
    cost.WAN_1_3B: {Size(832, 480, 81): 158, Size(1280, 720, 81): 637},
    cost.COGVIDEOX_5B: {Size(720, 480, 49): 213},
    cost.COGVIDEOX_2B: {Size(720, 480, 49): 75},
}
PAIRS = {cost.WAN: (cost.WAN_14B, cost.WAN_1_3B), cost.COGVIDEOX: (cost.COGVIDEOX_5B, cost.COGVIDEOX_2B)}
WAN_480P, WAN_720P = Size(832, 480, 81), Size(1280, 720, 81)


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def paper_rates(network: Any) -> Any:
    """The cost.Rates that the paper's seconds say, on its card."""
    return cost.fit_rates([(cost.forward_flops(network, size).times(2), seconds / STEPS)
                           for size, seconds in SECONDS[network].items()])  # fmt: skip


def paper_steps(family: str, size: Any, factor: float = 1.0) -> Any:
    """cost.StepSeconds on a card so many times as fast as the paper's."""
    rates = tuple(paper_rates(network).times(factor) for network in PAIRS[family])
    return cost.step_seconds(rates, *PAIRS[family], size)


def plan(family: str, cached: bool = False) -> Any:
    """cost.Plan of the paper's run at delta 0.01, with TeaCache on the render or without."""
    reused = next(count for name, count in PAPER_REUSE[family].items() if name.startswith("render"))
    return cost.Plan(STEPS, SKETCH_STEPS[family], render_reused=reused if cached else 0)


def card_table() -> list[str]:
    """Predicted seconds on other cards: the paper's A800 seconds times the ratio of the cards' peaks."""
    heads = ["card", "14B alone, 480p", "with 1.3B", "and TeaCache 0.14", "14B alone, 720p", "with 1.3B"]
    out = [f"Predicted minutes of sampling for {STEPS} steps and 81 frames, not measured: the paper's A800 seconds, by the "
           "cards' dense bf16 peaks. It says what to expect of a card that holds the models and runs as near its peak.",
           "", markdown_row(heads), markdown_row(["---", *["---:"] * 5])]  # fmt: skip
    for name, tflops, _ in CARDS:
        cells = [name]
        for size, cached in ((WAN_480P, (False, True)), (WAN_720P, (False,))):
            step = paper_steps(cost.WAN, size, tflops / A800[1])
            cells.append(f"{STEPS * step.sketch / 60:.1f}")
            cells += [f"{cost.run_seconds(plan(cost.WAN, c), step) / 60:.1f}" for c in cached]
        out.append(markdown_row(cells))
    return out


# --- the predicted part of speed.md -------------------------------------------------------------------------------------


def document() -> list[str]:
    """Everything that is predicted."""
    return ["## Predicted, not measured", "", *work_table(), "", *check_table(), "", *scaling_lines(), "",
            "![Cost over frames](speed_scaling.png)", "", "### What limits further speed", "", *limits(), "",
            "### On your card", "", *card_table()]  # fmt: skip


def work_table() -> list[str]:
    """Operations of a step, and the share of self-attention."""
    heads = ["network", "size", "tokens", "PFLOP a step", "self-attention", "self-attention takes over at"]
    out = ["Operations of one guided step (two forwards), as torch counts them (tests/test_cost.py):", "",
           markdown_row(heads), markdown_row(["---", "---", *["---:"] * 4])]  # fmt: skip
    for network, sizes in SECONDS.items():
        for size in sizes:
            flops = cost.forward_flops(network, size).times(2)
            frames = cost.balance(network) / (size.tokens / size.latent[0])
            out.append(markdown_row([network.name, str(size), str(size.tokens), f"{flops.total / 1e15:.3f}",
                                     f"{flops.attention / flops.total:.0%}",
                                     f"{cost.balance(network):.0f} tokens, {cost.longer(size, frames / size.latent[0]).frames} frames"]))  # fmt: skip
    return out


def check_table() -> list[str]:
    """The paper's runs against the cost model: rates from its plain runs, hand-over step as it says."""
    runs = (("Wan 480p, 10 steps", cost.WAN, WAN_480P, False, 296), ("Wan 480p, 10 steps, TeaCache 0.14", cost.WAN, WAN_480P, True, 215),
            ("Wan 720p, 10 steps", cost.WAN, WAN_720P, False, 1104),
            ("CogVideoX, 15 steps", cost.COGVIDEOX, Size(720, 480, 49), False, 117))  # fmt: skip
    out = ["The paper's A800 seconds against the cost model with rates from its plain runs (TeaCache's reused steps are taken "
           "from the same 215 s, so that row checks nothing; 720p's mean step is not published):", "",
           markdown_row(["run", "paper, s", "cost model, s", "error"]), markdown_row(["---", *["---:"] * 3])]  # fmt: skip
    for name, family, size, cached, seconds in runs:
        found = cost.run_seconds(plan(family, cached), paper_steps(family, size))
        out.append(markdown_row([name, str(seconds), f"{found:.0f}", f"{found / seconds - 1:+.1%}"]))
    return out


def scaling_lines() -> list[str]:
    """What a longer video gains, in words with numbers."""
    parts = []
    for label, size in (("81 frames of 480p", WAN_480P), ("165 frames of 480p", Size(832, 480, 165)),
                        ("81 frames of 720p", WAN_720P), ("165 frames of 720p", Size(1280, 720, 165))):  # fmt: skip
        step = paper_steps(cost.WAN, size)
        saved = STEPS * step.sketch - cost.run_seconds(plan(cost.WAN), step)
        parts.append(f"{label}: {cost.speed_up(plan(cost.WAN), step):.2f}x, {saved / 60:.0f} minutes saved on an A800")
    attention = [n.dim * n.layers for n in PAIRS[cost.WAN]]
    return [
        f"A longer or larger video gains less by ratio and more in minutes: {'; '.join(parts)}. Self-attention costs "
        f"{attention[0] / attention[1]:.2f} times as much in 14B as in 1.3B whatever the length; the rest of a block about "
        f"{_linear_ratio():.1f} times. So the ratio of a step falls towards {attention[0] / attention[1]:.2f}, and 10 steps of "
        f"50 towards {STEPS / (10 + 40 * attention[1] / attention[0]):.2f}x."
    ]


def _linear_ratio() -> float:
    sketch, render = (cost.forward_flops(network, WAN_480P).linear for network in PAIRS[cost.WAN])
    return sketch / render


@lru_cache
def _elementwise(network: Any) -> float:
    """Seconds that all but matrix products would take on the paper's card, at its memory's full speed, in one step."""
    return 2 * elementwise_bytes(network, WAN_480P) / (A800[2] * 1e9)


def ways_on() -> list[tuple[str, float, float]]:
    """(what, seconds of SR, seconds of SR with TeaCache) of Wan 480p on the paper's card, each way alone; today first."""
    sketch, render = (paper_rates(network) for network in PAIRS[cost.WAN])
    today = paper_steps(cost.WAN, WAN_480P)
    attention, products, both = (
        cost.step_seconds((_faster(sketch, *factors), _faster(render, *factors)), *PAIRS[cost.WAN], WAN_480P)
        for factors in ((1, 2), (1.5, 1), (1.5, 2))
    )
    half = paper_steps(cost.WAN, Size(592, 336, 81))  # about half the tokens
    fused = replace(today, sketch=today.sketch - _elementwise(cost.WAN_14B), render=today.render - _elementwise(cost.WAN_1_3B))
    steps = {
        "today": today,
        "self-attention at twice the rate (8-bit or sparse), both models": attention,
        "matrix products at 1.5 times the rate (fp8), both models": products,
        "both of these": both,
        "the sketch at half the tokens, enlarged at the hand-over": replace(today, sketch=half.sketch),
        "the sketch without guidance (a distilled LoRA), render as it is": replace(today, sketch=today.sketch / 2),
        "the render without guidance (render_cfg 1)": replace(today, render=today.render / 2),
        "all elementwise traffic gone (compile; an upper bound)": fused,
    }
    alone, cached = plan(cost.WAN), plan(cost.WAN, True)
    return [(name, cost.run_seconds(alone, step), cost.run_seconds(cached, step)) for name, step in steps.items()]


def _faster(rates: cost.Rates, linear: float, attention: float) -> cost.Rates:
    """Each kind of operation so many times as fast."""
    return cost.Rates(rates.linear * linear, rates.attention * attention)


def limits() -> list[str]:
    """Which part of a run takes which share, and what the ways on would give."""
    out = ["Where the seconds of SR at 10 of 50 steps go on Wan 480p, by the paper's A800 seconds and the operations:", "",
           markdown_row(["part", "SR", "SR with TeaCache 0.14"]), markdown_row(["---", "---:", "---:"])]  # fmt: skip
    shares = {cached: _shares(cached) for cached in (False, True)}
    out += [markdown_row([part, *(f"{shares[cached][part]:.0%}" for cached in (False, True))]) for part in shares[False]]
    ways = ways_on()
    alone = STEPS * paper_steps(cost.WAN, WAN_480P).sketch
    out += ["", markdown_row(["way on, alone", "SR, s", "speed-up", "with TeaCache, s", "speed-up"]),
            markdown_row(["---", *["---:"] * 4])]  # fmt: skip
    out += [markdown_row([name, f"{sr:.0f}", f"{alone / sr:.2f}", f"{tea:.0f}", f"{alone / tea:.2f}"]) for name, sr, tea in ways]
    first, second = sorted((way for way in ways[1:] if way[0] != "both of these"), key=lambda way: way[2])[:2]
    out += ["", f"With TeaCache on the render the sketch's {SKETCH_STEPS[cost.WAN]} steps are what is left. The two ways that "
            f"give most: {first[0]} ({alone / first[2]:.2f}x), and {second[0]} ({alone / second[2]:.2f}x). Those of fewer "
            "tokens and of no guidance change the picture, so they need the quality bench first; faster attention and "
            "products hardly do."]  # fmt: skip
    return out


def _shares(cached: bool) -> dict[str, float]:
    """Part of a run -> share of its seconds; elementwise work is inside the products."""
    run, found = plan(cost.WAN, cached), {}
    for role, network, steps in (("sketch", cost.WAN_14B, run.sketch), ("render", cost.WAN_1_3B, run.render - run.render_reused)):
        rates, flops = paper_rates(network), cost.forward_flops(network, WAN_480P).times(2 * steps)
        moving = steps * _elementwise(network)
        products = flops.linear / rates.linear - moving
        found[f"{role}: self-attention"] = flops.attention / rates.attention
        found[f"{role}: matrix products with weights, cross-attention"] = products
        found[f"{role}: elementwise, at the memory's full speed"] = moving
    total = sum(found.values())
    return {part: seconds / total for part, seconds in found.items()}
