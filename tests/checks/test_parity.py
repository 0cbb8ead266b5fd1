"""Exports answer like the model they were made from, and planted faults are found and named."""

import struct

import numpy as np
import pytest

from gguf_families import TEMPLATE
from luthier.checks.parity import check_parity, expect, needed_context
from luthier.checks.parity_cause import why_prompts_differ
from luthier.checks.parity_prompts import PromptCase, fixed_cases
from luthier.data.tokenizer import load_tokenizer
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.quantize import predicted_size, quantize
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings

FAMILIES = ["llama", "qwen3", "mistral", "gemma3", "mixtral"]
TOLERANCE = 0.01
"""Nats between the merged model in fp32 and its F16 file in llama.cpp, over the ten likeliest tokens."""
SETTINGS = ServerSettings(context=512, threads=1)
CHATS = [
    PromptCase("short", [{"role": "user", "content": "How much is the old boat?"}]),
    PromptCase(
        "turns",
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Übung: 12345 naïve\n\n  x:   10 y"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Isn't it 你好 🙂? I'LL see."},
        ],
    ),
]


def string(words):
    raw = words.encode()
    return struct.pack("<IQ", 8, len(raw)) + raw


def check(path, expected, label="gguf:F16", **settings):
    with LlamaServer(path, SETTINGS) as server:
        return check_parity(expected, GgufGenerator(server, label, "-"), **settings)


@pytest.fixture(scope="module")
def llama(reference):
    return expect(reference("llama"), CHATS, max_new_tokens=16)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_like_its_model(family, converted, reference, tmp_path):
    trained, source = reference(family), converted(family)
    expected = expect(trained, [*CHATS, *fixed_cases(trained.tokenizer)[:3]], max_new_tokens=16)
    with LlamaServer(source, SETTINGS) as server:
        found = check_parity(expected, GgufGenerator(server, "gguf:F16", "-"))
        reports = [server.complete(one.ids, 1, top=10).choices[0] for one in expected]
    assert found.passed, found.problems
    assert found.equal_token_ids == found.prompts == 5
    assert found.equal_tokens == found.compared_tokens > 20
    assert found.mean_kl < 1e-4
    assert found.stops
    assert sum(report is not None for report in reports) >= 3
    for one, report in zip(expected, reports, strict=True):
        exact = dict(zip(one.top_ids[0].tolist(), one.top_log_probs[0], strict=True))
        for token, log_prob in report.top if report is not None else ():
            assert log_prob == pytest.approx(exact[token], abs=TOLERANCE)

    divergence = found.mean_kl
    for kind in ("Q8_0", "Q4_K_M"):
        out = tmp_path / f"{family}-{kind}.gguf"
        quantize(source, out, kind, log=tmp_path / "log", using="libgguf")
        assert out.stat().st_size == predicted_size(source, kind)
        types = {tensor.type for tensor in read_header(out).tensors}
        assert types <= ({"F32", "Q8_0"} if kind == "Q8_0" else {"F32", "Q4_K", "Q6_K", "Q8_0", "Q5_K"})
        quantised = check(out, expected, f"gguf:{kind}")
        assert quantised.passed, quantised.problems
        assert quantised.compared_tokens == sum(one.places for one in expected)
        assert quantised.mean_kl > divergence
        divergence = quantised.mean_kl


def test_a_template_bug_is_found(llama, converted, plant):
    bug = (
        "{% for m in messages %}<|turn|>{{ m['role'] }} {{ m['content'] }}<|over|>\n{% endfor %}"
        "<|turn|>assistant\n"
    )
    found = check(plant(converted("llama"), tokenizer__chat_template=string(bug)), llama)
    assert not found.passed
    assert found.equal_token_ids == 0
    assert "probable cause: the chat template" in found.problems[0]
    assert "token 4: 201 '\\n' in the trained model" in found.problems[0]


def test_a_template_that_prints_the_date_is_no_fault(reference, converted, plant):
    """Llama 3's template writes a fixed date where nobody tells it one, and llama.cpp tells it today's."""
    dated = (
        "{# <|start_header_id|>ipython<|end_header_id|> #}"
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
        "<|turn|>system\nToday: {{ date_string }}<|over|>\n" + TEMPLATE
    )
    trained = reference("llama")
    told = load_tokenizer(trained.tokenizer.directory, template=dated)
    expected = expect(trained, CHATS, tokenizer=told, max_new_tokens=8)
    assert "Today: 26 Jul 2024" in expected[0].text
    found = check(plant(converted("llama"), tokenizer__chat_template=string(dated)), expected)
    assert found.passed, found.problems
    assert found.equal_token_ids == 2
    assert found.notes == (
        "the chat template prints a date: 26 Jul 2024 in training, that of the day in llama.cpp",
    )
    other = dated.replace("Today: ", "Now: ")
    wrong = check(plant(converted("llama"), tokenizer__chat_template=string(other)), expected)
    assert wrong.equal_token_ids == 0
    assert "probable cause: the chat template" in wrong.problems[0]
    assert wrong.notes == ()


def test_a_missing_end_token_is_found(llama, converted, plant):
    eos = {"tokenizer__ggml__eos_token_id": struct.pack("<II", 4, 7)}
    found = check(plant(converted("llama"), **eos), llama)
    assert not found.stops
    assert not found.passed
    assert "missing EOS" in found.problems[0]
    assert "<|over|>" in found.problems[0]


def test_an_added_bos_is_found(llama, converted, plant):
    adds = struct.pack("<I?", 7, True)
    none = struct.pack("<II", 4, 0)
    path = plant(converted("llama"), tokenizer__ggml__add_bos_token=adds, tokenizer__ggml__bos_token_id=none)
    found = check(path, llama)
    assert not found.passed
    assert "'<|none|>' (BOS) before the prompt, the trained model never saw it" in found.problems[0]


def test_causes_are_told_apart():
    def why(expected, found, *texts):
        left, right = texts or ("same", "same")
        return why_prompts_differ(
            expected_text=left, expected=expected, found_text=right, found=found, show=lambda ids: f"<{ids}>"
        )

    assert why([1, 5, 6], [1, 5, 6]) is None
    assert "stands twice" in why([1, 5, 6], [1, 1, 5, 6])
    assert "never saw it" in why([5, 6], [1, 5, 6])
    assert "leaves it out" in why([1, 5, 6], [5, 6])
    assert "probable cause: the tokenizer" in why([1, 5, 6], [1, 5, 7, 8])
    assert "the end in llama.cpp" in why([1, 5, 6], [1, 5])
    assert "probable cause: the chat template" in why([1, 5, 6], [1, 7, 6], "one two", "one  two")


def test_another_splitter_is_found(llama, converted, plant):
    found = check(plant(converted("llama"), tokenizer__ggml__pre=string("qwen2")), llama)
    assert not found.passed
    assert "probable cause: the tokenizer" in " ".join(found.problems)


def damaged(source, out, name):
    """A copy with one tensor's values in reverse."""
    victim = next(tensor for tensor in read_header(source).tensors if tensor.name == name)
    data = bytearray(source.read_bytes())
    values = np.frombuffer(data, np.float16, victim.bytes // 2, victim.offset)
    values[:] = values[::-1].copy()
    out.write_bytes(data)
    return out


def test_damaged_weights_are_found(llama, converted, tmp_path):
    found = check(damaged(converted("llama"), tmp_path / "a.gguf", "blk.1.ffn_down.weight"), llama)
    assert found.equal_token_ids == found.prompts
    assert not found.passed
    assert "the weights or the architecture" in found.problems[0]
    broken = damaged(converted("llama"), tmp_path / "b.gguf", "token_embd.weight")
    found = check(broken, llama, "gguf:Q4_K_M")
    assert not found.passed
    assert "damaged weights" in found.problems[0]


def test_a_near_tie_ends_the_comparison_without_blame(llama, converted):
    found = check(converted("llama"), llama, near_tie=0.05)
    assert found.passed
    other = [
        type(one)(**{name: getattr(one, name) for name in one.__slots__} | {"answer": (9, *one.answer[1:])})
        for one in llama
    ]
    blamed = check(converted("llama"), other, near_tie=0.0)
    assert not blamed.passed
    excused = check(converted("llama"), other, near_tie=1e9)
    assert excused.passed
    assert excused.near_ties == len(other)
    assert excused.compared_tokens == 0


def test_the_context_that_a_check_needs_is_enough_and_not_more(llama, converted):
    settings = ServerSettings(context=needed_context(llama), threads=1)
    with LlamaServer(converted("llama"), settings) as server:
        assert check_parity(llama, GgufGenerator(server, "gguf:F16", "-")).passed
    assert settings.context < max(len(one.ids) for one in llama) + 32


def test_fixed_prompts_follow_what_the_template_takes(reference):
    names = [case.name for case in fixed_cases(reference("llama").tokenizer)]
    assert "tools" not in names
    assert {"system prompt", "several turns", "unicode and white space", "long"} <= set(names)
