"""bench/spread.py: a list of prompts over several real servers, one of which is killed in the middle of its work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import client
import helpers
import pytest
import safetensors.torch
import torch
from hosting import REPOSITORY, host_module, load_by_path

sys.path.append(str(REPOSITORY / "bench"))
import spread_graph

spread = load_by_path("srd_spread", REPOSITORY / "bench" / "spread.py")

pytestmark = [pytest.mark.one_host, pytest.mark.long]
PROMPTS = ["a red circle moves left", "two blue squares", "a green star", "a yellow triangle moves up"]


def graph(sketch_steps: int = 6, side: int = 128) -> dict[str, Any]:
    """The demo's workflow as the API takes it, up to a saved latent."""
    how = {"steps": 8, "sampler_name": "dpmpp_2m", "seed": 1, "switch_step": sketch_steps, "render_cfg": 2.0}
    inputs = {"sketch": ["1", 0], "render": ["2", 0], "positive": ["4", 0], "negative": ["5", 0], "latent": ["6", 0]}
    inputs |= helpers.SAMPLING | helpers.RULE | helpers.RENDERING | how
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("SRLoadSketchDiT", {"model_name": "tiny_wan_sketch.safetensors"}),
        "2": ("SRLoadRenderDiT", {"model_name": "tiny_wan_render.safetensors"}),
        "4": ("SRDemoTextEncode", {"text": "to be replaced"}),
        "5": ("SRDemoTextEncode", {"text": ""}),
        "6": ("EmptyHunyuanLatentVideo", {"width": side, "height": side, "length": 9, "batch_size": 1}),
        "8": ("SRSampler", inputs),
        "9": ("SaveLatent", {"samples": ["8", 0], "filename_prefix": "latents/spread"}),
        "10": ("SRSwitchInspector", {"report": ["8", 1]}),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


# --- the workflow in two ----------------------------------------------------------------------------------------------


def test_the_sketch_half_needs_no_render_and_the_render_half_no_sketch() -> None:
    first, second = spread.sketch_graph(graph(), "a/b"), spread.render_graph(graph(), "x.sketch.safetensors")
    kinds = [{n["class_type"] for n in half.values()} - {"SRDemoTextEncode"} for half in (first, second)]
    assert kinds[0] == {"SRLoadSketchDiT", "EmptyHunyuanLatentVideo", "SRSketch", "SRSaveHandOver"}
    assert kinds[1] == {"SRLoadRenderDiT", "SRLoadHandOver", "SRRender", "SaveLatent", "SRSwitchInspector"}
    assert second["8"]["inputs"]["render_cfg"] == 2.0 and first["8"]["inputs"]["switch_step"] == 6


def test_each_half_gets_its_newest_settings_and_a_list_of_steps_is_refused() -> None:
    both = graph()
    both["8"]["inputs"] |= {"fade": 1.1, "render_steps": 4, "sketch_steps": "", "sketch_scale": 0.5, "preset": "custom"}
    first = spread.sketch_graph(both, "x")["8"]["inputs"]
    assert first["sketch_scale"] == 0.5 and not {"fade", "offload_sketch", "preset"} & first.keys()
    assert {"fade": 1.1, "render_steps": 4}.items() <= spread.render_graph(both, "x")["8"]["inputs"].items()
    both["8"]["inputs"]["sketch_steps"] = "1-3, 6"
    with pytest.raises(spread_graph.workflow.WorkflowError, match="sketch_steps"):
        spread.sketch_graph(both, "x")


def test_conditioning_of_the_render_alone_goes_to_the_render_half() -> None:
    both = graph() | {"11": {"class_type": "SRDemoTextEncode", "inputs": {"text": "own"}}}
    both["8"]["inputs"]["render_positive"] = ["11", 0]
    assert spread.render_graph(both, "x")["8"]["inputs"]["positive"] == ["11", 0]
    assert "11" not in spread.sketch_graph(both, "x")


def test_the_prompt_goes_into_the_text_node_also_behind_another_node() -> None:
    behind = graph() | {"12": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["4", 0]}}}
    behind["8"]["inputs"]["positive"] = ["12", 0]
    changed = spread.with_prompt(behind, "a star")
    assert changed["4"]["inputs"]["text"] == "a star" and behind["4"]["inputs"]["text"] == "to be replaced"


# --- the list ---------------------------------------------------------------------------------------------------------


def test_results_of_another_prompt_or_workflow_failures_and_cut_lines_are_not_done(tmp_path: Path) -> None:
    jobs = spread.jobs_of(["one", "", "three"], graph())
    assert [job.number for job in jobs] == [1, 3]
    other = spread.jobs_of(["one"], graph(sketch_steps=2))[0]
    lines = [{"number": 1, "key": other.key}, {"number": 3, "key": jobs[1].key, "error": "no"}]
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(map(json.dumps, lines)) + '\n{"number": 1, "key"', "utf-8")
    assert not spread.done_keys(results) & {(job.number, job.key) for job in jobs}


def test_a_line_after_a_cut_one_is_whole(tmp_path: Path) -> None:
    work = spread.Spread(graph(), {}, tmp_path, 1)
    (tmp_path / "results.jsonl").write_text('{"number": 1, "k', "utf-8")
    (job,) = spread.jobs_of(["one"], graph())
    work._record(job, files=[])
    assert spread.done_keys(tmp_path / "results.jsonl") == {(1, job.key)}


def jobs_at_work(folder: Path, url: str) -> tuple[Any, Any, Any]:
    """(the work, its first job, its second), both waiting for a server to sketch on."""
    work, jobs = spread.Spread(graph(), {spread.SKETCH: [url]}, folder, 1), spread.jobs_of(PROMPTS[:2], graph())
    work.add(jobs)
    return work, *jobs


def end_first(work: Any, url: str, what: str, why: str) -> Any:
    """Take the first job that waits, and book that it ended so."""
    job = work.waiting[spread.SKETCH].popleft()
    work._take(spread.SKETCH, job, url, what, why, 1.0)
    return job


def test_a_prompt_that_fails_goes_to_the_end_and_is_given_up_after_three_times(tmp_path: Path) -> None:
    work, first, second = jobs_at_work(tmp_path, "http://a")
    ended = [end_first(work, "http://a", "failed", "out of memory") for _ in range(5)]
    assert ended == [first, second, first, second, first]
    assert work.failed == 1 and list(work.waiting[spread.SKETCH]) == [second]
    (line,) = (tmp_path / "results.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["prompt"] == first.prompt and json.loads(line)["error"] == "out of memory"


def test_a_server_that_stays_away_costs_its_prompt_nothing_but_its_place(tmp_path: Path) -> None:
    what, why = spread.sketch_on("http://127.0.0.1:9", graph(), 1, threading.Event())
    assert what == "lost" and "127.0.0.1:9" in why
    work, first, second = jobs_at_work(tmp_path, "http://127.0.0.1:9")
    for _ in range(8):
        end_first(work, "http://127.0.0.1:9", what, why)
        work.lost["http://127.0.0.1:9"] = 0.0  # it is time to ask again
        assert not work._answers("http://127.0.0.1:9")
    assert list(work.waiting[spread.SKETCH]) == [first, second] and not work.failed and first.attempts == 0


# --- three real servers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """Three real servers with the tiny family, on loopback."""
    host = host_module.find_or_make()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as threads:

        def start(base: Path) -> Any:
            made = host_module.serve(host, base, host_module.DEMO_PACKS, host_module.tiny_family(), start_timeout=300)
            return stack.enter_context(made)

        yield list(threads.map(start, [tmp_path_factory.mktemp(f"server{i}") for i in range(3)]))


def run_spread(folder: Path, servers: list[Any], workflow: dict[str, Any]) -> subprocess.Popen[str]:
    """The command, with all servers but the last one to sketch, and that to render."""
    (folder / "graph.json").write_text(json.dumps(workflow), "utf-8")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), "utf-8")
    host = host_module.find_or_make()
    *sketching, rendering = (server.url for server in servers)
    command = [str(host.python), str(REPOSITORY / "bench" / "spread.py"), "--output", str(folder / "out")]
    command += ["--workflow", str(folder / "graph.json"), "--prompts", str(folder / "prompts.txt")]
    command += ["--sketch", *sketching, "--render", rendering]
    environment = {**os.environ, "PYTHONPATH": str(host_module.tools(host))}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def at_work(server: Any) -> bool:
    return bool(server.get("/queue")["queue_running"])


def test_a_prompt_lost_three_times_on_a_server_that_answers_again_is_given_up(
    servers: list[Any], tmp_path: Path
) -> None:
    url = servers[2].url
    work, first, second = jobs_at_work(tmp_path, url)
    for _ in range(5):
        end_first(work, url, "lost", "connection refused")
        work.lost[url] = 0.0  # it is time to ask again
        assert work._answers(url)
    assert work.failed == 1 and first.attempts == 3 and list(work.waiting[spread.SKETCH]) == [second]
    assert "connection refused" in (tmp_path / "results.jsonl").read_text("utf-8")


def test_a_prompt_that_has_gone_on_elsewhere_is_not_blamed_for_its_lost_server(
    servers: list[Any], tmp_path: Path
) -> None:
    url = servers[2].url
    work, first, _ = jobs_at_work(tmp_path, url)
    end_first(work, url, "lost", "connection refused")
    work.waiting[spread.SKETCH].remove(first)
    work._take(spread.SKETCH, first, "http://other", "done", b"a hand-over", 1.0)
    work.lost[url] = 0.0
    assert work._answers(url) and first.attempts == 0 and list(work.waiting[spread.RENDER]) == [first]


def test_time_that_is_over_is_a_failure_of_the_prompt_and_ends_nobody_else_s_work(servers: list[Any]) -> None:
    server = servers[2]
    other = server.queue(graph(side=256))
    wait_for(lambda: at_work(server), "it never got to work")
    what, why = spread.sketch_on(server.url, graph(), 0.0, threading.Event())
    assert what == "failed" and "did not finish within 0 s" in why
    assert all(item[1] == other for items in server.get("/queue").values() for item in items)
    wait_for(lambda: other in server.get("/history"), "it was never done")
    spread.client.checked(server.get(f"/history/{other}")[other])


def test_a_stopped_command_takes_its_work_off_the_servers(servers: list[Any], tmp_path: Path) -> None:
    long = graph(sketch_steps=600)
    long["8"]["inputs"]["steps"] = 800
    # Tests in the background may ignore it; children too.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = run_spread(tmp_path, servers[1:], long)
    signal.signal(signal.SIGINT, ours)
    wait_for(lambda: at_work(servers[1]), "it never got to work")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command continues" in said, said
    wait_for(lambda: not at_work(servers[1]), "it is still at work", seconds=5)
    assert {entry["status"]["status_str"] for entry in servers[1].get("/history?max_items=1").values()} == {"error"}


def test_a_killed_server_loses_no_prompt_and_only_its_own_is_done_again(servers: list[Any], tmp_path: Path) -> None:
    running = run_spread(tmp_path, servers, graph())
    wait_for(lambda: at_work(servers[0]), "it never got to work")
    os.killpg(servers[0]._process.pid, signal.SIGKILL)
    _, said = running.communicate(timeout=400)
    assert running.returncode == 0, said
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert sorted((r["number"], r["prompt"]) for r in results) == list(enumerate(PROMPTS, 1))
    assert {r["sketch"]["server"] for r in results} == {servers[1].url}
    tasks = [line.split() for line in said.splitlines() if " on http" in line]
    assert sorted(line[1] + " " + line[4].strip(",") for line in tasks) == ["render done"] * 4 + ["sketch done"] * 4 + [
        "sketch lost"
    ]

    # The first result is SR Sampler's own, bit for bit.
    (file,) = next(r for r in results if r["number"] == 1)["files"]
    entry = servers[2].run(spread.with_prompt(graph(), PROMPTS[0]))
    (whole,) = (servers[2].view(saved) for saved in client.files_of(entry) if saved["type"] == "output")
    ours, theirs = map(safetensors.torch.load, ((tmp_path / "out" / file).read_bytes(), whole))
    assert torch.equal(ours["latent_tensor"], theirs["latent_tensor"])

    again = run_spread(tmp_path, servers, graph())  # everything is done: no server is asked, nothing is done twice
    assert "4 done already" in again.communicate(timeout=60)[1] and again.returncode == 0
