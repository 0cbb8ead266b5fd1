"""Each metric against its reference implementation, on real texts and answers.

    python -P benchmarks/proof/agreement.py DATA --out benchmarks/proof/agreement.json [--runs RUN...]
    python -P benchmarks/proof/agreement.py --table benchmarks/proof/agreement.json

DATA holds folders of JSON lines (stsb_multi, disfl_qa, goemotions, scifact, bfcl, glaive_toolcall). RUN are
run directories of classifiers and embedders, whose answers and confidences are scored again by the
references. References are the packages that papers use: sacrebleu, rouge_score, scikit-learn, scipy,
pytrec_eval, ranx, bfcl_eval, whichever are installed. `harness.py` has those of lm-evaluation-harness.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import random
import sys
import types
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from luthier.evaluation import bfcl
from luthier.evaluation.classification import Given, judge_labels
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.retrieval import correlation, ranked, ranking_scores
from luthier.evaluation.structured import ToolCall
from luthier.schema.rows import LabelRow

Rows = list[dict[str, Any]]


def read(data: Path, name: str, most: int | None = None) -> Rows:
    """Rows of a file, packed or not."""
    path = data / name
    path = path if path.exists() else data / f"{name}.gz"
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    random.Random(0).shuffle(rows)
    return rows[:most]


def row(
    metric: str, reference: str, cases: int, ours: Sequence[float], theirs: Sequence[float]
) -> dict[str, Any]:
    """One line of the table."""
    far = float(np.max(np.abs(np.asarray(ours, float) - np.asarray(theirs, float))))
    print(f"{metric:24} {reference:28} {cases:6,} cases  largest difference {far:.3g}", flush=True)
    return {"metric": metric, "reference": reference, "cases": cases, "values": len(ours), "largest": far}


def texts(data: Path) -> list[dict[str, Any]]:
    """chrF, BLEU, ROUGE-L on pairs of real sentences: paraphrases, near misses and strangers."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [(r["sentence1"], r["sentence2"]) for r in read(data, "stsb_multi/validation_en.jsonl", 600)]
    pairs += [(r["sentence1"], r["sentence2"]) for r in read(data, "stsb_multi/validation_zh.jsonl", 200)]
    pairs += [(r["sentence1"], r["sentence2"]) for r in read(data, "stsb_multi/validation_de.jsonl", 200)]
    chrf, bleu = sacrebleu.CHRF(), sacrebleu.BLEU(effective_order=True)
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    references: list[tuple[str, str, Callable[[str, str], float]]] = [
        ("chrf", "sacrebleu CHRF", lambda a, b: chrf.sentence_score(b, [a]).score / 100),
        ("bleu", "sacrebleu BLEU", lambda a, b: bleu.sentence_score(b, [a]).score / 100),
        ("rouge_l", "rouge_score rougeL", lambda a, b: rouge.score(a, b)["rougeL"].fmeasure),
    ]
    return [
        row(name, of, len(pairs), [METRICS[name].score(a, b) for a, b in pairs], [f(a, b) for a, b in pairs])
        for name, of, f in references
    ]


def labels(data: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Classification: scores of runs' own answers, and of drawn answers to real labels."""
    from sklearn.metrics import accuracy_score, f1_score

    found = []
    results = [
        (f"{folder.name.split('-')[0]}: {part}", json.loads((folder / f"{part}.json").read_text())["result"])
        for folder in folders
        for part in ("baseline", "tuned")
        if (folder / f"{part}.json").exists()
    ]
    for name, value in results:
        for result in value.values():
            rows = result["rows"]
            if not any(r.get("gold") for r in rows):
                continue
            every = sorted({label for r in rows for label in (*r["gold"], *r.get("given", ()))})
            gold = np.array([[label in r["gold"] for label in every] for r in rows])
            given = np.array([[label in r.get("given", ()) for label in every] for r in rows])
            multi = bool((gold.sum(1) != 1).any() or (given.sum(1) != 1).any())
            theirs = {
                "macro_f1": f1_score(gold, given, average="macro", zero_division=0),
                "micro_f1": f1_score(gold, given, average="micro", zero_division=0),
                "labels_exact": accuracy_score(gold, given),
                "accuracy": accuracy_score(gold, given),
                "label_f1": f1_score(gold, given, average="samples", zero_division=1),
            }
            for metric, figure in theirs.items():
                if metric in result["metrics"] and (multi or metric != "labels_exact"):
                    ours = result["metrics"][metric]["value"]
                    found.append(row(f"{metric} ({name})", "scikit-learn", len(rows), [ours], [figure]))
            if "calibration_error" in result["metrics"]:
                own = result["metrics"]["calibration_error"]["value"]
                made = row(f"calibration_error ({name})", "numpy, 15 bins", len(rows), [own], [_ece(rows)])
                found.append(made)
    found.append(_drawn(data))
    return found


def _ece(rows: Rows) -> float:
    """Expected calibration error as Guo et al. (2017) define it, over 15 equal bins."""
    confidence = np.array([r["figures"]["confidence"] for r in rows])
    hit = np.array([r["figures"]["hit"] for r in rows])
    place = np.minimum(np.ceil(confidence * 15).astype(int) - 1, 14)
    return float(
        sum(
            abs(hit[place == b].mean() - confidence[place == b].mean()) * (place == b).mean()
            for b in range(15)
            if (place == b).any()
        )
    )


def _drawn(data: Path) -> dict[str, Any]:
    """20 random answer sets to goemotions' labels, every averaged F1."""
    from sklearn.metrics import f1_score

    real = read(data, "goemotions/validation.jsonl", 500)
    names = sorted({label for r in real for label in r["labels"]})
    draw = random.Random(1)
    ours, theirs = [], []
    for _ in range(20):
        keep, extra = draw.random(), draw.random() * 0.1
        rows, given = [], []
        for number, r in enumerate(real):
            gold = tuple(sorted(r["labels"]))
            said = tuple(n for n in names if (n in gold and draw.random() < keep) or draw.random() < extra)
            rows.append(LabelRow(r["text"], gold, "g", number + 1, f"{number}", f"{number}"))
            given.append(Given(said, 1.0, said[0] if said else ""))
        result = judge_labels(rows, given, split="t", model="m", weights_digest="", multi=True)
        used = sorted({x for a, b in zip(rows, given, strict=True) for x in (*a.labels, *b.labels)})
        gold = np.array([[n in a.labels for n in used] for a in rows])
        said_matrix = np.array([[n in b.labels for n in used] for b in given])
        for metric, average, empty in (
            ("macro_f1", "macro", 0),
            ("micro_f1", "micro", 0),
            ("label_f1", "samples", 1),
        ):
            ours.append(result.metrics[metric].value)
            theirs.append(f1_score(gold, said_matrix, average=average, zero_division=empty))
    return row("F1, all averages", "scikit-learn", 20 * len(real), ours, theirs)


def retrieval(data: Path, *, with_ranx: bool) -> list[dict[str, Any]]:
    """Rankings of scifact's queries by a crude word overlap: real judgements, ties and misses among them.

    Scores are rounded: trec_eval holds them in single precision, where others would become ties.
    """
    import pytrec_eval

    queries = {r["_id"]: r["text"] for r in read(data, "scifact/queries_test.jsonl")}
    corpus = {r["_id"]: f"{r.get('title', '')} {r['text']}" for r in read(data, "scifact/corpus.jsonl")}
    judged: dict[str, dict[str, int]] = {}
    for line in (data / "scifact" / "qrels_test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        if document in corpus and query in queries:
            judged.setdefault(query, {})[document] = int(grade)
    bags = {key: set(text.lower().split()) for key, text in corpus.items()}
    run: dict[str, dict[str, float]] = {}
    for query in judged:
        words = set(queries[query].lower().split())
        scored = {key: round(len(words & bag) / (len(bag) ** 0.5), 4) for key, bag in bags.items()}
        run[query] = dict(sorted(scored.items(), key=lambda item: -item[1])[:100])
    measures = {
        "ndcg@10": ("ndcg_cut_10", "ndcg@10"),
        "mrr@10": ("recip_rank", "mrr@10"),
        "map@100": ("map_cut_100", "map@100"),
        "recall@10": ("recall_10", "recall@10"),
        "recall@100": ("recall_100", "recall@100"),
    }
    wanted = {"ndcg_cut.10", "recip_rank", "map_cut.100", "recall.10,100"}
    theirs = pytrec_eval.RelevanceEvaluator(judged, wanted).evaluate(run)
    ours = {
        query: ranking_scores(
            {key: float(grade) for key, grade in judged[query].items()},
            ranked(list(scores.values()), list(scores)),
        )
        for query, scores in run.items()
    }
    found = []
    for metric, (name, _) in measures.items():
        figures = [theirs[query][name] for query in run]
        if metric == "mrr@10":  # trec_eval has no cut here: places beyond ten count nothing
            figures = [x if x >= 0.1 else 0.0 for x in figures]
        own = [ours[query][metric] for query in run]
        found.append(row(metric, f"pytrec_eval {name}", len(run), own, figures))
    if with_ranx and importlib.util.find_spec("ranx"):
        ranx = importlib.import_module("ranx")
        # ranx leaves the order of equal scores open: ours is written into the scores.
        order = {
            query: {key: 1.0 / place for place, key in enumerate(ranked(list(s.values()), list(s)), 1)}
            for query, s in run.items()
        }
        for metric, (_, name) in measures.items():
            figures = ranx.evaluate(ranx.Qrels(judged), ranx.Run(order), name, return_mean=False)
            queries_in_order = list(ranx.Run(order).run)
            own = [ours[query][metric] for query in queries_in_order]
            found.append(row(metric, f"ranx {name}", len(run), own, [float(x) for x in figures]))
    return found


def correlations(data: Path) -> list[dict[str, Any]]:
    """Spearman's and Pearson's on real grades against word overlap."""
    from scipy import stats

    found = []
    for by_rank, name in ((True, "spearman"), (False, "pearson")):
        ours, theirs, cases = [], [], 0
        for language in ("en", "de", "zh"):
            rows = read(data, f"stsb_multi/validation_{language}.jsonl", 800)
            gold = np.array([r["score"] for r in rows])
            said = np.array([METRICS["chrf"].score(r["sentence1"], r["sentence2"]) for r in rows])
            cases += len(rows)
            ours.append(correlation(said, gold, by_rank=by_rank))
            theirs.append(float((stats.spearmanr if by_rank else stats.pearsonr)(said, gold).statistic))
        found.append(row(name, f"scipy {name}r", cases, ours, theirs))
    return found


def calls(data: Path) -> list[dict[str, Any]]:
    """BFCL's own checker on every row of three of its files, each answered right and in nine wrong ways."""
    if importlib.util.find_spec("bfcl_eval") is None:
        return []
    # The table of the leaderboard's models is not needed, and asks for every maker's client.
    models = types.ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"m": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = models
    # The converters of Java and JavaScript need parsers that Python rows do not.
    for name, function in (("java", "java_type_converter"), ("js", "js_type_converter")):
        stand_in = types.ModuleType(f"{name}_type_converter")
        setattr(stand_in, function, None)
        sys.modules[f"bfcl_eval.eval_checker.ast_eval.type_convertor.{name}_type_converter"] = stand_in
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    language = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON
    found = []
    for category in ("simple_python", "multiple", "parallel"):
        ours, theirs, failed = [], [], 0
        for number, one in enumerate(read(data, f"bfcl/{category}.jsonl")):
            for answer in answers(one["ground_truth"], random.Random(number)):
                mine = bfcl.accepted(
                    one["functions"],
                    [ToolCall(n, a) for c in answer for n, a in c.items()],
                    one["ground_truth"],
                )
                try:
                    their = checker.ast_checker(
                        one["functions"], answer, one["ground_truth"], language, category, "m"
                    )["valid"]
                except Exception:  # the checker raises on answers that are not as described
                    their, failed = False, failed + 1
                ours.append(float(mine))
                theirs.append(float(their))
        made = row(f"calls_accepted ({category})", "bfcl_eval ast_checker", len(ours), ours, theirs)
        found.append({**made, "accepted": sum(theirs), "raised": failed})
    return found


def answers(truth: Rows, draw: random.Random) -> list[Rows]:
    """An accepted answer, and others that stray from it in one way each."""

    def pick(values: list[Any]) -> Any:
        kept = [v for v in values if v != ""]
        value = draw.choice(kept) if kept else ""
        return (
            {k: pick(v) for k, v in value.items()}
            if isinstance(value, dict)
            else (
                [{k: pick(v) for k, v in x.items()} if isinstance(x, dict) else x for x in value]
                if isinstance(value, list)
                else value
            )
        )

    def right(*, optional: bool) -> Rows:
        return [
            {
                name: {k: pick(v) for k, v in given.items() if optional or "" not in v}
                for name, given in call.items()
            }
            for call in truth
        ]

    def changed(change: Callable[[Any], Any], *, one: bool = True) -> Rows:
        calls = right(optional=True)
        places = [(c, n, k) for c in calls for n, given in c.items() for k in given]
        for call, name, key in [draw.choice(places)] if one and places else places:
            call[name][key] = change(call[name][key])
        return calls

    def other(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, (int, float)):
            return value + 1
        if isinstance(value, str):
            return value + " x"
        if isinstance(value, list):
            return value[:-1]
        return {**value, "more": 1}

    def loose(value: Any) -> Any:
        if isinstance(value, str):
            return value.upper().replace(" ", "_")
        if isinstance(value, list):
            return [loose(x) for x in value]
        return float(value) if type(value) is int else value

    made = right(optional=True)
    extra = json.loads(json.dumps(made))
    name = next(iter(extra[0]))
    extra[0][name]["unheard_of"] = 1
    missing = json.loads(json.dumps(made))
    given = missing[0][name]
    if given:
        del given[draw.choice(sorted(given))]
    return [
        made,
        right(optional=False),
        list(reversed(right(optional=True))),
        changed(other),
        changed(loose, one=False),
        changed(str),
        extra,
        missing,
        made[:-1],
        [*made, made[0]],
        [{f"{n}_": a for n, a in c.items()} for c in made],
    ]


def table(path: Path) -> str:
    """The results as Markdown, one line a metric and reference."""
    told = json.loads(path.read_text())
    lines = ["| metric | reference | cases | largest difference |", "|---|---|---:|---:|"]
    together: dict[tuple[str, str], tuple[int, float]] = {}
    for one in told["rows"]:
        key = (one["metric"].split(" (")[0], one["reference"])
        cases, far = together.get(key, (0, 0.0))
        together[key] = (cases + one["cases"], max(far, one["largest"]))
    for (metric, reference), (cases, far) in together.items():
        package, _, rest = reference.partition(" ")
        installed = told["versions"].get(package.rstrip(","))
        shown = f"{package.rstrip(',')} {installed}, {rest}".rstrip(", ") if installed else reference
        lines.append(f"| `{metric}` | {shown} | {cases:,} | {f'{far:.1e}' if far else '0'} |")
    return "\n".join(lines)


def main() -> int:
    """Compare, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--ranx", action="store_true", help="compare rankings with ranx too (compiles first)")
    parser.add_argument("--only", default="texts,labels,correlations,retrieval,calls")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    if asked.table:
        print(table(asked.table))
        return 0
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "texts": lambda: texts(asked.data),
        "labels": lambda: labels(asked.data, asked.runs),
        "correlations": lambda: correlations(asked.data),
        "retrieval": lambda: retrieval(asked.data, with_ranx=asked.ranx),
        "calls": lambda: calls(asked.data),
    }
    rows = [one for name in asked.only.split(",") for one in parts[name]()]
    packages = {
        "sacrebleu": "sacrebleu",
        "rouge_score": "rouge-score",
        "scikit-learn": "scikit-learn",
        "scipy": "scipy",
        "pytrec_eval": "pytrec_eval-terrier",
        "ranx": "ranx",
        "bfcl_eval": "bfcl-eval",
        "numpy": "numpy",
    }
    versions = {}
    for name, package in packages.items():
        try:
            versions[name] = version(package)
        except PackageNotFoundError:
            continue
    asked.out.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    return 0 if all(one["largest"] < 1e-6 for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
