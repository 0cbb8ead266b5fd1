"""Luthier: from a task and your hardware to a tuned, proven, deployable open model."""

__version__ = "0.1.0"
