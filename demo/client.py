"""A running ComfyUI server, as its API shows it: queue a graph, follow it, fetch what it made.

`host.serve` starts one; `Server` also talks to a server that someone else started. Only to follow a run or to upload
needs more than the standard library: aiohttp and urllib3, which every ComfyUI brings.
"""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

Graph = Mapping[str, Mapping[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}, what "Export (API)" saves
OnEvent = Callable[[str, dict[str, Any]], None]  # called with the type and the data of each message of the server

# The server's process ends with ours, even when ours is killed: its standard input is then closed.
GUARD = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(3)), daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[:] = [os.path.dirname(sys.argv[0]), *filter(None, sys.path)]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Requests to our own server never take the way through a proxy that the environment may name.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class HostError(RuntimeError):
    """The host cannot be found, made, started or made to run a graph; the text says what to do or which node and why.

    details: what the server said about it, as data; empty if it is not about a graph.
    """

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = dict(details or {})


class Interrupted(HostError):
    """The run was interrupted, by interrupt() or by somebody at the page."""


def start(
    python: Path, path: Path, arguments: Sequence[str], url: str, log: Path, environment: Mapping[str, str]
) -> "Server":
    """Start main.py of the ComfyUI in `path` with its output in `log`; returns at once. The caller stops the server."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(python), "-c", GUARD, str(path / "main.py"), *arguments],
            cwd=path,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt",
        )
    return Server(url, log, process)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a running server and to what it started (on Windows: end the server)."""
    if sys.platform == "win32":
        process.terminate()
    else:
        os.killpg(process.pid, number)


def link(target: Path, link: Path) -> None:
    """Make `link` lead to `target`: a link, or a copy where the system allows none. Only links are ever replaced."""
    target = target.absolute()
    if not target.exists():
        raise HostError(f"{target} does not exist.")
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(target, target_is_directory=target.is_dir())
    except OSError as error:
        if os.name != "nt":
            raise HostError(f"cannot link {target} to {link}: {error}") from error
        if target.is_dir():
            shutil.copytree(target, link, ignore=shutil.ignore_patterns(".git", "__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy2(target, link)


class Server:
    """A ComfyUI server at `url`; `log` and the process are those of a server that we started and may stop."""

    def __init__(self, url: str, log: Path | None = None, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.url = url.rstrip("/")
        self.log = log
        self.client_id = uuid.uuid4().hex
        self._process = process

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the server answers. Raises HostError with the log's end if it dies, or after so many seconds."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self._process is not None and self._process.poll() is not None:
                raise HostError(
                    f"The server ended while it started (status {self._process.returncode}).{self.log_tail()}"
                )
            try:
                self.get("/system_stats", timeout=5)
                return
            except HostError:
                time.sleep(0.2)
        raise HostError(f"The server did not answer within {timeout:.0f} s.{self.log_tail()}")

    def stop(self) -> None:
        """End the server that we started, and what it started; after 10 seconds by force."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
                process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def log_tail(self, lines: int = 30) -> str:
        """The end of the server's log, to be put after an error message; empty without a log."""
        if self.log is None or not self.log.is_file():
            return ""
        text = _COLOURS.sub("", self.log.read_text("utf-8", "replace"))
        return f"\nThe end of {self.log}:\n" + "\n".join(text.splitlines()[-lines:])

    def request(
        self, path: str, data: bytes | None = None, kind: str = "application/json", timeout: float = 60.0
    ) -> bytes:
        """GET, or POST with data. Raises HostError: for a refused graph with the reasons, else with status and path."""
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": kind} if data else {})
        try:
            with _OPENER.open(request, timeout=timeout) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise _refusal(path, error.code, error.read()) from error
        except (OSError, http.client.HTTPException) as error:  # the latter: the answer broke off
            ended = self._process is not None and self._process.poll() is not None
            raise HostError(f"{self.url}{path}: {error}" + (self.log_tail() if ended else "")) from error

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """GET a path and read the JSON it answers."""
        return json.loads(self.request(path, timeout=timeout))

    def post(self, path: str, data: Mapping[str, Any]) -> Any:
        """POST JSON and read the JSON it answers; None for an empty answer."""
        answer = self.request(path, json.dumps(data).encode())
        return json.loads(answer) if answer.strip() else None

    def object_info(self, node_id: str | None = None) -> dict[str, Any]:
        """What the server knows of its nodes (id -> inputs, outputs, ...), or of one."""
        info: dict[str, Any] = self.get("/object_info" + (f"/{urllib.parse.quote(node_id)}" if node_id else ""))
        return info

    def interrupt(self) -> None:
        """Interrupt the running graph; its run() raises Interrupted."""
        self.request("/interrupt", b"{}")

    def queue(self, graph: Graph) -> str:
        """Queue a graph, return its prompt id. Raises HostError with nodes and reasons if any part of it is refused."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": self.client_id})
        prompt_id: str = answer["prompt_id"]
        if answer.get("node_errors"):  # the server would run the rest of the graph
            self.post("/queue", {"delete": [prompt_id]})
            raise HostError(_node_errors(answer["node_errors"]) or "part of the graph was refused", answer)
        return prompt_id

    def run(self, graph: Graph, on_event: OnEvent | None = None, timeout: float = 3600.0) -> dict[str, Any]:
        """Queue a graph, follow it to its end, return its history entry ("outputs", "status", ...).

        on_event: called in this thread with each message the server sends meanwhile: "execution_start", "executing",
        "progress", "progress_state", "executed", messages of node packs, and "binary" (previews: {"data": bytes}).
        timeout: seconds. Raises HostError naming the node that failed and its message, or when time is over (the run is
        then interrupted), and Interrupted.
        """
        until = time.monotonic() + timeout
        if on_event is not None:
            entry = asyncio.run(self._followed(graph, on_event, until))
        else:
            prompt_id = self.queue(graph)
            while (entry := self._entry(prompt_id)) is None and time.monotonic() < until:
                time.sleep(0.1)
        if entry is None:
            self.interrupt()
            raise HostError(f"The graph did not end within {timeout:.0f} s.{self.log_tail(10)}")
        return checked(entry)

    def _entry(self, prompt_id: str) -> dict[str, Any] | None:
        """The history entry of a run; None before its end."""
        entry: dict[str, Any] | None = self.get(f"/history/{prompt_id}").get(prompt_id)
        return entry

    async def _followed(self, graph: Graph, on_event: OnEvent, until: float) -> dict[str, Any] | None:
        """Queue a graph and hand on what the server says; its history entry, None if it has not ended by then."""
        import aiohttp

        address, entry = f"{self.url}/ws?clientId={self.client_id}", None
        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                prompt_id = self.queue(graph)
                while entry is None and time.monotonic() < until:
                    entry = self._entry(prompt_id)
                    await _hand_on(socket, on_event, 0.25 if entry is None else 0.05)
        except aiohttp.ClientError as error:
            raise HostError(f"{self.url}/ws: {error}") from error
        return entry

    def upload_image(self, image: Path | bytes, name: str | None = None) -> str:
        """Put an image into the server's input folder, over an older one of that name; returns its name there."""
        from urllib3 import encode_multipart_formdata

        content = image if isinstance(image, bytes) else image.read_bytes()
        name = name or ("image.png" if isinstance(image, bytes) else image.name)
        body, kind = encode_multipart_formdata({"overwrite": "true", "image": (name, content)})
        answer = json.loads(self.request("/upload/image", body, kind))
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else str(answer["name"])

    def view(self, file: Mapping[str, Any]) -> bytes:
        """The content of a file as a history entry names it: {"filename", "subfolder", "type"}."""
        query = {name: file.get(name, "") for name in ("filename", "subfolder", "type")}
        return self.request("/view?" + urllib.parse.urlencode(query))


def files_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that a history entry names, of all nodes, whatever they are called there (images, gifs, audio)."""
    return [
        item
        for output in entry["outputs"].values()
        for items in output.values()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and "filename" in item
    ]


def checked(entry: dict[str, Any]) -> dict[str, Any]:
    """The history entry of a run that went well; raises what the server says of one that did not."""
    status = entry.get("status") or {}
    for event, data in status.get("messages", []):
        if event == "execution_interrupted":
            raise Interrupted(f"The run was interrupted in node {data.get('node_id')} ({data.get('node_type')}).", data)
        if event == "execution_error":
            node = f"node {data.get('node_id')} ({data.get('node_type')})"
            kind, text = data.get("exception_type", "error"), str(data.get("exception_message", "")).strip()
            raise HostError(f"{node} failed with {kind}: {text}\n{''.join(data.get('traceback') or [])}".rstrip(), data)
    if status.get("status_str") == "error":
        raise HostError("The run failed and the server does not say why; see its log.", status)
    return entry


def _refusal(path: str, code: int, body: bytes) -> HostError:
    """The error of a request that the server refused, in words where the server gives any."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("error"), dict):
        return HostError(f"{path}: status {code}: {body[:500].decode('utf-8', 'replace')}")
    error = answer["error"]
    general = f"{error.get('message', '')} {error.get('details') or ''}".strip()
    return HostError(_node_errors(answer.get("node_errors")) or f"The graph was refused: {general}", answer)


def _node_errors(errors: Any) -> str:
    """The reasons why nodes were refused, a line each; empty if there are none."""
    lines = []
    for node, found in (errors or {}).items():
        for error in found.get("errors", []):
            lines.append(f"node {node} ({found.get('class_type')}): {error.get('message')}: {error.get('details')}")
    return "The graph was refused:\n" + "\n".join(lines) if lines else ""


async def _hand_on(socket: "aiohttp.ClientWebSocketResponse[bool]", on_event: OnEvent, seconds: float) -> None:
    """Hand on the server's messages of the next seconds; stops at the one that says that nothing runs any more."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            message = await socket.receive(timeout=left)
        except asyncio.TimeoutError:
            return
        if message.type == 0x2:
            on_event("binary", {"data": message.data})
        elif message.type == 0x1:
            said = json.loads(message.data)
            data = said.get("data") or {}
            on_event(said["type"], data)
            if said["type"] == "executing" and not data.get("node"):
                return
        else:  # the connection is lost; whether the run goes well the history says
            await asyncio.sleep(left)
