"""The embedded default: the tiny family's prompts, oracle, files and training."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
import torch
from hosting import REPOSITORY

import latent
from data import held_out, held_out_scenes, random_scene, video
from oracle import ATTRIBUTES, score
from text import TEXT_DIM, TEXT_TOKENS, caption, encode, known_and_unknown, parse, vocabulary

FAMILY = REPOSITORY / "demo" / "family"
WEIGHTS = FAMILY / "weights"


def test_every_caption_is_read_back_as_its_scene() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = random_scene(rng)
        assert parse(caption(scene))[0] == scene, caption(scene)


def test_known_and_unknown_words_are_told_apart() -> None:
    known, unknown = known_and_unknown("A shiny red circle moves left, above a blue Elephant!")
    assert known == ["a", "red", "circle", "moves", "left", "above", "a", "blue"]
    assert unknown == ["shiny", "elephant"]


@pytest.mark.parametrize("prompt", ["", "elephant", "left left of of above", "red " * 200, "'; DROP TABLE --", "\n\t…"])
def test_any_text_is_encoded_to_the_same_size(prompt: str) -> None:
    vectors = encode(prompt)
    assert vectors.shape == (TEXT_TOKENS, TEXT_DIM) and torch.isfinite(vectors).all()


def test_every_word_of_the_vocabulary_is_known() -> None:
    assert all(known_and_unknown(word) == ([word], []) for word in vocabulary())
    assert 25 <= len(vocabulary()) <= 60


def test_the_oracle_reads_true_videos_and_does_not_take_others_for_them() -> None:
    scenes = held_out_scenes(12, seed=5)
    videos = [video(scene, seed=i).numpy() for i, scene in enumerate(scenes)]
    right = [score(v, s) for v, s in zip(videos, scenes)]
    wrong = [score(v, s) for v, s in zip(videos, scenes[1:] + scenes[:1])]
    for name in ATTRIBUTES:
        told = [s[name] for s in right if name in s]
        assert sum(told) / len(told) > 0.9, name
    assert sum(s["mean"] for s in right) / len(right) > 0.95
    assert sum(s["mean"] for s in wrong) / len(wrong) < 0.35


def test_the_oracle_sees_noise_as_unclean_and_empty_frames_as_nothing() -> None:
    scene = held_out_scenes(1, seed=5)[0]
    noise = torch.rand(9, 128, 128, 3, generator=torch.Generator().manual_seed(0)).numpy()
    assert score(noise, scene)["off"] > 0.3 and score(noise, scene)["mean"] < 0.3
    assert score(torch.full((9, 128, 128, 3), 0.05).numpy(), scene)["mean"] == 0.0


def test_a_smaller_video_shows_the_same_scene_and_the_latent_takes_it() -> None:
    scenes = held_out_scenes(12, seed=5)
    videos = [video(scene, seed=i, size=96) for i, scene in enumerate(scenes)]
    assert videos[0].shape == (9, 96, 96, 3)
    scores = [score(v.numpy(), s)["mean"] for v, s in zip(videos, scenes)]
    assert sum(scores) / len(scores) > 0.9
    assert latent.blocks(videos[0][..., 0]).shape == (256, 3, 12, 12)


def test_held_out_prompts_are_held_out_and_reproducible() -> None:
    scenes = held_out_scenes(20, seed=5)
    assert all(held_out(s) for s in scenes) and scenes == held_out_scenes(20, seed=5)


# --- the trained files, by the host's own loaders ---------------------------------------------------------------------


def test_the_files_are_small_enough_to_come_with_the_repository() -> None:
    files = sorted(path.name for path in WEIGHTS.glob("*.safetensors"))
    assert files == ["tiny_wan_render.safetensors", "tiny_wan_sketch.safetensors", "tiny_wan_vae.safetensors"]
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 20e6


def test_a_video_survives_the_vae() -> None:
    vae = evaluate.load_vae()
    for seed, scene in enumerate(held_out_scenes(2, seed=5)):
        true = video(scene, seed=seed)
        back = vae.decode(vae.encode(true))[0].float()
        assert back.shape == true.shape
        assert -10 * torch.log10((back - true).square().mean()) > 30
        assert score(back.numpy(), scene)["mean"] > 0.8


def test_the_sketch_understands_and_the_render_draws() -> None:
    """By the x0 prediction's error: with much noise the sketch is clearly better, with little they are near.

    The scores on sampled videos are in the family's card; they take too long for a test.
    """
    scenes = held_out_scenes(5, seed=6)
    vae = evaluate.load_vae()
    z = latent.from_vae(torch.cat([vae.encode(video(s, seed=i)) for i, s in enumerate(scenes)]).float())
    much, little = (0.8, 0.9), (0.05, 0.1, 0.2)
    models = (evaluate.load_dit(name) for name in ("sketch", "render"))
    sketch, render = (evaluate.x0_errors(model, z, scenes, much + little) for model in models)
    assert all(render[sigma] > 1.2 * sketch[sigma] for sigma in much)
    assert all(render[sigma] < 1.2 * sketch[sigma] for sigma in little)
    assert all(e < 0.2 for e in (sketch[0.9], render[0.9]))  # 1 is what an untrained model gets


@pytest.mark.long
def test_the_family_can_be_trained_again_from_nothing(tmp_path: Path) -> None:
    """Every stage of the one command, for a few steps; the exported files are checked against the host by it."""
    done = subprocess.run(
        [sys.executable, str(FAMILY / "train.py"), "--quick", "--weights", str(tmp_path)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("tiny_wan_*.safetensors"))) == 3
