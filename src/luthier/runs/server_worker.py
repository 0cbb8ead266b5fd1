"""The process of one server: loads its models, answers, ends when asked or when nobody asks any more.

``python -m luthier.runs.server_worker SERVER_DIR``
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from luthier.errors import LuthierError
from luthier.runs.directory import runs_root
from luthier.runs.process import identity
from luthier.runs.queue import Queue
from luthier.runs.served import Choice, build, choose, choose_adapters
from luthier.runs.servers import ServerDirectory, failure_of, keep_status, make_server
from luthier.schema.deployment import ContextPlan
from luthier.schema.queue import Lease
from luthier.schema.run import Failure
from luthier.schema.server import RequestNote, ServedModel, ServerWish
from luthier.serving.gateway import Gateway, LogEntry, Served
from luthier.serving.listen import open_port, rules_for, serve

TORCH = 600_000_000
"""Bytes that torch itself takes in the process of a model that is not GGUF."""


def describe(
    served: Mapping[str, Served], chosen: Sequence[Choice], plans: Mapping[str, ContextPlan]
) -> tuple[ServedModel, ...]:
    """What stands behind each name, for the status."""
    kinds = {name: one.kind for one in chosen for name in one.names}
    owner = {name: one.name for one in chosen for name in one.names}
    return tuple(
        ServedModel(
            name=name,
            kind=kinds[name],
            weights=one.backend.weights,
            facts=_plain(one.facts),
            plan=plans.get(owner[name]),
        )
        for name, one in served.items()
    )


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, (int, float)) else str(value) for key, value in facts.items()}


def _take_lease(server: ServerDirectory, chosen: Sequence[Choice], plans: Mapping[str, ContextPlan]) -> None:
    """Tell the queue what memory the models hold. Given back by itself: a dead process's counts no more."""
    held = sum(plan.total for plan in plans.values()) + sum(
        sum(file.stat().st_size for file in one.path.rglob("*.safetensors")) + TORCH
        for one in chosen
        if one.kind != "chat"
    )
    kind: Literal["serve", "chat"] = "serve" if server.wish.purpose == "serve" else "chat"
    Queue(runs_root()).lease(Lease(name=server.id, kind=kind, bytes=held, worker=identity()))


def noting(server: ServerDirectory) -> Callable[[LogEntry], None]:
    """What a gateway tells of its requests, kept in the server's directory."""

    def note(entry: LogEntry) -> None:
        server.note(
            RequestNote(
                at=entry.at,
                model=entry.model,
                path=entry.path,
                status=entry.status,
                seconds=round(entry.seconds, 4),
            )
        )

    return note


@contextmanager
def announced(
    wish: ServerWish,
    served: Mapping[str, Served],
    chosen: Sequence[Choice],
    plans: Mapping[str, ContextPlan],
    *,
    url: str,
    key: str | None,
) -> Iterator[tuple[Callable[[LogEntry], None], Callable[[], None]]]:
    """List a server of this very process among the others while it runs; it leaves nothing behind.

    Yields what to tell of each request, and of its being ready. Where no run was ever made there is
    nobody to list it for, and nothing is written.
    """
    if not runs_root().is_dir():
        yield lambda _entry: None, lambda: None
        return
    server = make_server(wish, key=key)
    keep = keep_status(server)
    try:
        keep(worker=identity(), models=describe(served, chosen, plans), url=url)
        _take_lease(server, chosen, plans)
        yield noting(server), lambda: keep(state="ready", ready=time.time())
    finally:
        shutil.rmtree(server.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            server.path.parent.rmdir()  # empty, unless there are others


@contextmanager
def _ending_when_idle(seconds: float | None, gateway: Gateway) -> Iterator[None]:
    """Ask this process to stop when no request has ended for so long."""
    done = threading.Event()
    began = time.time()

    def watch() -> None:
        assert seconds is not None
        while not done.wait(min(5.0, seconds / 4)):
            last = gateway.log[-1].at if gateway.log else began
            if time.time() - last > seconds and not gateway.busy:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="idle", daemon=True)
    if seconds is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()


def work(server: ServerDirectory) -> int:
    """Serve what the directory asks for until told to stop. Returns the exit code."""
    keep = keep_status(server)
    wish = server.wish
    keep(worker=identity())

    def say(words: str) -> None:
        sys.stdout.write(words + "\n")
        sys.stdout.flush()
        keep(note=words)

    def early(_number: int, _frame: object) -> None:
        raise SystemExit(0)  # asked to stop while the models load

    signal.signal(signal.SIGTERM, early)
    try:
        rules = rules_for(wish.host, api_key=server.key)
        if wish.adapters:
            chosen = [choose_adapters(wish.models, wish.adapters, say=say)]
        else:
            chosen = [choose(words, wish.gguf) for words in wish.models]
        served, plans = build(chosen, context=wish.context, slots=wish.slots, device=wish.device)
        listener = open_port(wish.host, wish.port)
        url = f"http://{wish.host}:{listener.getsockname()[1]}"
        keep(models=describe(served, chosen, plans), url=url)
        _take_lease(server, chosen, plans)
        gateway = Gateway(served, rules=rules, on_request=noting(server))
        with _ending_when_idle(wish.idle, gateway):
            serve(gateway, listener, ready=lambda: keep(state="ready", ready=time.time()))
    except LuthierError as error:
        keep(state="failed", failure=failure_of(error), ended=time.time())
        return error.exit_code
    except Exception as error:  # a bug: its traceback goes to the log, its one line to the status
        traceback.print_exc()
        failure = Failure(
            kind=type(error).__name__,
            message=f"{type(error).__name__}: {error}",
            hint="this is a fault of Luthier; the log has its traceback",
            exit_code=1,
        )
        keep(state="failed", failure=failure, ended=time.time())
        return 1
    except SystemExit:
        keep(state="stopped", ended=time.time())
        raise
    keep(state="stopped", ended=time.time())
    return 0


def main() -> None:
    """Entry of the server's process."""
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(work(ServerDirectory(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
