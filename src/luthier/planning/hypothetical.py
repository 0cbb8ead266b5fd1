"""Hardware that the user describes in words: ``rtx 4090``, ``2xh100``, ``cpu:16GB``, ``vram 24GB``."""

from __future__ import annotations

import re

from luthier.catalog.index import gpu, gpus
from luthier.errors import UsageError, did_you_mean
from luthier.schema.hardware import Accelerator, GpuSpec, Hardware, Processor

SIZE = re.compile(r"(?P<number>\d+(?:[.,]\d+)?)\s*(?P<unit>[kmgt]i?b|[kmgt])?", re.IGNORECASE)
COUNT = re.compile(r"^(?P<count>\d{1,3})\s*(?:x|×|\*)\s*(?P<rest>.+)$", re.IGNORECASE)
WAYS = (
    "write a GPU ('rtx 4090', '2xh100'), 'vram 24GB', 'cpu:16GB', 'mac:32GB', 'phone:8GB' "
    "or 'raspberry-pi:8GB'"
)

DEVICES: dict[str, tuple[str, int, int, float, tuple[str, ...], float]] = {
    # name, cores, default memory in GB, usable share of it, instruction sets, memory bandwidth
    "cpu": ("a CPU", 8, 16, 1.0, ("avx2", "fma"), 51.2e9),
    "laptop": ("a laptop's CPU", 8, 16, 1.0, ("avx2", "fma"), 51.2e9),
    "server": ("a server's CPU", 32, 128, 1.0, ("avx2", "avx512f", "fma"), 204.8e9),
    "phone": ("a phone", 8, 8, 0.5, ("asimd", "i8mm"), 51.2e9),
    "raspberry-pi": ("a Raspberry Pi 5", 4, 8, 0.85, ("asimd",), 17.1e9),
}
"""Machines without an accelerator. A phone's system keeps about half of its memory for itself. Bandwidth
is bus width x rate: two channels of DDR4-3200 (cpu, laptop), eight (server), 64 bits of LPDDR5-6400
(phone), 32 bits of LPDDR4X-4267 (the Raspberry Pi 5's data sheet)."""
MAC_BANDWIDTH = 100e9
"""Bytes/s of a Mac of which only the memory is told: Apple's figure for M2 and M3, its slowest since 2022."""


def parse_size(text: str) -> int:
    """Bytes of ``24GB``, ``16 GiB``, ``24`` (GB). GB of memory means GiB, as its sellers count it.

    Errors: UsageError.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", hint="write a number and a unit: 24GB, 16 GiB, 512MB")
    number = float(match["number"].replace(",", "."))
    unit = (match["unit"] or "gb").lower()[0]
    return int(number * 2 ** {"k": 10, "m": 20, "g": 30, "t": 40}[unit])


def parse_hardware(text: str) -> Hardware:
    """Turn a description into hardware. Errors: UsageError with the nearest name."""
    return _parsed(text).model_copy(update={"words": text.strip()})


def _parsed(text: str) -> Hardware:
    words = text.strip()
    count = 1
    if match := COUNT.match(words):
        count, words = int(match["count"]), match["rest"].strip()
    if count < 1:
        raise UsageError(f"{text!r}: no accelerator at all", hint=WAYS)
    if (spec := gpu(words)) is not None:
        return _with_gpus(spec, count)
    name, size = _split(words)
    if name in ("vram", "gpu"):
        if size is None:
            raise UsageError(f"{text!r} does not say how much memory", hint=WAYS)
        return _with_vram(size, count)
    if name in ("mac", "apple", "mps", "unified"):
        return _unified(size or 16 * 2**30)
    device = {"pi": "raspberry-pi", "raspberry": "raspberry-pi", "edge": "phone"}.get(name, name)
    if device in DEVICES:
        if count != 1:
            raise UsageError(f"{text!r}: several machines are not one machine", hint="describe one of them")
        return _machine(device, size)
    if size is not None and (spec := gpu(name)) is not None:
        # "a100 40GB" where only one size is known: take the user's size.
        usable = int(size * spec.memory_total / spec.nameplate)
        return _with_gpus(spec.model_copy(update={"memory_total": usable, "nameplate": size}), count)
    if not name and size is not None:
        return _with_vram(size, count)
    known = [*DEVICES, "vram", "mac", *(alias for g in gpus() for alias in (g.id, *g.aliases))]
    near = did_you_mean(words, known) or did_you_mean(name, known)
    raise UsageError(f"{text!r} is not known hardware", hint=f"{near} {WAYS}" if near else WAYS)


def _split(words: str) -> tuple[str, int | None]:
    """Name and size of ``cpu:16GB``, ``vram 24GB``, ``24GB vram``, ``24GB``."""
    size = re.search(r"(\d+(?:[.,]\d+)?)\s*([kmgt]i?b)\b", words, re.IGNORECASE)
    rest = words if size is None else words[: size.start()] + words[size.end() :]
    name = re.sub(r"[\s_]+", "-", rest.strip(" :=,-").lower())
    name = re.sub(r"-(ram|memory|of)$", "", name)
    return name, None if size is None else parse_size(size.group(0))


def _host(memory: int, cores: int = 16) -> tuple[Processor, int]:
    return Processor(name="not described", cores=cores, instruction_sets=("avx2", "fma"), bf16=False), memory


def _with_gpus(spec: GpuSpec, count: int) -> Hardware:
    processor, memory = _host(max(32 * 2**30, 2 * spec.nameplate * count))
    if spec.unified:
        memory = spec.nameplate
        processor = Processor(name=spec.name, cores=8, instruction_sets=("asimd",), bf16=False)
    return Hardware(
        processor=processor,
        memory_total=memory,
        memory_free=memory,
        disk_free=None,
        accelerators=tuple(
            Accelerator(
                index=index,
                name=spec.name,
                kind=spec.kind,
                memory_total=spec.memory_total,
                memory_free=spec.memory_total,
                compute_capability=spec.compute_capability,
                bf16=spec.bf16,
                fp8=spec.fp8,
                bf16_flops=spec.flops,
                bandwidth=spec.bandwidth,
            )
            for index in range(count)
        ),
        hypothetical=True,
    )


def _with_vram(size: int, count: int) -> Hardware:
    """A card of which only the memory is known: NVIDIA with bf16, as slow as the slowest of that size."""
    processor, memory = _host(max(16 * 2**30, 2 * size * count))
    usable = int(size * 0.98)
    known = [spec for spec in gpus() if spec.kind == "cuda" and spec.bf16]
    nearest = min(abs(spec.nameplate - size) for spec in known)
    like = min((s for s in known if abs(s.nameplate - size) == nearest), key=lambda spec: spec.flops)
    return Hardware(
        processor=processor,
        memory_total=memory,
        memory_free=memory,
        disk_free=None,
        accelerators=tuple(
            Accelerator(
                index=index,
                name=f"a GPU with {size / 2**30:g} GiB (rates of {like.name})",
                kind="cuda",
                memory_total=usable,
                memory_free=usable,
                compute_capability=like.compute_capability,
                bf16=True,
                fp8=like.fp8,
                bf16_flops=like.flops,
                bandwidth=like.bandwidth,
            )
            for index in range(count)
        ),
        hypothetical=True,
    )


def _unified(size: int) -> Hardware:
    share = 2 / 3 if size <= 36 * 2**30 else 3 / 4
    return Hardware(
        # macOS's torch hands fp32 products to Apple's matrix units; bf16 ones would run without them.
        processor=Processor(name="Apple silicon", cores=8, instruction_sets=("asimd",), bf16=False),
        memory_total=size,
        memory_free=size,
        disk_free=None,
        accelerators=(
            Accelerator(
                index=0,
                name="Apple silicon GPU",
                kind="mps",
                memory_total=int(size * share),
                memory_free=int(size * share),
                bf16=True,
                bandwidth=MAC_BANDWIDTH,
            ),
        ),
        hypothetical=True,
    )


def _machine(device: str, size: int | None) -> Hardware:
    name, cores, gib, share, flags, bandwidth = DEVICES[device]
    memory = int((size or gib * 2**30) * share)
    return Hardware(
        processor=Processor(name=name, cores=cores, instruction_sets=flags, bf16=False),
        memory_total=memory,
        memory_free=memory,
        disk_free=None,
        bandwidth=bandwidth,
        hypothetical=True,
        os="",
    )
