"""Serves models, and writes deployments for other runtimes."""
