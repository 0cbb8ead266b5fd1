"""The piece of a file that a finding points at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from luthier.data.opened import open_binary, told_encoding
from luthier.data.read import read_file
from luthier.data.sources import Source
from luthier.errors import LuthierError

_FAR = 1_000_000
"""Lines further down are not looked up: a sample is not worth reading gigabytes again."""
_BYTES = 400


class Samples:
    """``Samples(files)(file, line)`` is the beginning of that line or row, or None where it is too far."""

    def __init__(self, files: Sequence[Source]) -> None:
        self._files = {file.shown: file for file in files}

    def __call__(self, shown: str, line: int) -> str | None:
        file = self._files.get(shown)
        if file is None or line > _FAR:
            return None
        try:
            return _of_row(file, line) if file.kind in ("json", "parquet", "arrow") else _of_line(file, line)
        except (LuthierError, OSError, EOFError):
            return None


def _of_line(file: Source, line: int) -> str | None:
    with open_binary(file) as stream:
        raw = next(islice(stream, line - 1, None), None)
        if raw is None:
            return None
        encoding = told_encoding(raw[:4]) if line == 1 else None
        return raw[:_BYTES].decode(encoding or "utf-8", "replace").strip() or None


def _of_row(file: Source, row: int) -> str | None:
    found = next((one for one in read_file(file, on_problem=lambda _: None) if one.line == row), None)
    return None if found is None else json.dumps(found.value, ensure_ascii=False, default=str)[:_BYTES]
