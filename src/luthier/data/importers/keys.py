"""The keys of a foreign configuration, each taken once, left aside with a reason, or named as unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.errors import FileProblem

Path_ = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """A key that the recipe does not carry, and why."""

    key: str
    value: Any
    line: int | None
    reason: str


@dataclass(slots=True)
class Keys:
    """A configuration, and what was done with each of its keys."""

    file: str
    tool: str
    values: dict[str, Any]
    lines: dict[Path_, int]
    recipe: dict[str, Any] = field(default_factory=dict)
    origins: dict[Path_, str] = field(default_factory=dict)
    """Key of the recipe -> where its value came from."""
    left: list[Left] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What a person has to fill in."""
    notes: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    """Keys that ask for what Luthier does anyway, or switch off what it does not do."""
    _told: set[str] = field(default_factory=set)
    _used: set[Path_] = field(default_factory=set)

    def get(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path; it stays to be accounted for."""
        here: Any = self.values
        for part in path.split("."):
            if isinstance(here, list) and part.isdigit() and int(part) < len(here):
                here = here[int(part)]
            elif isinstance(here, dict) and part in here:
                here = here[part]
            else:
                return default
        return here

    def take(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, accounted for with all below it."""
        found = self.get(path, None)
        if found is None:
            return default
        self._used.add(tuple(path.split(".")))
        return found

    def put(self, target: str, value: Any, *origins: str, default: bool = False) -> None:
        """Set a key of the recipe. origins: the keys that it came from; default: the other tool's own."""
        path = tuple(target.split("."))
        here = self.recipe
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        named = ", ".join(self._place(origin) for origin in origins if self.get(origin) is not None)
        self._told.update(origins)
        self.origins[path] = named if named and not default else f"{self.tool}'s default"

    def carry(self, source: str, target: str, *, default: Any = None) -> Any:
        """Take a key as it is, or the other tool's default where it is not set."""
        value = self.take(source)
        if value is not None:
            self.put(target, value, source)
        elif default is not None:
            self.put(target, default, default=True)
        return value if value is not None else default

    def number(self, source: str, target: str, *, default: float | None = None) -> float | None:
        """Like carry, for numbers that YAML may have read as a text (``2e-4``)."""
        value = self.take(source)
        if value is None:
            if default is not None:
                self.put(target, default, default=True)
            return default
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise FileProblem(
                f"{source} is {value!r}, not a number",
                file=self.file,
                line=self.lines.get(tuple(source.split("."))),
            ) from None
        kept = int(found) if found.is_integer() and not isinstance(value, float) else found
        self.put(target, kept, source)
        return found

    def leave(self, path: str, reason: str) -> None:
        """Account for a key that the recipe does not carry. Empty and switched-off ones need no word."""
        value = self.take(path)
        if value not in (None, False, "", [], {}):
            self.left.append(Left(path, value, self.lines.get(tuple(path.split("."))), reason))

    def leave_rest(self, section: str, reason: str) -> None:
        """Account for the keys of a section that nobody took."""
        for name in self.get(section) or {}:
            if (*section.split("."), name) not in self._used:
                self.leave(f"{section}.{name}", reason)

    def leave_all(self, reasons: dict[str, str]) -> None:
        for path, reason in reasons.items():
            self.leave(path, reason)

    def finish(self) -> list[str]:
        """Name every key that nobody took. Returns the keys that were empty."""
        empty: list[str] = []

        def visit(value: Any, path: Path_) -> None:
            if path in self._used:
                return
            if isinstance(value, dict) and value:
                for key, inner in value.items():
                    visit(inner, (*path, key))
            elif value in (None, "", [], {}):
                empty.append(".".join(path))
            else:
                line = self.lines.get(path)
                self.left.append(Left(".".join(path), value, line, "has no counterpart in a recipe"))

        visit(self.values, ())
        spoken = self._told | {one.key for one in self.left}
        for used in sorted(".".join(path) for path in self._used):
            if self.get(used) in (None, "", [], {}):
                empty.append(used)
            elif used not in spoken:
                self.same.append(used)
        self.left.sort(key=lambda one: (one.line or 0, one.key))
        return empty

    def _place(self, key: str) -> str:
        line = self.lines.get(tuple(key.split(".")))
        return key if line is None else f"{key} (line {line})"
