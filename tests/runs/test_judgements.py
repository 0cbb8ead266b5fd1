"""`--judge` on the command line, against an endpoint on the loopback."""

from __future__ import annotations

import json
from typing import Any

import pytest

from endpoints import endpoint
from luthier.cli.main import main
from luthier.runs.judgements import read_prices


def prefers_yes(body: dict[str, Any]) -> str:
    """A model that answers 'yes' as 'polite', 'no' as any other, and judges for whatever says yes."""
    text = body["messages"][-1]["content"]
    if "<<< answer 1 >>>" not in text:
        return "yes, gladly" if body["model"] == "polite" else "no"
    first = text.split("<<< answer 1 >>>\n")[1].split("\n<<<")[0]
    return f"One is kind. Verdict: {1 if first.startswith('yes') else 2}"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def rows(path):
    def row(n):
        return {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"may I {n}?"},
                {"role": "assistant", "content": "yes"},
            ]
        }

    path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(14)))
    return path


def leave(words):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


def test_two_models_of_an_endpoint_judged_by_a_third(tmp_path, capsys):
    file = rows(tmp_path / "rows.jsonl")
    with endpoint(prefers_yes, busy=0) as one, endpoint(prefers_yes, busy=0) as other:
        one.names, other.names = ["polite"], ["gruff", "judge"]
        other.names = ["judge"]
        words = [
            "evaluate", one.address, "--against", other.address, "--data", str(file),
            "--judge", other.address, "--judge-model", "judge", "--judge-price", "1,2",
            "--judge-rows", "12", "--json",
        ]  # fmt: skip
        assert leave(words) == 0
        whole = json.loads(capsys.readouterr().out)
        found = whole["judgement"]
        asked = [b for b in other.bodies if "<<< answer 1 >>>" in b["messages"][-1]["content"]]
    assert len(asked) == 24 == found["asked"]
    assert "[system] Be brief." in asked[0]["messages"][-1]["content"]
    assert (found["wins_first"], found["wins_second"]) == (0, 12)
    assert found["agreement"]["value"] == 1.0
    assert found["difference"]["verdict"] == "better"
    assert (found["prompt_tokens"], found["completion_tokens"]) == (240, 72)
    assert found["cost"] == pytest.approx((240 + 2 * 72) / 1e6)
    assert found["rows"][0]["rulings"][0]["reason"].startswith("One is kind.")


def test_in_words(tmp_path, capsys):
    file = rows(tmp_path / "rows.jsonl")
    with endpoint(prefers_yes, busy=0) as one, endpoint(prefers_yes, busy=0) as other:
        one.names, other.names = ["polite"], ["gruff"]
        code = leave(
            [
                "evaluate",
                one.address,
                "--against",
                other.address,
                "--data",
                str(file),
                "--judge",
                other.address,
            ]
        )
        told = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "Win rate" in told
    assert "the same of both orders on 100% of 14 rows" in told
    assert "28 questions, 0 from the cache" in told


def test_a_judge_that_cannot_judge_is_called_so(tmp_path, capsys):
    def first(body):
        text = body["messages"][-1]["content"]
        if "<<< answer 1 >>>" in text:
            return "Hm." if "may I 3?" in text else "Verdict: 1"
        return f"{body['model']} says so" if "Which one" not in text else "Hm."

    file = rows(tmp_path / "rows.jsonl")
    with endpoint(first, busy=0) as one, endpoint(first, busy=0) as other:
        one.names, other.names = ["polite"], ["gruff"]
        words = ["evaluate", one.address, "--against", other.address, "--data", str(file)]
        assert leave([*words, "--judge", other.address]) == 0
        told = " ".join(capsys.readouterr().out.split())
    assert "2 answers of the judge; 1 rows left out" in told
    assert "agrees with itself on 0% of the rows: it judges the place, not the answer" in told
    assert "too small" not in told


def test_what_is_refused(tmp_path, capsys):
    file = rows(tmp_path / "rows.jsonl")
    with endpoint(busy=0) as one:
        assert leave(["evaluate", one.address, "--data", str(file), "--judge", one.address]) == 2
    assert "--against" in capsys.readouterr().err
    with pytest.raises(Exception, match="no prices"):
        read_prices("cheap")
    assert read_prices("0.15,0.6") == (0.15, 0.6)
