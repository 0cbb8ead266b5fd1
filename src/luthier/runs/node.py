"""A machine that takes part in another one's run. ``python -m luthier.runs.node WORDS`` (`runs.nodes.join`).

It comes to the meeting, makes ready what it is told, starts its processes at the word, and ends with the
training. What it has to say are JSON lines on standard output: ``{"note": ...}``, at last ``{"error": ...}``
if something went wrong. The run's folder is the first machine's; this one writes into it only where a
process hands out what it goes on from, and then into a folder of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.errors import Interrupted, LuthierError
from luthier.runs.crew import (
    BEAT,
    FAILED,
    JOINED,
    LEFT,
    LOOK,
    ORDER,
    OVER,
    READY,
    START,
    STOP,
    as_error,
    devices_here,
    folder_is_shared,
    trouble_of,
)
from luthier.runs.directory import RunDirectory, runs_root
from luthier.runs.nodes import patience
from luthier.runs.ranks import Ranks, hear
from luthier.runs.scratch import bring_model
from luthier.schema.load import dump_recipe, load_recipe, recipe_from, recipe_values
from luthier.schema.nodes import Joined, Order, Place, Start, Trouble
from luthier.schema.recipe import Recipe
from luthier.training.meeting import Meeting, NoMeeting
from luthier.version import __version__

BEATS = 5.0
"""Seconds between two signs of life."""
Tell = Callable[..., None]


class _Guest:
    """One machine at the meeting, as it sees itself."""

    def __init__(self, place: Place, meeting: Meeting, tell: Tell) -> None:
        self.place, self.meeting, self.tell = place, meeting, tell
        self.stopping = False
        self._over = threading.Event()
        self._gone: LuthierError | None = None
        self._parent = os.getppid()
        self._beat = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def come(self, accelerators: tuple[str, ...]) -> None:
        """Say that this machine is here."""
        me = Joined(
            node=self.place.rank, host=socket.gethostname(), version=__version__, accelerators=accelerators
        )
        self.meeting.say(f"{JOINED}{self.place.rank}", me)
        self._beat.start()

    def wait(self, key: str) -> str | None:
        """What is said under a key; None where it is over before that. Errors: what went wrong elsewhere."""
        while True:
            if (trouble := self.trouble()) is not None:
                raise trouble
            if (words := self.meeting.heard(key)) is not None:
                return words
            if (over := self.meeting.heard(OVER)) is not None:
                if over == "stopped":
                    raise Interrupted("the run was stopped")
                return None
            time.sleep(LOOK)

    def trouble(self) -> LuthierError | None:
        """What has gone wrong on another machine, or between them."""
        if self._gone is not None:
            return self._gone
        try:
            words = self.meeting.heard(FAILED)
        except NoMeeting as error:
            return error
        if words is None:
            return None
        found = Trouble.model_validate_json(words)
        return None if found.node == self.place.rank else as_error(found)

    def ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM and SIGINT: the first machine saves, then all end."""
        self.stopping = True  # said by the heartbeat: a signal may come in the middle of a talk

    def leave(self) -> None:
        """Say goodbye."""
        self._over.set()
        with contextlib.suppress(LuthierError):
            self.meeting.put(f"{LEFT}{self.place.rank}", "")

    def _beat_on(self) -> None:
        count, said, last = 0, False, 0.0
        while not self._over.wait(LOOK):
            try:
                if (self.stopping or os.getppid() != self._parent) and not said:
                    self.meeting.put(STOP, str(self.place.rank))
                    said = True
                if time.monotonic() - last > BEATS:
                    count, last = count + 1, time.monotonic()
                    self.meeting.put(f"{BEAT}{self.place.rank}", str(count))
            except NoMeeting as error:
                self._gone = error
                return


def take_part(words: dict[str, Any], tell: Tell) -> None:
    """Take part until the training is over. Errors: what went wrong here, or on another machine."""
    place = Place.model_validate(words["place"])
    tell(note=f"machine {place.rank} of {place.nodes}: going to {place.address}")
    with Meeting(place, keeper=False, patience=patience()) as meeting:
        guest = _Guest(place, meeting, tell)
        signal.signal(signal.SIGTERM, guest.ask_to_stop)
        signal.signal(signal.SIGINT, guest.ask_to_stop)
        try:
            guest.come(devices_here(place))
            _train(guest, words)
        except Interrupted:
            raise
        except LuthierError as error:
            if guest.trouble() is None:
                meeting.say(FAILED, trouble_of(error, place.rank))
            raise
        finally:
            guest.leave()


def _train(guest: _Guest, words: dict[str, Any]) -> None:
    place = guest.place
    if (said := guest.wait(ORDER)) is None:
        guest.tell(note="nothing is left to train")
        return
    order = Order.model_validate_json(said)
    guest.tell(note=f"taking part in {order.run}")
    with _folder(order, words, guest) as run:
        guest.meeting.put(f"{READY}{place.rank}", "")
        if (said := guest.wait(START)) is None:
            guest.tell(note="nothing is left to train")
            return
        start = Start.model_validate_json(said)
        shared = str(run.path) == order.path
        ranks = Ranks(place.rank * place.devices, place.devices, start.size, start.address, guest=not shared)
        hear(run, start.digest, ranks, on_metrics=lambda _values: None, watch=guest.trouble)
        if guest.wait(OVER) is not None:
            guest.tell(note=f"the training of {order.run} is done")


@contextmanager
def _folder(order: Order, words: dict[str, Any], guest: _Guest) -> Iterator[RunDirectory]:
    """The run's own folder where this machine reads it, else one with what its processes need."""
    recipe = _local_recipe(order, words)
    path = str(order.model.get("path", ""))
    here = (Path(path) / "config.json").is_file()
    if folder_is_shared(order) and here and dump_recipe(recipe) == order.recipe:
        guest.tell(note=f"the run's folder is shared: {order.path}")
        yield RunDirectory(Path(order.path))
        return
    if not here:
        say = lambda text: guest.tell(note=text)  # noqa: E731 (one expression)
        path = str(bring_model(recipe, say=say, offline=bool(words["offline"])).path)
    folder = runs_root() / ".guests" / f"{order.run}-{guest.place.rank}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        run = RunDirectory(folder)
        (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        run.save_stage("model", "", {**order.model, "path": path})
        run.save_stage("env", "", order.env)
        yield run
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _local_recipe(order: Order, words: dict[str, Any]) -> Recipe:
    """The first machine's resolved recipe, with this one's paths where that one's lead nowhere here."""
    recipe = recipe_from(recipe_values(order.recipe))
    data, model = recipe.data, recipe.model
    if words["recipe"] is None:
        return recipe
    own = load_recipe(Path(words["recipe"]), tuple(words["overrides"]))
    if not all(map(_is_here, (*data.train, *data.validation, *(f for fs in data.test.values() for f in fs)))):
        paths = {name: getattr(own.data, name) for name in ("train", "validation", "test")}
        recipe = recipe.model_copy(update={"data": data.model_copy(update=paths)})
    if Path(model.id).is_absolute() and not Path(model.id).is_dir():
        recipe = recipe.model_copy(update={"model": model.model_copy(update={"id": own.model.id})})
    return recipe


def _is_here(source: str) -> bool:
    return source.startswith("hub:") or Path(source).exists() or any(Path("/").glob(source.lstrip("/")))


def main() -> int:
    """Entry of the process. Returns its exit code."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print must not come between the lines
    os.dup2(2, 1)
    with out:

        def tell(**values: Any) -> None:
            with contextlib.suppress(BrokenPipeError):
                out.write(json.dumps(values) + "\n")
                out.flush()

        try:
            take_part(json.loads(sys.argv[1]), tell)
        except Interrupted:
            return Interrupted.exit_code
        except LuthierError as error:
            tell(error={"kind": type(error).__name__, "message": str(error), "hint": error.hint})
            return error.exit_code
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
