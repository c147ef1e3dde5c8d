"""A server is an engine like the others: its rows are whole or an error of one line within ten seconds, its weights
swap in flight, what it fixed at its start is looked at, and the key stays out of sight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness.address import split_address
from harness.choices import ServerChoice
from harness.engines import choose, resolve_engine
from harness.measure import measure
from harness.requests import InFlightUpdate, Request, Row
from harness.server_session import ServerLimits, ServerSession
from skewsim.engine.rollouts import FINISH_ABORT, FINISH_LENGTH, RolloutRequest, Rollouts, WeightUpdate
from skewsim.errors import EngineError, UserError
from skewsim.learn.trainer import train
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import EngineSettings, Scenario
from skewsim.task import Task
from tests.harness.fake_server import Manner, Server, logprob, token

QUICK = ServerLimits(waits_s=(0.01, 0.02))
SILENCE_S = {"hang": 1.5, "stalls": 1.5, "empty events": 1.5, "blank lines": 1.5}
"""Of what sends nothing; all else has the time that it has by default."""
ASKED = [Request(i, [5, 6, 7 + i], seed=i) for i in range(8)]
SETTINGS = EngineSettings(temperature=1.0)
OLD, NEW = (Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
CONFIG = {
    "model_config": {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "quantization": None},
    "cache_config": {"cache_dtype": "auto", "enable_prefix_caching": False},
    "scheduler_config": {"async_scheduling": False},
    "device_config": {"device": "cpu"},
}
"""The server's own configuration, as far as it is read."""


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "SKEWSIM_API_KEY", "SKEWSIM_ENGINE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**manner: object) -> Server:
        servers.append(Server(Manner(**manner)))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def answers(server: Server, *, max_tokens: int = 6, update: InFlightUpdate | None = None) -> list[Row]:
    with ServerSession(split_address(server.url), SETTINGS, limits=QUICK) as session:
        return sorted(session.generate(ASKED, SETTINGS, max_tokens=max_tokens, update=update), key=lambda r: r.id)


def alive() -> list[threading.Thread]:
    """The clients' threads."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("server http")]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ids", ["token_ids", "token_id:N"])
def test_rows_are_what_the_server_answered_in_each_of_its_forms(
    serve: Callable[..., Server], stream: bool, ids: str
) -> None:
    for row, asked in zip(answers(serve(stream=stream, ids=ids)), ASKED, strict=True):
        assert row.tokens == [token(asked.prompt, asked.seed or 0, t) for t in range(6)]
        assert row.logprobs == pytest.approx([logprob(t, "first") for t in range(6)])
        assert (row.finish, row.versions) == ("length", [0] * 6)


def test_requests_are_under_way_together(serve: Callable[..., Server]) -> None:
    server = serve(token_s=0.02)
    answers(server)
    assert server.manner.most == len(ASKED)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("500", r"answered 500: CUDA error out of memory, 3 times"),
        ("429", r"answered 429: busy, 3 times"),
        ("400", r"answered 400: logprobs is not allowed"),
        ("reset", r"cannot be reached or broke off \(.*Error.*\), 3 times"),
        ("hang", r"sent nothing for 1\.5 s; SKEWSIM_ENGINE_TIMEOUT"),
        ("stalls", r"sent nothing for 1\.5 s"),
        ("half", r"broke off after 4 tokens, 3 times"),
        ("no_logprobs", r"returned no logprobs"),
        ("null", r"returned no logprobs for some tokens"),
        ("ragged", r"sent 1 tokens with 2 logprobs"),
        ("html", r"answered what is no JSON object: '<html>It works!</html>'"),
        ("array", r"answered what is no JSON object"),
        ("fewer", r"sent 5 tokens where 6 were asked for"),
        ("more", r"sent 7 tokens where 6 were asked for"),
        ("stops", r"sent 5 tokens where 6 were asked for: it stopped at a token of its own choice"),
        ("prompt", r"changed the prompt"),
        ("negative id", r"sent -1 as the id of a token"),
        ("huge id", r"sent 1099511627776 as the id of a token"),
        ("above 0", r"sent 0\.5 as a log-probability; none is above 0"),
        ("nan", r"sent nan as a log-probability"),
        ("huge", r"sent -10+\.\.\.0+ as a log-probability"),
        ("empty events", r"sent nothing for 1\.5 s|MiB without a token"),
        pytest.param("blank lines", r"sent nothing for 1\.5 s|MiB without a token", marks=pytest.mark.slow),
        ("long line", r"sent a line of more than 32 MiB"),
        ("large", r"sent an answer of more than 32 MiB"),
        ("bomb", r"sent an answer of more than 32 MiB"),
        ("zstd", r"answered in the encoding 'zstd', which nobody asked for"),
        ("no gzip", r"answered with bytes that are not gzip"),
    ],
)
def test_whatever_a_server_does_wrong_is_one_line_and_the_rows_before_it_are_kept(
    serve: Callable[..., Server], how: str, said: str
) -> None:
    server, rows = serve(how=how, good=3), list[Row]()
    limits = ServerLimits(silence_s=SILENCE_S.get(how, QUICK.silence_s), waits_s=QUICK.waits_s, concurrency=1)
    with ServerSession(split_address(server.url), SETTINGS, limits=limits) as session:
        with pytest.raises(EngineError, match=said) as caught:
            rows.extend(session.generate(ASKED, SETTINGS, max_tokens=6))
        assert alive()
    assert [row.id for row in rows] == [0, 1, 2]
    assert all(len(row.tokens) == len(row.logprobs) == 6 for row in rows)
    assert not alive()
    assert str(caught.value).startswith(f"server {server.url} ")
    assert "\n" not in str(caught.value)


def test_what_a_server_sent_while_this_process_was_stopped_counts_before_any_judgement(
    serve: Callable[..., Server],
) -> None:
    server = serve(token_s=0.2)
    limits = ServerLimits(silence_s=1.5, waits_s=QUICK.waits_s)
    with ServerSession(split_address(server.url), SETTINGS, limits=limits) as session:
        session._loop.call_soon_threadsafe(session._loop.call_later, 0.5, time.sleep, 3.5)
        assert len(list(session.generate(ASKED, SETTINGS, max_tokens=6))) == len(ASKED)


@pytest.mark.parametrize("info", [None, CONFIG])
def test_a_server_that_compiles_for_its_first_answer_is_waited_for_while_it_answers_anything(
    serve: Callable[..., Server], info: dict[str, object] | None
) -> None:
    limits = ServerLimits(silence_s=0.2, first_s=5.0, waits_s=QUICK.waits_s)
    with ServerSession(split_address(serve(first_s=0.6, info=info).url), SETTINGS, limits=limits) as session:
        assert len(list(session.generate(ASKED, SETTINGS, max_tokens=6))) == len(ASKED)
    limits = ServerLimits(silence_s=0.2, first_s=0.3, waits_s=QUICK.waits_s)
    with pytest.raises(EngineError, match=r"sent nothing for 0\.2 s"):
        ServerSession(split_address(serve(first_s=60.0, info=info).url), SETTINGS, limits=limits)


def test_the_limits_that_nobody_set_give_up_within_ten_seconds() -> None:
    limits = ServerLimits()
    assert limits.silence_s < 9
    assert limits.connect_s + sum(limits.waits_s) < 9


def test_a_fault_that_passes_is_not_noticed(serve: Callable[..., Server]) -> None:
    server = serve(how="500", good=2)
    threading.Timer(0.02, lambda: setattr(server.manner, "how", "well")).start()
    limits = ServerLimits(waits_s=(0.05, 0.1, 0.2, 0.4))
    with ServerSession(split_address(server.url), SETTINGS, limits=limits) as session:
        assert len(list(session.generate(ASKED, SETTINGS, max_tokens=6))) == len(ASKED)


def test_nobody_there_is_one_line(serve: Callable[..., Server]) -> None:
    server = serve()
    server.stop()
    with pytest.raises(EngineError, match=r"cannot be reached or broke off \(ConnectError"):
        ServerSession(split_address(server.url), limits=QUICK)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "SKEWSIM_API_KEY"])
def test_the_key_comes_from_the_environment_and_never_shows(
    serve: Callable[..., Server], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(key="sk-right")
    with pytest.raises(EngineError, match=r"answered 401.*none is set"):
        ServerSession(split_address(server.url), limits=QUICK)
    monkeypatch.setenv(name, "sk-wrong")
    with pytest.raises(EngineError, match=r"answered 401: wrong key: Bearer \*\*\* ") as caught:
        ServerSession(split_address(server.url), limits=QUICK)
    assert "sk-wrong" not in repr(caught.value)
    monkeypatch.setenv(name, "sk-right")
    with ServerSession(split_address(server.url), limits=QUICK) as session:
        assert "sk-right" not in repr(session.info)
    with pytest.raises(UserError, match="nothing secret belongs into an address") as refused:
        ServerSession(split_address("http://me:sk-right@127.0.0.1:9/v1"))
    assert "sk-right" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://", "http://host", "http://host:x/v1", "ftp://host/v1", "http://host/v1?a=b"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(UserError):
        resolve_engine(url)


def test_a_model_whose_name_cannot_be_sent_back_is_one_line(serve: Callable[..., Server]) -> None:
    with pytest.raises(EngineError, match="answered without a list of models"):
        answers(serve(models=("\ud800",)))


def test_several_models_need_a_name(serve: Callable[..., Server]) -> None:
    server = serve(models=("a", "b"))
    with pytest.raises(UserError, match=r"needs a model, as in .*#MODEL; allowed: a, b"):
        ServerSession(split_address(server.url), limits=QUICK)
    with ServerSession(split_address(f"{server.url}#b"), limits=QUICK) as session:
        assert session.info["model"] == "b"


def test_what_the_server_fixed_at_its_start_is_refused_reported_or_listed_as_not_known(
    serve: Callable[..., Server],
) -> None:
    plain = serve()
    with ServerSession(split_address(plain.url), SETTINGS, limits=QUICK) as session:
        assert session.info["logprobs_mode"] == "processed_logprobs"
        assert "dtype" in session.info["not_known"]
    with pytest.raises(UserError, match=r"engine\.logprobs_mode='processed_logprobs': .* runs with 'raw_logprobs'"):
        ServerSession(split_address(serve(raw=True).url), SETTINGS, limits=QUICK)
    telling = serve(info=CONFIG)
    asked = SETTINGS.model_copy(update={"async_scheduling": True})
    with ServerSession(split_address(telling.url), asked, limits=QUICK) as session:
        assert session.info["not_known"] == []
        assert session.overruled == {"async_scheduling": {"asked": True, "actual": False}}
    for name, value in (("dtype", "bfloat16"), ("enable_prefix_caching", True), ("quantization", "int8")):
        with pytest.raises(UserError, match=rf"engine\.{name}=.*fixed at its start; start it with --"):
            ServerSession(split_address(telling.url), SETTINGS.model_copy(update={name: value}), limits=QUICK)


def request(*, at: int = 0, new: torch.Tensor | None = None, seeds: tuple[int, ...] = (0,)) -> RolloutRequest:
    task = Task(Scenario().task)
    ids = task.sample_prompts(seeds, step=0, num_prompts=2)
    update = None if new is None else WeightUpdate(new, 1)
    return RolloutRequest(0, seeds, ids, task.pool[ids], 2, task.max_tokens, update=update, update_at=at)


def rollouts(server: Server, asked: RolloutRequest, **values: object) -> Rollouts:
    engine = ServerChoice(split_address(server.url), QUICK).open()
    scenario = Scenario().with_values({f"engine.{name}": value for name, value in values.items()})
    try:
        engine.start(scenario, OLD, version=0)
        return engine.generate(asked)
    finally:
        engine.close()


def posts(server: Server) -> list[str]:
    return [path for path, body in server.manner.calls if body is not None and path != "/v1/completions"]


def test_weights_arrive_in_mid_generation_and_each_token_has_its_version(serve: Callable[..., Server]) -> None:
    server = serve(token_s=0.03)
    found = rollouts(server, request(at=4, new=NEW.flat))
    late = found.weight_versions == 1
    assert (late[..., :3] == 0).all()
    assert late[..., -1].all()
    values = torch.tensor([logprob(t, "first") for t in range(12)]) / 0.8
    # the fake's folders are never called "first", so all of its logprobs here are the lower ones
    assert torch.allclose(found.engine_logprobs[0, 0], values - 0.25 / 0.8)
    assert (found.finish_reasons == FINISH_LENGTH).all()
    loads = [body["kwargs"]["weights_path"] for path, body in server.manner.calls if path == "/collective_rpc" and body]
    assert [path.rpartition("/")[2] for path in loads] == ["current", "next"]


def test_clear_cache_makes_keys_and_values_anew_where_pause_would_not(serve: Callable[..., Server]) -> None:
    server = serve(token_s=0.03)
    rollouts(server, request(at=4, new=NEW.flat), clear_cache=True)
    at = posts(server).index("/reset_prefix_cache")
    assert posts(server)[at - 1 : at + 3] == ["/pause", "/reset_prefix_cache", "/collective_rpc", "/resume"]
    assert ("/reset_prefix_cache", {"reset_running_requests": "true"}) in server.manner.calls


def test_abort_ends_requests_with_what_they_have_and_wait_lets_them_finish(serve: Callable[..., Server]) -> None:
    cut = rollouts(serve(token_s=0.03), request(at=4, new=NEW.flat), mode="abort")
    assert (cut.finish_reasons == FINISH_ABORT).all()
    assert (cut.mask.sum(-1) >= 3).all()
    assert (cut.mask.sum(-1) < 12).all()
    whole = rollouts(serve(token_s=0.01), request(at=4, new=NEW.flat), mode="wait")
    assert (whole.finish_reasons == FINISH_LENGTH).all()
    assert (whole.weight_versions == 0).all()


def test_an_update_that_fails_is_one_line_and_the_server_goes_on(serve: Callable[..., Server]) -> None:
    server = serve(fail_update="/collective_rpc")
    with pytest.raises(EngineError, match=r"POST /collective_rpc: answered 400: no such folder; .*TMPDIR"):
        rollouts(server, request())
    assert posts(server)[-1] == "/resume"


def test_a_plain_server_generates_and_refuses_to_learn(serve: Callable[..., Server]) -> None:
    server = serve(development=False)
    engine = resolve_engine(server.url)
    with pytest.raises(UserError, match=r"trainer\.learning_rate=0\.0005: .* takes no new weights") as caught:
        engine.start(Scenario(), OLD, version=0)
    assert "\n" not in str(caught.value)
    still = Scenario().with_values({"trainer.learning_rate": 0.0, "steps": 3, "trainer.num_prompts": 2})
    records = [step[0] for step in train(still, engine)]
    engine.close()
    assert [r.step for r in records] == [0, 1, 2]
    assert not posts(server)


def test_a_server_whose_engine_is_dead_is_not_taken_for_a_plain_one(serve: Callable[..., Server]) -> None:
    with pytest.raises(EngineError, match=r"GET /is_paused: answered 500: EngineCore died"):
        ServerSession(split_address(serve(dead=True).url), limits=QUICK)


def test_members_get_their_own_weights_one_after_another(serve: Callable[..., Server]) -> None:
    server = serve()
    engine = ServerChoice(split_address(server.url), QUICK).open()
    engine.start(Scenario(), Policy(OLD.config, torch.cat([OLD.flat, NEW.flat])), version=0)
    found = engine.generate(request(seeds=(0, 1)))
    engine.close()
    assert found.tokens.shape[0] == 2
    assert posts(server).count("/collective_rpc") == 2


def test_requests_longer_than_the_server_takes_are_refused(serve: Callable[..., Server]) -> None:
    engine = ServerChoice(split_address(serve().url), QUICK).open()
    with pytest.raises(UserError, match=r"takes 100 tokens a request"):
        engine.start(Scenario().with_values({"task.response_length": 64}), OLD, version=0)
    engine.close()


def test_a_server_is_measured_like_an_engine(serve: Callable[..., Server], tiny_model: Path, tmp_path: Path) -> None:
    server = serve(development=False)
    prompts = [[5, 6, 7 + i] for i in range(4)]
    found = measure(choose(server.url), tiny_model, out=tmp_path, prompts=prompts, num_tokens=48, max_tokens=6)
    assert len(found.table) == 48
    assert (
        sorted(set(found.table.engine_logprob.round(6)))
        == [round(logprob(t, "first") / 0.8, 6) for t in range(6)][::-1]
    )
    assert found.profile.provenance.engine == "server"
    assert "dtype" in found.info["not_known"]


def test_a_measurement_longer_than_the_server_takes_is_refused_before_it_writes(
    serve: Callable[..., Server], tiny_model: Path, tmp_path: Path
) -> None:
    server = serve(development=False)
    prompts = [[5] * 70]
    with pytest.raises(UserError, match=r"takes 100 tokens a request .*; 110 are needed"):
        measure(choose(server.url), tiny_model, out=tmp_path / "new", prompts=prompts, num_tokens=40, max_tokens=40)
    assert not (tmp_path / "new").exists()


def test_a_plain_server_is_counted_to_the_version_that_it_is_trusted_to_have(serve: Callable[..., Server]) -> None:
    engine = ServerChoice(split_address(serve(development=False).url), QUICK).open()
    engine.start(Scenario().with_values({"trainer.learning_rate": 0.0}), OLD, version=3)
    versions = [engine.generate(request(new=new)).weight_versions.unique().tolist() for new in (None, OLD.flat, None)]
    assert versions == [[3], [3], [1]], (
        "an update that changes nothing is sent nowhere, and counts for the next rollout"
    )
    with pytest.raises(UserError, match="takes no new weights"):
        engine.generate(request(new=NEW.flat))
    engine.close()
