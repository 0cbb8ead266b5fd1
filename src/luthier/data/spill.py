"""Numbers that grow with the rows, kept on disk while rows are read: memory does not grow with them."""

from __future__ import annotations

import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.files import cache_dir

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


class Spilled:
    """Values of one type, added in pieces and read back as one array. The file goes when this does."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype, self._count = np.dtype(dtype), 0
        folder = cache_dir() / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this lives
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._count

    def add(self, values: NDArray[Any]) -> None:
        """Append some values."""
        self._file.write(values.astype(self._dtype, copy=False).tobytes())
        self._count += len(values)

    def read(self) -> NDArray[Any]:
        """All values so far, in memory: a new array at each call."""
        self._file.seek(0)
        found = np.empty(self._count, dtype=self._dtype)
        room = found.view(np.uint8).data
        while room:
            room = room[self._file.readinto(room) :]
        self._file.seek(0, 2)
        return found
