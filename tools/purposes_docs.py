"""Write what docs/purposes.md says is not done, from the code that refuses it.

Every line is a recipe, or a question to a model, that is really refused: the reason and the way out are the
words of the error. ``python tools/purposes_docs.py`` rewrites the table, ``--check`` only says whether it is
out of date.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.catalog.purposes import check_supported  # noqa: E402
from luthier.data.infill import marks_of  # noqa: E402
from luthier.data.read import RawRow  # noqa: E402
from luthier.data.vision import demand_words_alone  # noqa: E402
from luthier.errors import LuthierError  # noqa: E402
from luthier.planning.pairs import settle_pairs  # noqa: E402
from luthier.planning.together import check_devices  # noqa: E402
from luthier.runs.prepare import check_model  # noqa: E402
from luthier.runs.scratch import scratch_model  # noqa: E402
from luthier.schema.recipe import Recipe  # noqa: E402
from luthier.schema.rows import LabelRow, PairRow, RankingRow  # noqa: E402
from luthier.sizing.model_config import architecture_from_config  # noqa: E402

PAGE = ROOT / "docs" / "purposes.md"
BLOCK = re.compile(r"(<!-- table: refusals -->\n).*?(<!-- end -->)", re.DOTALL)
ONE, PAIRS = "multi-class-classification", {"loss": "dpo"}
TEXT = "text-generation"


def recipe(task: str = "chat", method: str = "lora", **changes: Any) -> Recipe:
    """A recipe with some words of its own."""
    values = {
        "task": task,
        "model": {"id": "MODEL"},
        "method": {"name": method},
        "data": {"train": "rows.jsonl", **changes.pop("data", {})},
    }
    return Recipe.model_validate({**values, **changes})


def planned(task: str = "chat", method: str = "lora", **changes: Any) -> Callable[[], object]:
    """Whether a purpose has what its recipe asks for."""
    return lambda: check_supported(recipe(task, method, **changes))


def scratch(task: str, method: str) -> Callable[[], object]:
    """A model that begins from random weights."""
    found = {"id": "MODEL", "from_scratch": {"parameters": "30M"}}
    return lambda: scratch_model(recipe(task, method, model=found), say=lambda _: None)


def shared(task: str = "chat", method: str = "lora", **changes: Any) -> Callable[[], object]:
    """Several devices."""
    training = {"devices": 2, **changes.pop("training", {})}
    machine: Any = SimpleNamespace(processor=SimpleNamespace(cores=8), accelerators=())
    return lambda: check_devices(recipe(task, method, training=training, **changes), machine, "cpu")


def encoder() -> None:
    """An encoder that is to write."""
    check_model(recipe(), SimpleNamespace(causal=False, model_type="bert"))  # type: ignore[arg-type]


def headless() -> None:
    """A decoder that was saved as an embedder or a classifier."""
    check_model(recipe(), SimpleNamespace(causal=True, head=False))  # type: ignore[arg-type]


def two_stacks() -> None:
    """A model that writes text from text."""
    architecture_from_config({"model_type": "t5", "is_encoder_decoder": True})


def seeing_vectors() -> None:
    """A model that sees, for vectors."""
    model: Any = SimpleNamespace(causal=True, head=True, extra_parameters=1, model_type="qwen3_vl")
    check_model(recipe("similarity"), model)


def yes_or_no() -> None:
    """An encoder that is asked for a word."""
    from luthier.models.rerank import read_rerank_settings

    with tempfile.TemporaryDirectory() as name:
        config = {"model_type": "bert", "architectures": ["BertModel"]}
        (Path(name) / "config.json").write_text(json.dumps(config))
        (Path(name) / "model.safetensors").touch()
        read_rerank_settings(Path(name), form="yes-no")


def unmarked() -> None:
    """A gap in a text, for a tokenizer that has no mark for it."""
    words: Any = SimpleNamespace(encode=lambda text: [1] * len(text))
    marks_of(words)


FACTS: dict[str, Any] = {"file": "rows.jsonl", "line": 1, "id": "", "key": ""}
ROWS: dict[str, LabelRow | PairRow | RankingRow] = {
    "triplets": RankingRow("a", ("b",), ("c",), **FACTS),
    "scored-pairs": PairRow("a", "b", 1.0, **FACTS),
    "labelled": LabelRow("a", ("b",), **FACTS),
}


def learned(task: str, loss: str, kind: str) -> Callable[[], object]:
    """Whether rows of a kind have what a loss learns from."""
    section: dict[str, Any] = {task: {"loss": loss}}
    return lambda: settle_pairs(recipe(task, **section), [ROWS[kind]], kind)


def pictured() -> None:
    """Rows with a picture beside the text, for a model of text."""
    demand_words_alone([RawRow({"image": "a.png", "question": "?", "answer": "!"}, "rows.jsonl", 1)], {})


REFUSED: tuple[tuple[str, Callable[[], object]], ...] = (
    ("an encoder for chat or text generation", encoder),
    ("an embedder or classifier made of a decoder, for chat or text generation", headless),
    ("an encoder-decoder (T5, BART), for any purpose", two_stacks),
    ("similarity or reranking with a model that sees", seeing_vectors),
    ("multi-class classification to GGUF", planned(ONE, export={"gguf": ["Q8_0"]})),
    ("multi-label classification to GGUF", planned("multi-label-classification", export={"gguf": ["Q8_0"]})),
    ("reranking to GGUF", planned("reranking", export={"gguf": ["Q8_0"]})),
    ("chat or text generation to ONNX", planned(export={"onnx": True})),
    (
        "a tokenizer of characters to GGUF",
        planned(
            TEXT,
            "full",
            model={"id": "MODEL", "from_scratch": {"parameters": "30M", "tokenizer": "characters"}},
            export={"gguf": ["F16"]},
        ),
    ),
    ("a section of another purpose", planned(classification={"label_smoothing": 0.1})),
    ("reranking by yes and no with an encoder", yes_or_no),
    (
        "scored pairs with a loss that tells right texts from wrong",
        learned("similarity", "triplet", "scored-pairs"),
    ),
    ("right and wrong texts with a loss of scored pairs", learned("similarity", "cosent", "triplets")),
    ("labelled texts with a loss of pairs", learned("similarity", "in-batch-negatives", "labelled")),
    ("reranking by a teacher's scores without them", learned("reranking", "distillation", "triplets")),
    ("gaps in texts (`data.fim_rate`) outside text generation", planned(data={"fim_rate": 0.5})),
    ("gaps in texts for a model without marks", unmarked),
    ("from scratch with LoRA or QLoRA", scratch(TEXT, "lora")),
    ("from scratch with another purpose", scratch("similarity", "full")),
    ("packing with pairs of answers", planned(preference=PAIRS, data={"packing": True})),
    ("`data.train_on` with pairs of answers", planned(preference=PAIRS, data={"train_on": "last"})),
    ("`label_smoothing` or `sft` with ORPO", planned(preference={"loss": "orpo", "sft": 1.0})),
    ("similarity on several devices", shared("similarity")),
    ("DPO of all weights on several devices", shared(method="full", preference=PAIRS)),
    (
        "weights divided over devices outside chat and text generation",
        shared(ONE, training={"parallel": {"shard": 2}}),
    ),
    ("images in a column, for a model of text", pictured),
    ("images outside chat", planned(TEXT, vision={})),
    ("images in pairs of answers", planned(vision={}, preference=PAIRS)),
    ("images with a full fine-tuning or a packed base", planned(method="full", vision={})),
    ("images with packing", planned(vision={}, data={"packing": True})),
    ("images in rows that are cut", planned(vision={}, data={"over_length": "truncate"})),
    ("images on several devices", planned(vision={}, training={"devices": 2})),
)
BY_HAND = (
    (
        "a family without a classification head in transformers",
        "there would be nothing that loads the result",
        "choose another base model",
    ),
    (
        "the quality of a GGUF on pairs of answers",
        "llama.cpp is asked for answers, not for the likelihood of given ones",
        "judge it on test files of conversations",
    ),
)
"""What is met only once a model is loaded."""


def refusals() -> Iterator[tuple[str, LuthierError]]:
    """Each combination with its error. Raises AssertionError for one that is not refused any more."""
    for words, ask in REFUSED:
        try:
            ask()
        except LuthierError as error:
            yield words, error
            continue
        raise AssertionError(f"{words} is not refused any more: take it out of the list")


def table() -> str:
    """The block of the page."""
    lines = ["| combination | why it is refused | what to do |", "|---|---|---|"]
    found = [(words, error.message, error.hint or "") for words, error in refusals()]
    lines += [
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
        for cells in (*found, *BY_HAND)
    ]
    return "\n".join(lines) + "\n"


def render(page: str) -> str:
    """The page with the table of now."""
    assert BLOCK.search(page), "the page has lost its block"
    return BLOCK.sub(lambda match: match[1] + table() + match[2], page)


def main() -> int:
    """Write the page, or say that it is out of date."""
    page = PAGE.read_text(encoding="utf-8")
    new = render(page)
    if new == page:
        return 0
    if "--check" in sys.argv[1:]:
        print("docs/purposes.md is out of date: run python tools/purposes_docs.py")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
