"""Writes a merged model as GGUF files, one a type, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.catalog.gguf_types import FILE_TYPES
from luthier.errors import Unsupported
from luthier.exporting.files import artifact_of, folder_digest
from luthier.exporting.space import check_space, plan_gguf_space
from luthier.files import UNFINISHED, file_sha256, write_text
from luthier.llamacpp.convert import OutType, convert, convert_projector
from luthier.llamacpp.importance import WEIGHED_TYPES, tensor_importance, write_importance
from luthier.llamacpp.quantize import predicted_size, quantiser, quantize
from luthier.llamacpp.setup import converter
from luthier.schema.protocols import Progress
from luthier.schema.recipe import GgufType
from luthier.schema.results import Artifact

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "gguf.json"
IMPORTANCE = "imatrix.dat"
CONVERTED: dict[GgufType, OutType] = {"F16": "f16", "BF16": "bf16"}
"""Types that the converter writes itself; the others are quantised from one of these."""
_INTERMEDIATE = ".intermediate"


@dataclass
class _Export:
    """One export under way."""

    merged: Path
    out: Path
    root: Path
    name: str
    log: Path
    source: str
    """Digest of the merged folder."""
    importance: Mapping[str, NDArray[np.float32]] | None = None
    """Path of a layer -> mean square of its inputs."""
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Type -> what the manifest says of its file."""

    def file(self, kind: str) -> Path:
        return self.out / f"{self.name}-{kind}.gguf"

    def kept(self, kind: str) -> bool:
        """Whether the file of an earlier export is there, whole, and of this very model."""
        entry = self.done.get(kind)
        path = self.file(kind)
        return (
            entry is not None
            and entry["file"] == path.name
            and entry["source"] == self.source
            and entry.get("importance") == self.weighed(kind)
            and path.is_file()
            and path.stat().st_size == entry["bytes"]
            and file_sha256(path) == entry["sha256"]
        )

    def weighed(self, kind: str) -> str | None:
        """Digest of the importance matrix that a type is quantised with, None without one."""
        if self.importance is None or kind not in WEIGHED_TYPES:
            return None
        digest = hashlib.sha256()
        for path, values in sorted(self.importance.items()):
            digest.update(path.encode() + values.tobytes())
        return digest.hexdigest()

    def record(self, kind: str, *, predicted: int | None, tools: dict[str, str]) -> None:
        path = self.file(kind)
        self.done[kind] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "predicted_bytes": predicted,
            "source": self.source,
            "importance": self.weighed(kind),
            "tools": tools,
        }
        write_text(self.out / MANIFEST, json.dumps(self.done, indent=1) + "\n")

    def artifact(self, kind: str) -> Artifact:
        entry = self.done[kind]
        return artifact_of(
            self.file(kind),
            f"gguf:{kind}",
            relative_to=self.root,
            predicted_bytes=entry["predicted_bytes"],
            sha256=entry["sha256"],
            notes=tuple(f"{tool}: {version}" for tool, version in entry["tools"].items()),
        )


def export_gguf(
    merged_dir: Path,
    out_dir: Path,
    types: Sequence[GgufType],
    *,
    name: str,
    relative_to: Path,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    log: Path | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Write ``name-TYPE.gguf`` for each type, from a folder with merged weights and tokenizer.

    A file of an earlier export is kept when it is whole and of the same weights. The F16 file that the
    others are quantised from stays only if it is asked for. importance: path of a layer -> mean square of
    its inputs, for the types of few bits; it is kept beside the files as ``imatrix.dat``. say: told of
    each step in words; progress: of bytes within a step. relative_to: the run directory. Artifacts come in
    the order of types; those that are quantised carry their predicted size, exact to the byte.
    Errors: ToolchainError (converter or quantiser missing or failed), DoesNotFit, Unsupported, FileProblem.
    """
    types = tuple(dict.fromkeys(types))
    unknown = [kind for kind in types if kind not in CONVERTED and kind not in FILE_TYPES]
    if unknown:
        raise Unsupported(
            f"no GGUF type {unknown[0]}", hint=f"choose from {', '.join([*CONVERTED, *FILE_TYPES])}"
        )
    quantised = [kind for kind in types if kind not in CONVERTED]
    tell = say or (lambda _: None)
    converter()
    if quantised:
        quantiser()
    out_dir.mkdir(parents=True, exist_ok=True)
    _clear_partials(out_dir)
    export = _Export(
        merged_dir,
        out_dir,
        relative_to,
        name,
        log or out_dir / "gguf.log",
        folder_digest(merged_dir, papers=False),
        importance,
        _manifest(out_dir / MANIFEST),
    )
    missing = [kind for kind in types if not export.kept(kind)]
    if missing:
        check_space(out_dir, plan_gguf_space(merged_dir, missing))
        _write(export, missing, tell, progress)
    for kind in types:
        if kind not in missing:
            tell(f"{kind}: kept from before")
    return [export.artifact(kind) for kind in types]


def forget_gguf(out_dir: Path, kind: str) -> None:
    """Let the next export write a type anew: its file stays where it is, but is not taken for a good one."""
    done = _manifest(out_dir / MANIFEST)
    if done.pop(kind, None) is not None:
        write_text(out_dir / MANIFEST, json.dumps(done, indent=1) + "\n")


def export_projector(merged_dir: Path, out_dir: Path, *, name: str, relative_to: Path) -> Artifact | None:
    """Write ``name-mmproj-F16.gguf`` beside the files of a model that sees; None for one that does not.

    Errors: Unsupported with the reason where llama.cpp's converter has no projector for it.
    """
    path = out_dir / f"{name}-mmproj-F16.gguf"
    build = convert_projector(merged_dir, path, log=out_dir / "gguf.log")
    if build is None:
        return None
    return artifact_of(path, "mmproj", relative_to=relative_to, notes=(f"llama.cpp converter: {build}",))


def _write(
    export: _Export, missing: Sequence[GgufType], tell: Callable[[str], None], progress: Progress | None
) -> None:
    for kind in missing:
        if kind in CONVERTED:
            tell(f"{kind}: converting")
            build = convert(export.merged, export.file(kind), outtype=CONVERTED[kind], log=export.log)
            export.record(kind, predicted=None, tools={"llama.cpp converter": build})
    quantised = [kind for kind in missing if kind not in CONVERTED]
    if not quantised:
        return
    source, temporary = _quantisable(export, tell)
    try:
        needs: dict[str, int] = {kind: predicted_size(source, kind) for kind in quantised}
        check_space(export.out, needs)
        weights = _importance(export, source, quantised)
        for kind in quantised:
            tell(f"{kind}: quantising, {needs[kind] / 1e6:,.1f} MB")
            own = weights if export.weighed(kind) else None
            tool = quantize(
                source, export.file(kind), kind, log=export.log, importance=own, progress=progress
            )
            tools = {"quantised with": tool + (", importance matrix of training rows" if own else "")}
            export.record(kind, predicted=needs[kind], tools=tools)
    finally:
        if temporary:
            source.unlink(missing_ok=True)


def _importance(export: _Export, source: Path, kinds: Sequence[GgufType]) -> Path | None:
    """The importance matrix of the files to write, or None where no type takes one."""
    if export.importance is None or not any(export.weighed(kind) for kind in kinds):
        return None
    tensors = tensor_importance(source, export.importance)
    return write_importance(export.out / IMPORTANCE, tensors)


def _quantisable(export: _Export, tell: Callable[[str], None]) -> tuple[Path, bool]:
    """The 16-bit file to quantise from, and whether it is to be removed afterwards."""
    for kind in CONVERTED:
        if export.kept(kind):
            return export.file(kind), False
    source = export.out / f"{_INTERMEDIATE}-{export.name}-F16.gguf"
    tell("F16: converting (removed afterwards)")
    convert(export.merged, source, outtype="f16", log=export.log)
    return source, True


def _clear_partials(out_dir: Path) -> None:
    """Remove what an export that was killed left behind."""
    for pattern in (f"{_INTERMEDIATE}-*.gguf", f"{UNFINISHED}*"):
        for path in out_dir.glob(pattern):
            path.unlink(missing_ok=True)


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier export wrote; nothing where its manifest is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    keys = {"file", "bytes", "sha256", "predicted_bytes", "source", "tools"}
    if not isinstance(found, dict):
        return {}
    return {kind: entry for kind, entry in found.items() if isinstance(entry, dict) and keys <= entry.keys()}
