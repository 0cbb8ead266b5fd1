"""Log-probabilities from a served model, where it tells those of a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from loopback import JsonHandler, listening
from luthier.errors import Unsupported
from luthier.serving.endpoint import Endpoint


class Server(JsonHandler):
    echoes = True

    def do_POST(self) -> None:
        body = json.loads(self.body())
        told: dict[str, Any] | None = None
        if self.echoes:
            # Tokens are words with the space before them; "Rome" is less likely than its neighbour.
            words = body["prompt"].split(" ")
            tokens = [words[0], *(f" {word}" for word in words[1:]), "!"]
            starts = [sum(map(len, tokens[:n])) for n in range(len(tokens))]
            logs = [None, *(-3.0 if "Rome" in token else -0.5 for token in tokens[1:])]
            tops = [None, *({"x": -0.5} for _ in tokens[1:])]
            told = {"tokens": tokens, "text_offset": starts, "token_logprobs": logs, "top_logprobs": tops}
        said = f"after {body['prompt']}" if not body.get("echo") else ""
        self.answer(200, {"choices": [{"text": said, "logprobs": told, "finish_reason": "length"}]})


class Mute(Server):
    echoes = False


def served(handler: type[Server]) -> Iterator[str]:
    with listening(handler) as server:
        yield f"{server.address}/v1"


def text_of(message: dict[str, Any]) -> str:
    return str(message["content"])


def test_only_the_continuation_counts() -> None:
    for address in served(Server):
        with Endpoint(address, text_of=text_of, model="m") as endpoint:
            rome, paris = endpoint.score([("Capital of Italy: ", "Rome then"), ("Capital:", " Paris")])
        assert (rome.nats, rome.tokens, rome.greedy) == (-3.5, 2, False)
        assert (paris.nats, paris.tokens, paris.greedy) == (-0.5, 1, True)


def test_a_server_that_tells_none_is_unsupported() -> None:
    for address in served(Mute):
        with (
            Endpoint(address, text_of=text_of, model="m") as endpoint,
            pytest.raises(Unsupported, match="no log-probabilities of a prompt"),
        ):
            endpoint.score([("a", " b")])


def test_a_plain_text_is_gone_on_with_without_a_template() -> None:
    with listening(Server) as server, Endpoint(f"{server.address}/v1", text_of=str, model="m") as endpoint:
        [found] = endpoint.generate([[{"role": "text", "content": "def f(x):"}]], max_new_tokens=4)
    assert (found.text, found.stopped) == ("after def f(x):", False)
