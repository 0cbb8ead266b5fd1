"""Tokenizers made from the training text are read back by transformers with the same ids."""

import pytest
from transformers import AutoTokenizer

from luthier.data.chat_template import check_template, marks_of
from luthier.data.tokenizer import load_tokenizer
from luthier.data.vocabulary import character_tokenizer, save_tokenizer, train_bpe
from luthier.errors import DataError, Unsupported

TEXTS = ["First Citizen:\nBefore we proceed, hear me.", "All:\n  Speak, speak! 1608"]
STRANGE = "Zürich 漢字 \t 😀"


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_ids_and_texts_are_those_of_transformers(tmp_path, kind):
    fast = train_bpe(TEXTS, 300) if kind == "bpe" else character_tokenizer(TEXTS)
    save_tokenizer(fast, tmp_path, context=64)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, STRANGE]:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        if kind == "bpe" or text is not STRANGE:
            assert ours.decode(ids) == text
    assert ours.max_length == 64
    assert len(ours.eos_ids) == 1
    assert ours.pad_id not in ours.eos_ids
    if kind == "characters":
        assert len(ours.encode("me.")) == 3
        assert ours.vocab_size == len(set("".join(TEXTS))) + 3


def test_the_size_of_a_vocabulary_is_kept():
    assert train_bpe(TEXTS * 50, 280).get_vocab_size() <= 280


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_marks_of_a_chat_template_are_tokens_of_their_own(tmp_path, kind):
    marks = marks_of("chatml")
    fast = train_bpe(TEXTS, 300, marks) if kind == "bpe" else character_tokenizer(TEXTS, marks)
    save_tokenizer(fast, tmp_path, context=64)
    ours = load_tokenizer(tmp_path)
    check_template(ours, "chatml")
    assert [len(ours.encode(mark)) for mark in marks] == [1, 1]
    plain = train_bpe(TEXTS, 300) if kind == "bpe" else character_tokenizer(TEXTS)
    save_tokenizer(plain, tmp_path / "plain", context=64)
    with pytest.raises(Unsupported, match=r"no <\|im_start\|> and no"):
        check_template(load_tokenizer(tmp_path / "plain"), "chatml")


def test_an_alphabet_has_an_end():
    with pytest.raises(DataError, match="too many for one token each"):
        character_tokenizer(["".join(chr(0x4E00 + i) for i in range(20_500))])
