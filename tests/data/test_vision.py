"""Images in conversations: kept as references, found where they are missing, refused by models of text."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.check import check
from luthier.data.fix import fix
from luthier.data.load import load_splits
from luthier.data.messages import RowProblem
from luthier.data.profile import profile
from luthier.data.read import RawRow
from luthier.data.rows import rows_for
from luthier.data.shapes import Shape
from luthier.data.vision import chat_or_view, text_view, vision_row
from luthier.errors import DataError
from luthier.runs.inspect import first_chats
from luthier.schema.data import CheckReport
from luthier.schema.recipe import DataChoice, Recipe
from luthier.schema.rows import ImageReference
from pictures import png

SHAPE = Shape("messages", {"messages": "messages"})
DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
DIGEST = hashlib.sha256(png()).hexdigest()[:24]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def found(report: CheckReport) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.lines for finding in report.findings}


def asked(*images: Any, words: str = "What is this?") -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": words}, *images]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "A grey pixel."}]


def url(value: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": value}}


def row(messages: Any, **columns: Any) -> RawRow:
    return RawRow({"messages": messages, **columns}, "rows.jsonl", 7)


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        (url("photos/1.png"), ImageReference("path", "photos/1.png")),
        ({"type": "image_url", "image_url": "file:///photos/1.png"}, ImageReference("path", "/photos/1.png")),
        ({"type": "image", "image": "a.png"}, ImageReference("path", "a.png")),
        ({"type": "image", "path": "a.png"}, ImageReference("path", "a.png")),
        (
            {"type": "image", "url": "https://example.com/a.png"},
            ImageReference("url", "https://example.com/a.png"),
        ),
        ({"type": "input_image", "image_url": DATA_URL}, ImageReference("bytes", DIGEST, "image/png")),
        (url(DATA_URL), ImageReference("bytes", DIGEST, "image/png")),
        ({"type": "image", "image": {"bytes": png(), "path": None}}, ImageReference("bytes", DIGEST)),
    ],
)
def test_images_of_messages_become_references(part: dict[str, Any], reference: ImageReference) -> None:
    made = vision_row(row(asked(part)), SHAPE)
    assert made.images == (reference,)
    assert made.messages[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "image": 0},
    ]
    assert made.messages[1]["content"] == "A grey pixel."
    assert (made.file, made.line) == ("rows.jsonl", 7)
    assert text_view(made).messages[0]["content"] == f"What is this?[image {reference.value}]"


def test_images_beside_the_messages_are_taken_in_order() -> None:
    part = {"type": "image"}
    messages = asked(part, {"type": "text", "text": " and "}, part)
    made = vision_row(row(messages, images=["a.png", "b.png"]), SHAPE, system="Be brief.")
    assert [image.value for image in made.images] == ["a.png", "b.png"]
    assert made.messages[0] == {"role": "system", "content": "Be brief."}
    assert [part.get("image") for part in made.messages[1]["content"]] == [None, 0, None, 1]
    with pytest.raises(RowProblem, match="names no image") as caught:
        vision_row(row(messages, images=["a.png"]), SHAPE)
    assert caught.value.where == "rows.jsonl:7"


def test_rows_with_other_images_are_other_rows() -> None:
    one, same, other = (vision_row(row(asked(url(name))), SHAPE) for name in ("a.png", "a.png", "b.png"))
    assert (one.id, one.key) == (same.id, same.key)
    assert one.id != other.id
    assert one.key != other.key
    chat, vision = chat_or_view(row([{"role": "user", "content": "Hi?"}, asked()[1]]), SHAPE)
    assert vision is None
    assert chat.messages[0]["content"] == "Hi?"


def data(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(png())
    (folder / "images" / "cut.png").write_bytes(png()[:-10])
    plain = [
        {"role": "user", "content": "What is the capital of Peru?"},
        {"role": "assistant", "content": "Lima."},
    ]
    chats = [
        plain,
        asked(url("images/a.png")),
        asked(url("images/none.png"), words="And what is that?"),
        asked(url("images/cut.png"), words="Which colour has it?"),
        asked(url(DATA_URL[:-20] + "????"), words="How large is it?"),
        asked({"type": "input_audio", "input_audio": {}}, words="What is said?"),
        asked(url("https://example.com/a.png"), words="Who is it?"),
        asked(url("images/a.png")),
    ]
    return write(folder / "train.jsonl", [{"dialogue": messages} for messages in chats])


def test_check_finds_images_that_are_missing_or_broken(tmp_path: Path) -> None:
    data(tmp_path)
    report = check(("set/train.jsonl",), base=tmp_path)
    at = "set/train.jsonl"
    codes = found(report)
    assert codes["missing-image"] == (f"{at}:3",)
    assert codes["broken-image"] == (f"{at}:4", f"{at}:5")
    assert codes["images"] == tuple(f"{at}:{line}" for line in (2, 3, 4, 5, 7))
    assert codes["duplicate"] == (f"{at}:8",)
    assert codes["unsupported-part"] == (f"{at}:6",)
    assert (report.read, report.kept, report.dropped) == (8, 7, {"unsupported-part": 1})
    (missing,) = (one for one in report.findings if one.code == "missing-image")
    assert missing.sample == "images/none.png"


def test_models_of_text_refuse_them_with_the_reason(tmp_path: Path, make_tokenizer) -> None:
    path = data(tmp_path)
    tokenizer = make_tokenizer("chatml")
    report = check(("set/train.jsonl",), base=tmp_path, tokenizer=tokenizer)
    assert report.dropped == {"holds-images": 6, "unsupported-part": 1}
    (finding,) = (one for one in report.findings if one.code == "holds-images")
    assert finding.level == "error"
    assert "a model of text cannot see" in finding.message
    assert (finding.file, finding.line) == ("set/train.jsonl", 2)
    recipe = Recipe.model_validate({"model": {"id": "a/b"}, "data": {"train": str(path)}})
    with pytest.raises(DataError, match="7 rows cannot be used") as caught:
        load_splits(recipe, tokenizer, base=tmp_path, sequence_length=64)
    assert "train.jsonl:2: message 1 holds an image (image_url)" in caught.value.message


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_images_beside_the_text_are_not_left_out_unasked(
    tmp_path: Path, make_tokenizer, storage: str
) -> None:
    rows = [{"image": f"{n}.png", "question": f"What is it, {n}?", "answer": "Grey."} for n in range(20)]
    path = write(tmp_path / "asked.jsonl", rows)

    def load(**more: Any) -> Any:
        data = {"train": str(path), "storage": storage, **more}
        recipe = Recipe.model_validate({"model": {"id": "a/b"}, "data": data})
        return load_splits(recipe, make_tokenizer("chatml"), base=tmp_path, sequence_length=64)

    with pytest.raises(DataError, match="the column image holds an image") as caught:
        load()
    assert (caught.value.file, caught.value.line) == ("asked.jsonl", 1)
    assert load(columns={"prompt": "question", "completion": "answer"}).report.splits[0].kept > 9
    write(path, [{**row, "image": "none"} for row in rows])
    assert load().report.splits[0].kept > 9
    pairs = write(tmp_path / "pairs.jsonl", [{"query": "a", "positive": "b", "photo": "a.jpg"}])
    with pytest.raises(DataError, match="the column photo holds an image"):
        rows_for("similarity", DataChoice.model_validate({"train": str(pairs)}), (str(pairs),), base=tmp_path)


def test_profile_show_and_fix_keep_them(tmp_path: Path) -> None:
    path = data(tmp_path)
    described = profile(("set/train.jsonl",), base=tmp_path)
    assert (described.read, described.rows, described.dropped) == (8, 7, {"unsupported-part": 1})
    assert described.structure["images"] == round(6 / 7, 4)
    chats = first_chats(DataChoice(train=(str(path),)), base=Path("/"), count=4, say=print)
    assert [images for _, images in chats] == [
        (), ("images/a.png",), ("images/none.png (missing)",), ("images/cut.png (broken)",),
    ]  # fmt: skip
    report = fix(("set/train.jsonl",), tmp_path / "clean.jsonl", base=tmp_path)
    written = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert len(written) == 6
    assert report.kept == 7
    assert written[1]["dialogue"][0]["content"][1] == url("images/a.png")


def test_bytes_of_a_table_are_written_as_data_addresses(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}?"},
                {"role": "assistant", "content": f"{n}."},
            ],
            "image": {"bytes": png(), "path": None},
        }
        for n in range(3)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    fix(("a.parquet",), tmp_path / "clean.jsonl", base=tmp_path)
    written = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert [one["image"]["bytes"] for one in written] == [DATA_URL] * 3
    assert not check(("clean.jsonl",), base=tmp_path).errors
