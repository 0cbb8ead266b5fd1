"""Turns a saved embedder, reranker or classifier into an ONNX graph: tokens in, the finished answer out.

Pooling, dense layers, unit length and the activation of a score are part of the graph, so that a runtime
has nothing left to guess. Traced by torch.export; rows and length are free.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ToolchainError, Unsupported
from luthier.models.classifier import load_classifier, saved_labels
from luthier.models.embed import DenseLayers, embed, has_segments, load_backbone
from luthier.models.rerank import (
    ONE_LABEL,
    PREFIX,
    SUFFIX,
    load_reranker,
    logits_of_pairs,
    read_rerank_settings,
)
from luthier.models.vector_settings import read_vector_settings
from luthier.schema.onnx import OnnxAnswers, OnnxSpec

ONE_FILE = 1_500_000_000
"""Bytes of weights up to which they lie in the graph's own file; protobuf ends at 2 GiB."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Graph(nn.Module):
    """A model and what makes its answer out of its output."""

    def __init__(self, model: Any, answer: Any, dense: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.dense, self.answer = model, dense, answer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        found: Tensor = self.answer(self.model, inputs, self.dense)
        return found


def write_graph(
    folder: Path, out: Path, answers: OnnxAnswers, *, pad_id: int, gives_segments: bool, limit: int | None
) -> OnnxSpec:
    """Write the saved model in ``folder`` as the graph ``out`` in float32, and say how it is read.

    gives_segments: whether the tokenizer tells the two texts of a pair apart. limit: the tokenizer's
    longest input. Weights over 1.5 GB lie in ``out.data`` beside the graph. Errors: Unsupported for a
    model whose pooling depends on how long the prompt is, ToolchainError where it cannot be traced.
    """
    graph, spec = _parts(folder, answers, pad_id=pad_id, gives_segments=gives_segments, limit=limit)
    graph = graph.eval().requires_grad_(False)
    given = _example(len(spec.inputs), pad_id)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    weights = sum(one.numel() * one.element_size() for one in graph.parameters())
    try:
        with _in_silence():
            torch.onnx.export(
                graph,
                given,
                str(out),
                input_names=list(spec.inputs),
                output_names=[spec.output],
                dynamic_shapes=(free,) * len(given),
                dynamo=True,
                external_data=weights > ONE_FILE,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ToolchainError(
            f"this model cannot be traced for ONNX: {words[0][:200]}",
            file=folder,
            hint="ship the merged safetensors, which transformers and sentence-transformers load",
        ) from error
    return spec


def _parts(
    folder: Path, answers: OnnxAnswers, *, pad_id: int, gives_segments: bool, limit: int | None
) -> tuple[_Graph, OnnxSpec]:
    match answers:
        case "embed":
            return _embedder(folder, pad_id, limit)
        case "rerank":
            return _reranker(folder, pad_id, gives_segments, limit)
        case "classify":
            labels = saved_labels(folder) or ONE_LABEL
            model, _ = load_classifier(
                folder, labels, multi=False, dtype="float32", pad_id=pad_id, seed=0, attention="sdpa"
            )
            spec = OnnxSpec(
                answers="classify",
                inputs=_inputs(segments=gives_segments and _segments(model) > 1),
                output="logits",
                pad_id=pad_id,
                max_length=limit,
                labels=labels,
            )
            return _Graph(model, _logits), spec


def _embedder(folder: Path, pad_id: int, limit: int | None) -> tuple[_Graph, OnnxSpec]:
    settings = read_vector_settings(folder)
    if not settings.include_prompt and any(settings.prompts.values()):
        raise Unsupported(
            "a graph cannot leave the prompt out of the pooling: it does not know where the prompt ends",
            file=folder,
            hint="ship the merged safetensors, or tune a model that pools its prompts too",
        )
    model = load_backbone(folder, dtype="float32", attention="sdpa")
    dense = DenseLayers(settings.dense, folder) if settings.dense else None

    def answer(backbone: Any, inputs: dict[str, Tensor], layers: nn.Module | None) -> Tensor:
        return embed(backbone, settings, inputs, dense=layers)

    lengths = [one for one in (settings.max_length, limit) if one is not None]
    spec = OnnxSpec(
        answers="embed",
        inputs=_inputs(segments=has_segments(model)),
        output="vectors",
        pad_id=pad_id,
        max_length=settings.max_length or min(lengths, default=None),
        lower_case=settings.lower_case,
        prompts=dict(settings.prompts),
        default_prompt=settings.default_prompt,
        normalized=settings.normalize,
    )
    return _Graph(model, answer, dense), spec


def _reranker(folder: Path, pad_id: int, gives_segments: bool, limit: int | None) -> tuple[_Graph, OnnxSpec]:
    settings = read_rerank_settings(folder)
    model, _ = load_reranker(folder, settings, dtype="float32", pad_id=pad_id, attention="sdpa")

    def answer(reader: Any, inputs: dict[str, Tensor], layers: nn.Module | None) -> Tensor:
        del layers
        logits = logits_of_pairs(reader, settings, inputs)
        return logits.sigmoid() if settings.activation == "sigmoid" else logits

    asks = settings.form == "yes-no"
    lengths = [one for one in (settings.max_length, limit) if one is not None]
    spec = OnnxSpec(
        answers="rerank",
        inputs=_inputs(segments=gives_segments and _segments(model) > 1),
        output="scores",
        pad_id=pad_id,
        max_length=min(lengths, default=None),
        prefix=PREFIX if asks else None,
        suffix=SUFFIX if asks else None,
        instruction=settings.instruction if asks else None,
    )
    return _Graph(model, answer), spec


def _logits(model: Any, inputs: dict[str, Tensor], layers: nn.Module | None) -> Tensor:
    del layers
    extra = {"use_cache": False} if hasattr(model, "score") else {}
    found: Tensor = model(**inputs, **extra).logits.float()
    return found


def _segments(model: Any) -> int:
    return int(getattr(model.config, "type_vocab_size", 0) or 0)


def _inputs(*, segments: bool) -> tuple[str, ...]:
    return INPUTS if segments else INPUTS[:2]


def _example(count: int, pad_id: int) -> tuple[Tensor, ...]:
    """Two rows of which one is padded; their size is not that of anything in a model."""
    ids = torch.full((2, 7), 1 if pad_id != 1 else 2)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = pad_id, 0
    return (ids, mask, torch.zeros_like(ids))[:count]


@contextmanager
def _in_silence() -> Iterator[None]:
    """What torch tells its own developers while it traces is not for a user."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
