"""A further column: an endpoint on a run's own held-out rows, kept for the report."""

import json

import pytest

from endpoints import endpoint
from luthier.errors import UsageError
from luthier.evaluation.generation import evaluate
from luthier.runs.columns import add_column, load_columns
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import read_data, tokenizer_of
from luthier.runs.reporting import context_of
from luthier.schema.protocols import Generated
from luthier.schema.recipe import DataChoice, EvaluationChoice, ModelChoice, Recipe


class Speaks:
    """A model that always says the same."""

    def __init__(self, text):
        self.text, self.label, self.weights_digest = text, text, text

    def generate(self, chats, *, tools=None, max_new_tokens, progress=None):
        return [Generated(self.text, (), True) for _ in chats]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose tuned model is always right, and whose base never is."""
    from tokenizers import Tokenizer, models

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    base.mkdir()
    words = {chr(n): n for n in range(256)} | {"<|end|>": 256}
    Tokenizer(models.WordLevel(words, unk_token="a")).save(str(base / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    (base / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "chat_template": template})
    )
    for name, count in (("train", 30), ("test", 20)):
        chats = (
            [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": "yes"}]
            for n in range(count)
        )
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
    recipe = Recipe(
        name="demo",
        model=ModelChoice(id="/m"),
        data=DataChoice(
            train=(str(tmp_path / "train.jsonl"),), test={"test": (str(tmp_path / "test.jsonl"),)}
        ),
        evaluation=EvaluationChoice(max_new_tokens=8),
    )
    made = RunDirectory.create(recipe, root=tmp_path / "runs")
    made.save_stage("model", "", {"path": str(base), "id": "/m"})
    return made


def proved(run):
    from luthier.evaluation.compare import compare

    folder = run.stage_values("model")["path"]
    rows = read_data(run.recipe, tokenizer_of(run.recipe, folder)).splits.tests["test"]
    found = {}
    for stage, text in (("baseline", "no"), ("tuned", "yes")):
        found[stage] = evaluate(Speaks(text), rows, split="test", max_new_tokens=8)
        run.save_stage(stage, "", {"test": found[stage].model_dump(mode="json")})
    comparison = compare(found["baseline"], found["tuned"])
    run.save_stage("comparison", "", [comparison.model_dump(mode="json")])


def test_an_endpoint_answers_the_same_rows_and_stands_in_the_report(run):
    proved(run)
    seen = []
    with endpoint(lambda body: "yes" if "1" in body["messages"][-1]["content"] else "no", busy=0) as served:
        found = add_column(
            run, served.address, say=seen.append, progress=lambda done, total: seen.append((done, total))
        )
        assert len(served.bodies) == 20
    assert found.main.metric == "exact_match"
    assert found.main.baseline.value == pytest.approx(11 / 20)
    assert found.main.tuned.value == 1.0
    [kept] = load_columns(run)
    assert kept.model.startswith("loud at ")
    assert kept in context_of(run).others
    assert (20, 20) in seen


def test_a_run_that_was_not_judged_has_no_rows_to_share(run):
    with endpoint(busy=0) as served, pytest.raises(UsageError, match="was not judged"):
        add_column(run, served.address, say=print)
    assert load_columns(run) == []
