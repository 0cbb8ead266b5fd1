"""The ship stage: adapter, merged weights and GGUF files, each checked against the trained model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.catalog.purposes import spec_of
from luthier.checks.parity import Expected, check_parity, expect, needed_context
from luthier.checks.parity_prompts import PromptCase, fixed_cases
from luthier.data.render import prompt_ids, prompt_of
from luthier.errors import ParityError, Unsupported, UsageError
from luthier.exporting.files import artifact_of, write_checksums
from luthier.exporting.gguf import export_gguf, export_projector, forget_gguf
from luthier.exporting.licence_bundle import Provenance, permitted_name, write_licence_bundle
from luthier.exporting.model_card import CardFacts, write_model_card
from luthier.llamacpp.importance import WEIGHED_TYPES
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings
from luthier.planning.licence_gate import hold_to_licence
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import tokenizer_of
from luthier.runs.quality import QualityJudge
from luthier.runs.shipping_values import held_values, ship_onnx, ship_vector_ggufs
from luthier.runs.stages import licence_of, load_artifacts, load_comparisons, load_estimate
from luthier.schema.recipe import ExportChoice, Full
from luthier.schema.results import Artifact, ParityCheck, TrainResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.runs.workflow import Work
    from luthier.tasks.base import ModelTask

    Importance = Mapping[str, NDArray[np.float32]]

PARITY_TOKENS = 32
"""Greedy tokens of each prompt that are compared."""


def ship(work: Work, export: ExportChoice) -> list[Artifact]:
    """Write what the recipe asks for. Errors: ParityError where an export answers otherwise."""
    hold_to_licence(work.recipe, "exported", named=work.model_facts.get("licence"))
    out = work.run.path / "artifacts"
    out.mkdir(exist_ok=True)
    task = work.task
    task.load_trained(work.run.path)
    folders: dict[str, Path] = {}
    if export.adapter and not isinstance(work.recipe.method, Full):
        folders["adapter"] = task.save_adapter(out / "adapter")
    ggufs: list[Artifact] = []
    parities: dict[str, ParityCheck | None] = {}
    if export.merged or export.gguf or export.onnx:
        values = spec_of(work.recipe.task).answers != "chat"
        expected = _expected(work, task, export) if export.gguf and not values else []
        held = held_values(work, export) if values and (export.onnx or export.gguf) else None
        importance = None if values else _importance(work, task, export)
        folders["merged"] = task.save_merged(out / "merged")
        parities["merged"] = _read_back(work, folders["merged"], export)
        task.free()
        if export.gguf:
            ggufs = (
                _ggufs(work, export, folders["merged"], expected, importance)
                if held is None
                else ship_vector_ggufs(work, export, folders["merged"], held)
            )
        if held is not None and export.onnx:
            folders["onnx"], parities["onnx"] = ship_onnx(work, folders["merged"], held)
    before = {one.kind for one in load_artifacts(work.run)}  # an export joins what was written already
    if not export.merged and "merged" in folders and "merged" not in before:
        shutil.rmtree(folders.pop("merged"))
    _papers(work, out, folders, ggufs)
    made = [artifact_of(path, kind, relative_to=work.run.path) for kind, path in folders.items()]
    made = [a.model_copy(update={"parity": parities.get(a.kind)}) for a in made]
    write_checksums(out)
    return [*made, *ggufs]


def _expected(work: Work, task: ModelTask, export: ExportChoice) -> list[Expected]:
    """What a GGUF has to answer: the trained model's tokens on the parity prompts."""
    from luthier.tasks.chat import ChatTask

    assert isinstance(task, ChatTask), "other purposes are refused a GGUF when the run is prepared"
    # llama.cpp tells a template that prints the date today's, whatever it was in training.
    today = tokenizer_of(work.recipe, work.model_dir, now=datetime.now().astimezone())
    return expect(
        task.tuned_generator(work.run.path),
        parity_cases(work, export.parity_prompts),
        tokenizer=today,
        max_new_tokens=PARITY_TOKENS,
        progress=work.board.progress("ship", "the trained model on the parity prompts"),
    )


def _importance(work: Work, task: ModelTask, export: ExportChoice) -> Importance | None:
    """What drives the trained model's layers, where a file of few bits is to be rounded by it."""
    from luthier.tasks.chat import ChatTask

    if not export.imatrix or not any(kind in WEIGHED_TYPES for kind in export.gguf):
        return None
    assert isinstance(task, ChatTask)
    progress = work.board.progress("ship", "an importance matrix of training rows")
    return task.importance(work.run.path, work.data.splits, progress=progress)


def _read_back(work: Work, merged: Path, export: ExportChoice) -> ParityCheck | None:
    """The merged folder read as others will read it. Errors: ParityError where it answers otherwise."""
    rows = [row for rows in work.data.splits.tests.values() for row in rows] or [*work.data.splits.validation]
    parity = work.task.check_saved(merged, rows[: export.parity_prompts])
    if parity is not None and not parity.passed:
        raise ParityError(
            f"the merged model does not answer like the trained one: {parity.problems[0]}",
            hint="the folder is kept for a look, and is not to be used",
            file=merged,
        )
    return parity


def _papers(work: Work, out: Path, folders: Mapping[str, Path], ggufs: Sequence[Artifact]) -> None:
    """A model card and the licence's papers beside each kind of weights."""
    run, recipe, facts = work.run, work.recipe, work.model_facts
    licence = licence_of(facts.get("licence"))
    provenance = Provenance(
        base_model=recipe.model.id,
        base_revision=facts.get("revision"),
        licence=licence,
        changes=f"tuned with {recipe.method.name} on {recipe.task} data by Luthier",
    )
    rows = {f"{split.name} rows": split.kept for split in work.data.report.splits}
    from_hub = "/" in recipe.model.id and not Path(recipe.model.id).is_absolute()
    kinds = {**folders, "gguf": out} if ggufs else folders
    for kind, folder in kinds.items():
        facts_of_card = CardFacts(
            name=permitted_name(recipe.name or run.id, licence),
            recipe=recipe,
            provenance=provenance,
            train=run.stage("train", TrainResult),
            comparisons=load_comparisons(run),
            artifacts=ggufs,
            data_summary=rows,
            estimate=load_estimate(run),
            files=sorted(p.name for p in folder.iterdir() if p.is_file()),
            kind=kind,
            hub_base=recipe.model.id if from_hub else None,
        )
        write_model_card(folder, facts_of_card)
        write_licence_bundle(folder, provenance, base_dir=work.model_dir)


def parity_cases(work: Work, count: int) -> list[PromptCase]:
    """Prompts of the user's held-out rows, then the fixed ones that the model's template and context take."""
    held = [row for rows in work.data.splits.tests.values() for row in rows]
    # llama.cpp is asked in text: rows with images are held to the trained model in torch alone.
    rows = [row for row in held if not any(isinstance(m["content"], list) for m in row.messages)][:count]
    own = [PromptCase(f"held-out row {i + 1}", prompt_of(row), row.tools) for i, row in enumerate(rows)]
    room = (work.tokenizer.max_length or 2**31) - PARITY_TOKENS
    cases = [*own, *fixed_cases(work.tokenizer)]
    return [c for c in cases if len(prompt_ids(list(c.messages), work.tokenizer, c.tools)) <= room]


def _ggufs(
    work: Work,
    export: ExportChoice,
    merged: Path,
    expected: Sequence[Expected],
    importance: Importance | None,
) -> list[Artifact]:
    made = export_gguf(
        merged,
        work.run.path / "artifacts",
        export.gguf,
        name=work.recipe.name or work.run.id,
        relative_to=work.run.path,
        importance=importance,
        say=lambda words: work.board.event("note", text=f"  {words}"),
        progress=work.board.progress("ship", "quantising"),
    )
    judge = QualityJudge(work, 0 if work.recipe.vision is not None else export.quality_rows)
    checked = [judge(_checked(work, artifact, expected)) for artifact in made]
    return [*checked, *_projector(work, merged)]


def _projector(work: Work, merged: Path) -> list[Artifact]:
    """The vision projector of a model that sees: with what was trained of it, else the base's own."""
    try:
        made = export_projector(
            merged,
            work.run.path / "artifacts",
            name=work.recipe.name or work.run.id,
            relative_to=work.run.path,
        )
    except Unsupported as error:
        work.board.event("note", text=f"  no vision projector: {error.message}")
        return []
    return [] if made is None else [made]


def _checked(work: Work, artifact: Artifact, expected: Sequence[Expected]) -> Artifact:
    path = work.run.path / artifact.path
    settings = ServerSettings(context=needed_context(expected))
    with LlamaServer(path, settings) as server:
        parity = check_parity(
            expected,
            GgufGenerator(server, artifact.kind, artifact.sha256),
            progress=work.board.progress("ship", f"{artifact.kind} in llama.cpp"),
        )
    if not parity.passed:
        forget_gguf(path.parent, artifact.kind.removeprefix("gguf:"))
        raise ParityError(
            f"{path.name} does not answer like the trained model: {parity.problems[0]}",
            hint="the file is kept for a look, and is not to be used; "
            + (
                f"{len(parity.problems) - 1} more problems"
                if len(parity.problems) > 1
                else "see its cause above"
            ),
            file=path,
        )
    return artifact.model_copy(update={"parity": parity, "notes": (*artifact.notes, *parity.notes)})


def chat_files(run: RunDirectory, gguf: str | None) -> tuple[Path, str | None]:
    """The GGUF that answers a chat, and the system prompt that its held-out rows share.

    Errors: UsageError where there is none of that type.
    """
    found = {
        a.kind.removeprefix("gguf:"): run.path / a.path for a in load_artifacts(run) if a.kind[:5] == "gguf:"
    }
    found = {kind: path for kind, path in found.items() if path.exists()}
    if not found:
        raise UsageError(f"{run.id} has no GGUF yet", hint=f"luthier export {run.id} --gguf Q4_K_M")
    if gguf is not None and gguf not in found:
        raise UsageError(
            f"{run.id} has no {gguf}",
            hint=f"it has {', '.join(found)}; or: luthier export {run.id} --gguf {gguf}",
        )
    path = found[gguf] if gguf is not None else min(found.values(), key=lambda p: p.stat().st_size)
    return path, (run.stage_values("model") or {}).get("system")
