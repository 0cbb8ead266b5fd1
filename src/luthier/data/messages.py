"""Chat messages in the forms that people write them, into one form; and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from luthier.data.columns import Missing, as_text
from luthier.errors import DataError
from luthier.schema.protocols import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""Role as written -> role as templates know it."""

HOLDS_IMAGES = "holds-images"
"""Code of rows that only a model which sees images can be trained on."""
_IMAGES = ("image", "image_url", "input_image")
_PLAIN = ("user", "assistant", "system", "tool")
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking", "reasoning", "weight", "train")


class RowProblem(DataError):
    """One row that cannot be used, with a stable code for counting."""

    def __init__(self, code: str, message: str, *, file: str, line: int, hint: str | None = None) -> None:
        super().__init__(message, file=file, line=line, hint=hint or "mend this row, or remove it")
        self.code = code


def normalise_messages(value: Any, *, file: str, line: int) -> list[Message]:
    """OpenAI messages or ShareGPT turns (also as a JSON string) as messages. Raises RowProblem."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise RowProblem(
                "bad-messages", "the conversation is a text, not a list of messages", file=file, line=line
            ) from None
    if not isinstance(value, list):
        raise RowProblem(
            "bad-messages", "the conversation is not a list of messages", file=file, line=line,
            hint='write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )  # fmt: skip
    return [_message(turn, number, file, line) for number, turn in enumerate(value, 1)]


def _message(turn: Any, number: int, file: str, line: int) -> Message:
    if not isinstance(turn, dict):
        raise RowProblem("bad-messages", f"message {number} is not an object", file=file, line=line)
    if len(turn) == 2 and type(turn.get("content")) is str and turn.get("role") in _PLAIN:
        return {"role": turn["role"], "content": turn["content"]}
    written = turn.get("role", turn.get("from"))
    role = ROLES.get(str(written).lower()) if written is not None else None
    if role is None:
        raise RowProblem(
            "unknown-role",
            f"message {number} has {'no role' if written is None else f'the unknown role {written!r}'}",
            file=file,
            line=line,
            hint="roles are system, user, assistant and tool (ShareGPT: human, gpt, observation)",
        )
    content = _content(turn.get("content", turn.get("value")), number, file, line)
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else None)
    if str(written).lower() == "function_call":
        calls, content = _parsed_calls(content, number, file, line), ""
    message: Message = {"role": role, "content": content}
    message.update({key: turn[key] for key in _KEPT if turn.get(key) is not None})
    if calls:
        message["tool_calls"] = _tool_calls(calls, number, file, line)
    return message


def _content(value: Any, number: int, file: str, line: int) -> str:
    """Text of a message; parts of text are joined."""
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        others = sorted({str(part["type"]) for part in value if part["type"] != "text"})
        if others and all(name in _IMAGES for name in others):
            raise RowProblem(
                HOLDS_IMAGES,
                f"message {number} holds an image ({', '.join(others)}), which a model of text cannot see",
                file=file,
                line=line,
                hint="leave such rows out, put what the images show into words, or tune a model that sees: "
                "add `vision: {}` to the recipe",
            )
        if others:
            raise RowProblem(
                "unsupported-part",
                f"message {number} holds {', '.join(others)}; only text can be trained on",
                file=file,
                line=line,
                hint="remove the rows or the parts that are not text",
            )
        return "".join(str(part.get("text", "")) for part in value)
    try:
        return as_text(value)
    except Missing:
        return ""


def _parsed_calls(content: str, number: int, file: str, line: int) -> list[Any]:
    try:
        value = json.loads(content)
    except json.JSONDecodeError:
        raise RowProblem(
            "bad-tool-call", f"message {number}: the function call is not JSON", file=file, line=line,
            hint='write it as {"name": "...", "arguments": {...}}',
        ) from None  # fmt: skip
    return value if isinstance(value, list) else [value]


def _tool_calls(calls: Any, number: int, file: str, line: int) -> list[dict[str, Any]]:
    """Calls as templates want them: ``{"type": "function", "function": {"name", "arguments": {...}}}``."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(name, str) or not name:
            raise RowProblem(
                "bad-tool-call", f"message {number}: a tool call has no name", file=file, line=line,
                hint='write it as {"name": "...", "arguments": {...}}',
            )  # fmt: skip
        arguments = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(arguments, str):
            # OpenAI sends arguments as a JSON text; templates turn objects into JSON themselves.
            try:
                parsed = json.loads(arguments) if arguments.strip() else {}
            except json.JSONDecodeError:
                parsed = None
            arguments = parsed if isinstance(parsed, dict) else arguments
        one: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if isinstance(call, dict) and call.get("id"):
            one["id"] = call["id"]
        found.append(one)
    return found


def normalise_tools(value: Any, *, file: str, line: int) -> list[dict[str, Any]] | None:
    """Tool schemas (OpenAI's form or bare functions, also as a JSON string). Raises RowProblem."""
    if value is None or value in ("", []):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise RowProblem(
                "bad-tools", "`tools` is a text that is not JSON", file=file, line=line
            ) from None
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise RowProblem(
                "bad-tools", "a tool has no name", file=file, line=line,
                hint='write each as {"name": "...", "description": "...", "parameters": {...}}',
            )  # fmt: skip
        # Templates read these keys without asking.
        full = {"description": "", "parameters": {"type": "object", "properties": {}}, **inner}
        tools.append({"type": "function", "function": {"name": inner["name"], **full}})
    return tools


def check_messages(messages: list[Message], *, file: str, line: int) -> None:
    """Raise RowProblem for a conversation that no template should be asked to render."""

    def problem(code: str, message: str, hint: str) -> RowProblem:
        return RowProblem(code, message, file=file, line=line, hint=hint)

    if not messages:
        raise problem("empty-conversation", "the conversation has no messages", "remove the row")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise problem(
            "no-assistant-turn",
            "there is no assistant turn, so nothing to learn",
            "add the answer, or remove the row",
        )
    for number, message in enumerate(messages, 1):
        role, before = message["role"], roles[number - 2] if number > 1 else None
        if role == "system" and number > 1:
            raise problem(
                "role-order", f"message {number} is a system prompt, but not the first message",
                "move the system prompt to the beginning",
            )  # fmt: skip
        if role == "tool" and before not in ("assistant", "tool"):
            raise problem(
                "role-order", f"message {number} is a tool's answer, but no assistant turn stands before it",
                "put the assistant's tool call before it",
            )  # fmt: skip
        if role in ("user", "assistant") and not message["content"].strip() and not message.get("tool_calls"):
            code = "empty-answer" if role == "assistant" else "empty-prompt"
            raise problem(code, f"message {number} ({role}) is empty", "fill it in, or remove the row")


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, default=str)


def content_digest(value: Any) -> str:
    """96 bits over a value's JSON, its keys sorted. Raises UnicodeEncodeError for half letters."""
    return hashlib.blake2b(_ENCODER.encode(value).encode(), digest_size=12).hexdigest()


def half_letter(file: str, line: int) -> RowProblem:
    """Half of a letter beyond U+FFFF, which JSON can write and no tokenizer takes."""
    return RowProblem(
        "half-letter",
        "the text holds half of a letter (a lone surrogate, like \\ud800)",
        file=file,
        line=line,
        hint="write both halves, or remove it",
    )


def row_id(messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
    """Digest of a row's content, 96 bits: equal rows have equal ids. Raises UnicodeEncodeError."""
    if tools:
        return content_digest([messages, tools])
    parts: list[str] = []
    for message in messages:
        content = message.get("content")
        if len(message) != 2 or not isinstance(content, str):
            return content_digest(messages)
        # Lengths before texts, so that no two conversations give the same bytes.
        parts += (f"{message['role']} {len(content)} ", content)
    return hashlib.blake2b("".join(parts).encode(), digest_size=12).hexdigest()
