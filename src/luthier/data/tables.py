"""Parquet and Arrow files: their rows as plain values, with the names of their classes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from luthier.data.sources import Source
from luthier.errors import FileProblem, Unsupported


def parquet_values(source: Source) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file. Raises FileProblem where it is none, Unsupported without pyarrow."""
    pyarrow = arrow_library(source, "pyarrow.parquet")
    _plain_file(source, "Parquet")
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            yield from _values(file.iter_batches(batch_size=1_000), class_names(file.schema_arrow))
    except pyarrow.ArrowInvalid as error:
        raise _not_arrow(source, "Parquet", error) from error


def arrow_values(source: Source) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow file, of either form. Errors as parquet_values."""
    pyarrow = arrow_library(source, "pyarrow.ipc")
    _plain_file(source, "Arrow")
    try:
        with pyarrow.memory_map(str(source.path)) as mapped:
            try:
                reader = pyarrow.ipc.open_file(mapped)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:  # the streaming form, as `datasets` writes it
                mapped.seek(0)
                reader = batches = pyarrow.ipc.open_stream(mapped)
            yield from _values(batches, class_names(reader.schema))
    except pyarrow.ArrowInvalid as error:
        raise _not_arrow(source, "Arrow", error) from error


def _values(batches: Any, classes: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for value in batch.to_pylist():
            yield named(value, classes)


def arrow_library(source: Source, part: str) -> Any:
    """The pyarrow package with one of its modules. Raises Unsupported where it is not installed."""
    try:
        importlib.import_module(part)
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise Unsupported(
            f"reading {source.kind} needs the pyarrow package",
            file=source.shown,
            hint="pip install 'luthier[data]', or convert the file to JSONL",
        ) from error


def _plain_file(source: Source, kind: str) -> None:
    if source.compression:
        raise Unsupported(
            f"{kind} is compressed inside; {source.compression} around it is not read",
            file=source.shown,
            hint="decompress the file first",
        )


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, where `datasets` wrote the rows and says so."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: list(kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def named(value: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    """A row with the names of its classes in place of their numbers."""
    for name, names in classes.items():
        index = value.get(name)
        if isinstance(index, int):  # -1 stands for no label
            value[name] = names[index] if 0 <= index < len(names) else None
    return value


def _not_arrow(source: Source, kind: str, error: Exception) -> FileProblem:
    return FileProblem(
        f"is not a {kind} file: {str(error).splitlines()[0]}",
        file=source.shown,
        hint="check that the file was downloaded to its end and that its suffix says what it is",
    )
