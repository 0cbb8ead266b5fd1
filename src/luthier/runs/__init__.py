"""The run directory, the worker that fills it, and what follows from it."""
