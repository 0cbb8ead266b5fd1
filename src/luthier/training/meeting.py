"""Where machines that train together meet: a store of torch's at one address, kept by the first of them."""

from __future__ import annotations

import datetime
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from luthier.errors import TrainingError, UsageError
from luthier.schema.base import Record
from luthier.schema.nodes import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

ANSWER = datetime.timedelta(seconds=60)
"""How long the store may be silent before its keeper is taken for dead."""
TRY_AGAIN = 1.0


class NoMeeting(TrainingError):
    """The store cannot be reached, or its keeper has gone."""


class Meeting:
    """A store with one text a key. Use as a context manager. Every call raises NoMeeting when it is gone."""

    def __init__(self, place: Place, *, keeper: bool, patience: float) -> None:
        """Keep the store, or reach it within so many seconds. Errors: NoMeeting, UsageError (used port)."""
        from torch._C._distributed_c10d import PrefixStore

        self.place = place
        self._store: Store | None = PrefixStore(place.key, _reached(place, keeper, patience))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None

    def say(self, key: str, record: Record) -> None:
        """Write a record under a key, for all."""
        self.put(key, record.model_dump_json())

    def put(self, key: str, text: str) -> None:
        """Write a text under a key, for all."""
        assert self._store is not None
        try:
            self._store.set(key, text)
        except RuntimeError as error:
            raise self._gone(error) from error

    def heard(self, key: str) -> str | None:
        """What stands under a key; None where nothing does yet."""
        assert self._store is not None
        try:
            return self._store.get(key).decode() if self._store.check([key]) else None
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: RuntimeError) -> NoMeeting:
        return NoMeeting(
            f"the first machine no longer answers at {self.place.address} ({_first_line(error)})",
            hint="see what it says there; start the same command again on all machines to go on from the "
            "last checkpoint",
        )


def _reached(place: Place, keeper: bool, patience: float) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    until = time.monotonic() + patience
    keeper = keeper and not place.hosted
    while True:
        left = max(1.0, until - time.monotonic())
        wait = ANSWER if keeper else datetime.timedelta(seconds=left)
        try:
            store = TCPStore(place.host, place.port, is_master=keeper, timeout=wait, wait_for_workers=False)
            store.set_timeout(ANSWER)
        except (RuntimeError, ValueError) as error:
            if keeper:
                raise UsageError(
                    f"the machines cannot meet at {place.address}: {_first_line(error)}",
                    hint="name an address of this machine and a port that is free here: "
                    "--rendezvous HOST:PORT, the same on all machines",
                ) from None
            if time.monotonic() < until:
                time.sleep(TRY_AGAIN)
                continue
            raise NoMeeting(
                f"nobody answered at {place.address} within {patience:.0f} s",
                hint="start the first machine (--node-rank 0) with the same --rendezvous; the port must be "
                "open between the machines; LUTHIER_PATIENCE gives more seconds",
            ) from None
        return store


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
