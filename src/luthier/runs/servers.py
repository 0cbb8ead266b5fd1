"""Servers of models that outlive whoever started them: one directory each, which is the truth.

``wish.json`` (what was asked), ``status.json`` (replaced atomically), ``key`` (mode 0600),
``requests.jsonl`` (appended), ``log.txt``. The process is named as a run's worker is, so that one which
died is told from one that lives, also after a restart of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from luthier.errors import FileProblem, LuthierError, UsageError, did_you_mean
from luthier.files import write_text
from luthier.runs.directory import runs_root
from luthier.runs.process import alive, torch_environment
from luthier.schema.run import Failure
from luthier.schema.server import RequestNote, ServerStatus, ServerWish

UP = frozenset({"loading", "ready", "stopping"})
"""States in which there should be a process."""
NOTES_BYTES = 4 << 20
"""Size at which the log of requests begins anew; the last one is kept beside it."""
GRACE = 40.0
"""Seconds that a server has to end its answers and its models before it is killed."""


def servers_root() -> Path:
    """Where servers stand: ``LUTHIER_SERVERS``, else ``servers`` beside the runs."""
    own = os.environ.get("LUTHIER_SERVERS")
    return Path(own).expanduser().absolute() if own else runs_root().parent / "servers"


class ServerDirectory:
    """Reads and writes one server's files. Holds no state of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The server's name among its siblings."""
        return self.path.name

    @property
    def wish(self) -> ServerWish:
        """What was asked for."""
        return ServerWish.model_validate_json((self.path / "wish.json").read_text(encoding="utf-8"))

    @property
    def status(self) -> ServerStatus:
        """The state as last written; one whose process is gone is lost, and written so.

        Errors: FileProblem where there is none.
        """
        found = self._read()
        if found.state not in UP or alive(found.worker):
            return found
        if found.worker is None and time.time() - found.created < 60:
            return found  # its process has not written its name yet
        found = self._read()  # it may have ended well between the two looks
        if found.state in UP:
            found = found.model_copy(update={"state": "lost", "ended": time.time()})
            self.set_status(found)
        return found

    def _read(self) -> ServerStatus:
        try:
            return ServerStatus.model_validate_json((self.path / "status.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError) as error:
            raise FileProblem("no readable status.json there: not a server", file=self.path) from error

    def set_status(self, status: ServerStatus) -> None:
        """Replace the state."""
        write_text(self.path / "status.json", status.model_dump_json(indent=1) + "\n")

    @property
    def key(self) -> str:
        """What a request must bear."""
        return (self.path / "key").read_text(encoding="ascii").strip()

    def note(self, one: RequestNote) -> None:
        """Append a request to the log, in one write."""
        path = self.path / "requests.jsonl"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > NOTES_BYTES:
                path.replace(path.with_suffix(".1.jsonl"))
        with path.open("ab", buffering=0) as file:
            file.write((one.model_dump_json() + "\n").encode())

    def requests(self, most: int = 50) -> list[RequestNote]:
        """The last requests, newest first."""
        try:
            with (self.path / "requests.jsonl").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - most * 400))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        found: list[RequestNote] = []
        for line in reversed(lines):
            with contextlib.suppress(ValidationError):  # the first one may be cut
                found.append(RequestNote.model_validate_json(line))
        return found[:most]

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of what its process said."""
        try:
            text = (self.path / "log.txt").read_bytes()[-32_768:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def memory(self) -> int | None:
        """Resident bytes of its process and all its children now; None where it does not run."""
        worker = self._read().worker
        if worker is None or not alive(worker):
            return None
        total = 0
        try:
            process = psutil.Process(worker.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_info().rss
        except psutil.Error:
            return None
        return total


EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
    "embed": ("/v1/embeddings", {"input": ["a text", "another"]}),
    "rerank": ("/v1/rerank", {"query": "a question", "documents": ["a text", "another"]}),
    "classify": ("/v1/classify", {"input": ["a text"]}),
}
"""Kind of model -> path, and a body to try it with."""


def example(name: str, kind: str) -> tuple[str, str]:
    """A path and a body to try a model with."""
    path, body = EXAMPLES[kind]
    return path, json.dumps({"model": name, **body})


def list_servers() -> list[ServerDirectory]:
    """All servers, newest first."""
    found = [ServerDirectory(path.parent) for path in servers_root().glob("*/status.json")]
    return sorted(found, key=lambda one: (one._read().created, one.id), reverse=True)


def find_server(name: str) -> ServerDirectory:
    """A server by id. Errors: UsageError with the nearest."""
    path = servers_root() / name
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", name) and (path / "status.json").is_file():
        return ServerDirectory(path)
    near = did_you_mean(name, [one.id for one in list_servers()])
    raise UsageError(f"there is no server {name!r}", hint=near)


def make_server(wish: ServerWish, *, key: str | None = None) -> ServerDirectory:
    """A new server's directory, nothing started yet. key: what requests must bear; made up where None."""
    root = servers_root()
    words = (*wish.models, *wish.adapters)
    stem = Path((words[0] if words else "latest").rpartition("=")[2]).name
    stem = re.sub(r"[^A-Za-z0-9]+", "-", stem.removesuffix(".gguf")).strip("-").lower()[:40] or "server"
    name = f"{stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path, tries = root / name, 1
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            tries += 1
            path = root / f"{name}-{tries}"
    made = ServerDirectory(path)
    # Nobody else reads it, not even between making and writing it.
    with os.fdopen(os.open(path / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write((key or f"lut-{secrets.token_urlsafe(24)}") + "\n")
    write_text(path / "wish.json", wish.model_dump_json(indent=1) + "\n")
    made.set_status(ServerStatus(state="loading", created=time.time()))
    return made


def start_server(wish: ServerWish) -> ServerDirectory:
    """Start a server in a session of its own, and return at once; its status says when it is ready."""
    made = make_server(wish)
    with (made.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "luthier.runs.server_worker", str(made.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**torch_environment(), "HF_HUB_OFFLINE": "1"},
        )
    # Whoever starts it may live long: a server that ended would stay in its table of processes.
    threading.Thread(target=child.wait, name=f"end of {made.id}", daemon=True).start()
    return made


def stop_server(server: ServerDirectory, *, patience: float = GRACE) -> None:
    """Ask a server to end, wait until it has, and kill it and its models where it does not."""
    status = server.status
    worker = status.worker
    if status.state not in UP or worker is None:
        return
    server.set_status(status.model_copy(update={"state": "stopping"}))
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGTERM)
    until = time.monotonic() + patience
    while alive(worker):
        if time.monotonic() > until:
            _kill_tree(worker.pid)
        time.sleep(0.05)
    ended = server._read()
    if ended.state in UP:
        server.set_status(ended.model_copy(update={"state": "stopped", "ended": time.time()}))


def _kill_tree(pid: int) -> None:
    """End a process and its children: models run in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def forget_server(server: ServerDirectory) -> None:
    """Delete the directory of a server that has ended. Errors: UsageError while it runs."""
    if server.status.state in UP:
        raise UsageError(f"{server.id} is still running", hint="stop it first")
    shutil.rmtree(server.path)


def keep_status(server: ServerDirectory) -> Callable[..., None]:
    """A function that changes fields of a server's status; for its own process."""

    def keep(**changes: object) -> None:
        server.set_status(server._read().model_copy(update=changes))

    return keep


def failure_of(error: LuthierError) -> Failure:
    """Why a server could not be started, as a record."""
    return Failure(
        kind=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code
    )
