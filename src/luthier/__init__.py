"""Luthier: from a task and your hardware to a tuned, proven, deployable open model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.api import classify, evaluate, export, plan, recommend, train

__all__ = ["__version__", "classify", "evaluate", "export", "plan", "recommend", "train"]


def __getattr__(name: str) -> Any:
    """Load a public call when it is first asked for, so that ``import luthier`` costs nothing."""
    if name in __all__:
        from luthier import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
