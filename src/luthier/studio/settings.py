"""Where the studio listens, what it may touch, and where it keeps its own few files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from luthier.runs.directory import runs_root
from luthier.serving.guard import LOOPBACK


def studio_home() -> Path:
    """The studio's own folder: ``LUTHIER_STUDIO``, else ``studio`` beside the runs."""
    own = os.environ.get("LUTHIER_STUDIO")
    return Path(own).expanduser().absolute() if own else runs_root().parent / "studio"


@dataclass(frozen=True, slots=True)
class StudioSettings:
    """One studio, as it was started."""

    runs: Path = field(default_factory=runs_root)
    """The folder of runs that is shown and written."""
    home: Path = field(default_factory=studio_home)
    """The studio's own folder, mode 0700."""
    host: str = "127.0.0.1"
    port: int = 7860
    hosts: frozenset[str] = LOOPBACK
    """Names under which it may be reached."""
    secure: bool = False
    """Served over TLS: cookies are marked so."""
    data_roots: tuple[Path, ...] = ()
    """Folders besides the uploads from which local data files may be read."""

    @property
    def uploads(self) -> Path:
        """Where uploaded files lie."""
        return self.home / "uploads"
