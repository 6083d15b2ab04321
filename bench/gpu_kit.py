"""What a lent GPU machine without a network lacks, in folders that travel with the checkout: the host's tree, and wheels.

    make gpu-kit        or: python3 bench/gpu_kit.py

Made for a machine with x86-64 Linux, Python 3.12, torch and what IMAGE lists, and for a call that carries LIMIT bytes, checkout
included. Each folder has run.sh, which unpacks what is there; with all folders unpacked it starts bench/gpu.py. Needs pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import common
import gpu

FOLDER = common.REPOSITORY / ".gpu-kit"
LIMIT, ROOM = 63 << 20, 60 << 20  # bytes: of all that a call carries, with a little to spare; of a folder at most
PYTHON = "3.12"
PLATFORMS = [
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
# Of what the host requires or those need: there already, in versions that will do.
IMAGE = {
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "scipy",
    "einops",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "aiohttp",
    "yarl",
    "pyyaml",
    "pillow",
    "tqdm",
    "psutil",
    "filelock",
    "requests",
    "markupsafe",
}
# For the host's page and server, and for nodes that are not used.
UNUSED = {
    "comfyui-frontend-package",
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
    "comfy-angle",
    "alembic",
    "sqlalchemy",
    "blake3",
    "kornia",
    "pyopengl",
}
MORE = ("sageattention",)  # for rows of bench/gpu.py
# Of the host's tree, by the beginning of a path or its end.
LEFT_OUT = re.compile(
    r"(blueprints|tests|tests-unit|script_examples|alembic_db|models|input|output|temp|user|custom_nodes|comfy_api_nodes|\.git|web)(/|$)"
    r"|.*(__pycache__|\.pyc|\.md|openapi\.yaml|text_encoders/.*\.(json|model|txt))$"
)
TIGHTER = 40 << 20  # wheels above this many bytes are packed by xz
OTHER_CARDS = "backends/hip/"  # in comfy-kitchen
RUN = """#!/usr/bin/env bash
# Unpack this kit; then, unless --unpack is all that is asked for, measure: bash .gpu-kit/run.sh [options of bench/gpu.py]
set -eo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${SRD_KIT_BASE:-${TMPDIR:-/tmp}/srd-gpu-kit}
mkdir -p "$base/site"
for kit in .gpu-kit .gpu-kit-*; do
    if [ ! -d "$kit" ] || [ -e "$base/$kit.unpacked" ]; then continue; fi
    for wheel in "$kit"/*.whl; do if [ -e "$wheel" ]; then python3 -m zipfile -e "$wheel" "$base/site"; fi; done
    for archive in "$kit"/*.tar.xz; do if [ -e "$archive" ]; then tar xJf "$archive" -C "$base"; fi; done
    touch "$base/$kit.unpacked"
done
if [ "$1" = --unpack ]; then exit; fi
for kit in @KITS@; do
    if [ ! -e "$base/$kit.unpacked" ]; then echo "$kit is not unpacked here: carry it, and run bash $kit/run.sh --unpack." >&2; exit 2; fi
done
export PYTHONPATH="$base/site${PYTHONPATH:+:$PYTHONPATH}" COMFYUI_PATH="$base/host" SRD_COMMIT=@COMMIT@
export COMFYUI_PYTHON=${COMFYUI_PYTHON:-$(command -v python3)} HF_HUB_OFFLINE=1
results=${OUT:-bench/results}
for earlier in bench/results/gpu-*.json "$base"/gpu-*.json; do if [ -e "$earlier" ]; then cp -u "$earlier" "$results" || true; fi; done
"$COMFYUI_PYTHON" bench/gpu.py --results "$results" "$@"
cp -u "$results"/gpu-*.json "$base"
"""


def wheels(requirements: Path, folder: Path) -> None:
    """Put the wheels of what is required, and of what those need, into ``folder``. Raises CalledProcessError where pip can't."""
    wanted, seen = [*MORE, *_needs(requirements.read_text("utf-8").splitlines())], IMAGE | UNUSED
    while wanted:
        names = {re.split(r"[^\w.-]", need)[0].lower().replace("_", "-"): need for need in wanted}
        new = {name: need for name, need in names.items() if name not in seen}
        seen = seen | new.keys()
        before = set(folder.glob("*.whl"))
        if new:
            options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
            options += [word for platform in PLATFORMS for word in ("--platform", platform)]
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *new.values()], check=True
            )
        wanted = [need for wheel in set(folder.glob("*.whl")) - before for need in _needs(_metadata(wheel))]


def _metadata(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        lines = content.read(name).decode("utf-8").splitlines()
    return [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]


def _needs(lines: list[str]) -> Iterator[str]:
    """The requirements among these lines, without extras and those of older Pythons."""
    for line in lines:
        need, _, marker = (part.strip() for part in line.partition(";"))
        if (
            need
            and not need.startswith("#")
            and not re.search(r"extra|python_(full_)?version *<|win32|Windows", marker)
        ):
            yield re.sub(r"[\s()]", "", need)


def pack_host(host: Path, archive: Path) -> None:
    """The host's tree, without LEFT_OUT, as host/."""
    with tarfile.open(archive, "w:xz") as tar:
        for path in sorted(host.rglob("*")):
            name = path.relative_to(host).as_posix()
            if path.is_file() and not LEFT_OUT.match(name):
                tar.add(path, f"host/{name}")


def tighter(wheel: Path) -> Path:
    """The wheel's content as site/ in an archive that is smaller, without what other makes of cards need."""
    archive = wheel.with_suffix(".tar.xz")
    with tempfile.TemporaryDirectory() as name, tarfile.open(archive, "w:xz") as tar:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(name, [member for member in content.namelist() if OTHER_CARDS not in member])
        tar.add(name, "site")
    wheel.unlink()
    return archive


def carried() -> int:
    """Bytes of the checkout that travel with every call: tracked files, and others that git does not ignore."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=common.REPOSITORY, text=True
    )
    return sum(path.stat().st_size for name in listed.split("\0") if (path := common.REPOSITORY / name).is_file())


def distributed(files: list[Path], room: int) -> list[list[Path]]:
    """The files in as few folders as the largest-first rule finds. Raises ValueError for a file that fits nowhere."""
    folders: list[list[Path]] = []
    for file in sorted(files, key=lambda file: -file.stat().st_size):
        size = file.stat().st_size
        if size > room:
            raise ValueError(
                f"{file.name} has {size >> 20} MiB, and a call has room for {room >> 20}. Make the checkout smaller."
            )
        fits = (folder for folder in folders if sum(each.stat().st_size for each in folder) + size <= room)
        folder = next(fits, None)
        if folder is None:
            folders.append(folder := [])
        folder.append(file)
    return folders


def main() -> int:
    host = common.load_by_path("srd_host", common.REPOSITORY / "demo" / "host.py").find_or_make()
    for old in common.REPOSITORY.glob(f"{FOLDER.name}*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        pack_host(host.path, there / "host.tar.xz")
        wheels(host.path / "requirements.txt", there)
        for wheel in there.glob("*.whl"):
            if wheel.stat().st_size > TIGHTER:
                tighter(wheel)
        room = min(ROOM, LIMIT - carried())
        folders = distributed(list(there.iterdir()), room)
        names = [FOLDER.name + (f"-{number + 1}" if number else "") for number in range(len(folders))]
        for folder, files in zip(names, folders):
            target = common.REPOSITORY / folder
            target.mkdir()
            for file in files:
                shutil.move(file, target)
            script = RUN.replace("@KITS@", " ".join(names)).replace("@COMMIT@", gpu.commit())
            (target / "run.sh").write_text(script, "utf-8")
            print(
                f"{folder}: {sum(path.stat().st_size for path in target.iterdir()) / (1 << 20):.1f} MiB of at most {room / (1 << 20):.1f}"
            )
    print("\n".join(["", "On the machine, each call while it is still warm after the one before:", *calls(names)]))
    return 0


def calls(names: list[str]) -> list[str]:
    """What to call, with what the device machine's tool is given."""
    first, *others = names
    out = [f'run(command="bash {name}/run.sh --unpack", carry=["{name}"])' for name in others]
    out.append(f'run(command="bash {first}/run.sh --minutes 9.3", carry=["{first}"], timeout_s=600)')
    return [
        *out,
        "Copy the gpu-*.json that come back into bench/results; the last call again measures what is missing.",
        "At the end, here: python3 bench/gpu.py --table",
    ]


if __name__ == "__main__":
    sys.exit(main())
