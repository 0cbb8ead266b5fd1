"""``luthier export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.errors import UsageError


def export(
    run: str,
    /,
    *,
    gguf: str = "",
    adapter: Annotated[bool, Parameter(negative="")] = False,
    merged: Annotated[bool, Parameter(negative="")] = False,
    onnx: Annotated[bool, Parameter(negative="")] = False,
    imatrix: Annotated[bool, Parameter(negative="")] = False,
    gguf_adapter: Annotated[bool, Parameter(negative="")] = False,
    quality_rows: int | None = None,
    to: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a run's adapter, merged weights, GGUF or ONNX files, each checked against the trained model.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    gguf
        Types, separated by commas: F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S, Q3_K_M.
    adapter
        The adapter alone, in PEFT format.
    merged
        The merged weights as safetensors.
    onnx
        A graph for onnxruntime (classification, similarity and reranking).
    imatrix
        Round GGUF types of four bits and less by an importance matrix of training rows.
    gguf_adapter
        The adapter as a GGUF file, which llama.cpp puts on the base model's own GGUF (`--lora`).
    quality_rows
        Held-out rows on which each GGUF file is judged by the run's own metric: 64, and 0 for none.
    to
        Also put what is named into this new folder, with card, licence and SHA256SUMS.
    json
        Print one JSON object.
    """
    from luthier.catalog.purposes import check_supported
    from luthier.cli import story
    from luthier.cli.attend import attend
    from luthier.cli.console import err, out, print_json
    from luthier.exporting.files import artifact_of
    from luthier.runs.adapters import adapter_file
    from luthier.runs.handout import check_place, hand_out, kinds_of
    from luthier.runs.registry import resolve
    from luthier.runs.stages import load_artifacts
    from luthier.schema.load import export_from
    from luthier.schema.run import Job

    whole = bool(gguf or adapter or merged or onnx)
    if not (whole or gguf_adapter):
        raise UsageError(
            "name what to export", hint="for example: luthier export latest --merged --gguf Q4_K_M,Q8_0"
        )
    found = resolve(run)
    if to is not None:
        check_place(to)
    wanted = export_from(adapter=adapter, merged=merged, gguf=gguf, onnx=onnx, imatrix=imatrix)
    if quality_rows is not None:
        if quality_rows < 0:
            raise UsageError(f"{quality_rows} rows", hint="use 0 to judge none")
        wanted = wanted.model_copy(update={"quality_rows": quality_rows})
    check_supported(found.recipe.model_copy(update={"export": wanted}))
    if wanted.gguf:
        from luthier.llamacpp.setup import converter

        converter()
    code = attend(found, Job(kind="export", export=wanted), quiet=True) if whole else 0
    if code != 0:
        return code
    artifacts = load_artifacts(found)
    kinds = kinds_of(adapter=adapter, merged=merged, onnx=onnx, gguf=wanted.gguf)
    chosen = [one for one in artifacts if one.kind in kinds]
    if gguf_adapter:
        path = adapter_file(found, say=lambda words: err().print(words, style="dim"))
        chosen.append(artifact_of(path, "adapter:gguf", relative_to=found.path))
        artifacts = [*artifacts, chosen[-1]]
    if to is not None:
        hand_out(found, chosen, to)
    if json:
        print_json({"run": found.id, "artifacts": [a.model_dump(mode="json") for a in artifacts]})
    else:
        story.show_artifacts(artifacts, found.path / "artifacts")
        if to is not None:
            out().print(f"  and as a whole in {to}", soft_wrap=True, highlight=False)
    return 0
