"""The wheel, installed the three ways that people install commands, into environments without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from luthier import __version__

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
BIN = "Scripts" if os.name == "nt" else "bin"


def run(*command: str | Path, **env: str | Path) -> str:
    """Run a program outside the checkout and return its words; its faults fail the test."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={**clean, **{k: str(v) for k, v in env.items()}},
        cwd=CONSTRAINTS.anchor,
        timeout=500,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def module(name: str) -> list[str]:
    """The words that start a tool of the dev extra."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install {name}")
    return [sys.executable, "-m", name]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    run(*module("uv"), "build", "--quiet", "--wheel", "--out-dir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


def check_command(luthier: Path, python: Path, home: Path) -> None:
    """The commands that need no torch answer from an environment that has none."""
    env = {
        "LUTHIER_CACHE": home / "cache",
        "LUTHIER_HOME": home / "home",
        "PATH": f"{luthier.parent}:/usr/bin:/bin",
    }
    assert run(python, "-c", "import importlib.util as u; print(u.find_spec('torch'))").strip() == "None"
    assert run(luthier, "--version", **env).strip() == __version__
    assert "quickstart" in run(luthier, "--help", **env)
    assert json.loads(run(luthier, "models", "--json", **env))
    assert json.loads(run(luthier, "doctor", "--json", **env))


def test_the_wheel_holds_what_it_needs_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (licence,) = [name for name in names if name.endswith("licenses/LICENSE")]
        assert b"Apache License" in archive.read(licence)
    source = ROOT / "src"
    data = [
        p
        for p in (source / "luthier").rglob("*")
        if p.is_file() and p.suffix in {".py", ".j2", ".html", ".css", ".js", ".svg", ".typed", ".jinja"}
    ]
    assert {p.relative_to(source).as_posix() for p in data} <= names
    assert "luthier/catalog/index.json" in names
    assert not [name for name in names if not name.startswith(("luthier/", "luthier-"))]
    vendor = [name for name in names if name.startswith("luthier/studio/static/vendor/")]
    if not vendor and not (source / "luthier/studio/static/vendor/versions.txt").is_file():
        pytest.skip("npm is out of reach: the wheel is without the studio's pages, and says so")
    assert sum(name.endswith(".LICENSE.txt") for name in vendor) == 4  # htmx, uPlot, both fonts
    assert {Path(name).suffix for name in vendor} >= {".js", ".css", ".woff2"}


def test_pip(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "env")
    home = tmp_path / "env" / BIN
    run(home / "python", "-m", "pip", "install", "--quiet", "--no-compile", wheel, "-c", CONSTRAINTS)
    check_command(home / "luthier", home / "python", tmp_path)


def test_uv_tool(wheel: Path, tmp_path: Path) -> None:
    dirs = {"UV_TOOL_DIR": tmp_path / "tools", "UV_TOOL_BIN_DIR": tmp_path / "bin"}
    run(
        *module("uv"),
        "tool",
        "install",
        "--quiet",
        "-c",
        CONSTRAINTS,
        "--python",
        sys.executable,
        wheel,
        **dirs,
    )
    check_command(tmp_path / "bin" / "luthier", tmp_path / "tools" / "luthier" / BIN / "python", tmp_path)


def test_pipx(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "pipx"
    dirs = {"PIPX_HOME": home, "PIPX_BIN_DIR": tmp_path / "bin", "PIPX_MAN_DIR": tmp_path / "man"}
    dirs["PIPX_SHARED_LIBS"] = home / "shared"
    arguments = f"--pip-args=-c {CONSTRAINTS}"
    run(*module("pipx"), "install", "--python", sys.executable, arguments, wheel, **dirs)
    check_command(tmp_path / "bin" / "luthier", home / "venvs" / "luthier" / BIN / "python", tmp_path)


def test_the_command_completes_words(wheel: Path, tmp_path: Path) -> None:
    """Shell completion is written for the shells that people use."""
    env = {"PYTHONPATH": str(ROOT / "src")}
    for shell in ("bash", "zsh", "fish"):
        code = "from luthier.cli.main import build; print(build().generate_completion(shell=%r))" % shell  # noqa: UP031
        assert "quickstart" in run(sys.executable, "-c", code, **env)


def test_python_that_is_too_old_is_refused(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        assert "Requires-Python: <3.15,>=3.11" in archive.read(metadata).decode()
