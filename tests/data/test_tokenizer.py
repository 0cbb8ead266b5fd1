"""Ids, strings and templates equal transformers' own."""

# ruff: noqa: E501 - templates and chats stand as written
from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import DataError, FileProblem, Unsupported

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    "Hello, world!  Two spaces,\ttabs\r\nand lines.\n\n",
    "naïve café 日本語 العربية हिन्दी 👩‍👩‍👧 🇮🇹 \u200b\ufeff",
    "x = [1, 22, 333]  # it's 3.14 ...",
    "<|im_start|>user\nspecial tokens in text<|im_end|>\n",
    "a" * 300,
]
CHATS = [
    [{"role": "user", "content": "Hi <b>&amp;</b> 'quotes'"}],
    [{"role": "system", "content": "Be é."}, {"role": "user", "content": "1"}, {"role": "assistant", "content": " 2 "}],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "look it up",
            "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Köln <1>"}}}],
        },
        {"role": "tool", "content": "sunny", "name": None},
        {"role": "assistant", "content": "Sunny."},
    ],
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "w", "description": "d'é", "parameters": {}}}]


def reference(tokenizer: FileTokenizer):
    return transformers.AutoTokenizer.from_pretrained(tokenizer.directory)


@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral"])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_equal_transformers(style: str, text: str, make_tokenizer) -> None:
    ours = make_tokenizer(style)
    theirs = reference(ours)
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("style", ["chatml", "thinking", "llama3", "mistral", "phi", "channels"])
@pytest.mark.parametrize("chat", range(len(CHATS)))
def test_rendered_chats_equal_transformers(style: str, chat: int, make_tokenizer) -> None:
    ours = make_tokenizer(style)
    theirs = reference(ours)
    for tools in (None, TOOLS):
        for prompt in (False, True):
            expected = theirs.apply_chat_template(
                CHATS[chat], tools=tools, add_generation_prompt=prompt, tokenize=False
            )
            assert ours.render(CHATS[chat], tools=tools, add_generation_prompt=prompt) == expected


TRICKS = """\
{%- macro shout(text) %}{{ text | upper }}{% endmacro %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
{% generation %}{{ shout(message.content) }}{% endgeneration %}
    {{ {'a': [1, 'é<'], 'b': none} | tojson(indent=2) }}
{%- endfor %}
{{ dict(a=1).a }}{{ image_token }}{{ bos_token }}{{ documents is none }}"""


def test_every_trick_of_templates_is_known(make_tokenizer) -> None:
    made = make_tokenizer("chatml", image_token="<|user|>")
    (made.directory / "chat_template.jinja").write_text(TRICKS, encoding="utf-8")
    ours = load_tokenizer(made.directory)
    expected = reference(ours).apply_chat_template(CHATS[1], tokenize=False)
    assert ours.render(CHATS[1]) == expected
    assert "<|user|>" in expected


def test_the_date_can_be_held_still(make_tokenizer) -> None:
    made = make_tokenizer("chatml")
    (made.directory / "chat_template.jinja").write_text("{{ strftime_now('%d %B %Y') }}", encoding="utf-8")
    still = load_tokenizer(made.directory, now=datetime(2025, 3, 1))
    assert still.render(CHATS[0]) == "01 March 2025"
    assert load_tokenizer(made.directory).render(CHATS[0]) == reference(still).apply_chat_template(
        CHATS[0], tokenize=False
    )


def test_a_template_cannot_reach_python(make_tokenizer) -> None:
    made = make_tokenizer("chatml")
    for attack in (
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__bases__ }}",
    ):
        (made.directory / "chat_template.jinja").write_text(attack, encoding="utf-8")
        with pytest.raises(DataError, match="template"):
            load_tokenizer(made.directory).render(CHATS[0])


def test_tokens_that_only_the_config_names_are_added(make_tokenizer) -> None:
    ours = make_tokenizer("chatml", pad_token="<|pad|>", extra_special_tokens=["<|extra|>"])
    theirs = reference(ours)
    text = "a<|pad|>b<|extra|>"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.pad_id == theirs.pad_token_id


def test_end_tokens_come_from_generation_config_and_tokenizer(make_tokenizer) -> None:
    ours = make_tokenizer("llama3")
    ids = {ours.encode(text)[0] for text in ("<|eot_id|>", "<|eom_id|>")}
    assert ours.eos_ids == ids
    (ours.directory / "generation_config.json").write_text('{"eos_token_id": 0}', encoding="utf-8")
    assert load_tokenizer(ours.directory).eos_ids == {0, ours.encode("<|eot_id|>")[0]}


def test_templates_of_tokenizer_config_and_by_name(make_tokenizer) -> None:
    made = make_tokenizer("chatml")
    (made.directory / "chat_template.jinja").unlink()
    config = json.loads((made.directory / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "default"},
        {"name": "tool_use", "template": "tools"},
    ]
    (made.directory / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(made.directory)
    assert ours.render(CHATS[0]) == "default"
    assert ours.render(CHATS[0], tools=TOOLS) == "tools"


def test_digest_follows_the_files_and_max_length_the_config(make_tokenizer) -> None:
    ours = make_tokenizer("chatml", model_max_length=64)
    assert ours.max_length == 64
    before = ours.digest
    assert load_tokenizer(ours.directory).digest == before
    (ours.directory / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert load_tokenizer(ours.directory).digest != before


def test_it_can_be_sent_to_a_process(make_tokenizer) -> None:
    ours = make_tokenizer("chatml")
    assert pickle.loads(pickle.dumps(ours)).encode("Hello") == ours.encode("Hello")


def test_bad_folders_are_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"no tokenizer\.json") as caught:
        load_tokenizer(tmp_path / "nowhere")
    assert "catalogue" in (caught.value.hint or "")
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(FileProblem) as caught:
        load_tokenizer(tmp_path)
    assert "save_pretrained" in (caught.value.hint or "")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(FileProblem, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_template_is_named_with_its_line(make_tokenizer) -> None:
    made = make_tokenizer("chatml")
    (made.directory / "chat_template.jinja").write_text("one\n{% if %}", encoding="utf-8")
    with pytest.raises(FileProblem, match="line 2"):
        load_tokenizer(made.directory).render(CHATS[0])
    (made.directory / "chat_template.jinja").unlink()
    with pytest.raises(Unsupported, match="no chat template"):
        load_tokenizer(made.directory).render(CHATS[0])


def test_importing_the_room_brings_no_torch() -> None:
    code = (
        "import sys, luthier.data.load, luthier.data.check, luthier.data.profile, luthier.data.show, "
        "luthier.data.batching; "
        "print([m for m in ('torch', 'transformers', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_real_smollm2_equals_transformers() -> None:
    folder = os.environ.get("LUTHIER_TEST_SMOLLM2")
    if not folder:
        pytest.skip("LUTHIER_TEST_SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
    ours = load_tokenizer(Path(folder))
    theirs = reference(ours)
    book = Path(transformers.__file__).read_text(encoding="utf-8")[:40_000]
    for text in [*TEXTS, book]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for chat in CHATS:
        assert ours.render(chat, add_generation_prompt=True) == theirs.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
