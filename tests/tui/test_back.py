"""Going back in a live run: from a checkpoint yours is computed again, bit for bit, beside the curve that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skewsim.learn.trainer import Trainer
from skewsim.records import StepRecord
from skewsim.runs.recording import read_records
from tui import worker
from tui.lab import opening
from tui.worker import Checkpoints, Run

from .conftest import StageMaker
from .stagecraft import on_stage

SMALL = opening().with_values({"trainer.num_prompts": 2, "trainer.num_generations": 2})
FIXED = SMALL.with_values({"engine.logprobs_mode": "processed_logprobs"})


def step(run: Run, **orders: object) -> StepRecord:
    found = run.step(orders.pop("toggled", None), look=False, **orders)  # type: ignore[arg-type]
    assert found is not None
    return found[0][0]


def numbers(record: StepRecord) -> object:
    return record.step, record.events, {**record.metrics, "time/step_s": None}


def test_a_run_that_goes_back_with_the_same_switches_gives_the_same_curve_bit_for_bit(tmp_path: Path) -> None:
    run = Run(SMALL, (0,), tmp_path, watched=True)
    first = [step(run) for _ in range(13)]
    again = [step(run, back=8), *(step(run) for _ in range(7))]
    assert [numbers(each) for each in again] == [numbers(each) for each in first[5:]], "from 5, the checkpoint before 8"
    fixed = step(run, toggled=FIXED, back=12)
    assert fixed.step == 10
    assert fixed.events == ["engine.logprobs_mode: raw_logprobs -> processed_logprobs"]
    run.close()
    folders = [[r.step for r in read_records(tmp_path / f"run-00{n}")] for n in (1, 2, 3)]
    assert folders == [[*range(13)], [*range(13)], [*range(11)]], "each run folder is a whole run"


def test_a_curve_that_is_not_yours_does_not_go_back() -> None:
    run = Run(SMALL, (0,), None, watched=False)
    assert [step(run).step, step(run, back=0).step] == [0, 1]


def test_checkpoints_stay_within_their_memory_and_the_first_step_is_always_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(SMALL, seeds=(0,))
    one = sum(tensor.nbytes for tensor in trainer.state().tensors.values())
    monkeypatch.setattr(worker, "_MOST_BYTES", 4 * one)
    kept = Checkpoints()
    for at in range(200):
        trainer.step_number = at
        kept.take(trainer)
        assert kept._bytes() <= 4 * one
    assert kept.back(100)[0] >= 60
    assert kept.back(0)[0] == 0
    monkeypatch.setattr(worker, "_MOST_BYTES", one // 2)
    for at in (5, 10, 15, 20):
        trainer.step_number = at
        kept.take(trainer)
    assert kept.back(20)[0] == 0, "a policy too large to be kept twice goes back to its start"


@on_stage
async def test_on_the_screen_yours_goes_on_from_the_step_that_was_stepped_back_to(stage: StageMaker) -> None:
    async with stage(steps=40) as s:
        before = s.lab.tracks["yours"].series.mean("reward/mean").copy()
        await s.press("j")
        assert "first step back with , or [" in s.text()
        await s.press("left_square_bracket", "comma")
        assert "back at step 28" in s.text()
        await s.press("1")
        assert s.lab.now == 28
        s.lab.driver.set_speed(0.001)
        await s.press("j")
        s.lab.driver.play(False)
        others = s.lab.tracks["reference"].series.step
        await s.until(lambda: s.lab.now == 25)
        assert "again from step 25" in s.text()
        assert "w is yours as it was; y goes on from step 25" in s.text()
        assert "w yours before" in s.text()
        was, yours = (s.lab.tracks[name].series for name in ("was", "yours"))
        assert np.array_equal(was.mean("reward/mean"), before)
        assert np.array_equal(yours.mean("reward/mean")[:25], before[:25])
        assert yours.mean("reward/mean")[-1] > before[25], "with the fix that was switched on"
        assert {mark.letter for mark in s.lab.marks} == {"J", "P"}
        for _ in range(14):
            s.lab.driver.step()
        await s.until(lambda: s.lab.now == 39)
        assert s.lab.tracks["reference"].series.step == others, "the others wait"
        await s.advance(1)
        assert s.lab.tracks["reference"].series.step == s.lab.now == 40
        await s.press("0")
        assert "was" not in s.lab.tracks


@on_stage
async def test_a_run_that_has_diverged_can_go_back(stage: StageMaker) -> None:
    async with stage() as s:
        s.lab.load(s.lab.yours.with_values({"seed": 666}))
        await s.advance(31)
        assert s.lab.tracks["yours"].series.diverged
        s.lab.driver.set_speed(0.001)
        await s.press("left_square_bracket", "j")
        await s.until(lambda: 0 <= s.lab.now <= 30 and "was" in s.lab.tracks)
        assert not s.lab.tracks["yours"].series.diverged
        assert s.lab.tracks["was"].series.diverged


@on_stage
async def test_stepping_back_is_forgotten_when_the_run_goes_on(stage: StageMaker) -> None:
    async with stage(steps=12) as s:
        await s.press("comma", "comma", "right_square_bracket")
        assert s.lab.chosen == 11
        await s.press("full_stop")
        await s.until(lambda: s.lab.step == 12)
        assert s.lab.chosen is None
        assert "was" not in s.lab.tracks


def test_a_run_whose_members_have_all_diverged_goes_back_too(tmp_path: Path) -> None:
    run = Run(SMALL, (0,), tmp_path, watched=True)
    first = numbers(step(run))
    run._trainer.alive.clear()
    assert run.step(None, look=False) is None
    assert numbers(step(run, back=0)) == first
    run.close()
