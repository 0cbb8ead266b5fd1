"""The mask is exact: decoding the trained tokens gives what the model has to write, and nothing else."""

# ruff: noqa: E501 - templates and chats stand as written
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from luthier.data.messages import RowProblem
from luthier.data.render import prompt_ids, prompt_of, render_row, render_rows, render_text
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import Unsupported
from luthier.schema.protocols import ChatRow, Message, TokenRow

SYSTEM = {"role": "system", "content": "You answer in one word."}
ASK = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
AGAIN = {"role": "user", "content": "And of Italy? 👍🏽"}
SECOND = {"role": "assistant", "content": "Rome, naïvely 🇮🇹"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "content": '{"sky": "sunny"}'}
REPORT = {"role": "assistant", "content": "It is sunny in Rome."}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}]

MULTI = [ASK, ANSWER, AGAIN, SECOND]


def row(messages: list[Message], tools: list[dict[str, object]] | None = None) -> ChatRow:
    return ChatRow(messages, "rows.jsonl", 3, "id", tools)


def trained(tokenizer: FileTokenizer, rendered: TokenRow) -> str:
    return tokenizer.decode(rendered.ids[rendered.trained].tolist(), skip_special=False)


CALL_TEXT = '{"name": "weather", "arguments": {"city": "Rome"}}'
CASES = {
    "chatml single": ("chatml", [ASK, ANSWER], "Paris.<|im_end|>"),
    "chatml system": ("chatml", [SYSTEM, ASK, ANSWER], "Paris.<|im_end|>"),
    "chatml multi": ("chatml", MULTI, "Paris.<|im_end|>Rome, naïvely 🇮🇹<|im_end|>"),
    "chatml tools": (
        "chatml",
        [ASK, CALL, RESULT, REPORT],
        f"<tool_call>\n{CALL_TEXT}\n</tool_call><|im_end|>It is sunny in Rome.<|im_end|>",
    ),
    "chatml ends with a question": ("chatml", [ASK, ANSWER, AGAIN], "Paris.<|im_end|>"),
    "chatml begins with an answer": ("chatml", [ANSWER, ASK, SECOND], "Paris.<|im_end|>Rome, naïvely 🇮🇹<|im_end|>"),
    "chatml two answers": ("chatml", [ASK, ANSWER, REPORT], "Paris.<|im_end|>It is sunny in Rome.<|im_end|>"),
    "thinking single": ("thinking", [ASK, ANSWER], "<think>\n\n</think>\n\nParis.<|im_end|>"),
    "thinking multi": (
        "thinking", MULTI, "Paris.<|im_end|><think>\n\n</think>\n\nRome, naïvely 🇮🇹<|im_end|>",
    ),
    "thinking reasons": (
        "thinking",
        [ASK, {**ANSWER, "reasoning_content": "Lost."}, AGAIN, {**SECOND, "reasoning_content": "Of Italy..."}],
        "Paris.<|im_end|><think>\nOf Italy...\n</think>\n\nRome, naïvely 🇮🇹<|im_end|>",
    ),
    "thinking inside the content": (
        "thinking",
        [ASK, {"role": "assistant", "content": "<think>\nLost.\n</think>\n\nParis."}, AGAIN,
         {"role": "assistant", "content": "<think>\nKept.\n</think>\n\nRome."}],
        "Paris.<|im_end|><think>\nKept.\n</think>\n\nRome.<|im_end|>",
    ),
    "thinking tools": (
        "thinking",
        [ASK, ANSWER, AGAIN, {**CALL, "reasoning_content": "I must look."}, RESULT, REPORT],
        f"Paris.<|im_end|><think>\nI must look.\n</think>\n\n<tool_call>\n{CALL_TEXT}\n</tool_call><|im_end|>"
        "<think>\n\n</think>\n\nIt is sunny in Rome.<|im_end|>",
    ),
    "llama3 multi": ("llama3", [SYSTEM, *MULTI], "Paris.<|eot_id|>Rome, naïvely 🇮🇹<|eot_id|>"),
    "llama3 tools": (
        "llama3",
        [ASK, CALL, RESULT, REPORT],
        '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>It is sunny in Rome.<|eot_id|>',
    ),
    "llama3 trims": ("llama3", [ASK, {"role": "assistant", "content": "\n Paris. \n"}], "Paris.<|eot_id|>"),
    "mistral multi": ("mistral", [SYSTEM, *MULTI], " Paris.</s> Rome, naïvely 🇮🇹</s>"),
    "mistral tools": (
        "mistral", [ASK, CALL, RESULT, REPORT], f"[TOOL_CALLS] [{CALL_TEXT}]</s> It is sunny in Rome.</s>",
    ),
    "mistral later tools": (
        "mistral", [*MULTI, ASK, CALL, RESULT, REPORT],
        f" Paris.</s> Rome, naïvely 🇮🇹</s>[TOOL_CALLS] [{CALL_TEXT}]</s> It is sunny in Rome.</s>",
    ),
    "gemma multi": ("gemma", MULTI, "Paris.<end_of_turn>Rome, naïvely 🇮🇹<end_of_turn>"),
    "phi multi": ("phi", MULTI, "Paris.<|end|>Rome, naïvely 🇮🇹<|end|>"),
    "opened multi": ("opened", MULTI, "Paris.<|end|>Rome, naïvely 🇮🇹<|end|>"),
    "channels multi": (
        "channels", MULTI,
        "<|channel|>final<|message|>Paris.<|end|><|channel|>final<|message|>Rome, naïvely 🇮🇹<|return|>",
    ),
    "headers multi": ("headers", MULTI, "Paris.Rome, naïvely 🇮🇹<|endoftext|>"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_trained_tokens_are_exactly_the_answers(case: str, make_tokenizer) -> None:
    style, messages, expected = CASES[case]
    tokenizer = make_tokenizer(style)
    uses_tools = any("tool_calls" in message for message in messages)
    rendered = render_row(row(messages, TOOLS if uses_tools else None), tokenizer)
    assert trained(tokenizer, rendered) == expected
    assert rendered.ids.dtype == np.int32
    assert rendered.trained.dtype == np.bool_


@pytest.mark.parametrize("style", ["chatml", "llama3", "mistral", "gemma", "phi", "channels"])
def test_the_prompt_of_a_test_row_is_the_beginning_of_the_trained_row(style: str, make_tokenizer) -> None:
    tokenizer = make_tokenizer(style)
    rendered = render_row(row([ASK, ANSWER]), tokenizer)
    ids = prompt_ids(prompt_of(row([ASK, ANSWER])), tokenizer)
    assert rendered.ids[: len(ids)].tolist() == ids
    assert rendered.trained.tolist()[: len(ids) + 1] == [False] * len(ids) + [True]


def test_text_is_not_changed_by_marks_that_find_the_turns(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    chat = row([SYSTEM, *MULTI])
    assert tokenizer.decode(render_row(chat, tokenizer).ids.tolist(), skip_special=False) == tokenizer.render(
        chat.messages
    )


def test_train_on_chooses_the_turns(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    chat = row([*MULTI, ASK, CALL, RESULT, REPORT])
    called = f"<tool_call>\n{CALL_TEXT}\n</tool_call><|im_end|>"
    last = "It is sunny in Rome.<|im_end|>"
    assert trained(tokenizer, render_row(chat, tokenizer, "last")) == last
    assert trained(tokenizer, render_row(chat, tokenizer, "completion")) == called + last
    assert trained(tokenizer, render_row(chat, tokenizer, "all")) == tokenizer.render(chat.messages)


def test_a_turn_of_weight_zero_is_not_trained(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    chat = row([ASK, {**ANSWER, "weight": 0}, AGAIN, {**SECOND, "weight": 1}])
    assert trained(tokenizer, render_row(chat, tokenizer)) == "Rome, naïvely 🇮🇹<|im_end|>"


def test_answers_that_look_like_templates_do_not_confuse_the_mask(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    asked = {"role": "user", "content": "Paris.<|im_end|>\n<|im_start|>assistant\nParis."}
    rendered = render_row(row([asked, ANSWER, asked, ANSWER]), tokenizer)
    assert trained(tokenizer, rendered) == "Paris.<|im_end|>" * 2


def test_a_token_across_the_border_is_trained(make_tokenizer) -> None:
    tokenizer = make_tokenizer("mistral")
    rendered = render_text(row([ASK, ANSWER]), tokenizer)
    assert [rendered.text[start:end] for start, end in rendered.spans] == [" Paris.</s>"]


def test_plain_text_gets_the_end_token_and_is_trained_whole(make_tokenizer) -> None:
    tokenizer = make_tokenizer(None)
    rendered = render_row(row([{"role": "text", "content": "Once upon a time"}]), tokenizer)
    assert trained(tokenizer, rendered) == "Once upon a time<|endoftext|>"


def test_rows_come_back_in_order_and_equal_to_one_by_one(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    rows = [row([ASK, {"role": "assistant", "content": "word " * n}]) for n in range(1, 600)]
    for alone, together in zip(rows[::50], list(render_rows(rows, tokenizer))[::50], strict=True):
        assert np.array_equal(render_row(alone, tokenizer).ids, together.ids)


@pytest.mark.parametrize(
    ("style", "messages", "word"),
    [
        ("gemma", [SYSTEM, ASK, ANSWER], "System role not supported"),
        ("gemma", [ASK, AGAIN, ANSWER], "must alternate"),
        ("phi", [ASK, CALL, RESULT, REPORT], "does not write tool calls"),
    ],
)
def test_what_a_template_refuses_is_said_with_file_and_line(style, messages, word, make_tokenizer) -> None:
    with pytest.raises(RowProblem, match=word) as caught:
        render_row(row(messages), make_tokenizer(style))
    assert caught.value.where == "rows.jsonl:3"


def test_a_model_without_template_is_refused_with_ways_out(make_tokenizer) -> None:
    with pytest.raises(Unsupported, match="no chat template") as caught:
        render_row(row([ASK, ANSWER]), make_tokenizer(None))
    assert "text-generation" in (caught.value.hint or "")


def smollm2() -> FileTokenizer:
    folder = os.environ.get("LUTHIER_TEST_SMOLLM2")
    if not folder:
        pytest.skip("LUTHIER_TEST_SMOLLM2 does not name a folder with SmolLM2-135M-Instruct")
    return load_tokenizer(Path(folder))


@pytest.mark.parametrize("messages", [[ASK, ANSWER], [SYSTEM, ASK, ANSWER], MULTI, [*MULTI, RESULT, REPORT]])
def test_masks_on_the_real_smollm2(messages: list[Message]) -> None:
    tokenizer = smollm2()
    expected = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
    assert trained(tokenizer, render_row(row(messages), tokenizer)) == expected


def test_two_calls_of_one_turn_are_both_written_or_the_row_is_refused(make_tokenizer) -> None:
    def call(city: str) -> dict:
        return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}

    both = {"role": "assistant", "content": "", "tool_calls": [call("Rome"), call("Oslo")]}
    messages = [{"role": "user", "content": "Weather?"}, both]
    row = render_row(ChatRow(messages, "f", 3, "i"), make_tokenizer("chatml"))
    assert row.trained.any()
    with pytest.raises(RowProblem, match="only one of the 2 calls") as told:
        render_row(ChatRow(messages, "f", 3, "i"), make_tokenizer("llama3"))
    assert (told.value.file, told.value.line) == ("f", 3)


def test_a_prompt_that_goes_on_in_words_takes_no_letter_of_the_answer(make_tokenizer, tmp_path) -> None:
    """The prompt says "Here are my thoughts:" and the answer begins with an H as well."""
    tokenizer = make_tokenizer("chatml")
    (tokenizer.directory / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}{% if not loop.last or m.role == 'user' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nHere are my thoughts:{% endif %}"
    )
    told = load_tokenizer(tokenizer.directory)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Hmm, Grevy."}]
    row = render_row(ChatRow(messages, "f", 1, "i"), told)
    assert told.decode(row.ids[row.trained].tolist(), skip_special=False) == "Hmm, Grevy.<|im_end|>"


def test_what_a_template_opens_behind_a_call_is_not_trained(make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    (tokenizer.directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.tool_calls %}<|im_start|>assistant\n"
        "{{ m.tool_calls[0].function | tojson }}<|im_end|>{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    told = load_tokenizer(tokenizer.directory)
    called = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "Sunny."},
    ]
    row = render_row(ChatRow(messages, "f", 1, "i"), told)
    assert told.decode(row.ids[row.trained].tolist(), skip_special=False) == (
        '{"name": "weather", "arguments": {"city": "Rome"}}<|im_end|>Sunny.<|im_end|>'
    )
