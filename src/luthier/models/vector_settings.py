"""How a model's token states become one vector a text, as sentence-transformers writes it down. No torch.

``modules.json`` names the steps (Transformer, Pooling, Dense, Normalize), each with its folder;
``sentence_bert_config.json`` the longest text; ``config_sentence_transformers.json`` the prompts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from luthier.errors import FileProblem, Unsupported
from luthier.files import write_text
from luthier.schema.rows import Role

Pooling = Literal["mean", "cls", "lasttoken", "max", "weightedmean", "mean_sqrt_len_tokens"]

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTHS = "sentence_bert_config.json"
_OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DOCUMENTS = ("document", "passage", "corpus")
"""Names under which models keep the prompt of documents; the first that is there holds."""
_SIMILARITIES = ("similarity", "STS")
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}


@dataclass(frozen=True, slots=True)
class DenseSettings:
    """A linear layer after pooling: its folder in the saved model, its shape and activation."""

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: Literal["identity", "tanh"]


@dataclass(frozen=True, slots=True)
class VectorSettings:
    """From token states to a vector."""

    pooling: tuple[Pooling, ...]
    """Several are laid end to end."""
    normalize: bool
    """Whether vectors are brought to unit length."""
    max_length: int | None
    """Longest text in tokens; what is longer loses its end."""
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Name -> what is put before a text."""
    default_prompt: str | None = None
    """Name of the prompt for texts whose role is not told."""
    include_prompt: bool = True
    """Whether the prompt's own tokens are pooled."""
    dense: tuple[DenseSettings, ...] = ()
    source: str = ""
    """Where pooling came from, in words."""
    prompts_source: str = ""

    def prompt(self, role: Role | None) -> str:
        """What is put before a text of that role."""
        names: tuple[str, ...] = {
            "query": ("query",),
            "document": _DOCUMENTS,
            "similarity": _SIMILARITIES,
            None: (),
        }[role]
        found = next((name for name in names if name in self.prompts), self.default_prompt)
        return self.prompts.get(found, "") if found is not None else ""


def read_vector_settings(
    folder: Path, *, prompts: Mapping[str, str] | None = None, causal: bool | None = None
) -> VectorSettings:
    """The settings of a saved model.

    prompts: those that the catalogue knows, taken where the folder names none. Without ``modules.json``
    a decoder is pooled at its last token and an encoder by the mean, both to unit length. Raises
    Unsupported for a step that is none of pooling, dense and normalise.
    """
    config = _read(folder / "config.json")
    lengths = _read(folder / LENGTHS)
    own = _read(folder / PROMPTS)
    found = {str(k): str(v) for k, v in (own.get("prompts") or {}).items() if v is not None}
    told = any(found.values())
    settings = _steps(folder) if (folder / MODULES).is_file() else _usual(config, causal)
    return replace(
        settings,
        max_length=_longest(folder, lengths, config),
        lower_case=bool(lengths.get("do_lower_case")),
        prompts=found if told or not prompts else {**found, **prompts},
        default_prompt=own.get("default_prompt_name"),
        prompts_source=PROMPTS if told else ("the catalogue" if prompts else ""),
    )


def _steps(folder: Path) -> VectorSettings:
    """What ``modules.json`` says, step by step."""
    steps = _read_list(folder / MODULES)
    pooling: tuple[Pooling, ...] = ()
    dense: list[DenseSettings] = []
    normalize = include = False
    for step in steps[1:]:
        kind, place = str(step.get("type", "")).rsplit(".", 1)[-1], str(step.get("path", ""))
        values = _read(folder / place / "config.json") if place else {}
        if kind == "Pooling":
            pooling, include = _pooling(values, folder / place), bool(values.get("include_prompt", True))
        elif kind == "Dense":
            dense.append(_dense(values, place, folder))
        elif kind == "Normalize":
            normalize = True
        else:
            raise Unsupported(
                f"the step {kind or step.get('type')!r} of this model is not done here",
                file=folder / MODULES,
                hint="models of Transformer, Pooling, Dense and Normalize can be used",
            )
    first = str(steps[0].get("type", "")).rsplit(".", 1)[-1] if steps else ""
    if first != "Transformer" or not pooling or steps[0].get("path"):
        raise Unsupported(
            "this is no transformer with a pooling step in the folder's root",
            file=folder / MODULES,
            hint="static and multi-vector models cannot be tuned here; choose another embedder",
        )
    return VectorSettings(
        pooling, normalize, None, include_prompt=include, dense=tuple(dense), source=MODULES
    )


def _pooling(values: dict[str, Any], place: Path) -> tuple[Pooling, ...]:
    named = values.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    modes = modes or [name for key, name in _OLD_POOLING.items() if values.get(key)] or ["mean"]
    known = get_args(Pooling)
    if wrong := [mode for mode in modes if mode not in known]:
        raise Unsupported(f"pooling {wrong[0]!r} is not known", file=place / "config.json")
    return tuple(cast("Pooling", mode) for mode in modes)


def _dense(values: dict[str, Any], place: str, folder: Path) -> DenseSettings:
    activation = _ACTIVATIONS.get(str(values.get("activation_function", "torch.nn.modules.activation.Tanh")))
    if activation is None:
        raise Unsupported(
            f"the activation {values.get('activation_function')} is not done here",
            file=folder / place / "config.json",
        )
    return DenseSettings(
        place,
        int(values["in_features"]),
        int(values["out_features"]),
        bool(values.get("bias", True)),
        cast("Literal['identity', 'tanh']", activation),
    )


def _usual(config: dict[str, Any], causal: bool | None) -> VectorSettings:
    named = " ".join(config.get("architectures") or ())
    decoder = causal if causal is not None else "ForCausalLM" in named
    mode: Pooling = "lasttoken" if decoder else "mean"
    why = f"usual for {'a decoder' if decoder else 'an encoder'}: the model has no {MODULES}"
    return VectorSettings((mode,), True, None, source=why)


def _longest(folder: Path, lengths: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The folder's own limit, else the tokenizer's within the table of positions."""
    if lengths.get("max_seq_length"):
        return int(lengths["max_seq_length"])
    told = _read(folder / "tokenizer_config.json").get("model_max_length")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their places are counted from the padding token's number on
    limits = [int(limit) for limit in (told, positions) if isinstance(limit, (int, float)) and limit < 1e9]
    return min(limits, default=None)


def write_vector_settings(folder: Path, settings: VectorSettings, *, base: Path, width: int) -> None:
    """Write what makes a saved model loadable by ``SentenceTransformer(folder)`` with equal vectors.

    base: the model that was tuned, whose dense layers are copied. width: numbers of a token's state.
    """
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling = settings.pooling[0] if len(settings.pooling) == 1 else list(settings.pooling)
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": width,
            **_both(settings.pooling),
            "include_prompt": settings.include_prompt,
        }
        if isinstance(pooling, str) and pooling in _OLD_POOLING.values()
        else {
            "embedding_dimension": width,
            "pooling_mode": pooling,
            "include_prompt": settings.include_prompt,
        },
    )
    for layer in settings.dense:
        name = f"{len(steps)}_Dense"
        if (base / layer.folder).resolve() != (folder / name).resolve():
            shutil.copytree(base / layer.folder, folder / name, dirs_exist_ok=True)
        steps.append((name, "Dense"))
    if settings.normalize:
        name = f"{len(steps)}_Normalize"
        (folder / name).mkdir(exist_ok=True)
        steps.append((name, "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    write_text(folder / MODULES, json.dumps(modules, indent=2) + "\n")
    _write(folder / LENGTHS, {"max_seq_length": settings.max_length, "do_lower_case": settings.lower_case})
    _write(
        folder / PROMPTS,
        {
            "prompts": dict(settings.prompts),
            "default_prompt_name": settings.default_prompt,
            "similarity_fn_name": "cosine",
        },
    )


def _both(modes: tuple[Pooling, ...]) -> dict[str, bool]:
    """The way that every version of sentence-transformers reads: one key a mode."""
    return {key: name in modes for key, name in _OLD_POOLING.items()}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    if not path.is_file():
        return {}
    values = _json(path)
    if not isinstance(values, dict):
        raise FileProblem("is not a JSON object", file=path)
    return values


def _read_list(path: Path) -> list[dict[str, Any]]:
    values = _json(path)
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise FileProblem("is not a list of steps", file=path)
    return values


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileProblem(f"cannot be read as JSON ({error})", file=path) from error
