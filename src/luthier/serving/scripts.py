"""Start scripts of runtimes, and installers, as text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from string import Template

from luthier.schema.deployment import ContextPlan


def llama_server(
    file: str, plan: ContextPlan, *, alias: str, device: str | None = None, port: int = 8080
) -> list[str]:
    """Words of llama.cpp's own server. ``-c`` is the context of all slots together.

    device: ``cpu`` or ``gpu:1``; llama.cpp's own choice where None.
    """
    where = [] if device is None else ["--device", "none"]
    if device is not None and device != "cpu":
        where = ["--device", f"CUDA{device.removeprefix('gpu:')}"]
    return [
        "llama-server",
        "--model", file,
        "--alias", alias,
        "--ctx-size", str(plan.context * plan.slots),
        "--parallel", str(plan.slots),
        "--cache-type-k", plan.cache_type,
        "--cache-type-v", plan.cache_type,
        *where,
        "--jinja",
        "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip


def vllm_server(
    folder: str, *, alias: str, context: int, share: float, sequences: int, port: int = 8000
) -> list[str]:
    """Words of vLLM's server. share: of the GPU's memory. sequences: requests at once."""
    return [
        "vllm", "serve", folder,
        "--served-model-name", alias,
        "--max-model-len", str(context),
        "--max-num-seqs", str(sequences),
        "--gpu-memory-utilization", f"{share:.2f}",
        "--host", "127.0.0.1",
        "--port", str(port),
    ]  # fmt: skip


def start_script(words: Sequence[str], *, about: str, before: str = "") -> str:
    """A POSIX script beside the model that starts a server. before: whole lines that come first."""
    lines = " \\\n  ".join(_grouped(words))
    return f'#!/bin/sh\n# {about}\nset -eu\ncd "$(dirname "$0")"\n{before}exec {lines} "$@"\n'


def _grouped(words: Sequence[str]) -> list[str]:
    """Options with their values on one line each."""
    lines: list[str] = []
    for word in words:
        text = shlex.quote(word)
        complete = not lines or (lines[-1].startswith("--") and " " in lines[-1])
        if not word.startswith("--") and not complete:
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    return lines


def installer(kind: str, *, name: str, model: str, file: Path, sha256: str, memory: int, context: int) -> str:
    """``install.sh`` or ``install.ps1`` of a bundle: checks hash, disk and memory, asks, can undo.

    kind: ``sh`` or ``ps1``. memory: bytes that the model takes while it is served.
    """
    template = Template((Path(__file__).parent / f"install.{kind}.txt").read_text(encoding="utf-8"))
    return template.substitute(
        name=name,
        model=model,
        file=file.name,
        sha256=sha256,
        bytes=str(file.stat().st_size),
        megabytes=str(-(-file.stat().st_size // 1_000_000)),
        memory_mib=str(-(-memory // 2**20)),
        context=str(context),
    )
