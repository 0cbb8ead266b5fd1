"""From the words of a command to models that a gateway serves: which file, what memory, which names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from luthier.catalog.purposes import spec_of
from luthier.errors import UsageError
from luthier.exporting.files import folder_digest
from luthier.files import file_sha256
from luthier.llamacpp.runtime import LlamaServer, ServerSettings
from luthier.planning.audit import audit
from luthier.runs import registry
from luthier.runs.adapters import adapter_file, base_file, one_base
from luthier.runs.answer import model_folder
from luthier.runs.devices import CPU, Place, on_device, pick, plan_on
from luthier.runs.directory import RunDirectory
from luthier.runs.process import torch_environment
from luthier.runs.shipping import chat_files
from luthier.schema.deployment import ContextPlan
from luthier.schema.onnx import SPEC_FILE, OnnxSpec
from luthier.schema.recipe import ModelChoice
from luthier.schema.results import TrainResult
from luthier.serving.adapters import Adapter, LiveAdapters, only_adapter
from luthier.serving.backends import LlamaBackend
from luthier.serving.gateway import Gateway, Served
from luthier.serving.torch_backend import Kind, TorchBackend

Say = Callable[[str], None]
TORCH: tuple[Kind, ...] = ("embed", "rerank", "classify")


@dataclass(frozen=True, slots=True)
class Choice:
    """One model to serve."""

    name: str
    kind: Literal["chat"] | Kind
    path: Path
    """A GGUF file for chat, a folder for the others."""
    trained: int | None = None
    facts: tuple[tuple[str, Any], ...] = ()
    adapters: tuple[tuple[str, Path], ...] = ()
    """Names and files of adapters on this base."""
    adapter_facts: tuple[tuple[tuple[str, Any], ...], ...] = ()
    """For each adapter, which run and step it is of."""
    base: ModelChoice | None = None
    """What all adapters were tuned from; None where there are none."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *(name for name, _ in self.adapters))


def choose(words: str, gguf: str | None = None) -> Choice:
    """One model by ``[NAME=]RUN|FILE|FOLDER``. Errors: UsageError, FileProblem."""
    name, _, target = words.rpartition("=")
    path = Path(target).expanduser()
    if path.suffix == ".gguf" or path.is_file():
        return Choice(name or path.stem, "chat", path.resolve())
    if (path / "config.json").is_file():
        return Choice(name or path.resolve().name, kind_of_folder(path), path.resolve())
    run = registry.resolve(target)
    recipe, label = run.recipe, name or run.recipe.name or run.id
    answers = spec_of(recipe.task).answers
    facts = (("run", run.id), ("base", recipe.model.id), *_step(run))
    if answers in TORCH:
        return Choice(label, answers, model_folder(str(run.path), answers), facts=facts)
    file, _ = chat_files(run, gguf)
    return Choice(label, "chat", file, recipe.training.sequence_length, (*facts, ("file", file.name)))


def _step(run: RunDirectory) -> tuple[tuple[str, Any], ...]:
    """The optimiser step whose weights were shipped, where the run says."""
    trained = run.stage("train", TrainResult)
    step = "" if trained is None else trained.selected_checkpoint.rpartition("-")[2]
    return (("step", int(step)),) if step.isdigit() else ()


def kind_of_folder(folder: Path) -> Kind:
    """How a saved model or ONNX graph answers, by its files. Errors: UsageError for one that chats."""
    if (folder / SPEC_FILE).is_file():
        return OnnxSpec.model_validate_json((folder / SPEC_FILE).read_text(encoding="utf-8")).answers
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    classes = " ".join(config.get("architectures") or ())
    if (folder / "modules.json").is_file():
        return "embed"
    if "ForSequenceClassification" in classes:
        return "rerank" if len(config.get("id2label") or {0: 0, 1: 1}) == 1 else "classify"
    if "ForCausalLM" in classes or "ForConditionalGeneration" in classes:
        raise UsageError(
            f"{folder} holds a model that chats: it is served as GGUF",
            hint="name a run or a .gguf file, or deploy the folder with vLLM: luthier deploy RUN --to vllm",
        )
    return "embed"


def choose_adapters(models: Sequence[str], adapters: Sequence[str], *, say: Say) -> Choice:
    """One base with the adapters of several runs (``NAME=RUN``). Errors: UsageError."""
    if len(models) > 1:
        raise UsageError("adapters stand on one base", hint="name one .gguf file, or none")
    runs = {}
    for words in adapters:
        name, _, target = words.rpartition("=")
        run = registry.resolve(target)
        runs[name or run.recipe.name or run.id] = run
    if len(runs) < len(adapters):
        raise UsageError("two adapters have one name", hint="name them: --adapter a=RUN1 --adapter b=RUN2")
    base = one_base(list(runs.values()))
    if models:
        chosen = choose(models[0])
        name, path = chosen.name, chosen.path
    else:
        name, path = base.id.rpartition("/")[2], base_file(base, say=say)
    trained = max((run.recipe.training.sequence_length or 0 for run in runs.values()), default=0) or None
    files = tuple((name, adapter_file(run, say=say)) for name, run in runs.items())
    told = tuple((("run", run.id), *_step(run)) for run in runs.values())
    return Choice(name, "chat", path, trained, (("base", base.id), ("file", path.name)), files, told, base)


def live_adapters(gateway: Gateway, one: Choice, *, say: Say) -> LiveAdapters:
    """Let requests load adapters of runs on a served base, and drop them.

    one: as :func:`choose_adapters` gives it, and served by the gateway.
    """
    base = one.base
    assert base is not None

    def find(target: str) -> Adapter:
        run = registry.resolve(target)
        other = run.recipe.model
        if (other.id, other.revision) != (base.id, base.revision):
            raise UsageError(
                f"{run.id} was tuned from {other.id}, and {base.id} is served", hint="serve it apart"
            )
        path = adapter_file(run, say=say)
        return Adapter(path, _adapter_facts(path, (("run", run.id), *_step(run))))

    facts = one.adapter_facts or ((),) * len(one.adapters)
    known = {
        name: Adapter(path, _adapter_facts(path, own))
        for (name, path), own in zip(one.adapters, facts, strict=True)
    }
    return LiveAdapters(gateway, one.name, known, find)


def _adapter_facts(path: Path, own: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {**dict(own), "adapter": path.name, "adapter_sha256": file_sha256(path)}


def build(
    choices: Sequence[Choice],
    *,
    context: int | None = None,
    slots: int = 4,
    embedding: bool = False,
    device: str | None = None,
) -> tuple[dict[str, Served], dict[str, ContextPlan]]:
    """Backends by name, and what each GGUF takes of the memory that those before it leave.

    device: ``cpu``, ``gpu:1``, ``auto`` (the GPU with most room, else the CPU); where None llama.cpp takes
    what it was built for and the machine's memory is planned with. Errors: UsageError for two models of one
    name, DoesNotFit with what would fit.
    """
    names = [name for one in choices for name in one.names]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two models would be called {max(names, key=names.count)}", hint="name them: a=RUN1 b=RUN2"
        )
    machine = audit()
    place = pick(machine, device or CPU)
    served: dict[str, Served] = {}
    plans: dict[str, ContextPlan] = {}
    for one in choices:
        if one.kind != "chat":
            served[one.name] = _torch(one)
            continue
        plan = plan_on(machine, place, one.path, context=context, slots=slots, trained=one.trained)
        place = replace(place, free=place.free - plan.total)
        plans[one.name] = plan
        served |= _llama(one, plan, embedding=embedding, place=None if device is None else place)
    return served, plans


def _torch(one: Choice) -> Served:
    assert one.kind != "chat"
    named = dict(one.facts).get("base", one.path.name)
    environment = torch_environment() | {"HF_HUB_OFFLINE": "1"}
    backend = TorchBackend(
        one.kind,
        one.path,
        command=[sys.executable, "-m", "luthier.tasks.stay", one.kind, str(one.path), named],
        weights=folder_digest(one.path),
        environment=environment,
    )
    return Served(backend, facts=dict(one.facts))


def _llama(one: Choice, plan: ContextPlan, *, embedding: bool, place: Place | None) -> dict[str, Served]:
    settings = ServerSettings(
        context=plan.context,
        slots=plan.slots,
        embedding=embedding,
        alias=one.name,
        adapters=tuple((str(path), 1.0) for _, path in one.adapters),
    )
    if place is not None:
        settings = on_device(settings, place)
    backend = LlamaBackend(LlamaServer(one.path, settings), weights=file_sha256(one.path))
    facts = {**dict(one.facts), "context": plan.context}
    found = {one.name: Served(backend, only_adapter(None, len(one.adapters)), facts)}
    for index, (name, path) in enumerate(one.adapters):
        told = one.adapter_facts[index] if one.adapter_facts else ()
        own = {**facts, **_adapter_facts(path, told)}
        found[name] = Served(backend, only_adapter(index, len(one.adapters)), own)
    return found
