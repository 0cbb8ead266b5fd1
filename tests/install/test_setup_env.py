"""The script behind `make setup`: what it refuses, what it chooses, what it says."""

from __future__ import annotations

import builtins
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/setup_env.py as a module."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("TORCH", "TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def index() -> Iterator[Any]:
    """A package index on the loopback that answers with the status it is given."""

    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_HEAD(self) -> None:
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Handler.address = f"http://127.0.0.1:{server.server_address[1]}/whl/cpu"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("version", [(3, 10), (3, 15), (2, 7)])
def test_other_pythons_are_refused(script: ModuleType, version: tuple[int, int]) -> None:
    with pytest.raises(script.SetupError, match=r"needs 3\.11 to 3\.14") as caught:
        script.check_python(version)
    assert "make PYTHON=" in str(caught.value)


def test_the_range_is_that_of_the_package(script: ModuleType) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={script.OLDEST[0]}.{script.OLDEST[1]},<3.{script.NEWEST[1] + 1}"' in text


def test_a_python_without_venv_names_the_package(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "ensurepip":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(script.SetupError, match=r"sudo apt install python3\.11-venv"):
        script.check_python((3, 11))


def test_the_build_follows_the_machine(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.torch_build(None, "linux") == "cpu"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    assert script.torch_build(None, "linux") == "cuda"
    assert script.torch_build(None, "darwin") == "cpu"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert script.torch_build(None, "linux") == "cpu"
    assert script.torch_build("skip", "linux") == "skip"
    with pytest.raises(script.SetupError, match="one of: cpu, cuda, skip"):
        script.torch_build("gpu", "linux")


def test_an_index_is_asked_before_it_is_used(script: ModuleType, index: Any) -> None:
    assert script.unreachable(index.address) is None
    index.status = 405  # a mirror that knows no HEAD
    assert script.unreachable(index.address) is None
    index.status = 404
    assert script.unreachable(index.address) == "HTTP 404"
    assert script.unreachable("http://127.0.0.1:9/whl/cpu")


def test_without_the_torch_index_the_own_one_is_used_and_that_is_said(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    cuda = "https://index.example/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"

    def file(_: Path, __: str, index: str | None) -> str:
        asked.append(index)
        return cuda

    monkeypatch.setattr(script, "torch_file", file)
    requirement, megabytes, index = script.plan_torch(Path(), "cpu", "http://127.0.0.1:9/whl/cpu")
    assert (requirement, index, asked) == (f"torch=={script.pinned('torch')}", None, [None])
    assert megabytes == script.TORCH_DOWNLOAD["cuda"]
    said = capsys.readouterr().out
    assert "cannot be reached" in said
    assert "the CUDA build, which also runs on a CPU" in said
    monkeypatch.setenv("TORCH_INDEX", "http://127.0.0.1:9/whl/cpu")
    with pytest.raises(script.SetupError, match="TORCH_INDEX"):
        script.plan_torch(Path(), "cpu", "http://127.0.0.1:9/whl/cpu")


def test_a_changed_file_or_choice_changes_the_stamp(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "tools/setup_env.py"):
        (tmp_path / name).write_text("a")
    first = script.stamp_key("cpu", None)
    assert script.stamp_key("cuda", None) != first
    assert script.stamp_key("cpu", "https://index.example") != first
    (tmp_path / "constraints.txt").write_text("b")
    assert script.stamp_key("cpu", None) != first


def test_a_ready_environment_is_left_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "works", lambda _: True)
    stamp = tmp_path / "luthier-setup.json"
    build = script.torch_build(None, sys.platform)
    index = script.CPU_INDEX if build == "cpu" and sys.platform == "linux" else None
    stamp.write_text(json.dumps({"key": script.stamp_key(build, index), "extras": ["all", "dev"]}))
    script.set_up(tmp_path, ["all"])
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_no_environment_is_not_removed(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(script.SetupError, match="no virtual environment"):
        script.make_venv(tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_a_full_disk_is_said_first(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    with pytest.raises(script.SetupError, match=r"2\.0 GB of disk are needed and 100 MB are free"):
        script.check_disk(tmp_path, 384)


def test_a_failing_pip_shows_its_last_words(script: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    log.write_text("")
    with pytest.raises(script.SetupError, match=r"pip could not install Luthier") as caught:
        script.pip(Path(sys.executable), ["no-such-command"], log, "Luthier")
    assert str(log) in str(caught.value)
    assert "unknown command" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("  Downloading torch-2.13.0-cp311.whl (526.6 MB)", "downloading torch (526.6 MB)"),
        (
            "Downloading https://index.example/a/nvidia_cublas-13.whl (1.2 GB)",
            "downloading nvidia_cublas (1.2 GB)",
        ),
        ("  Downloading idna-3.20-py3-none-any.whl (70 kB)", None),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ("Requirement already satisfied: numpy", None),
    ],
)
def test_only_large_downloads_are_shown(script: ModuleType, line: str, shown: str | None) -> None:
    assert script.milestone(line) == shown


def test_make_names_what_it_needs_when_there_is_no_python(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["make", "PYTHON=", "setup"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "no Python 3.11 to 3.14 found" in done.stderr
