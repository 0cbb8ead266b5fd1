"""Follow a run in the terminal: a live line while it works, plain lines where nobody watches."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from rich.console import Group as RichGroup
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luthier.cli.console import duration, err, interactive, memory
from luthier.cli.story import correction_words
from luthier.runs.directory import RunDirectory, Stream
from luthier.runs.process import current_state
from luthier.schema.run import Correction, State

OVER: frozenset[State] = frozenset({"done", "stopped", "failed", "lost"})
PLAIN_EVERY = 10.0
"""Seconds between plain progress lines."""
BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 24) -> str:
    """The course of a series in one line of block characters."""
    if not values:
        return ""
    step = max(1.0, len(values) / width)
    picked = [values[min(len(values) - 1, int(i * step))] for i in range(min(width, len(values)))]
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(7, int((v - low) / span * 7.999))] for v in picked)


def _done_of(work: dict[str, Any]) -> str:
    """How far a piece of work is: 5/14, or a share where nobody counts so far (bytes of a file)."""
    done, total = work["done"], work["total"]
    return f"{done}/{total}" if total < 1_000_000 else f"{done / total:.0%}"


class Follower:
    """Reads a run's streams from where it stands and shows them."""

    def __init__(self, run: RunDirectory, on_stage: Callable[[str, str], None], *, from_start: bool) -> None:
        self.run = run
        self.on_stage = on_stage
        self._offsets: dict[Stream, int] = {"metrics": 0, "events": 0}
        if not from_start:
            for stream in self._offsets:
                for _values, offset in run.lines(stream):
                    self._offsets[stream] = offset
        self._losses: deque[float] = deque(maxlen=5000)
        self._step: dict[str, Any] = {}
        self._validation: float | None = None
        self._work: dict[str, Any] | None = None
        self._stage = ""
        self._stage_began = time.monotonic()
        self._stops = 0
        self._detached = False
        self._last_plain = 0.0

    def follow(self) -> State | None:
        """Show the run until it is over; None when the user has detached from it."""
        handlers = {signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._on_term}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            if interactive():
                with Live(console=err(), refresh_per_second=8, transient=True) as live:
                    return self._loop(live)
            return self._loop(None)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_term(self, _number: int, _frame: FrameType | None) -> None:
        """A cluster takes the machine back: what is done is saved before it goes."""
        self.run.ask("stop")

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._stops += 1
        if self._stops == 1:
            self.run.ask("stop")
            err().print("[yellow]stopping after this step and saving; Ctrl-C again to leave it to itself[/]")
        else:
            self._detached = True

    def _loop(self, live: Live | None) -> State | None:
        while True:
            state = current_state(self.run)
            moved = self._read(live)
            if live is not None:
                live.update(self._picture())
            elif moved:
                self._plain()
            if state in OVER and not self._read(live):
                return state
            if self._detached:
                err().print(f"left to itself; come back with: luthier runs show {self.run.id}")
                return None
            time.sleep(0.15)

    def _read(self, live: Live | None) -> bool:
        moved = False
        for values, offset in self.run.lines("metrics", self._offsets["metrics"]):
            self._offsets["metrics"] = offset
            moved = True
            if values.get("kind") == "validation":
                self._validation = values["loss"]
            elif values.get("kind") == "step":
                self._step = values
                self._losses.append(values["loss"])
        for values, offset in self.run.lines("events", self._offsets["events"]):
            self._offsets["events"] = offset
            moved = True
            self._event(values, live)
        return moved

    def _event(self, values: dict[str, Any], live: Live | None) -> None:
        match values["event"]:
            case "stage":
                if values["state"] == "start":
                    self._stage, self._stage_began, self._work = values["stage"], time.monotonic(), None
                else:
                    self._stage, self._work = "", None
                if live is not None:
                    live.update(Text(""))
                self.on_stage(values["stage"], values["state"])
            case "progress":
                self._work = values
            case "note":
                err().print(Text(str(values["text"]), style="dim"), soft_wrap=True)
            case "corrected":
                words = correction_words(Correction.model_validate(values, extra="ignore"))
                err().print(Text(f"  {words}", style="dim"), soft_wrap=True)
            case _:
                pass

    # -- live --------------------------------------------------------------------------------

    def _picture(self) -> RichGroup | Text:
        if self._stage == "train" and self._step:
            return self._training()
        if self._work is not None:
            row = Table.grid(padding=(0, 1))
            row.add_row(
                Text(f"  {self._work['what']}"),
                ProgressBar(total=self._work["total"], completed=self._work["done"], width=40),
                Text(_done_of(self._work), style="dim"),
                Text(duration(time.monotonic() - self._stage_began), style="dim"),
            )
            return RichGroup(row)
        if self._stage:
            return Text(f"  {self._stage} … {duration(time.monotonic() - self._stage_began)}", style="dim")
        return Text("")

    def _training(self) -> RichGroup:
        s = self._step
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text("  train"),
            ProgressBar(total=s["total_steps"], completed=s["step"], width=40),
            Text(f"step {s['step']}/{s['total_steps']}", style="bold"),
            Text(
                f"left {duration(s['seconds_left'])}" if s.get("seconds_left") is not None else "",
                style="dim",
            ),
        )
        facts = Text(f"  loss {s['loss']:.3f}", style="bold")
        facts.append(f"  {sparkline(list(self._losses))}  ", style="cyan")
        facts.append(self._facts(), style="not bold")
        return RichGroup(row, facts)

    def _facts(self) -> str:
        s = self._step
        words = []
        if self._validation is not None:
            words.append(f"validation {self._validation:.3f}")
        words.append(f"lr {s['learning_rate']:.1e}")
        words.append(f"{s['tokens_per_second']:,.0f} tokens/s")
        if s.get("mfu"):
            words.append(f"MFU {s['mfu']:.0%}")
        if s.get("memory"):
            words.append(memory(s["memory"]))
        return "  ".join(words)

    # -- plain -------------------------------------------------------------------------------

    def _plain(self) -> None:
        now = time.monotonic()
        if now - self._last_plain < PLAIN_EVERY:
            return
        if self._stage == "train" and self._step:
            s = self._step
            left = f"  left {duration(s['seconds_left'])}" if s.get("seconds_left") is not None else ""
            err().print(
                f"  train step {s['step']}/{s['total_steps']}  loss {s['loss']:.3f}  {self._facts()}{left}",
                soft_wrap=True,
            )
        elif self._work is not None:
            err().print(f"  {self._work['what']} {_done_of(self._work)}")
        else:
            return
        self._last_plain = now
