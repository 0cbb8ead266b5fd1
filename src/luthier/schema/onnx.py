"""What lies beside an ONNX graph: how texts become its inputs, and what its output means."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record

SPEC_FILE = "luthier_onnx.json"
GRAPH_FILE = "model.onnx"
OnnxAnswers = Literal["embed", "rerank", "classify"]


class OnnxSpec(Record):
    """How a text is read by an ONNX graph. Inputs are int64 [rows, length], padded on the right."""

    answers: OnnxAnswers
    """embed: vectors; rerank: a score for a query and a text; classify: a logit a label."""
    inputs: tuple[str, ...]
    """Names in order: input_ids, attention_mask, and token_type_ids where the model has segments."""
    output: str
    """``vectors`` [rows, dims], pooled and (where the model does it) of unit length; ``scores`` [rows],
    after the activation; ``logits`` [rows, labels]. All float32."""
    pad_id: int
    max_length: int | None = None
    """Longest input in tokens, special tokens counted; what is longer loses its end."""
    lower_case: bool = False
    """Whether texts are put into lower case before the tokenizer."""
    prompts: dict[str, str] = {}
    """embed: name of a role -> what is put before a text."""
    default_prompt: str | None = None
    """embed: name of the prompt for texts without a role."""
    normalized: bool = False
    """embed: whether vectors have unit length."""
    prefix: str | None = None
    """rerank by a decoder's yes and no: text before what is judged; None for a model with a head."""
    suffix: str | None = None
    """rerank by a decoder's yes and no: text after it."""
    instruction: str | None = None
    """rerank by a decoder's yes and no: what the model is told to judge."""
    labels: tuple[str, ...] = ()
    """classify: label of each logit; probabilities and thresholds are those of luthier_classifier.json."""
