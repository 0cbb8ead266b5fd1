"""What torch finds on this machine, asked in a child process: ``python -m luthier.models.probe``.

Prints one JSON object: torch's version and build, the accelerator it sees, and the rate of float32
and bfloat16 matrix products in FLOP/s on the device that training would use.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def matrix_rate(dtype: torch.dtype, device: str, *, seconds: float = 0.4) -> float:
    """FLOP/s of [1024, 1024] x [1024, 1024] on a CPU, 8,192 wide on a GPU: the best of five windows.

    The best window rather than the mean: on a shared machine noise only ever slows it down.
    """
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, dtype=dtype, device=device)
    right = torch.randn(size, size, dtype=dtype, device=device)
    began = time.perf_counter()
    left @ right
    _wait(device)
    # On a CPU that emulates the type one product may take seconds: then that one is the answer.
    if (once := time.perf_counter() - began) > seconds * 5:
        return 2 * size**3 / once
    best = 0.0
    for _ in range(5):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 5:
            left @ right
            done += 1
            _wait(device)
        best = max(best, 2 * size**3 * done / (time.perf_counter() - began))
    return best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def probe() -> dict[str, object]:
    """Everything a plan needs of this machine's torch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, object] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
        "device": device,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "float32": matrix_rate(torch.float32, device),
        "bfloat16": matrix_rate(torch.bfloat16, device),
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"name": torch.cuda.get_device_name(), "memory_free": free, "memory_total": total}
    return found


if __name__ == "__main__":
    json.dump(probe(), sys.stdout)
