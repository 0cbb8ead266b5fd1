"""Anything that answers chats can be judged on a file's rows, by the same scores."""

import json

import pytest

from endpoints import endpoint
from luthier.errors import Unreachable, UsageError
from luthier.evaluation.generation import text_of
from luthier.runs.judging import answering, judge, read_rows
from luthier.serving.endpoint import Endpoint


@pytest.fixture
def server():
    with endpoint() as httpd:
        yield httpd


@pytest.fixture
def rows(tmp_path):
    def row(n):
        return {
            "messages": [
                {"role": "user", "content": f"word {n}"},
                {"role": "assistant", "content": f"WORD {n}" if n % 4 else "else"},
            ]
        }

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row(n)) + "\n" for n in range(12)))
    return read_rows([str(file)])


def test_an_endpoint_answers_in_order_and_is_asked_again_when_busy(server, rows):
    with answering(server.address, longest=16, say=print) as generator:
        found = judge(generator, rows, split="rows", metrics=["exact_match"], longest=16)
    assert found.metrics["exact_match"].value == 9 / 12
    assert [row.answer for row in found.rows] == [f"WORD {n}" for n in range(12)]
    assert found.model == f"loud at 127.0.0.1:{server.server_port}"
    assert len(server.bodies) == 14
    assert {body["temperature"] for body in server.bodies} == {0}


def test_which_of_several_models_must_be_said(server):
    server.names = ["a", "b"]
    with pytest.raises(UsageError, match="serves 2 models") as caught:
        Endpoint(server.address, text_of=text_of)
    assert caught.value.hint == "name one: a, b"
    server.bodies = [{}, {}]
    with (
        Endpoint(server.address, text_of=text_of, model="c") as other,
        pytest.raises(UsageError, match="404"),
    ):
        other.generate([[{"role": "user", "content": "x"}]], max_new_tokens=4)


def test_nobody_there():
    with pytest.raises(Unreachable, match="did not answer"):
        Endpoint("http://127.0.0.1:9/v1", text_of=text_of)


def test_a_folder_answers_like_the_model_in_this_process(tmp_path, rows, monkeypatch):
    pytest.importorskip("torch", reason="pip install 'luthier[train]'")
    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.generate import TorchGenerator
    from luthier.models.load import load_causal
    from tiny import save_tiny_model

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    folder = save_tiny_model(tmp_path / "model")
    with answering(str(folder), longest=6, say=print) as generator:
        found = judge(generator, rows, split="rows", metrics=["exact_match"], longest=6)
        again = judge(generator, rows, split="rows", metrics=["exact_match"], longest=6)
    model = load_causal(folder, dtype="float32")
    own = TorchGenerator(model, load_tokenizer(folder), label="own", weights_digest="")
    wanted = own.generate([row.messages[:-1] for row in rows], max_new_tokens=6)
    assert [row.answer for row in found.rows] == [answer.text for answer in wanted]
    assert again.cached == len(rows)
    with (
        pytest.raises(UsageError, match="no run, file, folder or address"),
        answering("nobody/nothing", longest=4, say=print),
    ):
        pass
