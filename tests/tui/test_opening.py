"""What the first screen shows, on fresh runs: a collapse that the fixes take back."""

from __future__ import annotations

import numpy as np
import pytest

from skewsim.trainer import train
from tui.controls import FIXES
from tui.lab import initial_v1_for, opening, reference_for
from tui.series import Series

SEEDS = (0, 1, 2, 3, 4)
STEPS, MENDED_AT = 100, 20


def rewards(scenario: object, toggled: object = None) -> np.ndarray:
    """(seeds, steps) of a run that is toggled once."""
    series = Series(SEEDS)
    training = train(scenario, seeds=SEEDS)  # type: ignore[arg-type]
    for step in range(STEPS):
        series.append(training.send(toggled) if step == MENDED_AT and toggled else next(training))  # type: ignore[arg-type]
    return series.values("reward/mean")


@pytest.fixture(scope="module")
def runs() -> dict[str, np.ndarray]:
    yours = opening().with_values({"steps": STEPS})
    mended = yours
    for fix in FIXES:
        mended = fix.moved(mended, 1)
    return {
        "reference": rewards(reference_for(yours)),
        "v1": rewards(initial_v1_for(yours)),
        "mended": rewards(yours, mended),
    }


def final(values: np.ndarray) -> np.ndarray:
    """Each seed's mean over the last tenth."""
    return np.asarray(values[:, -10:].mean(axis=1))


def test_on_arrival_initial_v1_collapses_while_the_reference_learns(runs: dict[str, np.ndarray]) -> None:
    v1, reference = runs["v1"], runs["reference"]
    assert (final(v1) < v1[:, :10].mean(axis=1)).all()
    assert final(v1).mean() < 0.6 * v1[:, :10].mean()
    assert (final(reference) > reference[:, :10].mean(axis=1) + 0.1).all()
    assert (final(reference) > final(v1) + 0.25).all()


def test_two_seconds_after_the_first_curves_the_fall_is_seen(runs: dict[str, np.ndarray]) -> None:
    """Steps 20 to 24, at the ten steps a second of arrival."""
    assert runs["v1"][:, 20:25].mean() < 0.7 * runs["v1"][:, 10:15].mean()
    assert runs["reference"][:, 20:25].mean() > runs["v1"][:, 20:25].mean() + 0.2


def test_the_four_fixes_of_key_5_bring_it_back(runs: dict[str, np.ndarray]) -> None:
    assert np.array_equal(runs["mended"][:, :MENDED_AT], runs["v1"][:, :MENDED_AT]), "common random numbers"
    v1, mended, reference = (final(runs[name]) for name in ("v1", "mended", "reference"))
    assert (mended > v1 + 0.2).all()
    assert mended.mean() > v1.mean() + 0.6 * (reference - v1).mean()
