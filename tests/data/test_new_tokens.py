"""Texts that become tokens of their own, here and in the files that others read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from luthier.data.chat_template import check_template, read_template
from luthier.data.new_tokens import told_of_new_tokens, write_new_tokens
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import RecipeError, Unsupported
from luthier.schema.recipe import ModelChoice
from tiny import save_tiny_model

NEW = ("<tool>", "</tool>", "<|turn|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "m")


def test_each_text_is_one_token_after_all_others(folder: Path) -> None:
    plain, found = load_tokenizer(folder), load_tokenizer(folder, new_tokens=NEW)
    size = plain.vocab_size
    assert list(found.new_tokens) == [size, size + 1, size + 2]
    assert [found.token(index) for index in found.new_tokens] == list(NEW)
    for text, pieces in zip(NEW, found.new_tokens.values(), strict=True):
        assert list(pieces) == plain.encode(text)
        assert len(pieces) > 1
    text = "say <tool>red</tool> now"
    assert found.encode(text) == [
        *plain.encode("say "), size, *plain.encode("red"), size + 1, *plain.encode(" now")
    ]  # fmt: skip
    assert found.decode(found.encode(text)) == text
    assert found.digest != plain.digest
    assert pickle.loads(pickle.dumps(found)).encode(text) == found.encode(text)
    said = told_of_new_tokens(found)
    assert f"3 new tokens: <tool> is {size} (was {len(found.new_tokens[size])} tokens)" in said


def test_only_what_a_template_writes_is_special(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "own.jinja"
    source.write_text(
        "{% for message in messages %}<|turn|>{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    found = load_tokenizer(folder, template=read_template(str(source)), new_tokens=NEW)
    assert found.special_texts & set(NEW) == {"<|turn|>"}
    assert found.decode(found.encode("<|turn|><tool>a</tool>")) == "<tool>a</tool>"


def test_transformers_reads_the_written_files_alike(folder: Path, tmp_path: Path) -> None:
    found = load_tokenizer(folder, new_tokens=NEW)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write_new_tokens(found, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("say <tool>red</tool> now", "<tool><tool>", " <|turn|> </tool>x", "nothing new"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == found.encode(text)
    again = load_tokenizer(tmp_path)
    assert again.vocab_size == found.vocab_size
    assert again.encode("<tool>") == found.encode("<tool>")


def test_every_list_of_added_tokens_names_the_new_ones(folder: Path, tmp_path: Path) -> None:
    known = load_tokenizer(folder)
    entry = {"content": "<|im_end|>", "special": True}
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"2": entry}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 2}))
    write_new_tokens(load_tokenizer(tmp_path, new_tokens=NEW[:1]), tmp_path)
    listed = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert listed[str(known.vocab_size)]["content"] == "<tool>"
    assert listed["2"] == entry
    assert json.loads((tmp_path / "added_tokens.json").read_text())["<tool>"] == known.vocab_size


def test_a_token_that_is_there_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"'<\|im_end\|>' is token 2") as error:
        load_tokenizer(folder, new_tokens=("<|im_end|>",))
    assert "leave it out" in str(error.value.hint)


@pytest.mark.parametrize(
    ("given", "words"),
    [(["<a>", " "], "empty or blank"), ([""], "empty or blank"), (["<a>", "<a>"], "2 times")],
)
def test_texts_that_are_no_tokens(given: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelChoice(id="m", new_tokens=tuple(given))
    assert ModelChoice.model_validate({"id": "m", "new_tokens": "<a>,</a>"}).new_tokens == ("<a>", "</a>")


def test_marks_of_chatml_are_named_where_they_are_missing(folder: Path, tmp_path: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    for mark in ("<|im_start|>", "<|im_end|>"):
        tree["model"]["vocab"][f"unused {mark[4]}"] = tree["model"]["vocab"].pop(mark)
    tree["added_tokens"] = tree["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    template = read_template("chatml")
    with pytest.raises(Unsupported) as error:
        check_template(load_tokenizer(tmp_path, template=template), "chatml")
    assert "model.new_tokens=<|im_start|>,<|im_end|>" in str(error.value.hint)
    found = load_tokenizer(tmp_path, template=template, new_tokens=("<|im_start|>", "<|im_end|>"))
    check_template(found, "chatml")
    assert found.turn_end == found.encode("<|im_end|>")[0]
    assert found.turn_end in found.eos_ids
