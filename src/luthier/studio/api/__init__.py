"""The API under /api/v1: one file for each kind of thing, with a ``router``."""

ROUTERS = (
    "system",
    "jobs",
    "runs",
)
"""Modules of this package."""
