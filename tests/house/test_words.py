"""Sizes and times are worded in one place, and round to the next unit where they should."""

from __future__ import annotations

import pytest

from luthier.cli import console
from luthier.runs.report import words as report
from luthier.words import duration, memory, readable


def test_terminal_and_report_say_the_same() -> None:
    assert console.size is report.size is readable
    assert console.duration is report.duration is duration
    assert console.memory is report.memory is memory


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (readable(12), "12 B"),
        (readable(105_453_920), "105.5 MB"),
        (readable(999_970), "1.0 MB"),
        (readable(1_570_000_000), "1.6 GB"),
        (memory(3 << 30), "3.00 GiB"),
        (duration(0), "0.0 s"),
        (duration(0.0021), "2 ms"),
        (duration(0.0994), "99 ms"),
        (duration(0.0996), "0.1 s"),
        (duration(9.96), "10 s"),
        (duration(99.6), "1 min 40 s"),
        (duration(185), "3 min 05 s"),
        (duration(7_800), "2 h 10 min"),
    ],
)
def test_words(said: str, wanted: str) -> None:
    assert said == wanted
