"""Inputs with something wrong in them end in an exit code that says so, in one line, without a trace.

About 900 inputs, a number of each kind by what it costs; SKEWSIM_FUZZ=N tries N of each kind, SKEWSIM_FUZZ_SEED=S
others. A failure names the kind and the number of its input, and the two make it again:
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

COUNT = int(os.environ.get("SKEWSIM_FUZZ", "0"))
SEED = int(os.environ.get("SKEWSIM_FUZZ_SEED", "0"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Iterator[Path]:
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "SKEWSIM_ENGINES"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_one_line(kind: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []
    for number in range(COUNT or COUNTS.get(kind, 80)):
        folder = workplace / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        found = run(kind, number, SEED, folder, main, seconds=100)  # a busy machine is no hang
        if found["wrong"]:
            failures.append(f"{kind} {number}: {', '.join(found['wrong'])}: {found['said']}")
    assert failures == []
