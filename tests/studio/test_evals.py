"""What was judged is told as it was measured: listed, filtered, row by row."""

import json

import pytest

from luthier.evaluation.compare import compare
from luthier.runs.queue import Queue
from luthier.schema.results import EvalResult, Metric, ScoredRow
from luthier.studio.services.evals import judged, open_evaluation, row_page
from luthier.studio.services.slicing import slices_of
from studio_case import made_run, studio
from studio_rows import CHATS, lines
from studio_rows import made as dataset_made

ROWS = 40


def result(model, scores, answers):
    rows = tuple(
        ScoredRow(
            id=f"{i:032x}",
            prompt=f"prompt {'x' * i} <b>{i}</b>",
            expected="the right answer here",
            answer=answers(i),
            scores={"exact_match": scores(i)},
        )
        for i in range(ROWS)
    )
    mean = sum(row.scores["exact_match"] for row in rows) / ROWS
    metric = Metric(value=mean, low=max(0, mean - 0.1), high=min(1, mean + 0.1), n=ROWS)
    return EvalResult(
        split="test",
        model=model,
        weights_digest=model,
        metrics={"exact_match": metric},
        primary="exact_match",
        rows=rows,
        seconds=1.0,
    )


def judge(run):
    """A run judged: ten rows improved, three regressed."""
    base = result("base", lambda i: float(i < 5), lambda i: "the right answer" if i < 5 else "something else")
    tuned = result("tuned", lambda i: float(2 < i < 15), lambda i: f"the right <script>alert({i})</script>")
    run.save_stage("baseline", "", {"test": base.model_dump(mode="json")})
    run.save_stage("tuned", "", {"test": tuned.model_dump(mode="json")})
    run.save_stage("comparison", "", [compare(base, tuned).model_dump(mode="json")])
    extra = {"baseline": base, "tuned": tuned, "comparison": compare(base, tuned)}
    values = {key: value.model_dump(mode="json") | {"split": "mine"} for key, value in extra.items()}
    (run.path / "evaluations").mkdir()
    run.save_stage("evaluations/mine", "", values)
    return run


@pytest.fixture
def run(tmp_path):
    made_run(tmp_path, "unjudged")
    return judge(made_run(tmp_path, "first"))


def test_every_comparison_is_listed_and_filtered(tmp_path, run):
    found = judged(tmp_path / "runs")
    assert [(one.run, one.split, one.extra) for one in found] == [
        ("first", "test", False),
        ("first", "mine", True),
    ]
    assert (found[0].improved, found[0].regressed, found[0].rows) == (10, 3, ROWS)
    assert judged(tmp_path / "runs", "MINE")[0].split == "mine"
    assert judged(tmp_path / "runs", verdict="worse") == []


def test_rows_are_chosen_by_what_became_of_them(run):
    found = open_evaluation(run)
    page = row_page(found, only="regressed")
    assert page.counts == {"all": ROWS, "regressed": 3, "improved": 10, "unchanged": ROWS - 13}
    assert {row.kind for row in page.rows} == {"regressed"}
    assert [row.change for row in page.rows] == ["\u2212100.0"] * 3
    assert row_page(found, q="PROMPT XXXXX <b>5", only="all").found == 1
    last = row_page(found, page=999)
    assert (last.page, last.pages, len(last.rows)) == (2, 2, 20)


def test_words_that_differ_are_marked_unless_most_do(run):
    found = open_evaluation(run)
    row = next(row for row in row_page(found, q="<b>1</b>").rows if "<b>1</b>" in row.prompt)
    base, tuned = row.sides
    assert [span.text for span in base.spans if span.changed] == []
    assert "".join(span.text for span in tuned.spans) == "the right <script>alert(1)</script>"
    assert not any(span.changed for span in row_page(found, q="<b>30</b>").rows[0].sides[0].spans)


def test_pages_show_answers_as_text_and_carry_every_state_in_the_url(tmp_path, run):
    with studio(tmp_path) as client:
        listing = client.get("/evals").text
        assert listing.count("<tr>") == 3
        page = client.get("/evals/first?only=regressed&against=other&q=prompt")
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert(0)" in page.text
        assert "<b>0</b>" not in page.text
        assert client.get("/evals/first?split=mine").status_code == 200
        for url, status in {
            "/evals/first?split=none": 404,
            "/evals/unjudged": 404,
            "/evals/nobody": 404,
            "/evals/..%2ffirst": 404,
            "/evals/first?only=what": 422,
            "/evals/first?page=0": 422,
        }.items():
            assert client.get(url).status_code == status, url


def test_the_api_gives_the_same(tmp_path, run):
    with studio(tmp_path) as client:
        assert [one["split"] for one in client.get("/api/v1/evals").json()["evals"]] == ["test", "mine"]
        one = client.get("/api/v1/evals/first").json()
        assert one["comparison"]["differences"][0]["regressed"] == 3
        rows = client.get("/api/v1/evals/first/rows?only=regressed&size=2").json()
        assert (rows["found"], rows["pages"], len(rows["rows"])) == (3, 2, 2)
        assert rows["rows"][0]["tuned"]["answer"].startswith("the right <script>")


def test_slices_are_computed_apart_and_kept(tmp_path, run):
    home = tmp_path / "studio"
    parts = slices_of(run, "test", home=home)
    assert sum(part.rows for part in parts) == ROWS
    kept = next((home / "slices").glob("*.json"))
    kept.write_text(json.dumps([]))
    assert slices_of(run, "test", home=home) == []


def test_more_rows_are_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    judge(made_run(tmp_path, "judged")).save_stage("train", "", {})
    rows = dataset_made(tmp_path / "studio" / "uploads", "new rows.jsonl", lines(CHATS))
    with studio(tmp_path) as client:
        assert "Judge a run on more rows" in client.get("/evals?run=judged").text
        refused = client.post("/evals", data={"run": "judged", "data": "nothing"})
        assert refused.status_code == 404
        begun = client.post("/evals", data={"run": "judged", "data": rows.id})
        assert begun.status_code == 303, begun.text
        (job,) = Queue(tmp_path / "runs").jobs()
        assert job.request.job is not None
        asked = job.request.job
        assert (job.kind, asked.name, asked.data) == ("evaluate", "new-rows", (rows.file,))
        body = {"run": "judged", "data": rows.id, "name": "again"}
        assert client.post("/api/v1/evals", json=body).status_code == 409, "one job of a run at a time"
