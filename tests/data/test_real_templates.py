"""Masks over every real chat template that can be had offline, each with its own or the closest vocabulary.

``real_masks.json`` holds, for each template and chat, the text of the trained tokens, looked through by
hand; null stands for a chat that the template itself refuses or writes no tool calls for. Run with
LUTHIER_TEST_TEMPLATES=FOLDER (see tools/real_vocabularies.py); ``python tests/data/test_real_templates.py``
writes the file and the table of docs/templates.md anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from luthier.data.messages import RowProblem
from luthier.data.render import render_row, render_text
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import DataError
from luthier.schema.protocols import ChatRow
from real_templates import CHATS, FOLDER, TOOLS, family_of, names, real_tokenizer

GOLDEN = Path(__file__).with_name("real_masks.json")
MASKS: dict[str, dict[str, str | None]] = (
    json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
)
TOOL_CHATS = ("tools", "two calls")


@pytest.fixture(scope="module", params=names())
def real(request, tmp_path_factory) -> tuple[str, FileTokenizer]:
    return request.param, real_tokenizer(request.param, tmp_path_factory.mktemp("model"))


def chat(kind: str) -> ChatRow:
    return ChatRow(CHATS[kind], "f", 1, "i", TOOLS if kind in TOOL_CHATS else None)


def trained(kind: str, tokenizer: FileTokenizer, train_on="assistant") -> str | None:
    """Text of the trained tokens; None where the template refuses the chat."""
    try:
        row = render_row(chat(kind), tokenizer, train_on)
    except RowProblem:
        return None
    return tokenizer.decode(row.ids[row.trained].tolist(), skip_special=False)


def test_trained_tokens_are_the_answers_and_their_ends(real) -> None:
    name, tokenizer = real
    assert {kind: trained(kind, tokenizer) for kind in CHATS} == MASKS[name]


def test_last_completion_and_all_are_parts_of_the_same_turns(real) -> None:
    _, tokenizer = real
    for kind, messages in CHATS.items():
        every = trained(kind, tokenizer)
        if every is None:
            continue
        last, completion = trained(kind, tokenizer, "last"), trained(kind, tokenizer, "completion")
        row = render_row(chat(kind), tokenizer, "all")
        assert row.trained.all()
        assert tokenizer.decode(row.ids.tolist(), skip_special=False) == trained(kind, tokenizer, "all")
        assert every.endswith(completion)
        assert completion.endswith(last)
        words = [m["content"] for m in messages if m["role"] == "assistant"]
        assert words[-1] in last
        assert words[0] in last or len(words) == 1 or words[0] not in last
        asked = max(i for i, m in enumerate(messages) if m["role"] == "user")
        before = [m["content"] for m in messages[:asked] if m["role"] == "assistant"]
        assert not any(text and text in completion for text in before)
        assert ("okapi" in completion) == (kind in TOOL_CHATS)


def test_offsets_agree_with_prefixes(real) -> None:
    """Where a template only adds to what it wrote, the mask is what prefixes say, token for token."""
    _, tokenizer = real
    for kind in CHATS:
        wanted = by_prefixes(kind, tokenizer)
        if wanted is None or trained(kind, tokenizer) is None:
            continue
        row, ids, asked = render_row(chat(kind), tokenizer, "last"), *wanted
        first, last = np.flatnonzero(row.trained)[[0, -1]]
        assert first == asked, kind
        assert row.trained[first : last + 1].all(), kind
        if render_text(chat(kind), tokenizer, "last").closed:
            assert row.ids.tolist() == ids, kind
        else:  # an end token stands where the template wrote none
            assert row.ids[:first].tolist() == ids[:first], kind


def by_prefixes(kind: str, tokenizer: FileTokenizer) -> tuple[list[int], int] | None:
    """Ids of a chat and the first of its last answer; None where its prompt is no prefix of it."""
    messages, tools = CHATS[kind], TOOLS if kind in TOOL_CHATS else None
    try:
        full = tokenizer.render(messages, tools=tools)
        prompt = tokenizer.render(messages[:-1], tools=tools, add_generation_prompt=True)
    except DataError:
        return None
    ids, asked = tokenizer.encode(full), tokenizer.encode(prompt)
    return (ids, len(asked)) if ids[: len(asked)] == asked else None


@pytest.mark.parametrize("vocabulary", sorted({family_of(name).vocabulary for name in names()}))
def test_vocabularies_are_llama_cpps(vocabulary: str) -> None:
    """The texts that llama.cpp keeps with a vocabulary get the ids that it gives them."""
    from tokenizers import Tokenizer

    folder = Path(FOLDER or "") / "vocabularies" / vocabulary
    if not (folder / "golden.json").exists():
        pytest.skip("llama.cpp keeps no texts for it")
    fast = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for text, ids in json.loads((folder / "golden.json").read_text(encoding="utf-8")):
        assert fast.encode(text, add_special_tokens=False).ids == ids


def test_the_list_names_every_template() -> None:
    """A template without an entry, or an entry without its template, is noticed."""
    assert MASKS
    if FOLDER:
        assert sorted(MASKS) == sorted(names())
    for name, masks in MASKS.items():
        assert family_of(name).vocabulary
        assert set(masks) == set(CHATS)


def write() -> None:
    """Write the golden texts and the table of the documentation."""
    masks: dict[str, dict[str, str | None]] = {}
    lines = [
        "| template | vocabulary | whose | ends | single | multi | system | tools | two calls | thinking |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for name in names():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = real_tokenizer(name, Path(folder))
            masks[name] = {kind: trained(kind, tokenizer) for kind in CHATS}
        family = family_of(name)
    for name in sorted(masks, key=str.lower):
        family = family_of(name)
        cells = ["exact" if masks[name][kind] is not None else "refused" for kind in CHATS]
        ends = " ".join(f"`{end}`" for end in family.ends).replace("|", "\\|")
        whose = "its own" if family.own else "the closest"
        lines.append(f"| {name} | {family.vocabulary} | {whose} | {ends} | {' | '.join(cells)} |")
    ordered = dict(sorted(masks.items(), key=lambda pair: pair[0].lower()))
    GOLDEN.write_text(json.dumps(ordered, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    page = Path(__file__).parents[2] / "docs" / "templates.md"
    head, _, _ = page.read_text(encoding="utf-8").partition("<!-- table -->\n")
    page.write_text(head + "<!-- table -->\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(write())
