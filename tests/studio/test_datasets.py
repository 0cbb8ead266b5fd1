"""Uploads that resume and refuse, data sets and how they are read, and what is found in them."""

from __future__ import annotations

import asyncio
import gzip
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from luthier.errors import FileProblem, UsageError
from luthier.studio.problems import NotFound
from luthier.studio.services import datasets, inspection
from luthier.studio.services.uploads import (
    KEEP_SECONDS,
    Span,
    UploadRefused,
    Uploads,
    read_span,
    sniff,
    suffix_of,
)
from studio_case import made_run, studio
from studio_rows import CHATS, lines, made, pieces, send

if TYPE_CHECKING:
    from starlette.testclient import TestClient

# -- uploads -------------------------------------------------------------------------------------


def test_a_file_arrives_whole_under_a_random_name(tmp_path: Path) -> None:
    data = lines(CHATS)
    found = send(Uploads(tmp_path), "../../etc/chats.jsonl", data)
    assert found.path is not None
    assert found.path.parent == tmp_path
    assert "chats" not in found.path.name
    assert found.path.read_bytes() == data
    assert (found.bytes, found.suffix) == (len(data), ".jsonl")
    known = datasets.take(tmp_path, found)
    assert known.name == "chats.jsonl"
    assert Path(known.file) == tmp_path / known.id / "rows.jsonl"
    assert sorted(path.name for path in tmp_path.iterdir()) == [known.id]
    again = datasets.take(tmp_path, send(Uploads(tmp_path), "other.jsonl", data))
    assert again == known


def test_a_broken_transfer_goes_on_where_it_ended(tmp_path: Path) -> None:
    data, keeper = lines(CHATS), Uploads(tmp_path)

    async def breaking() -> AsyncIterator[bytes]:
        yield data[:700]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(keeper.receive("a.jsonl", Span(0, len(data) - 1, len(data)), "", breaking()))
    # What had not been written yet is lost; what was is told, also to a server that was started anew.
    keeper = Uploads(tmp_path)
    there = keeper.state("a.jsonl", len(data)).bytes
    part = send(keeper, "a.jsonl", data[there:900], first=there, total=len(data))
    assert (part.bytes, part.path) == (900, None)
    assert [(one.name, one.bytes) for one in keeper.waiting()] == [("a.jsonl", 900)]
    with pytest.raises(UploadRefused) as refused:
        send(keeper, "a.jsonl", data[500:], first=500, total=len(data))
    assert (refused.value.status, refused.value.code) == (409, "wrong-offset")
    whole = send(Uploads(tmp_path), "a.jsonl", data[900:], first=900, total=len(data))
    assert whole.path is not None
    assert whole.path.read_bytes() == data
    assert whole.sha256 == made(tmp_path / "b", "b.jsonl", data).sha256
    assert keeper.waiting() == []


@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("a.exe", b"MZ", 415, "unknown-kind"),
        ("a.jsonl.exe", b"{}", 415, "unknown-kind"),
        ("jsonl", b"{}", 415, "unknown-kind"),
        ("a\n.jsonl", b"{}", 400, "bad-name"),
        ("a.jsonl", b"", 400, "empty-file"),
        ("a.jsonl", b"\x7fELF" + bytes(80), 415, "not-that-kind"),
        ("a.csv", b"PK\x03\x04" + bytes(80), 415, "not-that-kind"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), 415, "not-that-kind"),
        ("a.jsonl.gz", b'{"a": 1}' * 20, 415, "not-that-kind"),
        ("a.parquet", b'{"a": 1}' * 20, 415, "not-that-kind"),
        ("a.txt", b"text" + bytes(100), 415, "not-that-kind"),
    ],
)
def test_what_is_no_data_is_refused_and_not_kept(
    tmp_path: Path, name: str, data: bytes, status: int, code: str
) -> None:
    with pytest.raises(UploadRefused) as refused:
        send(Uploads(tmp_path), name, data) if data else asyncio.run(
            Uploads(tmp_path).receive(name, Span(None, None, 0), "", pieces(b""))
        )
    assert (refused.value.status, refused.value.code) == (status, code)
    assert not list(tmp_path.glob(".unfinished*"))


def test_a_file_that_lies_about_its_length_leaves_what_was_there(tmp_path: Path) -> None:
    keeper, data = Uploads(tmp_path), lines(CHATS)
    send(keeper, "a.jsonl", data[:500], total=len(data))
    with pytest.raises(UploadRefused) as refused:
        asyncio.run(keeper.receive("a.jsonl", Span(500, 599, len(data)), "", pieces(data[500:])))
    assert refused.value.code == "too-many-bytes"
    assert keeper.state("a.jsonl", len(data)).bytes == 500


def test_size_and_space_are_checked_before_the_first_byte(tmp_path: Path) -> None:
    for keeper, status in (
        (Uploads(tmp_path, largest=100), 413),
        (Uploads(tmp_path, kept_free=1 << 60), 507),
    ):
        with pytest.raises(UploadRefused) as refused:
            send(keeper, "a.jsonl", lines(CHATS))
        assert refused.value.status == status
    assert not list(tmp_path.glob(".unfinished*"))


def test_utf16_is_text(tmp_path: Path) -> None:
    sniff('{"a": "ü"}'.encode("utf-16"), ".jsonl")
    assert suffix_of("Über uns.CSV.GZ") == ".csv.gz"


@pytest.mark.parametrize(
    ("header", "length", "status"),
    [
        (None, None, 411),
        ("bytes 5-3/10", "0", 400),
        ("bytes 0-10/10", "11", 400),
        ("bytes 0-4/10", "9", 400),
        ("items 0-4/10", "5", 400),
        ("bytes 0-4/*", "5", 400),
    ],
)
def test_ranges_that_cannot_be(header: str | None, length: str | None, status: int) -> None:
    with pytest.raises(UploadRefused) as refused:
        read_span(header, length)
    assert refused.value.status == status


def test_ranges() -> None:
    assert read_span(None, "10") == Span(0, 9, 10)
    assert read_span("bytes 0-4/10", "5") == Span(0, 4, 10)
    assert read_span("bytes */10", "0") == Span(None, None, 10)
    assert read_span("bytes 0-0/1", None).count == 1


def test_old_transfers_are_swept(tmp_path: Path) -> None:
    keeper = Uploads(tmp_path)
    send(keeper, "a.jsonl", b'{"a": 1}', total=1000)
    assert keeper.sweep() == 0
    assert keeper.sweep(now=time.time() + KEEP_SECONDS + 60) == 1
    assert list(tmp_path.iterdir()) == []


def test_memory_stays_flat(tmp_path: Path) -> None:
    keeper, block, count = Uploads(tmp_path, kept_free=0), b'{"text": "' + b"a" * 65_520 + b'"}\n', 3_000
    total = len(block) * count

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    process = psutil.Process(os.getpid())
    send(keeper, "warm.jsonl", block)
    before = process.memory_info().rss
    found = asyncio.run(keeper.receive("big.jsonl", Span(0, total - 1, total), "", blocks()))
    assert found.bytes == total > 190_000_000
    assert process.memory_info().rss - before < 32 << 20


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "purpose", "read_as"),
    [
        ("c.jsonl", lines(CHATS), "chat", "messages"),
        ("l.csv", b"text,label\nhello,greet\nbye,part\n", "multi-class-classification", "multi-class"),
        ("p.jsonl", lines([{"prompt": "a", "chosen": "b", "rejected": "c"}]), "preference", "preference"),
        ("s.jsonl", lines([{"sentence1": "a", "sentence2": "b", "score": 3}]), "similarity", "scored-pairs"),
        ("t.txt", b"some text\n\nmore", "text-generation", "text"),
        ("q.jsonl", lines([{"question": "a?", "answer": "b"}]), "chat", "prompt-completion"),
    ],
)
def test_the_purpose_is_told_by_the_columns(
    tmp_path: Path, name: str, data: bytes, purpose: str, read_as: str
) -> None:
    known = made(tmp_path, name, data)
    found = datasets.mapping(known)
    assert (known.purpose, found.read_as, found.problem) == (purpose, read_as, None)
    assert any(turn.trained for turn in found.sample[0].turns)


def test_a_mapping_is_tried_and_what_is_wrong_is_said(tmp_path: Path) -> None:
    known = made(tmp_path, "x.jsonl", lines([{"frage": "Was?", "antwort": "Das."}] * 3))
    assert datasets.mapping(known).problem is not None
    good = datasets.remap(
        known, {"columns": {"prompt": "frage", "completion": "antwort", "label": "antwort"}}
    )
    found = datasets.mapping(good)
    assert [(turn.role, turn.text, turn.trained) for turn in found.sample[0].turns] == [
        ("user", "Was?", False),
        ("assistant", "Das.", True),
    ]
    near = datasets.mapping(datasets.remap(known, {"columns": {"prompt": "frag", "completion": "antwort"}}))
    assert near.fix is not None
    assert "frage" in near.fix
    template = datasets.remap(known, {"columns": {"prompt": "Q: {frage}", "completion": "antwort"}})
    assert datasets.mapping(template).sample[0].turns[0].text == "Q: Was?"
    for wrong in ({"purpose": "dance"}, {"format": "pdf"}, {"train_on": "nothing"}, {"held_out": "../x"}):
        with pytest.raises(UsageError):
            datasets.remap(known, wrong)


def test_broken_rows_stand_in_the_preview(tmp_path: Path) -> None:
    known = made(tmp_path, "x.jsonl", b'{"text": "a"}\n{broken\n{"text": "b", "extra": [1, 2]}\n')
    page = datasets.preview(known)
    assert [(row.line, row.problem is None) for row in page.rows] == [(1, True), (2, False), (3, True)]
    assert page.columns == ["text", "extra"]
    assert page.rows[2].cells["extra"] == "[1, 2]"
    many = made(tmp_path, "many.jsonl", lines(CHATS))
    assert (len(datasets.preview(many).rows), datasets.preview(many).more) == (50, True)
    assert [row.line for row in datasets.preview(many, 2).rows] == list(range(51, 61))
    with pytest.raises(NotFound):
        datasets.preview(many, datasets.PAGES + 1)


def test_local_files_stay_under_the_folders_that_are_allowed(tmp_path: Path) -> None:
    inside, outside, shelf = tmp_path / "in", tmp_path / "out", tmp_path / "shelf"
    inside.mkdir()
    outside.mkdir()
    (inside / "a.jsonl").write_bytes(lines(CHATS))
    (outside / "b.jsonl").write_bytes(lines(CHATS))
    (inside / "link.jsonl").symlink_to(outside / "b.jsonl")
    known = datasets.name_local(shelf, "a.jsonl", [inside])
    assert (known.own, known.file) == (False, str(inside / "a.jsonl"))
    for path in (outside / "b.jsonl", inside / "link.jsonl", inside / ".." / "out" / "b.jsonl"):
        with pytest.raises(UsageError, match="not under a folder"):
            datasets.name_local(shelf, str(path), [inside])
    with pytest.raises(FileProblem):
        datasets.name_local(shelf, str(inside / "none.jsonl"), [inside])
    assert datasets.remove(shelf, known.id) == 0
    assert (inside / "a.jsonl").exists()
    for name in ("../in", "0" * 16, ""):
        with pytest.raises(NotFound):
            datasets.dataset(shelf, name)


# -- what is found -------------------------------------------------------------------------------


def test_an_inspection_finds_lengths_copies_and_leaks(tmp_path: Path) -> None:
    known = made(tmp_path, "c.jsonl", lines([*CHATS, CHATS[0]]))
    held = made(tmp_path, "h.jsonl", lines(CHATS[:2]))
    known = datasets.save(tmp_path, datasets.remap(known, {"held_out": held.id}))
    key = inspection.key_of(known, None, held)
    assert inspection.main([str(tmp_path), known.id, key, "", ""]) == 0
    found = inspection.found(tmp_path, known)
    assert found is not None
    assert found.check is not None
    assert found.lengths is not None
    codes = {one.code for one in found.check.findings}
    assert {"duplicate", "leakage"} <= codes
    places = [place for one in found.check.findings for place in one.lines]
    assert places
    assert all(place.startswith("c.jsonl:") for place in places)
    assert found.lengths.train.count == 61
    assert 0 < found.lengths.trained_tokens < found.lengths.train.total
    assert sum(rows for _, _, rows in found.histogram) == 61
    # Read in another way, it is another question.
    other = datasets.remap(known, {"train_on": "all"})
    assert inspection.found(tmp_path, other) is None
    assert inspection.any_found(tmp_path, known) == found


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    known = made(tmp_path, "x.jsonl", b"not json at all\n")
    found = inspection.inspect(tmp_path, known, "k", None, None)
    assert found.problem or (found.check is not None and found.check.errors)


def test_bars_hold_every_row_once() -> None:
    sizes = [*range(1, 1000), 90_000]
    found = inspection.bars(sizes)
    assert sum(rows for _, _, rows in found) == 1000
    assert len(found) <= inspection.BARS
    assert found[-1][1] == 90_000
    assert all(low <= high for low, high, _ in found)
    assert inspection.bars([7])[-1] == (7, 7, 1)
    assert inspection.bars([]) == ()


# -- pages and API -------------------------------------------------------------------------------


def uploaded(client: TestClient, name: str, data: bytes) -> str:
    answer = client.put(f"/api/v1/uploads/{name}", content=data)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def settled(client: TestClient, id_: str) -> dict[str, Any]:
    for _ in range(300):
        found = client.get(f"/api/v1/datasets/{id_}/checks").json()
        if found["found"] is not None:
            return dict(found["found"])
        time.sleep(0.1)
    raise AssertionError("nobody looked")


def test_the_way_of_a_data_set_over_the_web(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        assert "No data yet" in client.get("/datasets").text
        data = lines(CHATS)
        half = len(data) // 2
        url = "/api/v1/uploads/chats.jsonl"
        asked = client.put(url, headers={"content-range": f"bytes */{len(data)}"})
        assert (asked.status_code, asked.json()["bytes"]) == (202, 0)
        part = client.put(
            url, content=data[:half], headers={"content-range": f"bytes 0-{half - 1}/{len(data)}"}
        )
        assert (part.status_code, part.json()["bytes"], part.json()["id"]) == (202, half, None)
        assert "Not whole yet" in client.get("/datasets").text
        wrong = client.put(url, content=data[half:], headers={"content-range": f"bytes 0-{half}/{len(data)}"})
        assert wrong.status_code in (400, 409)
        rest = client.put(
            url, content=data[half:], headers={"content-range": f"bytes {half}-{len(data) - 1}/{len(data)}"}
        )
        id_ = rest.json()["id"]
        found = settled(client, id_)
        assert found["check"]["kept"] == 60
        run = made_run(tmp_path, data={"train": [str(tmp_path / "studio/uploads" / id_ / "rows.jsonl")]})
        page = client.get("/datasets").text
        assert "chats.jsonl" in page
        assert "1 run" in page
        for tab in ("preview", "mapping", "checks", "lengths", "tokens"):
            assert client.get(f"/datasets/{id_}?tab={tab}").status_code == 200
        assert "Question 1?" in client.get(f"/datasets/{id_}").text
        tried = client.get(f"/datasets/{id_}?tab=mapping&try=1&train_on=last&role-messages=nothing").text
        assert "not saved" in tried
        assert "the rows have no column" in tried
        kept = client.post(f"/datasets/{id_}/mapping", data={"train_on": "last", "name": "Mine"})
        assert kept.status_code == 303
        now = client.get(f"/api/v1/datasets/{id_}").json()
        assert (now["train_on"], now["name"]) == ("last", "Mine")
        assert client.get("/api/v1/datasets").json()["datasets"][0]["used_by"] == [run.id]
        assert client.delete(f"/api/v1/datasets/{id_}").json()["freed"] == len(data)
        assert client.get(f"/datasets/{id_}").status_code == 404


def test_what_the_api_refuses(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        wrong = client.put("/api/v1/uploads/a.exe", content=b"MZ")
        assert (wrong.status_code, wrong.json()["code"]) == (415, "unknown-kind")
        assert wrong.headers["content-type"] == "application/problem+json"
        assert client.put("/api/v1/uploads/a.jsonl", content=b"").status_code == 400
        huge = client.put("/api/v1/uploads/a.jsonl", headers={"content-range": "bytes */99999999999999"})
        assert huge.status_code == 413
        away = client.post("/api/v1/datasets", json={"path": "/etc/passwd"})
        assert away.status_code == 422
        assert "not under a folder" in away.json()["detail"]
        assert client.get("/datasets/..%2f..%2fetc").status_code == 404
        assert client.get("/datasets/0000000000000000").status_code == 404
        id_ = uploaded(client, "a.jsonl", lines(CHATS))
        assert client.put(f"/api/v1/datasets/{id_}/mapping", json={"purpose": "x"}).status_code == 422
        assert client.get(f"/api/v1/datasets/{id_}/rows?page=0").status_code == 422
        assert client.put(f"/api/v1/datasets/{id_}/mapping", json={"held_out": "0" * 16}).status_code == 404


def test_what_rows_say_is_escaped(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        evil = "<script>alert(1)</script>"
        row = {"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]}
        id_ = uploaded(client, "%3Cb%3Ex.jsonl", lines([row] * 3))
        for tab in ("preview", "mapping"):
            page = client.get(f"/datasets/{id_}?tab={tab}").text
            assert evil not in page
            assert "&lt;script&gt;" in page
            assert "<b>x" not in page
