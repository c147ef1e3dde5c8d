"""Sets one thread before torch is loaded: two are slower on a busy machine, and would change the order of sums.

Tests run side by side in several processes (`make test`). The tests of a module with a module-scoped fixture, such as
one training run for many claims, stay together in one process, so that the fixture is computed once. All others are
given to any process.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from skewsim.cli import fault

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# No deadline, because a busy machine is no mistake; the same examples each time, so that a failure can be repeated.
settings.register_profile("skewsim", deadline=None, derandomize=True, database=None)
settings.load_profile("skewsim")


gc.disable()  # until all tests are collected: what is loaded by then is there to stay


def pytest_collection_finish() -> None:
    """The garbage collector leaves the imported modules and the tests alone: going through them again and again took a
    third of the time of the tests of the terminal UI."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Twice as many as there are cores: many tests of processes and screens wait for something."""
    return len(os.sched_getaffinity(0)) * 2


class Faults:
    """The reports that the last net of the command line has written in this test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reports(self) -> list[Path]:
        return sorted(self.folder.glob("fault-*.txt"))


@pytest.fixture(autouse=True)
def _no_fault(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault of the program is never a pass, whatever exit code the test expects; see the fixture `faults`."""
    if "faults" in request.fixturenames:
        yield
        return
    seen: list[BaseException] = []
    monkeypatch.setattr(fault, "_written", lambda text, words: seen.append(RuntimeError(text)) or "none in a test")
    yield
    if seen:
        raise seen[0]


@pytest.fixture
def faults(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Faults:
    """For a test that breaks the program on purpose: where its reports are."""
    found = Faults(tmp_path_factory.mktemp("state"))
    monkeypatch.setenv("SKEWSIM_STATE", str(found.folder))
    return found
