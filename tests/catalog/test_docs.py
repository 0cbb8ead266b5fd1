"""The pages made from the catalogue say what the catalogue says; the wheel's index holds the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest  # noqa: TC002 (a fixture's type)

from luthier.catalog import index as module
from luthier.catalog.build import write_index
from luthier.catalog.index import all_models, forget, index

ROOT = Path(__file__).parents[2]
BY_ESTIMATE = {"guide-a", "guide-b", "guide-c"}
"""Tables that follow the memory model too."""


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_pages_follow_the_catalogue() -> None:
    docs = tool("catalog_docs")
    seen = set()
    for page in docs.PAGES:
        text = (ROOT / "docs" / page).read_text()
        for block in docs.BLOCK.finditer(text):
            name = block["name"]
            seen.add(name)
            if name not in BY_ESTIMATE:
                assert block[0] == docs.render(block[0]), f"{page}: run python tools/catalog_docs.py"
            assert block[0].count("\n|") > 3
    assert seen == set(docs.TABLES)


def test_a_wheel_reads_its_compiled_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without YAML beside it, the index that the build hook wrote is all there is."""
    values = tool("compile_catalog").compile_index()
    shipped = tmp_path / "index.json"
    write_index(values, shipped)
    before = all_models()
    monkeypatch.setattr(module, "SHIPPED", shipped)
    monkeypatch.setattr("luthier.catalog.build.yaml_files", list)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    forget()
    try:
        assert index().models == before
        assert not (tmp_path / "cache").exists()
        assert json.loads(shipped.read_text())["format"] == index().format
    finally:
        monkeypatch.undo()
        forget()
