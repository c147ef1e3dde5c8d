"""One thread, before torch is loaded: two threads on a busy machine are slower, and sums would change their order.

Tests run side by side in several processes (`make test`). Those of a file that has a fixture of its own for all of them,
such as one training for many claims, stay together in one process, so that it is computed once; all others go wherever
there is room.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# No deadline, because a busy machine is no mistake; the same examples each time, so that a failure can be repeated.
settings.register_profile("skewsim", deadline=None, derandomize=True, database=None)
settings.load_profile("skewsim")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's scheduling by scope, with scopes of our own; files with many tests that stay together go first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if _shares_a_fixture(config.rootpath / path) else nodeid

    return Scheduling(config, log)


@functools.cache
def _shares_a_fixture(path: Path) -> bool:
    return 'scope="module"' in path.read_text(encoding="utf-8")
