"""A served model answers, is held to its limits, and always ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from luthier.errors import FileProblem, ToolchainError, Unreachable, UsageError
from luthier.llamacpp.runtime import Choice, GgufGenerator, LlamaServer, ServerSettings, _aligned

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(speaker):
    with LlamaServer(speaker, ServerSettings(context=256, slots=2, threads=1)) as served:
        yield served


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_template_tokens_and_answer(server):
    prompt = server.apply_template(HELLO)
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ids = server.tokenize(prompt)
    assert ids[0] == 257
    assert ids.count(258) == 1
    assert server.detokenize(ids) == prompt
    by_text, by_ids = server.complete(prompt, 12, top=3), server.complete(ids, 12, top=3)
    assert by_text.tokens == by_ids.tokens
    assert by_text.prompt_tokens == len(ids)
    first = by_text.choices[0]
    assert first is not None
    assert first.token == by_text.tokens[0] == first.top[0][0]
    assert len(first.top) == 3
    assert first.top[0][1] >= first.top[1][1]


def test_end_tokens_end_an_answer_and_are_not_part_of_it(server):
    ended = server.complete(server.tokenize("a"), 8, bias=[(258, 1e4)])
    assert (ended.text, ended.tokens, ended.stopped) == ("", (), True)
    cut = server.complete(server.tokenize("a"), 3, bias=[(258, -1e4), (256, -1e4)])
    assert len(cut.tokens) == 3
    assert not cut.stopped


def test_likelihoods_of_given_tokens_are_those_before_any_bias(server):
    ids = server.tokenize("hello")
    told = dict(server.complete(ids, 1, top=200).choices[0].top)
    likely = [token for token in told if token < 94][:3]  # a byte that is a letter of its own
    for token in likely:
        assert server.nats_of(ids, [token]) == [pytest.approx(-told[token], abs=1e-4)]
    answer = [*server.tokenize("boat"), 258]  # and the end token
    found = server.nats_of(ids, answer)
    assert len(found) == len(answer)
    for place, nats in enumerate(found):
        plain = dict(server.complete([*ids, *answer[:place]], 1, top=259).choices[0].top)
        assert nats == pytest.approx(-plain[answer[place]], abs=1e-4)


def test_generator_keeps_order_over_slots(server):
    chats = [[{"role": "user", "content": str(n)}] for n in range(6)]
    generator, told = GgufGenerator(server, "gguf:F16"), []
    together = generator.generate(chats, max_new_tokens=5, progress=lambda *step: told.append(step))
    assert together == [generator.generate([chat], max_new_tokens=5)[0] for chat in chats]
    assert told == [(n, 6) for n in range(1, 7)]
    assert len(generator.weights_digest) == 64
    assert generator.tokens_per_second > 0


def test_chat_streams_pieces(server):
    pieces = list(server.chat(HELLO, max_tokens=6, temperature=0, logit_bias=[[258, -1e4], [256, -1e4]]))
    assert "".join(pieces)


def test_refusals_are_in_words(server):
    with pytest.raises(UsageError, match="context size") as caught:
        server.complete("a" * 600, 5)
    assert "larger context" in caught.value.hint
    with pytest.raises(UsageError):
        server.request("/completion", {"prompt": {"nonsense": 1}})
    stranger = LlamaServer(server.model, api_key="wrong")
    stranger.url = server.url
    with pytest.raises(UsageError, match="refused the key"):
        stranger.tokenize("a")


def test_key_and_memory(server):
    assert server.url.startswith("http://127.0.0.1:")
    command = " ".join(psutil.Process(server.pid).cmdline())
    assert server.api_key not in command
    assert server.peak_memory() > 10e6


def test_a_torn_file_never_reaches_the_runtime(speaker, tmp_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(speaker.read_bytes()[:-4096])
    with pytest.raises(FileProblem, match="cut off"):
        LlamaServer(torn).start()


def test_a_model_that_does_not_load_is_an_error_with_the_log(write_speaker):
    strange = write_speaker(**{"tokenizer.ggml.pre": "nobody-knows-this"})
    with pytest.raises(ToolchainError, match="does not load") as caught:
        LlamaServer(strange).start()
    assert "nobody-knows-this" in caught.value.hint


def test_a_model_that_loads_for_ever_is_given_up(speaker):
    begun = time.monotonic()
    with pytest.raises(ToolchainError, match="not loaded within 0 s"):
        LlamaServer(speaker, start_timeout=0.01).start()
    assert time.monotonic() - begun < 20


def test_a_server_that_dies_is_noticed(speaker):
    server = LlamaServer(speaker, ServerSettings(context=128, threads=1))
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Unreachable, match="died"):
        server.complete("a", 3)
    server.close()
    server.close()


def test_close_does_not_wait_for_a_frozen_server(speaker):
    server = LlamaServer(speaker, ServerSettings(context=128, threads=1))
    server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 10
    assert gone(pid)


def test_a_server_ends_when_its_owner_is_killed(speaker):
    code = (
        "import sys, time; from pathlib import Path; from luthier.llamacpp.runtime import *\n"
        f"s = LlamaServer(Path({str(speaker)!r}), ServerSettings(context=128, threads=1)); s.start()\n"
        "print(s.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until = time.monotonic() + 20
    while not gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert gone(pid)


def test_reports_are_laid_beside_their_tokens():
    def report(token):
        return Choice(token, -1.0, ())

    a, b, c = report(1), report(2), report(3)
    assert _aligned([1, 2, 3], [a, b, c]) == (a, b, c)
    assert _aligned([1, 9, 3], [a, c]) == (a, None, c)
    assert _aligned([9, 2, 3], [b, c]) == (None, b, c)
    assert _aligned([1, 2, 9], [a, b]) == (a, b, None)
    assert _aligned([9, 8], []) == (None, None)
