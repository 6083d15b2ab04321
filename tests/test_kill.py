"""What a server leaves that is killed in any stage (kill -9), and what one that lives writes, and where."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workflow
from hosting import REPOSITORY, module
from serving import census, cooperating, digest_of, plain, serving, sketch_saved, wan_files

pytestmark = pytest.mark.long

handover = module("srd_core.handover.file")

# Where the server is killed, and the graph and fault that make it wait there.
STAGES: dict[str, dict[str, Any]] = {
    "in the sketch": {"stage": "sketch", "fault": {"place": "call", "act": "wait", "at": 2}},
    "at the hand-over": {"stage": "render", "fault": {"place": "load", "act": "wait", "at": 1}},
    "in the render": {"stage": "render", "fault": {"place": "call", "act": "wait", "at": 2}},
    "while a hand-over is written": {},
}


def wait_until(server: Any, condition: Any, seconds: float = 120) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition(found := census(server)):
            return found
        time.sleep(0.2)
    raise AssertionError(f"the server never got there: {census(server)}")


def kill(server: Any) -> None:
    """Kill -9, and wait until it is gone."""
    pid = census(server)["pid"]
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.05)


def hand_overs(server: Any) -> list[str]:
    """What Load Hand-over offers."""
    type_, *options = server.object_info("SRLoadHandOver")["SRLoadHandOver"]["input"]["required"]["hand_over"]
    return list(workflow.choices(type_, options[0] if options else {}) or [])


@pytest.mark.one_host
@pytest.mark.timeout(900)
def test_after_kill_9_the_next_server_works_and_takes_no_half_file_for_whole(tmp_path: Path) -> None:
    base, files = tmp_path / "base", wan_files(tmp_path / "files")
    found: list[tuple[str, str]] = []
    for stage, how in [*STAGES.items(), ("", {})]:
        with serving(base, files) as server:
            found.append(
                (digest_of(server.run(plain(), timeout=120)), digest_of(server.run(cooperating(), timeout=120)))
            )
            offered = hand_overs(server)
            for name in offered:
                handover.read(base / "output" / name.removesuffix(" [output]"))
            if not stage:
                assert len(offered) == 1  # the whole one, written before the one that was cut off
                break
            if how:
                server.queue(cooperating(run=1, **how))
            else:
                server.run(sketch_saved(run=1), timeout=120)
                server.get("/srd_test/wait_at/os.rename")
                server.queue(sketch_saved(run=2, prefix="srdiffusion/cut"))
            wait_until(server, lambda now: now["waiting"])
            kill(server)
    assert len(set(found)) == 1
    partial = list((base / "output").rglob("*.partial"))
    assert len(partial) == 1, "the server was killed while the file had its other name"


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change."""
    files: Iterator[Path] = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.one_host
@pytest.mark.timeout(600)
def test_a_server_writes_into_the_hosts_folders_only_and_connects_to_nobody(tmp_path: Path) -> None:
    """By the interpreter's audit events (files opened to be written, connections), and by the files before and after.

    Libraries write without an event.
    """
    base, files = tmp_path / "base", wan_files(tmp_path / "files")
    with serving(base, files) as server:
        server.run(plain(), timeout=120)
        before, models = tree(base), tree(tmp_path / "files")
        server.run(cooperating(run=1, switching={"teacache": 0.2}), timeout=120)
        server.run(cooperating(run=2, node="SRModel", switching={"switch_mode": "adaptive"}), timeout=120)
        server.run(sketch_saved(run=3), timeout=120)
        graph = cooperating(run=4)
        graph["inspect"] = {
            "class_type": "SRSwitchInspector",
            "inputs": {"report": ["sampler", 1], "after": ["sampler", 0]},
        }
        server.run(graph, timeout=120)
        events, after = server.get("/srd_test/log"), tree(base)
    written = [e for e in events if e["ours"] and e["event"] != "socket.connect"]
    allowed = (str(base / "output"), str(base / "temp"))
    assert [e for e in written if not e["target"].startswith(allowed)] == []
    assert any(e["event"] == "os.rename" for e in written), "Save Hand-over was not seen: the watch is blind"
    assert [e for e in events if e["event"] == "socket.connect" and "127.0.0.1" not in e["target"]] == []
    assert [
        e
        for e in events
        if e["event"] in ("subprocess.Popen", "os.system", "os.exec", "pickle.find_class") and e["ours"]
    ] == []
    changed = {name for name in after if after[name] != before.get(name)} | set(before) - set(after)
    assert {name.split("/")[0] for name in changed} <= {"output", "temp", "user", "server.log"}
    assert any(name.startswith("output/srdiffusion/") for name in changed)
    assert tree(tmp_path / "files") == models
    assert str(REPOSITORY) not in "".join(e["target"] for e in written)
