"""SR Compare: two clips in one picture, and numbers that are right."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
import torchvision
from hosting import REPOSITORY, module

sys.path.append(str(REPOSITORY / "bench"))

import quality_metrics  # noqa: F401  (it puts torchmetrics on sys.path)

likeness = module("srd_core.likeness")
compare = module("srd_core.compare")
NODE = module("nodes.compare").SRCompare


@pytest.fixture(autouse=True)
def previews_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's preview goes to the test's own folder, not into the host's."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))


DEFAULTS = {"label_a": "one", "label_b": "two", "layout": "side by side", "position": 0.5, "lpips": "off"}


def clip(seed: int = 0, frames: int = 3, height: int = 64, width: int = 80) -> torch.Tensor:
    """IMAGE [frames, height, width, 3] of smooth noise."""
    noise = torch.rand(frames, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear").movedim(1, -1).contiguous()


def run(a: torch.Tensor, b: torch.Tensor, **how: Any) -> tuple[torch.Tensor, torch.Tensor, str, dict[str, Any]]:
    out = NODE.execute(a, b, **{**DEFAULTS, **how})
    return (*out.args, out.ui)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_psnr_is_that_of_a_known_error() -> None:
    a = torch.full((2, 16, 16, 3), 0.5)
    assert likeness.psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-5)
    assert math.isinf(likeness.psnr(a, a))


def test_psnr_of_the_clip_is_of_all_pixels_not_a_mean_of_the_frames() -> None:
    a = torch.zeros(2, 16, 16, 3)
    b = a.clone()
    b[1] += 0.1
    found = compare.compare(a, b, ("a", "b"), "off")
    assert math.isinf(found.psnr[0]) and found.psnr[1] == pytest.approx(20.0, abs=1e-5)
    assert found.whole_psnr == pytest.approx(20 + 10 * math.log10(2), abs=1e-5)


def test_ssim_is_per_frame_and_falls_where_a_frame_differs() -> None:
    a = clip()
    b = a.clone()
    b[2] = clip(1)[2]
    values = likeness.ssim(a, b)
    assert values[:2].tolist() == [1.0, 1.0] and values[2] < 0.5


def test_flicker_is_the_mean_change_between_frames() -> None:
    steady, jumping = torch.zeros(4, 16, 16, 3), torch.zeros(4, 16, 16, 3)
    jumping[1::2] = 0.2
    assert likeness.flicker(steady) == 0 and likeness.flicker(jumping) == pytest.approx(0.2)
    assert likeness.flicker(steady[:1]) == 0


@pytest.fixture
def random_alexnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LPIPS' library, and AlexNet's architecture with random weights where torch keeps its downloads."""
    assert importlib.util.find_spec("torchmetrics"), "bench/requirements.txt could not be installed"
    weights = torchvision.models.AlexNet_Weights.DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), folder / weights.url.rsplit("/", 1)[-1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    yield
    likeness._lpips_network.cache_clear()


def test_lpips_measures_where_its_weights_are(random_alexnet: None) -> None:
    a, b = clip(), clip(1)
    near = a + 0.01 * (b - a)
    apart, close, same = (likeness.lpips(a, other) for other in (b, near, a))
    assert apart.shape == (3,) and same.abs().max() < 1e-6
    assert (apart > close).all() and (close > 0).all()
    assert likeness.lpips(a[1:2], b[1:2])[0] == pytest.approx(float(apart[1]), rel=1e-5)  # frame by frame
    *_, summary, _ = run(a, b, lpips="alex")
    assert f"LPIPS: {float(apart.mean()):.4f}" in summary


def test_without_its_weights_lpips_is_said_to_be_missing_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    *_, summary, _ = run(clip(), clip(1), lpips="alex")
    assert "LPIPS: not measured." in summary and "PSNR: " in summary and "SSIM: " in summary
    assert "pip install torchmetrics" in summary or "get_model('alexnet', weights='DEFAULT')" in summary
    assert not list(tmp_path.rglob("*.pth"))


# --- the node ---------------------------------------------------------------------------------------------------------


def test_the_text_holds_what_was_measured() -> None:
    a, b = clip(), clip(1)
    comparison, plot, summary, ui = run(a, b)
    assert f"PSNR: {likeness.psnr(a, b):.2f} dB" in summary
    assert f"SSIM: {float(likeness.ssim(a, b).mean()):.4f}" in summary
    assert summary.startswith("two compared with one, 3 frames") and "LPIPS" not in summary
    assert ui["text"] == (summary,) and len(ui["images"]) == 1
    assert comparison.dtype == plot.dtype == torch.float32 and plot.shape[0] == 1 and plot.shape[-1] == 3


def test_equal_clips_are_called_identical() -> None:
    *_, summary, _ = run(clip(), clip())
    assert "identical" in summary and "inf" not in summary


def test_side_by_side_holds_both_clips() -> None:
    a, b = clip(), clip(1)
    comparison, *_ = run(a, b, label_a="", label_b=" ")
    assert torch.equal(comparison, torch.cat([a, b], 2))


def test_labels_are_written_on_their_own_clip() -> None:
    a, b = clip(), clip(1)
    comparison, *_ = run(a, b, label_b="")
    assert not torch.equal(comparison[:, :, :80], a) and torch.equal(comparison[:, :, 80:], b)
    assert torch.equal(comparison[:, 40:, :80], a[:, 40:])  # only in the corner


@pytest.mark.parametrize("position, edge", [(0.0, 0), (0.25, 20), (1.0, 80)])
def test_a_wipe_goes_over_from_a_to_b_at_its_edge(position: float, edge: int) -> None:
    a, b = clip(), clip(1)
    comparison, *_ = run(a, b, layout="wipe", position=position, label_a="", label_b="")
    assert torch.equal(comparison[:, :, : max(edge - 1, 0)], a[:, :, : max(edge - 1, 0)])
    assert torch.equal(comparison[:, :, edge + 1 :], b[:, :, edge + 1 :])
    white = (comparison == 1).all(-1).all(1).all(0)  # [width]: columns that are white in every frame
    assert white.nonzero().flatten().tolist() == ([edge - 1, edge] if 0 < edge < 80 else [])


def test_a_moving_wipe_shows_more_of_a_and_then_less() -> None:
    edges = compare.wipe_edges(8, 80, "moving wipe", 0.5)
    assert edges == edges[::-1] and edges[:4] == sorted(edges[:4]) and edges[0] < 20 and edges[3] > 60


def test_the_difference_is_black_where_the_clips_agree() -> None:
    a, b = clip(), clip()
    b[:, :32] = (b[:, :32] + 0.1).clamp(max=1)
    comparison, *_ = run(a, b, layout="difference")
    assert (comparison[:, 32:] == 0).all() and comparison[:, :32].max() == pytest.approx(0.4, abs=1e-5)


def test_the_plot_has_a_panel_for_every_measure_and_a_dot_for_every_frame() -> None:
    a, b = clip(), clip(1)
    found = compare.compare(a, b, ("a", "b"), "off")
    picture = np.asarray(compare.plot(found))
    found.ssim = []
    assert picture.shape[0] - np.asarray(compare.plot(found)).shape[0] == compare.PANEL + 70
    tone = tuple(int(compare.TONES["SSIM"][i : i + 2], 16) for i in (1, 3, 5))
    assert (picture == tone).all(-1).sum() > 3 * 20


# --- clips that can't be compared -------------------------------------------------------------------------------------


def test_clips_of_different_length_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"one has 3 frames and two has 5\. Compare clips of one length"):
        run(clip(), clip(frames=5))


def test_clips_of_different_size_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"one is 80 x 64 pixels and two is 96 x 64\. Compare clips of one size"):
        run(clip(), clip(width=96))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_that_is_not_finite_is_named_in_a_sentence(value: float) -> None:
    broken = clip(1)
    broken[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match="Frame 2 of two has values that are not finite"):
        run(clip(), broken)


def test_tiny_frames_are_compared_without_ssim() -> None:
    a = torch.rand(2, 8, 8, 3)
    _, _, summary, _ = run(a, a * 0.9)
    assert "PSNR: " in summary and "SSIM: not measured" in summary


@pytest.mark.parametrize("frames, channels", [(1, 3), (2, 4)])
def test_a_single_picture_and_one_with_transparency_are_fine(frames: int, channels: int) -> None:
    a = torch.rand(frames, 64, 64, channels, generator=torch.Generator().manual_seed(0))
    comparison, _, summary, _ = run(a, 1 - a)
    assert comparison.shape == (frames, 64, 128, 3) and "PSNR" in summary


def test_a_position_that_is_no_number_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="position is nan; it must be a number"):
        run(clip(), clip(1), layout="wipe", position=float("nan"))


def test_a_prompt_of_several_lines_is_a_label_of_one() -> None:
    assert run(clip(), clip(1), label_a="a red\ncircle")[2].startswith("two compared with a red circle, 3 frames")


def test_long_labels_are_cut_to_the_clip() -> None:
    comparison, *_ = run(clip(), clip(1), label_a="a very long label " * 2000)
    assert comparison.shape == (3, 64, 160, 3)
