"""Quantising with an importance matrix writes the files of llama.cpp's, to the byte.

golden_weighed.json holds the SHA-256 of what `llama_model_quantize` of llama.cpp v0.5.0 made of the same
made-up files with the same made-up importance matrices.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import FileProblem, Unsupported
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.importance import (
    WEIGHED_TYPES,
    importance_array,
    read_importance,
    tensor_importance,
    write_importance,
)
from luthier.llamacpp.quantize import predicted_size, quantize, write_quantised

pytest.importorskip("libgguf", reason="pip install 'luthier[export]'")
GOLDEN = json.loads(Path(__file__).with_name("golden_weighed.json").read_text())
PLAIN = json.loads(Path(__file__).with_name("golden_quantised.json").read_text())


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("shape", list(GOLDEN))
def test_files_equal_those_of_llama_cpp(shape, write_model, importance_of, tmp_path):
    source = write_model(shape)
    weights = write_importance(tmp_path / "imatrix.dat", importance_of(read_header(source)))
    for kind in WEIGHED_TYPES:
        out = tmp_path / f"{kind}.gguf"
        write_quantised(source, out, kind, importance=weights)
        assert digest(out) == GOLDEN[shape][kind], kind
        assert digest(out) != PLAIN[shape][kind], kind
        assert out.stat().st_size == predicted_size(source, kind), kind


def test_the_child_reads_the_matrix_that_was_written(write_model, importance_of, tmp_path):
    source = write_model("untied")
    values = importance_of(read_header(source))
    weights = write_importance(tmp_path / "a matrix.dat", values)
    again = read_importance(weights)
    assert again.keys() == values.keys()
    assert all(np.array_equal(again[name], values[name]) for name in values)
    quantize(source, tmp_path / "o.gguf", "Q4_K_M", log=tmp_path / "log", using="libgguf", importance=weights)
    assert digest(tmp_path / "o.gguf") == GOLDEN["untied"]["Q4_K_M"]
    with pytest.raises(FileProblem, match="no importance matrix"):
        read_importance(tmp_path / "log")


def test_layers_are_found_again_by_their_names_in_the_file(write_model):
    pytest.importorskip("gguf")
    source = write_model("dense")
    layers = {
        "model.layers.3.mlp.down_proj": np.ones(256, np.float32),
        "model.layers.3.self_attn.q_proj": np.ones(256, np.float32),
        "model.layers.3.self_attn.k_proj": np.ones(17, np.float32),
        "model.layers.3.experts.3": np.ones(256, np.float32),
    }
    assert sorted(tensor_importance(source, layers)) == ["blk.3.attn_q.weight", "blk.3.ffn_down.weight"]
    with pytest.raises(Unsupported, match="no layer of the model"):
        tensor_importance(source, {"nothing": np.ones(256, np.float32)})


def test_an_array_for_llama_cpp_ends_with_an_empty_entry():
    found = importance_array({"a": np.asarray([1, 2], np.float32)})
    assert [(entry.name, entry.size) for entry in found] == [(b"a", 2), (None, 0)]
