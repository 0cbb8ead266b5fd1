"""The API under /api/v1: one file for each kind of thing, with a ``router``."""

ROUTERS = (
    "system",
    "datasets",
    "models",
    "plan",
    "jobs",
    "runs",
    "evals",
    "exports",
    "servers",
    "registry",
)
"""Modules of this package."""
