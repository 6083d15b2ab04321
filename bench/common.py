"""Start a measurement in the host's Python; say of each result when, how, where and with what it was measured."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "demo"))

import host
from host import REPOSITORY

RESULTS = REPOSITORY / "bench" / "results"
EVIDENCE = REPOSITORY / "docs" / "evidence.md"  # with the sections that tables are written into
CARD = REPOSITORY / "demo" / "family" / "CARD.md"  # too
IN_HOST = "SRD_BENCH_IN_HOST"


def run_in_host() -> None:
    """Continue in the host's Python, with tests/ (tiny models, the host in this process) on sys.path."""
    if os.environ.get(IN_HOST) != "1":
        python = str(host.find_or_make().python)
        os.environ[IN_HOST] = "1"
        os.execv(python, [python, *sys.argv])
    sys.path.append(str(REPOSITORY / "tests"))


def facts() -> dict[str, str]:
    """When, how, where and with what something is measured: for every line of results."""
    import torch

    return {
        "date": datetime.date.today().isoformat(),
        "command": command(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "host": f"ComfyUI {host.find_or_make().version}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def command() -> str:
    """The running command as it can be typed again, without this machine's folders."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return f"python3 bench/{Path(sys.argv[0]).name} {shlex.join(words)}".strip()


@functools.cache
def commit() -> str:
    """The checkout's, with a + where code was changed since; SRD_COMMIT where git does not know it."""
    asked = ["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno", "--", ":!bench/results", ":!*.md"]
    try:
        head, changed = (
            subprocess.check_output(["git", *words], cwd=REPOSITORY, text=True, stderr=subprocess.DEVNULL).strip()
            for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("SRD_COMMIT", "unknown")
    return head + "+" * bool(changed)


def update_readme(path: Path, marks: tuple[str, str], section: Sequence[str]) -> bool:
    """Put the section between its marks; whether the marks are there."""
    text = path.read_text("utf-8")
    start, end = map(re.escape, marks)
    body = "\n".join([marks[0], *section, marks[1]])
    new, count = re.subn(f"{start}.*?{end}", lambda _: body, text, flags=re.DOTALL)
    if count:
        path.write_text(new, "utf-8")
    return count > 0
