"""Start a measurement in the host's Python; say of each result when, how, where and with what it was measured."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
EVIDENCE = REPOSITORY / "docs" / "evidence.md"  # with the sections that tables are written into
IN_HOST = "SRD_BENCH_IN_HOST"


def load_by_path(name: str, path: Path) -> ModuleType:
    """Import a file, or a package by its __init__.py, under ``name``; the repository's root stays off sys.path."""
    folders = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_in_host() -> None:
    """Continue in the host's Python, with tests/ (tiny models, the host in this process) on sys.path."""
    host_module = load_by_path("srd_host", REPOSITORY / "demo" / "host.py")
    if os.environ.get(IN_HOST) != "1":
        host = host_module.find_or_make()
        os.environ[IN_HOST] = "1"
        os.execv(str(host.python), [str(host.python), *sys.argv])
    sys.path.append(str(REPOSITORY / "tests"))


def facts() -> dict[str, str]:
    """When, how, where and with what something is measured: for every line of results."""
    import comfyui_version
    import torch

    return {
        "date": datetime.date.today().isoformat(),
        "command": command(),
        "commit": commit(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "host": f"ComfyUI {comfyui_version.__version__}",
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
