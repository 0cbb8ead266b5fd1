"""Our quantiser writes the files of llama.cpp's, to the byte.

golden_quantised.json holds the SHA-256 of what llama.cpp v0.5.0 (libllama of the npm package
@node-llama-cpp/linux-x64 3.22.1, `llama_model_quantize`) made of the same made-up files.
"""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from luthier.catalog.gguf_types import FILE_TYPES
from luthier.errors import DoesNotFit, ToolchainError, Unsupported
from luthier.llamacpp import quantize as quantize_module
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.policy import plan_types
from luthier.llamacpp.quantize import predicted_size, quantiser, quantize, write_quantised

pytest.importorskip("libgguf", reason="pip install 'luthier[export]'")
GOLDEN = json.loads(Path(__file__).with_name("golden_quantised.json").read_text())


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("shape", list(GOLDEN))
def test_files_equal_those_of_llama_cpp(shape, write_model, tmp_path):
    source = write_model(shape)
    assert digest(source) == GOLDEN[shape]["source"], "the made-up source differs: its figures mean nothing"
    assert set(GOLDEN[shape]) == {"source", *FILE_TYPES}
    for kind in FILE_TYPES:
        out = tmp_path / f"{kind}.gguf"
        write_quantised(source, out, kind)
        assert digest(out) == GOLDEN[shape][kind], kind
        assert out.stat().st_size == predicted_size(source, kind), kind


def test_chunks_and_threads_do_not_show(write_model, tmp_path, monkeypatch):
    source, out = write_model("dense"), tmp_path / "out.gguf"
    monkeypatch.setattr(quantize_module, "CHUNK_VALUES", 3 * 256)
    monkeypatch.setattr(quantize_module, "cores", lambda: 3)
    write_quantised(source, out, "Q4_K_M")
    assert digest(out) == GOLDEN["dense"]["Q4_K_M"]


def test_types_follow_rows_that_do_not_divide(write_model):
    types = plan_types(read_header(write_model("narrow")), "Q4_K_M")
    assert types["blk.0.attn_q.weight"] == "Q5_0"  # 96 values a row
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["token_embd.weight"] == "Q8_0"


def test_bf16_and_f32_sources_keep_their_values(write_gguf, tmp_path):
    libgguf = pytest.importorskip("libgguf")
    floats = np.random.RandomState(1).standard_normal((4, 256)).astype(np.float32)
    halves = (floats.view(np.uint32) >> 16).astype(np.uint16)
    for kind, raw, same in (
        ("F32", floats.tobytes(), floats),
        ("BF16", halves.tobytes(), (halves.astype(np.uint32) << 16).view(np.float32)),
    ):
        source = write_gguf(
            {"general.architecture": "llama", "llama.block_count": 1},
            {"blk.0.ffn_up.weight": (kind, (256, 4), raw)},
            f"{kind}.gguf",
        )
        out = tmp_path / "out.gguf"
        write_quantised(source, out, "Q8_0")
        (tensor,) = read_header(out).tensors
        data = np.frombuffer(out.read_bytes()[tensor.offset : tensor.offset + tensor.bytes], np.uint8)
        assert (data == libgguf.quantize_rows(same, 8).ravel()).all()


def test_child_process_writes_the_same_file_and_tells_its_progress(write_model, tmp_path):
    source, out, told = write_model("untied"), tmp_path / "out" / "x.gguf", []
    tool = quantize(
        source, out, "Q5_K_M", log=tmp_path / "log", using="libgguf", progress=lambda *step: told.append(step)
    )
    assert tool == "libgguf"
    assert digest(out) == GOLDEN["untied"]["Q5_K_M"]
    assert told[-1][0] == told[-1][1]
    assert sorted(told) == told
    assert [path.name for path in out.parent.iterdir()] == ["x.gguf"]


def test_numbers_that_are_none_fail_in_words_and_leave_no_file(write_gguf, tmp_path):
    values = np.ones((2, 256), np.float16)
    values[1, 7] = np.inf
    source = write_gguf(
        {"general.architecture": "llama", "llama.block_count": 1},
        {"blk.0.ffn_up.weight": ("F16", (256, 2), values.tobytes())},
    )
    with pytest.raises(ToolchainError, match="not finite numbers"):
        quantize(source, tmp_path / "out.gguf", "Q4_K_M", log=tmp_path / "log", using="libgguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.gguf", "log"]


def test_quantising_twice_is_refused(write_model, tmp_path):
    source = write_model("dense")
    once = tmp_path / "q8.gguf"
    write_quantised(source, once, "Q8_0")
    with pytest.raises(Unsupported, match="already quantised"):
        quantize(once, tmp_path / "q4.gguf", "Q4_K_M", log=tmp_path / "log")
    with pytest.raises(Unsupported, match="Q9_K cannot be made"):
        predicted_size(source, "Q9_K")


def test_a_full_disk_is_said_before_writing(write_model, tmp_path, monkeypatch):
    source = write_model("dense")
    monkeypatch.setattr(quantize_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFit, match="1,000 are free"):
        quantize(source, tmp_path / "out.gguf", "Q8_0", log=tmp_path / "log")


def test_llama_quantize_on_path_comes_first(write_model, tmp_path, monkeypatch):
    tool = tmp_path / "bin" / "llama-quantize"
    tool.parent.mkdir()
    words = "import shutil, sys\nshutil.copyfile(sys.argv[1], sys.argv[2])\nprint(sys.argv)\n"
    tool.write_text(f"#!{sys.executable}\n{words}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    assert quantiser() == "llama-quantize"
    used = quantize(write_model("dense"), tmp_path / "o.gguf", "Q6_K", log=tmp_path / "log")
    assert used == "llama-quantize"
    assert "'Q6_K'" in (tmp_path / "log").read_text()
    assert digest(tmp_path / "o.gguf") == GOLDEN["dense"]["source"]
