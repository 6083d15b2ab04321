"""What a lent GPU machine without a network lacks, in folders that travel with the checkout: the host, and packages.

    make gpu-kit        or: python3 bench/gpu_kit.py

Made for x86-64 Linux with Python 3.12, torch and the packages that the host shares with transformers. The whole is one
archive, in as many parts as calls of LIMIT bytes, checkout included, can carry. Each folder has a part and run.sh,
which keeps the part there; with all parts there it unpacks them and starts bench/gpu.py. Needs pip.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import common

FOLDER = ".gpu-kit"  # the next ones are .gpu-kit-2 and so on
LIMIT = 62 << 20  # bytes of all that a call carries, with a little to spare
PYTHON = "3.12"
PLATFORMS = [f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_17", "2014", "1")]
# What the host, and sage attention for rows of bench/gpu.py, need beyond the image. The first ones need torch, which is
# there; the second ones come with what they need. Left out: what the host's page, server and unused nodes need.
BESIDE_TORCH = ("comfy-aimdo", "comfy-kitchen", "sageattention", "spandrel", "torchsde", "trampoline")
WHOLE = ("av", "pydantic", "pydantic-settings", "simpleeval")
# Of the archive, by a path's beginning or end; hip is for other makes of cards.
LEFT_OUT = re.compile(
    r"host/(blueprints|tests|tests-unit|script_examples|alembic_db|models|input|output|temp|user|custom_nodes"
    r"|comfy_api_nodes|\.git|web)(/|$)"
    r"|host/.*(\.md|openapi\.yaml|text_encoders/.*\.(json|model|txt))$"
    r"|.*(__pycache__|\.pyc|backends/hip)$"
)
RUN = """#!/usr/bin/env bash
# Keep this part; then, unless --keep is all that is asked for, measure: bash .gpu-kit/run.sh [options of bench/gpu.py]
set -eo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${SRD_KIT_BASE:-${TMPDIR:-/tmp}/srd-gpu-kit}
mkdir -p "$base"
cp .gpu-kit*/part-* "$base"
if [ "$1" = --keep ]; then exit; fi
if [ ! -d "$base/host" ]; then
    parts=("$base"/part-*)
    if [ ${#parts[@]} -lt @PARTS@ ]; then
        echo "${#parts[@]} of @PARTS@ parts are here: carry the other folders first, bash FOLDER/run.sh --keep." >&2
        exit 2
    fi
    cat "${parts[@]}" | tar xJ -C "$base"
fi
export PYTHONPATH="$base/site${PYTHONPATH:+:$PYTHONPATH}" COMFYUI_PATH="$base/host" SRD_COMMIT=@COMMIT@
export COMFYUI_PYTHON=${COMFYUI_PYTHON:-$(command -v python3)} HF_HUB_OFFLINE=1
results=${OUT:-bench/results}
for earlier in bench/results/gpu-*.jsonl "$base"/gpu-*.jsonl; do
    if [ -e "$earlier" ]; then cp -u "$earlier" "$results" || true; fi
done
"$COMFYUI_PYTHON" bench/gpu.py --results "$results" "$@"
cp -u "$results"/gpu-*.jsonl "$base"
"""


def install(requirements: Path, site: Path) -> None:
    """Put the packages into ``site``, in the host's versions. Raises CalledProcessError where pip can't."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--no-warn-conflicts"]
    pip += ["--target", str(site), "-c", str(requirements)]
    pip += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]
    pip += [word for platform in PLATFORMS for word in ("--platform", platform)]
    subprocess.run([*pip, *WHOLE], check=True)
    subprocess.run([*pip, "--no-deps", *BESIDE_TORCH], check=True)


def pack(archive: Path, **folders: Path) -> None:
    """The folders under their names in one archive, without LEFT_OUT."""
    with tarfile.open(archive, "w:xz") as tar:
        for name, folder in folders.items():
            tar.add(folder, name, filter=lambda member: None if LEFT_OUT.match(member.name) else member)


def carried() -> int:
    """Bytes of the checkout that travel with every call: tracked files, and others that git does not ignore."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=common.REPOSITORY, text=True
    )
    return sum(path.stat().st_size for name in listed.split("\0") if (path := common.REPOSITORY / name).is_file())


def distribute(archive: Path, root: Path, room: int) -> list[str]:
    """Cut the archive into equal parts of at most ``room`` bytes, each in a folder in ``root``; their names."""
    content = archive.read_bytes()
    count = -(-len(content) // room)
    size = -(-len(content) // count)
    names = [FOLDER, *(f"{FOLDER}-{number}" for number in range(2, count + 1))]
    for number, name in enumerate(names):
        (root / name).mkdir()
        (root / name / f"part-{number}").write_bytes(content[number * size : (number + 1) * size])
        script = RUN.replace("@PARTS@", str(count)).replace("@COMMIT@", common.commit())
        (root / name / "run.sh").write_text(script, "utf-8")
    return names


def main() -> None:
    """Make the kit, and say what to call with it: in terms of the device machine's tool."""
    host = common.host.find_or_make()
    for old in common.REPOSITORY.glob(f"{FOLDER}*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as name:
        site, archive = Path(name) / "site", Path(name) / "kit.tar.xz"
        install(host.path / "requirements.txt", site)
        pack(archive, site=site, host=host.path)
        first, *others = distribute(archive, common.REPOSITORY, LIMIT - carried())
        print(f"{archive.stat().st_size / (1 << 20):.1f} MiB. On the machine, each call while it is still warm:")
    for name in others:
        print(f'run(command="bash {name}/run.sh --keep", carry=["{name}"])')
    print(f'run(command="bash {first}/run.sh --minutes 9.3", carry=["{first}"], timeout_s=600)')
    print("Copy the gpu-*.jsonl that come back into bench/results; the last call again measures what is missing.")
    print("At the end, here: python3 bench/gpu.py --table")


if __name__ == "__main__":
    main()
