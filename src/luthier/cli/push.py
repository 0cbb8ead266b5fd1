"""``luthier push``: a run's weights with their card and papers to the Hub."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from luthier.cli.console import err, out, print_json, size
from luthier.errors import Unreachable

Flag = Annotated[bool, Parameter(negative="")]


def push(
    run: str,
    target: str,
    /,
    *,
    only: tuple[str, ...] = (),
    public: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> None:
    """Send a run's weights to the Hugging Face Hub, with model card and licence papers.

    Merged weights go to OWNER/NAME, GGUF files to OWNER/NAME-GGUF, the adapter to OWNER/NAME-adapter;
    one kind alone goes to OWNER/NAME. Log in first: `hf auth login`. Where the Hub does not answer,
    what would be sent is shown.

    Parameters
    ----------
    run
        Id, beginning of one, path, latest, or a registered version.
    target
        hub:OWNER/NAME
    only
        Only these: merged, adapter, gguf; may be given again.
    public
        Everybody may see it; private when not given.
    dry_run
        Say what would be sent, and send nothing.
    json
        Print one JSON object.
    """
    from luthier.hub.upload import reachable, send
    from luthier.runs.pushing import commit_message, plan_push
    from luthier.runs.registry import resolve

    found = resolve(run)
    uploads = plan_push(found, target, only)
    answers = dry_run or reachable()
    seen = "public" if public else "private"
    pages: dict[str, str] = {}
    for upload in uploads:
        if not json:
            out().print(f"{upload.page} ({seen}): {upload.kind}, {size(upload.bytes)}", highlight=False)
            for name, count in upload.files:
                out().print(f"  {name}  {size(count)}", style="dim", highlight=False, soft_wrap=True)
        if answers and not dry_run:
            pages[upload.repo] = send(upload, private=not public, message=commit_message(found))
            if not json:
                err().print(f"  sent: {pages[upload.repo]}", soft_wrap=True)
    if json:
        rows = [
            {
                "repo": u.repo,
                "kind": u.kind,
                "files": dict(u.files),
                "bytes": u.bytes,
                "commit": pages.get(u.repo),
            }
            for u in uploads
        ]
        print_json({"run": found.id, "private": not public, "sent": bool(pages), "uploads": rows})
    if not answers:
        raise Unreachable(
            "the Hub does not answer: nothing was sent",
            hint="run the same command again when there is a connection (HF_ENDPOINT names a mirror)",
        )
    if dry_run and not json:
        out().print("Nothing was sent.")
