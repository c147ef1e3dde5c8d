"""What works without torch: logs, tables, profiles, gates, advice, verdicts of recorded runs.

Each case is a script that runs in a fresh interpreter in which the heavy packages cannot be imported, as in the light
installation (`pip install skewsim` without extras). `run_light` is what a further case needs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import skewsim
from skewsim.records import StepRecord
from skewsim.runs.recording import RunFolder
from skewsim.scenarios import ladder_scenarios
from skewsim.skew.sequences import SequenceRecord, write_sequences
from skewsim.skew.tokens import TokenTable

HEAVY = ("torch", "transformers", "safetensors", "uv", "textual", "httpx2", "matplotlib")
NEEDS_TORCH = {
    "LossInputs", "LossOutputs", "RolloutEngine", "RolloutRequest", "Rollouts", "SimEngine", "Trainer",
    "compute_advantages", "compute_loss", "compute_weights", "train",
}  # fmt: skip
"""The public names that simulate or train; every other one is light."""
LIGHT_MODULES = (
    *("errors", "files", "records", "scenarios", "settings", "share", "diagnose", "learn.look"),
    *(
        f"skew.{name}"
        for name in (
            "advise",
            "fitting",
            "gate",
            "metric_table",
            "metrics",
            "placing",
            "profile",
            "published",
            "sequences",
            "tokens",
        )
    ),
    *(f"runs.{name}" for name in ("experiment", "figures", "ladder", "prediction", "recording")),
)
WITHOUT = f"""
import sys
from importlib.abc import MetaPathFinder

class Without(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Without())
"""


def run_light(code: str, folder: Path) -> str:
    """What a script prints in an interpreter without the heavy packages; the test fails if the script does."""
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, a log of sequences and a recorded ladder, as other programs left them."""
    folder = tmp_path_factory.mktemp("light")
    rng = np.random.default_rng(0)
    trainer = np.log(rng.uniform(0.02, 0.98, (40, 12)))
    engine = np.minimum(trainer + rng.normal(0, 1e-4, trainer.shape), 0)
    TokenTable.from_rollouts(
        tokens=rng.integers(0, 50, trainer.shape),
        mask=np.ones_like(trainer),
        engine_logprobs=engine,
        trainer_logprobs=trainer,
    ).save(folder / "table.parquet")
    rows = (
        SequenceRecord(tokens=np.arange(12), engine_logprobs=theirs, trainer_logprobs=ours, prompt_tokens=np.arange(4))
        for ours, theirs in zip(trainer, engine, strict=True)
    )
    write_sequences(rows, folder / "log.jsonl")
    record_ladder(folder / "ladder")
    return folder


def record_ladder(path: Path) -> None:
    rungs = ladder_scenarios(objective="grpo", steps=20)
    keys = ("reward/mean", "policy/entropy", "update/clip_rate", "skew/kl_k3", "skew/logprob_diff_mean", "lag/mean")
    with RunFolder(path, rungs[0], seeds=(0, 1), rungs=tuple(s.name for s in rungs)) as run:
        for k in range(20):
            run.append([StepRecord(k, s.name, seed, dict.fromkeys(keys, k / 20)) for s in rungs for seed in (0, 1)])


def test_every_light_module_and_name_loads(folder: Path) -> None:
    modules = "".join(f"import skewsim.{name}\n" for name in LIGHT_MODULES)
    names = sorted(set(skewsim.__all__) - NEEDS_TORCH)
    run_light(f"{modules}\nimport skewsim\nfor name in {names}: getattr(skewsim, name)", folder)


def test_metrics_of_arrays(folder: Path) -> None:
    code = """
import numpy as np, skewsim
trainer, engine = np.full((2, 3), -1.0), np.full((2, 3), -1.1)
found = skewsim.skew_metrics(trainer, engine, np.ones((2, 3)))
print(round(found["bias"], 6), len(found), skewsim.by_probability(trainer, trainer - engine)[2].tokens)
"""
    assert run_light(code, folder).split() == ["0.1", "14", "6"]


def test_a_profile_of_a_table_saved_loaded_gated_and_advised_on(folder: Path) -> None:
    code = """
import skewsim
table = skewsim.TokenTable.load("table.parquet")
skewsim.save_profile(skewsim.fit_profile(table, name="mine", provenance={}, bootstrap=20), "mine.json")
profile = skewsim.load_profile("mine.json")
print(profile.describe()[0])
print(skewsim.load_profile(skewsim.shipped_profiles()[0]).verdict)
print(skewsim.gate(table, maximum=["kl_k3=1e-2"]).passed, len(skewsim.advise(profile, 100).rows) > 5)
"""
    assert run_light(code, folder).splitlines()[-1] == "True True"


@pytest.mark.parametrize("source", ["table.parquet", "log.jsonl"])
def test_a_diagnosis_of_a_table_and_of_a_log(folder: Path, source: str) -> None:
    code = f"import skewsim; print(skewsim.diagnose(skewsim.load_source({source!r})).causes[0].name)"
    assert run_light(code, folder).strip() == "healthy"


def test_a_recorded_ladder_is_read_and_judged(folder: Path) -> None:
    code = """
import skewsim
from pathlib import Path
from skewsim.runs.recording import run_status, summarise
records = list(skewsim.read_records(Path("ladder")))
result = skewsim.Ladder(seeds=2, steps=20).result(records)
print(len(records), run_status(Path("ladder")), *(rung.verdict for rung in result.rungs))
assert summarise(records)["members"][0]["last_tenth"]["reward/mean"] == result.rungs[0].reward_final
"""
    assert run_light(code, folder).split() == ["240", "finished", *["identical"] * 6]
