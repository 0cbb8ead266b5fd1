"""The page of purposes lists what is not done in the words of the code that refuses it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("purposes_docs", ROOT / "tools" / "purposes_docs.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_every_listed_combination_is_refused_with_a_way_out() -> None:
    docs = tool()
    found = list(docs.refusals())
    assert len(found) == len(docs.REFUSED)
    assert all(error.hint for _, error in found)
    page = (ROOT / "docs" / "purposes.md").read_text(encoding="utf-8")
    assert page == docs.render(page), "run python tools/purposes_docs.py"
