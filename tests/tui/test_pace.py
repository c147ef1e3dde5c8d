"""Drawing by itself stays within its share of a core, whatever a frame costs."""

from __future__ import annotations

import pytest

from tui.pace import SHARE, Pace


@pytest.mark.parametrize("cost", [0.0, 0.002, 0.012, 0.04, 0.5])
def test_drawing_takes_no_more_than_its_share_and_never_stops(cost: float) -> None:
    now = spent = 0.0
    pace = Pace(clock=lambda: now, spent=lambda: spent)
    frames = 0
    for _ in range(1000):
        now += 0.1
        if pace.due():
            frames += 1
            spent += cost
    assert frames > 0
    assert spent <= SHARE * now + cost
    if cost <= SHARE * 0.1:
        assert frames == 1000, "a cheap frame is drawn every time"
