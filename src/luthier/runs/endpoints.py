"""A deployed endpoint held to the run's exported file, on prompts of the run and the fixed ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.checks.endpoint_parity import Ask, Said, check_endpoint
from luthier.checks.parity_prompts import PromptCase, fixed_cases
from luthier.data.render import prompt_ids, prompt_of
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import LuthierError, UsageError
from luthier.evaluation.generation import text_of
from luthier.llamacpp.runtime import GREEDY, LlamaServer, ServerSettings
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import read_tests, tokenizer_of
from luthier.schema.deployment import ContextPlan
from luthier.schema.protocols import Message, Progress
from luthier.schema.results import ParityCheck
from luthier.serving.endpoint import Endpoint
from luthier.serving.ollama import Ollama

OWN = 4
"""Held-out rows that are asked, beside the fixed prompts."""
TOKENS = 16
"""New tokens of each answer."""


def has_tokenizer(run: RunDirectory) -> bool:
    """Whether the tokenizer of a run's model is still there."""
    return _tokenizer_folder(run) is not None


def _tokenizer_folder(run: RunDirectory) -> Path | None:
    base = Path((run.stage_values("model") or {}).get("path", ""))
    places = (base, run.path / "artifacts" / "merged")
    return next((one for one in places if (one / "tokenizer.json").is_file()), None)


def tokenizer_for(run: RunDirectory) -> FileTokenizer:
    """The tokenizer of a run's model, whose templates are told today's date. Errors: UsageError."""
    folder = _tokenizer_folder(run)
    if folder is None:
        raise UsageError(
            f"the tokenizer of {run.id} is no longer there",
            hint=f"luthier export {run.id} --merged brings it",
        )
    recipe = run.recipe
    if folder == run.path / "artifacts" / "merged":  # has the new tokens already
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"new_tokens": ()})})
    return tokenizer_of(recipe, folder, now=datetime.now().astimezone())


def cases_of(run: RunDirectory, tokenizer: FileTokenizer, *, context: int) -> list[PromptCase]:
    """Held-out rows of a run where its files are still there, then the fixed prompts that fit."""
    own: list[PromptCase] = []
    try:
        tests = read_tests(dict(run.recipe.data.test), run.recipe)
        held = [row for found in tests.values() for row in found]
        # Endpoints are asked in text: rows with images are left out.
        rows = [row for row in held if not any(isinstance(m["content"], list) for m in row.messages)][:OWN]
        own = [PromptCase(f"held-out row {i + 1}", prompt_of(row), row.tools) for i, row in enumerate(rows)]
    except (LuthierError, OSError):
        own = []
    most = context - TOKENS
    cases = [*own, *fixed_cases(tokenizer)]
    return [one for one in cases if len(prompt_ids(list(one.messages), tokenizer, one.tools)) <= most]


def check_deployed(
    run: RunDirectory,
    file: Path,
    plan: ContextPlan,
    ask: Ask,
    *,
    server: LlamaServer | None = None,
    system: str | None = None,
    tools: bool = True,
    counts: bool = True,
    progress: Progress | None = None,
) -> ParityCheck | None:
    """Hold an endpoint to a run's file in llama.cpp.

    server: one that serves the file already, else one is started for it. system: a prompt that the
    deployment puts before chats without one; only chats with one are asked then. tools: whether chats that
    offer tools are asked. counts: whether the endpoint counts all tokens of a prompt. None where
    no prompt is left to ask. Errors: UsageError where the run's tokenizer has gone.
    """
    tokenizer = tokenizer_for(run)
    cases = cases_of(run, tokenizer, context=plan.context)
    if not tools:
        cases = [one for one in cases if one.tools is None]
    if system is not None:
        cases = [one for one in map(_with_system, cases) if one is not None]
    if not cases:
        return None
    asked = {"max_new_tokens": TOKENS, "counts": counts, "progress": progress}
    if server is not None:
        return check_endpoint(tokenizer, cases, server, ask, **asked)  # type: ignore[arg-type]
    longest = max(len(prompt_ids(list(c.messages), tokenizer, c.tools)) for c in cases)
    with LlamaServer(file, ServerSettings(context=longest + TOKENS + 8)) as own:
        return check_endpoint(tokenizer, cases, own, ask, **asked)  # type: ignore[arg-type]


def _with_system(case: PromptCase) -> PromptCase | None:
    """A chat that brings its own system prompt, or None."""
    return case if case.messages and case.messages[0].get("role") == "system" else None


def ask_llama(server: LlamaServer) -> Ask:
    """llama.cpp's own way to chat, its template and parser included."""

    def ask(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, most: int) -> Said:
        body: dict[str, Any] = {"messages": list(messages), "max_tokens": most, **GREEDY}
        if tools:
            body["tools"] = list(tools)
        return _said(server.request("/v1/chat/completions", body))

    return ask


def ask_endpoint(endpoint: Endpoint) -> Ask:
    """Any OpenAI-compatible address."""

    def ask(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, most: int) -> Said:
        return _said(endpoint.chat(messages, tools=tools, max_new_tokens=most))

    return ask


def ask_ollama(server: Ollama, name: str) -> Ask:
    """Ollama's own way to chat, with the Modelfile's template, which knows no tools."""

    def ask(messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, most: int) -> Said:
        assert tools is None
        answer = server.chat(name, messages, most=most)
        message = answer.get("message", {})
        count = answer.get("prompt_eval_count")
        return Said(
            text=f"{message.get('thinking') or ''}{message.get('content') or ''}",
            stopped=answer.get("done_reason") == "stop",
            prompt_tokens=int(count) if count is not None else None,
            plain=not message.get("tool_calls"),
        )

    return ask


def _said(answer: dict[str, Any]) -> Said:
    """The answer of ``/chat/completions``."""
    choice = answer["choices"][0]
    message = choice["message"]
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return Said(
        text=f"{message.get('reasoning_content') or ''}{text_of({**message, 'tool_calls': None})}",
        stopped=choice.get("finish_reason") != "length",
        prompt_tokens=None if count is None else int(count),
        plain=not message.get("tool_calls"),
    )
