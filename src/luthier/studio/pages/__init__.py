"""Pages: one file each with a ``router``, and a template of the same name."""

PAGES = (
    "login",
    "home",
    "models",
    "advise",
    "datasets",
    "new_run",
    "runs",
    "run",
    "sweeps",
    "evals",
    "compare",
    "exports",
    "serve",
    "registry",
    "settings",
)
"""Modules of this package, in the order in which their routes are tried."""
