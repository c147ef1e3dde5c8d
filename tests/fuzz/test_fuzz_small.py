"""Inputs with something wrong in them end in an exit code that says so, in one line, without a trace.

About 300 inputs; SKEWSIM_FUZZ=N tries N of each kind, SKEWSIM_FUZZ_SEED=S others. A failure names the kind and the
number of its input, and the two make it again.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from skewsim.cli.main import main
from tests.conftest import Faults
from tests.fuzz.inputs import KINDS

COUNT = int(os.environ.get("SKEWSIM_FUZZ", "45"))
SEED = int(os.environ.get("SKEWSIM_FUZZ_SEED", "0"))


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wrong(status: int, out: str, err: str, *, left: bool) -> str:
    """What is wrong with the way in which a command ended; empty if nothing is."""
    if status not in (0, 1, 2):
        return f"exit code {status}: {err[-300:]}"
    if status == 2 and (err.count("\n") != 1 or out):
        return f"{err.count(chr(10))} lines for a mistake: {err[:300]!r}, and on stdout {out[:100]!r}"
    if "Traceback" in err or "\x1b" in err + out:
        return f"a traceback, or a control character: {(err + out)[-300:]!r}"
    return "a file was left, or changed" if status == 2 and left else ""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Iterator[Path]:
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "SKEWSIM_ENGINES"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_said_in_one_line(
    kind: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failures = []
    for number in range(COUNT):
        rng = random.Random(f"{SEED} {kind} {number}")
        folder = workplace / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        words = KINDS[kind](rng, folder)
        before = listing(folder)
        status = main(words)
        out, err = capfd.readouterr()
        if said := wrong(status, out, err, left=listing(folder) != before):
            failures.append(f"{kind} {number}: {said}; skewsim {' '.join(words)[:200]!r}")
    assert failures == []
