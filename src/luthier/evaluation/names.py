"""What every metric of every purpose is called, and what it means."""

from __future__ import annotations

from typing import NamedTuple

from luthier.evaluation.metrics import METRICS
from luthier.evaluation.preference import PAIR_METRICS
from luthier.evaluation.retrieval import CORRELATION_METRICS, RANKING_METRICS
from luthier.evaluation.totals import SET_METRICS


class Named(NamedTuple):
    """A metric for people. share: whether it runs from 0 to 1 and is shown times 100."""

    label: str
    definition: str
    share: bool = True


OWN = {
    "accuracy": Named("Accuracy", "Share of the rows that were given their label."),
    "label_f1": Named(
        "F1 of labels",
        "F1 of the labels given to a row against the expected ones, the mean over rows; a row that has no "
        "label and is given none counts as right.",
    ),
    "acc": Named("Right choices", "Share of questions whose likeliest choice is the right one."),
    "acc_norm": Named(
        "Right choices by length",
        "Share of questions whose likeliest choice, log-probability over its length in characters, is right.",
    ),
    "right_probability": Named(
        "Probability of the right choice",
        "Its share of the probability of all choices, the mean over questions.",
    ),
    "calls_accepted": Named(
        "Tool calls accepted", "Share of rows whose calls are among the accepted ones, by the rules of BFCL."
    ),
    "strict_match": Named("Number after ####", "Share of rows whose number after #### is the expected one."),
    "flexible_match": Named(
        "Last number", "Share of rows whose last number, wherever it stands, is the expected one."
    ),
    "answered": Named(
        "Answered", "Share of harmless requests that are neither refused nor met with silence, by the words."
    ),
    "stopped": Named("Ended by itself", "Share of answers that end before the longest length allowed."),
    "no_repetition": Named(
        "No endless repetition", "Share of answers in which no stretch of words stands four times in a row."
    ),
    "json_found": Named(
        "JSON where asked", "Share of answers that hold a JSON object where one is asked for."
    ),
    "pass": Named("Tests passed", "Share of rows whose code runs and passes all tests."),
    "labels_exact": Named("All labels right", "Share of rows that were given exactly the expected labels."),
}


def named(metric: str) -> Named | None:
    """Label and meaning of a metric; None where nothing is known of it."""
    if metric in METRICS:
        return Named(METRICS[metric].label, METRICS[metric].definition)
    if metric in SET_METRICS:
        known = SET_METRICS[metric]
        return Named(known.label, known.definition, share=(known.lowest, known.highest) == (0.0, 1.0))
    if metric in RANKING_METRICS:
        return Named(*RANKING_METRICS[metric])
    if metric in CORRELATION_METRICS:
        return Named(*CORRELATION_METRICS[metric], share=False)
    if metric in PAIR_METRICS:
        return Named(*PAIR_METRICS[metric])
    return OWN.get(metric)
