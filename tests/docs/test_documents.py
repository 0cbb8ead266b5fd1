"""Documents run: commands parse, marked blocks are executed, and no page asks anybody else for anything."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from luthier.cli.main import build

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^(?P<mark><!-- run -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$", re.M | re.S)
SHELL = {"", "sh", "bash", "console", "shell"}
# Words that stand for something of the reader's own.
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_]*$|^<.*>$|^\.\.\.$|^…$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    text: str
    runs: bool

    @property
    def id(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    """Every fenced block of shell words."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for match in FENCE.finditer(text):
            if match["language"] in SHELL:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(page, line, match["body"], bool(match["mark"])))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands in shell text, as words, each as if it stood alone."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        for end in ("|", ">", ">>", "&&", ";", "&", "2>&1", "·"):
            if end in words:
                words = words[: words.index(end)]
        if words:
            found.append(words)
    return found


LUTHIER = [
    pytest.param(words[1:], id=f"{block.id} {' '.join(words)}")
    for block in blocks()
    if "luthier " in block.text
    for words in commands(block.text)
    if Path(words[0]).name == "luthier"
]


@pytest.mark.parametrize("words", LUTHIER)
def test_commands_parse(words: list[str]) -> None:
    try:
        build().parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        pytest.fail(f"luthier {' '.join(words)}: {error}")


def test_commands_are_found() -> None:
    assert len(LUTHIER) > 5


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+)[\w -]*:(?!=)", (ROOT / "Makefile").read_text(), re.M))
    for block in blocks():
        for words in commands(block.text) if "make " in block.text else []:
            if words[0] == "make":
                asked = {word for word in words[1:] if "=" not in word and not PLACEHOLDER.match(word)}
                assert asked <= targets, f"{block.id}: make {asked - targets}"


RUNNING = [page for page in PAGES if any(block.runs for block in blocks() if block.page == page)]


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_marked_blocks_run(page: Path, tmp_path: Path) -> None:
    script = "\n".join(block.text for block in blocks() if block.page == page and block.runs)
    shim = tmp_path / "bin" / "luthier"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m luthier "$@"\n')
    shim.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{shim.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "LUTHIER_CACHE": str(tmp_path / "cache"),
        "LUTHIER_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "CI": "true",
    }
    folder = tmp_path / "work"
    folder.mkdir()
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


class Requests(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        loads = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
        if tag in loads and values.get("rel") != "canonical":
            self.loaded.append(values.get(loads[tag]) or "")


def test_the_site_builds_strictly_and_asks_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES) - 3
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in parser.loaded if url.startswith(("http", "//"))], page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet
