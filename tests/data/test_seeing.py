"""Images in rows for models that see: found or refused with file and line, laid out as transformers does."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.catalog.trains import SEEING, why_not_trained
from luthier.data.image_tokens import FAMILIES, GemmaImages, IdeficsImages, QwenImages, image_tokens
from luthier.data.images import image_parts
from luthier.data.load import read_chats
from luthier.errors import DataError, FileProblem, LuthierError, RecipeError
from luthier.schema.recipe import DataChoice
from pictures import png


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


SIZES = [(40, 32), (32, 40), (64, 16), (500, 30), (7, 9), (1, 1), (1023, 640), (64, 64), (33, 33), (300, 301)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_qwen_tokens_are_those_of_the_processor(width: int, height: int) -> None:
    from PIL import Image
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    layout = QwenImages(8, 2, 256, 4096)
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2)
    found = processor(images=[Image.new("RGB", (width, height))], return_tensors="pt", **layout.settings)
    patches = int(found["image_grid_thw"].prod())
    assert layout.patches(width, height) == patches
    assert layout.text(width, height) == "<|image_pad|>" * (patches // 4)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("splits", [True, False])
def test_idefics_text_is_that_of_the_processor(width: int, height: int, splits: bool) -> None:
    from PIL import Image
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    layout = IdeficsImages(tokens=4, side=32, longest=96, splits=splits, per_square=16)
    processor = Idefics3ImageProcessorPil(
        max_image_size={"longest_edge": 32}, do_image_splitting=splits, return_row_col_info=True
    )
    found = processor(images=[Image.new("RGB", (width, height))], return_tensors="pt", **layout.settings)
    # The processor's own words, without the tokenizer that it wants around them.
    words = Idefics3Processor.__new__(Idefics3Processor)
    words.fake_image_token, words.image_token = "<fake_token_around_image>", "<image>"
    words.global_image_tag, words.image_seq_len = "<global-img>", 4
    assert layout.text(width, height) == words.replace_image_token(found, 0)
    assert layout.patches(width, height) == found["pixel_values"].shape[1] * 16


def test_gemma_writes_each_image_alike() -> None:
    layout = GemmaImages(tokens=3, per_image=16)
    soft = "<image_soft_token>" * 3
    assert layout.text(4, 900) == f"\n\n<start_of_image>{soft}<end_of_image>\n\n"


def test_layouts_come_from_a_models_own_settings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(FileProblem, match="no preprocessor_config"):
        image_tokens(tmp_path)
    settings = {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert image_tokens(tmp_path) == QwenImages(14, 2, 3136, 12845056)
    assert image_tokens(tmp_path, max_pixels=200_000) == QwenImages(14, 2, 3136, 200_000)
    with pytest.raises(RecipeError, match="less than the 784 pixels of one token"):
        image_tokens(tmp_path, max_pixels=100)
    (tmp_path / "config.json").write_text('{"model_type": "llava", "vision_config": {}}')
    with pytest.raises(LuthierError, match="llava has its own way with images"):
        image_tokens(tmp_path)


def test_what_is_laid_out_is_what_the_advisor_takes_for_trained() -> None:
    assert set(FAMILIES) == set(SEEING)
    assert why_not_trained("chat", "lora", images=True, family="gemma3") is None
    assert "not among the families" in (why_not_trained("chat", "lora", images=True, family="llama4") or "")


def read(folder: Path, rows: list[dict[str, Any]], **choice: Any) -> list[Any]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = DataChoice(train=("rows.jsonl",), **choice)
    return read_chats(data, ("rows.jsonl",), base=folder, images=True)[0]


def ask(**columns: Any) -> dict[str, Any]:
    return {"prompt": "What is this?", "completion": "A pixel.", **columns}


def test_images_beside_texts_in_messages_and_in_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    packed = "data:image/png;base64," + base64.b64encode(png()).decode()
    answer = {"role": "assistant", "content": "A pixel."}
    part = {"type": "image_url", "image_url": {"url": "a.png"}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "This?"}, part]}, answer]
    rows = [ask(image="a.png"), ask(image=packed), ask(), ask(images=["a.png", packed])]
    chats = read(tmp_path, rows)
    assert [len(image_parts(chat.messages)) for chat in chats] == [1, 1, 0, 2]
    first = chats[0].messages[0]["content"]
    assert [one["type"] for one in first] == ["image", "text"]
    assert (first[0]["image"], first[0]["width"], first[0]["height"]) == (str(tmp_path / "a.png"), 1, 1)
    kept = Path(chats[1].messages[0]["content"][0]["image"])
    assert kept.read_bytes() == png()
    (chat,) = read(tmp_path, [{"messages": turns}])
    assert [one["type"] for one in chat.messages[0]["content"]] == ["text", "image"]
    asked = {"role": "user", "content": "Is <image> like <image>?"}
    (chat,) = read(tmp_path, [{"messages": [asked, answer], "images": ["a.png", "a.png"]}])
    kinds = [one["type"] for one in chat.messages[0]["content"]]
    assert kinds == ["text", "image", "text", "image", "text"]


def test_rows_are_named_by_what_they_say_of_their_images(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png())
    one, two = (read(tmp_path / name, [ask(image="a.png")])[0] for name in ("one", "two"))
    assert one.id == two.id
    (tmp_path / "two" / "a.png").write_bytes(png() + b"IEND\xaeB`\x82")
    assert read(tmp_path / "two", [ask(image="a.png")])[0].id != one.id


@pytest.mark.parametrize(
    ("content", "reference", "words"),
    [
        (None, "gone.png", "the image gone.png is not there"),
        (png()[:-10], "a.png", "the image a.png is cut short"),
        (b"not an image at all", "a.png", "is not an image that can be read"),
        (png()[:20], "a.png", "a.png is"),
        (None, "https://example.com/a.png", "lies on the web"),
        (None, "data:image/png;base64,????", "is not base64"),
    ],
)
def test_images_that_cannot_be_used_are_refused_with_file_and_line(
    tmp_path: Path, content: bytes | None, reference: str, words: str
) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path, [ask(), ask(image=reference)])
    assert (caught.value.file, caught.value.line) == ("rows.jsonl", 2)
    assert caught.value.hint


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    part = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + part + png()[-12:])
    with pytest.raises(DataError, match="more pixels than the 89 million") as caught:
        read(tmp_path, [ask(image="a.png")])
    assert caught.value.line == 1


def test_images_and_their_marks_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    row = {"prompt": "<image> or <image>?", "completion": "Yes.", "image": "a.png"}
    with pytest.raises(DataError, match="2 times <image> and the row 1 images"):
        read(tmp_path, [row])


def test_bytes_in_tables_are_images_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [ask(image={"bytes": png(), "path": None}), ask(image={"bytes": png()[:-10], "path": None})]
    parquet.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "rows.parquet")
    data = DataChoice(train=("rows.parquet",))
    (chat,) = read_chats(data, ("rows.parquet",), base=tmp_path, images=True)[0]
    assert Path(image_parts(chat.messages)[0]["image"]).read_bytes() == png()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the image in the row is cut short") as caught:
        read_chats(data, ("rows.parquet",), base=tmp_path, images=True)
    assert caught.value.line == 2
