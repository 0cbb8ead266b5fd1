"""A few steps recorded by torch's profiler, as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FIRST = 3
"""The step of the process that is recorded first: kernels are chosen and memory is there by then."""


class StepProfile:
    """Records so many steps from the third on and writes them as ``profile/steps-3-to-5.json.gz``.

    steps: how many; with 0 nothing is done. folder: the run's.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        self.wanted, self.folder, self.device = steps, folder, device
        self.done = 0
        self._profile: Any = None
        self._first: int | None = None

    def before(self, step: int) -> None:
        """A step is about to begin (counted from 1 over the whole run)."""
        self.done += 1
        if not self.wanted or self.done != FIRST:
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile, self._first = torch.profiler.profile(activities=activities, record_shapes=True), step
        self._profile.start()

    def after(self, step: int) -> Path | None:
        """A step is over; the trace's path when it was the last one recorded."""
        if self._profile is None or step < (self._first or 0) + self.wanted - 1:
            return None
        return self.close(step)

    def close(self, step: int) -> Path | None:
        """Stop and write what was recorded up to this step; None where nothing was."""
        if self._profile is None:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._profile.stop()
        path = self.folder / "profile" / f"steps-{self._first}-to-{step}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        return path
