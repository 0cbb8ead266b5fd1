"""Headers are read right, and torn files are named as such."""

import numpy as np
import pytest

from luthier.catalog.gguf_types import TENSOR_TYPES
from luthier.errors import FileProblem
from luthier.llamacpp.gguf_file import read_header


def test_types_are_those_of_the_gguf_library():
    gguf = pytest.importorskip("gguf")
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (name, block, size)


def test_header_is_what_the_gguf_library_reads(speaker):
    gguf = pytest.importorskip("gguf")
    reader, header = gguf.GGUFReader(speaker), read_header(speaker)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert set(fields) == set(header.spans)
    assert all(header.get(key) == pytest.approx(item) for key, item in fields.items())
    theirs = {
        t.name: (t.tensor_type.name, [int(n) for n in t.shape], t.data_offset, t.n_bytes)
        for t in reader.tensors
    }
    assert theirs == {t.name: (t.type, list(t.shape), t.offset, t.bytes) for t in header.tensors}
    assert header.architecture == "llama"
    assert header.of_architecture("context_length") == 512
    assert header.get("no.such.key", 5) == 5


def test_every_cut_is_noticed(speaker, tmp_path):
    whole = speaker.read_bytes()
    torn = tmp_path / "torn.gguf"
    for length in [0, 3, 4, 12, 23, *np.linspace(24, len(whole) - 33, 60).astype(int)]:
        torn.write_bytes(whole[:length])
        with pytest.raises(FileProblem) as caught:
            read_header(torn)
        assert caught.value.file == str(torn)
        assert caught.value.hint


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_text("hello, this is text and no model")
    with pytest.raises(FileProblem, match="not a GGUF file"):
        read_header(tmp_path / "a.gguf")
    with pytest.raises(FileProblem, match="no such file"):
        read_header(tmp_path / "b.gguf")
    with pytest.raises(FileProblem, match="is a directory"):
        read_header(tmp_path)


def test_big_endian_and_unknown_types_are_named(speaker, tmp_path, write_gguf):
    data = bytearray(speaker.read_bytes())
    data[4:8] = (3).to_bytes(4, "big")
    (tmp_path / "big.gguf").write_bytes(data)
    with pytest.raises(FileProblem, match="little-endian"):
        read_header(tmp_path / "big.gguf")
    path = write_gguf({"general.architecture": "llama"}, {"a.weight": ("F32", (4,), bytes(16))})
    raw = bytearray(path.read_bytes())
    at = raw.index(b"a.weight") + 8 + 4 + 8
    raw[at : at + 4] = (250).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(FileProblem, match=r"a\.weight in the unknown tensor type 250"):
        read_header(path)
