"""Time from operations: a rate that was measured or is known, an efficiency with its source, a band."""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.schema.base import Range
from luthier.schema.hardware import Accelerator, Hardware, Processor


@dataclass(frozen=True, slots=True)
class Rate:
    """Matrix rate of a device in FLOP/s, the share of it that training reaches, and where both come from."""

    flops: float
    efficiency: Range
    source: str
    bandwidth: float | None = None
    """Bytes/s of memory, for generation."""

    def seconds(self, operations: float) -> Range:
        """Time of that many operations."""
        low, middle, high = (
            operations / (self.flops * share)
            for share in (self.efficiency.high, self.efficiency.expected, self.efficiency.low)
        )
        return Range(low=low, expected=middle, high=high)


def _band(low: float, expected: float, high: float) -> Range:
    return Range(low=low, expected=expected, high=high)


# Share of the datasheet's dense rate, recomputation counted. Source: our rows of one H100 (2026-11-22,
# eager transformers 0.27-0.33, compiled with fused loss 0.41-0.46) and published runs named beside.
_GPU_EFFICIENCY: dict[tuple[int, int], tuple[Range, str]] = {
    (7, 5): (_band(0.11, 0.16, 0.19), "34 published LoRA steps on a T4 (fitcheck, 2026)"),
    (8, 0): (_band(0.30, 0.42, 0.56), "torchtune's published A100 runs, eager to compiled"),
    (9, 0): (_band(0.24, 0.32, 0.43), "our H100 rows of 2026-11-22 and NeMo AutoModel's published ones"),
}
_GPU_PRIOR = _band(0.18, 0.30, 0.42)
# A step on a CPU is its matrix products and what lies between them: the rest goes as fast as products at a
# certain rate would, whatever the type and however many the cores (hardly any of it spreads over them), so
# that a processor with bf16 units runs the products eight times as fast and the step less than twice.
# Fitted to 12 steps of 3 models in fp32 on one core (benchmarks/memory/cpu.json: 0.53 to 0.79 of the rate)
# and to SmolLM2-135M on two in both types; the committed rows alone, all at one rate, do not tell them apart.
CPU_PRODUCTS = 0.85
"""Share of the measured matrix rate that a step's products reach."""
CPU_BETWEEN = 210e9
"""FLOP/s of products that what lies between them is worth."""
EXPERTS_SHARE = _band(0.25, 0.5, 0.9)
"""Share of a dense model's efficiency that one with experts reaches. A prior, not measured: tokens are sorted
by expert and back, products are as many and as small as the experts, and the fullest one is waited for."""
# FLOP/s of one core in fp32, where nothing was measured: two fused units of that width at 2.5 GHz, of
# which large products reach about 60 %.
_CPU_CORE = {"avx512f": 96e9, "avx2": 48e9, "neon": 24e9, "asimd": 24e9}
_CPU_SLOWEST = 8e9
_CPU_BANDWIDTH = 10e9
"""Bytes/s of a memory channel in use, a cautious figure for machines whose memory is not described."""


def gpu_rate(gpu: Accelerator, *, measured: float | None = None, dtype: str = "bfloat16") -> Rate | None:
    """Rate of a GPU in half precision; None where neither its datasheet nor a measurement is known."""
    flops = measured or gpu.bf16_flops
    if flops is None:
        return None
    efficiency, source = _GPU_EFFICIENCY.get(gpu.compute_capability or (0, 0), (_GPU_PRIOR, ""))
    if not source:
        source = "no measured run on this GPU: a wide prior of 18 to 42 % of its matrix rate"
    if dtype == "float32":
        flops, source = flops / 8, source + "; fp32 taken as an eighth of the half-precision rate"
    origin = "measured matrix rate" if measured else "datasheet's matrix rate"
    return Rate(flops, efficiency, f"{origin} {flops / 1e12:.0f} TFLOP/s; {source}", gpu.bandwidth)


def cpu_rate(processor: Processor, *, measured: float | None = None, dtype: str = "float32") -> Rate:
    """Rate of all usable cores; a prior by instruction set where nothing was measured."""
    if measured is not None:
        said = f"measured {dtype} matrix rate {measured / 1e9:.0f} GFLOP/s"
        share = 1 / (1 / CPU_PRODUCTS + measured / CPU_BETWEEN)
        return Rate(measured, _band(0.65 * share, share, 1.25 * share), said, _CPU_BANDWIDTH)
    sets = set(processor.instruction_sets)
    core = next((rate for name, rate in _CPU_CORE.items() if name in sets), _CPU_SLOWEST)
    name = next((name for name in _CPU_CORE if name in sets), "no vector unit known")
    wide = _band(0.20, 0.5, 1.0)
    source = f"not measured: {core / 1e9:.0f} GFLOP/s a core taken for {name}, {processor.cores} cores"
    return Rate(core * processor.cores, wide, source, _CPU_BANDWIDTH)


def rate_of(
    hardware: Hardware,
    device: str,
    *,
    measured: float | None = None,
    dtype: str = "float32",
    experts: bool = False,
) -> Rate | None:
    """Rate of the device that a run would use; None where it is not known. experts: of a model with such."""
    found: Rate | None
    if device == "cpu" or not hardware.accelerators:
        found = cpu_rate(hardware.processor, measured=measured, dtype=dtype)
    else:
        found = gpu_rate(hardware.accelerators[0], measured=measured, dtype=dtype)
    if found is None or not experts:
        return found
    reached, share = found.efficiency, EXPERTS_SHARE
    slower = _band(reached.low * share.low, reached.expected * share.expected, reached.high * share.high)
    said = "; with experts a quarter to nine tenths of that: a prior, not measured"
    return replace(found, efficiency=slower, source=found.source + said)


def add(*bands: Range | None) -> Range | None:
    """Sum of bands; None when one is not known."""
    known = [band for band in bands if band is not None]
    if len(known) != len(bands) or not known:
        return None
    return Range(
        low=sum(band.low for band in known),
        expected=sum(band.expected for band in known),
        high=sum(band.high for band in known),
    )
