"""What this version trains, in one place: the advisor knows more than the trainer does."""

from __future__ import annotations

NOT_TRAINED: dict[str, str] = {
    "qlora": "QLoRA is not in the trainer yet",
    "from-scratch": "training from scratch is not in the trainer yet",
    "image": "training on images is not in the trainer yet",
    "devices": "one run uses one device yet: several GPUs are planned for, not trained on",
    "similarity": "embedders are not trained yet",
    "reranking": "rerankers are not trained yet",
    "multi-label-classification": "classifiers are not trained yet",
    "multi-class-classification": "classifiers are not trained yet",
}
"""Method, goal, feature, purpose or ``devices`` -> why a recipe of it is refused. Delete a line with the
commit that lets the trainer do it: a test holds this table against what is refused."""


def why_not_trained(
    purpose: str, method: str, *, goal: str | None = None, images: bool = False, devices: int = 1
) -> str | None:
    """Why a run of this sort is refused today, or None."""
    asked = [purpose, method, *([goal] if goal else []), *(["image"] if images else [])]
    asked += ["devices"] if devices > 1 else []
    return next((NOT_TRAINED[word] for word in asked if word in NOT_TRAINED), None)
