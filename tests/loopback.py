"""HTTP servers that tests run on the loopback: JSON in, JSON out, bodies whole or in pieces."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """A handler that says nothing of its own."""

    server: Any

    def body(self) -> bytes:
        """The request's body, chunked or not."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON, or with nothing where there is no body."""
        raw = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def listening(handler: type[JsonHandler], **state: Any) -> Iterator[Any]:
    """A server with that state as attributes, and its ``address`` (``http://127.0.0.1:PORT``)."""
    httpd: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.address = f"http://127.0.0.1:{httpd.server_port}"
    for name, value in state.items():
        setattr(httpd, name, value)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
