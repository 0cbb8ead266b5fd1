"""Live updates: one WebSocket a tab, over which a page subscribes to topics from a place on.

The browser sends ``{"key": 1, "topic": "run", "id": ..., "offset": ...}`` or ``{"end": 1}``; each message
back carries the key, and the offset up to which it tells. What is told is read from the runs' own files, so
a tab that comes back asks from its place and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from luthier.studio.system import gauge
from luthier.words import memory

router = APIRouter()
EVERY = 1.0
"""Seconds between two looks at what is subscribed to."""
MOST_TOPICS = 32


@asynccontextmanager
async def started(_app: FastAPI) -> AsyncIterator[None]:
    """What runs as long as the studio does."""
    yield


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    """Serve one tab until it goes."""
    await socket.accept()
    topics: dict[int, dict[str, Any]] = {}
    teller = asyncio.create_task(_tell(socket, topics))
    try:
        while True:
            asked = json.loads(await socket.receive_text())
            if not isinstance(asked, dict):
                break
            if "end" in asked:
                topics.pop(asked["end"], None)
            elif isinstance(asked.get("key"), int) and len(topics) < MOST_TOPICS:
                topics[asked["key"]] = asked
    except (WebSocketDisconnect, ValueError, KeyError):
        pass
    finally:
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await teller


async def _tell(socket: WebSocket, topics: dict[int, dict[str, Any]]) -> None:
    settings = socket.app.state.settings
    while True:
        for key, asked in list(topics.items()):
            if asked.get("topic") == "gauge":
                now = await run_in_threadpool(gauge, settings.runs)
                words = f"{memory(now['used'])} of {memory(now['total'])} in use"
                if words != asked.get("told"):
                    asked["told"] = words
                    await socket.send_json(
                        {"key": key, "words": words, **{k: now[k] for k in ("used", "total")}}
                    )
        await asyncio.sleep(EVERY)
