"""Closed screens and restarted runs leave nothing in memory. benchmarks/tui_soak.py checks this over an hour."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from skewsim.learn.trainer import Trainer
from tui.app import KeyLine
from tui.lab import opening
from tui.worker import RunHost

from .conftest import StageMaker
from .stagecraft import on_stage


@pytest.mark.slow
@on_stage
async def test_the_footer_lets_go_of_the_keys_it_no_longer_shows(stage: StageMaker) -> None:
    async with stage(steps=5) as s:
        footer = s.app.explore.query_one(KeyLine)
        for _ in range(5):
            await s.press("a", "escape")
        held = getattr(footer, "__watchers")["compact"]
        assert {id(key) for key, _ in held} == {id(key) for key in footer.query("FooterKey")}


def test_the_trainer_of_an_earlier_run_is_let_go_without_a_collection(monkeypatch: Any) -> None:
    trainers: list[weakref.ref[Trainer]] = []
    made = Trainer.__init__

    def make(self: Trainer, *arguments: Any, **more: Any) -> None:
        trainers.append(weakref.ref(self))
        made(self, *arguments, **more)

    monkeypatch.setattr(Trainer, "__init__", make)
    worker, scenario = RunHost(), opening().model_dump(mode="json")
    gc.disable()
    for run in range(3):
        assert worker.answer({"run": run, "scenario": scenario, "seeds": [0], "out": None, "watched": True}) == {}
        assert "records" in worker.answer({"run": run, "toggle": None, "look": True})
        assert worker.answer({"run": run}) == {}
    gone = [trainer() is None for trainer in trainers]
    gc.enable()
    assert gone == [True] * 3
