"""What a model's process says reaches whoever asks it: answers, progress, failures, last words."""

from pathlib import Path

import pytest

from luthier.errors import ToolchainError
from luthier.runs.answer import ask
from luthier.runs.child import AnswerFailed, Child
from luthier.runs.speaker import Speaker

CHILD = """
import sys
from luthier.errors import UsageError
from luthier.tasks.child import requests, talk

def work(say):
    print("a library's own words")
    for asked in requests():
        if asked.get("end"):
            sys.exit("the last words")
        if asked.get("fail"):
            raise UsageError("no such thing", hint="ask for another")
        say(done=1, total=2)
        say(answers=[one.upper() for one in asked["inputs"]])

raise SystemExit(talk(work))
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Child(["answering"], about=Path("model")) as found:
        yield found


def test_answers_come_in_order_and_progress_is_told(child):
    told = []
    assert child.ask({"inputs": ["a", "b"]}, "answers", lambda *step: told.append(step)) == ["A", "B"]
    assert told == [(1, 2)]
    assert child.ask({"inputs": []}, "answers") == []


def test_a_failure_is_passed_on_with_its_exit_code(child):
    with pytest.raises(AnswerFailed, match="no such thing") as caught:
        child.ask({"fail": True}, "answers")
    assert (caught.value.hint, caught.value.exit_code) == ("ask for another", 2)


def test_a_process_that_dies_leaves_its_last_words(child):
    with pytest.raises(ToolchainError, match="the last words"):
        child.ask({"end": True}, "answers")
    with pytest.raises(ToolchainError, match="the last words"):
        child.ask({"inputs": []}, "answers")
    child.close()
    child.close()


def test_a_model_that_does_not_load_says_so(tmp_path):
    with pytest.raises(AnswerFailed, match=r"tokenizer\.json"), Speaker(tmp_path, dtype="float32", label="x"):
        pass
    with pytest.raises(AnswerFailed, match="not a kind of answer"):
        ask(tmp_path, "sing", ["a"])
