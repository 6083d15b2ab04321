"""The evaluation: it runs in the real host, continues where it stopped, and its shortcuts are exact. Not what it finds."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hosting import REPOSITORY, load_by_path
from PIL import Image

sys.path.append(str(REPOSITORY / "bench"))

import quality
import quality_decide as decide
import quality_figures as figures
import quality_host
import quality_readme
import quality_rows as rows
import quality_table as table

vbench = load_by_path("srd_vbench_export", REPOSITORY / "bench" / "vbench_export.py")

STEPS, PROMPTS = 8, 8
ROW = "adaptive, delta 0.03"
FAMILY = rows.Family(**quality.TINY)


@pytest.fixture(scope="module", autouse=True)
def nodes() -> None:
    quality_host.start()


@pytest.fixture(scope="module")
def executor() -> Any:
    return quality_host.Executor()


def command(folder: Path, *words: str) -> int:
    """The command as from the shell, on the few steps' run."""
    return quality.main(
        [
            "--results",
            str(folder),
            "--videos",
            str(folder / "videos"),
            "--run",
            f"{STEPS}:euler",
            "--prompts",
            str(PROMPTS),
            "--batch",
            "4",
            "--threads",
            "1",
            *words,
        ]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One row on eight prompts, with sketch only and render only."""
    folder = tmp_path_factory.mktemp("quality")
    assert command(folder, "--rows", f"{ROW}|render only", "--timed", "1") == 0
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "quality.jsonl").read_text("utf-8").splitlines()]


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_row_is_a_line_per_prompt_with_every_column(made: Path) -> None:
    scored = [line for line in lines_of(made) if line["kind"] == "score"]
    for name in ("sketch only", "render only", ROW):
        own = [line for line in scored if line["row"] == name]
        assert [line["number"] for line in own] == list(range(PROMPTS))
        assert len({line["prompt"] for line in own}) == PROMPTS
        for line in own:
            assert 0 <= line["scores"]["mean"] <= 1 and 0 <= line["flicker"] <= 1
            assert sum(line["calls"].values()) == STEPS and sum(line["seconds"].values()) > 0
            assert (line["ssim"] is None) == (name == "sketch only")
            assert line["psnr"] is None or 5 < line["psnr"] < 80
    assert {line["switch_step"] for line in scored if line["row"] == ROW} <= {
        3,
        4,
        5,
        6,
        7,
        None,
    }  # D falls for the first time after step 3


def test_the_table_s_numbers_are_means_of_the_lines(made: Path) -> None:
    text = (made / "quality.md").read_text("utf-8")
    scored = [line for line in lines_of(made) if line["kind"] == "score" and line["row"] == ROW]
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {ROW} | {PROMPTS} x 1 |")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2].startswith(f"{np.mean([line['scores']['mean'] for line in scored]):.3f} [")
    assert cells[8].startswith(f"{np.mean([line['psnr'] for line in scored]):.2f} [")
    assert cells[9].startswith(f"{np.mean([line['ssim'] for line in scored]):.3f} [")
    assert cells[-1].startswith(f"{np.mean([line['switch_step'] for line in scored]):.1f} [")
    assert "LPIPS" in text


def test_figures_are_drawn(made: Path) -> None:
    for name in ("curves", "switch_steps", "speed_quality", "contact_sheet"):
        with Image.open(made / f"quality_{name}.png") as picture:
            assert min(picture.size) > 250 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 2


def test_a_finished_cell_is_never_sampled_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "quality.jsonl").read_bytes()
    monkeypatch.setattr(quality.Evaluation, "sample", lambda *_: pytest.fail("sampled a finished cell"))
    monkeypatch.setattr(quality_host.Executor, "run", lambda *_: pytest.fail("ran a graph"))
    assert command(made, "--rows", f"{ROW}|render only", "--timed", "1", "--no-report") == 0
    assert (made / "quality.jsonl").read_bytes() == before


def test_a_killed_run_goes_on_where_it_stopped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (made / "quality.jsonl").read_bytes().splitlines(keepends=True)
    scored = [text for text in whole if b'"kind": "score"' in text]
    (tmp_path / "quality.jsonl").write_bytes(b"".join(scored[:-2]) + scored[-2][:40])  # the last line torn
    sampled: list[str] = []
    sample = quality.Evaluation.sample

    def watched(self: Any, plan: Any, group: Any) -> None:
        sampled.extend(cell.prompt for cell, _ in group)
        sample(self, plan, group)

    monkeypatch.setattr(quality.Evaluation, "sample", watched)
    words = ["--videos", str(made / "videos"), "--rows", f"{ROW}|render only", "--timed", "0", "--no-report"]
    assert command(tmp_path, *words) == 0
    lost = [json.loads(text) for text in scored[-2:]]
    assert sampled == [line["prompt"] for line in lost]
    again = lines_of(tmp_path)
    assert {(line["row"], line["key"]) for line in again} == {(x["row"], x["key"]) for x in map(json.loads, scored)}
    for line in lost:  # in another batch, the same video
        (anew,) = [x for x in again if (x["row"], x["key"]) == (line["row"], line["key"])]
        assert anew["scores"]["mean"] == pytest.approx(line["scores"]["mean"], abs=1e-3)
        assert anew["psnr"] == pytest.approx(line["psnr"], abs=0.01)


def test_results_of_other_weights_are_left_alone(made: Path, tmp_path: Path) -> None:
    other = [{**line, "weights": "of yesterday"} for line in lines_of(made)]
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other), "utf-8")
    store = quality.Store(tmp_path / "quality.jsonl", "of today")
    assert not store.lines and not store.done
    store.add({**other[0], "weights": "of today"})
    assert len(lines_of(tmp_path)) == len(other) + 1 and len(store.lines) == 1


def test_a_report_leaves_out_results_of_other_settings_and_other_prompts(tmp_path: Path) -> None:
    store = quality.Store(tmp_path / "quality.jsonl", "w")
    evaluation = quality.Evaluation(FAMILY, ["a", "b"], store, tmp_path, None, executor=object())
    other = dataclasses.replace(evaluation, family=dataclasses.replace(FAMILY, cfg=4.0))
    own = {
        "kind": "score",
        "row": "render only",
        "key": "k",
        "number": 1,
        "prompt": "b",
        "settings": evaluation.settings(),
    }
    foreign = [{**own, "settings": other.settings()}, {**own, "prompt": "another"}]
    store.lines += [own, *foreign, beyond := {**own, "number": 5, "prompt": "more"}]
    assert evaluation.own_lines() == [own, beyond]


@pytest.mark.one_host
def test_the_readme_s_evidence_is_what_the_results_say() -> None:
    text = (REPOSITORY / "docs" / "evidence.md").read_text("utf-8")
    start, end = quality_readme.MARKS
    told = text.split(f"{start}\n")[1].split(f"\n{end}")[0]
    lines = [
        json.loads(line)
        for line in (REPOSITORY / "bench" / "results" / "quality.jsonl").read_text("utf-8").splitlines()
    ]
    assert told == "\n".join(quality_readme.section(lines))


def test_the_key_follows_weights_settings_prompt_seed_and_plan(made: Path, tmp_path: Path) -> None:
    def key(weights: str = "w", family: Any = FAMILY, net: str | None = None, **other: Any) -> str:
        store = quality.Store(tmp_path / "none.jsonl", weights)
        evaluation = quality.Evaluation(family, ["a"], store, tmp_path, net, executor=object())
        cell = quality.Cell(rows.all_rows()[0], other.pop("number", 0), other.pop("prompt", "a"), other.pop("seed", 0))
        return evaluation.key(dataclasses.replace(rows.Plan("plain", 50, "euler", "simple"), **other), cell)

    changed = [
        key(weights="v"),
        key(family=dataclasses.replace(FAMILY, cfg=4.0)),
        key(net="alex"),
        key(number=1),
        key(prompt="b"),
        key(seed=1),
        key(steps=20),
        key(sampler="uni_pc"),
        key(kind="handover", switch_step=3),
    ]
    assert len({key(), *changed}) == len(changed) + 1 and key() == key()


def test_the_hash_of_the_weights_sees_a_change_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = bytearray(random.Random(0).randbytes(100_000))
    file.write_bytes(content)
    before = quality.weights_hash([file])
    content[70_001] ^= 1
    file.write_bytes(content)
    assert quality.weights_hash([file]) != before


def test_the_minutes_end_a_run_between_batches(tmp_path: Path) -> None:
    assert command(tmp_path, "--rows", ROW, "--minutes", "0", "--no-report") == 0
    assert not (tmp_path / "quality.jsonl").exists()


# --- what saves time is exact -----------------------------------------------------------------------------------------


def sampled(executor: Any, plan: Any, texts: list[str], numbers: list[int], **how: Any) -> tuple[Any, dict[str, Any]]:
    """(uint8 videos [N, frames, h, w, 3], what the graph left)."""
    kept = executor.run(rows.graph_of(plan, FAMILY, texts, numbers, 0, **how))
    videos = (kept["images"] * 255).round().byte().numpy()
    return videos.reshape(len(texts), -1, *videos.shape[1:]), kept


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    quality_host.family()
    from data import held_out_scenes
    from text import caption

    return [caption(scene) for scene in held_out_scenes(3, seed=quality.SCENE_SEED)]


def test_the_recorded_curves_are_what_the_pack_sees_and_an_adaptive_row_follows_them(
    executor: Any, prompts: list[str]
) -> None:
    plain = rows.Plan("plain", 12, "euler", "simple")
    _, kept = sampled(executor, plain, prompts, [0, 1, 2], curves=True)
    curves = [kept["first"].curve(i) for i in range(3)]
    seen = set()
    for number, prompt in enumerate(prompts):
        row = rows.Row("adaptive", "adaptive", value=0.2, fix_step=2, steps=12)
        plan, reason = rows.plan_of(row, curves[number], ())
        _, kept = sampled(executor, plan, [prompt], [number])
        (hand_over,) = kept["report"].hand_overs
        assert hand_over.after_step == plan.switch_step
        d = [step.d for step in kept["report"].steps if step.stage == "sketch" and step.d is not None]
        recorded = [value for value in curves[number]["x0"][: plan.switch_step] if value is not None]
        assert d and d == pytest.approx(recorded[-len(d) :], rel=1e-4)
        seen.add((hand_over.after_step, reason))
    assert any(reason in ("criterion", "earliest") for _, reason in seen)


def test_a_prompt_gives_the_same_video_in_any_batch(executor: Any, prompts: list[str]) -> None:
    plan = rows.Plan("handover", 4, "euler", "simple", switch_step=2)
    together, _ = sampled(executor, plan, prompts, [0, 1, 2])
    alone, _ = sampled(executor, plan, [prompts[2]], [2])
    other, _ = sampled(executor, plan, [prompts[2]], [0])  # another noise
    difference = np.abs(together[2].astype(int) - alone[0].astype(int))
    assert difference.mean() < 0.05 and (difference > 8).mean() < 1e-3  # the order of sums differs in a larger batch
    assert np.abs(other[0].astype(int) - alone[0].astype(int)).mean() > 1


def test_two_ksamplers_with_euler_are_the_fixed_step_and_with_uni_pc_are_not(executor: Any, prompts: list[str]) -> None:
    difference = {}
    for sampler in ("euler", "uni_pc"):  # uni_pc has a history, which two sampler runs lose
        plans = [rows.Plan(kind, 6, sampler, "simple", switch_step=3) for kind in ("handover", "chained")]
        fixed, chained = (sampled(executor, plan, prompts[:1], [0])[0].astype(int) for plan in plans)
        difference[sampler] = np.abs(fixed - chained).mean()
    assert difference["euler"] < 0.05 and difference["uni_pc"] > 0.3


def test_every_kind_of_row_makes_a_graph_that_runs(executor: Any, prompts: list[str]) -> None:
    videos = {}
    for row in rows.all_rows():
        kind = (row.kind, row.cache > 0)
        if kind in videos or (row.kind == "adaptive" and not row.cache):
            continue
        curves = {"x0": [None, 0.5, 0.4, 0.3, 0.299, 0.1]}
        plan, _ = rows.plan_of(
            dataclasses.replace(row, steps=6, value=min(row.value, 2)), curves, [1, 0.9, 0.7, 0.5, 0.3, 0.1, 0]
        )
        videos[kind], kept = sampled(executor, plan, prompts[:1], [0])
        ran = (
            {stage.name: stage.calls for stage in kept["report"].stages}
            if "report" in kept
            else {w.stage: w.calls for w in (kept["first"], kept.get("second")) if w}
        )
        assert videos[kind].shape[1:] == (9, 128, 128, 3) and np.ptp(videos[kind]) > 0
        assert sum(ran.values()) == 6 and set(ran) <= {"sketch", "render"}
    assert {kind for kind, _ in videos} >= {"plain", "reverse", "fixed", "chained", "renoised", "easycache"}


def test_a_graph_that_fails_says_which_node_and_why(executor: Any, prompts: list[str]) -> None:
    graph = rows.graph_of(rows.Plan("plain", 2, "euler", "simple"), FAMILY, prompts, [0, 1, 2], 0)
    graph["vae"]["inputs"]["vae_name"] = "none.safetensors"
    with pytest.raises(RuntimeError, match=r"VAELoader: .*none\.safetensors"):
        executor.run(graph)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_a_bootstrap_over_prompts() -> None:
    generator = np.random.default_rng(1)
    values = dict(enumerate(generator.normal(5, 2, 400)))
    found = table.stat(values)
    error = 1.96 * np.std(list(values.values())) / 20
    assert found.mean == pytest.approx(np.mean(list(values.values())))
    assert found.low == pytest.approx(found.mean - error, abs=0.15 * error)
    assert found.high == pytest.approx(found.mean + error, abs=0.15 * error)


def fake(row: str, number: int, score: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "score",
        "row": row,
        "key": f"{row}{number}",
        "steps": 50,
        "sampler": "euler",
        "number": number,
        "seed": 0,
        "scores": {"mean": score},
        "psnr": 20.0,
        "calls": {"sketch": 50, "render": 0} if row == "sketch only" else {"sketch": 0, "render": 50},
        "seconds": {"sketch": 2.0, "render": 1.0},
        "switch_step": None,
        "reason": "",
        "curves": None,
        "sigmas": None,
        "prompt": "",
        "ssim": None,
        "lpips": None,
        "flicker": 0.0,
    } | more


def test_the_share_of_the_gain_is_of_the_way_from_render_to_sketch() -> None:
    lines = [
        fake(row, i, score)
        for i in range(4)
        for row, score in (("sketch only", 0.8), ("render only", 0.4), ("adaptive, delta 0.01", 0.7))
    ]
    share = table.gain_share(table.Results(lines), (50, "euler"), "adaptive, delta 0.01")
    assert share.mean == pytest.approx(0.75) and share.low == pytest.approx(0.75)


def timed_alone() -> list[dict[str, Any]]:
    """What a step costs: 2 s of the sketch, 0.5 s of the render."""
    return [
        fake("sketch only", 0, 1, kind="time", seconds={"sketch": 100.0, "render": 0}),
        fake("render only", 0, 1, kind="time", seconds={"sketch": 0, "render": 25.0}),
    ]


def test_speed_up_is_from_the_steps_of_each_model_and_what_a_step_costs() -> None:
    lines = [
        *timed_alone(),
        half := fake("fixed, step 10", 0, 1, calls={"sketch": 10, "render": 40}),
    ]
    assert table.Results(lines).speed_up(half) == pytest.approx(100 / (20 + 20))


def test_a_row_with_teacache_gets_the_seconds_of_its_own_hand_over_not_of_the_prompts_it_was_timed_on() -> None:
    """And of them the share that the timed runs took of the same row without TeaCache, which is not the render alone."""
    name, without = "adaptive, delta 0.01, TeaCache 0.2", "adaptive, delta 0.01"
    lines = [
        *timed_alone(),
        fake(name, 0, 1, kind="time", calls={"sketch": 5, "render": 45}, seconds={"sketch": 10.0, "render": 9.0}),
        fake(without, 0, 1, kind="time", calls={"sketch": 5, "render": 45}, seconds={"sketch": 10.0, "render": 18.0}),
        later := fake(name, 1, 1, calls={"sketch": 20, "render": 30}),
    ]
    results = table.Results(lines)
    assert (results.seconds(later, "sketch"), results.seconds(later, "render")) == pytest.approx(
        (20 * 2, 30 * 0.5 * 9 / 18)
    )


def test_a_row_with_teacache_is_told_which_peers_are_faster_and_nearer() -> None:
    name, peer = "adaptive, delta 0.01, TeaCache 0.2", "EasyCache 0.1 on the sketch"
    timed = [
        *timed_alone(),
        fake(name, 0, 1, kind="time", calls={"sketch": 10, "render": 40}, seconds={"sketch": 20.0, "render": 20.0}),
        fake(
            "adaptive, delta 0.01",
            0,
            1,
            kind="time",
            calls={"sketch": 10, "render": 40},
            seconds={"sketch": 20.0, "render": 20.0},
        ),
        fake(peer, 0, 1, kind="time", calls={"sketch": 50, "render": 0}, seconds={"sketch": 30.0, "render": 0.0}),
        fake(name, 0, 1, calls={"sketch": 10, "render": 40}, psnr=25.0),
    ]
    for psnr, verdict in ((24.0, "| holds |"), (26.0, f"does not hold: {peer} faster and nearer")):
        results = table.Results([*timed, fake(peer, 0, 1, calls={"sketch": 50, "render": 0}, psnr=psnr)])
        assert verdict in table.front(results, (50, "euler"))[-1]


def test_a_cell_that_was_sampled_again_counts_once_as_it_is_now() -> None:
    old, new = (fake("fixed, step 10", 0, score, key=key) for score, key in ((0.2, "before"), (0.8, "now")))
    assert [line["scores"]["mean"] for line in table.Results([old, new]).scored] == [0.8]


def test_a_row_that_this_version_does_not_know_is_still_reported() -> None:
    lines = [fake(row, i, 0.5) for i in range(4) for row in ("sketch only", "render only", "fixed, step 11")]
    assert "| fixed, step 11 |" in table.markdown(lines, [])


@pytest.mark.parametrize(
    ("scores", "says"), [((0.8,) * 8, "holds"), ((0.5,) * 8, "does not hold"), ((0.8, 0.7) * 4, "not decided")]
)
def test_a_verdict_needs_an_interval_on_one_side_of_the_mark(scores: tuple[float, ...], says: str) -> None:
    lines = [
        fake(row, i, score)
        for i, own in enumerate(scores)
        for row, score in (("sketch only", 0.8), ("render only", 0.4), ("adaptive, delta 0.01", own))
    ]
    assert f"of the gain: {says}**" in table.markdown(lines, [])


def test_values_are_read_off_only_where_many_steps_were_sampled() -> None:
    """Three steps make two long straight lines over a curve that rises early."""
    curve = [None] + [0.5 * 0.7**i for i in range(49)]
    few = [
        fake(name, 0, score, switch_step=step, curves=None)
        for name, step, score in (("render only", None, 0.2), ("fixed, step 10", 10, 0.8))
    ]
    many = [fake(f"fixed, step {step}", 1, 0.2 + step / 100, switch_step=step) for step in (0, 5, 8, 10, 15)]
    sketches = [
        fake("sketch only", i, 0.9, psnr=None, curves={"x0": curve}, sigmas=[1 - j / 50 for j in range(51)])
        for i in (0, 1)
    ]
    replay = decide.Replay(table.Results([*few, *many, *sketches]), (50, "euler"))
    found = replay.estimate([9, 9], table.attribute("mean"))
    assert replay.well_known() == 1 and found.count == 1 and found.mean == pytest.approx(0.29)


def test_the_pareto_front_leaves_out_what_is_beaten() -> None:
    points = {"slow": (1.0, 0.9), "fast": (3.0, 0.4), "between": (2.0, 0.7), "beaten": (1.9, 0.6), "same": (2.0, 0.7)}
    assert figures.pareto(points) == {"slow", "fast", "between", "same"}


def test_the_replayed_rule_is_the_pack_s_own() -> None:
    generator = random.Random(0)
    sigmas = [1 - i / 50 for i in range(51)]
    fired = 0
    for _ in range(100):
        curve = [None, *(0.6 * 0.93**i * generator.uniform(0.9, 1.1) for i in range(49))]
        line = {"steps": 50, "curves": {"x0": curve}, "sigmas": sigmas}
        for delta in rows.DELTAS:
            step, reason = rows.adaptive_step(curve, 50, delta, 5)
            assert decide.Rule(delta=delta).first(line) == (step if reason in ("criterion", "earliest") else None)
            fired += reason == "criterion"
    assert fired > 100


def test_patience_waits_for_as_many_steps_in_a_row() -> None:
    curve = [None, 0.5, 0.45, 0.4, 0.35, 0.3, 0.295, 0.2, 0.195, 0.19, 0.188, *[0.1] * 40]
    line = {"steps": 50, "curves": {"x0": curve}, "sigmas": [1 - i / 50 for i in range(51)]}
    assert [decide.Rule(patience=count).first(line) for count in (1, 2, 3)] == [7, 10, 11]


def test_per_sigma_a_delta_means_the_same_at_any_number_of_steps() -> None:
    def line(steps: int) -> dict[str, Any]:
        """A prediction that settles exponentially in sigma: its change over a step is the integral of its rate."""
        sigmas = [1 - i / steps for i in range(steps + 1)]
        x0 = [2 * np.exp(-6 * (1 - s)) for s in sigmas]
        return {"steps": steps, "sigmas": sigmas, "curves": {"x0": [None, *np.abs(np.diff(x0[:-1]))]}}

    spread = {}
    for unit in ("step", "sigma"):
        rule = decide.Rule(unit=unit, fix_share=True, delta=0.005)
        at = [line(steps)["sigmas"][rule.first(line(steps))] for steps in (100, 50, 25)]
        spread[unit] = max(at) - min(at)
    assert spread["sigma"] < 0.1 and spread["step"] > 0.3


# --- videos for VBench ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_export_writes_the_names_that_vbench_reads_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square moves left\na red circle\n", "utf-8")
    output = tmp_path / "videos"
    names = {f"{prompt}-{index}.mp4" for prompt in ("a red circle", "a blue square moves left") for index in (0, 1)}
    with vbench.server(None) as running:

        def export(videos: int, steps: int) -> int:
            return vbench.main(
                [
                    "--prompts",
                    str(tmp_path / "prompts.txt"),
                    "--output",
                    str(output),
                    "--url",
                    running.url,
                    "--steps",
                    str(steps),
                    "--videos",
                    str(videos),
                ]
            )

        assert export(1, steps=2) == 0
        assert {file.name for file in output.iterdir()} == {name for name in names if "-0" in name}
        before = (output / "a red circle-0.mp4").stat().st_mtime_ns
        assert export(2, steps=2) == 0
        assert {file.name for file in output.iterdir()} == names
        assert (output / "a red circle-0.mp4").stat().st_mtime_ns == before
        assert export(2, steps=3) == 1 and "holds videos of other settings" in capsys.readouterr().err
    contents = [frames_of(output / name) for name in sorted(names)]
    assert all(video.shape == (9, 128, 128, 3) for video in contents)
    assert all(not np.array_equal(a, b) for i, a in enumerate(contents) for b in contents[i + 1 :])


def frames_of(file: Path) -> np.ndarray:
    with av.open(str(file)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("prompt", ["a cat/dog", "x" * 300])
def test_a_prompt_that_can_t_be_a_file_s_name_is_refused_before_any_work(prompt: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"a cat\n{prompt}\n", "utf-8")
    with pytest.raises(ValueError, match="can't be the name of a file"):
        vbench.read_prompts(tmp_path / "prompts.txt")


def test_the_videos_of_one_model_alone_have_the_frame_rate_of_the_workflow() -> None:
    graph = {
        "1": {"class_type": "VAEDecode", "inputs": {}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
    }
    alone = {"1": graph["1"]}
    assert vbench.video_graph(alone, vbench.frame_rate(graph))["vbench_video"]["inputs"]["fps"] == 8.0
    assert vbench.frame_rate(alone) == 16.0


def test_extended_prompts_are_one_for_each_prompt(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a long cat\n\na long dog\n", "utf-8")
    assert vbench.read_texts(tmp_path / "texts.txt", ["a cat", "a dog"]) == ["a long cat", "a long dog"]
    with pytest.raises(ValueError, match="2 texts for 1 prompts"):
        vbench.read_texts(tmp_path / "texts.txt", ["a cat"])


def test_prompts_are_read_from_vbench_s_own_list(tmp_path: Path) -> None:
    entries = [
        {"prompt_en": "a cat", "dimension": ["x"]},
        {"prompt_en": "a cat", "dimension": ["y"]},
        {"prompt_en": "a dog"},
    ]
    (tmp_path / "info.json").write_text(json.dumps(entries), "utf-8")
    assert vbench.read_prompts(tmp_path / "info.json") == ["a cat", "a dog"]


def test_a_seed_from_a_node_of_its_own_and_ksampler_advanced_are_found() -> None:
    graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "old", "clip": ["9", 0]}},
        "3": {"class_type": "KSamplerAdvanced", "inputs": {"noise_seed": ["1", 0], "positive": ["2", 0]}},
    }
    made = vbench.asked(graph, "new", 7)
    assert made["1"]["inputs"]["value"] == 7 and made["2"]["inputs"]["text"] == "new"
    assert graph["2"]["inputs"]["text"] == "old" and made["3"] == graph["3"]


def test_each_video_has_a_seed_of_its_own_whatever_the_list() -> None:
    seeds = {vbench.seed_of(0, prompt, index) for prompt in ("a", "b", "c") for index in range(5)}
    assert len(seeds) == 15 and vbench.seed_of(1, "a", 0) not in (vbench.seed_of(0, "a", 0),)


@pytest.fixture(autouse=True)
def no_leftover_arguments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The report names the program; pytest's own arguments are not it."""
    monkeypatch.setattr(sys, "argv", ["quality.py"])
    yield
