"""Modelfiles, and the import into a server that speaks Ollama's API."""

import hashlib
import json

import pytest

from loopback import JsonHandler, listening
from luthier.errors import LuthierError, Unreachable, UsageError
from luthier.serving.ollama import Ollama, OllamaModel, model_name, modelfile, settings_of


class FakeOllama(JsonHandler):
    """As much of Ollama's API as an import needs; refuses blobs whose digest is wrong, as it does."""

    def do_GET(self):
        state = self.server.state
        if self.path == "/api/version":
            self.answer(200, {"version": "0.99"})
        elif self.path == "/api/ps":
            self.answer(
                200, {"models": [{"name": f"{name}:latest", "size": 123} for name in state["models"]]}
            )

    def do_HEAD(self):
        self.answer(200 if self.path.rpartition("/")[2] in self.server.state["blobs"] else 404)

    def do_POST(self):
        state, body = self.server.state, self.body()
        if self.path.startswith("/api/blobs/"):
            state["uploads"] += 1
            digest = self.path.rpartition("/")[2]
            if digest != "sha256:" + hashlib.sha256(body).hexdigest():
                return self.answer(400, {"error": "digest mismatch"})
            state["blobs"].add(digest)
            return self.answer(201)
        asked = json.loads(body)
        if self.path == "/api/create":
            if not set(asked["files"].values()) <= state["blobs"]:
                return self.answer(400, {"error": "no such blob"})
            state["models"][asked["model"]] = asked
            return self.answer(200, {"status": "success"})
        if asked["model"] not in state["models"]:
            return self.answer(404, {"error": f"model '{asked['model']}' not found"})
        message = {"role": "assistant", "content": "Hi"}
        timing = {"eval_count": 10, "eval_duration": 500_000_000}
        return self.answer(200, {"message": message, "done_reason": "stop", **timing})

    def do_DELETE(self):
        del self.server.state["models"][json.loads(self.body())["model"]]
        self.answer(200)


@pytest.fixture
def server():
    with listening(FakeOllama, state={"blobs": set(), "models": {}, "uploads": 0}) as httpd:
        yield httpd


def address(server):
    return f"127.0.0.1:{server.server_port}"


@pytest.fixture
def model(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(bytes(range(256)) * 9000)
    return OllamaModel(
        gguf=file, template="{{ .Content }}\n", system="Be kind", context=2048, stops=["<|im_end|>", 'a "b"'],
        settings={"temperature": 0.2},
    )  # fmt: skip


def test_the_modelfile_holds_all_and_nothing_invented(model):
    assert modelfile(model).splitlines() == [
        "FROM ./m.gguf",
        'TEMPLATE """{{ .Content }}',
        '"""',
        'SYSTEM """Be kind"""',
        "PARAMETER num_ctx 2048",
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "a \\"b\\""',
        "PARAMETER temperature 0.2",
    ]
    bad = OllamaModel(model.gguf, 'a """ b', None, 1, (), {})
    with pytest.raises(UsageError, match="cannot hold"):
        modelfile(bad)


def test_settings_are_the_models_own():
    assert settings_of({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "eos_token_id": 2}) == {
        "temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.1,
    }  # fmt: skip
    assert settings_of({"do_sample": False, "temperature": 0.6}) == {"temperature": 0.0}
    assert settings_of({}) == {}


def test_names_that_ollama_takes():
    assert model_name("Llama My Model!") == "llama-my-model"
    assert model_name("org/name:v1") == "org/name:v1"


def test_an_import_sends_the_file_once_and_can_be_taken_back(server, model):
    there = Ollama(address(server))
    told = []
    assert there.version() == "0.99"
    there.create("mine", model, progress=lambda done, total: told.append((done, total)))
    there.create("mine", model)
    assert server.state["uploads"] == 1
    assert told[-1] == (model.gguf.stat().st_size,) * 2
    made = server.state["models"]["mine"]
    assert made["parameters"] == {"num_ctx": 2048, "stop": ["<|im_end|>", 'a "b"'], "temperature": 0.2}
    assert (made["template"], made["system"]) == ("{{ .Content }}\n", "Be kind")
    assert there.chat("mine", "Hello")["done_reason"] == "stop"
    assert there.memory("mine") == 123
    there.remove("mine")
    assert server.state["models"] == {}
    with pytest.raises(LuthierError, match="not found"):
        there.chat("mine", "Hello")


def test_nobody_there(model):
    gone = Ollama("127.0.0.1:9")
    assert gone.version() is None
    with pytest.raises(Unreachable, match="did not answer"):
        gone.create("mine", model)
