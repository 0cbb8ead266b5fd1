"""Deployments at work: started and stopped here, and held to the exported file wherever they answer."""

from __future__ import annotations

import os
import time

from luthier.errors import LuthierError, Unsupported, UsageError
from luthier.evaluation.generation import text_of
from luthier.files import write_text
from luthier.runs import registry
from luthier.runs.deploying import RECORD, deployments_root, find_deployment, remove_deployment
from luthier.runs.devices import AUTO
from luthier.runs.endpoints import ask_endpoint, ask_ollama, check_deployed
from luthier.runs.servers import UP, ServerDirectory, find_server, start_server, stop_server
from luthier.schema.deployment import Deployment
from luthier.schema.protocols import Progress
from luthier.schema.results import ParityCheck
from luthier.schema.server import ServerWish
from luthier.serving.endpoint import Endpoint
from luthier.serving.ollama import Ollama

PATIENCE = 600.0
"""Seconds that a model may take to load."""


def running(one: Deployment) -> ServerDirectory | None:
    """The server that was started of a deployment, where it is up."""
    if one.server is None:
        return None
    try:
        server = find_server(one.server)
    except UsageError:
        return None
    return server if server.status.state in UP else None


def start(name: str, *, port: int = 0) -> ServerDirectory:
    """Serve a deployment in a process of its own, with the context that it was sized for, and wait for it.

    Errors: UsageError where it runs already, Unsupported for a runtime of its own, the server's failure.
    """
    one = find_deployment(name)
    if one.plan is None:
        raise Unsupported(
            f"{name} is made for vLLM, which is not started from here", hint="; ".join(one.steps) or None
        )
    if (up := running(one)) is not None:
        raise UsageError(
            f"{name} runs already at {up.status.url}/v1", hint=f"luthier deployments stop {name}"
        )
    file = deployments_root() / name / one.model
    wish = ServerWish(
        models=(f"{name}={file}",),
        context=one.plan.context,
        slots=one.plan.slots,
        device=None if one.device == AUTO else one.device,
        port=port,
    )
    server = start_server(wish)
    _keep(one, server=server.id)
    until = time.monotonic() + PATIENCE
    while (status := server.status).state == "loading" and time.monotonic() < until:
        time.sleep(0.1)
    if status.state != "ready":
        stop_server(server)
        failure = status.failure
        why = "it was not ready in time" if failure is None else failure.message
        raise LuthierError(
            f"{name} could not be started: {why}",
            hint=server.log_tail(5) if failure is None else failure.hint,
        )
    return server


def stop(name: str) -> str:
    """End what runs of a deployment; what it was, in words. Errors: UsageError where nothing does."""
    one = find_deployment(name)
    if (server := running(one)) is not None:
        address = server.status.url
        stop_server(server)
        return f"the server at {address}"
    for place in one.places:
        if place.startswith("ollama:"):
            Ollama().unload(place.removeprefix("ollama:"))
            return "Ollama's copy in memory; it loads again when asked"
    raise UsageError(f"nothing runs of {name}", hint=f"luthier deployments start {name}")


def remove(name: str) -> Deployment:
    """Delete a deployment, what it wrote elsewhere, and the server that runs of it."""
    if (server := running(find_deployment(name))) is not None:
        stop_server(server)
    return remove_deployment(name)


def check(
    name: str, *, at: str | None = None, model: str | None = None, progress: Progress | None = None
) -> ParityCheck:
    """Hold a deployment that answers to the exported file, and keep what came of it.

    at: address up to and with /v1 (its key in OPENAI_API_KEY); else the server that was started here, else
    the Ollama that it was imported into. Errors: UsageError where nothing answers, Unsupported for vLLM,
    whose weights are no single file.
    """
    one = find_deployment(name)
    if one.plan is None:
        raise Unsupported(
            f"{name} is not one GGUF file, which an endpoint is held to",
            hint="judge it instead: luthier evaluate URL --against RUN --data FILE",
        )
    run = registry.resolve(one.run)
    file, plan = deployments_root() / name / one.model, one.plan
    server = None if at is not None else running(one)
    place = next((p.removeprefix("ollama:") for p in one.places if p.startswith("ollama:")), None)
    if at is None and server is None and place is not None:
        system = (run.stage_values("model") or {}).get("system")
        ask = ask_ollama(Ollama(), place)
        found = check_deployed(
            run, file, plan, ask, system=system, tools=False, counts=False, progress=progress
        )
    elif at is None and server is None:
        raise UsageError(
            f"nothing answers for {name}",
            hint=f"luthier deployments start {name}, or name where it does: --at http://localhost:8080/v1",
        )
    else:
        address = at or f"{server.status.url}/v1"  # type: ignore[union-attr]  # one of both is there
        key = os.environ.get("OPENAI_API_KEY") if server is None else server.key
        asked = model or (name if server is not None else None)
        with Endpoint(address, text_of=text_of, model=asked, api_key=key) as endpoint:
            found = check_deployed(run, file, plan, ask_endpoint(endpoint), progress=progress)
    if found is None:
        raise UsageError(
            f"no prompt of {one.run} can be put to {name}", hint="deploy it with a longer --context"
        )
    _keep(one, parity=found)
    return found


def _keep(one: Deployment, **changes: object) -> None:
    """Write changes of a deployment into its record."""
    path = deployments_root() / one.name / RECORD
    write_text(path, one.model_copy(update=changes).model_dump_json(indent=2) + "\n")
