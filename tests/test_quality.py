"""The evaluation: it runs in the real host, continues where it stopped, and its numbers are what its lines say."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosting import REPOSITORY, module
from PIL import Image

sys.path.append(str(REPOSITORY / "bench"))

import common
import quality
import quality_figures as figures
import quality_metrics as metrics
import quality_rows as rows
import quality_table as table
import rule

RUN, PROMPTS = (10, "euler"), 2
SIZE = "64x64x5"  # a quarter of the pixels and half the frames of what is published: decoding is what costs
NAMES = ["sketch only", "fixed, step 3", "step 3, fade", "step 3, fade, no guidance"]


def command(folder: Path) -> int:
    """The command as from the shell, on the run of ten steps."""
    folders = ["--results", str(folder), "--frames", str(folder / "frames")]
    return quality.main([*folders, "--rows", r"\(10 steps", "--prompts", str(PROMPTS), "--size", SIZE])


@pytest.fixture(scope="module", autouse=True)
def ten_steps_alone() -> Any:
    """Sketch only of the other runs is left out: it would take most of the time."""
    patch = pytest.MonkeyPatch()
    short = [row for row in rows.main_rows() if row.run == RUN]
    patch.setattr(quality, "TABLES", {**quality.TABLES, "quality": lambda: short})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    assert command(folder) == 0
    return folder


@pytest.fixture(scope="module")
def studio() -> Any:
    return rows.Studio(rows.Family(size=SIZE))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [rows.text.caption(scene) for scene in quality.data.held_out_scenes(3, seed=quality.SCENE_SEED)]


def lines_of(folder: Path, name: str = "quality") -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_row_is_a_line_per_prompt_with_every_column(made: Path) -> None:
    found = lines_of(made)
    assert [line["row"] for line in found] == NAMES * PROMPTS
    for line in found:
        alone = line["row"] == "sketch only"
        assert line["date"] and line["commit"] and line["host"].startswith("ComfyUI") and "cores" in line["machine"]
        assert 0 <= line["scores"]["mean"] <= 1 and 0 < line["flicker"] < 1
        assert line["calls"] == ({"sketch": 10, "render": 0} if alone else {"sketch": 3, "render": 7})
        assert sum(line["seconds"].values()) > 0 and line["switch_step"] == (None if alone else 3)
        assert ("psnr" in line) != alone and ("curve" in line) == alone
        if not alone:
            assert 5 < line["psnr"] < 80 and 0 < line["ssim"] < 1 and line["cvvdp"] < 10


def test_the_table_s_numbers_are_means_of_the_lines(made: Path) -> None:
    text = (made / "quality.md").read_text("utf-8")
    own = [line for line in lines_of(made) if line["row"] == "step 3, fade"]
    head = next(line for line in text.splitlines() if line.startswith("| row |"))
    row = next(line for line in text.splitlines() if line.startswith("| step 3, fade |"))
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, row))))
    for name, key, form in (("PSNR, dB", "psnr", ".2f"), ("SSIM", "ssim", ".3f"), ("CVVDP", "cvvdp", ".3f")):
        assert cells[name].startswith(f"{np.mean([line[key] for line in own]):{form}} [")
    assert cells["score"].startswith(f"{np.mean([line['scores']['mean'] for line in own]):.3f} [")
    assert cells["prompts x seeds"] == f"{PROMPTS} x 1" and cells["sketch steps"] == "3.0"
    assert "LPIPS" in text


def test_a_finished_cell_is_never_sampled_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (made / "quality.jsonl").read_bytes()
    monkeypatch.setattr(rows.Studio, "sample", lambda *_: pytest.fail("sampled a finished cell"))
    assert command(made) == 0
    assert (made / "quality.jsonl").read_bytes() == before


def test_a_killed_run_continues_where_it_stopped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (made / "quality.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "quality.jsonl").write_bytes(b"".join(whole[:-1]) + whole[-1][:40])  # the last line torn
    sampled: list[tuple[str, int]] = []
    sample = rows.Studio.sample

    def watched(self: Any, row: Any, prompt: str, number: int, *more: Any) -> Any:
        sampled.append((row.name, number))
        return sample(self, row, prompt, number, *more)

    monkeypatch.setattr(rows.Studio, "sample", watched)
    assert command(tmp_path) == 0
    assert sampled == [("sketch only", 1), (NAMES[-1], 1)]  # the first only to compare with
    lost, anew = json.loads(whole[-1]), lines_of(tmp_path)
    assert len(anew) == len(whole) and quality.cell_of(anew[-1]) == quality.cell_of(lost)
    assert anew[-1]["psnr"] == pytest.approx(lost["psnr"], abs=1e-3)


@pytest.mark.parametrize("change", [("of yesterday", "192x192x9"), ("of today", "192x192x17")])
def test_results_of_other_weights_and_settings_are_left_alone(
    made: Path, tmp_path: Path, change: tuple[str, str]
) -> None:
    other = [{**line, "weights": change[0], "setup": change[1]} for line in lines_of(made)]
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in other), "utf-8")
    store = quality.Store(tmp_path / "quality.jsonl", "of today", "192x192x9")
    assert not store.lines and not store.done
    store.add(other[0])
    assert len(lines_of(tmp_path)) == len(other) + 1 and len(store.lines) == 1


def test_the_setup_follows_all_that_changes_a_result() -> None:
    changes: list[dict[str, Any]] = [{}, {"shift": 3.0}, {"cfg": 4.0}, {"size": "192x192x9"}, {"negative": "blurred"}]
    assert len({rows.Family(**change).setup() for change in changes}) == len(changes)


def test_the_hash_of_the_weights_sees_a_change_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    content = bytearray(random.Random(0).randbytes(100_000))
    file.write_bytes(content)
    before = quality.weights_hash([file])
    content[70_001] ^= 1
    file.write_bytes(content)
    assert quality.weights_hash([file]) != before


def test_figures_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name in figures.SHEET:
        Image.new("RGB", (384, 128), "red").save(tmp_path / "frames" / f"{name} (50 steps, euler), 0.png")
    figures.write(lines_of(common.RESULTS), tmp_path, tmp_path / "frames")
    for name in ("curves", "switch_steps", "speed_quality", "contact_sheet"):
        with Image.open(tmp_path / f"quality_{name}.png") as picture:
            assert min(picture.size) > 100 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 2


# --- what is published ------------------------------------------------------------------------------------------------


def between(path: Path, marks: tuple[str, str]) -> list[str]:
    return path.read_text("utf-8").split(f"{marks[0]}\n")[1].split(marks[1])[0].splitlines()


@pytest.mark.one_host
@pytest.mark.parametrize("name", rows.TABLES)
def test_the_published_tables_are_what_the_results_say(name: str) -> None:
    found = table.markdown(lines_of(common.RESULTS, name), metrics.no_lpips())
    told = between(common.RESULTS / f"{name}.md", table.MARKS)
    assert [line for line in told if line[:1] == "|"] == [line for line in found if line[:1] == "|"]


@pytest.mark.one_host
def test_the_evidence_and_the_family_s_card_are_what_the_results_say() -> None:
    found = lines_of(common.RESULTS)
    assert between(common.EVIDENCE, table.EVIDENCE_MARKS) == table.evidence(found)
    assert between(common.CARD, table.CARD_MARKS) == table.card(found)


def test_the_demo_samples_with_the_settings_that_the_family_was_evaluated_with() -> None:
    nodes = json.loads((REPOSITORY / "demo" / "demo.json").read_text("utf-8"))["nodes"]
    widgets = {node["type"]: node.get("widgets_values") for node in nodes}
    _, _, steps, cfg, sampler, scheduler, *_ = widgets["SRSampler"]
    family = rows.Family()
    evaluated = [family.shift], family.cfg, rows.PAPER_STEPS, rows.ALONE[0].sampler, rows.SCHEDULER
    assert (widgets["ModelSamplingSD3"], cfg, steps, sampler, scheduler) == evaluated
    assert {line["setup"] for line in lines_of(common.RESULTS)} == {family.setup()}


@pytest.mark.one_host
def test_the_rule_s_table_is_what_the_pack_s_rule_gives_on_the_recorded_curves() -> None:
    recorded = json.loads(rule.CURVES.read_text("utf-8"))
    assert between(common.RESULTS / "rule.md", rule.MARKS) == rule.report(recorded)


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_the_recorded_curve_is_what_the_pack_sees(
    studio: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = studio.sample(rows.Row("", "alone", steps=8), prompts[0], 0, 0).curve
    reports: list[Any] = []
    sampler = module("nodes.sampler").SRSampler
    execute = sampler.execute

    def kept(*args: Any, **kwargs: Any) -> Any:
        output = execute(*args, **kwargs)
        reports.append(output.args[1])
        return output

    monkeypatch.setattr(sampler, "execute", kept)
    settings = {"switch_mode": "adaptive", "max_step": 5, "delta": 1e-4}
    studio.sample(rows.Row("", "together", steps=8, inputs=settings), prompts[0], 0, 0)
    seen = [step.d for step in reports[0].steps if step.stage == "sketch" and step.d is not None]
    assert len(seen) >= 3 and seen == pytest.approx(curve[1 : 1 + len(seen)], rel=1e-4)


def test_two_ksamplers_with_euler_are_the_fixed_step_and_with_uni_pc_are_not(studio: Any, prompts: list[str]) -> None:
    difference = {}
    for sampler in ("euler", "uni_pc"):  # uni_pc has a history, which two sampler runs lose
        both = [dataclasses.replace(row, steps=6, sampler=sampler) for row in (rows.cut(3), two_samplers(3))]
        fixed, chained = (studio.sample(row, prompts[0], 0, 0).video for row in both)
        difference[sampler] = float((fixed - chained).abs().mean() * 255)
    assert difference["euler"] < 0.05 and difference["uni_pc"] > 0.3


def two_samplers(step: int) -> Any:
    return rows.Row("", "two samplers", value=step)


def test_every_kind_of_row_runs_all_steps(studio: Any, prompts: list[str]) -> None:
    seen: dict[tuple[str, str], Any] = {}
    for row in rows.main_rows():
        if (row.kind, row.cache) in seen:
            continue
        # An EasyCache of .5 reuses enough of six steps for a lost latent to show: SSIM .07 in place of .95.
        short = dataclasses.replace(row, steps=6, value=0.5 if row.cache == "EasyCache" else min(row.value, 2))
        sampled = studio.sample(short, prompts[0], 0, 0, [None, 0.5, 0.4, 0.3, 0.299, 0.1])
        assert sampled.video.shape == (5, 64, 64, 3) and 0 <= sampled.video.min() < sampled.video.max() <= 1
        assert sum(sampled.calls.values()) == 6
        seen[row.kind, row.cache] = sampled
    kinds = {"alone", "together", "own schedule", "two samplers", "noised anew"}
    assert set(seen) == {(kind, "") for kind in kinds} | {("alone", "TeaCache"), ("alone", "EasyCache")}
    sketch = seen["alone", ""].video
    for cache in ("TeaCache", "EasyCache"):  # the latent is not lost
        assert (metrics.compared(seen["alone", cache].video, sketch)["ssim"] or 0) > 0.5


def test_the_number_and_the_seed_choose_the_noise(studio: Any, prompts: list[str]) -> None:
    row = rows.Row("", "alone", steps=2)
    first, again, other, seed = (studio.sample(row, prompts[0], *how).video for how in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, seed)


def test_own_step_is_where_the_fall_of_d_stays_below_delta() -> None:
    curve = [None, 0.5, 0.45, 0.4, 0.35, 0.3, 0.295, 0.2, 0.195, *[0.1] * 41]
    assert rows.own_step(curve, 50, 0.01) == (7, "criterion")
    assert rows.own_step([None, *(0.9 - 0.018 * i for i in range(49))], 50, 0.01) == (50, "never")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_pack_s_psnr_and_ssim_are_torchmetrics_own() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 48, 40, 3, generator=generator)
    b = (a + 0.05 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    found, likeness = metrics.compared(b, a), module("srd_core.likeness")
    assert found["psnr"] == pytest.approx(float(likeness.psnr(b, a)), abs=1e-4)
    assert found["ssim"] == pytest.approx(float(likeness.ssim(b, a).mean()), abs=1e-5)


def test_colorvideovdp_sees_more_where_more_is_changed() -> None:
    a = torch.rand(3, 48, 48, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    same, near, far = (metrics.compared(a + change, a)["cvvdp"] or 0 for change in (0, 0.01, 0.1))
    assert same == 10 and same > near > far


def test_intervals_are_those_of_a_bootstrap_over_prompts() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = table.stat(list(values))
    error = 1.96 * np.std(values) / 20
    assert found and found.mean == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.mean - error, abs=0.15 * error)
    assert found.high == pytest.approx(found.mean + error, abs=0.15 * error)
    assert table.stat([3.0]) == table.Stat(3.0, 3.0, 3.0, 1) and table.stat([]) is None


def fake(row: str, prompt: int, score: float, **more: Any) -> dict[str, Any]:
    calls = {"sketch": 50, "render": 0} if row == "sketch only" else {"sketch": 0, "render": 50}
    line = {"row": row, "steps": 50, "sampler": "euler", "number": prompt, "seed": 0}
    line |= {"prompt": str(prompt), "scores": {"mean": score}}
    return {**line, "psnr": 20.0, "calls": calls, "seconds": None, "flicker": 0.0, **more}


def test_the_share_of_the_gain_is_of_the_way_from_render_to_sketch() -> None:
    scores = {"sketch only": 0.8, "render only": 0.4, "step 10, fade": 0.7}
    lines = [fake(row, i, score) for i in range(4) for row, score in scores.items()]
    lines.append(fake("sketch only", 4, 0.0))  # a prompt that the others do not have
    share = table.gain(table.Results(lines).rows((50, "euler")), "step 10, fade")
    assert share and (share.mean, share.low, share.high) == pytest.approx((0.75, 0.75, 0.75))


def test_there_is_no_share_of_a_gain_that_is_not_there() -> None:
    lines = [fake(row, i, 0.5) for i in range(4) for row in ("sketch only", "render only", "step 10, fade")]
    assert table.gain(table.Results(lines).rows((50, "euler")), "step 10, fade") is None


def timed(row: str, sketch: tuple[int, float], render: tuple[int, float]) -> dict[str, Any]:
    """(steps, seconds) of each model in one timed run."""
    calls, seconds = ({"sketch": s, "render": r} for s, r in zip(sketch, render))
    return fake(row, 0, 1, calls=calls, seconds=seconds)


ALONE = [timed("sketch only", (50, 100.0), (0, 0.0)), timed("render only", (0, 0.0), (50, 25.0))]  # 2 s and 0.5 s


def test_speed_up_is_from_the_steps_of_each_model_and_what_a_step_costs() -> None:
    half = fake("fixed, step 10", 0, 1, calls={"sketch": 10, "render": 40})
    assert table.Results([*ALONE, half]).speed_up(half) == pytest.approx(100 / (20 + 20))


def test_a_row_without_guidance_takes_the_share_that_its_timed_runs_took_of_the_row_with() -> None:
    name = "step 10, no guidance"
    unguided = timed(name, (10, 20.0), (40, 18.0))
    lines = [*ALONE, unguided, timed("fixed, step 10", (10, 20.0), (40, 36.0))]
    assert table.Results(lines).speed_up(unguided) == pytest.approx(100 / (20 + 10))
    assert table.Results([*ALONE, unguided]).speed_up(unguided) is None  # the row with guidance was not timed


def test_a_cache_on_the_sketch_takes_the_share_of_the_sketch_s_steps() -> None:
    cached = timed("TeaCache 0.14 on the sketch", (50, 80.0), (0, 0.0))
    assert table.Results([*ALONE, cached]).speed_up(cached) == pytest.approx(100 / 80)


def test_a_cell_that_was_sampled_again_counts_once_as_it_is_now() -> None:
    lines = [fake("fixed, step 10", 0, score) for score in (0.2, 0.8)]
    assert [line["scores"]["mean"] for line in table.Results(lines).scored] == [0.8]


def test_a_row_that_this_version_does_not_know_is_still_reported() -> None:
    lines = [fake(row, i, 0.5) for i in range(4) for row in ("sketch only", "fixed, step 11")]
    assert any("| fixed, step 11 |" in line for line in table.main_table(table.Results(lines), (50, "euler")))


def test_a_measure_that_some_cells_lack_says_of_how_many_prompts_it_is() -> None:
    lines = [fake("fixed, step 10", i, 0.5, **({"cvvdp": 9.0} if i else {})) for i in range(4)]
    (*_, row) = table.main_table(table.Results(lines), (50, "euler"))
    assert "| 9.000 [9.000, 9.000], 3 prompts |" in row and "20.00 [20.00, 20.00] |" in row


def test_rows_are_compared_with_the_cut_on_the_prompts_that_both_have() -> None:
    lines = [fake("fixed, step 10", i, 0.5, psnr=20.0) for i in range(4)]
    lines += [fake("step 10, fade", i, 0.6, psnr=22.0 if i else 19.0) for i in range(3)]
    (*_, row) = table.against_cut(table.Results(lines).rows((50, "euler")))
    assert row.startswith("| step 10, fade | +1.00 [") and "| 2 of 3 | -1.0 | +0.100 [" in row


def test_the_pareto_front_leaves_out_what_is_beaten() -> None:
    points = {"slow": (1.0, 0.9), "fast": (3.0, 0.4), "between": (2.0, 0.7), "beaten": (1.9, 0.6), "same": (2.0, 0.7)}
    assert figures.pareto(points) == {"slow", "fast", "between", "same"}


@pytest.mark.parametrize("steps", [8, 50, 100])
def test_the_replayed_rule_switches_where_it_does_on_the_predictions_themselves(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    sigmas = [5 * t / (1 + 4 * t) for t in (1 - i / steps for i in range(steps + 1))]
    at, route = set(), module("srd_core.route")
    for _ in range(20):
        x0, noise = torch.randn(2, 1, 64, generator=generator)
        predictions = [x0 + sigma**3 * (noise + 0.1 * torch.randn(1, 64, generator=generator)) for sigma in sigmas[:-1]]
        changes = [
            [rule.change(p, predictions[i - lag]) if i >= lag else None for i, p in enumerate(predictions)]
            for lag in range(1, rule.LAGS + 1)
        ]
        places = [rule.timestep(sigma) for sigma in sigmas[:-1]]
        pair = route.Pair(route.SKETCH, route.RENDER, route.Switch(switch_sigma=0.0))
        way, expected = route.Route(pair, sigmas[:-1], places), sigmas[-1]
        for step, prediction in enumerate(predictions):
            if way.turn(step):
                expected = sigmas[step]
                break
            way.observe(step, prediction)
        at.add(expected)
        assert rule.switched_at({"sigmas": sigmas, "changes": changes}, 0) == pytest.approx(expected)
    assert len(at) > 1
