"""Many machines and one run: which of them this is, and taking part as one that is not the first.

The first machine's worker keeps a store at the rendezvous (`runs.crew`); on every other one a child
process takes part (`runs.node`). Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.errors import Interrupted, TrainingError, UsageError
from luthier.runs.model import Say
from luthier.runs.process import torch_environment
from luthier.runs.ranks import told
from luthier.schema.nodes import Place

HOW = "luthier train recipe.yaml --nodes 2 --node-rank R --rendezvous HOST:PORT --gpus K, on each machine"
PORT = 29400
"""Where torchrun's rendezvous listens by default."""
DEFAULT_PATIENCE = 1800.0


def patience() -> float:
    """Seconds that machines wait for one another to come: LUTHIER_PATIENCE, else half an hour."""
    given = os.environ.get("LUTHIER_PATIENCE", "")
    try:
        found = float(given) if given else DEFAULT_PATIENCE
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise UsageError(f"LUTHIER_PATIENCE={given} is not a time", hint="give seconds, for example 3600")
    return found


def place_of(
    nodes: int | None,
    node_rank: int | None,
    rendezvous: str | None,
    gpus: int | None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place of this machine, from flags or from torchrun's environment; None where it trains alone.

    Errors: UsageError for flags that do not go together.
    """
    if nodes is None and node_rank is None and rendezvous is None:
        return _torchrun(environment, gpus)
    if nodes is None or nodes < 1:
        raise UsageError("--node-rank and --rendezvous go with --nodes", hint=HOW)
    if nodes == 1:
        return None
    if node_rank is None or rendezvous is None:
        missing = "--node-rank" if node_rank is None else "--rendezvous"
        raise UsageError(f"{nodes} machines train together, and {missing} is missing", hint=HOW)
    if not 0 <= node_rank < nodes:
        raise UsageError(f"--node-rank {node_rank}: with {nodes} machines it is 0 to {nodes - 1}", hint=HOW)
    host, port = _address(rendezvous)
    return Place(nodes=nodes, rank=node_rank, host=host, port=port, devices=_devices(gpus))


def _devices(gpus: int | None) -> int:
    if gpus is not None and gpus < 1:
        raise UsageError(f"--gpus {gpus}", hint="use at least 1")
    return gpus or 1


def _address(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or ``host``."""
    words = text.strip()
    host, colon, port = words.rpartition(":")
    if not colon or words.endswith("]"):
        host, port = words, str(PORT)
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--rendezvous {text}: not an address", hint="write HOST:PORT, for example node0:29400"
        )
    return host, int(port)


def _torchrun(environment: Mapping[str, str], gpus: int | None) -> Place | None:
    """What torchrun tells the processes that it starts."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    try:
        nodes, rank = int(environment["GROUP_WORLD_SIZE"]), int(environment["GROUP_RANK"])
        local = int(environment["LOCAL_WORLD_SIZE"])
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"torchrun's environment is not whole: {error}", hint=HOW) from None
    if nodes == 1:
        return None
    start = f"{environment['TORCHELASTIC_RUN_ID']}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Place(
        nodes=nodes,
        rank=rank,
        host=host,
        port=port,
        devices=gpus or local,
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        key=f"luthier/{start}",
    )


def superfluous(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process beside another of the same machine, which does it all."""
    return "TORCHELASTIC_RUN_ID" in environment and environment.get("LOCAL_RANK", "0") != "0"


def torchrun_devices(environment: Mapping[str, str] = os.environ) -> int | None:
    """Processes that torchrun was told to start on this machine; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    count = environment.get("LOCAL_WORLD_SIZE", "1")
    return int(count) if count.isdecimal() else None


def settings(place: Place) -> tuple[str, ...]:
    """The settings of a recipe that many machines are."""
    return (f"training.nodes={place.nodes}", f"training.devices={place.nodes * place.devices}")


def join(place: Place, recipe: Path | None, overrides: tuple[str, ...], *, say: Say, offline: bool) -> None:
    """Take part in the first machine's run until its training is over.

    recipe: this machine's own copy, for paths that differ here. Errors: what went wrong here, or there.
    """
    words = {
        "place": place.model_dump(mode="json"),
        "recipe": None if recipe is None else str(recipe),
        "overrides": list(overrides),
        "offline": offline,
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "luthier.runs.node", json.dumps(words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=torch_environment(),
        start_new_session=True,  # Ctrl-C comes through us: the run saves before it stops
        text=True,
        encoding="utf-8",
    )
    with _passed_on(child):
        code = _heard(child, say)
    if code == Interrupted.exit_code:
        raise Interrupted("the run was stopped, its work is saved", hint="start the same command again")
    if code != 0:
        raise TrainingError(
            f"taking part ended with exit code {code}",
            hint="what it said stands above; start the same command again on all machines to go on",
        )


def _heard(child: subprocess.Popen[str], say: Say) -> int:
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            values: dict[str, Any] = json.loads(line)
            if "error" in values:
                child.wait()
                raise told(values["error"])
            say(values["note"])
    return child.wait()


@contextmanager
def _passed_on(child: subprocess.Popen[str]) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to a child while it runs."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.terminate()
