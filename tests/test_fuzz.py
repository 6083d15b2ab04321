"""Changed bytes of models and hand-overs: each file is refused by a sentence that names it, soon and in little memory.

Whether a changed file is still a good one is asked of the safetensors library, not of the pack.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import helpers
import pytest
import safetensors
import safetensors.torch
import torch
from drawn import LONG, MANY
from hosting import module
from runs import handover, loaders, sketched

checkpoint = module("srd_core.checkpoint")
pytestmark = LONG

MEMORY = 500_000_000  # bytes that a refusal may take on top of what the process has
SECONDS = 2.0  # of this process's own CPU time, so that a busy machine changes nothing
BATCH, BATCHES = (100, 10) if MANY else (40, 1)  # files a test, and tests
WIDE = (b"{},", b"[],", b'"",', b"1,", b"[0,0],")


@dataclass
class File:
    """A safetensors file in parts, so that its text can be changed without rules."""

    header: dict[str, Any]
    data: bytes
    text: bytes | None = None  # the header's bytes, where it is not the header's JSON
    length: int | None = None  # what the file says of the header's length; None: the truth
    cut: int | None = None  # bytes of the file that are left

    def write(self, path: Path) -> None:
        text = json.dumps(self.header).encode() if self.text is None else self.text
        length = len(text) if self.length is None else self.length
        path.write_bytes((struct.pack("<Q", length) + text + self.data)[: self.cut])


def parse(path: Path) -> File:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return File(json.loads(content[8 : 8 + length]), content[8 + length :])


# --- what happens to a file -------------------------------------------------------------------------------------------

NUMBERS = [-1, 0, 1, 2**31, 2**63, 2**64 + 1, -(2**70), 0.5, 1e300, float("nan"), float("inf"), None, True]
OTHERS = ["", "F32", "../../x", "\x00", "\ud800", [], [[]], [-1], {}, {"a": 1}, [2**62, 4], [1] * 70, "9" * 5000]
ODD = NUMBERS + OTHERS
PATHS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "C:\\x",
    "\x00",
    "file:///etc/passwd",
    "http://127.0.0.1:9",
    "~",
]
CONFIGS = [
    '{"transformer": {"num_layers": 1000000000}}',
    '{"transformer": 3}',
    "[" * 100_000,
    '{"transformer": {"num_heads": "x"}}',
]
DTYPES = [*checkpoint.DTYPES, "F8_E8M0", "C64", "float32", "f32", "PICKLE"]


def tensor_of(file: File, rng: random.Random) -> dict[str, Any]:
    return file.header[rng.choice([k for k in file.header if k != "__metadata__"])]


def truncated(file: File, rng: random.Random) -> None:
    whole = 8 + len(json.dumps(file.header)) + len(file.data)
    file.cut = rng.choice([rng.randrange(whole), rng.randrange(4000), whole - 1, rng.randrange(9)])


def another_length(file: File, rng: random.Random) -> None:
    file.length = rng.choice([0, 1, 2**63, 2**64 - 1, 10**8, rng.getrandbits(rng.randrange(1, 64))])


def huge_header(file: File, rng: random.Random) -> None:
    """Up to and above the limit, in the forms that take most memory."""
    count = rng.choice([checkpoint.HEADER_LIMIT - 10, checkpoint.HEADER_LIMIT + 10, 1_000_000, 100_000])
    filler = rng.choice(WIDE)
    text = rng.choice(
        [b"[" * count, b"[" + filler * (count // len(filler)) + b"0]", b" " * count + b"{}", b"9" * count]
    )
    file.text = text[:count]


def another_dtype(file: File, rng: random.Random) -> None:
    tensor_of(file, rng)["dtype"] = rng.choice([*DTYPES, *ODD])


def another_shape(file: File, rng: random.Random) -> None:
    shape = tensor_of(file, rng)["shape"]
    if shape and rng.random() < 0.7:
        shape[rng.randrange(len(shape))] = rng.choice([*ODD, 7, 10**6])
    else:
        tensor_of(file, rng)["shape"] = rng.choice(ODD)


def other_offsets(file: File, rng: random.Random) -> None:
    offsets = tensor_of(file, rng)["data_offsets"]
    if rng.random() < 0.7:
        offsets[rng.randrange(2)] = rng.choice([*ODD, len(file.data), len(file.data) + 4, offsets[0], 4])
    else:
        tensor_of(file, rng)["data_offsets"] = rng.choice([*ODD, offsets[::-1]])


def duplicate_keys(file: File, rng: random.Random) -> None:
    twice = rng.choice(list(file.header))
    other = json.dumps({twice: rng.choice([tensor_of(file, rng), *ODD])})
    file.text = (other[:-1] + ", " + json.dumps(file.header)[1:]).encode("utf-8", "surrogatepass")


def path_tricks(file: File, rng: random.Random) -> None:
    """In the metadata, where the host and the pack look for a config, and in the names of tensors."""
    metadata = dict(file.header.get("__metadata__") or {})
    metadata[rng.choice(["config", "_quantization_metadata", "format", "facts", *metadata])] = rng.choice(
        [*PATHS, *CONFIGS, *ODD]
    )
    file.header["__metadata__"] = rng.choice([metadata, metadata, metadata, *ODD])
    if rng.random() < 0.3:
        name = rng.choice([k for k in file.header if k != "__metadata__"])
        file.header[rng.choice(PATHS) + name] = file.header.pop(name)


def flipped_bytes(file: File, rng: random.Random) -> None:
    text = bytearray(json.dumps(file.header).encode())
    for _ in range(rng.randrange(1, 8)):
        text[rng.randrange(len(text))] = rng.randrange(256)
    file.text = bytes(text)


def another_kind(file: File, rng: random.Random) -> None:
    """What people, and others, rename to .safetensors."""
    starts = [
        b"PK\x03\x04",
        b"\x80\x02cposix\nsystem\n",
        b"GGUF",
        b"<!DOCTYPE html>",
        b"version https://git-lfs",
        b"",
        b"{}",
    ]
    file.text, file.length = b"", int.from_bytes((rng.choice(starts) + rng.randbytes(8))[:8], "little")
    file.data = rng.randbytes(rng.randrange(2000))


MUTATIONS = [truncated, another_length, another_dtype, another_shape, other_offsets]
MUTATIONS += [duplicate_keys, path_tricks, flipped_bytes, another_kind]


def mutated(original: Path, path: Path, seed: int) -> str:
    """Write a changed copy; returns what was done to it."""
    rng, file = random.Random(seed), parse(original)
    mutation = huge_header if seed % BATCH < 3 else MUTATIONS[seed % len(MUTATIONS)]
    mutation(file, rng)
    file.write(path)
    return f"{mutation.__name__}, seed {seed}"


def is_whole(path: Path, shapes: dict[str, list[int]]) -> bool:
    """Whether the safetensors library reads the file and finds tensors of these shapes, all numbers finite."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is not a dict)
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RuntimeError):
        return False
    return {key: list(t.shape) for key, t in tensors.items()} == shapes


@contextmanager
def watched() -> Iterator[None]:
    """Memory beyond MEMORY raises MemoryError; CPU seconds beyond SECONDS fail the test."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - started < SECONDS


def refusal(check: Callable[[], Any]) -> str:
    """What a check says when it refuses; empty when it does not. Only ValueError is a refusal."""
    with watched():
        try:
            check()
        except ValueError as error:
            return str(error)
    return ""


def assert_sentence(said: str, name: str, what: str) -> None:
    assert name in said and said.rstrip().endswith(".") and len(said) < 1000 and "Traceback" not in said, (
        f"{what}: {said!r}"
    )


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan, all weights zero but of the real layout, with metadata."""
    path = tmp_path_factory.mktemp("whole") / "wan.safetensors"
    zeros = {key: torch.zeros_like(value) for key, value in helpers.wan_state_dict().items()}
    safetensors.torch.save_file(zeros, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_changed_model_file_is_refused_before_it_is_loaded_or_still_a_good_one(
    batch: int, model: Path, tmp_path: Path
) -> None:
    shapes = {key: t["shape"] for key, t in parse(model).header.items() if key != "__metadata__"}
    refused = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        path = tmp_path / f"changed_{seed}.safetensors"
        what = mutated(model, path, seed)
        if said := refusal(partial(checkpoint.check_video_dit, path)):
            assert_sentence(said, path.name, what)
            refused += 1
        else:
            assert is_whole(path, shapes) or what.startswith(("path_tricks", "flipped", "duplicate")), what
        path.unlink()
    assert refused > BATCH / 2


@pytest.mark.parametrize("batch", range(2))
def test_a_changed_index_of_shards_is_refused_by_a_sentence(batch: int, tmp_path: Path) -> None:
    rng = random.Random(batch)
    index = tmp_path / f"model{checkpoint.INDEX}"
    whole = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    for _ in range(BATCH):
        changed = json.loads(json.dumps(whole))
        changed["weight_map"]["a"] = rng.choice([*PATHS, *ODD])
        text = rng.choice(
            [json.dumps(changed), json.dumps(rng.choice(ODD)), "[" * 10**5, "{", "\x00", json.dumps(whole)[:50]]
        )
        index.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert_sentence(refusal(lambda: checkpoint.weight_files(index)), index.name, text[:80])


def test_the_loaders_refuse_a_changed_file_and_a_name_out_of_the_models_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "diffusion_pytorch_model.safetensors").write_bytes(model.read_bytes())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(folder)], {".safetensors"}))
    for seed in (3, 4, 5, 12, 13):
        what = mutated(model, folder / "changed.safetensors", seed)
        said = refusal(lambda: loaders.SRLoadSketchDiT.execute("changed.safetensors", "default", "auto"))
        assert_sentence(said, "changed.safetensors", what)
    for name in ("../elsewhere", str(secret), "../elsewhere/diffusion_pytorch_model.safetensors"):
        with pytest.raises((ValueError, FileNotFoundError)):
            loaders.SRLoadSketchDiT.execute(name, "default", "auto")


@pytest.fixture(scope="module")
def hand_over(wan: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.sketch.safetensors"
    handover.write(sketched(wan())[0], path)
    return path


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_changed_hand_over_file_is_refused_or_still_a_good_one(batch: int, hand_over: Path, tmp_path: Path) -> None:
    shapes = {key: t["shape"] for key, t in parse(hand_over).header.items() if key != "__metadata__"}
    refused = 0
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        path = tmp_path / f"changed_{seed}.sketch.safetensors"
        what = mutated(hand_over, path, seed)
        said = refusal(partial(handover.read, path))
        if said:
            assert_sentence(said, path.name, what)
            refused += 1
        else:
            assert is_whole(path, shapes), what
        path.unlink()
    assert refused > BATCH / 2
