"""The whole program in a real pseudo-terminal, with the real simulator."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from skewsim.share import from_share
from tui.folders import find_runs, open_run, summary_line

from .monkey import bother
from .terminal import SMALL_RUN, TUI, Terminal, children_of


def steps_of(run: Path) -> list[int]:
    """The steps in a run folder's file; a last line cut off by a kill does not count."""
    lines = (run / "steps.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line)["step"] for line in lines]


def test_a_key_toggles_a_fix_while_the_simulator_runs_and_quitting_leaves_the_share_string(tmp_path: Path) -> None:
    with Terminal((*TUI, SMALL_RUN, "--out", str(tmp_path / "out")), home=tmp_path) as t:
        t.wait_for("reward")
        t.wait_for("steps/s")
        t.wait_for("computed: engine")
        t.type("1")
        t.wait_for("processed on: from step")
        t.pump(3)
        t.type("q")
        assert t.end() == 0
        last = t.output.decode(errors="replace").strip().splitlines()[-1]
    share = last.split()[-1]
    assert from_share(share).engine.logprobs_mode == "processed_logprobs"
    (run,) = find_runs(tmp_path / "out")
    steps = steps_of(run)
    assert steps == list(range(len(steps)))
    assert len(steps) >= 2
    assert [spec.name for spec in open_run(run)] == ["reference", "initial_v1", "yours"], "to be replayed together"
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_random_keys_and_resizes_leave_it_alive_and_quitting_cleanly(tmp_path: Path) -> None:
    """A short version; benchmarks/tui_monkey.py plays 2,000 keys."""
    with Terminal((*TUI, "--out", str(tmp_path / "out"), "--hide", "measure"), home=tmp_path) as t:
        t.wait_for("computed: engine")
        bother(t, random.Random(0), keys=250)
        assert t.end() == 0
    for run in find_runs(tmp_path / "out"):
        steps = steps_of(run)
        assert steps == sorted(steps)


def test_a_kill_in_the_middle_leaves_every_step_but_the_one_under_way(tmp_path: Path) -> None:
    with Terminal((*TUI, SMALL_RUN, "--out", str(tmp_path / "out")), home=tmp_path) as t:
        t.wait_for("computed: engine")
        t.pump(2)
        t.kill()
    (run,) = find_runs(tmp_path / "out")
    steps = steps_of(run)
    assert steps == list(range(len(steps)))
    assert open_run(run)
    end = time.monotonic() + 120
    while "interrupted" not in summary_line(run):  # the trainer hears of it within three seconds
        assert time.monotonic() < end
        time.sleep(0.1)
    assert json.loads((run / "summary.json").read_text())["status"] in ("running", "interrupted")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("no-such-scenario",), "no-such-scenario"),
        (("--out", "file"), "out=file: is a file; allowed: a folder"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                (("--lesson", "flying"), "lesson 'flying'"),
                (("--lesson", "a"), "lesson 'a' may be any of: 1-what-skew-is"),
                (("--lesson", "in-flight", "--preset", "corrections"), "needs what is hidden: defaults, inflight"),
                (("--hide", "everything"), "hide=everything"),
                (("--preset", "none"), "preset 'none'"),
            )
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_two(
    tmp_path: Path, arguments: tuple[str, ...], what: str
) -> None:
    (tmp_path / "file").touch()
    with Terminal((*TUI, *arguments), home=tmp_path) as t:
        assert t.end() == 2
        text = t.output.decode()
    assert what in text
    assert len(text.strip().splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("after", [0.8, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.6, 3.0))])
def test_a_signal_ends_it_in_good_order_at_any_moment(
    tmp_path: Path, number: signal.Signals, code: int, after: float
) -> None:
    with Terminal((*TUI, SMALL_RUN), home=tmp_path) as t:
        t.pump(after)
        os.kill(t.pid, number)
        assert t.end() in (code, -number), "by the signal itself where Python is still starting"
        assert b"Traceback" not in t.output


@pytest.mark.slow
def test_quitting_while_a_step_is_examined_waits_for_nothing(tmp_path: Path) -> None:
    with Terminal((*TUI, SMALL_RUN), home=tmp_path) as t:
        t.wait_for("computed: engine")
        t.type("d")
        t.wait_for("examining")
        (trainer,) = children_of(t.pid)
        os.kill(trainer, signal.SIGSTOP)  # now it never answers: who waited for it would wait for ever
        t.type("q")
        assert t.end() == 0
