"""What must hold for any answer a model can give."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.evaluation.diff import word_diff
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.statistics import PairedScores, compare_scores, score_interval
from luthier.evaluation.structured import equal_json, field_f1, find_json, numeric_answer, tool_calls

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.text(max_size=300) | st.text(alphabet='{}[]",:0123456789.-+eE#$ \n`<>/toolcan_=()', max_size=300)
CHEAP = [m for m in METRICS.values() if m.needs is None]


@settings(max_examples=200, deadline=None)
@given(expected=ANSWERS, answer=ANSWERS)
def test_no_answer_breaks_a_metric(expected: str, answer: str) -> None:
    for spec in CHEAP:
        assert 0 <= spec.score(json.dumps({"text": expected}), answer) <= 1
        if spec.name not in ("field_exact", "field_f1"):
            assert 0 <= spec.score(expected, answer) <= 1
    find_json(answer)
    numeric_answer(answer)
    tool_calls(answer)


@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_json_equals_itself_through_text(value: object) -> None:
    text = json.dumps(value)
    assert equal_json(value, json.loads(text))
    assert field_f1(value, json.loads(text)) == 1
    assert METRICS["json_exact"].score(text, f"  {text}\n") == 1


@settings(max_examples=100, deadline=None)
@given(before=ANSWERS, after=ANSWERS)
def test_a_word_diff_loses_nothing(before: str, after: str) -> None:
    ours, theirs = word_diff(before, after)
    assert "".join(s.text for s in ours) == before
    assert "".join(s.text for s in theirs) == after
    if before == after:
        assert not any(s.changed for s in (*ours, *theirs))


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.2, 0.5, 1.0])),
        min_size=2,
        max_size=40,
    ),
    sources=st.integers(1, 6),
)
def test_intervals_hold_their_value_and_swap_with_the_models(
    scores: list[tuple[float, float]], sources: int
) -> None:
    before, after = np.array([s[0] for s in scores]), np.array([s[1] for s in scores])
    for groups in (None, tuple(str(i % sources) for i in range(len(scores)))):
        found = compare_scores([PairedScores("m", before, after, groups)])[0]
        swapped = compare_scores([PairedScores("m", after, before, groups)])[0]
        assert found.delta.low <= found.delta.value <= found.delta.high
        assert -1 <= found.delta.low <= found.delta.high <= 1
        assert abs(found.delta.low + swapped.delta.high) < 1e-6
        assert abs(found.p_value - swapped.p_value) < 1e-9
        low, high = score_interval(before, groups)
        assert 0 <= low <= high <= 1
