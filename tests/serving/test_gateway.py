"""The gateway keeps its bounds whatever clients and models do."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx2
import pytest

from luthier.errors import Unreachable
from luthier.serving.gateway import Gateway, Limits, Served
from luthier.serving.guard import Rules

CHAT = "/v1/chat/completions"
HOSTS = frozenset({"127.0.0.1"})


class Fake:
    """A model that answers in as many pieces as it is asked for, when it is let."""

    paths = frozenset({CHAT})
    weights = "0" * 64
    state = "ready"
    trouble = ""

    def __init__(self, slots=1):
        self.slots = slots
        self.open = asyncio.Event()
        self.open.set()
        self.busy = self.most = self.cancelled = self.closed = 0
        self.bodies = []

    async def start(self):
        self.closed = 0

    async def close(self):
        self.closed = 1

    @asynccontextmanager
    async def ask(self, path, body):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.bodies.append(body)
        try:
            await self.open.wait()
            if body.get("die"):
                raise Unreachable("the model died", hint="retry")
            if body.get("stream"):
                kind, content = "text/event-stream", self.events(body)
            else:
                kind, content = "application/json", json.dumps({"model": body["model"]}).encode()
            yield httpx2.Response(body.get("status", 200), headers={"content-type": kind}, content=content)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.busy -= 1

    async def events(self, body):
        for piece in range(body["pieces"]):
            if body.get("break") == piece:
                raise httpx2.ReadError("gone")
            yield f"data: {piece}\n\n".encode()
            await asyncio.sleep(0.001)
        yield b"data: [DONE]\n\n"

    async def tokens(self):
        return {"generated": 7.0}


def client(gateway, base="http://127.0.0.1"):
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=gateway.app()), base_url=base)


def asked(work):
    return asyncio.run(work())


def body(**more):
    return {"model": "a", "messages": [], **more}


def test_errors_have_the_right_status_and_openais_shape():
    async def work():
        gateway = Gateway({"a": Served(Fake())}, limits=Limits(body_bytes=1000))
        async with client(gateway) as http:
            return {
                "json": await http.post(CHAT, content=b"{"),
                "list": await http.post(CHAT, content=b"[]"),
                "large": await http.post(CHAT, content=b" " * 1001),
                "unknown": await http.post(CHAT, json=body(model="b")),
                "endpoint": await http.post("/v1/embeddings", json=body()),
                "path": await http.post("/v2/chat", json=body()),
                "method": await http.get(CHAT),
                "died": await http.post(CHAT, json=body(die=1)),
                "fine": await http.post(CHAT, json=body()),
                "deep": await http.post(CHAT, content=b"[" * 900),
            }

    seen = asked(work)
    statuses = {name: response.status_code for name, response in seen.items()}
    assert statuses == {
        "json": 400, "list": 400, "large": 413, "unknown": 404, "endpoint": 400, "path": 404,
        "method": 405, "died": 503, "fine": 200, "deep": 400,
    }  # fmt: skip
    for name, response in seen.items():
        if name != "fine":
            assert set(response.json()["error"]) == {"message", "type", "code", "param"}, name
    assert "a" in seen["unknown"].json()["error"]["message"]
    assert seen["fine"].headers["x-luthier-weights"] == "0" * 64


def test_a_body_without_a_length_is_bounded_too():
    async def endless():
        while True:
            yield b" " * 100

    async def work():
        gateway = Gateway({"a": Served(Fake())}, limits=Limits(body_bytes=1000))
        async with client(gateway) as http:
            return await http.post(CHAT, content=endless())

    assert asked(work).status_code == 413


def test_no_more_at_once_than_slots_and_the_queue_has_an_end():
    async def work():
        model = Fake(slots=2)
        model.open.clear()
        gateway = Gateway({"a": Served(model)}, limits=Limits(waiting=3))
        async with client(gateway) as http:
            asking = [asyncio.create_task(http.post(CHAT, json=body())) for _ in range(8)]
            await asyncio.sleep(0.1)
            refused = [task.result() for task in asking if task.done()]
            model.open.set()
            answers = await asyncio.gather(*asking)
        return model, refused, answers

    model, refused, answers = asked(work)
    assert [r.status_code for r in refused] == [429] * 3
    assert all(r.headers["retry-after"] for r in refused)
    assert sorted(a.status_code for a in answers) == [200] * 5 + [429] * 3
    assert model.most == 2
    assert model.busy == 0


def test_a_stream_comes_through_and_one_that_breaks_says_so():
    async def work():
        gateway = Gateway({"a": Served(Fake())})
        async with client(gateway) as http:
            whole = await http.post(CHAT, json=body(stream=True, pieces=3))
            broken = await http.post(CHAT, json=body(**{"stream": True, "pieces": 3, "break": 1}))
            metrics = (await http.get("/metrics")).text
        return whole, broken, metrics, gateway

    whole, broken, metrics, gateway = asked(work)
    assert whole.text == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert json.loads(broken.text.split("data: ")[-1])["error"]["code"] == "died"
    assert 'luthier_requests_total{model="a",path="/v1/chat/completions",status="200"} 1.0' in metrics
    assert 'luthier_tokens{kind="generated",model="a"} 7.0' in metrics
    assert [entry.status for entry in gateway.log] == [200, 503]


def test_a_client_that_leaves_gives_its_slot_back():
    async def leave(gateway, model, sent):
        """The ASGI conversation of a client that goes away while the model works."""
        gone = asyncio.Event()
        inbox = [{"type": "http.request", "body": json.dumps(sent).encode(), "more_body": False}]
        outbox = []

        async def receive():
            if inbox:
                return inbox.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            outbox.append(message)
            if message["type"] == "http.response.body" and sent.get("stream"):
                gone.set()

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        talk = asyncio.create_task(gateway.app()(scope, receive, send))
        if not sent.get("stream"):
            while not model.busy:
                await asyncio.sleep(0.001)
            gone.set()
        await talk

    async def work():
        model = Fake()
        gateway = Gateway({"a": Served(model)})
        model.open.clear()
        await leave(gateway, model, body())
        waiting = (model.busy, model.cancelled)
        model.open.set()
        await leave(gateway, model, body(stream=True, pieces=10_000))
        async with client(gateway) as http:
            after = await http.post(CHAT, json=body())
        return waiting, model, after, [entry.status for entry in gateway.log]

    waiting, model, after, statuses = asked(work)
    assert waiting == (0, 1)
    assert model.busy == 0
    assert after.status_code == 200
    assert statuses == [499, 499, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer right"}, 200),
        ({"x-api-key": "right"}, 200),
        ({"Authorization": "Bearer right", "Host": "evil.example"}, 421),
        ({"Authorization": "Bearer right", "Origin": "https://evil.example"}, 403),
        ({"Authorization": "Bearer right", "Origin": "http://127.0.0.1"}, 200),
    ],
)
def test_who_may_ask(headers, status):
    async def work():
        gateway = Gateway({"a": Served(Fake())}, rules=Rules(api_key="right", hosts=HOSTS))
        async with client(gateway) as http:
            return await http.post(CHAT, json=body(), headers=headers)

    assert asked(work).status_code == status


def test_names_come_and_go_while_it_runs():
    async def work():
        first, second = Fake(), Fake()
        gateway = Gateway({"a": Served(first)})
        await gateway.start()
        await gateway.add("b", Served(second, extra={"lora": [{"id": 0, "scale": 1}]}))
        await gateway.add("also a", Served(first))
        async with client(gateway) as http:
            await http.post(CHAT, json=body(model="b"))
            await gateway.drop("a")
            kept = first.closed
            await gateway.drop("also a")
            missing = await http.post(CHAT, json=body(model="a"))
            listed = (await http.get("/v1/models")).json()["data"]
        return kept, first.closed, missing.status_code, [m["id"] for m in listed], second.bodies[0]["lora"]

    assert asked(work) == (0, 1, 404, ["b"], [{"id": 0, "scale": 1}])
