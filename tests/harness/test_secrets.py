"""A server's key is sent to that server, and is in nothing that is printed, written or sent elsewhere."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.address import ApiKey, find_key, split_address
from harness.server_answers import Answer
from harness.server_session import ServerLimits, ServerSession
from skewsim.cli.main import main
from skewsim.errors import EngineError, UserError
from skewsim.settings import EngineSettings
from tests.harness.fake_server import Handler, Manner, Server

KEY = "sk-5ecret-0123456789-abcdefghij"
SETTINGS = EngineSettings(temperature=1.0)
QUICK = ServerLimits(waits_s=(0.01,))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "SKEWSIM_API_KEY", "SKEWSIM_ENGINE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**manner: object) -> Server:
        servers.append(Server(Manner(**manner)))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def pieces(text: str, *, length: int = 6) -> set[str]:
    """Every part of the key of that length that the text holds."""
    return {KEY[i : i + length] for i in range(len(KEY) - length + 1)} & {
        text[i : i + length] for i in range(len(text) - length + 1)
    }


def test_a_measure_prints_and_writes_no_part_of_the_key(
    serve: Callable[..., Server],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SKEWSIM_API_KEY", f" {KEY}\n")
    server = serve(key=KEY, models=(f"policy-{KEY}",))
    size = ["--tokens", "40", "--max-tokens", "4"]
    assert main(["measure", str(tiny_model), "--engine", server.url, *size, "--out", str(tmp_path / "out")]) == 0
    assert server.manner.calls[-1][1]["model"] == f"policy-{KEY}"
    out, err = capfd.readouterr()
    assert pieces(out + err) == set()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 4
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("around", ["{}\n", "\t{}  ", "{}\r\n"])
def test_blanks_around_a_key_are_no_part_of_it(
    serve: Callable[..., Server], around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEWSIM_API_KEY", around.format(KEY))
    with ServerSession(split_address(serve(key=KEY).url), SETTINGS, limits=QUICK) as session:
        assert session.model == "policy"


@pytest.mark.parametrize("bad", [KEY + "é", KEY + "\n" + KEY, KEY + "\x1b[2J", KEY + " " + KEY, "\x00" + KEY])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(bad: str) -> None:
    with pytest.raises(UserError, match="SKEWSIM_API_KEY: allowed") as caught:
        find_key({"SKEWSIM_API_KEY": bad})
    assert pieces(str(caught.value)) == set()
    assert "\n" not in str(caught.value)


def test_a_blank_key_is_none_and_the_next_variable_is_asked() -> None:
    assert find_key({"SKEWSIM_API_KEY": " \n"}) is None
    found = find_key({"SKEWSIM_API_KEY": "", "OPENAI_API_KEY": KEY})
    assert found is not None
    assert found.headers() == {"Authorization": f"Bearer {KEY}"}


def test_a_key_is_in_no_representation_of_it() -> None:
    key = ApiKey(KEY)
    for text in (repr(key), str(key), f"{key}", f"{key!r}", repr([key]), repr({"key": key})):
        assert pieces(text) == set()
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        json.dumps(key)


@pytest.mark.parametrize("before", [*range(150, 206, 5), 395, 3980, 3990, 4000])
@pytest.mark.parametrize("form", ["{}", '{{"error": {{"message": "{}"}}}}'])
def test_a_server_that_repeats_the_key_where_its_words_are_cut_shows_no_part_of_it(
    serve: Callable[..., Server], before: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEWSIM_API_KEY", KEY)
    body = form.format("x" * before + f" {KEY} and more")
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(400, body))
    with pytest.raises(EngineError) as caught:
        ServerSession(split_address(serve().url), SETTINGS, limits=QUICK)
    assert pieces(str(caught.value)) == set()
    assert len(str(caught.value)) < 800


def test_a_key_that_a_server_spells_with_escapes_is_scrubbed(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEWSIM_API_KEY", KEY)
    spelt = "".join(f"\\u{ord(c):04x}" for c in KEY)
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(400, f'{{"error": "{spelt}"}}'))
    with pytest.raises(EngineError, match=r"\*\*\*") as caught:
        ServerSession(split_address(serve().url), SETTINGS, limits=QUICK)
    assert pieces(str(caught.value)) == set()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_the_key_for_a_server_of_this_machine_goes_through_no_proxy(
    serve: Callable[..., Server], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SKEWSIM_API_KEY", KEY)
    proxy, server = serve(), serve(key=KEY)
    monkeypatch.setenv(variable, proxy.url.removesuffix("/v1"))
    with ServerSession(split_address(server.url), SETTINGS, limits=QUICK) as session:
        assert session.model == "policy"
    assert proxy.manner.calls == []


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.8.9.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://a.localhost/v1", True),
        ("http://10.0.0.1:8000/v1", False),
        ("http://localhost.example.org/v1", False),
        ("https://api.example.org/v1", False),
    ],
)
def test_which_addresses_are_this_machine(url: str, loopback: bool) -> None:
    assert split_address(url).is_loopback is loopback


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://[/v1", "http://h:99999/v1", "http://h:x/v1", "http:///v1"])
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match="allowed is http://host:port/v1"):
        split_address(url)


def test_control_sequences_of_a_server_are_shown_as_escapes(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]52;c;cHduZWQ=\x07\x1b[2J\u202e\x9b31m"
    run = ["run", "v0_reference", "--steps", "1", "--engine"]
    models = serve(models=("a" + evil, "b" + evil))
    assert main([*run, models.url]) == 2
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(400, {"error": {"message": evil}}))
    assert main([*run, serve().url]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert err.replace("\n", "").isprintable()
    assert "\\x1b" in err


def test_a_long_word_of_a_server_is_shortened() -> None:
    from harness.requests import Request

    answer = Answer(Request(0, [1], seed=0), max_tokens=1, stop=())
    answer.take({"choices": [{"finish_reason": "y" * 10_000}]}, version=0)
    with pytest.raises(EngineError) as caught:
        answer.check()
    assert len(str(caught.value)) < 300
