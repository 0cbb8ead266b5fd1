"""Log-probabilities from a served model, where it tells those of a prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from luthier.errors import Unsupported
from luthier.serving.endpoint import Endpoint


class Server(BaseHTTPRequestHandler):
    echoes = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told: dict[str, Any] | None = None
        if self.echoes:
            # Tokens are words with the space before them; "Rome" is less likely than its neighbour.
            words = body["prompt"].split(" ")
            tokens = [words[0], *(f" {word}" for word in words[1:]), "!"]
            starts = [sum(map(len, tokens[:n])) for n in range(len(tokens))]
            logs = [None, *(-3.0 if "Rome" in token else -0.5 for token in tokens[1:])]
            tops = [None, *({"x": -0.5} for _ in tokens[1:])]
            told = {"tokens": tokens, "text_offset": starts, "token_logprobs": logs, "top_logprobs": tops}
        answer = json.dumps({"choices": [{"text": "", "logprobs": told}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class Mute(Server):
    echoes = False


def served(handler: type[Server]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


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
