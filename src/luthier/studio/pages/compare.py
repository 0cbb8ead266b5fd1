"""Compare: one prompt to up to four models, blind if wished; a chat is a comparison of one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse

from luthier.errors import LuthierError, UsageError
from luthier.evaluation.diff import Span, word_diff
from luthier.runs.report.words import clean
from luthier.studio.problems import NotFound, status_of
from luthier.studio.services.chatting import Chats
from luthier.studio.services.comparing import (
    MOST_COLUMNS,
    TIE,
    Answer,
    Conversation,
    Conversations,
    Sampling,
    Side,
    Turn,
    candidates,
    preference_lines,
    side_of,
)
from luthier.studio.services.evals import MOST_MARKED
from luthier.studio.services.forms import Form, Sent
from luthier.studio.web import render, settings_of


@asynccontextmanager
async def _open(app: FastAPI) -> AsyncIterator[None]:
    chats = app.state.chats = Chats(Conversations(app.state.settings.home))
    try:
        yield
    finally:
        await chats.close()


router = APIRouter(lifespan=_open)


def chats_of(request: Request) -> Chats:
    """The conversations of the studio that a request came to."""
    found = request.app.state.chats
    assert isinstance(found, Chats)
    return found


@router.get("/compare")
def compare(request: Request, run: str = "") -> Response:
    """Choose models and write the first prompt. run: begin with the models of this run."""
    keys = request.query_params.getlist("side")
    blind = request.query_params.get("blind") == "1"
    return _chooser(request, keys, run=run, blind=blind)


def _chooser(
    request: Request,
    keys: list[str],
    *,
    run: str = "",
    blind: bool = False,
    form: Form | None = None,
    error: LuthierError | None = None,
) -> Response:
    sides = candidates(settings_of(request).runs)
    keys = [key for key in keys if any(side.key == key for side in sides)] or _usual(sides, run)
    first = next((side for side in sides if side.key in keys and side.system), None)
    kept = chats_of(request).kept
    values = {
        "sides": sides,
        "chosen": [*keys, *[""] * (MOST_COLUMNS - len(keys))][:MOST_COLUMNS],
        "blind": blind or (form is not None and form.one("blind") == "1"),
        "system": form.one("system") if form is not None else (first.system if first else ""),
        "prompt": "" if form is None else form.one("prompt"),
        "sampling": Sampling(),
        "tallies": kept.tally(),
        "recent": kept.recent(),
        "error": error,
    }
    return render(request, "compare.html", values, page="compare", status=status_of(error) if error else 200)


def _usual(sides: list[Side], run: str) -> list[str]:
    """Two models to begin with: the base and the tuned model of a run, on the same weights where both are."""
    of = [side for side in sides if side.run == run] or sides
    for wanted in (("base", "adapter"), ("gguf", "gguf")):
        for one in dict.fromkeys(side.run for side in of):
            found: list[str] = []
            for kind in wanted:
                keys = (side.key for side in of if side.run == one and side.key not in found)
                found += [key for key in keys if key.startswith(f"{kind}:")][:1]
            if len(found) == 2:
                return found
    return [side.key for side in of[:2]]


@router.post("/compare")
async def begin(request: Request, form: Sent) -> Response:
    """Begin a conversation with its first prompt."""
    chats = chats_of(request)
    keys = form.all("side")
    try:
        conversation = await asyncio.to_thread(_begun, settings_of(request).runs, chats.kept, keys, form)
    except LuthierError as error:
        return await asyncio.to_thread(_chooser, request, keys, form=form, error=error)
    chats.begin(conversation)
    return RedirectResponse(f"/compare/{conversation.id}", 303)


def _begun(runs: Any, kept: Conversations, keys: list[str], form: Form) -> Conversation:
    sampling = form.record(Sampling, "seed", "temperature", "max_tokens")
    sides = [side_of(key, runs) for key in keys]
    prompt = form.one("prompt")
    if not prompt.strip():
        raise UsageError("there is no prompt", hint="write what all models are asked")
    made = kept.begin(sides, system=form.one("system"), sampling=sampling, blind=form.one("blind") == "1")
    return kept.ask(made, prompt)


@router.get("/compare/picks.jsonl")
def picks(request: Request) -> Response:
    """Blind picks as preference rows, ready to train on."""
    rows = chats_of(request).kept.preferences()
    headers = {"content-disposition": 'attachment; filename="picks.jsonl"'}
    return PlainTextResponse(preference_lines(rows), media_type="application/x-ndjson", headers=headers)


@router.get("/compare/{id}")
def conversation(request: Request, id: str) -> Response:  # noqa: A002 - the name in the URL
    """A conversation with all its turns."""
    return _page(request, chats_of(request).kept.load(id))


def _page(
    request: Request, found: Conversation, *, error: LuthierError | None = None, draft: str = ""
) -> Response:
    chats = chats_of(request)
    last = len(found.turns) - 1
    live = chats.is_live(found.id, last)
    values = {
        "chat": found,
        "live": live,
        "columns": [
            {"side": side, "name": found.name_of(i), "turns": [_shown(turn, i) for turn in found.turns]}
            for i, side in enumerate(found.sides)
        ],
        "broken": not live and last >= 0 and any(not a.done or a.error for a in found.turns[last].answers),
        "pick_open": found.hidden and not live and last >= 0 and all(
            a.done and not a.error for a in found.turns[last].answers
        ),
        "tallies": [] if found.hidden else chats.kept.tally(side.key for side in found.sides),
        "tie": TIE,
        "error": error,
        "draft": draft,
    }  # fmt: skip
    return render(
        request, "conversation.html", values, page="compare", status=status_of(error) if error else 200
    )


def _shown(turn: Turn, column: int) -> dict[str, Any]:
    """One answer as the page shows it; words that the first column does not have are marked."""
    answer = turn.answers[column]
    text = clean(answer.text, 40_000)
    spans: list[Span] = [Span(text, changed=False)] if text else []
    first: Answer = turn.answers[0]
    if column and answer.done and first.done and first.text and text:
        _, marked = word_diff(clean(first.text, 40_000), text)
        if sum(len(span.text) for span in marked if span.changed) <= MOST_MARKED * len(text):
            spans = marked
    return {"answer": answer, "spans": spans, "reasoning": clean(answer.reasoning, 40_000)}


@router.post("/compare/{id}/turns")
async def ask(request: Request, id: str, form: Sent) -> Response:  # noqa: A002
    """Ask all columns once more."""
    chats = chats_of(request)
    found = await asyncio.to_thread(chats.kept.load, id)
    try:
        if chats.is_live(id, len(found.turns) - 1):
            raise UsageError("the last prompt is still being answered", hint="wait for its end")
        found = await asyncio.to_thread(chats.kept.ask, found, form.one("prompt"))
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, found, error=error, draft=form.one("prompt"))
    chats.begin(found)
    return RedirectResponse(f"/compare/{id}#turn-{len(found.turns)}", 303)


@router.post("/compare/{id}/again")
async def again(request: Request, id: str) -> Response:  # noqa: A002
    """Ask the last prompt anew, where an answer broke off."""
    chats = chats_of(request)
    found = await asyncio.to_thread(chats.kept.load, id)
    if not found.turns:
        raise NotFound("nothing was asked yet")
    if not chats.is_live(id, len(found.turns) - 1):
        prompt = found.turns[-1].prompt
        found = found.model_copy(update={"turns": found.turns[:-1]})
        chats.begin(await asyncio.to_thread(chats.kept.ask, found, prompt))
    return RedirectResponse(f"/compare/{id}#turn-{len(found.turns)}", 303)


@router.post("/compare/{id}/pick")
async def pick(request: Request, id: str, form: Sent) -> Response:  # noqa: A002
    """Say which answer was best; then the columns get their names."""
    chats = chats_of(request)
    found = await asyncio.to_thread(chats.kept.load, id)
    said = form.one("column")
    if said != TIE and not (said.isascii() and said.isdigit() and len(said) == 1):
        raise UsageError(f"{said[:20]!r} is no column")
    await asyncio.to_thread(chats.kept.pick, found, None if said == TIE else int(said))
    return RedirectResponse(f"/compare/{id}", 303)


@router.get("/compare/{id}/stream")
async def stream(request: Request, id: str, turn: int | None = None) -> Response:  # noqa: A002
    """What the columns say, as server-sent events, from the first word on."""
    chats = chats_of(request)
    found = await asyncio.to_thread(chats.kept.load, id)
    wanted = len(found.turns) - 1 if turn is None else turn

    async def events() -> AsyncIterator[bytes]:
        async for event in chats.follow(id, wanted):
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
        yield b"event: end\ndata: {}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})
