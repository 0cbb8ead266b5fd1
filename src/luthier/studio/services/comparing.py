"""One prompt to several models: which models can answer, conversations on disk, picks and their tally.

A conversation is one JSON file in the studio's folder. It says who answers in which column; answers carry
the digest of the weights that the serving process itself reported.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field

from luthier.catalog.purposes import spec_of
from luthier.errors import UsageError
from luthier.files import write_text
from luthier.runs.directory import RunDirectory, list_runs
from luthier.runs.servers import UP, ServerDirectory, list_servers, servers_root, start_server
from luthier.runs.stages import load_artifacts
from luthier.schema.base import Record
from luthier.schema.results import TrainResult
from luthier.schema.server import ServerWish
from luthier.studio.problems import NotFound
from luthier.studio.services.runs import Headings, headings

MOST_COLUMNS = 4
LONGEST_PROMPT = 100_000
"""Letters of a prompt; llama.cpp refuses what its context cannot hold."""
IDLE = 900.0
"""Seconds after which a model that was loaded for a comparison is let go."""
TIE = "tie"
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")


class Side(Record):
    """One model that could answer."""

    key: str
    """``gguf:RUN:TYPE``, ``adapter:RUN``, ``base:RUN``, ``server:ID:NAME``."""
    label: str
    about: str
    kind: Literal["base", "tuned", "served"]
    run: str = ""
    path: str = ""
    """The run's directory."""
    system: str = ""
    """The system prompt that the run's held-out rows share."""


class Weights(Record):
    """Which weights an answer came from, as the process that served them says."""

    server: str
    model: str
    sha256: str
    adapter: str = "none"
    """SHA-256 of the adapter on top, or none."""
    run: str = ""
    base: str = ""
    file: str = ""
    step: int | None = None

    @property
    def words(self) -> str:
        """Short, for the head of a column."""
        step = "" if self.step is None else f", step {self.step}"
        if self.adapter != "none":
            return f"adapter {self.adapter[:6]}{step}"
        if not self.run:
            return f"base, no adapter, {self.sha256[:6]}"
        return f"weights {self.sha256[:6]}{step}"


class Answer(Record):
    """What one column said in one turn."""

    text: str = ""
    reasoning: str = ""
    weights: Weights | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    finish: str = ""
    """stop, length, or empty where it is not known."""
    error: str = ""
    done: bool = False


class Turn(Record):
    """A prompt with its answers, in the order of the columns."""

    prompt: str
    answers: tuple[Answer, ...]
    pick: str = ""
    """Key of the side that was better, or tie."""


class Sampling(Record):
    """How every column answers."""

    seed: int = Field(17, ge=0, le=2**31 - 1)
    temperature: float = Field(0.0, ge=0, le=5)
    """0: always the likeliest token."""
    max_tokens: int = Field(256, ge=1, le=8_192)


class Conversation(Record):
    """Columns and turns."""

    id: str
    created: float
    sides: tuple[Side, ...]
    """In the order of the columns; shuffled where blind."""
    system: str = ""
    sampling: Sampling = Sampling()
    blind: bool = False
    revealed: bool = False
    turns: tuple[Turn, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether the columns must not be told apart yet."""
        return self.blind and not self.revealed

    def name_of(self, column: int) -> str:
        """What a column is called now."""
        return f"Model {'ABCD'[column]}" if self.hidden else self.sides[column].label


class Pick(Record):
    """One blind choice."""

    at: float
    conversation: str
    sides: tuple[str, ...]
    labels: tuple[str, ...]
    pick: str
    messages: tuple[dict[str, str], ...] = ()
    answers: tuple[str, ...] = ()


# ---- who can answer ---------------------------------------------------------------------------------


def candidates(runs: Path) -> list[Side]:
    """Every model that could answer a chat here, newest run first; what is served already stands first."""
    found = list(_served())
    for run in list_runs(runs):
        head = headings(run)
        if spec_of(head.task).answers == "chat":
            found += _of_run(run, head)
    return found


def _served() -> Iterable[Side]:
    for server in list_servers():
        status = server.status
        if status.state == "ready" and server.wish.purpose == "serve":
            for model in status.models:
                if model.kind == "chat":
                    yield Side(
                        key=f"server:{server.id}:{model.name}",
                        label=model.name,
                        about=f"served at {status.url}",
                        kind="served",
                        run=str(model.facts.get("run", "")),
                    )


def _of_run(run: RunDirectory, head: Headings) -> list[Side]:
    facts = run.stage_values("model") or {}
    system = str(facts.get("system") or "")
    name = head.name or run.id
    found = []
    for artifact in load_artifacts(run):
        if artifact.kind.startswith("gguf:") and (run.path / artifact.path).is_file():
            kind = artifact.kind.removeprefix("gguf:")
            found.append(
                Side(
                    key=f"gguf:{run.id}:{kind}",
                    label=f"{name} {kind}",
                    about=f"tuned, {kind}, run {run.id}",
                    kind="tuned",
                    run=run.id,
                    path=str(run.path),
                    system=system,
                )
            )
    base_here = (Path(facts.get("path") or "/nonexistent") / "config.json").is_file()
    weights = run.path / "artifacts" / "adapter" / "adapter_model.safetensors"
    if not head.method.startswith("full") and weights.is_file() and base_here:
        short = head.model.rpartition("/")[2]
        trained = run.stage("train", TrainResult)
        step = "" if trained is None else f", step {trained.best_step}"
        common = {"run": run.id, "path": str(run.path), "system": system}
        base = f"base of {run.id}, no adapter, F16"
        tuned = f"adapter of {run.id}{step} on the base, F16"
        found.append(Side(key=f"base:{run.id}", label=short, about=base, kind="base", **common))
        found.append(
            Side(key=f"adapter:{run.id}", label=f"{name} adapter", about=tuned, kind="tuned", **common)
        )
    return found


def side_of(key: str, runs: Path) -> Side:
    """A side by its key. Errors: NotFound."""
    for side in candidates(runs):
        if side.key == key:
            return side
    raise NotFound(f"no model {key[:120]!r} can answer here", hint="choose one of the list at /compare")


def _wish(side: Side) -> ServerWish:
    kind, _, rest = side.key.partition(":")
    if kind == "gguf":
        run, _, gguf = rest.partition(":")
        return ServerWish(models=(f"{run}={side.path}",), gguf=gguf, slots=1, purpose="compare", idle=IDLE)
    # Base and adapter stand on the same weights in one process: a request says whether the adapter counts.
    return ServerWish(adapters=(f"tuned={side.path}",), slots=1, purpose="compare", idle=IDLE)


def server_for(side: Side) -> ServerDirectory:
    """The server that answers for a side: one that runs already, else a new one that is loading."""
    if side.key.startswith("server:"):
        wanted = side.key.split(":", 2)[1]
        for server in list_servers():
            if server.id == wanted and server.status.state in UP:
                return server
        raise NotFound(f"the server {wanted} has ended", hint="start it again at /serve")
    wish = _wish(side)
    root = servers_root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock", timeout=30):  # two columns of one base must not load it twice
        for server in list_servers():
            if server.status.state in ("loading", "ready") and server.wish == wish:
                return server
        return start_server(wish)


def model_of(side: Side, server: ServerDirectory) -> str:
    """The name under which a server answers for a side. Errors: NotFound."""
    kind, _, rest = side.key.partition(":")
    names = [model.name for model in server.status.models]
    if kind == "server":
        name = rest.partition(":")[2]
    elif kind == "adapter":
        name = "tuned"
    elif kind == "base":
        name = next((one for one in names if one != "tuned"), "")
    else:
        name = rest.partition(":")[0]
    if name not in names:
        raise NotFound(f"{server.id} does not serve {name!r}")
    return name


# ---- conversations ----------------------------------------------------------------------------------


class Conversations:
    """Conversations and picks in the studio's folder."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "conversations"
        self.picks_file = home / "picks.jsonl"

    def begin(
        self,
        sides: Sequence[Side],
        *,
        system: str = "",
        sampling: Sampling | None = None,
        blind: bool = False,
    ) -> Conversation:
        """A new conversation without a turn. Errors: UsageError for too many or too few columns."""
        if not 1 <= len(sides) <= MOST_COLUMNS:
            raise UsageError(f"{len(sides)} columns cannot be compared", hint=f"choose up to {MOST_COLUMNS}")
        if len({side.key for side in sides}) < len(sides):
            raise UsageError("two columns would be answered by the same model", hint="choose another one")
        if blind and len(sides) < 2:
            raise UsageError("one model alone cannot be compared blindly", hint="choose a second one")
        order = list(sides)
        if blind:
            random.SystemRandom().shuffle(order)
        made = Conversation(
            id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}",
            created=time.time(),
            sides=tuple(order),
            system=system.strip(),
            sampling=sampling or Sampling(),
            blind=blind,
        )
        self.save(made)
        return made

    def path(self, id: str) -> Path:  # noqa: A002 - the name in the URL
        """Where a conversation lies. Errors: NotFound for what cannot be one's name."""
        path = self.folder / f"{id}.json"
        if not _ID.fullmatch(id) or not path.is_file():
            raise NotFound(f"there is no conversation {id[:80]!r}", hint="begin one at /compare")
        return path

    def load(self, id: str) -> Conversation:  # noqa: A002
        """A conversation. Errors: NotFound."""
        return Conversation.model_validate_json(self.path(id).read_text(encoding="utf-8"))

    def save(self, conversation: Conversation) -> None:
        """Replace a conversation's file; what was said is its owner's alone to read."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = conversation.model_dump_json(indent=1) + "\n"
        write_text(self.folder / f"{conversation.id}.json", text).chmod(0o600)

    def recent(self, most: int = 8) -> list[Conversation]:
        """The last conversations with a turn, newest first; broken files are left out."""
        paths = sorted(self.folder.glob("*.json"), reverse=True) if self.folder.is_dir() else []
        found: list[Conversation] = []
        for path in paths:
            if len(found) == most:
                break
            if _ID.fullmatch(path.stem):
                one = self.load(path.stem)
                if one.turns:
                    found.append(one)
        return found

    def ask(self, conversation: Conversation, prompt: str) -> Conversation:
        """Add a turn that waits for its answers. Errors: UsageError."""
        prompt = prompt.replace("\r\n", "\n").strip()
        if not prompt:
            raise UsageError("there is no prompt", hint="write what all columns are asked")
        if len(prompt) > LONGEST_PROMPT:
            raise UsageError(f"the prompt is longer than {LONGEST_PROMPT:,} letters", hint="shorten it")
        turn = Turn(prompt=prompt, answers=tuple(Answer() for _ in conversation.sides))
        asked = conversation.model_copy(update={"turns": (*conversation.turns, turn)})
        self.save(asked)
        return asked

    def answer(self, id: str, turn: int, column: int, answer: Answer) -> None:  # noqa: A002
        """Keep what a column said."""
        with FileLock(self.folder / ".lock", timeout=10):
            known = self.load(id)
            turns = list(known.turns)
            answers = list(turns[turn].answers)
            answers[column] = answer
            turns[turn] = turns[turn].model_copy(update={"answers": tuple(answers)})
            self.save(known.model_copy(update={"turns": tuple(turns)}))

    def pick(self, conversation: Conversation, column: int | None) -> Conversation:
        """Say which column answered the last turn best (None: a tie), reveal them all, and count it.

        Errors: UsageError where that cannot be said (again) or an answer is not whole.
        """
        if not conversation.hidden:
            raise UsageError("this comparison is not blind any more", hint="begin another round")
        if not conversation.turns:
            raise UsageError("nothing was asked yet")
        last = conversation.turns[-1]
        if any(not one.done or one.error for one in last.answers):
            raise UsageError("not every column has answered", hint="wait for its end, or ask again")
        if column is not None and not 0 <= column < len(conversation.sides):
            raise UsageError("there is no such column")
        chosen = TIE if column is None else conversation.sides[column].key
        turns = (*conversation.turns[:-1], last.model_copy(update={"pick": chosen}))
        told = conversation.model_copy(update={"turns": turns, "revealed": True})
        self.save(told)
        note = Pick(
            at=time.time(),
            conversation=conversation.id,
            sides=tuple(side.key for side in conversation.sides),
            labels=tuple(side.label for side in conversation.sides),
            pick=chosen,
            messages=tuple(messages_of(conversation, column or 0, len(conversation.turns) - 1)),
            answers=tuple(answer.text for answer in last.answers),
        )
        with self.picks_file.open("ab", buffering=0) as file:
            file.write((note.model_dump_json() + "\n").encode())
        self.picks_file.chmod(0o600)
        return told

    def picks(self) -> list[Pick]:
        """All blind choices, oldest first."""
        try:
            lines = self.picks_file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [Pick.model_validate_json(line) for line in lines if line.strip()]

    def tally(self, keys: Iterable[str] | None = None) -> list[Tally]:
        """How often each model was picked, by the set of models compared. keys: of this set alone."""
        wanted = None if keys is None else frozenset(keys)
        found: dict[frozenset[str], Tally] = {}
        for pick in self.picks():
            group = frozenset(pick.sides)
            if wanted is not None and group != wanted:
                continue
            known = found.setdefault(group, Tally(sides={}, wins={}, ties=0))
            found[group] = known.counted(pick)
        return list(found.values())

    def preferences(self) -> list[dict[str, object]]:
        """Picks as preference rows (prompt, chosen, rejected), ready to train on."""
        rows: list[dict[str, object]] = []
        for pick in self.picks():
            if pick.pick == TIE:
                continue
            won = pick.sides.index(pick.pick)
            rows += [
                {"prompt": list(pick.messages), "chosen": pick.answers[won], "rejected": answer}
                for column, answer in enumerate(pick.answers)
                if column != won and answer != pick.answers[won]
            ]
        return rows


class Tally(Record):
    """Picks of one set of models."""

    sides: dict[str, str]
    """Key -> label."""
    wins: dict[str, int]
    ties: int

    @property
    def rounds(self) -> int:
        """Choices in all."""
        return sum(self.wins.values()) + self.ties

    def counted(self, pick: Pick) -> Tally:
        """With one more choice."""
        labels = self.sides | dict(zip(pick.sides, pick.labels, strict=True))
        wins = {key: self.wins.get(key, 0) + (key == pick.pick) for key in labels}
        return Tally(sides=labels, wins=wins, ties=self.ties + (pick.pick == TIE))


def messages_of(conversation: Conversation, column: int, turn: int) -> list[dict[str, str]]:
    """What a column is asked in a turn: the system prompt, and its own earlier answers."""
    found = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for earlier in conversation.turns[:turn]:
        found.append({"role": "user", "content": earlier.prompt})
        found.append({"role": "assistant", "content": earlier.answers[column].text})
    found.append({"role": "user", "content": conversation.turns[turn].prompt})
    return found


def preference_lines(rows: Iterable[dict[str, object]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
