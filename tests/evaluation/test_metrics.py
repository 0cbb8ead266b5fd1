from __future__ import annotations

import json

import pytest

from luthier.errors import UsageError
from luthier.evaluation.diff import word_diff
from luthier.evaluation.metrics import (
    METRICS,
    choose_metrics,
    metric_specs,
    normalise,
    per_field,
    without_thinking,
)

ORDER = json.dumps({"customer": "Mbeki", "items": [{"sku": "K-2", "qty": 2}], "rush": True})
REFERENCES = [
    "The committee will publish its findings on Thursday morning.",
    "Returns True if the path is an existing directory.",
    "Der Zug nach München fährt um 9 Uhr ab.",
    "今日は天気がいいです。",
]
HYPOTHESES = [
    "The committee publishes the findings on Thursday.",
    "Return whether a path names a directory that exists",
    "Der Zug fährt um neun nach München.",
    "今日はとても天気が良い。",
]


def score(name: str, expected: str, answer: str) -> float:
    return METRICS[name].score(expected, answer)


@pytest.mark.parametrize(
    ("answer", "valid", "exact", "fields"),
    [
        (ORDER, 1, 1, 1),
        (json.dumps(json.loads(ORDER), indent=2), 1, 1, 1),
        (f"Here you go:\n```json\n{ORDER}\n```", 0, 0, 1),
        (ORDER.replace("true", '"yes"'), 1, 0, 3 / 4),
        (ORDER.replace('"qty": 2', '"qty": 3'), 1, 0, 3 / 4),
        ("[1, 2]", 0, 0, 0),
        (ORDER[:-5], 0, 0, 0),
        ("I am sorry, I cannot do that.", 0, 0, 0),
    ],
)
def test_json_answers(answer: str, valid: float, exact: float, fields: float) -> None:
    assert score("json_valid", ORDER, answer) == valid
    assert score("json_exact", ORDER, answer) == exact
    assert score("field_exact", ORDER, answer) == pytest.approx(fields)


def test_an_invented_field_costs_in_f1_but_not_in_recall() -> None:
    answer = json.dumps({**json.loads(ORDER), "note": "urgent"})
    assert score("field_exact", ORDER, answer) == 1
    assert score("field_f1", ORDER, answer) == pytest.approx(8 / 9)


def test_fields_of_lists_share_a_name() -> None:
    expected = json.dumps({"items": [{"sku": "A"}, {"sku": "B"}], "paid": True})
    answer = json.dumps({"items": [{"sku": "A"}, {"sku": "C"}], "paid": True})
    assert per_field(expected, answer) == {"items[].sku": 0.5, "paid": 1.0}
    assert per_field("not json", answer) is None


def test_exact_match_forgives_only_white_space_and_unicode_form() -> None:
    assert score("exact_match", "Café  au lait\n", "Cafe\u0301 au lait") == 1
    assert score("exact_match", "yes", "Yes") == 0
    assert normalise(" a \n b\t") == "a b"


def test_numbers_of_gsm8k() -> None:
    expected = "He ate 32 from the large pizzas and 16 from the small, 32+16=<<32+16=48>>48 pieces.\n#### 48"
    assert score("numeric_exact", expected, "32 + 16 = 48, so #### 48.") == 1
    assert score("numeric_exact", expected, "He ate 48.0 pieces") == 1
    assert score("numeric_exact", expected, "He ate 48 pieces in 2 days") == 0
    assert score("numeric_exact", expected, "many") == 0


def test_no_call_is_right_where_none_is_expected() -> None:
    assert score("tool_call_exact", "I cannot order food.", "Sorry, that is beyond me.") == 1
    assert score("tool_call_exact", "I cannot order food.", 'order(item="rice")') == 0
    assert score("tool_name", 'order(item="rice")', 'order(item="beans")') == 1


def test_chrf_and_bleu_equal_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    for reference, hypothesis in zip(REFERENCES, HYPOTHESES, strict=True):
        chrf = sacrebleu.metrics.CHRF().sentence_score(hypothesis, [reference]).score
        bleu = sacrebleu.metrics.BLEU(effective_order=True).sentence_score(hypothesis, [reference]).score
        assert score("chrf", reference, hypothesis) == pytest.approx(chrf / 100)
        assert score("bleu", reference, hypothesis) == pytest.approx(bleu / 100)
    assert score("chrf", REFERENCES[0], REFERENCES[0]) == 1


def test_rouge_l_is_the_longest_common_word_sequence() -> None:
    pytest.importorskip("rouge_score")
    # the committee ... findings on thursday: 5 of 9 reference and 5 of 7 answer words
    assert score("rouge_l", REFERENCES[0], HYPOTHESES[0]) == pytest.approx(2 * 5 / (9 + 7))


def test_reasoning_is_not_judged() -> None:
    assert without_thinking("<think>\nlet me see {1}\n</think>\n\n42") == "42"
    assert without_thinking("thinking</think>42") == "42"
    assert without_thinking("<think>never ended") == "<think>never ended"
    assert without_thinking("plain") == "plain"


@pytest.mark.parametrize(
    ("expected", "primary"),
    [
        ([ORDER] * 10, "field_exact"),
        ([ORDER] * 9 + ["I cannot tell"], "field_exact"),
        ([ORDER] * 8 + ["I cannot tell"] * 2, "chrf"),
        (["work\n#### 12"] * 10, "numeric_exact"),
        (["12", "1,300", "-4"], "numeric_exact"),
        (["positive", "negative"] * 5, "exact_match"),
        (REFERENCES, "chrf"),
        (['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "Which city?"], "tool_call_exact"),
    ],
)
def test_metrics_are_chosen_from_the_answers(expected: list[str], primary: str) -> None:
    choice = choose_metrics(expected)
    assert choice.primary == primary == choice.names[0]
    assert choice.reason
    assert set(choice.names) <= METRICS.keys()


def test_unknown_metrics_name_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        metric_specs(["feild_exact"])
    assert "field_exact" in str(caught.value.hint)
    with pytest.raises(UsageError):
        choose_metrics([])


def test_word_diff_marks_what_differs_and_loses_nothing() -> None:
    before, after = "The red  cat sat.\n", "The blue cat sat down."
    ours, theirs = word_diff(before, after)
    assert "".join(s.text for s in ours) == before
    assert "".join(s.text for s in theirs) == after
    assert [s.text.strip() for s in ours if s.changed] == ["red"]
    assert [s.text.strip() for s in theirs if s.changed] == ["blue", "down"]
    long = "word " * 5_000
    assert word_diff(long, long + "x")[1][0].changed is False
