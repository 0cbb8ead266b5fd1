"""What is known of each purpose before anything is loaded: how it answers, what it exports, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.errors import RecipeError, Unsupported
from luthier.schema.model import Kind
from luthier.schema.recipe import Lora, Purpose, QLora, Recipe

Answers = Literal["chat", "classify", "embed", "rerank"]


@dataclass(frozen=True, slots=True)
class PurposeSpec:
    """One purpose. No torch: the work itself is in ``tasks``."""

    purpose: Purpose
    answers: Answers
    """The command that a tuned model answers through."""
    rows: Literal["chats", "labels", "pairs"]
    """What its data are read as."""
    kinds: tuple[Kind, ...]
    """Base models that it starts from, the usual one first."""
    table_kind: str
    """Kind of an encoder in the table of documented settings."""
    section: str | None = None
    """The recipe's section of this purpose alone, on which training and scores depend."""
    no_gguf: str | None = None
    """Why there is no GGUF file of it; None where there is one."""


PURPOSES: dict[Purpose, PurposeSpec] = {
    spec.purpose: spec
    for spec in (
        PurposeSpec("chat", "chat", "chats", ("decoder", "vision-language"), "decoder", section="preference"),
        PurposeSpec("text-generation", "chat", "chats", ("decoder",), "decoder"),
        PurposeSpec(
            "similarity",
            "embed",
            "pairs",
            ("bi-encoder", "encoder", "decoder"),
            "bi-encoder",
            section="similarity",
        ),
        PurposeSpec(
            "reranking",
            "rerank",
            "pairs",
            ("cross-encoder", "encoder", "decoder", "bi-encoder"),
            "cross-encoder",
            section="reranking",
            no_gguf="llama.cpp drops BERT's pooler and second token type, so that scores change; "
            "a reranker goes out as ONNX",
        ),
        PurposeSpec(
            "multi-label-classification",
            "classify",
            "labels",
            ("encoder", "bi-encoder", "decoder"),
            "encoder",
            "classification",
            "llama.cpp has no classifier with thresholds: its converter drops the head",
        ),
        PurposeSpec(
            "multi-class-classification",
            "classify",
            "labels",
            ("encoder", "bi-encoder", "decoder"),
            "encoder",
            "classification",
            "llama.cpp has no classifier: its converter drops the head",
        ),
    )
}


def spec_of(purpose: Purpose) -> PurposeSpec:
    """What is known of a purpose."""
    return PURPOSES[purpose]


SECTIONS = tuple(dict.fromkeys(spec.section for spec in PURPOSES.values() if spec.section is not None))


def tunes_preferences(recipe: Recipe) -> bool:
    """Whether a chat is tuned on pairs of a better and a worse answer."""
    return recipe.preference is not None


def _check_preference(recipe: Recipe) -> None:
    """Refuse settings of the data that would have no effect on pairs. Errors: RecipeError."""
    if recipe.preference is None:
        return
    if recipe.data.packing:
        raise RecipeError(
            "data.packing: pairs of answers are not packed; they lie end to end without padding all the same",
            hint="leave data.packing out",
        )
    train_on, loss = recipe.data.train_on, recipe.preference.loss
    if train_on != "assistant" and (train_on, loss) != ("all", "orpo"):
        raise RecipeError(
            f"data.train_on: {train_on} has no effect on {loss}, which weighs whole answers",
            hint="leave data.train_on out; orpo also takes all, which adds the prompt to its cross-entropy",
        )
    if loss == "orpo" and (recipe.preference.label_smoothing or recipe.preference.sft):
        raise RecipeError(
            "preference.label_smoothing and preference.sft are settings of dpo", hint="leave them out"
        )


def _check_vision(recipe: Recipe) -> None:
    """Refuse what is not done, or cannot be, for rows with images. Errors: RecipeError, Unsupported."""
    if recipe.vision is None:
        return
    if recipe.task != "chat" or recipe.preference is not None:
        what = "pairs of answers" if recipe.preference is not None else recipe.task
        raise Unsupported(
            f"vision: {what} with images are not trained",
            hint="set task: chat, without the section preference",
        )
    method = recipe.method
    if not isinstance(method, Lora) or isinstance(method, QLora) or method.base is not None:
        raise Unsupported(
            "vision: models that see are tuned by adapters beside weights in their own type "
            "(method.name: lora); four- and eight-bit bases and full fine-tuning are not done for them yet",
            hint="set method: {name: lora}",
        )
    _refuse_settings(recipe)


def _refuse_settings(recipe: Recipe) -> None:
    data, training = recipe.data, recipe.training
    odd = {
        "data.packing": bool(data.packing)
        and "rows with images are not packed: places of images (3-D positions, masks both ways within an "
        "image) belong to one row",
        "data.over_length": data.over_length == "truncate"
        and "a row that is cut short loses a part of an image: take drop, or set vision.max_pixels",
        "data.storage": data.storage not in (None, "memory") and "rows with images are kept in memory",
        "training.compile": bool(training.compile) and "layers of models that see are not compiled",
        "training.devices": training.devices > 1
        and "rows with images are trained on one device: sharing their pixels out is not done",
        "export.imatrix": recipe.export is not None
        and recipe.export.imatrix
        and "what drives the layers is taken from rows of text, and these have images",
        "model.trust_remote_code": recipe.model.trust_remote_code
        and "models that see are those that transformers knows itself",
        "model.from_scratch": recipe.model.from_scratch is not None and "there is no tower from scratch",
    }
    for key, why in odd.items():
        if why:
            raise Unsupported(f"{key}: {why}", hint=f"leave {key} out")


def check_supported(recipe: Recipe) -> None:
    """Refuse what a recipe asks for and its purpose does not have. Errors: Unsupported with the reason."""
    spec = spec_of(recipe.task)
    for section in SECTIONS:
        if section != spec.section and getattr(recipe, section) is not None:
            owners = " or ".join(purpose for purpose, one in PURPOSES.items() if one.section == section)
            raise RecipeError(
                f"{section} is a section of another purpose than {recipe.task}",
                hint=f"set task: {owners}, or drop the section",
            )
    _check_preference(recipe)
    _check_vision(recipe)
    if recipe.data.fim_rate and recipe.task != "text-generation":
        raise RecipeError(
            f"data.fim_rate has no effect on {recipe.task}: it turns plain texts round",
            hint="set task: text-generation, or leave it out",
        )
    if spec.no_gguf is not None and recipe.export is not None and recipe.export.gguf:
        raise Unsupported(
            f"there is no GGUF export for {recipe.task}: {spec.no_gguf}",
            hint="set export.gguf to [] and take the merged weights, which transformers loads",
        )
    if recipe.export is not None and recipe.export.onnx and spec.answers == "chat":
        raise Unsupported(
            f"there is no ONNX export for {recipe.task}: a decoder that writes text goes out as GGUF",
            hint="set export.onnx: false and export.gguf: Q4_K_M",
        )
    scratch = recipe.model.from_scratch
    if scratch is not None and scratch.tokenizer == "characters" and recipe.export and recipe.export.gguf:
        raise Unsupported(
            "there is no GGUF export for a tokenizer of characters: llama.cpp has no such tokenizer",
            hint="set model.from_scratch.tokenizer: bpe, or export.gguf to []",
        )
