"""A judge is asked both ways round, read with care, and summed up with its doubts."""

from __future__ import annotations

import pytest

from luthier.errors import UsageError
from luthier.evaluation.judge import Pair, judge_pairs, question, read_verdict, summed
from luthier.schema.judgement import JudgedRow, Ruling
from luthier.schema.protocols import Generated


class Judge:
    """Decides by what it is shown."""

    label, weights_digest = "judge", "w"

    def __init__(self, decide):
        self.decide, self.seen = decide, []

    def generate(self, chats, *, tools=None, max_new_tokens, progress=None):
        found = []
        for chat in chats:
            self.seen.append(chat[-1]["content"])
            text = chat[1]["content"]
            if len(chat) > 2 and "pressed" in text:
                found.append(Generated("Verdict: 2", (), True))
                continue
            one, two = (text.split(f"<<< answer {n} >>>\n")[1].split("\n<<< end")[0] for n in (1, 2))
            found.append(Generated(self.decide(one, two), (), True))
        return found


def pair(n, first, second):
    return Pair(str(n), ({"role": "user", "content": f"ask {n}"},), f"ask {n}", first, second, "gold")


def longer(one, two):
    return "The longer one. " + ("Verdict: 1" if len(one) > len(two) else "Verdict: 2")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Both are fine.\nVerdict: 1", "first"),
        ("**Verdict:** 2", "second"),
        ("Verdict: Answer 2.", "second"),
        ("verdict is: TIE", "tie"),
        ("At first Verdict: 1, but no.\nVerdict: 2", "second"),
        ("<think>Verdict: 1</think>Verdict: tie", "tie"),
        ("2", "second"),
        ("I cannot decide", None),
        ("Verdict: 12", None),
        ("", None),
    ],
)
def test_verdicts_are_read(text, found):
    assert read_verdict(text, swapped=False) == found
    turned = {"first": "second", "second": "first"}.get(found, found)
    assert read_verdict(text, swapped=True) == turned


def test_both_orders_are_asked_and_a_fair_judge_agrees_with_itself():
    pairs = [pair(n, "short", "a longer answer") for n in range(30)]
    judge = Judge(longer)
    found = judge_pairs(judge, pairs, split="test", names=("A", "B"))
    assert len(judge.seen) == 60 == found.asked
    assert (found.wins_first, found.wins_second, found.ties) == (0, 30, 0)
    assert found.agreement.value == 1.0
    assert found.shown_first.value == 0.5
    assert found.win_rate.value == 1.0
    assert found.win_rate.low > 0.8
    assert found.difference.verdict == "better"


def test_a_judge_that_likes_what_comes_first_says_nothing():
    pairs = [pair(n, "short", "a longer answer") for n in range(30)]
    found = judge_pairs(Judge(lambda one, two: "Verdict: 1"), pairs, split="test", names=("A", "B"))
    assert (found.wins_first, found.wins_second, found.ties) == (0, 0, 30)
    assert found.agreement.value == 0.0
    assert found.shown_first.value == 1.0
    assert found.win_rate.value == 0.5
    assert found.difference.verdict == "inconclusive"


def test_equal_answers_are_ties_without_asking():
    judge = Judge(longer)
    found = judge_pairs(judge, [pair(1, "same", " same "), pair(2, "a", "bb")], split="t", names=("A", "B"))
    assert len(judge.seen) == 2
    assert found.equal == 1
    assert found.rows[0].outcome == "tie"
    assert found.rows[0].rulings == ()


def test_what_cannot_be_read_is_left_out_and_counted():
    def sometimes(one, two):
        return "no idea" if "x" in one + two else longer(one, two)

    pairs = [pair(n, "x" if n < 3 else "short", "a longer answer") for n in range(12)]
    found = judge_pairs(Judge(sometimes), pairs, split="t", names=("A", "B"))
    assert (found.unjudged, found.parse_failures) == (3, 6)
    assert found.win_rate.n == 9
    with pytest.raises(UsageError, match="no readable verdict on any of 3"):
        judge_pairs(Judge(sometimes), pairs[:3], split="t", names=("A", "B"))


def test_a_judge_without_a_verdict_is_asked_once_more():
    pairs = [pair(n, "pressed", "other") for n in range(2)]
    judge = Judge(lambda one, two: "Hard to say.")
    found = judge_pairs(judge, pairs, split="t", names=("A", "B"))
    assert (found.asked, found.repeated, found.parse_failures) == (8, 4, 0)
    assert found.rows[0].rulings[0].reason == "Hard to say."
    assert found.ties == 2  # "2" in both orders is no preference
    assert judge.seen[-1].startswith("Which one, then?")


def test_ties_count_half():
    def row(n, outcome):
        both = tuple(Ruling(swapped=swapped, choice=outcome, reason="") for swapped in (False, True))
        return JudgedRow(id=str(n), prompt="p", first="a", second="b", outcome=outcome, rulings=both)

    rows = [row(n, o) for n, o in enumerate(["second"] * 30 + ["first"] * 10 + ["tie"] * 20)]
    found = summed(rows)
    assert found.win_rate.value == pytest.approx((30 + 10) / 60)
    # Tango's interval for 30 against 10 of 60: 0.333 [0.127, 0.516] as a difference
    assert found.win_rate.low == pytest.approx((1 + found.difference.delta.low) / 2)
    assert 0.55 < found.win_rate.low < 0.6
    assert 0.74 < found.win_rate.high < 0.78
    assert found.difference.p_value == pytest.approx(0.00222, abs=2e-4)  # exact McNemar, 30 against 10


def test_answers_of_the_judge_are_kept_by_what_it_was_shown(tmp_path):
    pairs = [pair(n, "short", "a longer answer") for n in range(4)]
    judge = Judge(longer)
    judge_pairs(judge, pairs, split="t", names=("A", "B"), cache_dir=tmp_path)
    again = judge_pairs(judge, pairs, split="t", names=("A", "B"), cache_dir=tmp_path)
    assert (again.asked, again.cached, len(judge.seen)) == (0, 8, 8)
    other = judge_pairs(judge, pairs, split="t", names=("A", "B"), cache_dir=tmp_path, criteria="brevity")
    assert other.asked == 8


def test_the_expected_answer_is_shown_only_when_asked_for():
    one = pair(1, "a", "b")
    assert "gold" not in question(one, swapped=False, criteria="c", reference=False)[1]["content"]
    shown = question(one, swapped=True, criteria="c", reference=True)[1]["content"]
    assert "gold" in shown
    assert shown.index("<<< answer 1 >>>\nb") < shown.index("<<< answer 2 >>>\na")
