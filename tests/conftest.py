"""The surroundings of every test: no terminal's width or kind decides what a test reads."""

import logging
import os
from collections.abc import Iterator

import pytest

# A console made by one test serves the next: only what a test itself sets may hold for it.
for name in ("TERM", "COLUMNS", "LINES"):
    os.environ.pop(name, None)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Torch's compiler with nothing kept of tests before, and nothing left for those after."""
    import torch

    logging.disable(logging.INFO)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    logging.disable(logging.NOTSET)
