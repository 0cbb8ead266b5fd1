"""Compare: who answers is said by the server, blind columns stay blind, picks are kept."""

import asyncio
import json
import time

import pytest

from luthier.errors import UsageError
from luthier.runs.servers import list_servers, stop_server
from luthier.studio.problems import NotFound
from luthier.studio.services.chatting import Turning
from luthier.studio.services.comparing import Answer, Conversations, Side, Weights
from runs.test_deploying import finished
from studio_case import studio

ONE, TWO = (
    Side(key="base:r", label="base", about="", kind="base"),
    Side(key="adapter:r", label="tuned", about="", kind="tuned"),
)


@pytest.fixture
def kept(tmp_path):
    return Conversations(tmp_path)


def answered(kept, made, *texts):
    made = kept.ask(made, "which?")
    for column, text in enumerate(texts):
        kept.answer(made.id, len(made.turns) - 1, column, Answer(text=text, done=True))
    return kept.load(made.id)


def test_a_conversation_is_kept_for_its_owner_alone(kept):
    made = answered(kept, kept.begin([ONE, TWO], system="be brief"), "a", "b")
    assert [answer.text for answer in made.turns[0].answers] == ["a", "b"]
    assert kept.path(made.id).stat().st_mode & 0o777 == 0o600
    assert kept.recent()[0].id == made.id
    for name in ("..", "x", f"../{made.id}", made.id + "\0"):
        with pytest.raises(NotFound):
            kept.load(name)


def test_columns_are_two_to_four_and_differ(kept):
    for sides, blind in (([], False), ([ONE] * 2, False), ([ONE], True)):
        with pytest.raises(UsageError):
            kept.begin(sides, blind=blind)
    for prompt in ("", " \n", "x" * 100_001):
        with pytest.raises(UsageError):
            kept.ask(kept.begin([ONE]), prompt)


def test_a_blind_pick_reveals_counts_and_becomes_a_preference(kept):
    orders = set()
    for _ in range(20):
        made = answered(kept, kept.begin([ONE, TWO], blind=True), "first", "second")
        orders.add(made.sides[0].key)
        assert made.name_of(0) == "Model A"
        told = kept.pick(made, [side.key for side in made.sides].index("adapter:r"))
        assert told.turns[-1].pick == "adapter:r"
        assert {told.name_of(0), told.name_of(1)} == {"base", "tuned"}
        with pytest.raises(UsageError, match="not blind any more"):
            kept.pick(told, 0)
    assert orders == {"base:r", "adapter:r"}, "the order is shuffled"
    kept.pick(answered(kept, kept.begin([ONE, TWO], blind=True), "same", "same"), None)
    tally = kept.tally(["adapter:r", "base:r"])[0]
    assert (tally.wins, tally.ties, tally.rounds) == ({"base:r": 0, "adapter:r": 20}, 1, 21)
    rows = kept.preferences()
    assert len(rows) == 20
    assert rows[0]["prompt"] == [{"role": "user", "content": "which?"}]
    assert {rows[0]["chosen"], rows[0]["rejected"]} == {"first", "second"}


def test_half_an_answer_is_not_picked(kept):
    made = kept.ask(kept.begin([ONE, TWO], blind=True), "which?")
    kept.answer(made.id, 0, 0, Answer(text="a", done=True))
    with pytest.raises(UsageError, match="not every column"):
        kept.pick(kept.load(made.id), 0)
    kept.answer(made.id, 0, 1, Answer(error="gone", done=True))
    with pytest.raises(UsageError, match="not every column"):
        kept.pick(kept.load(made.id), 0)


def test_a_page_of_a_blind_round_tells_nothing(tmp_path):
    with studio(tmp_path) as client:
        kept = client.app.state.chats.kept
        made = kept.ask(kept.begin([ONE, TWO], blind=True), "which <b>one</b>?")
        weights = Weights(server="s-1", model="m", sha256="c0ffee" * 10, run="some-run", step=70)
        for column in (0, 1):
            told = {"weights": weights, "tokens": 777, "tokens_per_second": 88.8, "done": True}
            kept.answer(made.id, 0, column, Answer(text="<img src=x onerror=alert(1)>", **told))
        page = client.get(f"/compare/{made.id}").text
        for secret in ("c0ffee", "some-run", "s-1", "777", "88.8", ">base<", ">tuned<"):
            assert secret not in page.partition("<main")[2], secret
        assert "&lt;img src=x" in page
        assert "<img" not in page
        assert "<b>one</b>" not in page
        assert client.post(f"/compare/{made.id}/pick", data={"column": "x"}).status_code == 422
        assert client.post(f"/compare/{made.id}/pick", data={"column": "1"}).status_code == 303
        page = client.get(f"/compare/{made.id}").text
        assert "weights c0ffee, step 70" in page
        assert "your pick" in page
        assert "1 of 1" in client.get("/compare").text or "1 of 1" in page
        lines = client.get("/compare/picks.jsonl").text.splitlines()
        assert lines == []  # both said the same: nothing is preferred
        assert client.get("/compare/20260101-000000-00000000").status_code == 404


def test_watchers_that_come_late_hear_all_of_it():
    async def work():
        turning = Turning(1)
        turning.say(c=0, t="a")

        async def watch():
            return [event async for event in turning.follow()]

        early = asyncio.create_task(watch())
        await asyncio.sleep(0)
        turning.say(c=0, t="b")
        late = asyncio.create_task(watch())
        await asyncio.sleep(0)
        turning.left = 0
        turning.say(c=0, done={})
        return await early, await late

    early, late = asyncio.run(work())
    assert early == late == [{"c": 0, "t": "a"}, {"c": 0, "t": "b"}, {"c": 0, "done": {}}]


@pytest.mark.timeout(120)
def test_a_real_model_answers_and_says_which_weights_it_was(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LUTHIER_SERVERS", str(tmp_path / "servers"))
    run = finished(tmp_path)
    with studio(tmp_path) as client:
        assert "Be brief." in client.get("/compare").text  # the run's own system prompt
        side = f"gguf:{run.id}:F16"
        form = {"side": side, "prompt": "a", "max_tokens": "4", "system": ""}
        made = client.post("/compare", data=form)
        assert made.status_code == 303, made.text
        url = made.headers["location"]
        events = []
        with client.stream("GET", f"{url}/stream") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line[6:]))
                if line == "event: end":
                    break
        told = next(event["weights"] for event in events if "weights" in event)
        conversation = client.app.state.chats.kept.load(url.rpartition("/")[2])
        answer = conversation.turns[0].answers[0]
        assert answer.error == ""
        assert answer.text == "".join(event.get("t", "") for event in events)
        assert told == answer.weights.words
        assert answer.weights.sha256 == list_servers()[0].status.models[0].weights
        assert answer.tokens == 4
        # the same seed gives the same answer, from the model that is loaded already
        began = time.monotonic()
        again = client.post("/compare", data=form).headers["location"]
        with client.stream("GET", f"{again}/stream") as stream:
            stream.read()
        second = client.app.state.chats.kept.load(again.rpartition("/")[2]).turns[0].answers[0]
        assert second.text == answer.text
        assert len(list_servers()) == 1
        assert time.monotonic() - began < 30
        for bad, status in (
            ({"side": "gguf:nobody:F16", "prompt": "a"}, 404),
            ({"side": side, "prompt": " "}, 422),
            ({"side": side, "prompt": "a", "seed": "-1"}, 422),
            ({"prompt": "a"}, 422),
        ):
            refused = client.post("/compare", data=bad)
            assert refused.status_code == status, bad
            assert 'role="alert"' in refused.text
    for server in list_servers():
        stop_server(server, patience=5)
