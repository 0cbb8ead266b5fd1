"""Whether a file is to put BOS before what it reads is decided by what was trained on."""

import json

import pytest

from luthier.llamacpp.convert import _with_plain_bos

WRITES = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("settings", "template", "none"),
    [
        ({"bos_token": "<s>"}, WRITES, False),
        ({"bos_token": "<s>"}, "<s>" + PLAIN, False),
        ({"bos_token": "<s>"}, PLAIN, True),
        ({}, PLAIN, True),
        # a template for all models, and a tokenizer without a BOS: there is none to write
        ({}, "{{ bos_token if bos_token is defined and bos_token else '' }}" + PLAIN, True),
        ({"bos_token": {"content": "<s>"}}, WRITES, False),
    ],
)
def test_none_is_added_that_the_template_does_not_write(tmp_path, settings, template, none):
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").write_text(template)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = _with_plain_bos(model, scratch)
    told = json.loads((found / "tokenizer_config.json").read_text()).get("add_bos_token")
    assert (told is False) is none
    assert (found / "chat_template.jinja").read_text() == template
