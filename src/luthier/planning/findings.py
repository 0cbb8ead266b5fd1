"""What an audit means: each finding in words, with the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Literal

from luthier.files import cache_dir
from luthier.schema.base import Record
from luthier.schema.hardware import Accelerator, Hardware

GIB = 2**30
LOW_DISK = 20 * 10**9
HUB_TIMEOUT = 3.0
"""Seconds that each of the two steps, name and answer, may take."""


class Finding(Record):
    """One thing found on a machine."""

    what: str
    found: str
    level: Literal["good", "note", "warning", "bad"]
    means: str | None = None
    mend: str | None = None
    """The command or step that mends it."""


def findings(hardware: Hardware) -> list[Finding]:
    """All findings of an audit, in the order that people ask for them."""
    found = [_processor(hardware), _memory(hardware)]
    found += _gpus(hardware)
    if hardware.hypothetical:
        return found
    found += _disk(hardware)
    found += _packages(hardware)
    return found


def _processor(hardware: Hardware) -> Finding:
    cpu = hardware.processor
    sets = ", ".join(cpu.instruction_sets) or "no vector instructions known"
    means = (
        "bf16 runs natively: training on it may use bf16"
        if cpu.bf16
        else "no native bf16: training on it uses float32 (bf16 would be emulated, many times slower)"
    )
    return Finding(
        what="Processor", found=f"{cpu.name}, {cpu.cores} cores, {sets}", level="good", means=means
    )


def _memory(hardware: Hardware) -> Finding:
    free, total = hardware.memory_free / GIB, hardware.memory_total / GIB
    found = f"{free:.1f} of {total:.1f} GiB free"
    if hardware.memory_free < 4 * GIB:
        return Finding(
            what="Memory", found=found, level="warning",
            means="the smallest models train in 2 to 4 GiB", mend="close what holds memory, then look again",
        )  # fmt: skip
    return Finding(what="Memory", found=found, level="good")


def _gpus(hardware: Hardware) -> list[Finding]:
    if not hardware.accelerators:
        return [
            Finding(
                what="GPU",
                found="none found",
                level="note",
                means="training runs on the CPU: models to about 1B in reasonable time",
                mend=None
                if hardware.hypothetical
                else "with an NVIDIA card: install its driver, then `nvidia-smi` must answer",
            )
        ]
    found = [_gpu(gpu) for gpu in hardware.accelerators]
    if any(gpu.kind == "mps" for gpu in hardware.accelerators):
        found.append(
            Finding(
                what="Apple's GPU", found="not used for training", level="note",
                means="Luthier trains on a Mac's processor; serving uses the GPU through llama.cpp",
            )
        )  # fmt: skip
    if not hardware.hypothetical and (runtime := _runtime(hardware)) is not None:
        found.append(runtime)
    return found


def _gpu(gpu: Accelerator) -> Finding:
    free, total = gpu.memory_free / GIB, gpu.memory_total / GIB
    words = f"{gpu.name}, {free:.1f} of {total:.1f} GiB free"
    if gpu.compute_capability:
        words += f", compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}"
    if gpu.driver:
        words += f", driver {gpu.driver}"
    means = [
        "bf16" if gpu.bf16 else "no bf16: Gemma 3 and newer, gpt-oss, Qwen3.5 and newer overflow in float16"
    ]
    means.append("fp8" if gpu.fp8 else "no fp8")
    level: Literal["good", "warning"] = "good" if gpu.bf16 else "warning"
    mend = None
    if gpu.holders:
        held = ", ".join(
            f"{h.name} (process {h.pid}"
            + (f", {h.memory_bytes / GIB:.1f} GiB)" if h.memory_bytes is not None else ")")
            for h in gpu.holders
        )
        means.append(f"held by {held}")
        level, mend = "warning", "end those processes if they are yours: kill PID"
    elif gpu.memory_free < 0.8 * gpu.memory_total:
        means.append("memory is held by processes that the driver does not show")
        level, mend = "warning", "nvidia-smi shows who; a container may hide it"
    return Finding(what=f"GPU {gpu.index}", found=words, level=level, means="; ".join(means), mend=mend)


def _runtime(hardware: Hardware) -> Finding | None:
    """Whether the installed torch can use the GPU at all."""
    version = hardware.versions.get("torch")
    if version is None:
        return None
    kinds = {gpu.kind for gpu in hardware.accelerators}
    if "cuda" in kinds and "+cpu" in version:
        return Finding(
            what="torch build",
            found=f"{version} has no CUDA",
            level="bad",
            means="the GPU stays idle: training would run on the CPU",
            mend="pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128",
        )
    if "cuda" in kinds and (older := _too_old(hardware, version)) is not None:
        return older
    if "rocm" in kinds and "+rocm" not in version:
        return Finding(
            what="torch build",
            found=f"{version} has no ROCm",
            level="bad",
            means="the AMD GPU stays idle",
            mend="pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/rocm6.4",
        )
    return Finding(what="torch build", found=version, level="good", means="made for this kind of GPU")


DRIVERS = {12: 525, 13: 580}
"""CUDA's major version -> the oldest branch of drivers that runs it (NVIDIA's CUDA compatibility guide)."""
CARDS = {12: (5, 0), 13: (7, 5)}
"""CUDA's major version -> the oldest compute capability that it compiles for (CUDA's release notes)."""


def _too_old(hardware: Hardware, version: str) -> Finding | None:
    """A driver or a card that is older than the CUDA that torch was built with."""
    named = re.search(r"\+cu(\d\d)\d", version)
    major = 0 if named is None else int(named[1])
    for gpu in hardware.accelerators:
        branch = (gpu.driver or "").split(".")[0]
        if branch.isdigit() and int(branch) < DRIVERS.get(major, 0):
            return Finding(
                what="torch build",
                found=f"{version} needs driver {DRIVERS[major]} or newer, {gpu.driver} is installed",
                level="bad",
                means="CUDA does not start: training would run on the CPU",
                mend="update NVIDIA's driver, or pip install --force-reinstall torch --index-url "
                "https://download.pytorch.org/whl/cu126",
            )
        if gpu.compute_capability is not None and gpu.compute_capability < CARDS.get(major, (0, 0)):
            has = ".".join(map(str, gpu.compute_capability))
            return Finding(
                what="torch build",
                found=f"{version} has no kernels for compute capability {has} ({gpu.name})",
                level="bad",
                means="each product fails on this card",
                mend="pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
            )
    return None


def _disk(hardware: Hardware) -> list[Finding]:
    found: list[Finding] = []
    if hardware.disk_free is not None:
        free = f"{hardware.disk_free / 1e9:.0f} GB free where runs are written"
        if hardware.disk_free < LOW_DISK:
            found.append(
                Finding(
                    what="Disk", found=free, level="warning",
                    means="an 8B model takes 16 GB, and its exports as much again",
                    mend="luthier cache prune, or write runs elsewhere",
                )
            )  # fmt: skip
        else:
            found.append(Finding(what="Disk", found=free, level="good"))
    cache = cache_dir()
    place = cache if cache.exists() else next((p for p in cache.parents if p.exists()), Path("/"))
    writable = os.access(place, os.W_OK)
    found.append(
        Finding(
            what="Cache",
            found=f"{cache}, {shutil.disk_usage(place).free / 1e9:.0f} GB free",
            level="good" if writable else "bad",
            means=None if writable else "it cannot be written: each start reads the catalogue anew",
            mend=None if writable else "LUTHIER_CACHE=/a/writable/folder",
        )
    )
    return found


def _packages(hardware: Hardware) -> list[Finding]:
    versions = hardware.versions
    found: list[Finding] = []
    if "torch" not in versions:
        found.append(
            Finding(
                what="Training", found="torch is not installed", level="bad",
                means="recommending and planning work; training does not",
                mend="pip install 'luthier[train]'",
            )
        )  # fmt: skip
    else:
        words = ", ".join(f"{p} {versions[p]}" for p in ("torch", "transformers", "peft") if p in versions)
        missing = [p for p in ("transformers", "peft", "safetensors") if p not in versions]
        found.append(
            Finding(
                what="Training",
                found=words,
                level="bad" if missing else "good",
                means=f"missing: {', '.join(missing)}" if missing else None,
                mend="pip install 'luthier[train]'" if missing else None,
            )
        )
    missing = [p for p in ("gguf", "libgguf", "xllamacpp") if p not in versions]
    found.append(
        Finding(
            what="Export",
            found="GGUF tools are there" if not missing else f"missing: {', '.join(missing)}",
            level="good" if not missing else "warning",
            means=None if not missing else "safetensors can be exported, GGUF cannot be made or checked",
            mend=None if not missing else "pip install 'luthier[export]', then luthier setup gguf",
        )
    )
    if any(gpu.kind == "cuda" for gpu in hardware.accelerators):
        found += _faster(versions)
    return found


def _faster(versions: dict[str, str]) -> list[Finding]:
    """Optional packages that make CUDA training faster or smaller."""
    wanted = {
        "bitsandbytes": ("optimisers with 8-bit moments need it", "pip install bitsandbytes"),
        "liger-kernel": ("fused losses and norms: less memory, faster", "pip install liger-kernel"),
    }
    return [
        Finding(what=package, found="not installed", level="note", means=why, mend=command)
        for package, (why, command) in wanted.items()
        if package not in versions and importlib.util.find_spec(package.replace("-", "_")) is None
    ]


def hub_finding(timeout: float = HUB_TIMEOUT) -> Finding:
    """Whether the Hub answers, within a few seconds whatever the network does."""
    import socket
    import threading
    from urllib.parse import urlsplit

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(
            what="Hub", found="switched off by HF_HUB_OFFLINE", level="note",
            means="only models on this machine are used", mend="unset HF_HUB_OFFLINE",
        )  # fmt: skip
    place = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host = place.hostname or "huggingface.co"
    port = place.port or (80 if place.scheme == "http" else 443)
    outcome: list[str | None] = []

    def reach() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(str(error.strerror or error))

    # Looking a name up has no timeout of its own, so it is waited for from outside.
    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(2 * timeout)
    if outcome == [None]:
        return Finding(what="Hub", found=f"{host} answers", level="good")
    why = f"no answer within {2 * timeout:g} s" if not outcome else outcome[0]
    return Finding(
        what="Hub",
        found=f"{host} cannot be reached ({why})",
        level="warning",
        means="models on this machine work, and SmolLM2-135M-Instruct comes from the package index",
        mend="HF_ENDPOINT=https://a.mirror, a proxy in HTTPS_PROXY, or `luthier recommend --offline`",
    )
