"""In which type the weights are held and computed with here."""

from __future__ import annotations

from luthier.planning.case import Case
from luthier.schema.recipe import Dtype


def derive_types(case: Case) -> None:
    """Type of the weights by what the device does fast, whatever the checkpoint was saved in."""
    processor = case.hardware.processor
    if case.device == "cuda":
        gpu = case.hardware.accelerators[0]
        if gpu.bf16:
            case.derive("model.dtype", "bfloat16", f"{gpu.name} computes bf16 natively")
        else:
            case.derive("model.dtype", "float32", f"{gpu.name} has no bf16")
            if case.value("model.dtype") == "bfloat16":
                said = "bf16, which model.dtype asks for, is emulated there and slower than fp32"
            else:
                said = "fp32 is right everywhere and several times slower than fp16"
            case.warnings.append(f"{gpu.name} has no bf16: {said}")
    else:
        dtype, why = _host_type(case)
        case.derive("model.dtype", dtype, why)
        if case.value("model.dtype") == "bfloat16" and not processor.bf16:
            case.warnings.append(
                f"bf16 is emulated on {processor.name}: expect it to be tens of times slower than fp32"
            )
    case.derive("model.attention", "sdpa", "torch's fused attention, the fastest on every device")


def _host_type(case: Case) -> tuple[Dtype, str]:
    processor = case.hardware.processor
    half, single = case.rates.get("bfloat16"), case.rates.get("float32")
    if half is not None and single is not None:
        measured = f"measured here: bf16 {half / 1e9:.0f}, fp32 {single / 1e9:.0f} GFLOP/s"
        if processor.bf16 and half > 1.3 * single:
            return "bfloat16", measured
        return "float32", measured
    if processor.bf16:
        return "bfloat16", f"{processor.name} computes bf16 natively"
    return "float32", f"{processor.name} has no bf16 instructions: whatever the weights are saved in"
