"""The training process: the same numbers as in one's own, toggles at the next step, and every way it can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from skewsim.errors import SkewsimError
from skewsim.learn.trainer import train
from skewsim.records import StepRecord
from skewsim.settings import Scenario
from tui.controls import FIXES, explore_controls
from tui.driver import Back, Driver, TrackSpec
from tui.lab import opening, reference_for
from tui.process import TrainingProcess, environment
from tui.snapshot import Snapshot

from .snapshots import snapshot
from .terminal import SMALL_RUN, TUI, Terminal, children_of

SCENARIO = opening().with_values({"trainer.num_prompts": 4})
"""The first screen's settings with a quarter of its prompts: what is claimed here does not hang on their number."""
SMALL = SCENARIO.with_values({"trainer.num_prompts": 4, "trainer.num_generations": 4})
FIXED = SCENARIO.with_values({"engine.logprobs_mode": "processed_logprobs"})


@pytest.fixture(scope="module")
def shared_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcess]:
    """One process, because each takes seconds to load torch."""
    process = TrainingProcess(tmp_path_factory.mktemp("shared") / "out")
    yield process
    process.stop()


@pytest.fixture
def process(shared_process: TrainingProcess) -> TrainingProcess:
    """The shared process, for tests that leave it as it is."""
    shared_process.watch.wanted, shared_process.watch.latest = False, None
    return shared_process


@pytest.fixture
def own_process(tmp_path: Path) -> Iterator[TrainingProcess]:
    """A process of its own, for tests that end it or check its start or its folder."""
    process = TrainingProcess(tmp_path / "out")
    yield process
    process.stop()


def numbers(records: list[StepRecord]) -> list[object]:
    """Everything in the records except the time they took."""
    return [(r.step, r.seed, r.events, r.sources, {**r.metrics, "time/step_s": None}) for r in records]


def killed(process: TrainingProcess) -> None:
    os.kill(process.start()._process.pid, signal.SIGKILL)


def test_its_records_are_those_of_the_trainer_bit_for_bit_and_a_toggle_takes_effect_at_the_next_step(
    process: TrainingProcess,
) -> None:
    here, there = train(SCENARIO, seeds=(0, 1)), process.train(SCENARIO, (0, 1))
    assert numbers(next(there)) == numbers(next(here))
    expected = here.send(FIXED)
    assert numbers(there.send(FIXED)) == numbers(expected)
    assert expected[0].events
    assert numbers(next(there)) == numbers(next(here))


def test_the_process_computes_what_the_trainer_does_whatever_is_chosen(process: TrainingProcess) -> None:
    """Every choice of every control of the first screen, one toggle after the other, in one run each."""
    here, there = train(SMALL, seeds=(0,)), process.train(SMALL, (0,))
    assert numbers(next(there)) == numbers(next(here))
    for control in explore_controls():
        for choice in control.choices:
            toggled = SMALL.with_values(choice.values)
            assert numbers(there.send(toggled)) == numbers(here.send(toggled)), (control.id, choice.label)


def test_runs_go_on_side_by_side_and_beyond_the_steps_of_their_scenario(process: TrainingProcess) -> None:
    short = SMALL.with_values({"steps": 2})
    runs = [process.train(short, (seed,)) for seed in (0, 1)]
    seen = [[(record.step, record.seed) for run in runs for record in next(run)] for _ in range(3)]
    assert seen == [[(step, 0), (step, 1)] for step in range(3)]


def test_a_run_goes_back_to_a_checkpoint_and_is_the_same_again(process: TrainingProcess) -> None:
    run = process.train(SMALL, (0,))
    first = [numbers(next(run)) for _ in range(7)]
    assert numbers(run.send(Back(6, SMALL))) == first[5]
    assert numbers(next(run)) == first[6]


def test_the_step_just_done_can_be_looked_at_afterwards_and_is_what_was_recorded(process: TrainingProcess) -> None:
    run = process.train(SMALL, (0,))
    process.watch.glance()
    assert process.watch.latest is None
    for _ in range(2):
        (record,) = next(run)
    process.watch.glance()
    seen = process.watch.latest
    assert seen is not None
    assert seen.step == record.step == 1
    skew = np.abs(seen.skew[seen.mask]).mean()
    assert skew == pytest.approx(record.metrics["skew/logprob_diff_mean"], rel=1e-5)
    assert process.watch.diagnose()[0] == 1


def test_a_step_that_is_looked_at_says_the_same_and_shows_its_tokens(process: TrainingProcess) -> None:
    alone = list(islice(train(SCENARIO), 2))
    run = process.train(SCENARIO, (0,))
    assert numbers(next(run)) == numbers(alone[0])
    assert process.watch.latest is None
    process.watch.wanted = True
    records = next(run)
    assert numbers(records) == numbers(alone[1])
    seen = process.watch.latest
    assert seen is not None
    assert (seen.step, seen.scenario) == (1, SCENARIO)
    skew = np.abs(seen.skew[seen.mask]).mean()
    assert skew == pytest.approx(records[0].metrics["skew/logprob_diff_mean"], rel=1e-5)
    assert seen.rewards.mean() == pytest.approx(records[0].metrics["reward/mean"], rel=1e-6)


@pytest.mark.slow
def test_only_yours_is_looked_at_and_kept_are_it_and_what_it_is_compared_with(
    own_process: TrainingProcess, tmp_path: Path
) -> None:
    own_process.watch.wanted = True
    for name in ("reference", "initial_v1", "twin"):
        next(own_process.train(SCENARIO.with_values({"name": name}), (0,)))
    assert own_process.watch.latest is None
    for _ in range(2):
        run = own_process.train(SCENARIO, (0,))
        next(run)
        run.close()
    kept = sorted(folder.name for folder in (tmp_path / "out").iterdir())
    assert kept == ["initial_v1-001", "reference-001", "run-001", "run-002"]


MENDED = reference_for(SCENARIO).with_values({"name": "yours"})


@pytest.mark.parametrize(
    ("off", "cause"),
    [
        (1, "stale_kv"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((0, "raw_logprobs"), (2, "stale_weights"), (3, "head_dtype"))
        ),
    ],
)
def test_each_fix_that_is_off_is_named_by_the_weights_that_the_process_holds(
    process: TrainingProcess, off: int, cause: str
) -> None:
    """One step of a few hundred tokens. Counted by hand over 20 steps: 20, 15, 20 and 20 verdicts are right."""
    process.watch.wanted = True
    run = process.train(FIXES[off].moved(MENDED, 1), (0,))
    found = []
    for step in range(15):
        next(run)
        if step in (8, 11, 14):
            at, diagnosis = process.watch.diagnose()
            assert at == step
            found.append(cause in [each.name for each in diagnosis.causes])
    assert sum(found) >= 2


def test_a_step_that_nobody_has_looked_at_cannot_be_diagnosed(process: TrainingProcess) -> None:
    run = process.train(SCENARIO, (0,))
    next(run)
    with pytest.raises(SkewsimError, match="no step has been looked at yet"):
        process.watch.diagnose()


@pytest.mark.slow
def test_a_step_is_diagnosed_by_the_weights_of_then_however_long_ago(process: TrainingProcess) -> None:
    """The engine still has its weights from before the lag was raised, more steps ago than weights are kept."""
    run = process.train(MENDED, (0,))
    for _ in range(20):
        next(run)
    run.send(MENDED.with_values({"engine.lag": 24, "engine.mode": "wait", "engine.update_at_token": None}))
    process.watch.wanted = True
    for _ in range(10):
        next(run)
    process.watch.wanted = False
    for _ in range(70):
        next(run)
    step, diagnosis = process.watch.diagnose()
    assert step == 30
    assert [cause.name for cause in diagnosis.causes] == ["stale_weights"]
    assert diagnosis.causes[0].explained > 0.999


def test_the_last_step_of_a_run_that_is_over_is_diagnosed_by_its_logprobs(process: TrainingProcess) -> None:
    process.watch.wanted = True
    run = process.train(SCENARIO, (0,))
    next(run), next(run)
    run.close()
    step, diagnosis = process.watch.diagnose()
    assert step == 1
    assert diagnosis.tokens > 50


def test_a_process_that_was_stopped_is_not_started_again(own_process: TrainingProcess) -> None:
    own_process.start()
    own_process.stop()
    with pytest.raises(SkewsimError, match="has been stopped"):
        next(own_process.train(SCENARIO, (0,)))


def test_a_snapshot_survives_the_way() -> None:
    shot = snapshot()
    back = Snapshot.from_json(shot.to_json())
    for name, value in vars(shot).items():
        assert (
            np.array_equal(getattr(back, name), value) if isinstance(value, np.ndarray) else value == vars(back)[name]
        )


def test_what_a_run_dies_of_is_its_reason_and_the_others_go_on(process: TrainingProcess) -> None:
    good, bad = process.train(SCENARIO, (0,)), process.train(SCENARIO, (0,))
    next(good), next(bad)
    with pytest.raises(SkewsimError, match="task cannot change while a run goes on"):
        bad.send(SCENARIO.with_values({"task.reward": "partial"}))
    assert next(good)[0].step == 1


def test_a_killed_process_is_the_reason_of_every_run_and_the_next_run_starts_another(
    own_process: TrainingProcess,
) -> None:
    runs = [own_process.train(SCENARIO, (0,)) for _ in range(2)]
    for run in runs:
        next(run)
    killed(own_process)
    for run in runs:
        with pytest.raises(SkewsimError, match="trainer ended by SIGKILL"):
            next(run)
    assert next(own_process.train(SCENARIO, (0,)))[0].step == 0


@pytest.mark.slow
def test_after_a_kill_a_reset_computes_every_curve_anew(own_process: TrainingProcess) -> None:
    driver = Driver(own_process.train, speed=float("inf"))
    driver.playing = False
    specs = [TrackSpec(name, Scenario(name=name), (0,), taped=True) for name in ("reference", "initial_v1")]

    def steps(count: int) -> list[object]:
        found: list[object] = []
        end = time.monotonic() + 60
        while len(found) < count:
            found += [u.failed or u.ended or u.records[0].step for u in driver.drain()]
            assert time.monotonic() < end
            time.sleep(0.01)
        return found

    try:
        driver.restart(specs)
        driver.start()
        driver.step()
        assert steps(2) == [0, 0]
        killed(own_process)
        driver.step()
        assert steps(2) == ["trainer ended by SIGKILL"] * 2
        driver.restart(specs)
        driver.step()
        driver.step()
        assert steps(4) == [0, 0, 1, 1]
    finally:
        assert driver.stop(120)


def test_a_process_that_cannot_work_says_why_in_a_line() -> None:
    broken = TrainingProcess(command=(sys.executable, "-c", "import no_such_module"))
    with pytest.raises(SkewsimError) as caught:
        next(broken.train(SCENARIO, (0,)))
    assert str(caught.value) == (
        "trainer ended with exit code 1: ModuleNotFoundError: No module named 'no_such_module'"
    )
    broken.stop()
    missing = TrainingProcess(command=("/no/such/python",))
    with pytest.raises(SkewsimError, match="trainer did not start: No such file"):
        next(missing.train(SCENARIO, (0,)))


@pytest.mark.parametrize("words", ["hello", "3", "[]"])
def test_what_is_not_an_answer_ends_the_process(words: str) -> None:
    prints = TrainingProcess(command=(sys.executable, "-c", f"print('{words}'); import time; time.sleep(60)"))
    with pytest.raises(SkewsimError, match="trainer ended by SIGKILL"):
        next(prints.train(SCENARIO, (0,)))


def test_nothing_is_imported_from_the_folder_that_somebody_is_in(
    own_process: TrainingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("print('my own queue')")
    monkeypatch.chdir(tmp_path)
    assert next(own_process.train(SCENARIO, (0,)))[0].step == 0


def test_a_step_under_way_does_not_keep_it_alive_when_the_app_is_gone() -> None:
    long = SCENARIO.with_values({"trainer.num_prompts": 512, "trainer.num_generations": 32})
    child = TrainingProcess().start()
    stdin = child._process.stdin
    assert stdin is not None
    request = {"run": 0, "scenario": long.model_dump(mode="json"), "seeds": [0], "out": None, "watched": True}
    for each in (request, {"run": 0, "toggle": None, "look": False}):
        stdin.write(json.dumps(each).encode() + b"\n")
    stdin.close()
    child._process.wait(240)
    child.stop(0)


def test_it_is_stopped_in_the_middle_of_a_step_without_waiting_for_it() -> None:
    """The step takes longer than a test may, so that waiting for it would fail."""
    slow = TrainingProcess(command=(sys.executable, "-c", "import time; time.sleep(3600)"))
    child = slow.start()
    slow.stop()
    assert not child.alive
    assert child._process.returncode == -signal.SIGKILL


def test_it_does_not_outlive_the_app_whatever_the_app_dies_of(tmp_path: Path) -> None:
    with Terminal((*TUI, SMALL_RUN), home=tmp_path) as t:
        t.wait_for("computed: engine")
        (child,) = children_of(t.pid)
        t.kill()
    end = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_new_run_of_yours_forgets_what_was_seen_of_the_one_before(process: TrainingProcess) -> None:
    process.watch.wanted = True
    next(process.train(SCENARIO, (0,)))
    assert process.watch.latest is not None
    process.watch.wanted = False
    next(process.train(SCENARIO, (0,)))
    assert process.watch.latest is None


def test_torch_is_imported_whole_where_less_has_not_been_tried() -> None:
    code = (
        "import importlib.metadata as m; m.version = lambda name: '2.99.0'\n"
        "from tui.start import lean; assert not lean()\n"
        "import torch; assert torch._meta_registrations.__file__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())
