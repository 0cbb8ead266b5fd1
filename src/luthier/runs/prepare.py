"""From a recipe to a run that can start: model brought, data read, every value derived, memory predicted.

Nothing is loaded into torch here, so all of it works on a machine that could not train the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.catalog.purposes import check_supported, spec_of, tunes_preferences
from luthier.data.chat_template import check_template, read_template
from luthier.data.inputs import check_labels, load_inputs
from luthier.data.load import LoadedData, load_splits, read_chats
from luthier.data.new_tokens import told_of_new_tokens
from luthier.data.preferences import KIND as PAIRS
from luthier.data.preferences import load_preferences, read_held_out
from luthier.data.remote import pin
from luthier.data.rows import rows_for
from luthier.data.seeing import load_seeing
from luthier.data.sources import demand_files
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.data.versions import record
from luthier.errors import DoesNotFit, Unsupported
from luthier.exporting.onnx import demand_onnx
from luthier.files import readable
from luthier.hub.snapshot import LocalModel
from luthier.llamacpp.setup import converter
from luthier.models.vector_settings import read_vector_settings
from luthier.planning.audit import audit
from luthier.planning.correction import Corrections
from luthier.planning.estimate import kernels_for
from luthier.planning.licence_gate import hold_to_licence
from luthier.planning.measured import corrections_for
from luthier.planning.pairs import settle_pairs
from luthier.planning.resolve import Resolved, resolve
from luthier.runs.directory import RunDirectory, runs_root
from luthier.runs.model import Say
from luthier.runs.probe import probe
from luthier.runs.scratch import bring_model
from luthier.runs.shipping_values import check_vector_gguf
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.protocols import Progress
from luthier.schema.recipe import ClassificationChoice, Recipe
from luthier.schema.rows import RetrievalSet
from luthier.schema.run import Planned
from luthier.sizing.flops import training_flops
from luthier.sizing.model_config import architecture_of
from luthier.sizing.parameters import with_new_tokens
from luthier.training.trackers import check_trackers
from luthier.version import __version__


@dataclass(frozen=True)
class Prepared:
    """A recipe ready to be run here."""

    recipe: Recipe
    """Resolved: nothing is left to derive."""
    resolved: Resolved
    model: LocalModel
    architecture: Architecture
    hardware: Hardware
    data: LoadedData
    probe: dict[str, Any]
    now: datetime
    """What templates that print the date were told: a run that goes on another day is told the same."""


def prepare(
    recipe: Recipe,
    *,
    say: Say,
    progress: Progress | None = None,
    offline: bool = False,
    now: datetime | None = None,
) -> Prepared:
    """Bring the model, read the data, derive every value, predict, and check that it can be done.

    now: what templates that print the date are told; this moment when not given.
    Errors: everything that would fail later and can be known now: DataError, DoesNotFit,
    ModelNotFound, Unsupported, ToolchainError.
    """
    check_asked(recipe)
    check_trackers(recipe.training.trackers)
    if recipe.export is not None and recipe.export.gguf:
        converter()  # an export that cannot be made is refused before hours are spent
    if recipe.export is not None and recipe.export.onnx:
        demand_onnx()
    model = bring_model(recipe, say=say, progress=progress, offline=offline)
    for duty in hold_to_licence(recipe, "trained", named=model.licence):
        say(f"the licence asks: {duty}")
    if model.revision is not None and recipe.model.revision is None:
        pinned = recipe.model.model_copy(update={"revision": model.revision})
        recipe = recipe.model_copy(update={"model": pinned})
    recipe = recipe.model_copy(update={"data": pin(recipe.data)})
    now = now or datetime.now().astimezone()
    hardware = audit(runs_root())
    settled = settle(recipe, model, hardware, say=say, now=now)
    resolved, data = settled.resolved, settled.data
    # A length that was derived from the rows holds all of them, unless the model's context is shorter.
    if (resolved.recipe.training.sequence_length or 0) < longest_row(data):
        data = read_data(resolved.recipe, settled.tokenizer)
    check_disk(resolved, hardware)
    if recipe.data.name is not None:
        version, new = record(recipe, base=Path("/"))
        say(f"data: {version.id}" + (" (new version)" if new else ""))
        for old, count in version.leaks.items():
            say(f"{count} rows of {version.name}@{old} stand in these training rows: judge nothing on them")
    return Prepared(
        resolved.recipe, resolved, model, settled.architecture, hardware, data, settled.probe, now
    )


@dataclass(frozen=True)
class Settled:
    """A recipe with everything that its model, its rows and a machine settle."""

    resolved: Resolved
    architecture: Architecture
    """With the recipe's new tokens."""
    tokenizer: FileTokenizer
    data: LoadedData
    probe: dict[str, Any]
    """What torch does here (`runs.probe`); empty for hardware in words."""
    corrections: Corrections


def check_asked(recipe: Recipe) -> None:
    """Refuse what a recipe's own words show to be impossible, before a model is asked for.

    Errors: Unsupported, LicenceBroken, FileProblem.
    """
    check_supported(recipe)
    hold_to_licence(recipe, "trained")
    demand_files(recipe.data, base=Path("/"))


def settle(
    recipe: Recipe, model: LocalModel, hardware: Hardware, *, say: Say, now: datetime | None = None
) -> Settled:
    """Read the rows and derive every value: the one way of a training, its plan and a job's price.

    recipe: one that `check_asked` lets pass. hardware: this machine, whose speed is measured, or one in
    words. Errors: as `prepare`, but for tools and room that only the machine of the training must have.
    """
    if recipe.task == "similarity" and recipe.export is not None and recipe.export.gguf:
        pooling = recipe.similarity.pooling if recipe.similarity else None
        settings = read_vector_settings(model.path)
        check_vector_gguf(settings if pooling is None else replace(settings, pooling=(pooling,)), model.path)
    hold_to_licence(recipe, "trained", named=model.licence)
    base = architecture_of(model.path)
    check_model(recipe, base)
    tokenizer = tokenizer_of(recipe, model.path, now=now)
    architecture = with_new_tokens(base, tokenizer.new_tokens)
    if tokenizer.new_tokens:
        say(told_of_new_tokens(tokenizer))
    data = read_data(recipe, tokenizer)
    recipe = with_rows(recipe, data)
    found = {} if hardware.hypothetical else probe(hardware)
    corrections = corrections_for(hardware)
    resolved = resolve(
        recipe,
        arch=architecture,
        hardware=hardware,
        profile=data.lengths,
        matrix_rates=rates(found),
        corrections=corrections,
    )
    return Settled(resolved, architecture, tokenizer, data, found, corrections)


def longest_row(data: LoadedData) -> int:
    """Tokens of the longest row that is trained or validated on, before any cut."""
    validation = data.lengths.validation
    return max(data.lengths.train.maximum, 0 if validation is None else validation.maximum)


def tokenizer_of(recipe: Recipe, folder: Path, *, now: datetime | None = None) -> FileTokenizer:
    """A base model's tokenizer with the chat template and the new tokens that the recipe asks for."""
    asked = recipe.model.chat_template
    if recipe.vision is not None:
        template = None if asked is None else read_template(asked)
        return load_seeing(folder, max_pixels=recipe.vision.max_pixels, now=now, template=template)
    new = recipe.model.new_tokens
    if asked is None:
        return load_tokenizer(folder, now=now, new_tokens=new)
    found = load_tokenizer(folder, now=now, template=read_template(asked), new_tokens=new)
    check_template(found, asked)
    return found


def rates(found: dict[str, Any]) -> dict[str, float]:
    """Matrix rates of a probe, by type, in FLOP/s; none where nothing was measured."""
    return {dtype: float(found[dtype]) for dtype in ("float32", "bfloat16") if found}


def read_data(recipe: Recipe, tokenizer: FileTokenizer) -> LoadedData:
    """The splits of a recipe whose paths are absolute."""
    read = load_splits if spec_of(recipe.task).rows == "chats" else load_inputs
    if tunes_preferences(recipe):
        read = load_preferences
    return read(recipe, tokenizer, base=Path("/"), sequence_length=recipe.training.sequence_length)


def system_prompt(data: LoadedData) -> str | None:
    """The system prompt that all held-out rows share: what a chat with the tuned model starts from."""
    if data.splits.kind not in ("chats", PAIRS):
        return None
    found = {
        str(row.messages[0].get("content")) if row.messages[0].get("role") == "system" else None
        for rows in data.splits.tests.values()
        for row in rows
    }
    return found.pop() if len(found) == 1 else None


def check_model(recipe: Recipe, architecture: Architecture) -> None:
    """Refuse a model that cannot do what is asked. Errors: Unsupported."""
    if spec_of(recipe.task).answers == "chat" and not architecture.causal:
        raise Unsupported(
            f"{recipe.model.id} is an encoder ({architecture.model_type}): it cannot write text, which "
            f"{recipe.task} asks for",
            hint="choose a decoder (`luthier models --purpose chat`), or set task to what encoders do: "
            "multi-class-classification, multi-label-classification, similarity or reranking",
        )
    if spec_of(recipe.task).answers == "chat" and not architecture.head:
        raise Unsupported(
            f"{recipe.model.id} was saved without an output matrix over its vocabulary, as embedders and "
            f"classifiers are: it cannot write text, which {recipe.task} asks for",
            hint="choose the model that it was made from, or a task that needs no text",
        )
    if recipe.task in ("similarity", "reranking") and architecture.extra_parameters:
        # sentence-transformers asks such a folder for an image processor, which text has no use for.
        raise Unsupported(
            f"{recipe.model.id} sees ({architecture.model_type}): {recipe.task} is done with models of text",
            hint=f"choose a model of text (`luthier models --purpose {recipe.task}`), or tune it on chats "
            "with images (task: chat, vision: {})",
        )


def with_rows(recipe: Recipe, data: LoadedData) -> Recipe:
    """The recipe with what its rows settle: a classifier's labels, a similarity's or reranking's loss.

    Errors: as `check_labels` and `settle_pairs`, for rows and settings that cannot be.
    """
    splits = data.splits
    return settle_pairs(_with_labels(recipe, data), splits.train, splits.kind, validation=splits.validation)


def _with_labels(recipe: Recipe, data: LoadedData) -> Recipe:
    """The recipe with the labels of its training rows, where it trains a classifier."""
    if spec_of(recipe.task).section != "classification":
        return recipe
    choice = recipe.classification or ClassificationChoice()
    labels = check_labels(recipe, data.splits, data.report)
    sources = {} if choice.labels else {"classification.labels": f"the {len(labels)} of the training rows"}
    return recipe.model_copy(
        update={
            "classification": choice.model_copy(update={"labels": labels}),
            "sources": {**recipe.sources, **sources},
        }
    )


def read_tests(files: Mapping[str, tuple[str, ...]], recipe: Recipe) -> dict[str, Sequence[Any]]:
    """Rows of files that are only judged, read the way the recipe reads its own."""
    base = Path("/")
    if tunes_preferences(recipe):
        return {
            name: read_held_out(recipe.data, sources, base=base, name=name) for name, sources in files.items()
        }
    if spec_of(recipe.task).rows == "chats":
        seen = recipe.vision is not None
        return {
            name: read_chats(recipe.data, sources, base=base, images=seen)[0]
            for name, sources in files.items()
        }
    return {
        name: rows_for(recipe.task, recipe.data, sources, base=base, split=name).rows
        for name, sources in files.items()
    }


def read_corpus(name: str, sources: tuple[str, ...], recipe: Recipe) -> RetrievalSet | None:
    """The corpus and judgements of files that are only judged (a BEIR folder); None where there are none."""
    if spec_of(recipe.task).rows != "pairs":
        return None
    return rows_for(recipe.task, recipe.data, sources, base=Path("/"), split=name).retrieval


def check_disk(resolved: Resolved, hardware: Hardware) -> None:
    """Refuse a run whose checkpoints and exports would not fit on the disk."""
    needed = resolved.disk_bytes
    if hardware.disk_free is not None and needed > hardware.disk_free:
        raise DoesNotFit(
            f"the run would write about {readable(needed)} and {readable(hardware.disk_free)} are free",
            file=runs_root(),
            hint="free space, set LUTHIER_RUNS to another disk, or export less "
            "(export.merged=false, fewer GGUF types)",
        )


def planned(prepared: Prepared) -> Planned:
    """How the run is cut, and what one of its tokens costs."""
    resolved = prepared.resolved
    shape = resolved.shape
    kernels = kernels_for(resolved.device, str(resolved.recipe.model.dtype))
    flops = training_flops(
        prepared.architecture,
        resolved.recipe.method,
        length=(shape.mean_length or shape.sequence_length) / shape.documents,
        trained_share=shape.trained_share,
        head_everywhere=kernels.loss == "logits",
    )
    return Planned(shape=shape, tokens=resolved.tokens, steps=resolved.steps, flops=flops.total)


def create_run(prepared: Prepared, *, root: Path | None = None, run_id: str | None = None) -> RunDirectory:
    """Freeze a prepared recipe in a new run directory, with the plan that it was started on."""
    run = RunDirectory.create(prepared.recipe, root=root, run_id=run_id)
    run.save_stage("plan", "", prepared.resolved.estimate)
    run.save_stage("hardware", "", prepared.hardware)
    run.save_stage(
        "env",
        "",
        {
            "probe": prepared.probe,
            "versions": {"luthier": __version__, **prepared.hardware.versions},
            "now": prepared.now.isoformat(),
        },
    )
    run.save_stage("planned", "", planned(prepared))
    run.save_stage("data", "", prepared.data.report)
    run.save_stage(
        "model",
        "",
        {
            "path": str(prepared.model.path),
            "id": prepared.model.id,
            "revision": prepared.model.revision,
            "licence": prepared.model.licence,
            "device": prepared.resolved.device,
            "system": system_prompt(prepared.data),
        },
    )
    return run
