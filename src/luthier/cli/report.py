"""``luthier report``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def report(
    run: str = "latest",
    /,
    *,
    md: Annotated[bool, Parameter(negative="")] = False,
    open: Annotated[bool, Parameter(negative="")] = False,  # noqa: A002 (the flag's name)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a run's report anew from what its directory holds.

    Parameters
    ----------
    run
        Id, beginning of one, path, or latest.
    md
        Markdown to stdout instead of HTML.
    open
        Open the page in the browser.
    json
        One JSON object: the run with the file that was written or, with --md, the text.
    """
    from luthier.cli.console import err, out, print_json
    from luthier.runs.registry import resolve
    from luthier.runs.reporting import make_markdown, make_report

    found = resolve(run)
    if md:
        text = make_markdown(found)
        if json:
            print_json({"run": found.id, "markdown": text})
        else:
            out().print(text, markup=False, soft_wrap=True)
        return
    path = make_report(found)
    if json:
        print_json({"run": found.id, "report": str(path)})
    else:
        err().print(f"wrote {path}", soft_wrap=True)
    if open:
        import webbrowser

        webbrowser.open(path.as_uri())
