"""Answers as they come: one task a column, which goes on whoever watches; watchers come and go."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from luthier.errors import LuthierError, Unreachable
from luthier.runs.servers import ServerDirectory
from luthier.studio.services.comparing import (
    Answer,
    Conversation,
    Conversations,
    Side,
    Weights,
    messages_of,
    model_of,
    server_for,
)

LOAD_SECONDS = 900.0
"""Longest wait for a model to load; a base is converted to GGUF when it is first asked."""
SILENCE = 600.0
"""Seconds without a byte after which an answer counts as failed."""


class Turning:
    """One turn while its columns answer: everything said so far, and a bell for what comes."""

    def __init__(self, columns: int) -> None:
        self.events: list[dict[str, Any]] = []
        self.left = columns
        self._bell = asyncio.Event()

    def say(self, **event: Any) -> None:
        """Add an event and ring."""
        self.events.append(event)
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """Every event from the first on, until all columns have ended."""
        seen = 0
        while True:
            bell = self._bell
            while seen < len(self.events):
                yield self.events[seen]
                seen += 1
            if self.left == 0:
                return
            await bell.wait()


class Chats:
    """The turns that are being answered now, in one studio."""

    def __init__(self, kept: Conversations) -> None:
        self.kept = kept
        self._turns: dict[tuple[str, int], Turning] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, conversation: Conversation) -> None:
        """Let every column answer the last turn."""
        turn = len(conversation.turns) - 1
        turning = Turning(len(conversation.sides))
        self._turns[conversation.id, turn] = turning
        for column, side in enumerate(conversation.sides):
            task = asyncio.create_task(self._column(conversation, turn, column, side, turning))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def is_live(self, id: str, turn: int) -> bool:  # noqa: A002 - the name in the URL
        """Whether a turn is being answered now."""
        return (id, turn) in self._turns

    async def follow(self, id: str, turn: int) -> AsyncIterator[dict[str, Any]]:  # noqa: A002
        """Events of a turn: those of before at once, the rest as they come; nothing where it has ended."""
        turning = self._turns.get((id, turn))
        if turning is None:
            return
        async for event in turning.follow():
            yield event

    async def close(self) -> None:
        """End what is being answered."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _column(
        self, conversation: Conversation, turn: int, column: int, side: Side, turning: Turning
    ) -> None:
        answer = Answer()
        began = time.monotonic()
        try:
            turning.say(c=column, state="loading")
            server = await asyncio.to_thread(server_for, side)
            await _until_ready(server, lambda note: turning.say(c=column, state="loading", note=note))
            turning.say(c=column, state="answering")
            answer = await self._ask(conversation, turn, column, server=server, turning=turning)
        except LuthierError as error:
            words = f"{error.message}. {error.hint or ''}".strip()
            answer = answer.model_copy(update={"error": words, "done": True})
        except httpx2.HTTPError as error:
            answer = answer.model_copy(update={"error": f"the model went away: {error}", "done": True})
        finally:
            answer = answer.model_copy(update={"seconds": round(time.monotonic() - began, 2)})
            self.kept.answer(conversation.id, turn, column, answer)
            turning.left -= 1
            turning.say(c=column, done=_ending(answer, hidden=conversation.hidden))
            if turning.left == 0:
                del self._turns[conversation.id, turn]

    async def _ask(
        self,
        conversation: Conversation,
        turn: int,
        column: int,
        *,
        server: ServerDirectory,
        turning: Turning,
    ) -> Answer:
        side = conversation.sides[column]
        status = await asyncio.to_thread(lambda: server.status)
        model = model_of(side, server)
        sampling = conversation.sampling
        body: dict[str, Any] = {
            "model": model,
            "messages": messages_of(conversation, column, turn),
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": sampling.seed,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            # A cached prefix changes the rounding of what follows: one seed would give two answers.
            "cache_prompt": False,
        }
        if sampling.temperature == 0:
            body |= {"top_k": 1, "samplers": ["top_k"]}
        headers = {"authorization": f"Bearer {server.key}"}
        timeout = httpx2.Timeout(SILENCE, connect=10)
        async with (
            httpx2.AsyncClient(timeout=timeout, trust_env=False) as http,
            http.stream("POST", f"{status.url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise Unreachable(_refusal(await response.aread()), hint=f"see the log of {server.id}")
            weights = _weights(server, model, response)
            if not conversation.hidden:
                turning.say(c=column, weights=weights.words)
            return await _read(response, weights, column, turning)


async def _until_ready(server: ServerDirectory, told: Callable[[str], None]) -> None:
    """Wait for a model to load. told: what it does meanwhile. Errors: Unreachable with its reason."""
    until = time.monotonic() + LOAD_SECONDS
    note = ""
    while True:
        status = await asyncio.to_thread(lambda: server.status)
        if status.state == "ready":
            return
        if status.state != "loading":
            failure = status.failure
            raise Unreachable(
                failure.message if failure else f"the model's server is {status.state}",
                hint=(failure.hint if failure else None) or "ask again to load it once more",
            )
        if status.note != note:
            note = status.note
            told(note)
        if time.monotonic() > until:
            raise Unreachable(f"the model was not loaded within {LOAD_SECONDS:.0f} s", hint="see /serve")
        await asyncio.sleep(0.1)


def _weights(server: ServerDirectory, model: str, response: httpx2.Response) -> Weights:
    """Who answers, from the answer's own head; the names beside it from the server's record."""
    facts = next((one.facts for one in server.status.models if one.name == model), {})
    adapter = response.headers.get("x-luthier-adapter", "none")
    return Weights(
        server=server.id,
        model=model,
        sha256=response.headers.get("x-luthier-weights", ""),
        adapter=adapter,
        run=str(facts.get("run", "")),
        base=str(facts.get("base", "")),
        file=str(facts.get("adapter" if adapter != "none" else "file", "")),
        step=facts.get("step"),
    )


async def _read(response: httpx2.Response, weights: Weights, column: int, turning: Turning) -> Answer:
    """An answer from its stream of events. Errors: Unreachable where the model breaks off."""
    said: dict[str, list[str]] = {"text": [], "reasoning": []}
    figures: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise Unreachable(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            for kind, piece in _pieces(delta):
                said[kind].append(piece)
                turning.say(c=column, **{"t" if kind == "text" else "r": piece})
            figures["finish"] = choice.get("finish_reason") or figures.get("finish", "")
        if usage := event.get("usage"):
            figures |= {"tokens": usage.get("completion_tokens"), "prompt_tokens": usage.get("prompt_tokens")}
        if timings := event.get("timings"):
            figures["tokens_per_second"] = round(float(timings.get("predicted_per_second") or 0), 1)
    return Answer(
        text="".join(said["text"]),
        reasoning="".join(said["reasoning"]),
        weights=weights,
        done=True,
        **figures,
    )


def _pieces(delta: dict[str, Any]) -> list[tuple[str, str]]:
    """Text in a piece of an answer; a call of a tool is written out as it was asked for."""
    found = []
    if delta.get("reasoning_content"):
        found.append(("reasoning", str(delta["reasoning_content"])))
    if delta.get("content"):
        found.append(("text", str(delta["content"])))
    for call in delta.get("tool_calls") or ():
        function = call.get("function", {})
        found.append(("text", f"{function.get('name') or ''}{function.get('arguments') or ''}"))
    return found


def _refusal(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw.decode("utf-8", "replace")[:500]


def _ending(answer: Answer, *, hidden: bool) -> dict[str, Any]:
    """What a watcher is told at the end of a column; nothing by which a blind one could be told."""
    told: dict[str, Any] = {"error": answer.error, "finish": answer.finish}
    if not hidden:
        told |= {"tokens": answer.tokens, "rate": answer.tokens_per_second, "seconds": answer.seconds}
    return told
