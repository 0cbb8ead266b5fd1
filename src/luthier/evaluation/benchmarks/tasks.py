"""The benchmarks that are known: prompt form, choices, examples, metric, source of each.

Prompts, stops and metrics are those of lm-evaluation-harness, so that scores agree row by row
(`benchmarks/proof/harness.py`); rows are read in the form of the Hub's data sets and in that of the
authors' files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.errors import DataError, UsageError, did_you_mean

Kind = Literal["choice", "numeric", "code", "calls"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One row of a benchmark, read."""

    text: str
    """The question as the model sees it, without examples."""
    choices: tuple[str, ...] = ()
    right: int = 0
    answer: str = ""
    """Numeric and code: what is expected, or a solution."""
    topic: str = ""
    """Where examples must share one: MMLU's subject."""
    tests: str = ""
    """Code: statements that pass where the answer is right."""
    plain: str = ""
    """Numeric and code: the question as a text to go on with, where it is not asked as a chat."""
    shown: str = ""
    """Numeric and code: the answer as it stands in a plain example."""
    before: str = ""
    """Code: what the written program goes on from, and is run with."""
    chat: tuple[Row, ...] = ()
    """Calls: the turns that are asked."""
    functions: tuple[Row, ...] = ()
    """Calls: what may be called, as the leaderboard describes it."""
    truth: tuple[Row, ...] = ()
    """Calls: each expected one with the accepted values of its arguments."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a benchmark asks and how it is scored."""

    name: str
    title: str
    kind: Kind
    read: Callable[[Row], Asked]
    metric: str
    """The one that decides: the one that is usually reported."""
    folders: tuple[str, ...]
    """Folders and file names that its rows are looked for in, the first that is there."""
    files: tuple[str, ...]
    """Beginnings of file names that hold the rows to be judged, the first that is there."""
    hub: str
    """The same rows on the Hugging Face Hub, as ``--benchmark-data`` takes them."""
    source: str
    """Who made it."""
    licence: str
    shots: int = 0
    """Examples before each question, where there are files to take them from."""
    example_files: tuple[str, ...] = ()
    head: str = ""
    """What stands before everything; ``{topic}`` is the topic."""
    delimiter: str = " "
    """Between question and choice, and between a plain question and its answer."""
    stops: tuple[str, ...] = ()
    """Numeric and code, asked as a plain text: an answer ends before the first of these."""
    longest: int = 256
    """New tokens of an answer."""
    first_example: int = 0
    """Place of the first example in the file of examples."""


def _text(row: Row, *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
    raise DataError(f"a row has no text in {' or '.join(names)}: it has {', '.join(map(str, row))}")


def _index(value: object, count: int) -> int:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, str) and len(value) == 1 and value.isalpha():
        value = ord(value.upper()) - ord("A")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise DataError(f"a row's answer is {value!r}, and it has {count} choices")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise DataError(f"a row's choices are {value!r}", hint="a list of two or more texts")
    return tuple(str(one) for one in value)


def _mmlu(row: Row) -> Asked:
    choices = _texts(row.get("choices"))
    letters = tuple("ABCDEFGHIJ"[: len(choices)])
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, choices, strict=True))
    return Asked(
        text=f"{_text(row, 'question').strip()}\n{listed}Answer:",
        choices=letters,
        right=_index(row.get("answer"), len(choices)),
        topic=str(row.get("subject", "")).replace("_", " "),
    )


def _arc(row: Row) -> Asked:
    given, key = row.get("choices"), row.get("answer", row.get("answerKey"))
    if isinstance(given, Mapping):
        choices, labels = _texts(given.get("text")), list(given.get("label") or ())
        if key not in labels:
            raise DataError(f"a row's answer is {key!r}, which is none of its labels")
        right = labels.index(key)
    else:
        choices = _texts(given)
        right = _index(key, len(choices))
    return Asked(text=f"Question: {_text(row, 'question')}\nAnswer:", choices=choices, right=right)


def _cleaned(text: str) -> str:
    """WikiHow's marks taken out, as every harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag(row: Row) -> Asked:
    endings = _texts(row.get("endings"))
    context = f"{_text(row, 'ctx_a')} {_text(row, 'ctx_b').capitalize()}"
    return Asked(
        text=_cleaned(f"{_text(row, 'activity_label')}: {context}"),
        choices=tuple(_cleaned(ending) for ending in endings),
        right=_index(row.get("label"), len(endings)),
    )


def _truthfulqa(row: Row) -> Asked:
    targets = row.get("mc1_targets")
    if not isinstance(targets, Mapping):
        raise DataError("a row has no multiple-choice targets (mc1_targets)")
    if "choices" in targets:
        choices, labels = _texts(targets["choices"]), list(targets["labels"])
    else:
        choices, labels = _texts(list(targets)), list(targets.values())
    if sum(map(bool, labels)) != 1:
        raise DataError("a row of mc1_targets has not exactly one right choice")
    return Asked(
        text=f"Q: {_text(row, 'question')}\nA:", choices=choices, right=[bool(x) for x in labels].index(True)
    )


def _boolq(row: Row) -> Asked:
    question = _text(row, "question").rstrip("?")
    answer = row.get("answer", row.get("label"))
    return Asked(
        text=f"{_text(row, 'passage')}\nQuestion: {question}?\nAnswer:",
        choices=("no", "yes"),
        right=int(bool(answer)),
    )


def _gsm8k(row: Row) -> Asked:
    question, answer = _text(row, "question"), _text(row, "answer")
    return Asked(
        text=question,
        answer=re.sub(r"<<.*?>>", "", answer),
        plain=f"Question: {question}\nAnswer:",
        shown=answer,
    )


def _mbpp(row: Row) -> Asked:
    tests = [str(one) for one in row.get("test_list") or ()]
    if not tests:
        raise DataError("a row has no tests (test_list)")
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    wanted, code = _text(row, "text", "prompt"), _text(row, "code")
    return Asked(
        text=f"Write a Python function. {wanted.strip()}\n"
        "It must pass these tests:\n" + "\n".join(tests) + "\nAnswer with the code alone.",
        answer=code.replace("\r\n", "\n"),
        tests="\n".join([setup, *tests]).replace("\r\n", "\n"),
        plain=f"You are an expert Python programmer, and here is your task: {wanted} Your code should pass "
        "these tests:\n\n" + "\n".join(tests[:3]) + "\n[BEGIN]\n",
        shown=f"{code}\n[DONE]",
    )


def _humaneval(row: Row) -> Asked:
    prompt, entry = _text(row, "prompt"), _text(row, "entry_point")
    return Asked(
        text="Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{prompt}\n```\n",
        answer=_text(row, "canonical_solution"),
        tests=f"{_text(row, 'test')}\ncheck({entry})",
        plain=prompt,
        before=prompt,
    )


def _bfcl(row: Row) -> Asked:
    functions, truth = row.get("functions", row.get("function")), row.get("ground_truth", [])
    messages = row.get("messages", row.get("question"))
    if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], list):
        messages = messages[0]
    if not isinstance(functions, list) or not isinstance(messages, list) or not isinstance(truth, list):
        raise DataError(
            f"a row has no messages, functions or ground_truth: it has {', '.join(map(str, row))}"
        )
    return Asked(
        text=str(messages[-1].get("content", "")),
        answer=json.dumps(truth, ensure_ascii=False),
        chat=tuple(messages),
        functions=tuple(functions),
        truth=tuple(truth),
    )


BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark(
            "mmlu", "MMLU: 57 subjects of school, college and work", "choice", _mmlu, "acc",
            ("mmlu",), ("test", "validation"), "hub:cais/mmlu[all]/test",
            "Hendrycks et al. 2021, arXiv 2009.03300", "MIT",
            shots=5, example_files=("dev",),
            head="The following are multiple choice questions (with answers) about {topic}.\n\n",
        ),
        Benchmark(
            "arc", "ARC challenge: science questions of school", "choice", _arc, "acc_norm",
            ("arc", "arc_challenge"), ("challenge_test", "ARC-Challenge-Test", "test", "validation"),
            "hub:allenai/ai2_arc[ARC-Challenge]/test",
            "Clark et al. 2018, arXiv 1803.05457", "CC-BY-SA-4.0",
        ),
        Benchmark(
            "arc_easy", "ARC easy: the easier questions", "choice", _arc, "acc_norm",
            ("arc", "arc_easy"), ("easy_test", "ARC-Easy-Test", "test", "validation"),
            "hub:allenai/ai2_arc[ARC-Easy]/test",
            "Clark et al. 2018, arXiv 1803.05457", "CC-BY-SA-4.0",
        ),
        Benchmark(
            "hellaswag", "HellaSwag: how an everyday scene goes on", "choice", _hellaswag, "acc_norm",
            ("hellaswag", "hellaswag_1k"), ("validation", "hellaswag_val", "val"),
            "hub:Rowan/hellaswag/validation",
            "Zellers et al. 2019, arXiv 1905.07830", "MIT",
        ),
        Benchmark(
            "truthfulqa", "TruthfulQA: questions that invite a misconception (mc1, no examples)", "choice",
            _truthfulqa, "acc", ("truthfulqa",), ("test", "validation", "mc_task"),
            "hub:truthfulqa/truthful_qa[multiple_choice]/validation",
            "Lin et al. 2022, arXiv 2109.07958", "Apache-2.0",
        ),
        Benchmark(
            "boolq", "BoolQ: yes/no questions about a passage", "choice", _boolq, "acc",
            ("boolq",), ("validation", "dev", "test"), "hub:google/boolq/validation",
            "Clark et al. 2019, arXiv 1905.10044", "CC-BY-SA-3.0",
        ),
        Benchmark(
            "gsm8k", "GSM8K: word problems of school", "numeric", _gsm8k, "strict_match",
            ("gsm8k",), ("test", "train"), "hub:openai/gsm8k[main]/test",
            "Cobbe et al. 2021, arXiv 2110.14168", "MIT",
            shots=5, example_files=("train",), stops=("Question:", "</s>", "<|im_end|>"),
        ),
        Benchmark(
            "humaneval", "HumanEval: Python functions from their descriptions, by their tests", "code",
            _humaneval, "pass", ("humaneval", "openai_humaneval"), ("test", "HumanEval", "human"),
            "hub:openai/openai_humaneval/test",
            "Chen et al. 2021, arXiv 2107.03374", "MIT",
            stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"), longest=1024,
        ),
        Benchmark(
            "mbpp", "MBPP: small Python functions, by their tests", "code", _mbpp, "pass",
            ("mbpp",), ("test",), "hub:google-research-datasets/mbpp/test",
            "Austin et al. 2021, arXiv 2108.07732", "CC-BY-4.0",
            shots=3, example_files=("prompt",), first_example=1, delimiter="", stops=("[DONE]",),
        ),
        Benchmark(
            "bfcl", "BFCL: calls of tools, simple ones unless a file is named", "calls", _bfcl,
            "calls_accepted", ("bfcl",), ("simple_python", "BFCL_v4_simple_python"),
            "hub:gorilla-llm/Berkeley-Function-Calling-Leaderboard/train",
            "Patil et al. 2025, ICML", "Apache-2.0",
        ),
    )
}  # fmt: skip


def benchmark(name: str) -> Benchmark:
    """A benchmark by name. Errors: UsageError."""
    found = BENCHMARKS.get(name.strip().lower())
    if found is None:
        hint = did_you_mean(name, BENCHMARKS) or f"known: {', '.join(BENCHMARKS)}"
        raise UsageError(f"no benchmark is called {name!r}", hint=hint)
    return found
