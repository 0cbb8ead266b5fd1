"""An OpenAI-compatible endpoint on the loopback, whose answers a test decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from loopback import JsonHandler, listening


def loud(body: dict[str, Any]) -> str:
    """The last message in capitals."""
    return str(body["messages"][-1]["content"]).upper()


class _Fake(JsonHandler):
    """Answers by the server's ``words``; the first ``busy`` requests find it busy."""

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        self.server.bodies.append(body)
        if len(self.server.bodies) <= self.server.busy:
            return self.answer(429, {"error": {"message": "busy"}})
        if body["model"] not in self.server.names:
            return self.answer(404, {"error": {"message": "no such model"}})
        content = self.server.words(body)
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        return self.answer(200, {"choices": [choice], "usage": usage})


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], str] = loud, *, busy: int = 2) -> Iterator[Any]:
    """The server: ``address``, ``names`` of its models, ``bodies`` of all requests."""
    with listening(_Fake, names=["loud"], bodies=[], words=answer, busy=busy) as httpd:
        httpd.address += "/v1"
        yield httpd
