"""The fixed prompts that every export must read like the trained model does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import DataError
from luthier.schema.protocols import Message, TextTokenizer


@dataclass(frozen=True, slots=True)
class PromptCase:
    """One chat with the reason for asking it."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None


_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "Town or village."}},
            "required": ["place"],
        },
    },
}

FIXED = (
    PromptCase("plain", [{"role": "user", "content": "Name three things that float on water."}]),
    PromptCase(
        "system prompt",
        [
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
    ),
    PromptCase(
        "several turns",
        [
            {"role": "user", "content": "I have 12 eggs and use 5."},
            {"role": "assistant", "content": "Then 7 eggs are left."},
            {"role": "user", "content": "And if I buy 2 boxes of 10?\n"},
        ],
    ),
    PromptCase(
        "unicode and white space",
        [
            {
                "role": "user",
                "content": "Übersetze:  «Привет, мир!»\n\n\t— 你好，世界 🙂👩‍🔬 —  naïve café…   "
                "3.14159, 1234567  x:   10 y  \nEnde",
            }
        ],
    ),
    PromptCase(
        "code",
        [
            {
                "role": "user",
                "content": "```python\ndef f(x: int) -> dict[str, int]:\n    return {'a': x ** 2,  'b':0x1F}"
                "\n```\nWhat's wrong? Don't explain it, I'LL read it.",
            }
        ],
    ),
    PromptCase("tools", [{"role": "user", "content": "What is the weather in Oslo?"}], [_WEATHER]),
    PromptCase(
        "long",
        [
            {
                "role": "user",
                "content": "Sum up: "
                + " ".join(f"On day {day} the boat sailed {day * 7 % 23} miles." for day in range(1, 41)),
            }
        ],
    ),
)
"""System prompt, several turns, unicode, code, tools and length."""


def fixed_cases(tokenizer: TextTokenizer) -> list[PromptCase]:
    """The fixed prompts that this model's template accepts (some know no system role or no tools)."""
    cases = []
    for case in FIXED:
        try:
            rendered = tokenizer.render(case.messages, tools=case.tools, add_generation_prompt=True)
        except DataError:
            continue
        if case.tools is not None and "get_weather" not in rendered:
            continue  # a template that drops tools has nothing to compare
        cases.append(case)
    return cases
