"""Texts to ask a model about, from any file that rows are read from."""

from __future__ import annotations

from pathlib import Path

from luthier.data.read import read_rows
from luthier.errors import DataError, FileProblem

COLUMNS = (
    "text", "sentence", "content", "utterance", "query", "question", "review", "comment", "message",
    "sentence1", "premise", "input", "prompt",
)  # fmt: skip
SECONDS = ("pair", "sentence2", "hypothesis", "passage")


def read_texts(path: Path) -> list[str | tuple[str, str]]:
    """One text (or pair) a row; a .txt file holds one text a line, empty lines left out.

    Errors: FileProblem for a file that is missing or not text, DataError where no column holds texts.
    """
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise FileProblem("no such file", file=path) from None
        except UnicodeDecodeError:
            raise FileProblem("not UTF-8 text", file=path, hint="save it as UTF-8 text") from None
        found: list[str | tuple[str, str]] = [line for line in lines if line.strip()]
        if not found:
            raise DataError("the file holds no text", file=path)
        return found
    rows = list(read_rows((str(path.expanduser().resolve()),), base=Path("/")))
    names = {name.lower(): name for name in rows[0].value}
    column = next((names[name] for name in COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"no column holds the texts: there are {', '.join(rows[0].value)}",
            file=path,
            hint="name the column text, or give a .txt file with one text a line",
        )
    second = next((names[name] for name in SECONDS if name in names), None)
    found = []
    for row in rows:
        text = row.value.get(column)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"there is no text in {column}", file=row.file, line=row.line)
        found.append((text, str(row.value[second])) if second and row.value.get(second) else text)
    return found
