r"""A list of prompts over several ComfyUI servers: some sketch, some render, hand-over files go between them.

    pip install urllib3
    python3 bench/spread.py --workflow workflows/wan2.1_t2v_14B_to_1.3B.json --prompts prompts.txt --output out \
        --sketch http://big1:8188 http://big2:8188 --render http://small1:8188

Start: the workflow is any with SR Sampler (it is taken apart into SR Sketch and SR Render), a prompt is a line. A
server may be in both pools. Each needs this pack and its models, and --max-upload-size 2000 for the hand-overs.

See: each task that ends says so here. What is done lies in the output folder: hand-overs/, a folder a prompt, and
results.jsonl. A server that dies loses no prompt: others take over, and only what it was at is done again. A prompt
that fails three times, by an error, by its time (--timeout) or with a server that then answers again, is given up.

Stop: Ctrl-C ends the work on the servers too. The same command continues where a stopped or killed one was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spread_graph import OWN, Graph, render_graph, sketch_graph, to_api, with_prompt

# isort: split
import client  # spread_graph has put demo/ on sys.path
from cache import aside

SKETCH, RENDER = "sketch", "render"
SUFFIX = ".sketch.safetensors"
ATTEMPTS = 3  # of a prompt at a stage, before it is given up
PATIENCE = 120.0  # seconds without any server of a pool, before the command gives up
Outcome = tuple[str, Any]  # ("done", what was made), ("failed", why: the prompt's fault), ("lost", why: the server's)


@dataclass
class Job:
    """A prompt of the list."""

    number: int  # its line
    prompt: str
    key: str  # of prompt and workflow: results of other ones are not taken for this one's
    attempts: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # for the results: who ran it, seconds

    def hand_over(self, output: Path) -> Path:
        """Its file."""
        return output / "hand-overs" / f"{self.number:04}_{self.key}{SUFFIX}"

    def stage(self, output: Path) -> str:
        """Which it waits for: with its hand-over there only for the render."""
        return RENDER if self.hand_over(output).is_file() else SKETCH


# --- what a task does, in its own thread ----------------------------------------------------------------------------


def sketch_on(url: str, graph: Graph, timeout: float, stop: threading.Event) -> Outcome:
    """Sketch on that server; done: the hand-over file's content."""

    def run(server: Any) -> bytes:
        (file,) = client.files_of({"outputs": {OWN[1]: finished(server, graph, timeout, stop)["outputs"][OWN[1]]}})
        content: bytes = server.view(file)
        return content

    return outcome_of(url, run)


def render_on(url: str, graph: Graph, name: str, content: bytes, timeout: float, stop: threading.Event) -> Outcome:
    """Put the hand-over into that server's input folder and render; done: [(file name, content)] of what was saved."""

    def run(server: Any) -> list[tuple[str, bytes]]:
        server.upload_image(content, name)
        files = client.files_of(finished(server, graph, timeout, stop))
        return [(str(file["filename"]), server.view(file)) for file in files if file.get("type") == "output"]

    return outcome_of(url, run)


def outcome_of(url: str, run: Callable[[Any], Any]) -> Outcome:
    """What came of it, as data. A server that answers with a fault of the graph is well, any other fault is its own."""
    try:
        return "done", run(client.Server(url))
    except client.HostError as error:
        if "status 413" in str(error):
            return "failed", f"{url} takes no file of that size: start it with a larger --max-upload-size (MB)."
        return ("failed" if error.details else "lost"), str(error).splitlines()[0]


def finished(server: Any, graph: Graph, timeout: float, stop: threading.Event) -> dict[str, Any]:
    """Queue a graph and wait; its history entry. Whoever stops waiting takes the graph off the server.

    Raises HostError: with details for a fault of the graph, which its time is too; without when the server does not
    answer or has forgotten the graph, and when ``stop`` is set.
    """
    prompt_id = server.queue(graph)
    entry = _entry(server, prompt_id, time.monotonic() + timeout, stop)
    if entry is None:
        _take_off(server, prompt_id)
        if stop.is_set():
            raise client.HostError("stopped")
        raise client.HostError(f"{server.url} did not finish within {timeout:.0f} s.", {"timeout": timeout})
    checked: dict[str, Any] = client.checked(entry)
    return checked


def _entry(server: Any, prompt_id: str, until: float, stop: threading.Event) -> dict[str, Any] | None:
    missed = 0
    while time.monotonic() < until and not stop.is_set():
        queue = server.get("/queue")
        entry: dict[str, Any] | None = server.get(f"/history/{prompt_id}").get(prompt_id)
        if entry is not None:
            return entry
        known = any(item[1] == prompt_id for items in queue.values() for item in items)
        missed = 0 if known else missed + 1
        if missed > 5:  # it was between queue and history once; now it is gone
            raise client.HostError(f"{server.url} was started anew and has forgotten its work.")
        stop.wait(0.3)
    return None


def _take_off(server: Any, prompt_id: str) -> None:
    server.post("/queue", {"delete": [prompt_id]})  # it may wait behind another's work, which continues
    server.post("/interrupt", {"prompt_id": prompt_id})


# --- the list ---------------------------------------------------------------------------------------------------------


def jobs_of(prompts: Sequence[str], graph: Graph) -> list[Job]:
    """One job a prompt; empty lines count but are not prompts."""
    text = json.dumps(graph, sort_keys=True)
    keys = [hashlib.sha256(f"{text}\n{prompt}".encode()).hexdigest()[:12] for prompt in prompts]
    return [Job(i, prompt, key) for i, (prompt, key) in enumerate(zip(prompts, keys), 1) if prompt.strip()]


def done_keys(results: Path) -> set[tuple[int, str]]:
    """(number, key) of the jobs whose results are there. A last line that was cut by a kill is not there."""
    found = set()
    for line in results.read_text("utf-8").splitlines() if results.is_file() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if not result.get("error"):
            found.add((result["number"], result["key"]))
    return found


def write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    with aside(path) as partial:
        partial.write_bytes(content)


@dataclass
class Spread:
    """The work: which jobs wait for which stage, and which server is at what."""

    graph: Graph
    pools: dict[str, list[str]]
    output: Path
    timeout: float
    waiting: dict[str, deque[Job]] = field(default_factory=lambda: {SKETCH: deque(), RENDER: deque()})
    # what runs -> stage, job, url, start
    running: dict[Future[Outcome], tuple[str, Job, str, float]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lost: dict[str, float] = field(default_factory=dict)  # servers that did not answer -> when to ask again
    suspects: dict[str, tuple[str, Job, str]] = field(default_factory=dict)  # such a server -> stage, job, why
    failed: int = 0
    _alone_since: float = 0.0  # since when no server of a needed pool answers; 0: some do

    def add(self, jobs: Sequence[Job]) -> None:
        """Jobs, each to the stage that it waits for."""
        for job in jobs:
            self.waiting[job.stage(self.output)].append(job)

    def work(self) -> None:
        """Run all jobs, one a server at a time. Raises SystemExit when no server of a needed pool answers any more."""
        with ThreadPoolExecutor(len({url for pool in self.pools.values() for url in pool})) as threads:
            try:
                while self.running or any(self.waiting.values()):
                    self._start(threads)
                    if not self.running:
                        self._wait_for_a_server()
                    self._take_ended()
            except BaseException:  # Ctrl-C too: the threads take what runs off the servers and end
                self.stop.set()
                raise

    def _start(self, threads: ThreadPoolExecutor) -> None:
        for stage, job, url in self._pairs():
            task: Callable[..., Outcome] = sketch_on if stage == SKETCH else render_on
            future = threads.submit(task, *self._call(stage, job, url), self.timeout, self.stop)
            self.running[future] = (stage, job, url, time.monotonic())

    def _take_ended(self) -> None:
        for future in wait(self.running, timeout=2, return_when=FIRST_COMPLETED).done:
            stage, job, url, began = self.running.pop(future)
            error = future.exception()  # what no server says of itself: an answer without a file
            what, made = ("failed", f"{type(error).__name__}: {error}") if error else future.result()
            self._take(stage, job, url, what, made, time.monotonic() - began)

    def _pairs(self) -> Iterator[tuple[str, Job, str]]:
        """(stage, job, server) to start now. Renders first, so that videos come early."""
        for stage in (RENDER, SKETCH):
            for url in self.pools[stage]:
                busy = any(url == at for _, _, at, _ in self.running.values())
                if self.waiting[stage] and not busy and self._answers(url):
                    yield stage, self.waiting[stage].popleft(), url

    def _answers(self, url: str) -> bool:
        if url in self.lost:
            if time.monotonic() < self.lost[url]:
                return False
            try:
                client.Server(url).get("/system_stats", timeout=3)
            except client.HostError:
                self.lost[url] = time.monotonic() + 5
                return False
            del self.lost[url]
            say(f"{url} answers again")
            self._blame(*self.suspects.pop(url))
        self._alone_since = 0.0
        return True

    def _call(self, stage: str, job: Job, url: str) -> tuple[Any, ...]:
        graph, name = with_prompt(self.graph, job.prompt), f"spread_{job.number:04}_{job.key}"
        if stage == SKETCH:
            return url, sketch_graph(graph, f"srdiffusion/{name}")
        content = job.hand_over(self.output).read_bytes()
        return url, render_graph(graph, name + SUFFIX), name + SUFFIX, content

    def _wait_for_a_server(self) -> None:
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > PATIENCE:
            needed = next(stage for stage in (SKETCH, RENDER) if self.waiting[stage])
            raise SystemExit(
                f"spread: no {needed} server has answered for {PATIENCE:.0f} s: {', '.join(self.pools[needed])}. What "
                f"is done lies in {self.output}; start the servers and give the same command to go on."
            )
        time.sleep(1)

    def _take(self, stage: str, job: Job, url: str, what: str, made: Any, seconds: float) -> None:
        """Book what came of a task; a job that is not done waits again."""
        say(f"{job.number:04} {stage} on {url}: {what}, {seconds:.1f} s" + ("" if what == "done" else f" ({made})"))
        if what == "done":
            job.facts[stage] = {"server": url, "seconds": round(seconds, 2)}
            if stage == SKETCH:
                write(job.hand_over(self.output), made)
                job.attempts = 0
                self.waiting[RENDER].append(job)
            else:
                self._finish(job, made)
            return
        self.waiting[stage].append(job)  # last, so that it holds up no other
        if what == "lost":
            self.lost[url], self.suspects[url] = time.monotonic() + 5, (stage, job, made)
        else:
            self._blame(stage, job, made)

    def _blame(self, stage: str, job: Job, why: str) -> None:
        """Count a failure of a job. A lost server's only counts once that server answers again.

        One that is gone for good may have died of anything, one that comes back may die of this job for ever.
        """
        if job.stage(self.output) != stage:  # another server has done it meanwhile
            return
        job.attempts += 1
        if job.attempts >= ATTEMPTS and job in self.waiting[stage]:
            self.waiting[stage].remove(job)
            self.failed += 1
            self._record(job, error=why)

    def _finish(self, job: Job, files: list[tuple[str, bytes]]) -> None:
        folder = self.output / f"{job.number:04}"
        for name, content in files:
            write(folder / Path(name.replace("\\", "/")).name, content)
        self._record(job, files=[f"{folder.name}/{Path(name).name}" for name, _ in files])

    def _record(self, job: Job, **more: Any) -> None:
        """A line in the results, written whole."""
        line = json.dumps(
            {"number": job.number, "key": job.key, "prompt": job.prompt, **job.facts, **more}, ensure_ascii=False
        )
        with (self.output / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(("\n" if cut_off(self.output / "results.jsonl") else "") + line + "\n")


def cut_off(path: Path) -> bool:
    """Whether the file's last line has no end, as a kill leaves it."""
    content = path.read_bytes() if path.is_file() else b""
    return bool(content) and not content.endswith(b"\n")


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, file=sys.stderr, flush=True)


def api_graph(path: Path, urls: Sequence[str]) -> Graph:
    """The graph of a workflow file, as the page saves it (a server then tells its nodes) or exported for the API."""
    saved = json.loads(path.read_text("utf-8"))
    if "nodes" not in saved:
        return dict(saved)
    for url in urls:
        try:
            return dict(to_api(saved, client.Server(url).object_info()))
        except client.HostError as error:
            say(f"{url} does not answer: {error}")
    raise SystemExit("spread: none of the servers answers.")


def arguments() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--workflow", type=Path, required=True, help="with SR Sampler, as saved or exported for the API")
    add("--prompts", type=Path, required=True, help="text file, a prompt a line")
    add("--sketch", nargs="+", required=True, metavar="URL", help="servers that sketch")
    add("--render", nargs="+", required=True, metavar="URL", help="servers that render")
    add("--output", type=Path, required=True, help="folder for results; one that is there is continued")
    add("--timeout", type=float, default=7200, help="seconds for one stage of one prompt")
    return parser.parse_args()


def main() -> int:
    """The command; returns the exit status: 0 when every prompt is done."""
    asked = arguments()
    if importlib.util.find_spec("urllib3") is None:
        raise SystemExit("spread: urllib3 is missing. Install it beside this Python: pip install urllib3")
    pools = {stage: [url.rstrip("/") for url in getattr(asked, stage)] for stage in (SKETCH, RENDER)}
    asked.output.mkdir(parents=True, exist_ok=True)
    graph, results = api_graph(asked.workflow, [*pools[RENDER], *pools[SKETCH]]), asked.output / "results.jsonl"
    jobs, done = jobs_of(asked.prompts.read_text("utf-8").splitlines(), graph), done_keys(results)
    todo = [job for job in jobs if (job.number, job.key) not in done]
    say(f"{len(jobs)} prompts, {len(jobs) - len(todo)} done already")
    spread = Spread(graph, pools, asked.output, asked.timeout)
    spread.add(todo)
    try:
        spread.work()
    except KeyboardInterrupt:
        say("spread: stopped; the same command continues from here.")
        return 130
    say(f"{len(jobs) - spread.failed} of {len(jobs)} prompts done; {results}")
    return 1 if spread.failed else 0


if __name__ == "__main__":
    sys.exit(main())
