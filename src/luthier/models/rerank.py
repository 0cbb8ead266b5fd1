"""Cross-encoders: one score for a query and a document that are read together.

Two forms. ``classification``: a head with a single score (BERT-like rerankers, and decoders saved as
sequence classifiers). ``yes-no``: a decoder is asked whether the document answers the query, and its
score is the logit of ``yes`` less that of ``no`` (Qwen3-Reranker; Zhang et al. 2025, arXiv 2506.05176).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.errors import Unsupported
from luthier.files import write_text
from luthier.models.classifier import load_classifier, saved_labels
from luthier.models.load import CONFIG, check_model_directory, load_causal
from luthier.schema.protocols import Progress
from luthier.schema.recipe import Dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

Form = Literal["classification", "yes-no"]
Activation = Literal["sigmoid", "identity"]
Pair = tuple[str, str]
Inputs = dict[str, Tensor]
Batches = Callable[[Sequence[Pair]], Iterable[tuple[Sequence[int], Inputs]]]
"""Pairs to padded batches on the model's device, each with the places of its pairs."""

ONE_LABEL = ("LABEL_0",)
"""What transformers calls the only label of a head with one score."""
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""What Qwen3-Reranker was trained with most; its maker's default."""
_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
PREFIX = f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
LOGITS = "1_LogitScore"
_MODULES, _LENGTHS, _PROMPTS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


@dataclass(frozen=True, slots=True)
class RerankSettings:
    """How a saved model scores."""

    form: Form
    activation: Activation
    """What becomes of the logit: a share between 0 and 1, or the logit itself."""
    has_head: bool
    """Whether the folder scores already; a fresh head says nothing."""
    yes: int | None = None
    no: int | None = None
    """yes-no: ids of the two tokens."""
    instruction: str = INSTRUCTION
    max_length: int | None = None


def read_rerank_settings(folder: Path, *, form: Form | None = None) -> RerankSettings:
    """What the folder says of itself; form: what is wanted where it does not say.

    A head with one score is ``classification``; a folder with sentence-transformers' LogitScore, or a
    causal model whose name says reranker, ``yes-no``; anything else gets a fresh head.
    """
    settings = check_model_directory(folder)
    head = saved_labels(folder)
    logits = _logit_score(folder)
    named = f"{settings.get('_name_or_path', '')} {folder.name}".lower()
    causal = any("ForCausalLM" in kind for kind in settings.get("architectures") or ())
    ready = logits is not None or (causal and "rerank" in named)
    if form is None:
        form = "yes-no" if ready and head is None else "classification"
    if form == "yes-no" and not causal:
        raise Unsupported(
            f"{settings.get('model_type')} writes no text, so it has no logits of yes and no",
            file=folder / CONFIG,
            hint="set reranking.form: classification",
        )
    values = logits or {}
    return RerankSettings(
        form,
        _activation(folder, settings) if form == "classification" else "sigmoid",
        has_head=form == "yes-no" or (head is not None and len(head) == 1),
        yes=values.get("true_token_id"),
        no=values.get("false_token_id"),
        instruction=str(values.get("instruction") or INSTRUCTION),
        max_length=_read(folder / _LENGTHS).get("max_seq_length"),
    )


def _logit_score(folder: Path) -> dict[str, Any] | None:
    """Settings of the step that turns logits into a score, where the folder has one."""
    if not (folder / _MODULES).is_file():
        return None
    steps = json.loads((folder / _MODULES).read_text(encoding="utf-8"))
    for step in steps:
        if str(step.get("type", "")).endswith("LogitScore"):
            own = _read(folder / str(step["path"]) / "config.json")
            return {**own, **_read(folder / LOGITS / "instruction.json")}
    return None


def _activation(folder: Path, settings: dict[str, Any]) -> Activation:
    """As sentence-transformers reads it: its own configuration, the model's, else a share."""
    named = (
        _read(folder / _PROMPTS).get("activation_fn")
        or (settings.get("sentence_transformers") or {}).get("activation_fn")
        or settings.get("sbert_ce_default_activation_function")
    )
    return "identity" if named is not None and str(named).endswith("Identity") else "sigmoid"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def load_reranker(
    folder: Path,
    settings: RerankSettings,
    *,
    dtype: Dtype,
    pad_id: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """The model, dropout off, and the paths of the modules that scores alone need (a head)."""
    if settings.form == "yes-no":
        model = load_causal(
            folder, dtype=dtype, device=device, attention=attention, trust_remote_code=trust_remote_code
        )
        return model, ()
    head = saved_labels(folder)
    return load_classifier(
        folder,
        head if head is not None and len(head) == 1 else ONE_LABEL,
        multi=False,
        dtype=dtype,
        pad_id=pad_id,
        seed=seed,
        device=device,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )


def logits_of_pairs(model: Any, settings: RerankSettings, inputs: Inputs) -> Tensor:
    """One fp32 logit a pair, with its graph: [pairs]. Padding is on the right."""
    extra = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    if settings.form == "classification":
        found: Tensor = model(**inputs, **extra).logits.float().squeeze(-1)
        return found
    states = model.base_model(**inputs, **extra).last_hidden_state
    mask = inputs["attention_mask"]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    ends = states[torch.arange(len(states), device=states.device), last]
    assert settings.yes is not None
    assert settings.no is not None
    # Two rows of the head instead of a whole vocabulary.
    weight = model.get_output_embeddings().weight[[settings.yes, settings.no]]
    two: Tensor = (ends @ weight.t()).float()
    return two[:, 0] - two[:, 1]


def template(instruction: str) -> str:
    """A chat template over the roles query and document, as sentence-transformers gives pairs to it."""
    words = json.dumps(instruction, ensure_ascii=False)
    return (
        f"{{{{- {json.dumps(PREFIX)} -}}}}"
        f"{{{{- '<Instruct>: ' ~ {words} -}}}}"
        "{%- for message in messages if message.role == 'query' -%}"
        "{{- '\\n<Query>: ' ~ message.content -}}{%- endfor -%}"
        "{%- for message in messages if message.role == 'document' -%}"
        "{{- '\\n<Document>: ' ~ message.content -}}{%- endfor -%}"
        f"{{{{- {json.dumps(SUFFIX)} -}}}}"
    )


def write_rerank_settings(folder: Path, settings: RerankSettings) -> None:
    """Write what makes ``CrossEncoder(folder)`` give the same scores as here."""
    name = "Identity" if settings.activation == "identity" else "Sigmoid"
    place = "linear" if name == "Identity" else "activation"
    path = f"torch.nn.modules.{place}.{name}"
    told: dict[str, Any] = {"model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None}
    _write(folder / _PROMPTS, {**told, "activation_fn": path})
    config = _read(folder / CONFIG)
    config["sentence_transformers"] = {**config.get("sentence_transformers", {}), "activation_fn": path}
    _write(folder / CONFIG, config)
    if settings.form == "classification":
        _cut_at(folder / "tokenizer_config.json", settings.max_length)
        return
    steps = [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": LOGITS,
            "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    write_text(folder / _MODULES, json.dumps(steps, indent=2) + "\n")
    forward = {"method": "forward", "method_output_name": "logits"}
    _write(
        folder / _LENGTHS,
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": forward, "message": {**forward, "format": "flat"}},
            "module_output_name": "causal_logits",
            "max_seq_length": settings.max_length,
        },
    )
    (folder / LOGITS).mkdir(exist_ok=True)
    _write(folder / LOGITS / "config.json", {"true_token_id": settings.yes, "false_token_id": settings.no})
    _write(folder / LOGITS / "instruction.json", {"instruction": settings.instruction})
    write_text(folder / "chat_template.jinja", template(settings.instruction))


def _cut_at(path: Path, longest: int | None) -> None:
    """Let the tokenizer say how long a pair may be: there alone CrossEncoder looks for it."""
    values = _read(path)
    if longest is not None and values.get("model_max_length") != longest:
        _write(path, {**values, "model_max_length": longest})


def _write(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


class TorchReranker:
    """Scores of pairs by a loaded model. batches: pairs as the model reads them."""

    def __init__(
        self,
        model: Any,
        settings: RerankSettings,
        batches: Batches,
        *,
        label: str,
        weights_digest: str,
        scope: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.settings, self.batches = model, settings, batches
        self.label, self.weights_digest, self.scope = label, weights_digest, scope

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair], *, progress: Progress | None = None) -> NDArray[np.float64]:
        """Scores in the order of the pairs, after the model's activation: [pairs]."""
        found = np.zeros(len(pairs))
        done = 0
        was_training = self.model.training
        self.model.eval()
        try:
            with self.scope():
                for places, inputs in self.batches(pairs):
                    logits = logits_of_pairs(self.model, self.settings, inputs)
                    scores = logits.sigmoid() if self.settings.activation == "sigmoid" else logits
                    found[list(places)] = scores.double().cpu().numpy()
                    done += len(places)
                    if progress is not None:
                        progress(done, len(pairs))
        finally:
            self.model.train(was_training)
        return found
