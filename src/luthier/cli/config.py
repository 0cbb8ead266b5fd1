"""``luthier config``: what a setting of a recipe means."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from luthier.cli.console import out, print_json
from luthier.schema.explain import explain_key, recipe_schema

app = App(name="config", help="What a setting of a recipe means.", help_format="plaintext")


@app.command
def explain(key: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """What one setting means.

    Parameters
    ----------
    key
        Dotted key such as training.learning_rate, or another tool's name for it.
    json
        Print one JSON object.
    """
    dotted, kind, sentence = explain_key(key)
    if json:
        print_json({"key": dotted, "type": kind, "meaning": sentence})
        return
    out().print(f"[bold]{dotted}[/]  [dim]{kind}[/]", highlight=False)
    out().print(f"  {sentence}")


@app.command
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    import json
    import sys

    sys.stdout.write(json.dumps(recipe_schema(), indent=2) + "\n")
