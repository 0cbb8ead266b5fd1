"""Look at this machine: processor, memory, disk, accelerators. No torch, nothing slow, never a hang."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.schema.hardware import Accelerator, Hardware, Holder, Processor

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "bitsandbytes",
    "liger-kernel",
    "xllamacpp",
    "gguf",
    "libgguf",
    "huggingface-hub",
    "pyarrow",
)
"""Packages whose versions decide what can be done."""

INTERESTING = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "fma",
    "f16c",
    "asimd",
    "bf16",
    "sve",
    "i8mm",
)
CGROUP = Path("/sys/fs/cgroup")
DRIVER_PLACES = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg", "/dev/nvmap")
"""One of these is there on Linux where NVIDIA's driver is (the last two: WSL, Jetson)."""


def audit(runs: Path | None = None, *, versions: bool = True) -> Hardware:
    """Describe this machine as a process of ours may use it: container limits count, not the host's.

    runs: where runs will be written; its file system's free space is told. versions: whether installed
    packages are looked up too, which an advisor's answer does not need.
    """
    processor = _processor()
    total, free = host_memory()
    return Hardware(
        processor=processor,
        memory_total=total,
        memory_free=free,
        disk_free=_disk_free(runs or Path.cwd()),
        accelerators=tuple(_accelerators(total, free)),
        os=f"{platform.system()} {platform.release()} ({platform.machine()})",
        versions=_versions() if versions else {},
    )


def _processor() -> Processor:
    flags = _cpu_flags()
    known = tuple(flag for flag in INTERESTING if flag in flags)
    return Processor(
        name=_cpu_name(),
        cores=usable_cores(),
        instruction_sets=known,
        # macOS's torch hands fp32 products to Apple's matrix units; bf16 ones would run without them.
        bf16=platform.system() != "Darwin" and bool({"avx512_bf16", "amx_bf16", "bf16"} & flags),
    )


def usable_cores() -> int:
    """Cores that this process may use: affinity and the container's quota, at least one."""
    import psutil

    cores = psutil.cpu_count(logical=True) or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _cgroup_cpu()
    return max(1, min(cores, int(quota) if quota and quota >= 1 else cores if quota is None else 1))


def _cgroup_cpu() -> float | None:
    """CPUs that the container grants, or None without a limit. cgroup v2, then v1."""
    text = _text(CGROUP / "cpu.max")
    if text:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_v1, period_v1 = _text(CGROUP / "cpu/cpu.cfs_quota_us"), _text(CGROUP / "cpu/cpu.cfs_period_us")
    if quota_v1 and period_v1 and int(quota_v1) > 0:
        return int(quota_v1) / int(period_v1)
    return None


def host_memory() -> tuple[int, int]:
    """Total and free bytes, whichever is smaller: the machine's or the container's."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used, inactive in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        ceiling = _text(CGROUP / limit)
        if not ceiling or not ceiling.isdigit() or int(ceiling) >= total:
            continue
        total = int(ceiling)
        current = _text(CGROUP / used)
        if current and current.isdigit():
            # Page cache that can be dropped counts as used there, but is free for us.
            free = min(free, max(0, total - int(current) + _inactive_file(CGROUP / inactive)))
        break
    return total, min(free, total)


def _inactive_file(path: Path) -> int:
    for line in (_text(path) or "").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _cpu_flags() -> set[str]:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    if platform.system() == "Darwin":
        return _darwin_flags()
    return set()


def _darwin_flags() -> set[str]:
    flags = {"asimd"} if platform.machine() == "arm64" else set()
    for name, key in (("bf16", "hw.optional.arm.FEAT_BF16"), ("i8mm", "hw.optional.arm.FEAT_I8MM")):
        if _run("sysctl", "-n", key) == "1":
            flags.add(name)
    return flags


def _cpu_name() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware"):
            return value.strip()
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _run(*command: str, timeout: float = 5.0) -> str | None:
    """Output of a small system command, or None when it is missing, fails or takes too long."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=timeout, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _disk_free(where: Path) -> int | None:
    """Free bytes of the file system that holds `where` or its nearest parent that exists."""
    for folder in (where, *where.resolve().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return None


def _versions() -> dict[str, str]:
    found: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _accelerators(memory_total: int, memory_free: int) -> list[Accelerator]:
    found = _nvml()
    if found is None:
        found = _nvidia_smi()
    if not found:
        found = _rocm()
    if not found and platform.system() == "Darwin" and platform.machine() == "arm64":
        found = [_apple(memory_total, memory_free)]
    return found


def _spec_fields(name: str) -> dict[str, Any]:
    """Datasheet rates of a card that the catalogue knows."""
    from luthier.catalog.index import gpu_like

    spec = gpu_like(name)
    return {} if spec is None else {"bf16_flops": spec.flops, "bandwidth": spec.bandwidth}


def _nvml() -> list[Accelerator] | None:
    """NVIDIA cards by the driver's own library; None where there is no driver."""
    if platform.system() == "Linux" and not any(Path(place).exists() for place in DRIVER_PLACES):
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        driver = _decode(pynvml.nvmlSystemGetDriverVersion())
        visible = _visible()
        count = pynvml.nvmlDeviceGetCount()
        found: list[Accelerator] = []
        for index in range(count):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if visible is not None and not _is_visible(
                index, _decode(pynvml.nvmlDeviceGetUUID(handle)), visible
            ):
                continue
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
            name = _decode(pynvml.nvmlDeviceGetName(handle))
            found.append(
                Accelerator(
                    index=index,
                    name=name,
                    kind="cuda",
                    memory_total=int(memory.total),
                    memory_free=int(memory.free),
                    compute_capability=(int(capability[0]), int(capability[1])),
                    bf16=capability >= (8, 0),
                    fp8=capability >= (8, 9),
                    driver=driver,
                    holders=_holders(pynvml, handle),
                    **_spec_fields(name),
                )
            )
        return found
    except pynvml.NVMLError:
        # A driver that answers only in part (MIG, WSL): nvidia-smi may know more.
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _decode(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible() -> list[str] | None:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if named is None else [part.strip() for part in named.split(",") if part.strip()]


def _is_visible(index: int, uuid: str, visible: list[str]) -> bool:
    return any(word == str(index) or (word.startswith("GPU-") and uuid.startswith(word)) for word in visible)


def _holders(pynvml: Any, handle: Any) -> tuple[Holder, ...]:
    import psutil

    found: list[Holder] = []
    with suppress(pynvml.NVMLError):
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            name = "?"
            with suppress(psutil.Error):
                name = psutil.Process(process.pid).name()
            found.append(Holder(pid=process.pid, name=name, memory_bytes=process.usedGpuMemory))
    return tuple(found)


def _nvidia_smi() -> list[Accelerator]:
    """NVIDIA cards by the command, where the library does not answer."""
    text = _run(
        "nvidia-smi",
        "--query-gpu=index,name,memory.total,memory.free,compute_cap,driver_version,uuid",
        "--format=csv,noheader,nounits",
    )
    found: list[Accelerator] = []
    visible = _visible()
    for line in (text or "").splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 7 or not parts[0].isdigit() or not parts[2].isdigit():
            continue
        if visible is not None and not _is_visible(int(parts[0]), parts[6], visible):
            continue
        major, _, minor = parts[4].partition(".")
        capability = (int(major), int(minor or 0)) if major.isdigit() else None
        found.append(
            Accelerator(
                index=int(parts[0]),
                name=parts[1],
                kind="cuda",
                memory_total=int(parts[2]) * 2**20,
                memory_free=int(parts[3]) * 2**20,
                compute_capability=capability,
                bf16=capability is not None and capability >= (8, 0),
                fp8=capability is not None and capability >= (8, 9),
                driver=parts[5],
                **_spec_fields(parts[1]),
            )
        )
    return found


def _rocm() -> list[Accelerator]:
    """AMD cards as the kernel tells of them."""
    found: list[Accelerator] = []
    for card in sorted(Path("/sys/class/drm").glob("card[0-9]*/device")):
        if _text(card / "vendor") != "0x1002":
            continue
        total, used = _text(card / "mem_info_vram_total"), _text(card / "mem_info_vram_used")
        if not total or not total.isdigit() or int(total) < 2**32:
            # Under 4 GiB it is the graphics part of a processor.
            continue
        name = _text(card / "product_name") or "AMD GPU"
        found.append(
            Accelerator(
                index=len(found),
                name=name,
                kind="rocm",
                memory_total=int(total),
                memory_free=int(total) - int(used or 0),
                bf16=True,
                **_spec_fields(name),
            )
        )
    return found


def _apple(memory_total: int, memory_free: int) -> Accelerator:
    """Apple's GPU shares the machine's memory; macOS lets it wire about 70 % (two thirds up to 36 GiB)."""
    share = 2 / 3 if memory_total <= 36 * 2**30 else 3 / 4
    limit = int(memory_total * share)
    name = _cpu_name()
    return Accelerator(
        index=0,
        name=name,
        kind="mps",
        memory_total=limit,
        memory_free=min(limit, memory_free),
        bf16=True,
        **_spec_fields(name),
    )
