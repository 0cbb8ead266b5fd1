"""A GPU that stops answering, breaks off, or is not there any more, in words."""

from __future__ import annotations

from luthier.errors import TrainingError

ABSENT = (
    "No CUDA GPUs are available", "Torch not compiled with CUDA enabled", "Found no NVIDIA driver",
    "no CUDA-capable device is detected", "invalid device ordinal", "CUDA driver initialization failed",
    "The NVIDIA driver on your system is too old",
)  # fmt: skip
"""What torch and the driver say where there is no such GPU."""
FAILED = (
    "GPU is lost", "has fallen off the bus", "uncorrectable ECC error", "uncorrectable NVLink error",
    "CUDA error: unknown error", "busy or unavailable", "device not ready", "driver shutting down",
    "GPU requires reset", "Contained or uncontained",
)  # fmt: skip
"""What they say of one that was there a moment ago."""
EITHER = ("unspecified launch failure", "hardware stack error")
"""What they say where a kernel broke off: by a fault of its own, or for a card that failed under it
(cudaErrorLaunchFailure and cudaErrorHardwareStackError in the CUDA runtime's reference)."""


def gpu_gone(error: BaseException, run: str) -> TrainingError | None:
    """The failure of a GPU, told with how to go on with the run of that id; None for any other error."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    go_on = f"luthier train --resume {run} goes on from the last checkpoint"
    if any(sign in text for sign in FAILED):
        return TrainingError(
            f"the GPU has stopped answering: {first}",
            hint="`nvidia-smi` and `dmesg | grep -i xid` say why; once it answers again (a reset, a restart, "
            f"another machine) {go_on}",
        )
    if any(sign in text for sign in EITHER):
        return TrainingError(
            f"a kernel broke off on the GPU: {first}",
            hint="`dmesg | grep -i xid` says whether the card failed (Xid 48, 74, 79, 94, 95) or the kernel "
            f"(Xid 13, 31); {go_on}; if it breaks off again, CUDA_LAUNCH_BLOCKING=1 before that shows where",
        )
    if any(sign in text for sign in ABSENT):
        return TrainingError(
            f"the GPU that this run was planned for is not there: {first}",
            hint=f"`luthier doctor` says what there is; where it is back {go_on}; luthier train --branch "
            f"{run}@last goes on from there as a new run that is planned for this machine",
        )
    return None
