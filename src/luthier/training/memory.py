"""How much memory a training holds: now, at its height, and at the height of each phase of a step."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Literal

import torch

PhaseName = Literal["load", "forward", "backward", "optimizer"]
_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated tensors on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_now(device: torch.device) -> int:
    """Bytes held now, by the same measure as `peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.Process().memory_info().rss)


class PhaseWatch:
    """Peak bytes of each phase, by starting the high-water mark anew at its beginning.

    ``peak`` stays the highest of all, whatever was started anew. On a CPU this needs Linux, where a
    process may reset its own mark; elsewhere ``phases`` stays empty and ``peak`` is still right.
    """

    def __init__(self, device: torch.device, phases: dict[str, int] | None = None) -> None:
        self.device = device
        self.phases: dict[str, int] = dict(phases or {})
        self._highest = 0
        self._here = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._able = device.type == "cuda" or self._reset()

    @property
    def peak(self) -> int:
        """Highest bytes since this watch was made (on a CPU: since the process began)."""
        self._highest = max(self._highest, peak_memory(self.device))
        return self._highest

    @property
    def here(self) -> int:
        """Highest bytes since this watch was made; 0 where that cannot be told."""
        return max(self._here, self._since()) if self._able else 0

    def start(self) -> None:
        """Begin a phase: what was held before does not count for it."""
        self._highest, self._here = self.peak, self.here
        if self._able:
            self._able = self._reset()

    def end(self, name: PhaseName) -> None:
        """End the phase that was begun and begin the next."""
        if self._able:
            self.phases[name] = max(self.phases.get(name, 0), self._since())
        self.start()

    def _since(self) -> int:
        """Highest bytes since the last reset."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

    def _reset(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        self._highest = max(self._highest, peak_memory(self.device))
        # Not there on other systems, and forbidden in some containers: then phases are not told apart.
        with contextlib.suppress(OSError):
            _RESET.write_text("5", encoding="ascii")
            return True
        return False
