"""The surroundings of every test: no terminal's width or kind decides what a test reads."""

import os

# A console made by one test serves the next: only what a test itself sets may hold for it.
for name in ("TERM", "COLUMNS", "LINES"):
    os.environ.pop(name, None)
