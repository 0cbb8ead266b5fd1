"""Where two readings of one prompt part, and why, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def first_difference(left: Sequence[object], right: Sequence[object]) -> int | None:
    """Index of the first unequal item (or of the end of the shorter), None where both are equal."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


def why_prompts_differ(
    *,
    expected_text: str,
    expected: Sequence[int],
    found_text: str,
    found: Sequence[int],
    show: Callable[[Sequence[int]], str],
) -> str | None:
    """One sentence on the first differing token and the probable cause; None where the ids are equal.

    expected: as the trained model was fed; found: as llama.cpp feeds it. show: ids to text.
    """
    at = first_difference(expected, found)
    if at is None:
        return None
    expected, found = list(expected), list(found)
    if found[1:] == expected:
        begin = show(found[:1])
        if found[:1] == expected[:1]:
            return (
                f"token 1: {begin!r} (BOS) stands twice: the chat template writes it and the file asks "
                "llama.cpp to add it (tokenizer.ggml.add_bos_token)"
            )
        return (
            f"token 0: llama.cpp puts {begin!r} (BOS) before the prompt, the trained model never saw it: "
            "tokenizer.ggml.add_bos_token should be false"
        )
    if expected[1:] == found:
        return (
            f"token 0: the trained model reads {show(expected[:1])!r} (BOS) first, llama.cpp leaves it out: "
            "tokenizer.ggml.add_bos_token should be true"
        )
    there, here = _piece(expected, at, show), _piece(found, at, show)
    place = f"token {at}: {there} in the trained model, {here} in llama.cpp"
    inside = _inside(expected_text, found_text)
    if inside is not None:
        return f"{place}; probable cause: the chat template, which renders {inside}"
    before = show(expected[max(0, at - 3) : at])
    return (
        f"{place}, after {before!r}; probable cause: the tokenizer (same text, other ids: pre-tokenizer, "
        "merges or special tokens differ)"
    )


def _piece(ids: Sequence[int], at: int, show: Callable[[Sequence[int]], str]) -> str:
    return f"{ids[at]} {show(ids[at : at + 1])!r}" if at < len(ids) else "the end"


def _inside(expected: str, found: str) -> str | None:
    """Both texts around their first difference; None where they are equal but for a leading BOS text."""
    if expected == found or expected.endswith(found) or found.endswith(expected):
        return None
    at = first_difference(expected, found)
    assert at is not None
    start = max(0, at - 20)
    there, here = expected[start : at + 30], found[start : at + 30]
    return f"{there!r} there and {here!r} here (character {at} of the prompt)"
