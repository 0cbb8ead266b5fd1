"""``luthier deploy`` and ``luthier deployments``: models made ready for a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from luthier.cli.console import byte_bar, err, memory, out, print_json
from luthier.errors import ParityError
from luthier.schema.deployment import Deployment, Target

if TYPE_CHECKING:
    from luthier.schema.deployment import ContextPlan
    from luthier.schema.results import ParityCheck

Flag = Annotated[bool, Parameter(negative="")]


def deploy(
    run: str = "latest",
    /,
    *,
    to: Target = "folder",
    name: str | None = None,
    gguf: str | None = None,
    context: int | None = None,
    slots: int = 1,
    cache_type: str = "f16",
    hardware: str | None = None,
    device: str = "auto",
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Make a run's model ready for Ollama, LM Studio, llama.cpp or vLLM, its context sized to the memory.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    to
        ollama, lmstudio, llama.cpp, vllm, folder (all that llama.cpp, Ollama and LM Studio need), or
        bundle (the same with installers for other machines).
    name
        Name of the deployment; the recipe's name when not given, with the target behind it where one for
        another target has that name. One of the same name and target is replaced.
    gguf
        Which type of the run's GGUF files; the smallest when not given.
    context
        Tokens of each slot; chosen from memory, model and training when not given.
    slots
        Requests that are answered at once.
    cache_type
        Type of keys and values: f16, q8_0, q4_0...
    hardware
        The target machine in words ("rtx 4090", mac:32GB, cpu:16GB); this one when not given.
    device
        Which device of that machine: cpu, gpu:1, or auto for the GPU with most room, else the CPU.
    dry_run
        Say what it would be and write nothing.
    json
        Print one JSON object.
    """
    from luthier.runs.deploying import Wish, deployments_root, devices
    from luthier.runs.deploying import deploy as make
    from luthier.runs.devices import listed
    from luthier.runs.registry import resolve

    wish = Wish(to, name, gguf, context, slots, cache_type, hardware, device)
    with byte_bar("importing") as progress:
        made = make(
            resolve(run),
            wish,
            say=lambda words: err().print(words, style="dim", highlight=False),
            progress=progress,
            dry_run=dry_run,
        )
    if json:
        print_json(made.model_dump(mode="json"))
    else:
        _print(made)
        found = devices(hardware)
        if len(found) > 1:
            out().print(f"  devices: {listed(found)}", highlight=False, soft_wrap=True)
        if not dry_run:
            out().print(f"Written: {deployments_root() / made.name}", highlight=False, soft_wrap=True)
    if made.parity is not None and not made.parity.passed:
        raise ParityError(
            f"{made.name} does not answer like the file that it is made of: {made.parity.problems[0]}",
            hint=f"it is kept for a look; luthier deployments rm {made.name}",
        )


def _print(one: Deployment) -> None:
    out().print(
        f"{one.name}: {one.kind} of {one.run} for {one.target}, from {one.base_model}", highlight=False
    )
    if one.plan is not None:
        _print_plan(one.plan)
    if one.smoke is not None:
        tried = one.smoke
        speed = f", {tried.tokens_per_second:.0f} tokens/s" if tried.tokens_per_second else ""
        held = f", {memory(tried.memory)} held" if tried.memory else ""
        end = "ended by itself" if tried.stopped else "was cut at its longest"
        out().print(
            f"  tried: {tried.prompt!r} -> {_short(tried.answer)!r} ({end}{speed}{held})", highlight=False
        )
    if one.parity is not None:
        out().print(f"  parity: {_parity(one.parity)}", highlight=False, soft_wrap=True)
        for problem in one.parity.problems:
            out().print(f"    {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    for note in one.notes:
        out().print(f"  note: {note}", highlight=False)
    for step in one.steps:
        out().print(f"  next: {step}", highlight=False, soft_wrap=True)


def _parity(found: ParityCheck) -> str:
    """An endpoint beside the exported file, in a line."""
    words = (
        f"{found.equal_token_ids} of {found.prompts} prompts read and answered as the exported file does "
        f"({found.equal_tokens} of {found.compared_tokens} decided tokens)"
    )
    return words if found.passed else f"failed: {words}"


def _print_plan(plan: ContextPlan) -> None:
    of_model = f"the model reads {plan.model_context:,}"
    parts = f"weights {memory(plan.weights)}, cache {memory(plan.cache)}, buffers {memory(plan.buffers)}"
    free = f"{memory(plan.free)} on {plan.where}"
    out().print(
        f"  context: {plan.slots} x {plan.context:,} tokens ({plan.why}); {of_model}\n"
        f"  memory: {memory(plan.total)} of {free}: {parts}",
        highlight=False,
    )
    if plan.longer:
        more = ", ".join(f"{tokens:,} would take {memory(size)}" for tokens, size in plan.longer.items())
        out().print(f"  longer: {more}", highlight=False)


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


app = App(name="deployments", help="Models made ready for a runtime.", help_format="plaintext")


@app.default
def ls(*, json: Flag = False) -> None:
    """List deployments."""

    from datetime import datetime

    from luthier.cli.story import columns
    from luthier.runs.deployed import running
    from luthier.runs.deploying import deployments_root, list_deployments

    found = list_deployments()
    if json:
        print_json({"deployments": [one.model_dump(mode="json") for one in found]})
        return
    if not found:
        out().print(f"No deployments under {deployments_root()}. Make one: luthier deploy RUN --to ollama")
        return
    table = columns("name", "for", "weights", "run", "context", "made", "runs at", numbers=(4,))
    for one in found:
        server = running(one)
        context = f"{one.plan.slots} x {one.plan.context:,}" if one.plan else ""
        table.add_row(
            one.name,
            one.target,
            one.kind,
            one.run,
            context,
            f"{datetime.fromtimestamp(one.created).astimezone():%Y-%m-%d %H:%M}",
            "" if server is None else f"{server.status.url}/v1",
        )
    out().print(table)


@app.command
def show(name: str, /, *, json: Flag = False) -> None:
    """Show one deployment."""
    from luthier.runs.deploying import find_deployment

    found = find_deployment(name)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found)


@app.command
def start(name: str, /, *, port: int = 0, json: Flag = False) -> None:
    """Serve a deployment's file here, in the background, with the context that it was sized for.

    Parameters
    ----------
    name
        The deployment.
    port
        Port to listen on; a free one when not given.
    json
        Print one JSON object.
    """
    from luthier.runs.deployed import start as begin

    server = begin(name, port=port)
    facts = {"name": name, "server": server.id, "url": f"{server.status.url}/v1", "api_key": server.key}
    if json:
        print_json(facts)
        return
    out().print(
        f"{name} answers at {facts['url']}\nAPI key: {facts['api_key']}\n"
        f"stop it with: luthier deployments stop {name}",
        highlight=False,
        soft_wrap=True,
    )


@app.command
def stop(name: str, /) -> None:
    """End what runs of a deployment: the server started here, or Ollama's copy in memory."""
    from luthier.runs.deployed import stop as end

    out().print(f"{name} is stopped: {end(name)}", highlight=False)


@app.command
def check(name: str, /, *, at: str | None = None, model: str | None = None, json: Flag = False) -> int:
    """Put prompts of the run to a deployment that answers, and hold it to the exported file.

    Parameters
    ----------
    name
        The deployment.
    at
        Address of an OpenAI-compatible endpoint, up to and with /v1 (its key in OPENAI_API_KEY); the server
        that was started here, or Ollama, when not given.
    model
        Which model of that endpoint.
    json
        Print one JSON object.
    """
    from luthier.cli.console import row_bar
    from luthier.runs.deployed import check as hold

    with row_bar(name) as progress:
        found = hold(name, at=at, model=model, progress=progress)
    if json:
        print_json({"name": name, "parity": found.model_dump(mode="json")})
    else:
        out().print(f"{name}: {_parity(found)}", highlight=False, soft_wrap=True)
        for problem in found.problems:
            out().print(f"  {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
    return 0 if found.passed else ParityError.exit_code


@app.command
def rm(name: str, /) -> None:
    """Delete a deployment, and what it wrote into Ollama or LM Studio. The run stays as it is."""
    from luthier.runs.deployed import remove

    gone = remove(name)
    out().print(f"{gone.name} is gone" + "".join(f"; {place} too" for place in gone.places), highlight=False)
