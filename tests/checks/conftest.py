"""Tiny random models of real architectures and their GGUF files."""

import struct

import pytest

from gguf_families import save
from luthier.errors import ToolchainError
from luthier.llamacpp.gguf_file import read_header


@pytest.fixture(scope="session")
def converter():
    """llama.cpp's converter, or a skipped test that says how to get it."""
    pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
    from luthier.llamacpp.setup import converter

    try:
        return converter()
    except ToolchainError as error:
        pytest.skip(f"{error}: {error.hint}")


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """family -> folder of its saved tiny model."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = save(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def converted(saved, converter, tmp_path_factory):
    """family -> its F16 GGUF."""
    from luthier.llamacpp.convert import convert

    made = {}

    def get(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("gguf") / f"{family}-F16.gguf"
            convert(saved(family), made[family], using=converter)
        return made[family]

    return get


@pytest.fixture(scope="session")
def reference(saved):
    """family -> its model in this process."""
    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.generate import TorchGenerator
    from luthier.models.load import load_causal

    def get(family):
        folder = saved(family)
        return TorchGenerator(
            load_causal(folder, dtype="float32"), load_tokenizer(folder), label="tuned", weights_digest="-"
        )

    return get


def rewrite(source, out, changes):
    """A copy of a GGUF file with other metadata. changes: key -> the value's new bytes, type first."""
    header = read_header(source)
    data = source.read_bytes()[len(header.raw) :]
    last = max(end for _, _, end in header.spans.values())
    entries = [
        header.raw[start:at] + changes.get(key, header.raw[at:end])
        for key, (start, at, end) in header.spans.items()
    ]
    new = changes.keys() - header.spans.keys()
    entries += [struct.pack("<Q", len(key)) + key.encode() + changes[key] for key in new]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(entries)) + b"".join(entries)
    head += tensor_table(header, header.raw[last:])
    out.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + data)
    return out


def tensor_table(header, raw):
    """The table's bytes without the padding behind it."""
    at = 0
    for _ in header.tensors:
        (length,) = struct.unpack_from("<Q", raw, at)
        (dims,) = struct.unpack_from("<I", raw, at + 8 + length)
        at += 8 + length + 4 + 8 * dims + 12
    return raw[:at]


@pytest.fixture
def plant(tmp_path):
    """source, key=value bytes -> a copy with that fault in its metadata."""
    return lambda source, **changes: rewrite(
        source, tmp_path / "planted-F16.gguf", {key.replace("__", "."): raw for key, raw in changes.items()}
    )
