"""Who is who: the studio's token, login links, sessions and keys. Nothing is kept in memory that matters.

The token is 256 random bits in ``token`` of the studio's folder, readable by its owner alone. A login link
carries a code derived from it that is good once and for ten minutes; a session cookie is signed with it, so
sessions outlive a restart and all end when the token is replaced. API keys are kept as digests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock

from luthier.errors import FileProblem, UsageError
from luthier.files import write_text

Scope = Literal["admin", "infer"]
LOGIN_SECONDS = 600
"""How long a login link is good."""
SESSION_SECONDS = 30 * 24 * 3600
"""How long a session lasts."""
TRIES, TRIES_WINDOW = 10, 60.0
"""Failed logins that are allowed in so many seconds, from everybody together."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key, without its secret."""

    id: str
    name: str
    scope: Scope
    created: float
    digest: str


@dataclass(slots=True)
class Access:
    """Checks tokens, links, sessions and keys of one studio's folder."""

    home: Path
    _used: set[str] = field(default_factory=set)
    _failed: deque[float] = field(default_factory=deque)

    # -- the token ---------------------------------------------------------------------------

    @property
    def token_file(self) -> Path:
        """Where the token lies."""
        return self.home / "token"

    def token(self) -> str:
        """The studio's token, made at the first call. Errors: FileProblem where others could read it."""
        path = self.token_file
        if not path.exists():
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(self.home / ".lock", timeout=10):
                if not path.exists():
                    _write_private(path, secrets.token_urlsafe(32))
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise FileProblem(
                "others may read the studio's token", file=path, hint=f"chmod 600 {path}, or delete it"
            )
        return path.read_text(encoding="ascii").strip()

    def new_token(self) -> str:
        """Replace the token: every session and login link made with the old one ends."""
        _write_private(self.token_file, secrets.token_urlsafe(32))
        return self.token()

    # -- login -------------------------------------------------------------------------------

    def login_code(self) -> str:
        """A code for one login within ten minutes."""
        return self._signed("login", f"{int(time.time()) + LOGIN_SECONDS}.{secrets.token_urlsafe(9)}")

    def login(self, words: str) -> str | None:
        """A session for a login code or the token itself; None where it is neither.

        Errors: TooManyTries after ten failures in a minute.
        """
        now = time.monotonic()
        while self._failed and now - self._failed[0] > TRIES_WINDOW:
            self._failed.popleft()
        if len(self._failed) >= TRIES:
            raise TooManyTries(
                "too many failed logins", hint=f"wait {TRIES_WINDOW:.0f} seconds, then open a new login link"
            )
        if self._is_token(words) or self._take_code(words):
            return self._signed(
                "session", f"{int(time.time()) + SESSION_SECONDS}.{secrets.token_urlsafe(12)}"
            )
        self._failed.append(now)
        return None

    def _take_code(self, words: str) -> bool:
        if words in self._used or not self._is_signed("login", words):
            return False
        self._used.add(words)
        return True

    def _is_token(self, words: str) -> bool:
        return hmac.compare_digest(words.encode(), self.token().encode())

    def is_session(self, cookie: str) -> bool:
        """Whether a cookie is a session of ours that has not run out."""
        return self._is_signed("session", cookie)

    def _signed(self, purpose: str, content: str) -> str:
        mark = hmac.digest(self.token().encode(), f"{purpose}.{content}".encode(), "sha256")
        return f"{content}.{base64.urlsafe_b64encode(mark).decode().rstrip('=')}"

    def _is_signed(self, purpose: str, words: str) -> bool:
        content, _, _ = words.rpartition(".")
        until = content.partition(".")[0]
        if not until.isascii() or not until.isdecimal() or int(until[:12]) < time.time():
            return False
        return hmac.compare_digest(self._signed(purpose, content).encode(), words.encode())

    # -- keys --------------------------------------------------------------------------------

    def scope_of(self, bearer: str) -> Scope | None:
        """What a bearer may do: admin for the token, a key's own scope, or None for neither."""
        if self._is_token(bearer):
            return "admin"
        digest = hashlib.sha256(bearer.encode()).hexdigest()
        for key in self.keys():
            if hmac.compare_digest(key.digest, digest):
                return key.scope
        return None

    def keys(self) -> list[Key]:
        """All keys, oldest first."""
        try:
            return [Key(**one) for one in json.loads((self.home / "keys.json").read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []

    def add_key(self, name: str, scope: Scope) -> str:
        """A new key's secret, which is shown this once. Errors: UsageError where it has no name."""
        name = name.strip()[:80]
        if not name:
            raise UsageError("a key needs a name", hint="name what will use it, such as `notebook`")
        secret = f"lut-{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(secret.encode()).hexdigest()
        with FileLock(self.home / ".lock", timeout=10):
            self._save_keys([*self.keys(), Key(secrets.token_hex(4), name, scope, time.time(), digest)])
        return secret

    def remove_key(self, key_id: str) -> None:
        """Take a key back. Errors: UsageError where there is none of that id."""
        with FileLock(self.home / ".lock", timeout=10):
            kept = [key for key in self.keys() if key.id != key_id]
            if len(kept) == len(self.keys()):
                raise UsageError(f"there is no key {key_id!r}")
            self._save_keys(kept)

    def _save_keys(self, keys: list[Key]) -> None:
        plain = [
            {"id": k.id, "name": k.name, "scope": k.scope, "created": k.created, "digest": k.digest}
            for k in keys
        ]
        write_text(self.home / "keys.json", json.dumps(plain, indent=1) + "\n").chmod(0o600)


class TooManyTries(UsageError):
    """Logins fail too fast."""


def _write_private(path: Path, text: str) -> None:
    """Write a secret that nobody else may read at any moment."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    partial.replace(path)
