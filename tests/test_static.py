"""What the pack's own source may not do: run text as code, read pickles, reach the network, or write files.

Read from the syntax tree of every file that the host imports; what is allowed is listed here with its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import REPOSITORY

SOURCES = [
    REPOSITORY / "__init__.py",
    *sorted((REPOSITORY / "nodes").rglob("*.py")),
    *sorted((REPOSITORY / "srd_core").rglob("*.py")),
]

# Modules that run programs, reach the network, or make objects of bytes.
MODULES = {"asyncio", "ctypes", "dill", "ftplib", "http", "httpx", "huggingface_hub", "joblib", "marshal"}
MODULES |= {"multiprocessing", "pickle", "pty", "requests", "runpy", "shelve", "shutil", "smtplib", "socket", "ssl"}
MODULES |= {"subprocess", "telnetlib", "tempfile", "urllib", "websocket", "websockets", "aiohttp"}
# Functions that do the same or write; a method is known by its name alone.
FUNCTIONS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
METHODS = {"write_text", "write_bytes", "unlink", "rmdir", "mkdir", "touch", "rename", "symlink_to", "hardlink_to"}
METHODS |= {"chmod", "system", "popen", "remove", "makedirs", "rmtree", "save_file", "import_module", "exec_module"}
METHODS |= {"load_state_dict_from_url"}
# (file, what) that is meant so.
ALLOWED = {
    ("nodes/live.py", "import aiohttp"): "an answer on the host's own web server; it opens no connection",
    ("nodes/live.py", "import asyncio"): "an answer is reckoned in a thread; it opens no connection",
    ("nodes/inspector.py", "write_text"): "writes the report into the host's output folder, where save_report asks",
    ("srd_core/handover/file.py", "save_file"): "Save Hand-over writes into the host's output folder",
    ("srd_core/handover/file.py", "unlink"): "the same, under another name first",
    ("srd_core/host_check.py", "import_module"): "looks for the host's hooks; names from a table in the source",
}


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a syntax tree that the pack may not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, f"import {a.name}") for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in MODULES:
            yield node.lineno, f"import {node.module}"
        elif isinstance(node, ast.Call) and (what := _fault_of_call(node)):
            yield node.lineno, what


def _fault_of_call(call: ast.Call) -> str | None:
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if (not owner and name in FUNCTIONS) or (owner and name in METHODS):
        return name
    if name == "open" and (mode := _mode_of(call, first=1 if owner in ("", "io", "os") else 0)) is not None:
        return f"open {mode}"
    if owner == "torch" and name in ("load", "save"):
        return f"torch.{name}"
    return None


def _mode_of(call: ast.Call, first: int) -> str | None:
    """The mode of an open() that is not known to only read; None for one that is."""
    given = [k.value for k in call.keywords if k.arg == "mode"] or call.args[first : first + 1]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r" if not given else "unknown"
    return None if isinstance(mode, str) and set(mode) <= set("rbt") else str(mode)


def found_in(path: Path) -> list[tuple[str, str, int]]:
    tree = ast.parse(path.read_text("utf-8"))
    return [(path.relative_to(REPOSITORY).as_posix(), what, line) for line, what in faults(tree)]


@pytest.mark.one_host
def test_the_pack_runs_no_text_reads_no_pickle_reaches_no_network_and_writes_no_file() -> None:
    found = {(file, what): line for path in SOURCES for file, what, line in found_in(path)}
    assert found.keys() == ALLOWED.keys(), found  # also: every exception is still needed


@pytest.mark.one_host
@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from urllib import request",
        "import urllib.request as u",
        "eval('1')",
        "exec(text)",
        "open(p, 'w')",
        "open(p, mode='a')",
        "open(p, mode)",
        "path.open('wb')",
        "p.write_text('')",
        "os.system('ls')",
        "torch.load(p)",
        "torch.save(x, p)",
        "importlib.import_module(n)",
        "shutil.rmtree(p)",
        "import subprocess",
    ],
)
def test_the_check_sees(code: str) -> None:
    assert list(faults(ast.parse(code)))


@pytest.mark.one_host
@pytest.mark.parametrize(
    "code", ["open(p)", "open(p, 'rb')", "path.open('r')", "x.load(p)", "re.compile(p)", "torch.compile(m)"]
)
def test_the_check_lets_reading_pass(code: str) -> None:
    assert not list(faults(ast.parse(code)))
