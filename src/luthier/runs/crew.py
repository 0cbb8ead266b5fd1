"""The other machines of a run, as its worker on the first one sees them: gathered, told, watched, let go."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import Interrupted, LuthierError, TrainingError, Unsupported, UsageError
from luthier.planning.audit import audit
from luthier.runs.directory import RunDirectory
from luthier.runs.nodes import patience
from luthier.runs.process import PLACE
from luthier.runs.ranks import Ranks, go_on, told
from luthier.schema.nodes import Joined, Order, Place, Start, Trouble
from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.training.meeting import Meeting

SHARED = "machines"
"""File in the run's ``control`` folder: a machine that finds its contents there shares the disk."""
LOOK = 0.5
SILENT = 60.0
"""Seconds without a sign of life after which a machine is taken for gone."""
FAREWELL = 15.0
"""Seconds that the others have to hear that it is over."""
JOINED, ORDER, READY, START, OVER, FAILED, STOP, BEAT, LEFT = (
    "joined", "order", "ready", "start", "over", "failed", "stop", "beat", "left"
)  # fmt: skip
"""Keys of the meeting; those that each machine writes end with its number."""


def place_here() -> Place | None:
    """The place that this worker was started for; None where it is alone."""
    words = os.environ.get(PLACE)
    return None if not words else Place.model_validate_json(words)


@contextmanager
def crew_of(run: RunDirectory, say: Callable[[str], None]) -> Iterator[Crew | None]:
    """The other machines of a run while its worker works; None where it has none.

    They are let go at the end, or told why it ended. Errors: UsageError where a run of several machines was
    started on one.
    """
    place, training = place_here(), run.recipe.training
    if place is None:
        if training.nodes > 1 and run.stage_values("train") is None:
            raise UsageError(
                f"{run.id} trains on {training.nodes} machines together",
                hint=f"on each of them: luthier train --resume {run.id} --nodes {training.nodes} "
                f"--gpus {training.devices // training.nodes} --node-rank R --rendezvous HOST:PORT",
            )
        yield None
        return
    from luthier.training.meeting import Meeting

    with Meeting(place, keeper=True, patience=patience()) as meeting:
        crew = Crew(run, place, meeting, say)
        try:
            yield crew
        except BaseException as error:
            crew.close(error)
            raise
        crew.close(None)


class Crew:
    """The other machines of a run."""

    def __init__(self, run: RunDirectory, place: Place, meeting: Meeting, say: Callable[[str], None]) -> None:
        self.run, self.place, self._meeting, self._say = run, place, meeting, say
        self._trouble: LuthierError | None = None
        self._hosts: dict[int, str] = {}
        self._over = threading.Event()
        self._closed = False
        self._watch = threading.Thread(target=self._look_on, name="machines", daemon=True)

    def gather(self, order: Order, *, done: object = None) -> None:
        """Wait until all machines are here, and tell them what will be trained.

        done: what a training that is over came to: nobody is waited for then.
        Errors: TrainingError where one does not come, Unsupported where they do not fit together,
        Interrupted where a stop is asked for.
        """
        if done is not None:
            self.let_go()
            return
        accelerators = devices_here(self.place)
        others = range(1, self.place.nodes)
        self._say(f"waiting for {len(others)} more of {self.place.nodes} machines at {self.place.address}")
        until = time.monotonic() + patience()
        while missing := [node for node in others if node not in self._hosts]:
            for node in missing:
                if (words := self._meeting.heard(f"{JOINED}{node}")) is not None:
                    self._joined(Joined.model_validate_json(words), accelerators)
            if self.run.asked() == "stop":
                raise Interrupted("stopped on request", hint="start the same command again")
            if time.monotonic() > until:
                raise TrainingError(
                    f"machine {missing[0]} of {self.place.nodes} did not come to {self.place.address} within "
                    f"{patience():.0f} s",
                    hint="start the same command there with its own --node-rank; the port must be open "
                    "between the machines; LUTHIER_PATIENCE gives more seconds",
                )
            time.sleep(LOOK / 5)
        (self.run.path / "control").mkdir(exist_ok=True)
        (self.run.path / "control" / SHARED).write_text(order.token, encoding="utf-8")
        self._meeting.say(ORDER, order)
        self._watch.start()

    def _joined(self, guest: Joined, accelerators: tuple[str, ...]) -> None:
        if guest.version != __version__:
            raise Unsupported(
                f"machine {guest.node} ({guest.host}) has Luthier {guest.version}, the first {__version__}",
                hint="install the same version on all machines",
            )
        kinds = {*accelerators, *guest.accelerators}
        if len(kinds) > 1 or bool(accelerators) != bool(guest.accelerators):
            here, there = (", ".join(names) or "no GPU" for names in (accelerators, guest.accelerators))
            raise Unsupported(
                f"devices of different kinds wait for the slowest: {here} here, {there} on machine "
                f"{guest.node} ({guest.host})",
                hint="use machines of one kind; CUDA_VISIBLE_DEVICES picks devices of one",
            )
        self._hosts[guest.node] = guest.host
        self._say(f"machine {guest.node} is here: {guest.host}")

    @contextmanager
    def training(self, digest: str, size: int) -> Iterator[Ranks]:
        """Begin the training on all machines once they are ready; the part of this one."""
        if size != self.place.nodes * self.place.devices:
            raise UsageError(
                f"{self.run.id} trains on {size} devices, and {self.place.nodes} machines with "
                f"{self.place.devices} are {self.place.nodes * self.place.devices}",
                hint=f"use --nodes and --gpus whose product is {size}",
            )
        while waiting := [n for n in self._hosts if self._meeting.heard(f"{READY}{n}") is None]:
            if (trouble := self.trouble()) is not None:
                raise trouble
            if self.run.asked() == "stop":
                raise Interrupted(f"stopped while machine {waiting[0]} made ready", hint=go_on(self.run))
            time.sleep(LOOK / 5)
        with _free_port() as port:
            host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
            address = f"tcp://{host}:{port}"
        self._meeting.say(START, Start(address=address, digest=digest, size=size))
        yield Ranks(0, self.place.devices, size, address)
        self.let_go()

    def trouble(self) -> LuthierError | None:
        """What has gone wrong on another machine, if anything has."""
        return self._trouble

    def let_go(self) -> None:
        """The training is done: the other machines are free, and heard of no more."""
        if not self._over.is_set():
            self._over.set()
            self._meeting.put(OVER, "")
            self._wait_for_farewell()

    def close(self, error: BaseException | None) -> None:
        """Tell the others how it ended, unless they know."""
        if self._over.is_set():
            return
        self._over.set()
        with contextlib.suppress(LuthierError):
            if error is None:
                self._meeting.put(OVER, "")
            elif isinstance(error, Interrupted):
                self._meeting.put(OVER, "stopped")
            elif self._trouble is not error:
                self._meeting.say(FAILED, trouble_of(error, 0))
            self._wait_for_farewell()

    def _wait_for_farewell(self) -> None:
        until = time.monotonic() + FAREWELL
        while time.monotonic() < until:
            if all(self._meeting.heard(f"{LEFT}{node}") is not None for node in self._hosts):
                return
            time.sleep(LOOK / 5)

    # -- beside the work -----------------------------------------------------------------------

    def _look_on(self) -> None:
        beats = {node: ("", time.monotonic()) for node in self._hosts}
        while not self._over.wait(LOOK):
            try:
                self._look(beats)
            except LuthierError as error:
                self._trouble = self._trouble or error
                return

    def _look(self, beats: dict[int, tuple[str, float]]) -> None:
        if self._meeting.heard(STOP) is not None:
            self.run.ask("stop")
        if self._trouble is None and (words := self._meeting.heard(FAILED)) is not None:
            self._trouble = as_error(Trouble.model_validate_json(words), self.run)
        now = time.monotonic()
        for node, (before, since) in beats.items():
            beat = self._meeting.heard(f"{BEAT}{node}") or ""
            beats[node] = (beat, now if beat != before else since)
            if self._trouble is None and now - beats[node][1] > SILENT:
                self._trouble = TrainingError(
                    f"machine {node} ({self._hosts[node]}) has given no sign of life for {SILENT:.0f} s",
                    hint=f"{go_on(self.run)}, on all machines",
                )


def devices_here(place: Place) -> tuple[str, ...]:
    """Names of this machine's devices that take part; none on a CPU. Errors: UsageError for too few."""
    names = tuple(one.name for one in audit(versions=False).accelerators)
    if names and len(names) < place.devices:
        raise UsageError(
            f"machine {place.rank} has {len(names)} GPUs, and {place.devices} are to take part",
            hint=f"use --gpus {len(names)} on every machine",
        )
    return names[: place.devices]


def order_of(run: RunDirectory, data_digest: str) -> Order:
    """What the other machines must know of a run."""
    model = run.stage_values("model") or {}
    return Order(
        run=run.id,
        path=str(run.path),
        token=secrets.token_hex(16),
        recipe=(run.path / "recipe.yaml").read_text(encoding="utf-8"),
        model=model,
        env=run.stage_values("env") or {},
        data_digest=data_digest,
        kind=str(model.get("device", "cpu")).partition(":")[0],
    )


def trouble_of(error: BaseException, node: int) -> Trouble:
    """An error, for the other machines."""
    hint = error.hint if isinstance(error, LuthierError) else None
    message = str(error) or type(error).__name__
    return Trouble(
        node=node, host=socket.gethostname(), kind=type(error).__name__, message=message, hint=hint
    )


def as_error(trouble: Trouble, run: RunDirectory | None = None) -> LuthierError:
    """What went wrong on another machine, as an error of its kind."""
    hint = trouble.hint or (None if run is None else go_on(run))
    message = f"machine {trouble.node} ({trouble.host}): {trouble.message}"
    return told({"kind": trouble.kind, "message": message, "hint": hint})


def folder_is_shared(order: Order) -> bool:
    """Whether this machine reads the run's own folder."""
    with contextlib.suppress(OSError):
        return (Path(order.path) / "control" / SHARED).read_text(encoding="utf-8") == order.token
    return False


@contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as found:
        found.bind(("", 0))
        yield int(found.getsockname()[1])
