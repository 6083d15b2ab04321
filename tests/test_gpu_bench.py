"""bench/gpu.py and its kit on tiny shapes: what it keeps, when it stops, what it says. Never how fast anything is."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hosting import REPOSITORY, module
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.append(str(REPOSITORY / "bench"))

import common
import cost
import gpu
import gpu_bench
import gpu_kit
import gpu_models
import gpu_profile
import gpu_rows
import gpu_table

CPU = torch.device("cpu")
FACTS = {
    "card": "a card",
    "host": "ComfyUI 0.30.0",
    "versions": "torch",
    "commit": "abc",
    "rehearsal": False,
    "date": "2026-01-01",
}
STEPS = gpu.Stage("steps", 5, (("wan_steps", gpu.CLASSIC), ("wan_runs", gpu.CLASSIC)))


@pytest.fixture
def results(tmp_path: Path) -> Any:
    return gpu.Results(tmp_path / "gpu-a-card.jsonl", FACTS | {"rehearsal": True})


def rehearse(folder: Path, stages: str) -> tuple[str, list[dict[str, Any]]]:
    """(what it prints, the rows) of a rehearsal of these stages."""
    words = [sys.executable, "bench/gpu.py", "--rehearse", "--stages", stages, "--results", str(folder / "gpu.jsonl")]
    done = subprocess.run(words, check=False, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, gpu.Results(folder / "gpu.jsonl").lines()


# --- rows and time limits ---------------------------------------------------------------------------------------------


def test_a_row_that_is_there_is_not_measured_again_but_one_that_failed_is(results: Any) -> None:
    measured: list[str] = []

    def failing() -> dict[str, Any]:
        measured.append("failing")
        raise RuntimeError("no memory")

    for _ in range(2):  # as two starts of the command
        work = gpu_rows.Work(results, {"stage": "b", "part": "wan_steps, classic"}, "tiny")
        work.row("sound", lambda: measured.append("sound") or {"seconds": 1.0})
        work.row("failing", failing)
    assert measured == ["sound", "failing", "failing"]


def test_rows_of_another_commit_or_card_do_not_count(results: Any) -> None:
    results.add({"stage": "b", "row": "sketch step"})
    assert gpu.Results.of_newest(results.path).has(stage="b", row="sketch step")
    for other in ({"commit": "def"}, {"card": "another"}):
        assert not gpu.Results(results.path, results.facts | other).has(stage="b", row="sketch step")


def test_a_time_limit_ends_a_stage_and_says_so(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.STAGES, "b", dataclasses.replace(STEPS, minutes=2 / 60))
    begin = time.monotonic()
    gpu.run_stage("b", results, float("inf"), fresh=False)
    assert time.monotonic() - begin < 20
    first, second = (row["why"] for row in results.rows() if row["row"] == gpu.END)
    assert first == "ended by the time limit, after 2 s" and second == "not begun: the stage's time limit was used up"
    assert f"- b, wan_steps, classic: {first}" in gpu_table.table(FACTS, results.rows())


def test_a_stage_for_which_the_command_has_too_few_minutes_is_left_to_the_next_one(results: Any) -> None:
    gpu.run_stage("b", results, time.monotonic() + 100, fresh=False)
    (row,) = results.rows()
    assert row["why"] == "not begun: the minutes of the command were used up" and row["seconds"] == 0


def test_a_stage_that_is_whole_is_not_begun_again(results: Any) -> None:
    results.add({"stage": "b", "part": "wan_steps, classic", "row": gpu.END, "why": gpu.WHOLE, "seconds": 1.0})
    gpu.run_stage("b", results, float("inf"), fresh=True)
    assert len(results.rows()) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"rows": []}', "utf-8")
    with pytest.raises(ValueError, match=r"other.jsonl does not hold results"):
        gpu.Results(tmp_path / "other.jsonl").lines()


# --- the table --------------------------------------------------------------------------------------------------------


def rows_of_a_card() -> list[dict[str, Any]]:
    """As a GPU would leave them: a sketch step of 8 s, a render step of 1.5 s."""
    step = {"size": "832x480x81", "peak": 3e10, "dtype": "bfloat16"}
    run = {"n": 10, "k": 2, "peak": 3e10, "round": 0}
    b, c = {"stage": "b", "part": "wan_steps, classic"}, {"stage": "c", "part": "wan_runs, classic"}
    return [
        {**b, **step, "row": "sketch step", "steps": [8.0, 8.0]},
        {**b, **step, "row": "render step", "steps": [1.5, 1.5, 1.6]},
        {**b, "row": "sketch step, sage", "unavailable": "pip install sageattention."},
        {**c, **run, "row": "sketch only", "seconds": 80.0, "k": 10},
        {**c, **run, "row": "render only", "seconds": 15.0, "k": 0},
        {**c, **run, "row": "SR", "seconds": 28.5, "hand_over": {"seconds": 0.2, "in": 3e9}, "render_bytes": 3e9},
        {**c, **run, "row": "SR, TeaCache", "seconds": 21.0, "reused": 5},
        {
            **c,
            "row": "SR from main memory",
            "seconds": 12.0,
            "hand_over": {"seconds": 0.3, "in": 3.6e9},
            "render_bytes": 3e9,
        },
    ]


def test_the_table_says_which_promises_hold_from_measured_rows_alone() -> None:
    lines = gpu_table.table(FACTS, rows_of_a_card())
    promises = {
        line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]]
        for line in lines
        if "x" in line
    }
    by_steps = 50 * 8 / (10 * 8 + 40 * 1.5)
    assert promises["Wan 480p, SR, k = 10 of 50, by steps: at least 2.84x"] == [f"{by_steps:.3g}", "held"]
    assert promises["Wan 480p, SR, whole run: at least 2.84x"] == [f"{80 / 28.5:.3g}", "**not held**"]
    assert promises["Wan 480p, SR with TeaCache: at least 3.91x"] == [f"{80 / 21:.3g}", "**not held**"]
    assert promises["switch from main memory: at most 1.1x the render's bytes"] == ["1.2", "**not held**"]
    assert promises["Wan 720p, SR, k = 10 of 50, by steps: at least 2.84x"] == ["", "not measured"]
    text = "\n".join(lines)
    assert f"| {(2 * 80 + 8 * 15) / 10 / 28.5:.3g} |" in text  # of the ideal
    assert "- b, sketch step, sage: pip install sageattention." in text


def test_the_newest_of_a_row_counts() -> None:
    rows = rows_of_a_card()
    again = next(row for row in rows if row["row"] == "SR") | {"seconds": 20.0}
    assert gpu_table.Measured.of([*rows, again], "c").run("SR") == 20.0


def test_the_evidence_holds_the_newest_table_or_says_that_there_is_none() -> None:
    start, end = gpu_table.MARKS
    text = common.EVIDENCE.read_text("utf-8")
    newest = gpu.newest(common.RESULTS)
    expected = "\n".join(gpu.table(newest))
    assert text.split(start)[1].split(end)[0].strip() == expected.strip()


# --- what is measured -------------------------------------------------------------------------------------------------


def test_the_rehearsal_of_a_stage_keeps_its_rows_and_ends_with_a_table(tmp_path: Path) -> None:
    said, rows = rehearse(tmp_path, "d")
    profiles = {row["row"]: row for row in rows if row["row"] != gpu.END}
    assert list(profiles) == ["render alone", "SR", "SR, TeaCache"] and profiles["render alone"]["own_waits"] == {}
    for name in ("SR", "SR, TeaCache"):  # a GPU's answer is read only after it has come: tests/test_finite.py
        ((place, times),) = profiles[name]["own_waits"].items()
        assert times == 1 and place.startswith("is_nonzero, srd_core/finite.py:")
        assert 0 < profiles[name]["busy"] <= 1.01
    assert "A rehearsal on the CPU" in said and "\n- profiles, classic, SR: " in said
    for row in rows:
        assert row["date"] and row["machine"] and row["host"] and row["commit"] and row["rehearsal"]
        assert row["command"].startswith("python3 bench/gpu.py --rehearse")


@pytest.mark.long
def test_the_rehearsal_goes_from_start_to_table(tmp_path: Path) -> None:
    begin = time.monotonic()
    said, rows = rehearse(tmp_path, "abcdefg")
    assert time.monotonic() - begin < 600
    assert not [row for row in rows if "error" in row]
    whole = {row["stage"] for row in rows if row["row"] == gpu.END and row["why"] == gpu.WHOLE}
    assert whole == set("abcdef")  # g is of dynamic VRAM
    runs = {row["row"]: row for row in rows if row["stage"] == "c" and "n" in row}
    assert runs["SR, TeaCache"]["reused"] == 5 and runs["SR"]["reused"] == 0 and runs["sketch only"]["reused"] == 0
    assert {
        "two KSamplers",
        "EasyCache on the sketch",
        "SR, TeaCache, no guidance, fade",
        "SR, sketch_scale 0.75",
    } <= runs.keys()
    assert {row["status"] for row in rows if row["row"].endswith(" GB")} == {"done"}
    assert "tests, classic: 17 of 18 passed" in said  # the one left needs a GPU


@pytest.mark.parametrize("weights", [gpu_models.DEFAULT, gpu_models.FP8])
def test_networks_have_random_weights_of_the_kind_that_was_asked_for(weights: str) -> None:
    network, *_ = gpu_models.SHAPES["tiny"][cost.WAN]
    built = gpu_models.build(network, weights, CPU).model.diffusion_model
    matrix = built.blocks[0].ffn[0].state_dict()["weight"]
    assert (
        matrix.dtype == (torch.float8_e4m3fn if weights == gpu_models.FP8 else torch.float32)
        and matrix.float().std() > 0.01
    )


def test_a_backend_that_the_host_replaces_by_pytorch_s_is_no_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    host, network = module("srd_core.attention").attention, gpu_models.SHAPES["tiny"][cost.WAN][1]
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "sage", host.attention_pytorch)
    assert "takes pytorch's instead" in gpu_bench.unavailable("sage", network)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_waits_for_a_gpu_are_seen_and_copies_in_passing_are_none(mode: Any) -> None:
    """Tensors without data stand for those of a GPU."""

    def named(work: Any) -> set[str]:
        with FakeTensorMode(), mode(), gpu_profile.Waits(torch.device("cuda")) as waits:
            work(torch.empty(2, device="cuda"), torch.ones(2))
        return {"copy" if name in gpu_profile.COPIES else name for name, _ in waits.places}

    assert named(lambda gpu, _: gpu.to("cpu", non_blocking=True)) == set()
    assert named(lambda gpu, _: gpu.to("cpu")) == {"copy"}
    assert named(lambda _, cpu: cpu.to("cuda", non_blocking=True)) == {"copy"}  # from memory that is not page-locked
    with mode(), gpu_profile.Waits(CPU) as waits:
        bool(torch.ones(1) > 0)
    assert sum(waits.places.values()) == 1 and waits.of_pack() == {}


# --- the kit ----------------------------------------------------------------------------------------------------------


def test_the_kit_comes_together_on_the_other_machine_from_all_its_parts_alone(tmp_path: Path) -> None:
    kept = "host/main.py", "host/comfy/sd.py", "host/comfy/text_encoders/wan.py", "site/torchsde/__init__.py"
    left = (
        "host/tests/a.py",
        "host/models/x",
        "host/comfy/text_encoders/t5/t5.json",
        "site/comfy_kitchen/backends/hip/a",
    )
    for name in (*kept, *left, "host/comfy/__pycache__/sd.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, "utf-8")
    archive = tmp_path / "kit.tar.xz"
    gpu_kit.pack(archive, site=tmp_path / "site", host=tmp_path / "host")
    first, second = gpu_kit.distribute(archive, tmp_path, archive.stat().st_size - 1)
    there = tmp_path / "there"
    environment = os.environ | {"SRD_KIT_BASE": str(there), "OUT": str(tmp_path), "COMFYUI_PYTHON": "echo"}

    def run(folder: str, word: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "gpu-a-card.jsonl").write_text("", "utf-8")
        words = ["bash", str(tmp_path / folder / "run.sh"), word]
        done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
        shutil.rmtree(tmp_path / folder)  # each call carries its own
        return done

    assert run(second, "--keep").returncode == 0
    assert run(first, "--stages=a").stdout.split() == ["bench/gpu.py", "--results", str(tmp_path), "--stages=a"]
    assert {str(path.relative_to(there)) for path in there.glob("*/**/*") if path.is_file()} == set(kept)


def test_a_part_of_the_kit_alone_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "kit.tar.xz").write_bytes(bytes(10))
    first, *_ = gpu_kit.distribute(tmp_path / "kit.tar.xz", tmp_path, 4)
    shutil.rmtree(tmp_path / ".gpu-kit-2")
    environment = os.environ | {"SRD_KIT_BASE": str(tmp_path / "there")}
    words = ["bash", str(tmp_path / first / "run.sh")]
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "2 of 3 parts are here" in done.stderr
