"""The papers that go along with a tuned model: licence text, NOTICE, and the name it may carry."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from luthier.exporting.files import PAPERS
from luthier.files import write_text
from luthier.schema.licence import Licence


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a tuned model comes from."""

    base_model: str
    """Id or name of the base."""
    base_revision: str | None
    licence: Licence | None
    """None: nothing is known of the base's terms."""
    changes: str
    """What was done to the weights, one sentence."""


def permitted_name(name: str, licence: Licence | None) -> str:
    """The name that a derivative may be passed on under: with the licence's prefix, where it asks for one."""
    prefix = licence.name_prefix if licence else None
    if not prefix or name.lower().startswith(prefix.lower()):
        return name
    return f"{prefix}-{name}"


def write_licence_bundle(
    folder: Path, provenance: Provenance, *, base_dir: Path | None, texts: tuple[Path, ...] = ()
) -> list[Path]:
    """Write licence text, NOTICE and duties into ``folder``; returns what was written.

    base_dir: the base model's folder, whose own papers go along word for word. texts: further papers
    (the licence that came in a package). Where there is no text, LICENSE.txt names where it stands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    sources = [*_papers_of(base_dir), *(path for path in texts if path.is_file())]
    for source in sources:
        target = folder / source.name
        if target not in written and source.resolve() != target.resolve():
            shutil.copyfile(source, target)
        if target not in written:
            written.append(target)
    if not any(re.match(r"(licen[cs]e|copying)", path.name, re.I) for path in written):
        written.append(write_text(folder / "LICENSE.txt", _source_of_text(provenance)))
    taken = any(path.name.upper() == "NOTICE.TXT" for path in written)
    own = folder / ("NOTICE.luthier.txt" if taken else "NOTICE.txt")
    written.append(write_text(own, _notice(provenance)))
    return written


def _papers_of(base_dir: Path | None) -> list[Path]:
    if base_dir is None or not base_dir.is_dir():
        return []
    return sorted(path for path in base_dir.iterdir() if path.is_file() and PAPERS.match(path.name))


def _source_of_text(provenance: Provenance) -> str:
    licence = provenance.licence
    if licence is None:
        return (
            f"The licence of {provenance.base_model} is not known.\n"
            "This model is derived from it: find out its terms before you pass this model on.\n"
        )
    where = licence.url or "the base model's page"
    return (
        f"{licence.name}\n\n"
        f"This model is derived from {provenance.base_model} and stands under the same licence.\n"
        f"The text did not come with the base model's files; it stands at {where}\n"
    )


def _notice(provenance: Provenance) -> str:
    revision = f" (revision {provenance.base_revision})" if provenance.base_revision else ""
    lines = [
        f"This model is derived from {provenance.base_model}{revision}.",
        f"Changes: {provenance.changes}",
    ]
    licence = provenance.licence
    if licence is not None:
        lines.append(f"Licence of the base model: {licence.name}.")
        if licence.notice and "licensed under" in licence.notice:
            lines.append(licence.notice)  # a text to be reproduced, not an instruction
        if licence.duties:
            lines += ["", "What passing it on asks of you (information, not legal advice):"]
            lines += [f"- {duty}" for duty in licence.duties]
    return "\n".join(lines) + "\n"
