"""``luthier serve``: an OpenAI-compatible server over runs and GGUF files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import err, memory, out, print_json
from luthier.errors import UsageError
from luthier.schema.onnx import SPEC_FILE

if TYPE_CHECKING:
    from luthier.runs.served import Choice
    from luthier.schema.deployment import ContextPlan

Flag = Annotated[bool, Parameter(negative="")]
KEY = "LUTHIER_API_KEY"


def serve(
    *models: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    context: int | None = None,
    slots: int = 4,
    gguf: str | None = None,
    device: str | None = None,
    adapter: tuple[str, ...] = (),
    live_adapters: Flag = False,
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
        Runs (id, beginning of one, latest), .gguf files, or folders with a saved embedder, reranker or
        classifier, or with its ONNX graph (artifacts/onnx of a run); NAME=RUN gives the name that
        requests use.
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
    device
        cpu, gpu:1, or auto (the GPU with most room, else the CPU); llama.cpp's own choice when not given.
    adapter
        NAME=RUN: the adapter of a run, put on one base that all share; may be given again. The base is
        the one .gguf file named, or the runs' own base model, converted once; requests choose by NAME.
    live_adapters
        Requests may load adapters of runs here and drop them, as vLLM has it (/v1/load_lora_adapter with
        lora_name and lora_path, a run; /v1/unload_lora_adapter); needs --adapter.
    embedding
        The models make embeddings.
    allowed_host
        Name or address under which other machines reach the server; may be given again.
    json
        Print one JSON object once requests are taken.
    dry_run
        Say what would be served and what it takes, and leave.
    """
    from luthier.runs.served import build, choose, choose_adapters
    from luthier.runs.served import live_adapters as let_adapters_come
    from luthier.runs.server_worker import announced
    from luthier.runs.servers import example
    from luthier.schema.server import ServerWish
    from luthier.serving.gateway import Gateway
    from luthier.serving.listen import open_port, rules_for
    from luthier.serving.listen import serve as listen

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False)

    if live_adapters and not adapter:
        raise UsageError("--live-adapters stand on a base", hint="name one to begin with: --adapter a=RUN")
    rules = rules_for(host, api_key=os.environ.get(KEY) or None, names=allowed_host)
    if adapter:
        chosen = [choose_adapters(models, adapter, say=say)]
    else:
        chosen = [choose(words, gguf) for words in models or ("latest",)]
    served, plans = build(chosen, context=context, slots=slots, embedding=embedding, device=device)
    if not json:
        for one in chosen:
            _say(one, plans.get(one.name))
    listener = open_port(host, port)
    address = f"http://{host}:{listener.getsockname()[1]}"
    facts: dict[str, Any] = {
        "url": f"{address}/v1",
        "models": {name: plan.model_dump(mode="json") for name, plan in plans.items()},
        "names": list(served),
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
        path, body = example(chosen[0].name, chosen[0].kind)
        out().print(
            f"\n  curl {address}{path}{key} -H 'Content-Type: application/json' -d '{body}'",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    wish = ServerWish(
        models=tuple(models),
        adapters=tuple(adapter),
        gguf=gguf,
        context=context,
        slots=slots,
        device=device,
        host=host,
    )
    with announced(wish, served, chosen, plans, url=address, key=rules.api_key) as (note, is_ready):
        gateway = Gateway(served, rules=rules, on_request=note)
        if live_adapters:
            let_adapters_come(gateway, chosen[0], say=say)

        def begin() -> None:
            is_ready()
            ready()

        listen(gateway, listener, ready=begin)
    if not json:
        err().print("stopped")


def _say(one: Choice, plan: ContextPlan | None) -> None:
    if plan is None:
        by = "onnxruntime" if (one.path / SPEC_FILE).is_file() else "torch"
        out().print(f"{one.name}: {one.path.name} ({one.kind}), in {by}", highlight=False)
        return
    out().print(
        f"{one.name}: {one.path.name}, {plan.slots} x {plan.context:,} tokens ({plan.why}), about "
        f"{memory(plan.total)}: weights {memory(plan.weights)}, cache {memory(plan.cache)}, "
        f"buffers {memory(plan.buffers)}",
        highlight=False,
    )
    if plan.longer:
        more = ", ".join(f"{tokens:,} would take {memory(size)}" for tokens, size in plan.longer.items())
        out().print(f"  longer: {more} of {memory(plan.free)} free", style="dim", highlight=False)
