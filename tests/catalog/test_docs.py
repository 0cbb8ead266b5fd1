"""The pages made from the catalogue say what the catalogue says; the wheel's index holds the same."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from luthier.catalog import index as module
from luthier.catalog.build import write_index
from luthier.catalog.index import all_models, forget, index
from luthier.cli.main import main
from scripts import script

ROOT = Path(__file__).parents[2]
BY_ESTIMATE = {"guide-a", "guide-b", "guide-c", "purposes", "uses", "tasks", "methods", "golden"}
"""Tables that follow the memory and time model too: their small figures may lie behind it."""


def tool(name: str) -> ModuleType:
    return script(f"tools/{name}")


def test_pages_follow_the_catalogue() -> None:
    docs = tool("catalog_docs")
    seen = set()
    for page in docs.PAGES:
        text = (ROOT / "docs" / page).read_text()
        for block in docs.BLOCK.finditer(text):
            name = block["name"]
            seen.add(name)
            if name.startswith(("request-", "plan-")):
                assert block[0].count("```") == 4
                continue
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


@pytest.mark.parametrize("name", list(tool("catalog_docs").PLANS))
def test_the_plans_shown_are_what_the_commands_say(name: str) -> None:
    docs = tool("catalog_docs")
    page = (ROOT / "docs" / "plans.md").read_text()
    block = next(b[0] for b in docs.BLOCK.finditer(page) if b["name"] == f"plan-{name}")
    assert block == docs.render(block), "run python tools/catalog_docs.py, and read the plan again"


@pytest.mark.parametrize("name", list(tool("catalog_docs").REQUESTS))
def test_the_requests_shown_get_the_answers_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command runs, and who is first on the page is first today."""
    docs = tool("catalog_docs")
    with pytest.raises(SystemExit) as left:
        main(shlex.split(docs.REQUESTS[name]))
    printed = capsys.readouterr()
    assert left.value.code in (0, 3)
    page = (ROOT / "docs" / "requests.md").read_text()
    block = next(b[0] for b in docs.BLOCK.finditer(page) if b["name"] == f"request-{name}")
    assert f"luthier {docs.REQUESTS[name]}\n" in block
    first = re.compile(r"^ +1  (\S+/\S+) +(\w+)", re.M)
    assert first.findall(block) == first.findall(printed.out), "run python tools/catalog_docs.py"
    assert (left.value.code == 3) == ("no model meets" in block)
