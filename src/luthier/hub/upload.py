"""Send folders to the Hugging Face Hub: what would be sent is known before anything is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UsageError
from luthier.hub.remote import hub_api, hub_errors, model_page, offline_asked

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Upload:
    """One repository as it will be."""

    repo: str
    kind: str
    """``merged``, ``adapter`` or ``gguf``."""
    folder: Path
    files: tuple[tuple[str, int], ...]
    """Path below the folder, bytes."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)

    @property
    def page(self) -> str:
        return model_page(self.repo)


def check_repo_id(name: str) -> str:
    """``owner/name``, a leading ``hub:`` left out. Errors: UsageError."""
    found = name.removeprefix("hub:")
    if not _ID.fullmatch(found) or len(found) > 96:
        raise UsageError(f"{name!r} is not the id of a repository", hint="ids look like hub:owner/name")
    return found


def reachable() -> bool:
    """Whether the Hub answers and may be asked."""
    if offline_asked():
        return False
    from luthier.errors import LuthierError

    try:
        with hub_errors("", None):
            hub_api().repo_exists("luthier/does-the-hub-answer")
    except LuthierError:
        return False
    return True


def send(upload: Upload, *, private: bool, message: str) -> str:
    """Create the repository where it is missing and commit the files in one go; returns the commit's page.

    Large files that the Hub has already are not sent again. Errors: GatedModel where the token may not
    write, Unreachable.
    """
    api = hub_api()
    with hub_errors(upload.repo, None):
        api.create_repo(upload.repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=upload.repo,
            folder_path=upload.folder,
            allow_patterns=[name for name, _ in upload.files],
            commit_message=message,
        )
    return str(done.commit_url)
