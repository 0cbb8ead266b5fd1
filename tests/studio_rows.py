"""Rows for the studio's tests, and the way they arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from luthier.studio.services import datasets
from luthier.studio.services.uploads import Received, Span, Uploads

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {n}?"},
            {"role": "assistant", "content": "Yes. " * n},
        ]
    }
    for n in range(1, 61)
]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def send(keeper: Uploads, name: str, data: bytes, first: int = 0, total: int | None = None) -> Received:
    span = Span(first, first + len(data) - 1, total or len(data))
    return asyncio.run(keeper.receive(name, span, "", pieces(data)))


def made(folder: Path, name: str, data: bytes) -> datasets.Dataset:
    return datasets.take(folder, send(Uploads(folder), name, data))
