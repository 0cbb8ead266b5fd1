"""Ships what writes no text (vectors, scores, labels), held to the trained model on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.checks.values_parity import SAME, check_values
from luthier.errors import ParityError, Unsupported
from luthier.exporting.onnx import OnnxModel, onnx_folder, write_spec
from luthier.exporting.space import check_space
from luthier.schema.onnx import GRAPH_FILE
from luthier.schema.recipe import ExportChoice
from luthier.schema.results import ParityCheck

if TYPE_CHECKING:
    from luthier.runs.workflow import Work
    from luthier.tasks.held import Held


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
