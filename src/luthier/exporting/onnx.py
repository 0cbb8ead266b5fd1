"""An ONNX folder as others use it: texts in, answers out, by onnxruntime and tokenizers alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import FileProblem, ToolchainError
from luthier.files import UNFINISHED, write_text
from luthier.llamacpp.process import cores
from luthier.schema.onnx import GRAPH_FILE, SPEC_FILE, OnnxSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Input = str | tuple[str, str]
LEFT_OUT = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".md")
"""Ends of names of what does not go along from the merged folder."""
ROWS_AT_ONCE = 16
_ROLES = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "similarity": ("similarity", "STS"),
}


def demand_onnx() -> None:
    """Refuse where the packages that write and check a graph are missing. Errors: ToolchainError."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ToolchainError(f"{', '.join(missing)} is not installed", hint="pip install 'luthier[onnx]'")


@contextmanager
def onnx_folder(merged: Path, out: Path) -> Iterator[Path]:
    """A folder to write the graph into, with tokenizer and settings of the merged one; whole or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}onnx-", dir=out.parent))
    try:
        for path in merged.iterdir():
            if path.is_file() and not path.name.endswith(LEFT_OUT):
                shutil.copyfile(path, scratch / path.name)
        yield scratch
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_spec(folder: Path, spec: OnnxSpec) -> Path:
    """Write how the graph is read beside it."""
    return write_text(folder / SPEC_FILE, spec.model_dump_json(indent=1) + "\n")


class OnnxModel:
    """A saved graph with its tokenizer, on the CPU. No torch, no transformers.

    Errors: FileProblem for a folder without graph, settings or tokenizer, ToolchainError without
    onnxruntime or for a graph that it does not load.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        for name in (GRAPH_FILE, SPEC_FILE, "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileProblem(f"has no {name}", file=folder, hint="luthier export RUN --onnx writes it")
        if find_spec("onnxruntime") is None:
            raise ToolchainError("onnxruntime is not installed", hint="pip install 'luthier[onnx]'")
        import onnxruntime
        from tokenizers import Tokenizer

        self.spec = OnnxSpec.model_validate_json((folder / SPEC_FILE).read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise ToolchainError(
                f"onnxruntime does not load the graph: {str(error)[:200]}", file=folder / GRAPH_FILE
            ) from error
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()

    def encode(self, inputs: Sequence[Input], role: str | None = None) -> list[tuple[list[int], list[int]]]:
        """Token ids and segment ids of texts or pairs, prompts and special tokens among them.

        role: query, document or similarity (embedders with prompts).
        """
        spec = self.spec
        if spec.prefix is not None:
            return [self._asked(one) for one in inputs]
        prompt = self._prompt(role)
        ready = [prompt + one if isinstance(one, str) else one for one in inputs]
        if spec.lower_case:
            ready = [
                one.lower() if isinstance(one, str) else (one[0].lower(), one[1].lower()) for one in ready
            ]
        if spec.max_length is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(spec.max_length, strategy="longest_first")
        return [(one.ids, one.type_ids) for one in self._tokenizer.encode_batch(ready)]

    def run(self, inputs: Sequence[Input], *, role: str | None = None) -> NDArray[np.float32]:
        """The graph's output in the order of inputs: [inputs, dims], [inputs] or [inputs, labels]."""
        import numpy as np

        encoded = self.encode(inputs, role)
        order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place][0]))
        found: list[Any] = [None] * len(encoded)
        for start in range(0, len(order), ROWS_AT_ONCE):
            places = order[start : start + ROWS_AT_ONCE]
            (answers,) = self._session.run([self.spec.output], self._batch([encoded[p] for p in places]))
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        return np.asarray(found, dtype=np.float32)

    def _batch(self, encoded: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
        import numpy as np

        shape = (len(encoded), max(len(ids) for ids, _ in encoded))
        ids = np.full(shape, self.spec.pad_id, dtype=np.int64)
        mask, types = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, (own, kinds) in enumerate(encoded):
            ids[row, : len(own)], mask[row, : len(own)], types[row, : len(own)] = own, 1, kinds
        return dict(zip(self.spec.inputs, (ids, mask, types), strict=False))

    def _prompt(self, role: str | None) -> str:
        names = _ROLES.get(role or "", ())
        name = next((name for name in names if name in self.spec.prompts), self.spec.default_prompt)
        return self.spec.prompts.get(name, "") if name is not None else ""

    def _asked(self, pair: Input) -> tuple[list[int], list[int]]:
        """A pair as a decoder that says yes or no is asked about it."""
        spec, tokenizer = self.spec, self._tokenizer
        assert spec.prefix is not None
        assert spec.suffix is not None
        assert not isinstance(pair, str)

        def plain(text: str) -> list[int]:
            tokenizer.no_truncation()
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
            return ids

        before, after = plain(spec.prefix), plain(spec.suffix)
        room = None if spec.max_length is None else max(1, spec.max_length - len(before) - len(after))
        asked = f"<Instruct>: {spec.instruction}\n<Query>: {pair[0]}\n<Document>: {pair[1]}"
        ids = [*before, *plain(asked)[:room], *after]
        return ids, [0] * len(ids)
