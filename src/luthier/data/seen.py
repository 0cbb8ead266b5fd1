"""Where a digest was seen first, in 16 bytes a row: a dict of Python numbers takes ten times as much."""

from __future__ import annotations

from array import array

_FULL = 0.7


class Seen:
    """Digests of 64 bits -> whole numbers from 0. Open addressing with linear probing."""

    def __init__(self) -> None:
        self._size = 1 << 12
        self._keys = array("Q", bytes(8 * self._size))
        self._values = array("Q", bytes(8 * self._size))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def first(self, key: int, value: int) -> int:
        """The value that key was first given; value itself where it is new."""
        key = key or 1  # 0 stands for an empty place
        keys, mask = self._keys, self._size - 1
        place = key & mask
        while (found := keys[place]) != key:
            if not found:
                keys[place], self._values[place] = key, value
                self._count += 1
                if self._count > _FULL * self._size:
                    self._grow()
                return value
            place = (place + 1) & mask
        return self._values[place]

    def _grow(self) -> None:
        old_keys, old_values = self._keys, self._values
        self._size *= 2
        keys, values = array("Q", bytes(8 * self._size)), array("Q", bytes(8 * self._size))
        mask = self._size - 1
        for key, value in zip(old_keys, old_values, strict=True):
            if key:
                place = key & mask
                while keys[place]:
                    place = (place + 1) & mask
                keys[place], values[place] = key, value
        self._keys, self._values = keys, values
