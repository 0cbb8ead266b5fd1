"""Live updates: one WebSocket a tab, over which a page subscribes to topics from a place on.

The browser sends ``{"key": 1, "topic": "run", "id": ..., "offset": ...}`` or ``{"end": 1}``; each message
back carries the key, and the offset up to which it tells. What is told is read from the runs' own files, so
a tab that comes back asks from its place and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from luthier.errors import LuthierError
from luthier.studio.services.following import news_of_jobs, news_of_log, news_of_run
from luthier.studio.system import gauge
from luthier.words import memory

router = APIRouter()
EVERY = 1.0
"""Seconds between two looks at what is subscribed to."""
MOST_TOPICS = 32

Asked = dict[str, Any]
News = dict[str, Any]


def news_of_gauge(app: FastAPI, asked: Asked) -> News | None:
    """The memory meter, when its words change."""
    now = gauge(app.state.settings.runs)
    words = f"{memory(now['used'])} of {memory(now['total'])} in use"
    if words == asked.get("told"):
        return None
    asked["told"] = words
    return {"words": words, "used": now["used"], "total": now["total"]}


TOPICS: dict[str, Callable[[FastAPI, Asked], News | None]] = {
    "gauge": news_of_gauge,
    "jobs": news_of_jobs,
    "run": news_of_run,
    "log": news_of_log,
}
"""Topic -> what is new since ``asked`` was last looked at, or None; it may keep its place in ``asked``."""


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    """Serve one tab until it goes."""
    await socket.accept()
    topics: dict[int, Asked] = {}
    woken = asyncio.Event()
    teller = asyncio.create_task(_tell(socket, topics, woken))
    try:
        while True:
            asked = json.loads(await socket.receive_text())
            if not isinstance(asked, dict):
                break
            if "end" in asked:
                topics.pop(asked["end"], None)
            elif (
                isinstance(asked.get("key"), int)
                and asked.get("topic") in TOPICS
                and len(topics) < MOST_TOPICS
            ):
                topics[asked["key"]] = asked
                woken.set()
    except (WebSocketDisconnect, ValueError, TypeError, KeyError, RuntimeError):
        pass  # gone, or not one of our pages
    finally:
        teller.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await teller


async def _tell(socket: WebSocket, topics: dict[int, Asked], woken: asyncio.Event) -> None:
    while True:
        for key, asked in list(topics.items()):
            try:
                news = await run_in_threadpool(TOPICS[asked["topic"]], socket.app, asked)
            except (LuthierError, OSError, ValueError, TypeError):
                topics.pop(key, None)  # a run that is gone, or nonsense
                continue
            if news is not None and key in topics:
                await socket.send_text(json.dumps({"key": key, **news}, separators=(",", ":")))
        woken.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(woken.wait(), EVERY)
