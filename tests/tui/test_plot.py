"""What a plot puts over its curves: a letter at each curve's end, and labels on its axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui.chart import ChartCurve, ChartWindow, limits, rasterise
from tui.plot import _decorate, _labels
from tui.views import Look

WIDTH = 30
ends = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def curves(values: list[float]) -> list[ChartCurve]:
    x = np.arange(10.0)
    return [ChartCurve(letter, x, np.full(10, value)) for letter, value in zip("rvytab", values, strict=False)]


def letters(values: list[float], height: int, *, plain: bool) -> dict[str, tuple[int, int]]:
    """Where each curve's letter stands: row and column."""
    drawn, window = curves(values), ChartWindow(0, 9, 0, 1)
    raster = rasterise(drawn, WIDTH, height, window, ascii_only=plain)
    raster.codes[:] = ord(" ")
    _decorate(raster, drawn, window, [], {}, Look(ascii_only=plain))
    return {c: (row, at) for row, text in enumerate(raster.rows) for at, c in enumerate(text) if c != " "}


@given(ends, st.integers(2, 12), st.booleans())
def test_letters_stand_in_the_order_of_the_values_and_each_in_the_row_where_its_curve_ends(
    values: list[float], height: int, plain: bool
) -> None:
    found = letters(values, height, plain=plain)
    of = dict(zip("rvytab", values, strict=False))
    assert found.keys() == of.keys()
    for letter, value in of.items():
        alone = rasterise(curves([value]), WIDTH, height, ChartWindow(0, 9, 0, 1), ascii_only=plain)
        assert alone.rows[found[letter][0]][-1] != " "
    for one, other in [(a, b) for a in of for b in of if of[a] > of[b]]:
        (row, column), (below, left) = found[one], found[other]
        assert row < below or (row == below and column > left)


def test_letters_of_equal_curves_stand_side_by_side_also_at_the_first_step() -> None:
    assert letters([0.5, 0.5, 0.5], 3, plain=False) == {"r": (1, 27), "v": (1, 28), "y": (1, 29)}
    x, y, window = np.zeros(1), np.full(1, 0.5), ChartWindow(0, 1, 0, 1)
    drawn = [ChartCurve(letter, x, y) for letter in "rv"]
    raster = rasterise(drawn, WIDTH, 3, window)
    _decorate(raster, drawn, window, [], {}, Look())
    assert raster.rows[1][:2] == "rv"


@pytest.mark.parametrize("height", [2, 3, 5, 9, 16])
@given(low=st.floats(-1, 1), span=st.sampled_from([0.0, 1e-9, 1e-7, 1e-5, 1e-3, 0.1, 10.0]))
def test_no_two_labels_of_an_axis_are_the_same_and_each_is_near_its_value(height: int, low: float, span: float) -> None:
    window = limits([ChartCurve("a", np.arange(2.0), np.array([low, low + span]))])
    shown = {row: text for row, text in enumerate(_labels(window, height, log=False)) if text}
    assert len(shown) >= 1 + (abs(low) > 0.01)
    assert len(set(shown.values())) == len(shown)
    assert all(len(text) <= 6 for text in shown.values())
    reach = window.top - window.bottom
    for row, text in shown.items():
        value = window.top - reach * row / (height - 1)
        assert abs(float(text) - value) <= max(0.06 * abs(value), 0.5 * reach)


def test_a_cosine_that_is_almost_one_has_labels_that_differ() -> None:
    window = limits([ChartCurve("a", np.arange(2.0), np.array([1 - 2e-5, 1.0]))], ceiling=1.0)
    assert [text for text in _labels(window, 7, log=False) if text] == ["1", "0.998", "0.997", "0.995"]


def test_a_log_axis_is_not_set_by_step_zero_unless_there_is_nothing_else() -> None:
    k3 = ChartCurve("a", np.arange(4.0), np.log10([1e-6, 1e-2, 2e-2, 1e-2]))
    assert limits([k3], log=True).bottom > -2.1
    assert limits([k3]).bottom < -6
    first = ChartCurve("a", k3.x[:1], k3.y[:1])
    assert limits([first], log=True).bottom < -6
