"""Ships what writes no text (vectors, scores, labels), held to the trained model on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.checks.parity import EXACT
from luthier.checks.values_parity import BROKEN_COSINE, SAME, SAME_COSINE, check_values
from luthier.errors import ParityError, Unsupported
from luthier.evaluation.compare import compare
from luthier.evaluation.exported import quality_of
from luthier.exporting.gguf import export_gguf, forget_gguf
from luthier.exporting.onnx import OnnxModel, onnx_folder, write_spec
from luthier.exporting.space import check_space
from luthier.llamacpp.embedder import LlamaEmbedder
from luthier.llamacpp.runtime import LlamaServer, ServerSettings
from luthier.models.vector_settings import VectorSettings, read_vector_settings
from luthier.runs.stages import load_results
from luthier.schema.onnx import GRAPH_FILE
from luthier.schema.recipe import ExportChoice
from luthier.schema.results import Artifact, ParityCheck

if TYPE_CHECKING:
    from luthier.runs.workflow import Work
    from luthier.tasks.held import Held

GGUF_POOLING = ("mean", "cls", "lasttoken")
"""Ways of pooling that llama.cpp does as the trained model does them."""


def held_values(work: Work, export: ExportChoice) -> Held:
    """The trained model's answers on held-out rows. Errors: Unsupported where nothing is held out."""
    from luthier.tasks.held import held_answers

    rows: list[Any] = [row for part in work.tests.values() for row in part]
    rows = (rows or [*work.data.splits.validation])[: max(export.parity_prompts, export.quality_rows)]
    if not rows:
        raise Unsupported(
            "no row is held out, so that an export could not be checked",
            hint="set data.test or data.validation_share, or take the merged weights",
        )
    return held_answers(work.task, work.run.path, rows)


def ship_onnx(work: Work, merged: Path, held: Held) -> tuple[Path, ParityCheck]:
    """Write ``artifacts/onnx`` from the merged folder and check it. Errors: ParityError."""
    from luthier.models.onnx_graph import write_graph

    out = work.run.path / "artifacts" / "onnx"
    weights = sum(one.stat().st_size for one in merged.glob("*.safetensors"))
    # a model trained in bf16 doubles in float32
    check_space(out.parent, {"ONNX": 2 * weights})
    work.board.event("note", text="  ONNX: tracing")
    tokenizer = work.tokenizer
    with onnx_folder(merged, out) as scratch:
        spec = write_graph(
            merged,
            scratch / GRAPH_FILE,
            held.answers,
            pad_id=tokenizer.pad_id,
            gives_segments=tokenizer.gives_segments,
            limit=tokenizer.max_length,
        )
        write_spec(scratch, spec)
    parity = onnx_parity(OnnxModel(out), held)
    if not parity.passed:
        raise ParityError(
            f"the ONNX graph does not answer like the trained model: {parity.problems[0]}",
            hint="the folder is kept for a look, and is not to be used",
            file=out,
        )
    return out, parity


def onnx_parity(model: OnnxModel, held: Held) -> ParityCheck:
    """A graph in onnxruntime on the held-out inputs, texts in."""
    import numpy as np

    values: list[Any] = [None] * len(held.inputs)
    ids: list[list[int]] = [[]] * len(held.inputs)
    for role in dict.fromkeys(held.roles):
        places = [i for i, own in enumerate(held.roles) if own == role]
        inputs = [held.inputs[i] for i in places]
        for place, value, (own, _) in zip(
            places, model.run(inputs, role=role), model.encode(inputs, role), strict=True
        ):
            values[place], ids[place] = value, own
    return check_values(held, ids, np.asarray(values), allowed=SAME[held.dtype], by="onnxruntime")


def check_vector_gguf(settings: VectorSettings, folder: Path) -> None:
    """Refuse what a GGUF file cannot hold of an embedder. Errors: Unsupported with the reason."""
    why = None
    if settings.dense:
        why = "llama.cpp leaves out the dense layers after the pooling"
    elif len(settings.pooling) > 1 or settings.pooling[0] not in GGUF_POOLING:
        why = f"llama.cpp pools by {', '.join(GGUF_POOLING)} and not by {' and '.join(settings.pooling)}"
    elif not settings.include_prompt and any(settings.prompts.values()):
        why = "llama.cpp pools the prompt's tokens too"
    if why:
        raise Unsupported(f"there is no GGUF of this embedder: {why}", file=folder, hint="export it as ONNX")


def ship_vector_ggufs(work: Work, export: ExportChoice, merged: Path, held: Held) -> list[Artifact]:
    """GGUF files of an embedder, each held to the trained model and judged. Errors: ParityError."""
    settings = read_vector_settings(merged)
    check_vector_gguf(settings, merged)
    made = export_gguf(
        merged,
        work.run.path / "artifacts",
        export.gguf,
        name=work.recipe.name or work.run.id,
        relative_to=work.run.path,
        say=lambda words: work.board.event("note", text=f"  {words}"),
        progress=work.board.progress("ship", "quantising"),
    )
    return [_vectors_checked(work, export, one, held, settings) for one in made]


def _vectors_checked(
    work: Work, export: ExportChoice, artifact: Artifact, held: Held, settings: VectorSettings
) -> Artifact:
    import numpy as np

    def read(texts: Sequence[str], role: str | None) -> list[list[int]]:
        prompt = settings.prompt(role)  # type: ignore[arg-type]  # roles are those of the settings
        ready = [prompt + text for text in texts]
        ready = [one.lower() for one in ready] if settings.lower_case else ready
        return [ids for ids, _ in work.tokenizer.encode_inputs(ready, most=limit)]

    limit = settings.max_length or work.tokenizer.max_length or 512
    path, by = work.run.path / artifact.path, f"{artifact.kind} in llama.cpp"
    with LlamaServer(path, ServerSettings(context=limit + 8, embedding=True)) as server:
        embedder = LlamaEmbedder(
            server, read, label=artifact.kind, weights_digest=artifact.sha256, normalize=settings.normalize
        )
        values: list[Any] = [None] * len(held.inputs)
        ids: list[list[int]] = []
        for place, (text, role) in enumerate(zip(held.inputs, held.roles, strict=True)):
            assert isinstance(text, str)
            values[place] = embedder.encode([text], role=role)[0]
            found = server.tokenize(settings.prompt(role) + text)
            own = held.ids[place]
            # llama.cpp refuses what is too long, so whoever asks it cuts the text: its own end stays unseen
            cut = len(own) == limit < len(found)
            ids.append([*found[: limit - 1], own[-1]] if cut else found)
        least = SAME_COSINE if artifact.kind.rpartition(":")[2] in EXACT else BROKEN_COSINE
        parity = check_values(held, ids, np.stack(values), allowed=None, by=by, least=least)
        if not parity.passed:
            forget_gguf(path.parent, artifact.kind.removeprefix("gguf:"))
            raise ParityError(
                f"{path.name} does not answer like the trained model: {parity.problems[0]}",
                hint="the file is kept for a look, and is not to be used; export it as ONNX",
                file=path,
            )
        artifact = artifact.model_copy(update={"parity": parity})
        return _vectors_judged(work, artifact, embedder) if export.quality_rows else artifact


def _vectors_judged(work: Work, artifact: Artifact, embedder: LlamaEmbedder) -> Artifact:
    """The run's own metric on the first held-out split, all rows of it: a rank depends on every text."""
    from luthier.tasks.similarity import SimilarityTask

    baseline, tuned = load_results(work.run, "baseline"), load_results(work.run, "tuned")
    split = next((name for name in work.tests if name in tuned and name in baseline), None)
    if split is None:
        return artifact
    task = work.task
    assert isinstance(task, SimilarityTask)
    judged = task.judge_with(
        embedder, split, work.tests[split], told=lambda words: work.board.progress("ship", words)
    )
    gain = compare(baseline[split], tuned[split])
    return artifact.model_copy(update={"quality": quality_of(gain, tuned[split], judged, None)})
