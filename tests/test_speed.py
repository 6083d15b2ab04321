"""The speed bench from start to table on tiny shapes: what it runs, keeps, counts and says. Never how fast it is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sd
import pytest
import torch
from hosting import REPOSITORY, module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType

sys.path.append(str(REPOSITORY / "bench"))

import common  # noqa: E402
import cost  # noqa: E402
import quality_host  # noqa: E402
import speed  # noqa: E402
import speed_measure  # noqa: E402
import speed_models  # noqa: E402
import speed_paper  # noqa: E402
import speed_profile  # noqa: E402
import speed_rows  # noqa: E402
import speed_store  # noqa: E402
import speed_table  # noqa: E402

CPU = torch.device("cpu")
TINY = speed_models.SHAPES["tiny"]
STEPS = 12
ROWS = ("sketch only", "SR, 10 steps", "SR, 10 steps, TeaCache 0.14", "render only", "two chained samplers, 10 steps",
        "SR, 10 steps, fp8", "SR, 10 steps, fp8 scaled", "EasyCache 0.2 on the sketch", "TeaCache 0.2 on the sketch",
        "SR, 10 steps, sage attention")  # fmt: skip


def command(folder: Path, *words: str, rows: tuple[str, ...] = ROWS) -> int:
    return speed.main(["--device", "cpu", "--shapes", "tiny", "--steps", str(STEPS), "--rounds", "1", "--probe", "1",
                       "--threads", "1", "--results", str(folder / "speed.json"), "--rows", "|".join(rows), *words])  # fmt: skip


def data_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "speed.json").read_text("utf-8"))


def lines_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in data_of(folder)["lines"] if line["kind"] == kind]


def changed(made: Path, folder: Path, **facts: Any) -> None:
    """The results of ``made`` in a folder, as a session with these other facts would have left them."""
    data = data_of(made)
    data["sessions"][0].update(facts)
    (folder / "speed.json").write_text(json.dumps(data), "utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    assert command(folder) == 0
    return folder


def bench(family: str = cost.WAN, steps: int = STEPS) -> Any:
    quality_host.start()
    sketch, render, size = TINY[family]
    return speed_rows.Bench(sketch, render, size, CPU, steps)


# --- from start to table ------------------------------------------------------------------------------------------------


def test_every_row_is_a_whole_run_or_says_why_it_is_not(made: Path):
    measured = {line["row"] for line in lines_of(made, "whole")}
    (missing,) = lines_of(made, "unavailable")
    assert measured | {missing["row"]} == set(ROWS)
    assert missing["row"] == "SR, 10 steps, sage attention" and "pip install sageattention" in missing["reason"]


def test_steps_of_both_models_are_measured_for_every_way_of_computing(made: Path):
    found = {(line["variant"]["weights"], line["stage"]) for line in lines_of(made, "steps")}
    assert found == {(w, stage) for w in ("default", "fp8", "fp8 scaled") for stage in ("sketch", "render")}
    assert all(seconds > 0 for line in lines_of(made, "steps") for seconds in line["seconds"])


def test_a_session_says_with_what_it_was_made(made: Path):
    (session,) = data_of(made)["sessions"]
    assert session["command"].startswith("python3 bench/") and session["peak_flops"] > 0 and session["bandwidth"] > 0
    assert session["device"] == "cpu" and "ComfyUI" in session["host"] and "torch" in session["versions"]
    assert session["fastest_attention"] in session["attention_seconds"]


def test_a_hand_over_tells_its_seconds_and_bytes(made: Path):
    (cold,) = lines_of(made, "hand_over")
    assert cold["seconds"] > 0 and cold["in"] == cold["out"] == 0  # on the CPU nothing moves
    with_hand_over = {line["row"] for line in lines_of(made, "whole") if line["hand_over"]}
    assert with_hand_over == {row for row in ROWS if row.startswith("SR") and "sage" not in row}


def test_the_same_command_goes_on_where_it_stopped(made: Path, tmp_path: Path):
    whole = data_of(made)
    kept = [line for line in whole["lines"] if line.get("row") not in ROWS[2:4]]
    (tmp_path / "speed.json").write_text(json.dumps({**whole, "lines": kept}), "utf-8")
    assert command(tmp_path) == 0
    again = lines_of(tmp_path, "whole")
    assert [line["row"] for line in again if line["session"] == 1] == list(ROWS[2:4])
    assert len(again) == len(lines_of(made, "whole"))


def test_rows_that_would_not_end_within_the_minutes_are_left_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A clock that each whole run moves on by 250 s of 600; every row is expected to take as long."""
    monkeypatch.setattr(speed, "STARTED", 0.0)
    monkeypatch.setattr(speed_table.Found, "median", lambda _: 250.0)
    for start in range(2):
        monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda n=start: 250.0 * (wholes(tmp_path) - 2 * n)))
        assert command(tmp_path, "--minutes", "10", rows=ROWS[:4]) == 0
        assert wholes(tmp_path) == 2 * (start + 1)
        left_out = f"  {ROWS[2]}: about 250 s, and 100 s are left; left out"
        assert (left_out in capsys.readouterr().out) == (start == 0)
    assert [line["row"] for line in lines_of(tmp_path, "whole")] == list(ROWS[:4])
    assert len(lines_of(tmp_path, "steps")) == 2 and len(lines_of(tmp_path, "hand_over")) == 1  # found, not measured again


def wholes(folder: Path) -> int:
    return len(lines_of(folder, "whole")) if (folder / "speed.json").exists() else 0


def test_a_row_that_takes_longer_than_all_of_the_minutes_has_the_seconds_of_its_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command(tmp_path, "--minutes", "1e-6", rows=("SR, 10 steps",)) == 0
    assert not lines_of(tmp_path, "whole") and not lines_of(tmp_path, "hand_over") and len(lines_of(tmp_path, "steps")) == 2
    said = capsys.readouterr().out
    assert "and 0 s are left; left out" in said and "from steps alone" in said


def test_a_longer_row_that_does_not_fit_does_not_keep_a_shorter_one_from_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    median = speed_table.Found.median
    monkeypatch.setattr(speed_table.Found, "median", lambda found: 500.0 if "16" in found.row.name else median(found))
    monkeypatch.setattr(speed, "STARTED", time.monotonic() - 200)
    assert command(tmp_path, "--minutes", "10", rows=("SR, 10 steps", "SR, 16 steps", "two chained samplers, 10 steps")) == 0
    assert [line["row"] for line in lines_of(tmp_path, "whole")] == ["SR, 10 steps", "two chained samplers, 10 steps"]


@pytest.mark.parametrize("error", [KeyError("a kernel"), AssertionError("a head of 100"), subprocess.CalledProcessError(1, "cc")])
def test_whatever_one_row_fails_with_the_others_are_measured(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    prepared = speed_rows.prepared

    def broken(row: Any, *args: Any) -> Any:
        if row.name == "SR, 10 steps":
            raise error
        return prepared(row, *args)

    monkeypatch.setattr(speed_rows, "prepared", broken)
    assert command(tmp_path, rows=("SR, 10 steps", "render only")) == 0
    assert [line["row"] for line in lines_of(tmp_path, "whole")] == ["render only"]
    ((row, reason),) = [(line["row"], line["reason"]) for line in lines_of(tmp_path, "unavailable")]
    assert row == "SR, 10 steps" and reason.startswith(type(error).__name__) and "Traceback" in capsys.readouterr().err


def test_a_row_of_teacache_that_reuses_nothing_is_not_that_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed_rows, "threshold_for", lambda *_: 1e-9)
    assert command(tmp_path, rows=("SR, 10 steps, TeaCache 0.14",)) == 0
    (line,) = lines_of(tmp_path, "unavailable")
    assert "reused no step" in line["reason"] and not lines_of(tmp_path, "whole")


def test_main_memory_that_can_t_hold_all_weights_holds_one_pair_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_room, let_go = speed_rows.Bench._make_room, []

    def in_a_small_memory(bench: Any, weights: str) -> None:
        held = list(bench._pairs)
        free = lambda: SimpleNamespace(available=0 if bench._pairs else 1 << 40)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(speed_rows.psutil, "virtual_memory", free)
            make_room(bench, weights)
        assert not bench._pairs
        let_go.extend(held)

    monkeypatch.setattr(speed_rows.Bench, "_make_room", in_a_small_memory)
    rows = ("SR, 10 steps", "SR, 10 steps, fp8", "render only")
    assert command(tmp_path, "--rounds", "2", rows=rows) == 0
    assert [line["row"] for line in lines_of(tmp_path, "whole")] == [rows[0], rows[2], rows[1]] * 2
    assert let_go == ["default", "fp8", "default", "fp8"] and not lines_of(tmp_path, "unavailable")


def test_weights_that_main_memory_can_t_hold_at_all_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed_rows.psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    with pytest.raises(RuntimeError, match="GB of weights don't fit into main memory: 0 GB are free"):
        bench().pair(speed_rows.PLAIN)


def test_on_the_device_is_what_the_row_needs_and_nothing_of_other_rows():
    ready = bench()
    rows = speed_rows.named(cost.WAN)
    pairs = {name: ready.pair(rows[name].variant) for name in ("SR, 10 steps", "SR, 10 steps, fp8")}

    def on_device() -> set[str]:
        loaded = comfy.model_management.loaded_models()
        return {f"{name}: {stage}" for name, pair in pairs.items() for stage, model in zip(("sketch", "render"), pair)
                if any(model.is_clone(one) for one in loaded)}  # fmt: skip

    both = {name: {f"{name}: sketch", f"{name}: render"} for name in pairs}
    for row, expected in (("SR, 10 steps, fp8", both["SR, 10 steps, fp8"]), ("SR, 10 steps", both["SR, 10 steps"]),
                          ("render only", {"SR, 10 steps: render"}), ("two chained samplers, 10 steps", both["SR, 10 steps"]),
                          ("sketch only", {"SR, 10 steps: sketch"})):  # fmt: skip
        ready.put_on_device(rows[row])
        assert on_device() == expected


def test_a_row_s_steps_are_measured_right_before_it(made: Path):
    found = [(line["variant"]["weights"], "") if line["kind"] == "steps" else (None, line["row"])
             for line in data_of(made)["lines"] if line["kind"] in ("steps", "whole")]  # fmt: skip
    first = found.index(("fp8", ""))
    assert found[first + 1] == ("fp8", "") and found[first + 2] == (None, "SR, 10 steps, fp8")


@pytest.mark.parametrize("fact", speed_store.SETTING)
def test_what_was_measured_in_another_setting_is_measured_again_and_told_apart(fact: str, made: Path, tmp_path: Path):
    changed(made, tmp_path, **{fact: "another"})
    assert command(tmp_path, rows=("render only",)) == 0
    assert [line["row"] for line in lines_of(tmp_path, "whole") if line["session"] == 1] == ["render only"]
    parts = speed_store.parts(data_of(tmp_path))
    (before, now) = (speed_table.Case(part, speed_table.cases(part)[0]) for part in parts)
    assert len(before.rows["render only"].seconds) == len(now.rows["render only"].seconds) == 1
    assert before.rows["SR, 10 steps"].seconds and not now.rows["SR, 10 steps"].seconds


def test_without_a_name_the_card_s_newest_results_are_gone_on_with(tmp_path: Path):
    today = speed_store.default_path(tmp_path, "A Card (SXM)").name
    assert re.fullmatch(r"speed-a-card-sxm-\d{4}-\d\d-\d\d\.json", today)
    for name in ("speed-a-card-sxm-2020-01-31.json", "speed-a-card-sxm-2020-01-02.json", "speed-a-card-sxm-2-2021-01-01.json"):
        (tmp_path / name).write_text("", "utf-8")
    assert speed_store.default_path(tmp_path, "A Card (SXM)").name == "speed-a-card-sxm-2020-01-31.json"


def test_two_commands_do_not_write_over_each_other_s_results(tmp_path: Path):
    stores = [speed_store.Store(tmp_path / "speed.json") for _ in range(2)]
    for store in stores:
        store.begin(case="a")
    stores[0].add("steps", case="a")
    with pytest.raises(OSError, match="Another command writes to speed.json"):
        stores[1].add("steps", case="a")
    stores[0].add("steps", case="a")
    assert len(lines_of(tmp_path, "steps")) == 2


def test_the_table_has_every_row_with_its_numbers(made: Path):
    data = data_of(made)
    (case,) = speed_table.cases(data)
    text = "\n".join(speed_table.case_table(data, case))
    for row in speed_rows.rows(cost.WAN):
        assert f"| {row.name} |" in text
    assert "pip install sageattention" in text and "No target is judged" in text


def test_cogvideox_runs_from_start_to_table(tmp_path: Path):
    rows = ("SR, 15 steps, TeaCache 0.1", "two chained samplers, 15 steps")
    assert command(tmp_path, "--family", "cogvideox", rows=rows) == 0
    assert {line["row"] for line in lines_of(tmp_path, "whole")} == set(rows)


def test_steps_at_several_sizes_are_compared_with_the_cost_model(tmp_path: Path):
    assert command(tmp_path, "--scaling") == 0
    data = data_of(tmp_path)
    text = "\n".join(speed_table.case_table(data, speed_table.cases(data)[0]))
    assert all(text.count(size) == 2 for size in speed.SCALING["tiny"]["wan"]) and text.count("fitted") == 4


def test_steps_at_several_sizes_go_on_where_the_minutes_ended(tmp_path: Path):
    for number in range(1, 4):
        assert command(tmp_path, "--scaling", "--minutes", "1e-9") == 0
        assert len(lines_of(tmp_path, "scaling")) == number
    assert command(tmp_path, "--scaling") == 0 and command(tmp_path, "--scaling") == 0
    found = [(line["size"], line["stage"]) for line in lines_of(tmp_path, "scaling")]
    assert found == [(size, stage) for size in speed.SCALING["tiny"]["wan"] for stage in ("sketch", "render")]


def test_a_size_without_enough_memory_is_kept_with_why_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes, sample = speed.SCALING["tiny"]["wan"], speed_rows.sample

    def limited(model: Any, bench: Any, *args: Any, **how: Any) -> torch.Tensor:
        if str(bench.size) == sizes[1]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sample(model, bench, *args, **how)

    monkeypatch.setattr(speed_rows, "sample", limited)
    assert command(tmp_path, "--scaling", "--rounds", "2") == 0
    assert {line["size"] for line in lines_of(tmp_path, "scaling")} == {sizes[0], sizes[2]}
    reasons = [line["row"] for line in lines_of(tmp_path, "unavailable")]
    assert reasons == [f"a {stage} step at {sizes[1]}" for stage in ("sketch", "render")]
    data = data_of(tmp_path)
    text = "\n".join(speed_table.case_table(data, speed_table.cases(data)[0]))
    assert f"a sketch step at {sizes[1]}: unavailable: OutOfMemoryError: CUDA out of memory." in text and "ComfyUI" in text


def test_a_profile_goes_on_where_the_minutes_ended(tmp_path: Path):
    for _ in range(len(speed_profile.NAMES) + 1):
        assert command(tmp_path, "--profile", "--minutes", "1e-9") == 0
    assert tuple(line["what"] for line in lines_of(tmp_path, "profile")) == speed_profile.NAMES


@pytest.mark.one_host
def test_it_starts_as_a_module_from_the_repository(tmp_path: Path):
    words = ["-m", "bench.speed", "--device", "cpu", "--shapes", "tiny", "--steps", "6", "--rounds", "1", "--probe", "1",
             "--rows", "render only", "--threads", "1", "--results", str(tmp_path / "speed.json")]  # fmt: skip
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "| render only |" in done.stdout and {line["row"] for line in lines_of(tmp_path, "whole")} == {"render only"}


@pytest.mark.one_host
def test_without_a_gpu_it_says_so_instead_of_loading_the_host(tmp_path: Path):
    words = [str(REPOSITORY / "bench" / "speed.py"), "--device", "cuda", "--results", str(tmp_path / "speed.json")]
    done = subprocess.run([sys.executable, *words], env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "SRD_BENCH_IN_HOST": "1"},
                          capture_output=True, text=True, timeout=500)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "There is no GPU here that torch can use. Try --device cpu --shapes small.\n"


@pytest.mark.parametrize("content", ["", "[]", "3", '{"sessions": []}', '{"sessions": [], "lines": [{}]}',
                                     '{"sessions": 1, "lines": 2}', '{"sessions": [], "lines": [{"kind": "whole", "case": "", "session": 0}]}', "\x00\xff"])  # fmt: skip
def test_a_file_that_holds_no_results_is_refused_and_stays_as_it_is(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "speed.json").write_text(content, "latin-1")
    assert command(tmp_path) == 2
    assert capsys.readouterr().err == "speed.json does not hold results of the speed bench. Name another by --results.\n"
    assert (tmp_path / "speed.json").read_text("latin-1") == content


@pytest.mark.parametrize("case", ["", "wan 8x8x1, big shapes, 5 steps", "hunyuan 832x480x81, real shapes, 50 steps"])
def test_the_tables_say_which_results_they_can_t_read_and_write_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    line = {"session": 0, "case": case, "kind": "steps"}
    content = {"sessions": [{"case": case, "device": "cpu"}], "lines": [line]} if case else []
    (tmp_path / "speed-a-card-2026-01-01.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert speed_table.main() == 2
    said = capsys.readouterr().err
    assert (repr(case) if case else "speed-a-card-2026-01-01.json") in said and "Traceback" not in said
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_for_results_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert command(tmp_path, "--results", str(tmp_path)) == 2
    assert "is a folder. Name a file by --results." in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--threads", "-3"], ["--minutes", "nan"], ["--minutes", "-1"], ["--minutes", "inf"]])
def test_numbers_that_can_t_be_are_refused_in_a_sentence(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        command(tmp_path, *words)
    assert "--threads and --minutes must be 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "says"), [(["--size", "830x480x81"], "multiples of 16"), (["--rows", "nothing"], "There are: sketch")])
def test_what_can_t_be_is_refused_before_anything_is_built(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command(tmp_path, *words) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_row_s_whole_name_means_that_row_alone():
    assert [row.name for row in speed_rows.chosen(cost.WAN, "SR, 10 steps")] == ["SR, 10 steps"]
    (example,) = re.findall(r'--rows "(.*)"', speed.__doc__ or "")
    assert [row.name for row in speed_rows.chosen(cost.WAN, example)] == example.split("|")
    assert len(speed_rows.chosen(cost.WAN, "TeaCache")) > 4
    assert len(speed_rows.chosen(cost.WAN, "")) == len(speed_rows.rows(cost.WAN))


# --- the models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["default", "fp8"])
def test_weights_are_held_once_and_filled(weights: str, monkeypatch: pytest.MonkeyPatch):
    quality_host.start()
    given: list[int] = []
    load = comfy.sd.load_diffusion_model_state_dict

    def watched(state_dict: dict[str, torch.Tensor], **how: Any) -> Any:
        given.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_dict.values()}.values()))
        return load(state_dict, **how)

    monkeypatch.setattr(comfy.sd, "load_diffusion_model_state_dict", watched)
    network = speed_models.build(TINY[cost.WAN][0], weights, CPU).model.diffusion_model
    parameters = dict(network.named_parameters())
    held = sum(p.untyped_storage().nbytes() for p in parameters.values())
    assert given[0] < held / 1000
    assert held == sum(p.numel() * p.element_size() for p in parameters.values())
    matrices = [p.float() for key, p in parameters.items() if key.startswith("blocks.") and p.ndim == 2]
    assert all(p.std() > 0.01 for p in matrices)
    assert {p.dtype for key, p in parameters.items() if key.startswith("blocks.0.ffn")} == {
        torch.float8_e4m3fn if weights == "fp8" else torch.float32
    }


def test_scaled_fp8_weights_are_taken_as_such_by_the_host():
    quality_host.start()
    network = speed_models.build(TINY[cost.WAN][0], "fp8 scaled", CPU).model.diffusion_model
    assert network.blocks[0].ffn[0].state_dict()["weight"].dtype == torch.float8_e4m3fn


def test_the_real_shapes_are_those_of_the_published_models():
    sizes = {n.name: (n.dim, n.ffn, n.layers, n.heads) for pair in speed_models.SHAPES["real"].values() for n in pair[:2]}
    assert sizes == {
        "Wan 2.1 14B": (5120, 13824, 40, 40),
        "Wan 2.1 1.3B": (1536, 8960, 30, 12),
        "CogVideoX 5B": (3072, 12288, 42, 48),
        "CogVideoX 2B": (1920, 7680, 30, 30),
    }


def test_teacache_reuses_as_many_steps_as_with_real_weights(made: Path):
    reused = {line["row"]: line["reused"] for line in lines_of(made, "whole")}
    wanted = {row.name: tuple(count * STEPS / speed_rows.STEPS for count in row.reuse) for row in speed_rows.rows(cost.WAN)}
    for name in ("SR, 10 steps, TeaCache 0.14", "TeaCache 0.2 on the sketch"):
        assert reused[name]["sketch"] == pytest.approx(wanted[name][0], abs=1.01)
        assert reused[name]["render"] == pytest.approx(wanted[name][1], abs=1.01)
    assert not any(reused["SR, 10 steps"].values())


# --- hidden waits -------------------------------------------------------------------------------------------------------


def test_in_a_render_step_the_pack_reads_nothing_but_whether_its_prediction_is_finite():
    """A GPU's answer is read only after it has come: tests/test_finite.py."""
    prepared = bench()
    with torch.inference_mode():
        found = {name: speed_profile.profiled(prepared, name) for name in speed_profile.NAMES}
    assert found["render alone"]["own_waits"] == {}
    for name in ("cooperation", "cooperation with TeaCache"):
        ((place, times),) = found[name]["own_waits"].items()
        assert times == 1 and place.startswith("is_nonzero, srd_core/finite.py:")


MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


@MODES
def test_copies_to_the_cpu_that_nobody_waits_for_and_reads_of_another_device_are_no_waits(mode: Any):
    """Tensors without data stand for those of a GPU."""

    def named(work: Any) -> set[str]:
        with FakeTensorMode(), mode(), speed_measure.Waits(torch.device("cuda")) as waits:
            work(torch.empty(2, device="cuda"), torch.ones(2))
        return {"copy" if name in speed_measure.COPIES else name for name, _ in waits.places}

    assert named(lambda gpu, _: gpu.to("cpu", non_blocking=True)) == set()
    assert named(lambda gpu, _: gpu.to("cpu", torch.float16, True)) == set()
    assert named(lambda gpu, _: gpu.to("cpu")) == {"copy"}
    assert named(lambda _, cpu: cpu.to("cuda", non_blocking=True)) == {"copy"}  # from memory that is not page-locked
    with mode(), speed_measure.Waits(torch.device("cuda")) as waits:
        torch.ones(1).item()
    assert not waits.places


@MODES
def test_the_waits_are_seen_and_named_by_who_asks(mode: Any):
    with mode(), speed_measure.Waits() as waits:
        torch.ones(2).sum().item()
        bool(torch.ones(1) > 0)
        float(torch.ones(1))
    assert {Path(place.rsplit(":", 1)[0]).name for _, place in waits.places} == {Path(__file__).name}
    assert sum(waits.places.values()) == 3
    assert waits.of_pack() == {}


def test_a_gpu_s_profile_counts_each_kernel_once_and_not_the_operator_that_started_it_too():
    def event(key: str, on: str, seconds: float, count: int = 1, annotation: bool = False) -> Any:
        return SimpleNamespace(key=key, count=count, device_type=getattr(DeviceType, on), is_user_annotation=annotation,
                               self_device_time_total=seconds * 1e6, self_cpu_time_total=1.0)  # fmt: skip

    events = [event("aten::mm", "CPU", 3.0), event("gemm", "CUDA", 3.0), event("add", "CUDA", 1.0), event("step", "CUDA", 4.0, 1, True),
              event("cudaDeviceSynchronize", "CPU", 0.0), event("cudaStreamSynchronize", "CPU", 0.0, 2)]  # fmt: skip
    profiler = SimpleNamespace(key_averages=lambda: events)
    found = speed_measure.profile_table(profiler, torch.device("cuda"), own_waits=1)
    assert found["seconds"] == pytest.approx(4) and {key: part["share"] for key, part in found["kernels"].items()} == {
        "gemm": pytest.approx(0.75), "add": pytest.approx(0.25)}  # fmt: skip
    assert found["waits"] == {"cudaStreamSynchronize": 2}


def test_a_backend_that_the_host_replaces_by_pytorch_s_is_no_row_of_its_own(monkeypatch: pytest.MonkeyPatch):
    host = module("srd_core.attention").attention
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "sage", host.attention_pytorch)
    row = speed_rows.named(cost.WAN)["SR, 10 steps, sage attention"]
    assert "takes pytorch's instead" in speed_rows.unavailable(row, bench())
    assert "sage" not in speed_measure.attention_seconds(TINY[cost.WAN][0], 16, CPU, ["pytorch", "sage"])
    monkeypatch.setitem(host.REGISTERED_ATTENTION_FUNCTIONS, "sage", lambda *args, **how: host.attention_pytorch(*args, **how) * 1.01)
    assert speed_rows.unavailable(row, bench()) == ""


def test_the_profile_names_kernels_with_their_shares():
    found = speed_profile.profiled(bench(), "render alone")
    shares = [part["share"] for part in found["kernels"].values()]
    assert "aten::addmm" in found["kernels"] and 0 < sum(shares) <= 1.0001 and shares == sorted(shares, reverse=True)


# --- numbers ------------------------------------------------------------------------------------------------------------

CASE = "wan 832x480x81, real shapes, 50 steps"


def results(**seconds: float) -> dict[str, Any]:
    """Lines as a GPU would leave them: a sketch step of 10 s, a render step of 2 s, and whole runs of these rows."""
    session = {"case": CASE, "date": "2026-01-01", "command": "", "card": "a card", "device": "cuda", "machine": "", "threads": 1,
               "load": 0.0, "host": "", "versions": "", "peak_flops": 1e15, "bandwidth": 1e12}  # fmt: skip
    plain = speed_rows.as_dict(speed_rows.PLAIN)
    lines = [{"kind": "steps", "session": 0, "case": CASE, "variant": plain, "stage": stage, "cfg_1": False, "round": 0,
              "seconds": [value]} for stage, value in (("sketch", 10.0), ("render", 2.0))]  # fmt: skip
    for name, value in seconds.items():
        reused = {"sketch": 0.0, "render": 26.0 if "TeaCache" in name else 0.0}
        hand_over = {"seconds": 3.0, "in": 2.8e9, "out": 0.0} if name.startswith("SR") else None
        lines.append({"kind": "whole", "session": 0, "case": CASE, "row": name, "round": 0, "seconds": value, "memory": 4e10,
                      "energy": 5e4, "reused": reused, "hand_over": hand_over})  # fmt: skip
    return {"sessions": [session], "lines": lines}


def test_a_start_is_compared_with_what_earlier_ones_in_its_setting_measured():
    data = results(**{"sketch only": 505.0, "SR, 10 steps": 184.0})
    data["sessions"].append(data["sessions"][0])
    data["lines"][-1]["session"] = 1
    (part,) = speed_store.parts(data)
    found = speed_table.Case(part, CASE).rows["SR, 10 steps"]
    assert found.speed_ups == [pytest.approx(505 / 184)] and found.ideals == [pytest.approx((10 * 10.1 + 40 * 2) / (184 - 3))]


def test_speed_up_and_shares_are_of_the_same_session_where_it_has_them():
    data = results(**{"sketch only": 505.0, "SR, 10 steps": 184.0, "SR, 10 steps, TeaCache 0.14": 133.0})
    case = speed_table.Case(data, CASE)
    plain, cached = case.rows["SR, 10 steps"], case.rows["SR, 10 steps, TeaCache 0.14"]
    assert plain.speed_ups == [pytest.approx(505 / 184)]
    assert plain.ideals == [pytest.approx((10 * 10.1 + 40 * 2) / (184 - 3))]
    assert plain.models == [pytest.approx((10 * 10.1 + 40 * 2 + 3) / 184)]
    assert cached.ideals == [pytest.approx((10 * 10.1 + 14 * 2) / (133 - 3))]
    assert plain.flops == cost.run_flops(cost.Plan(50, 10), cost.WAN_14B, cost.WAN_1_3B, cost.Size(832, 480, 81)).total


def test_a_machine_that_is_slower_in_one_round_changes_no_ratio():
    data = results(**{"sketch only": 505.0, "SR, 10 steps": 184.0})
    slower = [{**line, "round": 1} | ({"seconds": [2 * s for s in line["seconds"]]} if line["kind"] == "steps" else {
        "seconds": 2 * line["seconds"], "hand_over": line["hand_over"] and {**line["hand_over"], "seconds": 6.0}})
        for line in data["lines"]]  # fmt: skip
    data["lines"] += slower
    row = speed_table.Case(data, CASE).rows["SR, 10 steps"]
    assert row.speed_ups == [pytest.approx(505 / 184)] * 2
    assert row.ideals == [pytest.approx((10 * 10.1 + 40 * 2) / (184 - 3))] * 2
    assert row.models == [pytest.approx((10 * 10.1 + 40 * 2 + 3) / 184)] * 2


def test_the_ideal_is_of_whole_runs_of_one_model_which_are_as_warm_else_of_single_steps():
    def ideal(**seconds: float) -> float:
        (found,) = speed_table.Case(results(**seconds), CASE).rows["SR, 10 steps"].ideals
        return found * (184 - 3)

    row = {"SR, 10 steps": 184.0}
    assert ideal(**row) == pytest.approx(10 * 10 + 40 * 2)
    assert ideal(**row, **{"render only": 110.0}) == pytest.approx(10 * 10 + 40 * 2.2)
    both = {"sketch only": 505.0, "render only": 110.0}
    assert ideal(**row, **both) == pytest.approx(10 * 10.1 + 40 * 2.2)
    alone = speed_table.Case(results(**row, **both), CASE).rows
    assert alone["sketch only"].ideals == [pytest.approx(50 * 10 / 505)] and alone["render only"].ideals == [pytest.approx(50 * 2 / 110)]


def test_a_row_without_a_whole_run_is_composed_of_steps_and_says_so():
    data = results(**{"sketch only": 500.0})
    text = "\n".join(speed_table.case_table(data, CASE))
    assert "| SR, 10 steps | 180, from steps alone |" in text and "| SR, 10 steps, compiled | not measured |" in text


def test_the_mean_of_7_6_steps_is_the_mix_of_seven_and_eight():
    case = speed_table.Case(results(**{"sketch only": 500.0, "SR, 7 steps": 160.0, "SR, 8 steps": 170.0}), CASE)
    mixed = next(found for name, found in case.rows.items() if name.startswith("SR, 7.6"))
    assert mixed.seconds == [pytest.approx(166)] and mixed.speed_ups == [pytest.approx(500 / 166)]


@pytest.mark.parametrize(("seconds", "says"), [(170.0, "holds"), (180.0, "does not hold")])
def test_a_target_is_judged_by_the_measured_speed_up(seconds: float, says: str):
    lines = speed_table.case_table(results(**{"sketch only": 500.0, "SR, 10 steps": seconds}), CASE)
    (line,) = [line for line in lines if line.startswith("| SR, 10 steps, speed-up | 2.84")]
    assert line.endswith(f"| {says} |")
    assert any("TeaCache 0.14, speed-up | 3.91 | - | not measured |" in line for line in lines)


@pytest.mark.parametrize(("waits", "says"), [({}, "holds"), ({"item, srd_core/steps.py:1": 2}, "does not hold")])
def test_a_wait_of_the_pack_in_a_render_step_breaks_a_promise(waits: dict[str, int], says: str):
    data = results(**{"sketch only": 500.0})
    profile = {"kind": "profile", "session": 0, "case": CASE, "kernels": {}, "waits": {}}
    data["lines"] += [{**profile, "what": "render alone", "own_waits": {}}, {**profile, "what": "cooperation", "own_waits": waits}]
    (line,) = [line for line in speed_table.case_table(data, CASE) if "waits in a render step" in line]
    assert line.endswith(f"| {says} |")


def test_the_paper_s_runs_come_out_of_its_plain_runs():
    for family, size, seconds in ((cost.WAN, speed_paper.WAN_480P, 296), (cost.COGVIDEOX, cost.Size(720, 480, 49), 117)):
        found = cost.run_seconds(speed_paper.plan(family), speed_paper.paper_steps(family, size))
        assert found == pytest.approx(seconds, rel=0.01)


def test_predictions_are_called_predictions():
    text = speed_table.markdown([])
    assert "Nothing has been measured on a GPU yet" in text and "## Predicted, not measured" in text
    assert "not measured" in "\n".join(speed_paper.card_table())


# --- the README ---------------------------------------------------------------------------------------------------------


def test_the_marked_section_alone_is_replaced(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*speed_table.README_MARKS), "utf-8")
    assert common.update_readme(readme, speed_table.README_MARKS, ["new"])
    once = readme.read_text("utf-8")
    assert once == "before\n{}\nnew\n{}\nafter\n".format(*speed_table.README_MARKS)
    assert common.update_readme(readme, speed_table.README_MARKS, ["new"]) and readme.read_text("utf-8") == once


def test_a_readme_without_marks_stays_as_it_is(tmp_path: Path):
    (tmp_path / "README.md").write_text("text\n", "utf-8")
    assert not common.update_readme(tmp_path / "README.md", speed_table.README_MARKS, ["new"])
    assert (tmp_path / "README.md").read_text("utf-8") == "text\n"


@pytest.mark.one_host
def test_the_readme_s_section_is_what_the_results_say():
    start, end = map(re.escape, speed_table.README_MARKS)
    sections = re.findall(f"{start}\n(.*?)\n{end}", (REPOSITORY / "docs" / "evidence.md").read_text("utf-8"), re.DOTALL)
    expected = "\n".join(speed_table.readme_section(speed_table.load(REPOSITORY / "bench" / "results")))
    assert all(section == expected for section in sections)
