"""Rendered rows as pieces of text, each with its id and whether it is trained."""

from __future__ import annotations

from luthier.schema.protocols import TextTokenizer, TokenRow

Piece = tuple[str, int, bool]
"""A token's text, its id, and whether it carries loss."""

_MOST_IN_A_LETTER = 16
"""Tokens that one letter may be spread over; four bytes, and room for joined emoji."""


def show_tokens(row: TokenRow, tokenizer: TextTokenizer) -> list[Piece]:
    """The tokens of a row, exactly as the first batch will hold them.

    Texts joined give the decoded row. Where a letter is spread over several tokens, its text stands
    at the last of them and the others are empty.
    """
    ids = row.ids.tolist()
    pieces: list[Piece] = []
    start = 0
    for index, (token, trained) in enumerate(zip(ids, row.trained.tolist(), strict=True)):
        # A token alone may be half a letter, and some vocabularies drop a leading space at the start
        # of a text: decoding it behind the token before it avoids both.
        before = ids[max(0, start - 1) : start]
        text = _suffix(tokenizer, before, ids[start : index + 1])
        if text.endswith("\ufffd") and index - start + 1 < _MOST_IN_A_LETTER and index + 1 < len(ids):
            pieces.append(("", token, bool(trained)))
            continue
        pieces.append((text, token, bool(trained)))
        start = index + 1
    return pieces


def _suffix(tokenizer: TextTokenizer, before: list[int], ids: list[int]) -> str:
    """What ids add to the text of the tokens before them."""
    if not before:
        return tokenizer.decode(ids, skip_special=False)
    head = tokenizer.decode(before, skip_special=False)
    whole = tokenizer.decode([*before, *ids], skip_special=False)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, skip_special=False)


def segments(row: TokenRow, tokenizer: TextTokenizer) -> list[tuple[str, bool]]:
    """Neighbouring tokens of one kind joined: (text, trained)."""
    joined: list[tuple[str, bool]] = []
    for text, _, trained in show_tokens(row, tokenizer):
        if joined and joined[-1][1] == trained:
            joined[-1] = (joined[-1][0] + text, trained)
        else:
            joined.append((text, trained))
    return joined
