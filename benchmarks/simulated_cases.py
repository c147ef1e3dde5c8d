"""Labelled cases of the faults that people report, made by running the simulator with the fault switched on.

A case is a function of (label, seed): the named scenario of the fault (`skewsim.scenarios.FAULTS`) with other dice for
its strength, the temperature and the sizes, trained for a few steps and logged as a framework would. The healthy cases
have the same settings without the fault: packs that are isolated, replicas that all get their updates, two turns
scored as they were said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.field_cases import FieldCase
from skewsim.learn.trainer import Trainer
from skewsim.scenarios import FAULTS
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceLog, SequenceRecord

Values = dict[str, Any]
Rng = np.random.Generator

MOST_PROMPTS = 100_000
"""A pool in which hardly any prompt comes twice, as in a data set."""
STEPS = {"stale_replica": 4, "weights_not_delivered": 4}
"""Training steps in the log; 1 where the fault is there from the first."""
BESIDE = {"moe_routing": ("compute_dtype",)}
"""Causes that the fault comes with and that may explain more: what makes experts flip also rounds every token."""
WHERE = {
    "different_context": ("turn", "position in its turn", "position", "from the end"),
    "packed_rows": ("pack_index", "sequence modulo"),
    "moe_routing": ("routes_differ", "position", "prompt"),
    "stale_replica": ("replica", "sequence modulo"),
    "weights_not_delivered": ("step", "version"),
}
"""Columns that may stand first in `where`."""


def _placeholder(rng: Rng) -> Values:
    value = float(rng.choice([0.0, 0.0, -9999.0, 1.0]))
    return {
        "engine.placeholder_logprobs": str(rng.choice(["eos", "missing"])),
        "engine.placeholder_value": value,
        "engine.placeholder_share": float(rng.choice([0.03, 0.1])),
    }


def _two_turns(rng: Rng) -> Values:
    return {"task.response_length": int(rng.choice([6, 12]))}


def _penalty(rng: Rng) -> Values:
    values: Values = {"engine.repetition_penalty": 1.0}
    name, sizes = [
        ("repetition_penalty", (1.1, 1.2, 1.3)),
        ("presence_penalty", (0.3, 0.5, 1.0)),
        ("frequency_penalty", (0.3, 0.5)),
    ][int(rng.integers(3))]
    return values | {f"engine.{name}": float(rng.choice(sizes))}


def _packs(rng: Rng) -> Values:
    return {"trainer.pack_size": int(rng.choice([2, 3, 4, 8]))}


def _dropout(rng: Rng) -> Values:
    return {"trainer.dropout": float(rng.choice([0.002, 0.005, 0.02, 0.1]))}


def _replicas(rng: Rng) -> Values:
    return {"engine.replicas": int(rng.choice([2, 4, 8]))}


def _sync(rng: Rng) -> Values:
    return {"engine.weight_sync": str(rng.choice(["none", "base_only", "partial"]))}


def _routing(rng: Rng) -> Values:
    """One side in bfloat16, or its router alone; or routes that are none, replayed."""
    fault = str(rng.choice(["zeros", "shifted", "padded"]))
    own: Values = {"engine.moe_router_dtype": None}
    kinds: list[Values] = [
        {},
        own | {"engine.dtype": "bfloat16"},
        own | {"trainer.dtype": "bfloat16"},
        own | {"trainer.moe_router_dtype": "bfloat16"},
        own | {"trainer.router_replay": "R3", "engine.routed_experts_fault": fault},
    ]
    return {"trainer.num_prompts": 48} | kinds[int(rng.integers(len(kinds)))]


def _healthy(rng: Rng) -> Values:
    kinds: list[Values] = [
        {"trainer.packing": "isolated"},
        {"engine.replicas": 4},
        {"task.name": "two_turns", "task.response_length": 6},
        {"task.name": "reverse_until_zero"},
        {"trainer.chat_template": "drop_thinking"},
    ]
    return {"engine.lag": 0, "engine.update_at_token": None} | kinds[int(rng.integers(len(kinds)))]


DICE: dict[str, Callable[[Rng], Values]] = {
    "healthy": _healthy,
    "placeholder_logprobs": _placeholder,
    "different_context": _two_turns,
    "one_sided_processor": _penalty,
    "packed_rows": _packs,
    "stochastic_trainer": _dropout,
    "stale_replica": _replicas,
    "weights_not_delivered": _sync,
    "moe_routing": _routing,
}


def make_simulated_case(label: str, seed: int) -> FieldCase:
    """The case of this label and seed."""
    rng = np.random.default_rng((seed, sum(label.encode())))
    dice = DICE[label](rng) | {
        "engine.temperature": float(rng.choice([0.7, 0.8, 1.0])),
        "task.pool_size": MOST_PROMPTS,
        "seed": seed,
    }
    start = FAULTS[label].scenario(label) if label in FAULTS else Scenario()
    log = simulated_log(start.with_values(dice), STEPS.get(label, 1))
    detail = ", ".join(f"{path.partition('.')[2]}={value}" for path, value in dice.items() if "." in path)
    accepted = (label, *BESIDE.get(label, ()))
    return FieldCase(label, seed, log, accepted, WHERE.get(label, ()), detail)


def simulated_log(scenario: Scenario, steps: int) -> SequenceLog:
    """Every step's sequences; where there are several, each says its step."""
    trainer, records = Trainer(scenario), list[SequenceRecord]()
    for step in range(steps):
        trainer.step()
        made = trainer.look().sequences.records
        records += [replace(r, places={**r.places, "step": step}) for r in made] if steps > 1 else made
    trainer.close()
    return SequenceLog(tuple(records))
