"""A running ComfyUI server, as its API shows it: queue a graph, follow it, fetch what it made.

Standard library only. Used through host.serve; `Server` also talks to a server that someone else started.
"""

import base64
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


class Server:
    """A ComfyUI server at `url`. `log` and the process are those of a server we started; without, stop() does nothing."""

    def __init__(self, url: str, log: Path | None = None, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self.url = url.rstrip("/")
        self.log = log
        self.client_id = uuid.uuid4().hex
        self._process = process

    # --- the process ---

    def wait_until_ready(self, timeout: float) -> None:
        """Return when the server answers. Raises HostError with the log's end if it dies, or after `timeout` seconds."""
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
        """End the server and whatever it started; waits 10 seconds at most before it insists. Harmless when it is over."""
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

    # --- requests ---

    def request(
        self, path: str, data: bytes | None = None, kind: str = "application/json", timeout: float = 60.0
    ) -> bytes:
        """GET, or POST with data. Raises HostError: with readable text for a refused graph, else with status and path."""
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": kind} if data else {})
        try:
            with _OPENER.open(request, timeout=timeout) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise _refusal(path, error.code, error.read()) from error
        except (OSError, ConnectionError) as error:
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

    # --- graphs ---

    def queue(self, graph: Graph, client_id: str | None = None) -> str:
        """Queue a graph, return its prompt id. Raises HostError naming nodes and reasons if any part of it is refused."""
        answer = self.post("/prompt", {"prompt": graph, "client_id": client_id or self.client_id})
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
        events = EventStream(self.url, self.client_id) if on_event else None
        try:
            prompt_id = self.queue(graph)
            while time.monotonic() < until:
                if events is not None and on_event is not None:
                    events.drain(on_event, 0.25)
                else:
                    time.sleep(0.1)
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
                if entry is not None:
                    if events is not None and on_event is not None:
                        events.drain(on_event, 0.05)
                    return checked(entry)
        finally:
            if events is not None:
                events.close()
        self.interrupt()
        raise HostError(f"The graph did not end within {timeout:.0f} s.{self.log_tail(10)}")

    # --- files ---

    def upload_image(self, image: Path | bytes, name: str | None = None) -> str:
        """Put an image into the server's input folder (an older one of that name is replaced); returns its name there."""
        content = image if isinstance(image, bytes) else image.read_bytes()
        name = name or ("image.png" if isinstance(image, bytes) else image.name)
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}\r\n'
        head += f'Content-Disposition: form-data; name="image"; filename="{_HEADER_UNSAFE.sub("_", name)}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self.request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else str(answer["name"])

    def view(self, file: Mapping[str, Any]) -> bytes:
        """The content of a file as a history entry names it: {"filename", "subfolder", "type"}."""
        query = {name: file.get(name, "") for name in ("filename", "subfolder", "type")}
        return self.request("/view?" + urllib.parse.urlencode(query))

    def download(self, entry: Mapping[str, Any], folder: Path, kinds: Sequence[str] = ("output",)) -> list[Path]:
        """Save the files of a history entry that are of these types ("output", "temp") into `folder`, in the nodes' order."""
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for file in files_of(entry):
            if file.get("type") in kinds:
                path = folder / Path(str(file["filename"]).replace("\\", "/")).name
                path.write_bytes(self.view(file))
                saved.append(path)
        return saved


_HEADER_UNSAFE = re.compile(r'["\\\r\n]')
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Requests to our own server never take the way through a proxy that the environment may name.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def files_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that a history entry names, of all nodes, whatever they are called there (images, gifs, audio, video)."""
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


class EventStream:
    """The server's messages to one client, over its websocket (RFC 6455): as much of the protocol as this server uses.

    Raises HostError when the server does not take the connection. A connection that is lost later ends the stream.
    """

    def __init__(self, url: str, client_id: str) -> None:
        address = urllib.parse.urlsplit(url)
        if address.hostname is None:
            raise HostError(f"{url} is not the address of a server")
        self._socket = socket.create_connection((address.hostname, address.port or 80), timeout=10)
        self._buffer = b""
        self._parts: list[bytes] = []  # of a message that comes in several frames
        self._kind = 0
        self._open = True
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive(10):
                raise HostError(f"{url}/ws did not answer")
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n", 1)[0] + b" ":
            raise HostError(f"{url}/ws refused: {head.splitlines()[0].decode('utf-8', 'replace')}")

    def drain(self, on_event: OnEvent, wait: float) -> None:
        """Hand over the messages that are there; waits up to `wait` seconds for the first."""
        until = time.monotonic() + wait
        handed = 0
        while True:
            frame = self._frame()
            if frame is not None:
                handed += self._take(on_event, *frame)
            elif not self._receive(0 if handed else until - time.monotonic()):
                return

    def close(self) -> None:
        """Leave the connection."""
        self._open = False
        self._socket.close()

    def _receive(self, wait: float) -> bool:
        """Read what is there into the buffer; False if nothing came within `wait` seconds or the connection is over."""
        if not self._open:
            time.sleep(max(wait, 0.0))
            return False
        self._socket.settimeout(max(wait, 0.001))
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self._open = bool(data)
        self._buffer += data
        return bool(data)

    def _frame(self) -> tuple[int, bool, bytes] | None:
        """Opcode, whether it is the message's last frame, and payload of the next frame, if it is there as a whole."""
        if len(self._buffer) < 2:
            return None
        length, start = self._buffer[1] & 0x7F, 2
        if length > 125:
            layout = ">H" if length == 126 else ">Q"
            start += struct.calcsize(layout)
            if len(self._buffer) < start:
                return None
            (length,) = struct.unpack(layout, self._buffer[2:start])
        if len(self._buffer) < start + length:
            return None
        first, payload = self._buffer[0], self._buffer[start : start + length]
        self._buffer = self._buffer[start + length :]
        return first & 0x0F, bool(first & 0x80), payload

    def _take(self, on_event: OnEvent, opcode: int, last: bool, payload: bytes) -> int:
        """Deal with one frame; returns how many messages were handed over."""
        if opcode == 0x8:
            self.close()
        elif opcode == 0x9:
            self._send(0xA, payload)
        elif opcode in (0x0, 0x1, 0x2):
            self._kind = opcode or self._kind
            self._parts.append(payload)
            if last:
                whole, self._parts = b"".join(self._parts), []
                if self._kind == 0x2:
                    on_event("binary", {"data": whole})
                else:
                    message = json.loads(whole)
                    on_event(message["type"], message.get("data") or {})
                return 1
        return 0

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a control frame (at most 125 bytes), masked as a client must."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
