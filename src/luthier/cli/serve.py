"""``luthier serve``: an OpenAI-compatible server over runs and GGUF files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import err, memory, out, print_json
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.schema.deployment import ContextPlan
    from luthier.serving.gateway import Served
    from luthier.sizing.serving import CacheType

Flag = Annotated[bool, Parameter(negative="")]
KEY = "LUTHIER_API_KEY"


def serve(
    *models: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    context: int | None = None,
    slots: int = 4,
    gguf: str | None = None,
    adapter: tuple[str, ...] = (),
    embedding: Flag = False,
    allowed_host: tuple[str, ...] = (),
    json: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Serve models over HTTP, the way OpenAI's clients ask. Ctrl-C stops it when answers have ended.

    Asks for an API key where other machines can reach it, or where LUTHIER_API_KEY holds one.

    Parameters
    ----------
    models
        Runs (id, beginning of one, latest) or .gguf files; NAME=RUN gives the name that requests use.
    host
        Address to listen on; others than this machine's own need --allowed-host.
    port
        Port to listen on; 0 takes a free one.
    context
        Tokens of each slot; chosen from memory, model and training when not given.
    slots
        Requests that each model answers at once.
    gguf
        Which type of a run's GGUF files answers; the smallest when not given.
    adapter
        NAME=RUN: the adapter of a run, put on one base that all share; may be given again. The base is
        the one .gguf file named, or the runs' own base model, converted once; requests choose by NAME.
    embedding
        The models make embeddings.
    allowed_host
        Name or address under which other machines reach the server; may be given again.
    json
        Print one JSON object once requests are taken.
    dry_run
        Say what would be served and what it takes, and leave.
    """
    from luthier.serving.gateway import Gateway
    from luthier.serving.listen import open_port, rules_for
    from luthier.serving.listen import serve as listen

    if adapter:
        chosen = [_with_adapters(models, adapter)]
    else:
        chosen = [_chosen(words, gguf) for words in models or ("latest",)]
    names = [name for one in chosen for name in (one.name, *(a for a, _ in one.adapters))]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two models would be called {max(names, key=names.count)}", hint="name them: a=RUN1 b=RUN2"
        )
    rules = rules_for(host, api_key=os.environ.get(KEY) or None, names=allowed_host)
    served, plans = _load_plan(chosen, context=context, slots=slots, embedding=embedding)
    if not json:
        for one, plan in zip(chosen, plans, strict=True):
            _say(one, plan)
    listener = open_port(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    facts: dict[str, Any] = {
        "url": f"{address}/v1",
        "models": {one.name: p.model_dump(mode="json") for one, p in zip(chosen, plans, strict=True)},
        "names": names,
    }
    if dry_run:
        listener.close()
        if json:
            print_json(facts)
        return

    def ready() -> None:
        if json:
            print_json({**facts, "api_key": rules.api_key})
            return
        out().print(f"\nServing at {address}/v1 (health: /health, metrics: /metrics). Ctrl-C stops it.")
        key = f' -H "Authorization: Bearer {rules.api_key}"' if rules.api_key else ""
        if rules.api_key and not os.environ.get(KEY):
            out().print(f"API key of this start: {rules.api_key}   ({KEY} sets a lasting one)")
        body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
        out().print(
            f"\n  curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    listen(Gateway(served, rules=rules), listener, ready=ready)
    if not json:
        err().print("stopped")


@dataclass(frozen=True, slots=True)
class _Chosen:
    name: str
    path: Path
    trained: int | None = None
    facts: tuple[tuple[str, Any], ...] = ()
    adapters: tuple[tuple[str, Path], ...] = ()
    """Names and files of adapters on this base."""


def _chosen(words: str, gguf: str | None) -> _Chosen:
    """One model by the words of the command: ``[NAME=]RUN|FILE``."""
    name, _, target = words.rpartition("=")
    path = Path(target).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return _Chosen(name or path.stem, path.resolve())
    from luthier.runs.registry import resolve
    from luthier.runs.shipping import chat_files

    run = resolve(target)
    file, _ = chat_files(run, gguf)
    recipe = run.recipe
    facts = (("run", run.id), ("file", file.name), ("base", recipe.model.id))
    return _Chosen(name or recipe.name or run.id, file, recipe.training.sequence_length, facts)


def _with_adapters(models: tuple[str, ...], adapters: tuple[str, ...]) -> _Chosen:
    """One base with the adapters of several runs."""
    from luthier.runs.adapters import adapter_file, base_file, one_base
    from luthier.runs.registry import resolve

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False)

    if len(models) > 1:
        raise UsageError("adapters stand on one base", hint="name one .gguf file, or none")
    runs = {}
    for words in adapters:
        name, _, target = words.rpartition("=")
        run = resolve(target)
        runs[name or run.recipe.name or run.id] = run
    if len(runs) < len(adapters):
        raise UsageError("two adapters have one name", hint="name them: --adapter a=RUN1 --adapter b=RUN2")
    base = one_base(list(runs.values()))
    if models:
        chosen = _chosen(models[0], None)
        name, path = chosen.name, chosen.path
    else:
        name, path = base.id.rpartition("/")[2], base_file(base, say=say)
    trained = max((run.recipe.training.sequence_length or 0 for run in runs.values()), default=0) or None
    files = tuple((name, adapter_file(run, say=say)) for name, run in runs.items())
    return _Chosen(name, path, trained, (("base", base.id),), files)


def _load_plan(
    chosen: list[_Chosen], *, context: int | None, slots: int, embedding: bool
) -> tuple[dict[str, Served], list[ContextPlan]]:
    """What each model takes of the memory that those before it leave."""
    from luthier.files import file_sha256
    from luthier.llamacpp.runtime import LlamaServer, ServerSettings
    from luthier.planning.audit import audit
    from luthier.serving.backends import LlamaBackend
    from luthier.serving.context import plan_context
    from luthier.serving.gateway import Served

    machine = audit()
    free, cache_type = machine.memory_free, _CACHE
    served: dict[str, Served] = {}
    plans: list[ContextPlan] = []
    for one in chosen:
        plan = plan_context(
            one.path,
            free=free,
            where=machine.processor.name,
            context=context,
            slots=slots,
            cache_type=cache_type,
            trained=one.trained,
        )
        free -= plan.total
        plans.append(plan)
        settings = ServerSettings(
            context=plan.context,
            slots=slots,
            embedding=embedding,
            alias=one.name,
            adapters=tuple((str(path), 1.0) for _, path in one.adapters),
        )
        backend = LlamaBackend(LlamaServer(one.path, settings), weights=file_sha256(one.path))
        facts = {**dict(one.facts), "context": plan.context}
        served[one.name] = Served(backend, _only(None, len(one.adapters)), facts)
        for index, (name, path) in enumerate(one.adapters):
            own = {**facts, "adapter": path.name, "adapter_sha256": file_sha256(path)}
            served[name] = Served(backend, _only(index, len(one.adapters)), own)
    return served, plans


def _only(chosen: int | None, count: int) -> dict[str, Any]:
    """What a request says so that one adapter answers, or none."""
    return {"lora": [{"id": i, "scale": float(i == chosen)} for i in range(count)]} if count else {}


_CACHE: CacheType = "f16"


def _say(one: _Chosen, plan: ContextPlan) -> None:
    out().print(
        f"{one.name}: {one.path.name}, {plan.slots} x {plan.context:,} tokens ({plan.why}), about "
        f"{memory(plan.total)}: weights {memory(plan.weights)}, cache {memory(plan.cache)}, "
        f"buffers {memory(plan.buffers)}",
        highlight=False,
    )
    if plan.longer:
        more = ", ".join(f"{tokens:,} would take {memory(size)}" for tokens, size in plan.longer.items())
        out().print(f"  longer: {more} of {memory(plan.free)} free", style="dim", highlight=False)
