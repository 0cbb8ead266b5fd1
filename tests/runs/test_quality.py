"""A file's perplexity is that of the expected answers, whichever rows can be taken apart."""

import math
from types import SimpleNamespace

import pytest

from gguf_families import made_up
from luthier.data.tokenizer import load_tokenizer
from luthier.runs import quality
from luthier.runs.quality import QualityJudge
from luthier.schema.protocols import ChatRow

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")


def row(answer):
    turns = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": answer}]
    return ChatRow(turns, "f", 1, answer)


class Served:
    """Tells one nat for each token that is asked, and nothing for every fifth."""

    def __init__(self):
        self.asked = []

    def nats_of(self, prompt, answer):
        self.asked.append((prompt, answer))
        return [None if place % 5 == 4 else 1.0 for place in range(len(answer))]


def test_perplexity_is_of_the_expected_answer_and_its_end(tmp_path, monkeypatch):
    made_up("gpt-2").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    judge = object.__new__(QualityJudge)
    judge.work = SimpleNamespace(tokenizer=tokenizer)
    prompt, answer = judge._given(row("37 crowns"))
    assert prompt == tokenizer.encode("<|turn|>user\nHow much?<|over|>\n<|turn|>assistant\n")
    assert answer == tokenizer.encode("37 crowns<|over|>")
    server = Served()
    assert quality._perplexity(server, [(prompt, answer)] * 3) == pytest.approx(math.e)
    assert server.asked == [(prompt, answer)] * 3
    monkeypatch.setattr(quality, "PERPLEXITY_TOKENS", 3)
    server = Served()
    quality._perplexity(server, [(prompt, answer)] * 3)
    assert len(server.asked) == 1
    assert quality._perplexity(server, []) is None
