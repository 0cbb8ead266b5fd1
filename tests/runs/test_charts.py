"""Charts over something else than steps: logarithmic axes, named places, points without a line."""

from luthier.runs.report.charts import Axis, Series, chart, log_ticks


def test_a_logarithmic_axis_places_powers_of_ten_evenly() -> None:
    drawn = chart(
        "Loss by rate",
        [Series("trials", [(1e-5, 3.0), (1e-4, 2.0), (1e-3, 2.5)], "tuned", dots=True, joined=False)],
        axis=Axis("learning rate", log=True),
    )
    assert drawn is not None
    places = [
        tick.at for tick in drawn.x_ticks if tick.label in ("1e\u22125", "1e\u22124", "1e-5", "1e-4", "0.001")
    ]
    assert len(places) == 3
    assert abs((places[1] - places[0]) - (places[2] - places[1])) < 1e-6
    assert 0 < places[0] < places[2] < 100
    assert [line.dots for line in drawn.lines] == [True]
    assert drawn.columns == ("learning rate", "trials")


def test_named_places_keep_every_point_of_the_table() -> None:
    points = [(0, 1.0), (0, 2.0), (1, 3.0)]
    drawn = chart(
        "By", [Series("t", points, "tuned", dots=True, joined=False)], axis=Axis("m", labels=("lora", "full"))
    )
    assert drawn is not None
    assert [tick.label for tick in drawn.x_ticks] == ["lora", "full"]
    assert drawn.table == (("lora", "1"), ("lora", "2"), ("full", "3"))


def test_ticks_of_narrow_and_wide_ranges() -> None:
    assert log_ticks(1e-5, 1e-3) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    assert log_ticks(2e-4, 2.5e-4) == [2e-4]
    assert log_ticks(2.1e-4, 2.5e-4) == [2.1e-4, 2.5e-4]
