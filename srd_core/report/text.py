"""A report in words: for the log, the picture and the summary."""

from __future__ import annotations

from .data import HandOver, Report
from .figures import medians, speed_up

NOT_RUN = (
    "No run yet, or one without steps (denoise 0). With Sketch-Render Model, connect the sampler's latent to the "
    "Inspector's `after`, so that it waits for the run."
)


def describe_hand_over(hand_over: HandOver, report: Report) -> str:
    """The rest of a sentence that begins with "switched"."""
    steps, switch = len(report.sigmas) - 1, hand_over.rule or report.switch
    latest = "latest step of an adaptive switch"  # in the first version a share of the steps, whatever switch_sigma was
    if switch.get("max_step"):
        latest = f"latest step: max_step is {switch['max_step']}"
    elif "switch_sigma" in switch and hand_over.sigma < float(switch["switch_sigma"]):
        latest = f"latest step: below switch_sigma {switch['switch_sigma']}"
    why = {
        "criterion": f"criterion: D falls by {hand_over.fall or 0:.4g}, delta is {switch.get('delta', 0):g}",
        "earliest": f"earliest step: the composition had settled before fix_step {switch.get('fix_step')} allowed it",
        "latest": latest,
        "step": f"step: switch_step is {switch.get('switch_step')}",
        "sigma": f"sigma: below switch_sigma {switch.get('switch_sigma')}",
        "listed": f"sketch_steps: {switch.get('sketch_steps')}",
    }.get(hand_over.reason, hand_over.reason)
    return (
        f"to the {hand_over.to} after step {hand_over.after_step} of {steps} "
        f"(sigma {hand_over.sigma:.4g}, {hand_over.percent:.0f} % of the steps; {why})"
    )


def describe_fade(hand_over: HandOver) -> str:
    """A few words; "" for a cut."""
    if not hand_over.fade:
        return ""
    half = next((i for i, share in enumerate(hand_over.fade) if share < 0.5), len(hand_over.fade))
    return (
        f"; fade: from {100 * hand_over.fade[0]:.0f} % of the last step's velocity, below half after {half} "
        f"step{'s' * (half != 1)}"
    )


def describe_rest(report: Report) -> str:
    """One sentence; "" where the schedule is walked as it was given."""
    steps = len(report.sigmas) - 1
    if not report.hand_overs or report.given_steps in (0, steps):
        return ""
    k = report.hand_overs[0].after_step
    where = f" (the rest after step {k} is walked in {steps - k})" if len(report.hand_overs) == 1 else ""
    return f"Steps: {steps} in the place of {report.given_steps}{where}"


def describe_memory(hand_over: HandOver) -> str:
    """One line: what was free and what was loaded around a hand-over, by the host's accounting."""
    moments = {"before": "before", "at": "at the switch", "after": "after it"}
    shown = [moment for moment in moments if moment in hand_over.memory]
    names = list(dict.fromkeys(name for moment in shown for name in hand_over.memory[moment]))
    sizes = (
        f"{moments[moment]} {' / '.join(f'{hand_over.memory[moment].get(name, 0) / 1e9:.1f}' for name in names)}"
        for moment in shown
    )
    return f"Memory, GB ({' / '.join(names)}): {', '.join(sizes)}"


def describe_need(report: Report) -> str:
    """One line: what each stage needs by the host's own estimate; "" where it was not reckoned."""
    needs = [
        f"{s.name} {_bytes(s.weight_bytes)} of weights and {_bytes(s.step_bytes)} for a step"
        for s in report.stages
        if s.weight_bytes
    ]
    device = f"; the device has {_bytes(report.device_bytes)}" if report.device_bytes else ""
    return f"Memory, reckoned before the run: {', '.join(needs)}{device}" if needs else ""


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def describe_speed_up(report: Report) -> str:
    """A few words; "" where it is not known."""
    times = speed_up(report)
    if times is None:
        return ""
    alone = f"the {report.stages[0].name} alone (estimated)"
    return f"{times:.2f}x as fast as {alone}" if round(times, 2) >= 1 else f"{times:.2f}x: slower than {alone}"


def summarize(report: Report) -> str:
    """The run in a few lines."""
    if report.status == "not run":
        return NOT_RUN
    lines = [f"{stage.name.capitalize()}: {stage.model}" for stage in report.stages]
    lines += [describe_need(report), f"Status: {report.status} {report.error}".rstrip()]
    for h in report.hand_overs:
        lines.append(f"Switched {describe_hand_over(h, report)}, loaded in {h.seconds:.2f} s{describe_fade(h)}")
    lines.append(describe_rest(report))
    first = {h.to: h for h in reversed(report.hand_overs) if h.memory}  # of each stage
    lines += [describe_memory(h) for h in report.hand_overs if first.get(h.to) is h]
    if not report.hand_overs:
        lines.append(f"Switch: {report.never()}")
    seconds = medians(report)
    for stage in report.stages:
        count, each = report.count(stage.name), seconds.get((stage.name, False))
        cost = f", {each:.3g} s a step" if each else ""
        table, reused = stage.teacache.get("table"), report.reused(stage.name)
        by_others = f" ({reused} of them reused by a cache)" if reused and not table else ""
        lines.append(f"{stage.name.capitalize()}: {count} steps{by_others}, {stage.seconds:.3g} s{cost}")
        if table:
            lines.append(
                f"TeaCache on the {stage.name}: {reused} of {count} steps reused, "
                f"threshold {stage.teacache['threshold']:g}, coefficients of {table}"
            )
    lines.append(f"Speed: {speed}" if (speed := describe_speed_up(report)) else "")
    return "\n".join([line for line in lines if line] + report.notes)
