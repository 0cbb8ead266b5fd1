"""The number in an answer, in the two ways that lm-evaluation-harness reads GSM8K's."""

from __future__ import annotations

import re

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = (re.compile(r","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def strict_number(answer: str) -> str | None:
    """What follows the first ``#### ``; None where there is none."""
    found = _STRICT.search(answer)
    return None if found is None else found.group(1).strip()


def flexible_number(answer: str) -> str | None:
    """The last thing in an answer that looks like a number or an amount."""
    found = _FLEXIBLE.findall(answer)
    return next((part.strip() for part in found[-1] if part), None) if found else None


def same_number(expected: str, given: str | None) -> bool:
    """Whether both are written alike once thousands' commas, dollars and a last full stop are gone."""

    def bare(text: str) -> str:
        for pattern in _IGNORED:
            text = pattern.sub("", text)
        return text.lower()

    return given is not None and bare(expected) == bare(given)
