"""``luthier data``: look at, check and profile training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from luthier.cli.console import err, out, print_json
from luthier.errors import DataError, LuthierError, UsageError
from luthier.schema.protocols import TextTokenizer

app = App(name="data", help="Look at, check and profile training data.", help_format="plaintext")
app.command("luthier.cli.data_files:split", name="split", help="Part files: nothing on two sides.")
app.command("luthier.cli.data_files:mine", name="mine", help="Find hard negatives for pairs.")
app.command("luthier.cli.data_versions:add", name="add", help="Keep a version of a data set.")
app.command("luthier.cli.data_versions:ls", name="ls", help="Data sets that have versions.")
app.command("luthier.cli.data_versions:versions", name="versions", help="Versions of a data set.")
app.command("luthier.cli.data_versions:diff", name="diff", help="Rows that came, went and changed.")


def _tokenizer(model: str | None) -> TextTokenizer | None:
    from luthier.data.tokenizer import load_tokenizer
    from luthier.hub.snapshot import resolve_model

    return None if model is None else load_tokenizer(resolve_model(model).path)


@app.command
def show(
    source: Path,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    n: Annotated[int, Parameter(name=("--rows", "-n"))] = 3,
    model: str | None = None,
    ids: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Rows exactly as the model will see them, with the trained tokens marked.

    Parameters
    ----------
    source
        A recipe.yaml, or a data file together with --model.
    overrides
        Settings that win over the recipe's.
    n
        How many rows.
    model
        The model whose template is used (a folder, or an id that is on disk), where source is data.
    ids
        Token ids too.
    json
        Print one JSON object.
    """
    from luthier.runs.inspect import rendered_rows

    rows = rendered_rows(source, overrides, model=model, count=n, say=lambda words: err().print(words))
    if json:
        print_json(
            {
                "rows": [
                    {
                        "file": shown.row.file,
                        "line": shown.row.line,
                        "tokens": [{"text": t, "id": i, "trained": k} for t, i, k in shown.pieces],
                        "images": shown.images,
                    }
                    for shown in rows
                ]
            }
        )
        return
    for shown in rows:
        row, tokens = shown.row, shown.pieces
        text = Text()
        for piece, token, trained in tokens:
            text.append(piece, style="bold green" if trained else "dim")
            if ids:
                text.append(f"·{token} ", style="cyan dim")
        carrying = sum(1 for _, _, t in tokens if t)
        title = f"{Path(row.file).name}:{row.line}  {len(tokens)} tokens, {carrying} trained"
        out().print(Padding(Panel(text, title=title, title_align="left", border_style="dim"), (0, 0, 0, 2)))
        if shown.images:
            words = f"  images: {', '.join(shown.images)}; a model of text cannot be trained on this row"
            out().print(Text(words, style="yellow"), soft_wrap=True)
    out().print("  [bold green]green[/] carries loss, [dim]grey[/] is only read")


@app.command
def check(
    *files: Path,
    held_out: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    model: str | None = None,
    recipe: Annotated[Path | None, Parameter(name="--for")] = None,
    structure: Annotated[bool, Parameter(negative="")] = False,
    fix: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find what would go wrong in training, each finding with file, line and what to do.

    Parameters
    ----------
    files
        Files, folders or globs of training rows.
    held_out
        Test or validation rows: what leaks from them into the training rows is found.
    model
        Count tokens with this model's tokenizer (a folder, or an id that is on disk).
    recipe
        Check for this recipe: its task, columns, model and lengths, and its own files where none is named.
    structure
        Only rows, shapes, fields, roles and copies; texts are not looked into.
    fix
        Write the rows that can be used to this JSONL file, and beside it a list of what was left out.
    json
        Print one JSON object.
    """
    from luthier.cli.findings import show_findings
    from luthier.data.check import check as find
    from luthier.data.fix import fix as mend

    if not files and recipe is None:
        raise UsageError(
            "name at least one file", hint="luthier data check train.jsonl, or --for recipe.yaml"
        )
    sources, settings = _settings(tuple(map(str, files)), tuple(map(str, held_out)), model, recipe)
    settings["deep"] = not structure
    if fix is None:
        found = find(sources, base=Path.cwd(), **settings)
    else:
        found = mend(sources, fix, base=Path.cwd(), **settings)
        err().print(f"wrote {fix}, and beside it what was left out and why", soft_wrap=True)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        show_findings(found, recipe=recipe, fixed=fix is not None)
    return DataError.exit_code if found.errors else 0


def _settings(
    files: tuple[str, ...], held_out: tuple[str, ...], model: str | None, path: Path | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What to check and how, from the command line and the recipe."""
    if path is None:
        return files, {"held_out": held_out, "tokenizer": _tokenizer(model)}
    from luthier.schema.load import load_recipe

    recipe = load_recipe(path, ())
    data = recipe.data
    kept = (*data.validation, *(one for part in data.test.values() for one in part))
    tokenizer = None
    try:
        tokenizer = _tokenizer(model or recipe.model.id)
    except LuthierError as problem:  # the rest can be checked without the model
        err().print(f"tokens are not counted: {problem.message}", style="yellow", soft_wrap=True)
    return files or data.train, {
        "images": False,
        "refuse_long": data.over_length == "error",
        "held_out": held_out or kept,
        "tokenizer": tokenizer if recipe.task in ("chat", "text-generation") else None,
        "sequence_length": recipe.training.sequence_length,
        "train_on": data.train_on,
        "format": data.format,
        "columns": data.columns,
        "system": data.system,
        "purpose": recipe.task,
        "label_delimiter": data.label_delimiter,
    }


@app.command
def profile(
    *files: Path, model: str | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Rows, lengths, languages and structure: what the advisor and the planner need to know.

    Parameters
    ----------
    files
        Files, folders or globs.
    model
        Count tokens with this model's tokenizer; estimated from characters when not given.
    json
        Print one JSON object.
    """
    from luthier.cli.findings import show_profile
    from luthier.data.profile import profile as describe

    if not files:
        raise UsageError("name at least one file", hint="luthier data profile train.jsonl")
    found = describe(tuple(str(f) for f in files), base=Path.cwd(), tokenizer=_tokenizer(model))
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        show_profile(found)
