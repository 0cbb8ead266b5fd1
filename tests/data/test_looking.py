"""What several processes do is what one does; images that are not there are found; digests stay apart."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from luthier.data import check as checking
from luthier.data.check import check
from luthier.data.pool import ordered
from luthier.data.seen import Seen
from luthier.errors import DataError
from luthier.schema.data import CheckReport
from pictures import png


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def found(report: CheckReport) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.lines for finding in report.findings}


def test_missing_and_broken_images_are_found_at_their_line(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(png())
    (folder / "images" / "cut.png").write_bytes(png()[:-10])
    (folder / "images" / "page.png").write_text("<html>not found</html>")
    whole = "data:image/png;base64," + base64.b64encode(png()).decode()
    images = [
        "images/a.png",
        "images/cut.png",
        "images/page.png",
        "images/none.png",
        whole,
        whole[:-20] + "????",
    ]
    images.append("https://example.com/a.png")
    rows = [{"image": image, "caption": f"Caption number {n}"} for n, image in enumerate(images)]
    write(folder / "train.jsonl", rows)
    report = check(("set/train.jsonl",), base=tmp_path)
    where = "set/train.jsonl"
    assert found(report)["missing-image"] == (f"{where}:4",)
    assert found(report)["broken-image"] == (f"{where}:2", f"{where}:3", f"{where}:6")
    assert (report.format, report.read, report.kept) == ("image-caption", 7, 7)


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    words = [f"word{n}" for n in range(50)]
    rows = [
        {"prompt": " ".join(draw.choices(words, k=12)), "completion": " ".join(draw.choices(words, k=30))}
        for _ in range(300)
    ]
    rows += [
        rows[3],
        {**rows[4], "completion": "else"},
        {"prompt": "x"},
        {"prompt": "a", "completion": "hf_" + "a" * 34},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text() + "broken\n")
    alone = check(("a.jsonl",), base=tmp_path)
    monkeypatch.setattr("luthier.data.chunks.CHUNK_BYTES", 20_000)
    monkeypatch.setattr(checking, "_SEVERAL", 1)
    monkeypatch.setattr(checking, "processes", lambda: 2)
    together = check(("a.jsonl",), base=tmp_path)
    assert together.model_dump(exclude={"seconds"}) == alone.model_dump(exclude={"seconds"})
    assert alone.dropped == {"missing-field": 1, "broken-row": 1}
    assert {"duplicate", "same-prompt", "secret"} <= set(found(alone))


def test_a_recipes_task_and_held_out_rows_are_checked(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl", [{"text": f"text {n}", "label": n % 2} for n in range(20)] + [{"text": "none"}]
    )
    write(tmp_path / "t.jsonl", [{"text": "text 3", "label": 1}, {"text": "text 4", "label": 1}])
    task: Any = "multi-class-classification"
    report = check(("a.jsonl",), base=tmp_path, held_out=("t.jsonl",), purpose=task)
    assert (report.format, report.read, report.dropped) == ("multi-class", 21, {"missing-label": 1})
    assert found(report)["leakage"] == ("a.jsonl:4",)
    assert found(report)["prompt-leakage"] == ("a.jsonl:5",)
    wrong = check(("a.jsonl",), base=tmp_path, purpose="reranking")
    assert (wrong.kept, wrong.dropped) == (0, {"unknown-shape": 21})


def test_digests_are_told_apart_as_a_dict_would() -> None:
    draw = random.Random(1)
    table, known = Seen(), {}
    for value in range(20_000):
        key = draw.choice([draw.getrandbits(64), draw.getrandbits(12), 1 << 63])
        assert table.first(key, value) == known.setdefault(key or 1, value)
    assert len(table) == len(known)


def doubled(setup: int) -> Any:
    """A job for the test below."""

    def work(piece: int) -> int:
        if piece == 13:
            raise DataError("thirteen", file="f", line=3, hint="h")
        if piece == 14:
            raise ZeroDivisionError("fourteen")
        print("noise on the standard output does no harm")
        return setup * piece

    return work


def test_processes_keep_order_and_hand_errors_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    job = "test_looking:doubled"
    assert list(ordered(job, 3, range(13), count=2)) == [3 * n for n in range(13)]
    with pytest.raises(DataError, match="thirteen") as caught:
        list(ordered(job, 3, [1, 13], count=2))
    assert (caught.value.where, caught.value.hint) == ("f:3", "h")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: fourteen"):
        list(ordered(job, 3, [14], count=2))
