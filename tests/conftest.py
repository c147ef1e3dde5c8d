"""Sets one thread before torch is loaded: two are slower on a busy machine, and would change the order of sums.

Tests run side by side in several processes (`make test`). The tests of a module with a module-scoped fixture, such as
one training run for many claims, stay together in one process, so that the fixture is computed once. All others are
given to any process.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# No deadline, because a busy machine is no mistake; the same examples each time, so that a failure can be repeated.
settings.register_profile("skewsim", deadline=None, derandomize=True, database=None)
settings.load_profile("skewsim")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    together = {item.path for item in items if _shares_a_fixture(item)}
    for item in items:
        if item.path in together:
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def _shares_a_fixture(item: pytest.Item) -> bool:
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
    return any(each.scope == "module" for definitions in fixtures for each in definitions)
