"""A made-up profile, fitted from made-up tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skewsim.skew.fitting import fit_profile
from skewsim.skew.profile import save_profile
from skewsim.skew.tokens import TokenTable


def make_profile(path: Path) -> None:
    """Write one whose name is the file's."""
    rng = np.random.default_rng(1)
    n = 2000
    trainer = np.log(rng.uniform(0.01, 0.99, n))
    table = TokenTable(
        sequence=np.repeat(np.arange(n // 20), 20),
        position=np.tile(np.arange(20), n // 20),
        token=np.zeros(n, np.int64),
        engine_logprob=trainer - rng.normal(0, 0.05, n),
        trainer_logprob=trainer,
        weight_version=np.full(n, -1),
        meta={},
    )
    save_profile(
        fit_profile(table, name=path.stem, provenance={"engine": "made-up", "date": "2026-01-31"}, bootstrap=10), path
    )
