"""Servers of models as pages and API show them, and how to ask them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from luthier.catalog.purposes import spec_of
from luthier.errors import UsageError
from luthier.runs import registry
from luthier.runs.directory import RunDirectory, list_runs, runs_root
from luthier.runs.queue import Queue
from luthier.runs.served import TORCH, choose
from luthier.runs.servers import ServerDirectory, example, find_server, list_servers, start_server
from luthier.runs.stages import load_artifacts
from luthier.schema.deployment import ContextPlan
from luthier.schema.server import ServedModel, ServerStatus, ServerWish
from luthier.serving.context import plan_context
from luthier.studio.problems import NotFound
from luthier.studio.services.runs import find, headings
from luthier.studio.settings import StudioSettings
from luthier.studio.system import hardware

KEY = "LUTHIER_API_KEY"


@dataclass(frozen=True, slots=True)
class Servable:
    """A run that can be served."""

    run: str
    label: str
    kind: str
    ggufs: tuple[str, ...]
    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerView:
    """One server with how it is now."""

    server: ServerDirectory
    status: ServerStatus
    memory: int | None
    """Resident bytes of its processes now."""

    @property
    def planned(self) -> int:
        """Bytes that its models were planned to take."""
        plans = {
            one.plan.model_dump_json(): one.plan.total for one in self.status.models if one.plan is not None
        }
        return sum(plans.values())


def servable(runs: Path) -> list[Servable]:
    """Runs that can answer requests, newest first."""
    found = []
    for run in list_runs(runs):
        head = headings(run)
        answers = spec_of(head.task).answers
        ggufs = tuple(
            artifact.kind.removeprefix("gguf:")
            for artifact in load_artifacts(run)
            if artifact.kind.startswith("gguf:") and (run.path / artifact.path).is_file()
        )
        merged = (run.path / "artifacts" / "merged" / "config.json").is_file()
        if (answers == "chat" and ggufs) or (answers in TORCH and merged):
            versions = tuple(registry.registered_as(run))
            found.append(Servable(run.id, head.name or run.id, answers, ggufs, versions))
    return found


def servers() -> list[ServerView]:
    """All servers, newest first."""
    return [view_of(one) for one in list_servers()]


def view_of(server: ServerDirectory) -> ServerView:
    """A server as it is now."""
    return ServerView(server, server.status, server.memory())


def server_named(name: str) -> ServerDirectory:
    """A server by its id. Errors: NotFound."""
    try:
        return find_server(name)
    except UsageError as error:
        raise NotFound(error.message, hint=error.hint or "see /serve") from None


def plan_of(
    run: RunDirectory, *, gguf: str | None = None, context: int | None = None, slots: int = 4
) -> ContextPlan | None:
    """What serving a run's GGUF would take of the memory that is free now; None for models in torch.

    Errors: UsageError, DoesNotFit with what would fit.
    """
    chosen = choose(f"{run.id}={run.path}", gguf)
    if chosen.kind != "chat":
        return None
    machine = hardware(runs_root())
    return plan_context(
        chosen.path,
        free=machine.memory_free,
        where=machine.processor.name,
        context=context,
        slots=slots,
        trained=chosen.trained,
    )


def start(wish: ServerWish, settings: StudioSettings) -> ServerDirectory:
    """Start a server of runs or registered versions, never of paths.

    What would not fit is refused here, before a process is started. Errors: NotFound, DoesNotFit, UsageError.
    """
    if not wish.models and not wish.adapters:
        raise UsageError("no model was chosen", hint="choose a run")
    if wish.host not in ("127.0.0.1", "localhost", "::1"):
        raise UsageError(
            "the studio starts servers for this machine alone",
            hint="to reach it from others: luthier serve --host ... --allowed-host ...",
        )
    models = []
    for words in wish.models:
        name, _, target = words.rpartition("=")
        run = registry.run_of(target) if ":" in target else find(settings, target)
        plan_of(run, gguf=wish.gguf, context=wish.context, slots=wish.slots)
        models.append(f"{_name(name or run.recipe.name or run.id)}={run.path}")
    adapters = []
    for words in wish.adapters:
        name, _, target = words.rpartition("=")
        run = find(settings, target)
        adapters.append(f"{_name(name or run.recipe.name or run.id)}={run.path}")
    return start_server(wish.model_copy(update={"models": tuple(models), "adapters": tuple(adapters)}))


def system_of(settings: StudioSettings, status: ServerStatus) -> str:
    """The system prompt that the held-out rows of the served run share; empty where there is none."""
    for model in status.models:
        with contextlib.suppress(NotFound):
            facts = (
                find(settings, str(model.facts["run"])).stage_values("model")
                if "run" in model.facts
                else None
            )
            if facts and facts.get("system"):
                return str(facts["system"])
    return ""


def leaving(settings: StudioSettings, server: ServerDirectory) -> float | None:
    """When a server will be ended because a run needs its memory; None where nothing asks for it."""
    worker = server.status.worker
    leases = Queue(settings.runs).leases() if worker is not None else []
    return next((lease.leave_by for lease in leases if lease.worker == worker), None)


def _name(name: str) -> str:
    if "=" in name or not name.isprintable() or len(name) > 80:
        raise UsageError(f"{name[:80]!r} cannot be a model's name", hint="use letters, digits, . _ : and -")
    return name


def snippets(url: str, model: ServedModel) -> dict[str, str]:
    """Ways to ask a model: label -> text. The key is named, not shown."""
    path, asked = example(model.name, model.kind)
    curl = (
        f'curl {url}{path} \\\n  -H "Authorization: Bearer ${KEY}" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d '{asked}'"
    )
    if model.kind == "chat":
        call = (
            "answer = client.chat.completions.create(\n"
            f"    model={model.name!r},\n"
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\nprint(answer.choices[0].message.content)"
        )
    elif model.kind == "embed":
        call = (
            f"answer = client.embeddings.create(model={model.name!r}, input=['a text', 'another'])\n"
            "print(len(answer.data[0].embedding))"
        )
    else:
        call = f"print(client.post({path.removeprefix('/v1')!r}, body={json.loads(asked)!r}, cast_to=object))"
    python = (
        "import os\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key=os.environ["{KEY}"])\n{call}'
    )
    return {"curl": curl, "Python": python}
