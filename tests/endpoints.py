"""An OpenAI-compatible endpoint on the loopback, whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def loud(body: dict[str, Any]) -> str:
    """The last message in capitals."""
    return str(body["messages"][-1]["content"]).upper()


class _Fake(BaseHTTPRequestHandler):
    """Answers by the server's ``answer``; the first ``busy`` requests find it busy."""

    server: Any

    def reply(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if len(self.server.bodies) <= self.server.busy:
            return self.reply(429, {"error": {"message": "busy"}})
        if body["model"] not in self.server.names:
            return self.reply(404, {"error": {"message": "no such model"}})
        content = self.server.answer(body)
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        return self.reply(200, {"choices": [choice], "usage": usage})

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], str] = loud, *, busy: int = 2) -> Iterator[Any]:
    """The server: ``address``, ``names`` of its models, ``bodies`` of all requests."""
    httpd: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Fake)
    httpd.names, httpd.bodies, httpd.answer, httpd.busy = ["loud"], [], answer, busy
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    httpd.address = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
