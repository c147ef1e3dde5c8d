"""The rasteriser: what is drawn where, without Textual."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.chart import ChartCurve, ChartWindow, bars, limits, rasterise

values = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=60)


def curve(letter: str, y: list[float], **more: object) -> ChartCurve:
    return ChartCurve(letter, np.arange(len(y), dtype=float), np.array(y), **more)  # type: ignore[arg-type]


def dots(rows: list[str]) -> int:
    return sum(bin(ord(c) - 0x2800).count("1") for row in rows for c in row if c != " ")


@given(values, values, st.booleans())
def test_a_later_curve_never_erases_an_earlier_one(first: list[float], second: list[float], plain: bool) -> None:
    a, b = curve("a", first), curve("b", second)
    window = limits([a, b])
    alone = rasterise([a], 30, 8, window).rows
    both = rasterise([a, b], 30, 8, window).rows
    for row_alone, row_both in zip(alone, both, strict=True):
        for one, two in zip(row_alone, row_both, strict=True):
            assert one == " " or (ord(one) & ord(two) & 0xFF) == ord(one) & 0xFF


@given(values, st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_a_raster_has_the_size_asked_for(y: list[float], width: int, height: int, plain: bool) -> None:
    raster = rasterise([curve("a", y)], width, height, limits([curve("a", y)]), ascii_only=plain)
    assert [len(row) for row in raster.rows] == [width] * height
    assert raster.owner.shape == (height, width)


def test_a_solid_curve_has_a_dot_in_every_column_of_its_data() -> None:
    raster = rasterise([curve("a", [0.0, 1.0, 0.0, 1.0])], 20, 6, ChartWindow(0, 3, 0, 1))
    columns = ["".join(row[i] for row in raster.rows).strip() for i in range(20)]
    assert all(columns)


def test_a_dash_blanks_every_other_run_of_columns() -> None:
    solid = rasterise([curve("a", [0.5] * 10)], 24, 4, ChartWindow(0, 9, 0, 1)).rows
    dashed = rasterise([curve("a", [0.5] * 10, dash=6)], 24, 4, ChartWindow(0, 9, 0, 1)).rows
    assert dots(dashed) == dots(solid) // 2


def test_ascii_draws_nothing_but_the_curve_letters() -> None:
    raster = rasterise(
        [curve("r", [0, 1, 2.0]), curve("v", [2, 1, 0.0])], 30, 8, ChartWindow(0, 2, 0, 2), ascii_only=True
    )
    assert set("".join(raster.rows)) == {" ", "r", "v"}
    assert "".join(raster.rows).isascii()


def test_missing_points_are_bridged_and_nothing_is_drawn_beyond_the_data() -> None:
    raster = rasterise([curve("a", [0.5, float("nan"), 0.5])], 20, 4, ChartWindow(0, 4, 0, 1))
    assert any(row[5] != " " for row in raster.rows)
    assert all(row[15:] == " " * 5 for row in raster.rows)


def test_a_band_lies_between_its_bounds() -> None:
    y = np.full(10, 0.5)
    band = ChartCurve("a", np.arange(10.0), y, low=y - 0.25, high=y + 0.25)
    rows = rasterise([band], 40, 16, ChartWindow(0, 9, 0, 1)).rows
    assert dots(rows) > dots(rasterise([curve("a", y.tolist())], 40, 16, ChartWindow(0, 9, 0, 1)).rows)
    assert not any("".join(rows[:3] + rows[13:]).strip())


@pytest.mark.parametrize("y", [[float("nan")], [float("inf"), float("-inf")], [3.0], [1e300, -1e300]])
def test_limits_are_finite_and_not_empty_whatever_the_data(y: list[float]) -> None:
    window = limits([curve("a", y)])
    assert np.isfinite([window.left, window.right, window.bottom, window.top]).all()
    assert window.top > window.bottom
    assert window.right > window.left


def test_bars_show_every_bin_that_has_a_count() -> None:
    rows = bars(np.array([0.0, 1.0, 1000.0]), 3)
    assert rows[0][2] == "█"
    assert rows[-1][1] != " "
    assert all(row[0] == " " for row in rows)
    assert "".join(bars(np.array([1.0, 2.0]), 2, ascii_only=True)).isascii()
