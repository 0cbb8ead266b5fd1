"""Encoders and decoders with a head over labels, as AutoModelForSequenceClassification has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from luthier.errors import Unsupported
from luthier.models.load import CONFIG, DTYPES, check_model_directory, demand_all, explained, quiet
from luthier.schema.protocols import Progress
from luthier.schema.recipe import Dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADS = ("classifier", "score", "classification_head")
"""Names that transformers gives to heads over labels; a decoder's is ``score``."""
FRESH = (*HEADS, "pooler", "head", "pre_classifier")
"""What may be missing in a base model: the head, and the layers before it that some families add."""


def load_classifier(
    directory: Path,
    labels: Sequence[str],
    *,
    multi: bool,
    dtype: Dtype,
    pad_id: int,
    seed: int,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """The model in that folder with a head over labels, dropout off, and the paths of its fresh modules.

    A head over the same labels that the folder has is kept; any other is made anew, from seed. Decoders
    pool at the last token that is not padding. Errors: Unsupported where the family has no such head,
    FileProblem where weights of the backbone are missing.
    """
    settings = check_model_directory(directory)
    known = saved_labels(directory) == tuple(labels)
    with quiet():
        from transformers import AutoConfig, AutoModelForSequenceClassification

        try:
            config = AutoConfig.from_pretrained(
                directory,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: index for index, label in enumerate(labels)},
                problem_type=_problem(len(labels), multi=multi),
            )
            if getattr(config, "pad_token_id", None) is None:
                config.pad_token_id = pad_id
            torch.manual_seed(seed)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                directory,
                config=config,
                dtype=DTYPES[dtype],
                device_map=None,
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                ignore_mismatched_sizes=not known,
                output_loading_info=True,
            )
        except Exception as error:
            if "Unrecognized configuration class" in str(error):
                purpose = "multi-class-classification" if len(labels) > 1 else "reranking"
                raise Unsupported(
                    f"transformers has no classification head for {settings.get('model_type')}",
                    file=directory / CONFIG,
                    hint=f"choose another base model: `luthier models --purpose {purpose}`",
                ) from error
            raise explained(error, directory, settings, trust_remote_code) from error
    reset = [entry[0] if isinstance(entry, tuple) else entry for entry in report.get("mismatched_keys") or ()]
    missing = sorted({*report["missing_keys"], *reset})
    demand_all((name for name in missing if not any(part in FRESH for part in name.split("."))), directory)
    return model.to(device).eval(), fresh_modules(model, missing)


def _problem(labels: int, *, multi: bool) -> str:
    """What transformers calls the loss of a head; one label is the score of a reranker."""
    if multi:
        return "multi_label_classification"
    return "single_label_classification" if labels > 1 else "regression"


def fresh_modules(model: Any, missing: Sequence[str]) -> tuple[str, ...]:
    """Paths of the head and of every module whose weights were not in the files."""
    found = [name for name in HEADS if hasattr(model, name)]
    for name in missing:
        path = name.rpartition(".")[0]
        if not any(path == known or path.startswith(known + ".") for known in found):
            found.append(path)
    return tuple(found)


def saved_labels(directory: Path) -> tuple[str, ...] | None:
    """Labels of a saved classifier; None where the folder holds none."""
    settings = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    kinds = settings.get("architectures") or []
    labels = settings.get("id2label")
    if not isinstance(labels, dict) or not any("ForSequenceClassification" in kind for kind in kinds):
        return None
    return tuple(str(labels[key]) for key in sorted(labels, key=int))


@torch.inference_mode()
def logits_of(
    model: Any,
    batches: Sequence[tuple[Sequence[int], dict[str, torch.Tensor]]],
    rows: int,
    *,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Logits [rows, labels] in the order of the rows.

    batches: indices of rows, and what the model takes for them.
    """
    device = next(model.parameters()).device
    found: NDArray[np.float64] | None = None
    done = 0
    for places, inputs in batches:
        moved = {name: value.to(device) for name, value in inputs.items()}
        part = model(**moved, **_no_cache(model)).logits.double().cpu().numpy()
        if found is None:
            found = np.zeros((rows, part.shape[1]))
        found[list(places)] = part
        done += len(places)
        if progress is not None:
            progress(done, rows)
    assert found is not None, "no row to classify"
    return found


def _no_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(model.config, "use_cache") and hasattr(model, "score") else {}
