r"""Names llama.cpp's pre-tokenizer for a byte-level BPE tokenizer by how it splits text.

llama.cpp's converter knows a tokenizer by a digest of the ids that one long text gets, so every new or
altered vocabulary is unknown to it, though the way it splits text is a known one. The splitter stands in
the tokenizer itself; where it is exactly one of those below, its name is not a guess. The names and their
patterns are those of llama.cpp's src/llama-vocab.cpp.
"""

from __future__ import annotations

from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKED_WORD = r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS = {
    _CONTRACTIONS + _WORD + r"|\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS
    + _MARKED_WORD
    + r"|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
    _UPPER + "|" + _LOWER + r"|\p{N}" + _TAIL: "tekken",
    f"{_UPPER}{_CONTRACTIONS}?|{_LOWER}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _TAIL: "gpt-4o",
}
"""Splitting pattern -> llama.cpp's name."""

WORD_PIECES = "bert-bge"
"""llama.cpp has one way of word pieces, whatever a file calls it: lower case, accents dropped."""

WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "tekken"})
"""Names with which llama.cpp takes a whole word that is a token before it merges (``ignore_merges``)."""


def name_of(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name of a tokenizer's splitter, None where it is none of these.

    tokenizer: the content of a tokenizer.json.
    """
    if (tokenizer.get("model") or {}).get("type") == "WordPiece":
        return WORD_PIECES
    name = _splitter(_steps(tokenizer.get("pre_tokenizer")))
    whole_words = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    return name if name is not None and whole_words == (name in WHOLE_WORDS_FIRST) else None


def _splitter(steps: list[dict[str, Any]]) -> str | None:
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if _splits(steps[0]):
            return "gpt-2"
        case ["Digits", "ByteLevel"] if steps[0].get("individual_digits") and _splits(steps[1]):
            return "smollm"
        case ["Split", "ByteLevel"] if not _splits(steps[1]) and steps[0].get("behavior") == "Isolated":
            pattern = steps[0].get("pattern", {})
            return None if steps[0].get("invert") else PATTERNS.get(str(pattern.get("Regex")))
    return None


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [step for inner in pre_tokenizer["pretokenizers"] for step in _steps(inner)]
    return [pre_tokenizer]


def _splits(byte_level: dict[str, Any]) -> bool:
    """Whether a ByteLevel step splits by GPT-2's pattern besides turning bytes to letters."""
    return bool(byte_level.get("use_regex", True)) and not byte_level.get("add_prefix_space", True)
