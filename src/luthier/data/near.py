"""Near duplicates by MinHash (Broder 1997) with banding, in numpy.

Two texts are near where the Jaccard similarity of their word 5-grams is high: the share of equal
minima estimates it, and candidates are confirmed by that estimate.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HASHES = 64
_BANDS = 16
"""16 bands of 4: pairs of similarity 0.8 meet with probability 0.9998, of 0.4 with 0.34."""
_SHINGLE = 5
_WORDS = re.compile(r"\w+")
_FACTORS = np.array([1000003**power % (1 << 64) for power in range(_SHINGLE)], dtype=np.uint64)
"""Weights of the words of a shingle."""
_BAND_BYTES = _HASHES // _BANDS * 4
_LETTERS = 5_000
"""Letters of a text that are compared."""
_MOST_WORDS = 200_000
_FEW_WORDS = 8
"""Texts of fewer words are told apart by equality only: one changed word may be all the difference."""


class NearIndex:
    """Texts by signature. ``add`` answers with the first earlier text that is near."""

    def __init__(self, threshold: float = 0.8) -> None:
        # Multiply-shift hashing (Dietzfelbinger 1996): odd 64-bit factors, the upper half of the product.
        draw = np.random.default_rng(1)
        self._a = draw.integers(1, 1 << 63, _HASHES, dtype=np.uint64)[:, None] * np.uint64(2) + np.uint64(1)
        self._b = draw.integers(0, 1 << 63, _HASHES, dtype=np.uint64)[:, None]
        self._threshold = threshold
        self._hashes = _Hashes()
        self._buckets: list[dict[bytes, int]] = [{} for _ in range(_BANDS)]
        self._signatures: list[NDArray[np.uint32]] = []
        self._keys: list[int] = []

    def find(self, text: str) -> int | None:
        """Key of an earlier text near this one."""
        return self.find_signature(self.signature(text))

    def find_signature(self, signature: NDArray[np.uint32] | None) -> int | None:
        """Like find, for a text's signature."""
        return None if signature is None else self._match(signature)

    def add(self, text: str, key: int) -> int | None:
        """Like find, and remember the text under key where nothing is near."""
        return self.add_signature(self.signature(text), key)

    def add_signature(self, signature: NDArray[np.uint32] | None, key: int) -> int | None:
        """Like add, for a text's signature."""
        if signature is None:
            return None
        found = self._match(signature)
        if found is not None:
            return found
        place = len(self._signatures)
        self._signatures.append(signature)
        self._keys.append(key)
        for bucket, band in zip(self._buckets, _bands(signature), strict=True):
            bucket.setdefault(band, place)
        return None

    def _match(self, signature: NDArray[np.uint32]) -> int | None:
        tried: set[int] = set()
        for bucket, band in zip(self._buckets, _bands(signature), strict=True):
            place = bucket.get(band)
            if place is not None and place not in tried:
                tried.add(place)
                if float(np.mean(self._signatures[place] == signature)) >= self._threshold:
                    return self._keys[place]
        return None

    def signature(self, text: str) -> NDArray[np.uint32] | None:
        """[64] minima; None for texts too short to be compared."""
        words = _shingled(text)
        if len(words) < _FEW_WORDS:
            return None
        hashes = np.fromiter(map(self._hashes.__getitem__, words), dtype=np.uint64, count=len(words))
        count = len(words) - _SHINGLE + 1
        shingles = sum(hashes[place : place + count] * _FACTORS[place] for place in range(_SHINGLE))
        mixed = (self._a * shingles + self._b) >> np.uint64(32)
        minima: NDArray[np.uint32] = mixed.min(axis=1).astype(np.uint32)
        return minima


_MOST_COMPARED = 64
"""Texts of one band that each text is compared with."""


def near_groups(texts: Iterable[str], threshold: float = 0.8) -> Iterator[tuple[int, int]]:
    """Pairs (earlier, later) of texts that are near: all that share a band are compared."""
    index = NearIndex(threshold)
    signatures: dict[int, NDArray[np.uint32]] = {}
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(_BANDS)]
    for place, text in enumerate(texts):
        signature = index.signature(text)
        if signature is None:
            continue
        met: set[int] = set()
        for bucket, band in zip(buckets, _bands(signature), strict=True):
            others = bucket.setdefault(band, [])
            met.update(others)
            if len(others) < _MOST_COMPARED:
                others.append(place)
        for other in sorted(met):
            if float(np.mean(signatures[other] == signature)) >= threshold:
                yield other, place
        signatures[place] = signature


class _Hashes(dict[str, int]):
    """Word -> 32 bits, the same in every process; remembered, as texts repeat their words."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        found = self[word] = zlib.crc32(word.encode("utf-8", "replace"))
        return found


def _bands(signature: NDArray[np.uint32]) -> list[bytes]:
    raw = signature.tobytes()
    return [raw[start : start + _BAND_BYTES] for start in range(0, len(raw), _BAND_BYTES)]


def _shingled(text: str) -> list[str]:
    """Words in small letters; for scripts without spaces, letters."""
    words = _WORDS.findall(text[:_LETTERS].lower())
    if words and sum(map(len, words)) / len(words) > 12:
        return list("".join(words))
    return words
