"""A real vLLM server on loopback: the same numbers as the trainer's, and one line for what it was not started for.

The server runs in a process group of its own, on a port that was free, and is killed at the end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.engines import resolve_engine
from harness.mixture import find_swaps
from harness.places import require, worker_environment
from harness.specs import find_spec
from skewsim.diagnose.models import ModelScorer
from skewsim.engine.rollouts import FINISH_LENGTH, RolloutEngine, RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import EngineError, UserError
from skewsim.learn.scoring import score
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import Scenario
from skewsim.skew.sequences import SequenceRecord
from skewsim.task import Task

pytestmark = pytest.mark.engine

SCENARIO = Scenario().with_values({"task.response_length": 64, "engine.update_at_token": 20})
TASK = Task(SCENARIO.task)
OLD, NEW = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
GROUP = 4
ARGUMENTS = [
    *("--dtype", "float32", "--max-model-len", "160", "--max-num-seqs", "64", "--host", "127.0.0.1"),
    *("--logprobs-mode", "processed_logprobs", "--no-enable-prefix-caching", "--no-async-scheduling"),
    *("--max-num-batched-tokens", "8192"),  # a CPU build dies of a seeded request whose prefill comes in two parts
    *("--enforce-eager", "--skip-tokenizer-init", "--disable-uvicorn-access-log"),
]


@pytest.fixture(scope="module")
def server(engine_name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    NEW.save(folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = find_spec(engine_name)
    command = [str(require(spec).python), "-m", "vllm.entrypoints.openai.api_server", *ARGUMENTS]
    environment = worker_environment(spec) | {"VLLM_SERVER_DEV_MODE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--model", str(folder / "model"), "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(process, f"http://127.0.0.1:{port}/health", folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.5)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def engine(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RolloutEngine]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SKEWSIM_ENGINE_TIMEOUT", "60")
    engine = resolve_engine(server)
    yield engine
    engine.close()


def request(*, step: int = 0, new: Tensor | None = None) -> RolloutRequest:
    ids = TASK.sample_prompts((0,), step=step, num_prompts=8)
    update = None if new is None else WeightUpdate(new, 1)
    return RolloutRequest(step, (0,), ids, TASK.pool[ids], GROUP, TASK.max_tokens, update=update, update_at=20)


def skew(rollouts: Rollouts, policy: Policy) -> Tensor:
    """Absolute, (N, T), against the simulator's float32 forward pass."""
    weights = policy.weights(dtype="float32", head_dtype="float32")
    scored = score(weights, rollouts, group=GROUP, temperature=SCENARIO.engine.temperature)
    return (scored.logprobs - rollouts.engine_logprobs).abs()


def test_a_server_loads_the_policy_and_agrees_with_the_trainer_to_the_numeric_floor(engine: RolloutEngine) -> None:
    engine.start(SCENARIO, OLD, version=0)
    rollouts = engine.generate(request())
    assert rollouts.mask.sum() == 8 * GROUP * TASK.max_tokens
    assert (rollouts.finish_reasons == FINISH_LENGTH).all()
    assert skew(rollouts, OLD).mean() < 1e-5


def test_each_request_is_swapped_at_a_token_that_the_replayed_mixture_finds(
    engine: RolloutEngine, tmp_path: Path
) -> None:
    """A client hears of tokens late, so it cannot say where the swap fell; the oracle can, to the numeric floor."""
    OLD.save(tmp_path / "old")
    NEW.save(tmp_path / "new")
    models = [ModelScorer.from_folder(tmp_path / name) for name in ("old", "new")]
    engine.start(SCENARIO, OLD, version=0)
    caught = 0
    for attempt in range(5):  # on a busy machine all requests may be through before the update arrives
        rollouts = engine.generate(request(step=2 * attempt, new=NEW.flat))
        each = zip(rollouts.prompts[0], rollouts.tokens[0], rollouts.engine_logprobs[0], strict=True)
        log = [
            SequenceRecord(tokens=t.numpy(), engine_logprobs=lp.double().numpy(), prompt_tokens=p.numpy())
            for p, t, lp in each
        ]
        swaps = find_swaps(*models, log, temperature=SCENARIO.engine.temperature)
        assert max(swap.rms for swap in swaps) < 1e-5
        under_way = [swap for swap in swaps if 0 < swap.at < TASK.max_tokens]
        assert all(swap.kept for swap in under_way)
        assert skew(engine.generate(request(step=2 * attempt + 1)), NEW).mean() < 1e-5, "the next rollout is all new"
        caught += len(under_way)
        if caught:
            break
        engine.generate(request(step=99, new=OLD.flat))
    assert caught


def test_what_the_server_was_started_with_is_seen_and_another_logprobs_mode_refused(engine: RolloutEngine) -> None:
    with pytest.raises(UserError, match=r"engine\.logprobs_mode='raw_logprobs': .* runs with 'processed_logprobs'"):
        engine.start(SCENARIO.with_values({"engine.logprobs_mode": "raw_logprobs"}), OLD, version=0)
    with pytest.raises(UserError, match=r"engine\.enable_prefix_caching=True: .* start it with --enable-prefix"):
        engine.start(SCENARIO.with_values({"engine.enable_prefix_caching": True}), OLD, version=0)


def test_weights_that_the_server_cannot_find_are_one_line(engine: RolloutEngine, server: str, tmp_path: Path) -> None:
    """The last test: vLLM's own engine does not survive it."""
    from harness.address import split_address
    from harness.server_session import ServerSession

    with (
        ServerSession(split_address(server)) as session,
        pytest.raises(EngineError, match="POST /collective_rpc") as caught,
    ):
        session.update(tmp_path / "nowhere", version=1, clear_cache=False)
    assert "\n" not in str(caught.value)
