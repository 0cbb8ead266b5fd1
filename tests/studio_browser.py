"""A studio as it is started by hand, and Chromium to look at it: helper of tests/studio/browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from luthier.studio.access import Access

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
]


class Server:
    """A studio in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.process: subprocess.Popen[str] | None = None
        self.environment = {
            **os.environ,
            "LUTHIER_RUNS": str(folder / "runs"),
            "LUTHIER_STUDIO": str(folder / "studio"),
            "LUTHIER_SERVERS": str(folder / "servers"),
            "LUTHIER_REGISTRY": str(folder / "registry"),
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, at the port that it had before if it had one."""
        words = [sys.executable, "-m", "luthier", "studio", "--json", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, text=True, env=self.environment
            )
        assert self.process.stdout is not None
        told = ""
        while not told.rstrip().endswith("}"):
            line = self.process.stdout.readline()
            assert line, (self.folder / "server.log").read_text()
            told += line
        self.port = json.loads(told)["port"]
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the studio does not answer")

    def link(self) -> str:
        """A login link."""
        return f"{self.url}/login#t={Access(self.folder / 'studio').login_code()}"

    def memory(self) -> int:
        """Resident bytes of the server."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self._reap()

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self._reap()

    def _reap(self) -> None:
        assert self.process is not None
        self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


LEFT = "WebSocket is closed before the connection is established"
"""What Chromium says of a page that is left while it still connects, as happens on a busy machine."""


class Watch:
    """What a page asks for and complains about."""

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning") and LEFT not in message.text:
            self.complaints.append(message.text)

    def __init__(self, page: Any, own: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.bytes = 0
        page.on("console", self._said)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((own, "data:")) else self.foreign.append(r.url))


def logged_in(chromium: Any, server: Server, *, theme: str = "light", phone: bool = False) -> Any:
    """A page of a browser of its own, logged in by a link."""
    size = {"width": 390, "height": 844} if phone else {"width": 1360, "height": 900}
    context = chromium.new_context(viewport=size, color_scheme=theme)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(server.link())
    page.wait_for_url(f"{server.url}/")
    page.watch = Watch(page, server.url)
    return page
