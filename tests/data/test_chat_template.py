"""A template on request, for base models that have none."""

import json

import pytest

from luthier.data.chat_template import check_template, read_template, write_template
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import FileProblem, Unsupported, UsageError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ab"}]


def base(folder, *marks):
    """A saved tokenizer without a template."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {chr(n): n - 10 for n in range(10, 127)}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_special_tokens([AddedToken(mark, special=True) for mark in ("<eos>", *marks)])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return folder


def test_plain_ends_each_answer_with_the_models_own_end(tmp_path):
    folder = base(tmp_path / "m")
    with pytest.raises(Unsupported, match="no chat template"):
        load_tokenizer(folder).render(TURNS)
    found = load_tokenizer(folder, template=read_template("plain"))
    assert found.render(TURNS) == "User: hi\nAssistant: ab<eos>\n"
    assert found.render(TURNS[:1], add_generation_prompt=True) == "User: hi\nAssistant:"
    assert found.turn_end is None
    assert found.digest != load_tokenizer(folder).digest


def test_chatml_brings_its_own_end_and_is_saved_with_it(tmp_path):
    folder = base(tmp_path / "m", "<|im_start|>", "<|im_end|>")
    found = load_tokenizer(folder, template=read_template("chatml"))
    check_template(found, "chatml")
    end = found.encode("<|im_end|>")[0]
    assert found.turn_end == end
    assert found.eos_ids == {end, found.encode("<eos>")[0]}
    write_template(found, folder)
    again = load_tokenizer(folder)
    assert again.render(TURNS) == found.render(TURNS)
    assert again.eos_ids == found.eos_ids
    assert read_template(str(folder)) == read_template("chatml")


def test_what_cannot_be_taken(tmp_path):
    folder = base(tmp_path / "m")
    with pytest.raises(Unsupported, match="this vocabulary has no"):
        check_template(load_tokenizer(folder, template=read_template("chatml")), "chatml")
    with pytest.raises(Unsupported, match="no chat template to take"):
        read_template(str(folder))
    with pytest.raises(UsageError, match="no chat template") as caught:
        read_template("chatlm")
    assert "chatml" in str(caught.value.hint)
    with pytest.raises(FileProblem, match="cannot be read"):
        read_template(str(tmp_path / "none.jinja"))
