"""Videos for VBench: the names that it reads, and a run that continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hosting import REPOSITORY, load_by_path

vbench = load_by_path("srd_vbench_export", REPOSITORY / "bench" / "vbench_export.py")


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
    graph: dict[str, dict[str, Any]] = {
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
