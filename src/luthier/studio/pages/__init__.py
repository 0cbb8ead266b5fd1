"""Pages: one file each with a ``router``, and a template of the same name."""

PAGES = (
    "login",
    "home",
)
"""Modules of this package, in the order in which their routes are tried."""
