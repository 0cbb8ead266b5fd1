"""The quickstart dataset: same bytes for a seed, splits that share nothing, labels that hold."""

import hashlib
import json
import re
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from subprocess import run

import pytest

from luthier.data import quickstart
from luthier.data.quickstart import (
    FIELDS,
    GROUP_WORDS,
    NUMBER_WORDS,
    POOLS,
    SPLITS,
    SYSTEM_PROMPT,
    items,
    orders,
    write_quickstart,
)
from luthier.errors import FileProblem

PAIRS = list(combinations(SPLITS, 2))
NUMBERS = {word: number for number, word in NUMBER_WORDS.items()} | {
    "a pair of": 2,
    "half a dozen": 6,
    "a dozen": 12,
    "two dozen": 24,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    paths = write_quickstart(tmp_path_factory.mktemp("quickstart"))
    return {
        split: [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
        for split, path in paths.items()
    }


def asked(messages):
    return messages[1]["content"]


def answered(messages):
    return json.loads(messages[2]["content"])


def as_written(item, values):
    """Singular and plural of a product."""
    return next(pair for pair in items(values) if pair[0] == item)


def frames(split):
    return {frame for voice, _ in SPLITS[split].voices for pool in POOLS for frame in getattr(voice, pool)}


@cache
def pattern(frame):
    """A frame as a compiled expression: names and cities begin with a capital, other slots are open."""
    proper = re.sub(
        r"\\{(name|city|away|friend|clerk)\\}", r"(?-i:[A-Z])\\w+(?: (?-i:[A-Z])\\w+)?", re.escape(frame)
    )
    opened = re.sub(r"\\{\w+\\}", ".+?", proper)
    return re.compile(rf"(?<!\w){opened}(?!\w)", re.IGNORECASE)


def holds(text, frame):
    return pattern(frame).search(text) is not None


def test_same_seed_same_bytes(tmp_path):
    # The figures that the project reports for the quickstart belong to these bytes.
    digests = {
        split: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for split, path in write_quickstart(tmp_path / "a").items()
    }
    again = write_quickstart(tmp_path / "b")
    assert digests == {s: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for s, p in again.items()}
    assert digests == {
        "train": "3fdc03d68ffeba29",
        "validation": "cc68a77f200e306f",
        "test": "e66592ae299ab231",
        "test_rephrased": "a2ef17bd722c390d",
    }
    other = write_quickstart(tmp_path / "c", seed=18)
    assert all(path.read_bytes() != again[split].read_bytes() for split, path in other.items())


def test_writing_twice_leaves_only_the_four_files(tmp_path):
    write_quickstart(tmp_path / "new" / "folder")
    paths = write_quickstart(tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        f"{split}.jsonl" for split in SPLITS
    )
    assert paths["test_rephrased"].name == "test_rephrased.jsonl"


def test_unwritable_folder_is_a_file_problem(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(FileProblem, match="cannot be written") as caught:
        write_quickstart(tmp_path / "taken")
    assert caught.value.hint
    assert caught.value.file == str(tmp_path / "taken")


def test_counts_and_shape(rows):
    assert {split: len(found) for split, found in rows.items()} == {
        "train": 640,
        "validation": 48,
        "test": 96,
        "test_rephrased": 96,
    }
    for found in rows.values():
        for messages in found:
            assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]
            assert messages[0]["content"] == SYSTEM_PROMPT


def test_no_row_twice(rows):
    every = [messages for found in rows.values() for messages in found]
    assert len({asked(m) for m in every}) == len(every)
    assert len({m[2]["content"] for m in every}) == len(every)


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_splits_share_no_value(rows, one, two):
    def values(split):
        answers = [answered(m) for m in rows[split]]
        return {
            "city": {a["city"] for a in answers},
            "name": {part for a in answers for part in a["name"].split()},
            "noun": {a["item"].split()[-1] for a in answers},
        }

    left, right = values(one), values(two)
    assert {kind: left[kind] & right[kind] for kind in left} == {"city": set(), "name": set(), "noun": set()}


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_values_of_one_split_occur_nowhere_in_another(rows, one, two):
    # Also not as a misleading second item, city or person.
    for split, other in ((one, two), (two, one)):
        text = "\n".join(asked(m) for m in rows[other])
        values = SPLITS[split].values
        proper = {*values.first_names.split(), *values.last_names.split(), *values.cities.split()}
        nouns = {
            form for kind in values.nouns.values() for noun in kind.split(",") for form in noun.split("|")
        }
        assert not [word for word in proper | nouns if re.search(rf"\b{word}s?\b", text)]


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_splits_share_no_sentence(one, two):
    def bare(split):
        return {re.sub(r"\W+", " ", re.sub(r"{\w+}", "", frame)).strip().lower() for frame in frames(split)}

    # What remains when the values are taken out: a bare "{want}, please." leaves one word.
    shared = bare(one) & bare(two)
    assert shared == set()


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_no_row_fits_a_frame_of_another_split(rows, one, two):
    long_enough = [f for f in frames(one) if len(re.sub(r"{\w+}", "", f).split()) >= 3]
    assert long_enough
    for messages in rows[two]:
        assert not [frame for frame in long_enough if holds(asked(messages), frame)]


def test_answers_are_typed_compact_json(rows):
    for found in rows.values():
        for messages in found:
            answer = answered(messages)
            assert tuple(answer) == FIELDS
            assert type(answer["quantity"]) is int
            assert answer["quantity"] in NUMBER_WORDS
            assert answer["priority"] in {"normal", "urgent"}
            assert all(answer[key] and isinstance(answer[key], str) for key in ("item", "name", "city"))
            assert messages[2]["content"] == json.dumps(answer, separators=(",", ":"))


def test_values_stand_in_the_text_once(rows):
    for split, found in rows.items():
        for messages in found:
            text, answer = asked(messages), answered(messages)
            assert text.count(answer["name"]) == 1, text
            assert text.count(answer["city"]) == 1, text
            singular, plural = as_written(answer["item"], SPLITS[split].values)
            assert len(re.findall(rf"\b({re.escape(plural)}|{re.escape(singular)})\b", text)) == 1, text


def test_quantity_stands_in_the_text(rows):
    """As digits, a word or a group word, next to the item; a bare article means one."""
    for split, found in rows.items():
        for messages in found:
            text, answer = asked(messages), answered(messages)
            said = {str(answer["quantity"])} | {w for w, n in NUMBERS.items() if n == answer["quantity"]}
            pair = as_written(answer["item"], SPLITS[split].values)
            if answer["quantity"] == 1:
                said |= {f"a {pair[0]}", f"an {pair[0]}"}
            assert any(
                re.search(rf"(?<![\w-]){re.escape(s)}(?![\w-])", text, re.IGNORECASE)
                or re.search(rf"\bx?{s}x?\b", text)
                for s in said
            ), text


def test_an_item_counted_in_the_text_has_that_count_as_its_label(rows):
    """Whatever number stands right before the item is the answer, never another one."""
    counted = 0
    words = "|".join(sorted((re.escape(word) for word in NUMBERS), key=len, reverse=True))
    for split, found in rows.items():
        for messages in found:
            text, answer = asked(messages), answered(messages)
            singular, plural = as_written(answer["item"], SPLITS[split].values)
            match = re.search(
                rf"(?<![\w-])({words}|\d+)x? ({re.escape(plural)}|{re.escape(singular)})\b",
                text,
                re.IGNORECASE,
            )
            if match:
                counted += 1
                number = match[1].lower()
                assert (int(number) if number.isdigit() else NUMBERS[number]) == answer["quantity"], text
    assert counted > 400


def test_priority_follows_from_what_is_said(rows):
    """An urgent order says so in one sentence; a normal one says the contrary or nothing."""
    for split, found in rows.items():
        voices = [voice for voice, _ in SPLITS[split].voices]
        urgent = [f for v in voices for f in (*v.urgent, *v.urgent_first)]
        calm = [f for v in voices for f in (*v.calm, *v.calm_first)]
        silent = 0
        for messages in found:
            text = asked(messages)
            says_urgent = any(holds(text, f) for f in urgent)
            says_calm = any(holds(text, f) for f in calm)
            assert not (says_urgent and says_calm), text
            assert says_urgent == (answered(messages)["priority"] == "urgent"), text
            silent += not (says_urgent or says_calm)
        assert silent > 0


def test_no_field_is_won_by_guessing(rows):
    for split in ("train", "test", "test_rephrased"):
        answers = [answered(m) for m in rows[split]]
        for field, most in (
            ("priority", 0.6),
            ("quantity", 0.25),
            ("item", 0.1),
            ("name", 0.1),
            ("city", 0.12),
        ):
            commonest = Counter(a[field] for a in answers).most_common(1)[0]
            assert commonest[1] <= most * len(answers), (split, field, commonest)


def test_many_rows_mislead(rows):
    """A second item, city or person of the same split stands in a fair share of the messages."""
    for split in ("train", "test", "test_rephrased"):
        values = SPLITS[split].values
        misled = 0
        for messages in rows[split]:
            text, answer = asked(messages), answered(messages)
            others = {*values.cities.split(), *values.first_names.split()} - {
                answer["city"],
                answer["name"].split()[0],
            }
            nouns = {pair[0].split()[-1] for pair in items(values)} - {answer["item"].split()[-1]}
            misled += any(re.search(rf"\b{word}s?\b", text) for word in others | nouns)
        assert misled >= 0.25 * len(rows[split])


def test_rows_stay_short(rows):
    """Characters stand for tokens: SmolLM2 reads these messages at 3.6 characters a token and more."""
    for found in rows.values():
        assert max(len(asked(m)) for m in found) <= quickstart.LONGEST_TEXT
        assert max(len(m[2]["content"]) for m in found) <= 115
    assert len(SYSTEM_PROMPT) <= 100


def test_rephrased_rows_speak_in_other_registers_with_slips():
    rephrased = orders("test_rephrased")
    assert sum(order.text[0].islower() for order in rephrased) > 40
    sentences = frames("test_rephrased")
    vocabulary = {
        word for frame in sentences for word in re.findall(r"[a-z]+", re.sub(r"{\w+}", " ", frame).lower())
    }
    values = SPLITS["test_rephrased"].values
    vocabulary |= {word for pair in items(values) for form in pair for word in form.split()}
    vocabulary |= {part for word in NUMBERS for part in re.split(r"[\s-]", word)} | {
        "a",
        "an",
        "it",
        "them",
        "x",
    }
    slipped = [
        order for order in rephrased if set(re.findall(r"(?<!\w)[a-z]{4,}(?!\w)", order.text)) - vocabulary
    ]
    assert len(slipped) >= 15


def test_group_words_are_numbers_too():
    assert set(GROUP_WORDS) <= set(NUMBER_WORDS)


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, luthier.data.quickstart\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    assert (
        run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
