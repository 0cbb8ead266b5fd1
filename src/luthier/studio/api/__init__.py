"""The API under /api/v1: one file for each kind of thing, with a ``router``."""

ROUTERS = (
    "system",
    "datasets",
    "models",
    "plan",
    "jobs",
    "runs",
)
"""Modules of this package."""
