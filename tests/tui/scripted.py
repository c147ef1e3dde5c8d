"""Scripted training: records from a closed form in the scenario's settings, so that a screen has curves without torch.

The numbers follow the case study's direction (each fix moves what it should), but they are a script, not a simulation:
they test the screens, never a claim about skew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from skewsim.records import StepRecord
from skewsim.settings import Scenario, changes
from tui.driver import Back, Training


def skew_of(scenario: Scenario) -> float:
    """A size of skew in nats: each cause adds its part."""
    engine, skew = scenario.engine, scenario.skew
    return (
        0.25 * (engine.logprobs_mode == "raw_logprobs") * abs(engine.temperature - 1) / 0.2
        + 0.05 * engine.enable_prefix_caching
        + 0.01 * engine.lag
        + 0.03 * (engine.head_dtype != "float32")
        + skew.scale
    )


def scripted(scenario: Scenario, seeds: tuple[int, ...]) -> Training:
    """A generator like `tui.process.TrainingProcess.train`: toggles are sent, a seed of 666 diverges at step 30.

    It can go back to every fifth step.
    """
    reward = dict.fromkeys(seeds, 0.55)
    kept = dict[int, dict[int, float]]()
    events: list[str] = []
    step = 0
    while True:
        kept[step] = dict(reward)
        order = yield [
            _record(scenario, step, seed, reward, events) for seed in seeds if not (seed == 666 and step > 30)
        ]
        step += 1
        if isinstance(order, Back):
            step = order.step - order.step % 5
            reward = dict(kept[step])
        toggled = order.scenario if isinstance(order, Back) else order
        events = [] if toggled is None else changes(scenario, toggled)
        scenario = toggled or scenario


def _record(scenario: Scenario, step: int, seed: int, reward: dict[int, float], events: list[str]) -> StepRecord:
    skew = skew_of(scenario)
    goal = max(0.02, 0.98 - 2.2 * skew)
    reward[seed] += (goal - reward[seed]) * 0.06
    wave = 0.02 * math.sin(step * 1.7 + seed)
    noise = "invented" if scenario.skew.active else None
    metrics: dict[str, float | None] = {
        "reward/mean": min(max(reward[seed] + wave, 0.0), 1.0),
        "reward/partial": min(max(reward[seed] + 0.1 + wave, 0.0), 1.0),
        "update/clip_rate": min(skew * 0.8 + abs(wave) * 0.3, 1.0),
        "update/ratio_mean": 1 + skew,
        "skew/kl_k3": skew**2 / 2 + 1e-5,
        "skew/bias": -skew,
        "skew/logprob_diff_mean": skew * 0.8,
        "policy/entropy": 1.1 - 0.4 * reward[seed] + wave,
        "optim/grad_norm": 0.4 + skew * 3 + abs(wave),
        "optim/grad_cosine": 1 / (1 + skew),
        "ratio/ess": math.exp(-(skew**2) * 8),
        "lag/mean": float(scenario.engine.lag),
        "lag/max": float(scenario.engine.lag),
    }
    diverged = "loss is not finite" if seed == 666 and step == 30 else None
    if diverged:
        metrics["optim/grad_norm"] = float("nan")
    return StepRecord(
        step=step,
        seed=seed,
        metrics=metrics,
        scenario=scenario.name,
        events=list(events),
        diverged=diverged,
        sources={"engine": "computed", **({"noise": noise} if noise else {})},
    )


def steps_of(scenario: Scenario, count: int) -> Iterator[list[StepRecord]]:
    """The first records of a scripted run of the scenario's seed."""
    run = scripted(scenario, (scenario.seed,))
    for _ in range(count):
        yield list(next(run))  # type: ignore[arg-type]


def still(values: np.ndarray) -> list[float]:
    """A numpy column as plain floats, NaN kept."""
    return [float(v) for v in values]
