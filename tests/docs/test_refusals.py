"""The page of purposes lists what is not done in the words of the code that refuses it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from scripts import script

ROOT = Path(__file__).parents[2]


def tool() -> ModuleType:
    return script("tools/purposes_docs")


def test_every_listed_combination_is_refused_with_a_way_out() -> None:
    docs = tool()
    found = list(docs.refusals())
    assert len(found) == len(docs.REFUSED)
    assert all(error.hint for _, error in found)
    page = (ROOT / "docs" / "purposes.md").read_text(encoding="utf-8")
    assert page == docs.render(page), "run python tools/purposes_docs.py"
