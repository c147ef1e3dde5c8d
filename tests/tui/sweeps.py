"""A made-up sweep: the higher the learning rate and the lag, the more of its four members collapse."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skewsim.runs.outcome import WARNINGS
from skewsim.sweeps.chunk import Chunk
from skewsim.sweeps.folder import SweepFolder
from skewsim.sweeps.plan import SweepSettings, make_sweep

STEPS = 40
AXES = [
    {"path": "trainer.learning_rate", "values": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
    {"path": "engine.lag", "values": [0, 2, 4, 8]},
    {"path": "trainer.objective", "values": ["grpo", "gspo"]},
]


def make_sweep_folder(path: Path) -> None:
    data = {"name": "made-up", "title": "Learning rate against lag", "steps": STEPS, "seeds": 4, "axis": AXES}
    sweep = make_sweep(SweepSettings.model_validate(data))
    folder = SweepFolder(path, sweep)
    with folder.writing():
        for cell in sweep.cells:
            chunk = Chunk(cell.scenario, tuple(sweep.seeds()), sweep.stop)
            fallen = min(4, max(0, sum(cell.place[:2]) - 3 + cell.place[2]))
            columns = {"member": [], "step": [], "diverged": [], "reward/mean": [], **{key: [] for key in WARNINGS}}
            for n, key in enumerate(chunk.keys):
                reward = np.linspace(0.5, 0.8, STEPS)
                reward[25:] = 0.0 if n < fallen else reward[25:]
                columns["member"] += [key] * STEPS
                columns["step"] += range(STEPS)
                columns["diverged"] += [0] * STEPS
                columns["reward/mean"] += reward.tolist()
                for late, metric in enumerate(WARNINGS):
                    columns[metric] += [2.0 if n < fallen and step > 15 + late else 1.0 for step in range(STEPS)]
            order = sorted(
                range(len(columns["member"])), key=lambda row: (columns["member"][row], columns["step"][row])
            )
            folder.append(chunk, {name: [values[row] for row in order] for name, values in columns.items()})
