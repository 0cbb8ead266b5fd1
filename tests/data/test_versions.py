"""Versions are told by content, never change, and say which rows came and went and what leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.versions import diff, find, names, record, versions
from luthier.errors import UsageError
from luthier.schema.recipe import Recipe


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(count)]


def recipe(path: Path, task: str = "chat", seed: int = 17, **data: Any) -> Recipe:
    values = {
        "model": {"id": "a/b"},
        "task": task,
        "seed": seed,
        "data": {"train": str(path), "name": "faq", **data},
    }
    return Recipe.model_validate(values)


def test_equal_content_is_one_version_and_any_change_another(tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    path = write(tmp_path / "a.jsonl", rows(30))
    first, new = record(recipe(path), base=tmp_path, root=root)
    assert new
    assert first.rows == {"train": 25, "test": 3, "validation": 2}
    again, new = record(recipe(path), base=tmp_path, root=root)
    assert (again, new) == (first, False)
    moved = path.rename(tmp_path / "b.jsonl")
    assert record(recipe(moved), base=tmp_path, root=root)[0].id == first.id
    others = [
        record(recipe(moved, seed=3), base=tmp_path, root=root)[0],
        record(recipe(moved, system="Be brief."), base=tmp_path, root=root)[0],
        record(recipe(moved, columns={"group": "prompt"}), base=tmp_path, root=root)[0],
        record(recipe(moved), base=tmp_path, root=root, fixes=("spelling",))[0],
    ]
    assert len({one.version for one in others} | {first.version}) == 5
    assert names(root=root) == ["faq"]
    assert [one.version for one in versions("faq", root=root)] == [
        first.version,
        *(o.version for o in others),
    ]
    assert find("faq", root=root) == others[-1]
    assert find(f"faq@{first.version[:6]}", root=root) == first
    with pytest.raises(UsageError, match="no data set is named 'fag'") as caught:
        find("fag", root=root)
    assert "did you mean faq" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no version of faq"):
        find("faq@zz", root=root)


@pytest.mark.parametrize("task", ["chat", "multi-class-classification"])
def test_rows_added_removed_changed_and_leaking(tmp_path: Path, task: str) -> None:
    root = tmp_path / "datasets"
    columns = {} if task == "chat" else {"columns": {"text": "prompt", "label": "completion"}}
    old_rows = rows(40)
    test = write(
        tmp_path / "test.jsonl", [{"prompt": f"Held {n}?", "completion": f"Answer {n}."} for n in range(4)]
    )
    path = write(tmp_path / "a.jsonl", old_rows)
    given = {"test": str(test), "validation_share": 0, **columns}
    old, _ = record(recipe(path, task, **given), base=tmp_path, root=root)
    changed = [{**row, "completion": "Another."} if n in (5, 6) else row for n, row in enumerate(old_rows)]
    leak = {"prompt": "Held 2?", "completion": "Said otherwise."}
    write(path, [*changed[:10], *changed[13:], *rows(43)[40:], old_rows[0], leak])
    new, _ = record(recipe(path, task, **given), base=tmp_path, root=root)
    found = diff(old, new, root=root)
    assert (found.added, found.removed, found.changed) == (5, 3, 2)
    assert found.kept == 4 + 35
    assert found.samples["removed"] == tuple(f"{old.sources['train'][0][0]}:{line}" for line in (11, 12, 13))
    assert found.samples["changed"] == tuple(f"{new.sources['train'][0][0]}:{line}" for line in (6, 7))
    assert found.leaks == {"test": 1}
    assert new.leaks == {f"{old.version}/test": 1}
    back = diff(new, old, root=root)
    assert (back.added, back.removed, back.changed, back.leaks) == (3, 5, 2, {})
    same = diff(new, new, root=root)
    assert (same.added, same.removed, same.changed, same.moved) == (0, 0, 0, 0)


def test_rows_that_go_to_another_split_are_moved(tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    path = write(tmp_path / "a.jsonl", rows(60))
    old, _ = record(recipe(path), base=tmp_path, root=root)
    new, _ = record(recipe(path, seed=3), base=tmp_path, root=root)
    found = diff(old, new, root=root)
    assert (found.added, found.removed, found.changed, found.kept) == (0, 0, 0, 60)
    assert found.moved > 0
    assert sum(found.leaks.values()) > 0
