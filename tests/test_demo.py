"""The demo: one command, started as a person starts it, leaves videos, plot, report and table that agree."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import film
import numpy as np
import progress
import psutil
import pytest
import table
import video
from hosting import REPOSITORY
from PIL import Image

RUN = [sys.executable, str(REPOSITORY / "demo" / "run.py")]
STEPS, SIDE = 8, 64  # of 50 and 128: decoding is what costs
# What a shell or make would read, if it were given the chance: quotes, substitutions, variables, separators.
PROMPT = """a red circle moves left above a blue square; it's "fabulous" $(touch x) `ls` $HOME \\dragon # 100 % größe"""


def environment() -> dict[str, str]:
    """This process's environment, so that the same host is found, without a prompt."""
    unwanted = ("PROMPT", "MAKEFLAGS", "MAKELEVEL")
    return {name: value for name, value in os.environ.items() if name not in unwanted}


Made = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`make demo PROMPT=...` with few steps and pixels: its output folder and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    saved = json.loads((REPOSITORY / "demo" / "demo.json").read_text("utf-8"))
    (size,) = (node["widgets_values"] for node in saved["nodes"] if node["type"] == "EmptyHunyuanLatentVideo")
    size[:2] = SIDE, SIDE
    (folder / "workflow.json").write_text(json.dumps(saved), "utf-8")
    # The Makefile lets everybody name the Python; here one that adds the test's settings.
    python = folder / "python"
    settings = f"--steps {STEPS} --output '{folder / 'output'}' --workflow '{folder / 'workflow.json'}'"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\" {settings}\n", "utf-8")
    python.chmod(0o755)
    command = ["make", "-C", str(REPOSITORY), "demo", f"PYTHON={python}", f"PROMPT={PROMPT}"]
    ran = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return folder / "output", ran


@pytest.fixture
def report(made: Made) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made[0] / "report.json").read_text("utf-8"))
    return found


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_leaves_the_files_it_promises_and_videos_that_can_be_seen(made: Made) -> None:
    assert {path.name for path in made[0].iterdir()} == set(film.FILES) - {"server.log"}
    for name in film.VIDEOS:
        with av.open(str(made[0] / name)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == video.LOOPS * 2 * (9 + video.HOLD)
        assert frames[0].shape[0] >= 3 * SIDE and frames[0].shape[1] >= 3 * SIDE
    assert len({(made[0] / name).read_bytes() for name in film.VIDEOS}) == 4
    with Image.open(made[0] / "switch.png") as plot:  # the Inspector's
        assert plot.size == (1120, 720)


def test_the_command_says_what_it_does_and_the_shell_runs_nothing_of_the_prompt(made: Made) -> None:
    said = made[1].stderr
    assert "Words it knows: a, red, circle, moves, left, above, blue, square" in said
    (ignored,) = re.findall(r"Words it ignores: (.*?)\.", said)
    assert {"fabulous", "touch", "dragon", "100", "größe"} <= set(ignored.split(", "))
    for label in ("1/3 sketch alone: KSampler", "2/3 render alone: KSampler", "3/3 sketch, then render: SR Sampler"):
        assert label in said
    for turn in range(2, 6):  # in turns, so that a busy minute counts for all three
        assert f"turn {turn} of 5, sketch alone" in said and f"turn {turn} of 5, sketch, then render" in said
    assert (made[0] / "table.md").read_text("utf-8").strip() in made[1].stdout
    assert not (REPOSITORY / "x").exists()


def test_the_report_says_what_ran(report: Mapping[str, Any]) -> None:
    own = report["sr_report"]
    assert own["status"] == "done" and len(own["steps"]) == STEPS
    assert own["stages"][0]["model"].startswith("tiny_wan_sketch")
    assert report["prompt"] == PROMPT  # every character, unharmed by make and shell
    runs = report["runs"]
    assert runs["sketch"]["steps"] == {"sketch": STEPS, "render": 0}
    assert runs["render"]["steps"] == {"sketch": 0, "render": STEPS}
    assert sum(runs["sr"]["steps"].values()) == STEPS and all(runs["sr"]["steps"].values())
    assert len(report["hand_overs"]) == len(own["hand_overs"]) == 1
    assert runs["sketch"]["psnr"] is None and runs["sketch"]["ssim"] == 1.0
    assert runs["sr"]["psnr"] is not None and 0 < runs["sr"]["ssim"] <= 1
    for run in runs.values():
        by_stage = [run["steps"][stage] * run["median_step_seconds"][stage] for stage in ("sketch", "render")]
        assert run["seconds"] == pytest.approx(sum(by_stage)) and run["wall_seconds"] > 0 and run["slowest_step"] >= 1
    assert runs["sr"]["speed_up"] == pytest.approx(runs["sketch"]["seconds"] / runs["sr"]["seconds"])
    assert set(runs["sr"]["oracle"]) >= {"mean", "colour", "shape", "count", "motion", "place", "off"}


def test_every_number_of_the_table_is_the_report_s(made: Made, report: Mapping[str, Any]) -> None:
    text = (made[0] / "table.md").read_text("utf-8")
    lines = [re.findall(r"\| ([^|]*?) (?=\|)", line) for line in text.splitlines()]
    rows = {cells[0]: cells[1:] for cells in lines if cells}
    runs = [report["runs"][name] for name in ("sketch", "render", "sr")]
    assert rows["seconds: median step x steps"] == [f"{run['seconds']:.2f}" for run in runs]
    assert rows["seconds of the sampler node, median turn"] == [f"{run['wall_seconds']:.2f}" for run in runs]
    assert rows["speed-up over the sketch alone"] == [f"{run['speed_up']:.1f}" for run in runs]
    assert rows["PSNR to the sketch alone, dB"] == ["-", *(f"{run['psnr']:.2f}" for run in runs[1:])]
    assert rows["SSIM to the sketch alone"] == ["-", *(f"{run['ssim']:.3f}" for run in runs[1:])]
    assert rows["oracle: mean score, 0 to 1"] == [f"{run['oracle']['mean']:.2f}" for run in runs]
    both = runs[2]
    assert rows["steps by stage (sketch + render)"][2] == f"{both['steps']['sketch']} + {both['steps']['render']}"
    seconds = both["stage_seconds"]
    assert rows["seconds by stage (sketch + render)"][2] == f"{seconds['sketch']:.2f} + {seconds['render']:.2f}"
    steps = both["median_step_seconds"]
    assert rows["median seconds of a step by stage"][2] == f"{steps['sketch']:.3f} + {steps['render']:.3f}"
    (switch,) = report["sr_report"]["hand_overs"]
    assert f"after step {switch['after_step']} of {STEPS}, at sigma {switch['sigma']:.4f}" in text
    assert f"reason: {switch['reason']}" in text
    assert "then render also has render_cfg 1, fade 1.1 (the render without guidance, so half its calls)." in text


def test_a_step_of_three_times_the_median_says_not_to_rely_on_the_seconds(report: dict[str, Any]) -> None:
    runs = {name: run | {"slowest_step": 1.5} for name, run in report["runs"].items()}
    assert "Disturbed" not in table.table(report | {"runs": runs})
    runs["render"]["slowest_step"] = 3.5
    assert "Disturbed: a step took 3.5 times the median" in table.table(report | {"runs": runs})


# --- when something is not as it should be ----------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, 0.00001, 0.5])
def test_a_file_that_is_missing_or_cut_short_is_one_sentence_with_the_next_step(left: float, tmp_path: Path) -> None:
    weights, name = tmp_path / "weights", "tiny_wan_sketch.safetensors"
    shutil.copytree(REPOSITORY / "demo" / "family" / "weights", weights)
    whole = (weights / name).read_bytes()
    (weights / name).write_bytes(whole[: int(left * len(whole))])
    if not left:
        (weights / name).unlink()
    command = [*RUN, "--weights", str(weights), "--output", str(tmp_path / "output")]
    ran = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and not ran.stdout and not (tmp_path / "output").exists()
    (said,) = ran.stderr.splitlines()
    assert f"not complete: {name} is missing or cut short" in said and "git checkout" in said and "make family" in said


def test_a_run_that_fails_is_one_sentence_and_leaves_the_server_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def serve(_: Any, base: Path, *__: Any) -> Iterator[None]:
        (base / "server.log").write_text("what the server said", "utf-8")
        raise film.host.HostError("node 3 failed:\nthe reason\nTraceback")
        yield

    monkeypatch.setattr(film.host, "serve", serve)
    monkeypatch.setattr(sys, "argv", ["film.py", "--output", str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the demo sets
    assert film.main() == 1
    log = tmp_path / "server.log"
    assert capsys.readouterr().err.splitlines()[1:] == [f"demo: node 3 failed: the reason The server's log: {log}"]
    assert log.read_text("utf-8") == "what the server said" and list(tmp_path.iterdir()) == [log]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_ctrl_c_stops_the_demo_and_its_server(tmp_path: Path) -> None:
    command = [*RUN, "--output", str(tmp_path), "--steps", "2000"]
    demo = subprocess.Popen(
        command,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # It may be ignored where CI started us.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert demo.stderr is not None
    try:
        while "Words it knows" not in (line := demo.stderr.readline()):
            assert line, "the demo ended early"
        started = psutil.Process(demo.pid).children(recursive=True)
        server = [process for process in started if "main.py" in str(process.cmdline())]
        assert server
        time.sleep(1)
        os.killpg(demo.pid, signal.SIGINT)  # what a terminal does
        _, said = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130 and "stopped" in said and "Traceback" not in said
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in server)


# --- the parts --------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_cut_to_the_picture_s_width() -> None:
    clip = np.zeros((2, 96, 96, 3), np.uint8)
    short = video.side_by_side("a red circle", [("one", "line")], [clip])
    long = video.side_by_side("a red circle " * 200, [("one", "line " * 50)], [clip])
    assert short.shape == long.shape and short.shape[1] % 2 == short.shape[2] % 2 == 0


def test_seconds_of_a_step_allow_for_messages_left_out_and_a_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 5.0, 5.2, 5.8, 6.0, 6.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    follow = progress.Progress("run", {"3": {"class_type": "KSampler"}})
    follow("executing", {"node": "3"})
    for value in (1, 2, 4):  # the message about step 3 did not come
        follow("progress", {"node": "3", "value": value, "max": 4})
    follow("executing", {"node": None})
    assert follow.steps["3"] == pytest.approx([0.2, 0.3]) and follow.seconds["3"] == 6.0
    assert capsys.readouterr().err == "run: KSampler, 6.0 s\n"


def test_a_prompt_with_bytes_of_another_alphabet_loses_those_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPT", os.fsdecode(b"a red \xff circle"))
    nodes = {"1": ("SRSampler", {"positive": ["2", 0]}), "2": ("SRDemoText", {"text": ""})}
    graph = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    asked = argparse.Namespace(steps=None, seed=None)
    found = film.prepared(graph, asked)["2"]["inputs"]["text"]
    assert ascii(found) == ascii("a red \N{REPLACEMENT CHARACTER} circle")


PROMPTS = (
    "",
    "a red circle",
    "a red circle above",
    "above",
    "a circle",
    "two red circles left of a red square",
    "red",
    "a red circle and a blue square and a green star",
    "a red circle moves a blue square",
    "moves",
    "on a white background",
    "three stars on",
    "a red circle above a blue square on a gray background",
    "above below left right",
    "größe 100 %",
)


def test_no_prompt_breaks_the_oracle_and_only_whole_prompts_are_scored() -> None:
    videos = {"sr": np.random.default_rng(0).integers(0, 255, (9, 128, 128, 3)).astype(np.uint8)}
    judged = {prompt: film.oracle(prompt, videos)[0] for prompt in PROMPTS}
    assert judged["a red circle"] and judged["a red circle above a blue square on a gray background"]
    assert not judged[""] and not judged["a circle"] and not judged["two red circles left of a red square"]
    assert all(0 <= value <= 1 for scores in judged.values() for value in scores.get("sr", {}).values())
