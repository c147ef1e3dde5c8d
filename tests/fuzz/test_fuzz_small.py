"""Inputs with something wrong in them end in an exit code that says so, in one line, without a trace.

About 1,790 inputs, a number of each kind by what it costs, half of them daily; SKEWSIM_FUZZ=N tries N of each kind,
SKEWSIM_FUZZ_SEED=S others. A failure names the kind and the number of its input, and the two make it again:
``python -m tests.fuzz.judge KIND NUMBER NUMBER+1 SEED``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewsim.cli.main import main
from tests.conftest import Faults
from tests.fuzz.inputs import COUNTS, KINDS
from tests.fuzz.judge import run
from tests.fuzz.runs import unaltered

COUNT = int(os.environ.get("SKEWSIM_FUZZ", "0"))
SEED = int(os.environ.get("SKEWSIM_FUZZ_SEED", "0"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Iterator[Path]:
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "SKEWSIM_ENGINES"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path


def test_a_run_folder_that_nobody_altered_resumes(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every altered one would be refused for the same reason."""
    monkeypatch.chdir(workplace)
    assert main(unaltered(workplace)) == 0


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_one_line(
    kind: str, half: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, statuses = [], set()
    count = COUNT or COUNTS[kind]
    for number in range(count * half // 2, count * (half + 1) // 2):
        folder = workplace / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        found = run(kind, number, SEED, folder, main, seconds=30)
        statuses.add(found["status"])
        if found["wrong"]:
            failures.append(f"{kind} {number}: {', '.join(found['wrong'])}: {found['said']}")
    assert failures == []
    assert half == 0 or statuses - {2}, "a reader that refuses everything would pass"
