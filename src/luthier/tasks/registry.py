"""From a recipe's purpose to the task that does it; a task's file is loaded only when it is named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import Unsupported
from luthier.models.scratch import ensure_weights
from luthier.schema.recipe import Recipe

if TYPE_CHECKING:
    from luthier.data.tokenizer import FileTokenizer
    from luthier.tasks.base import ModelTask


def load_task(
    recipe: Recipe,
    model_directory: Path,
    tokenizer: FileTokenizer,
    *,
    device: str,
    cache: Path | None,
    divided: bool = False,
) -> ModelTask:
    """The model of a resolved recipe in memory, ready to be judged and trained (divided: see `ModelTask`)."""
    ensure_weights(model_directory)
    return task_class(recipe)(recipe, model_directory, tokenizer, device=device, cache=cache, divided=divided)


def task_class(recipe: Recipe) -> type[ModelTask]:
    """The class of a purpose's task."""
    match recipe.task:
        case "chat" if recipe.preference is not None:
            from luthier.tasks.preference import PreferenceTask

            return PreferenceTask
        case "chat" if recipe.vision is not None:
            from luthier.tasks.vision import VisionTask

            return VisionTask
        case "chat":
            from luthier.tasks.chat import ChatTask

            return ChatTask
        case "text-generation":
            from luthier.tasks.generation import TextTask

            return TextTask
        case "multi-class-classification" | "multi-label-classification":
            from luthier.tasks.classification import ClassificationTask

            return ClassificationTask
        case "similarity":
            from luthier.tasks.similarity import SimilarityTask

            return SimilarityTask
        case "reranking":
            from luthier.tasks.reranking import RerankingTask

            return RerankingTask
        case _:
            raise Unsupported(f"{recipe.task} is not trained yet", hint="set task: chat")
