"""Adapters come and go while a base is served, and each answers as it does alone."""

import asyncio

import httpx2
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.errors import UsageError
from luthier.llamacpp.convert import convert_adapter
from luthier.llamacpp.runtime import LlamaServer, ServerSettings
from luthier.serving.adapters import Adapter, LiveAdapters, only_adapter
from luthier.serving.backends import LlamaBackend
from luthier.serving.gateway import Gateway, Served

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
CHAT = {"messages": [{"role": "user", "content": "How much is the old boat?"}], "temperature": 0}
ASKED = {**CHAT, "max_tokens": 12, "top_k": 1, "samplers": ["top_k"]}


@pytest.fixture
def files(saved, tmp_path):
    """Two random adapters of the tiny Llama as GGUF files."""
    found = {}
    for seed, name in enumerate("ab"):
        base = AutoModelForCausalLM.from_pretrained(saved("llama"))
        model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(tmp_path / name)
        found[name] = tmp_path / f"{name}.gguf"
        convert_adapter(tmp_path / name, saved("llama"), found[name])
    return found


async def said(http, model):
    answer = await http.post("/v1/chat/completions", json={**ASKED, "model": model})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"], answer.headers["x-luthier-adapter"]


def test_adapters_come_and_go(converted, files):
    def find(target):
        if target not in files:
            raise UsageError(f"no run {target}", hint="luthier runs")
        return Adapter(files[target], {"adapter_sha256": f"digest of {target}"})

    settings = ServerSettings(context=256, slots=2, threads=1, adapters=((str(files["a"]), 1.0),))
    backend = LlamaBackend(LlamaServer(converted("llama"), settings), weights="0" * 64)
    gateway = Gateway(
        {"base": Served(backend, only_adapter(None, 1)), "a": Served(backend, only_adapter(0, 1))}
    )
    live = LiveAdapters(gateway, "base", {"a": find("a")}, find)
    assert gateway.adapters is live

    async def work():
        await gateway.start()
        transport = httpx2.ASGITransport(app=gateway.app())
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                before = {name: (await said(http, name))[0] for name in ("base", "a")}
                assert before["base"] != before["a"]
                # what is under way while the base is loaded again is answered, and so is what comes then
                asking = [asyncio.create_task(said(http, name)) for name in ("base", "a", "base", "a")]
                load = {"lora_name": "b", "lora_path": "b"}
                loading = asyncio.create_task(http.post("/v1/load_lora_adapter", json=load))
                assert [text for text, _ in await asyncio.gather(*asking)] == [*before.values()] * 2
                assert (await loading).status_code == 200, (await loading).text
                names = [one["id"] for one in (await http.get("/v1/models")).json()["data"]]
                assert names == ["base", "a", "b"]
                after = {name: await said(http, name) for name in names}
                assert after["base"][0] == before["base"]
                assert after["a"][0] == before["a"]
                assert after["b"][0] not in before.values()
                assert after["b"][1] == "digest of b"

                async def refused(path, body, words):
                    answer = await http.post(path, json=body)
                    assert words in answer.json()["error"]["message"], answer.text
                    return answer.status_code

                assert await refused("/v1/load_lora_adapter", load, "served already") == 400
                lost, base = {"lora_name": "c", "lora_path": "lost"}, {"lora_name": "base"}
                assert await refused("/v1/load_lora_adapter", lost, "no run lost; luthier runs") == 400
                assert await refused("/v1/load_lora_adapter", {"lora_name": "c"}, "lora_path") == 400
                assert await refused("/v1/unload_lora_adapter", base, "there are a, b") == 404

                gone = await http.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
                assert gone.status_code == 200
                assert await refused("/v1/chat/completions", {**ASKED, "model": "a"}, "no model 'a'") == 404
                assert await said(http, "b") == after["b"]
                again = await http.post("/v1/load_lora_adapter", json={"lora_name": "c", "lora_path": "a"})
                assert again.status_code == 200
                assert backend.server.settings.adapters == ((str(files["b"]), 1.0), (str(files["a"]), 1.0))
                assert (await said(http, "c"))[0] == before["a"]
                assert await said(http, "b") == after["b"]
                assert (await said(http, "base"))[0] == before["base"]
        finally:
            await gateway.close()

    asyncio.run(work())


def test_without_leave_there_is_no_such_path(converted):
    backend = LlamaBackend(LlamaServer(converted("llama")), weights="0" * 64)
    gateway = Gateway({"base": Served(backend)})

    async def work():
        transport = httpx2.ASGITransport(app=gateway.app())
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return (await http.post("/v1/load_lora_adapter", json={})).status_code

    assert asyncio.run(work()) == 404
