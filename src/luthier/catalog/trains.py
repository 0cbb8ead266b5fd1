"""What this version trains, in one place: the advisor knows more than the trainer does."""

from __future__ import annotations

from pathlib import Path

NOT_TRAINED: dict[str, str] = {
    "image": "models that see are tuned by LoRA alone: four-bit bases and full fine-tuning are not done",
}
"""Method, goal or feature -> why a recipe of it is refused. The commit that lets the trainer do it deletes
its line."""

SEEING = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "gemma3", "idefics3", "smolvlm",
)  # fmt: skip
"""Model types that are tuned on images: those whose image tokens ``data.image_tokens`` lays out."""

TASKS: dict[str, str] = {
    "similarity": "similarity",
    "reranking": "reranking",
    "multi-label-classification": "classification",
    "multi-class-classification": "classification",
}
"""Purpose -> the file of ``luthier.tasks`` that trains it. It is looked for, not loaded: it imports torch."""


def why_not_trained(
    purpose: str,
    method: str,
    *,
    goal: str | None = None,
    images: bool = False,
    family: str | None = None,
) -> str | None:
    """Why a run of this sort is refused today, or None. family: the model's type, where it is known."""
    name = TASKS.get(purpose)
    if name is not None and not Path(__file__).parents[1].joinpath("tasks", f"{name}.py").exists():
        return f"{purpose} is not in the trainer yet"
    asked = [method, *([goal] if goal else []), *(["image"] if images and method != "lora" else [])]
    if images and family is not None and family not in SEEING:
        return f"{family} is not among the families that are tuned on images ({', '.join(SEEING)})"
    return next((NOT_TRAINED[word] for word in asked if word in NOT_TRAINED), None)
