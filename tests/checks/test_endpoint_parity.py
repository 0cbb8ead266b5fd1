"""A deployment that reads or answers otherwise than the exported file is found, and told apart."""

import pytest

from luthier.checks.endpoint_parity import Said, check_endpoint
from luthier.checks.parity_prompts import PromptCase
from luthier.llamacpp.runtime import GREEDY, LlamaServer, ServerSettings

CASES = [
    PromptCase("short", [{"role": "user", "content": "How much is the old boat?"}]),
    PromptCase("other", [{"role": "user", "content": "Is the baker in the garden?"}]),
]


@pytest.fixture(scope="module")
def server(converted):
    with LlamaServer(converted("llama"), ServerSettings(context=512, threads=1)) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer(reference):
    return reference("llama").tokenizer


def asking(server, **changes):
    """The server's own chat, with something changed on the way."""

    def ask(messages, tools, most):
        body = {"messages": [*changes.get("before", ()), *messages], "max_tokens": most, **GREEDY}
        answer = server.request("/v1/chat/completions", body)
        choice, count = answer["choices"][0], answer["usage"]["prompt_tokens"]
        text = changes.get("text", choice["message"].get("content") or "")
        stopped = changes.get("stopped", choice["finish_reason"] != "length")
        return Said(text, stopped, None if changes.get("silent") else count)

    return ask


def test_the_same_file_with_the_same_template_agrees(tokenizer, server):
    seen = []
    found = check_endpoint(
        tokenizer, CASES, server, asking(server), progress=lambda done, total: seen.append((done, total))
    )
    assert found.passed, found.problems
    assert found.equal_token_ids == found.prompts == 2
    assert found.equal_tokens == found.compared_tokens
    assert seen == [(1, 2), (2, 2)]


def test_a_system_prompt_that_the_deployment_adds_is_found(tokenizer, server):
    before = [{"role": "system", "content": "Be brief."}]
    found = check_endpoint(tokenizer, CASES, server, asking(server, before=before))
    assert not found.passed
    assert found.equal_token_ids == 0
    assert "short: the endpoint reads" in found.problems[0]
    assert "probable cause: the chat template or a system prompt" in found.problems[0]


class Decided:
    """A file whose leads are large, so that its whole answer counts."""

    def __init__(self, server, text, *, stopped=True):
        self.server, self.text, self.stopped = server, text, stopped

    def complete(self, ids, most, *, top=0):
        from luthier.llamacpp.runtime import Choice, Completion

        tokens = tuple(self.server.tokenize(self.text, add_special=False))
        sure = tuple(Choice(token, -0.01, ((token, -0.01), (0, -6.0))) for token in tokens)
        return Completion(self.text, tokens, self.stopped, sure)

    def __getattr__(self, name):
        return getattr(self.server, name)


def test_another_answer_and_a_lost_stop_are_told_apart(tokenizer, server):
    file = Decided(server, "The old boat")
    same = check_endpoint(tokenizer, CASES, file, asking(server, text="The old boat", stopped=True))
    assert same.passed, same.problems
    assert same.equal_tokens == same.compared_tokens > 0
    other = check_endpoint(tokenizer, CASES, file, asking(server, text="The old house", stopped=True))
    assert not other.passed
    assert "character 8 of the answer: 'boat' in the file, 'house' from the endpoint" in other.problems[0]
    assert other.equal_tokens == 0
    endless = check_endpoint(tokenizer, CASES, file, asking(server, text="The old boat is", stopped=False))
    assert not endless.stops
    assert "probable cause: missing EOS" in endless.problems[0]


def test_an_endpoint_that_counts_no_tokens_is_held_by_its_answers(tokenizer, server):
    found = check_endpoint(tokenizer, CASES, server, asking(server, silent=True))
    assert found.passed, found.problems
    before = [{"role": "system", "content": "Be brief."}]
    cached = check_endpoint(
        tokenizer,
        CASES,
        Decided(server, "The"),
        asking(server, before=before, text="The", stopped=True),
        counts=False,
    )
    assert cached.passed, cached.problems
