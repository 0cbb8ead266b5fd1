"""The Hugging Face token: written, replaced, removed; never shown."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UsageError

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_FORM = re.compile(r"[A-Za-z0-9_.\-]{8,512}")


@dataclass(frozen=True, slots=True)
class TokenState:
    """Whether there is a token, and where; nothing of what it is."""

    there: bool
    variable: str
    """The environment variable that gives it; empty where the file does."""
    file: Path
    since: float | None
    others_may_read: bool


def token_file() -> Path:
    """Where huggingface_hub looks for it, so that every command of this machine finds the same."""
    own = os.environ.get("HF_TOKEN_PATH")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "token"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "huggingface" / "token"


def token_state() -> TokenState:
    """Whether there is a token."""
    variable = next((name for name in VARIABLES if os.environ.get(name)), "")
    file = token_file()
    try:
        found = file.stat()
    except OSError:
        return TokenState(bool(variable), variable, file, None, others_may_read=False)
    loose = os.name == "posix" and bool(found.st_mode & 0o077)
    return TokenState(True, variable, file, found.st_mtime, others_may_read=loose)


def set_token(token: str) -> None:
    """Keep a token in a file of mode 0600. Errors: UsageError for what cannot be one."""
    token = token.strip()
    if not _FORM.fullmatch(token):
        raise UsageError(
            "that cannot be a token", hint="copy it from huggingface.co/settings/tokens: it begins with hf_"
        )
    file = token_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    # Nobody else can read it at any moment, also where the old file was open to others.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(token)
    partial.replace(file)


def remove_token() -> None:
    """Delete the file."""
    token_file().unlink(missing_ok=True)
