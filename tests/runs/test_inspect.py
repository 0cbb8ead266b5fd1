"""What is shown of a file is read, and no more of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.data.read import RawRow
from luthier.errors import DataError
from luthier.runs import inspect
from luthier.schema.recipe import DataChoice


def rows(path: Path, count: int) -> DataChoice:
    lines = [json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return DataChoice(train=(str(path),))


def test_only_the_first_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(tmp_path / "a.jsonl", 5_000)
    read = 0
    whole = inspect.read_file

    def counted(*words, **more):
        nonlocal read
        for row in whole(*words, **more):
            assert isinstance(row, RawRow)
            read += 1
            yield row

    monkeypatch.setattr(inspect, "read_file", counted)
    chats = inspect.first_chats(data, base=Path("/"), count=3, say=print)
    assert [chat.line for chat, _ in chats] == [1, 2, 3]
    assert read <= 60


def test_broken_rows_on_the_way_are_told(tmp_path: Path) -> None:
    data = rows(tmp_path / "a.jsonl", 9)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text(
        "\n".join([lines[0], "no", '{"prompt": "", "completion": "x"}', *lines])
    )
    said: list[str] = []
    chats = inspect.first_chats(data, base=Path("/"), count=3, say=said.append)
    assert [chat.line for chat, _ in chats] == [1, 4, 5]
    assert len(said) == 2
    assert "a.jsonl:2" in said[0]
    assert "a.jsonl:3" in said[1]
    (tmp_path / "a.jsonl").write_text("no\n")
    with pytest.raises(DataError, match="broken JSON"):
        inspect.first_chats(data, base=Path("/"), count=3, say=said.append)
