"""The app in a browser, attacked with a real client: who gets in, what a visitor reaches, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from skewsim.errors import UserError
from skewsim.scenarios import SCENARIOS, find_scenario
from skewsim.settings import Scenario
from skewsim.share import to_share
from tui.controls import all_controls
from tui.limits import HIDDEN, check_visit
from tui.presets import presets
from tui.serve import check_address, serve
from tui.shell import Options

from .conftest import StageMaker
from .stagecraft import on_stage

pytest.importorskip("textual_serve", reason="the optional extra `serve` is not installed")

import aiohttp
import psutil
from aiohttp import web

from tui.serve_app import Pace, Room, host_name
from tui.serve_visit import LARGEST, LONGEST_MESSAGE, SMALLEST, terminal_size, visitor_command

from .browser import CHROMIUM, Browser

_DOTS = "[\u2801-\u28ff]{4}"
"""Braille dots of a curve."""
TOKEN, KEY = "the-token", "sk-5ecret-0123456789-abcdefghij"
ECHO = (
    "import json, os, sys; out = sys.stdout.buffer; put = lambda b: (out.write(b'D' + len(b).to_bytes(4, 'big') + b), "
    "out.flush()); out.write(b'__GANGLION__\\n'); put(json.dumps([dict(os.environ), os.getcwd(), os.getpid()]).encode())\n"
    "while data := os.read(0, 65536): put(data)"
)
"""An app that says where it runs, and gives back the packets that it gets."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Served:
    """A room in this process, at a real port, and what it told on the console."""

    def __init__(self, room: Room, port: int, told: list[str]) -> None:
        self.room, self.url, self.host, self.told = room, f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", told

    @asynccontextmanager
    async def visitor(self, *, invited: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
        """A browser, as far as cookies go, which has opened the link."""
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            if invited:
                async with session.get(self.url, params={"token": TOKEN}) as page:
                    assert page.status == 200
            yield session

    async def status(self, session: aiohttp.ClientSession, path: str = "/", **headers: str) -> int:
        async with session.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status

    async def refusal(self, session: aiohttp.ClientSession, **options: Any) -> int:
        """The status with which a websocket is refused."""
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{self.url}/ws", **{"origin": self.url, **options})
        return refused.value.status

    async def empty(self) -> None:
        async with asyncio.timeout(60):
            while self.room.inside:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(command: tuple[str, ...], *, visitors: int = 2) -> AsyncIterator[Served]:
    port, told = free_port(), list[str]()
    room = Room(command, hosts=("demo.example",), token=TOKEN, visitors=visitors, tell=told.append)
    runner = web.AppRunner(room.application(), access_log=None, shutdown_timeout=3)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield Served(room, port, told)
    finally:
        await runner.cleanup()


def echo(test: Callable[[Served], Awaitable[None]]) -> Callable[[], None]:
    """A test with a server whose visitors get `ECHO` in place of the app, which takes two seconds to start."""

    async def run() -> None:
        async with serving((sys.executable, "-S", "-c", ECHO)) as served:
            await test(served)

    def once() -> None:
        asyncio.run(run())

    once.__name__ = test.__name__
    return once


def packets(heard: bytes) -> list[bytes]:
    """The payloads of packets one after the other."""
    found = []
    while heard:
        size = int.from_bytes(heard[1:5], "big")
        found.append(heard[5 : 5 + size])
        heard = heard[5 + size :]
    return found


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"port": 0}, "port=0"),
        ({"visitors": 0}, "visitors=0"),
        ({"host": ""}, "host=''"),
        ({"host": "demo.example"}, "host='demo.example'"),
        ({"host": "127.0.0.1:80"}, "host='127.0.0.1:80'"),
        ({"host": "192.0.2.7"}, "cannot listen on 192.0.2.7"),
        ({"allow_host": ["http://demo.example"]}, "allow-host='http://demo.example'"),
        ({"allow_host": ["demo.example:80"]}, "allow-host='demo.example:80'"),
        ({"lesson": "no-such"}, "no-such"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=re.escape(what)) as wrong:
        serve(**options)
    assert "\n" not in str(wrong.value)


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="address already in use"):
        serve(port=taken.getsockname()[1])


def test_an_address_is_taken_in_its_usual_form() -> None:
    assert [check_address(host) for host in ("localhost", "0:0:0::1", "0.0.0.0")] == ["127.0.0.1", "::1", "0.0.0.0"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("LOCALHOST.", "localhost"),
        ("[0:0::1]:80", "::1"),
        ("127.0.0.1:80@evil.example", ""),
        ("[::1", ""),
        ("", ""),
    ],
)
def test_the_name_in_a_host_header_is_read_as_a_browser_means_it(header: str, name: str) -> None:
    assert host_name(header) == name


@echo
async def test_another_name_for_this_machine_is_misdirected_whatever_is_asked_for(served: Served) -> None:
    async with served.visitor() as session:
        for path in ("/", f"/?token={TOKEN}", "/static/js/textual.js", "/page/page.js", "/nothing"):
            assert await served.status(session, path, Host="rebound.example") == 421
            assert await served.status(session, path, Host="127.0.0.1@rebound.example") == 421
        evil = {"Host": "rebound.example"}
        assert await served.refusal(session, headers=evil, origin="http://rebound.example") == 421
        for known in ("localhost", "demo.example:443", "LOCALHOST:8000"):
            assert await served.status(session, "/page/page.js", Host=known) == 200


@echo
async def test_page_and_websocket_need_the_token_and_the_websocket_this_pages_origin(served: Served) -> None:
    async with served.visitor(invited=False) as stranger:
        assert await served.status(stranger) == 403
        assert await served.status(stranger, "/?token=wrong") == 403
        assert await served.status(stranger, "/?token=%ff%00") == 403
        assert await served.status(stranger, Cookie="skewsim=wrong") == 403
        assert await served.refusal(stranger) == 403
        assert await served.refusal(stranger, headers={"Cookie": "skewsim=wrong"}) == 403
    async with served.visitor() as visitor:
        assert await served.status(visitor) == 200  # the cookie is enough
        for origin in ("http://evil.example", "http://127.0.0.1:1", "null", "http://127.0.0.1", None):
            assert await served.refusal(visitor, origin=origin) == 403
        async with visitor.ws_connect(f"{served.url}/ws", origin=served.url) as terminal:
            assert (await terminal.receive()).type is aiohttp.WSMsgType.BINARY
    await served.empty()


@echo
async def test_the_page_needs_no_other_server_and_no_other_page_can_use_it(served: Served) -> None:
    async with served.visitor(invited=False) as session:
        async with session.get(served.url, params={"token": TOKEN, "fontsize": '16"><script>'}) as page:
            html, headers, cookie = await page.text(), page.headers, page.headers["Set-Cookie"]
        assert 'data-font-size="16"' in html
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        rules = headers["Content-Security-Policy"]
        assert "default-src 'none'" in rules
        assert "script-src 'self';" in rules
        assert "frame-ancestors 'none'" in rules
        assert headers["Referrer-Policy"] == "no-referrer"
        links = re.findall(r'(?:src|href)="([^"]*)"', html)
        async with session.get(f"{served.url}/page/page.css") as sheet:
            links += re.findall(r'url\("([^"]*)"\)', css := await sheet.text())
        assert len(links) == 6
        assert "//" not in re.sub(r"<!.*?>", "", html) + css
        for link in links:
            assert await served.status(session, link) == 200
        for folder in (
            "/static",
            "/static/",
            "/static/js/",
            "/page/",
            "/static/../server.py",
            "/static/%2e%2e/server.py",
        ):
            async with session.get(served.url + folder) as answer:
                assert answer.status in (403, 404)
                assert answer.headers["X-Content-Type-Options"] == "nosniff"


@echo
async def test_the_environment_of_a_visitors_process_has_no_key_and_none_of_the_owners_folders(served: Served) -> None:
    before = {name: os.environ.get(name) for name in ("SKEWSIM_API_KEY", "OPENAI_API_KEY", "TEXTUAL_LOG")}
    os.environ.update(dict.fromkeys(before, KEY))
    try:
        async with served.visitor() as visitor, visitor.ws_connect(f"{served.url}/ws", origin=served.url) as terminal:
            said = (await terminal.receive()).data.decode()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    await served.empty()
    environment, folder, _ = json.loads(said)
    assert KEY not in said
    assert {environment[name] for name in ("HOME", "TMPDIR", "SKEWSIM_STATE", "XDG_CONFIG_HOME")} == {folder}
    assert not Path(folder).exists()


@echo
async def test_sizes_are_bounded_and_keys_pass(served: Served) -> None:
    width, _ = LARGEST
    async with served.visitor() as visitor:
        url = f"{served.url}/ws?width={10**30}&height=-5"
        async with visitor.ws_connect(url, origin=served.url) as terminal:
            environment, *_ = json.loads((await terminal.receive()).data)
            assert (environment["COLUMNS"], environment["ROWS"]) == (str(width), "24")
            await terminal.send_json(["resize", {"width": 10**9, "height": -1}])
            await terminal.send_json(["stdin", "k\ud800"])
            await terminal.send_json(["ping", "7"])
            heard, pong = b"", None
            async with asyncio.timeout(60):
                while pong is None or len(packets(heard)) < 2:
                    message = await terminal.receive()
                    if message.type is aiohttp.WSMsgType.TEXT:
                        pong = message.json()
                    else:
                        heard += message.data
        resize, typed = packets(heard)
        assert json.loads(resize) == {"type": "resize", "width": width, "height": 24}
        assert typed == b"k?"
        assert pong == ["pong", "7"]
        assert await served.status(visitor, "/?token=" + "x" * 20_000) == 400
    await served.empty()


def test_a_terminal_has_a_usual_size_where_none_is_named_and_never_an_extreme_one() -> None:
    assert terminal_size(None, "seven") == (80, 24)
    assert terminal_size("0", 1) == SMALLEST
    assert terminal_size("²", "9" * 5000) == (80, LARGEST[1])


MALFORMED = (
    "{", "[]", "5", "null", '["stdin"]', '["stdin", 5]', '["resize", {"width": "9"}]', '["resize", null]', '["x", 1]',
    "[" * 5000, "1" * 5000, '["ping", "' + "9" * 50 + '"]', b"\x00", "x" * (LONGEST_MESSAGE + 1),
)  # fmt: skip


@echo
async def test_a_malformed_message_is_one_line_on_the_console_ends_that_visit_and_no_other(served: Served) -> None:
    async with served.visitor() as visitor, visitor.ws_connect(f"{served.url}/ws", origin=served.url) as stays:
        await stays.receive()
        for message in MALFORMED:
            async with visitor.ws_connect(f"{served.url}/ws", origin=served.url) as terminal:
                await (terminal.send_str(message) if isinstance(message, str) else terminal.send_bytes(message))
                async with asyncio.timeout(60):
                    while (await terminal.receive()).type is not aiohttp.WSMsgType.CLOSE:
                        pass
            async with asyncio.timeout(60):
                while served.room.inside > 1:
                    await asyncio.sleep(0.01)
        assert len(served.told) == len(MALFORMED)
        assert not any("\n" in line or len(line) > 300 for line in served.told)
        await stays.send_json(["stdin", "still here"])
        assert b"still here" in (await stays.receive()).data
    await served.empty()


@echo
async def test_places_are_taken_and_come_free_when_a_visitor_leaves_however_they_leave(served: Served) -> None:
    async with served.visitor() as visitor:
        for leave in ("close", "vanish", "their app dies"):
            terminals = [await visitor.ws_connect(f"{served.url}/ws", origin=served.url) for _ in range(2)]
            running = [json.loads((await terminal.receive()).data)[2] for terminal in terminals]
            assert await served.status(visitor) == 503
            assert await served.refusal(visitor) == 503
            for terminal, process in zip(terminals, running, strict=True):
                if leave == "close":
                    await terminal.close()
                elif leave == "vanish":
                    terminal._response.connection.transport.abort()
                else:
                    os.kill(process, signal.SIGKILL)
            await served.empty()
            assert not any(psutil.pid_exists(process) for process in running)
            assert await served.status(visitor) == 200


def test_whoever_sends_too_fast_waits() -> None:
    now = 0.0
    pace = Pace(10.0, 20.0, lambda: now)
    assert [pace.wait(10) for _ in range(4)] == [0, 0, 1, 2]
    now = 100.0
    assert [pace.wait(20), pace.wait(5)] == [0, 0.5]


PATHS = {"policy": "/etc", "skew.profile": "/etc/passwd", "device": "cuda"}
SIZES = {"steps": 1001, "trainer.num_prompts": 512, "trainer.num_iterations": 64, "task.pool_size": 1_000_000}


@pytest.mark.parametrize(("setting", "value"), (PATHS | SIZES).items())
def test_a_visitors_settings_name_only_what_ships_and_are_bounded(setting: str, value: object) -> None:
    values = {setting: value} | ({"skew.noise": "profile"} if setting == "skew.profile" else {})
    with pytest.raises(UserError, match=re.escape(setting)) as refused:
        check_visit(Scenario().with_values(values))
    assert "\n" not in str(refused.value)


def test_whatever_ships_may_be_run_by_a_visitor() -> None:
    for name in SCENARIOS:
        check_visit(find_scenario(name))
    for preset in presets().values():
        check_visit(Scenario().with_values(preset.set))


@on_stage
async def test_nothing_that_a_visitor_types_reaches_a_file(stage: StageMaker, tmp_path: Path) -> None:
    toml, seen = tmp_path / "mine.toml", list[str]()
    toml.write_text("steps = 7\n")
    looking = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if looking and event in ("open", "os.listdir", "os.scandir") and str(tmp_path) in str(arguments[0]):
            seen.append(str(arguments[0]))

    sys.addaudithook(watch)
    try:
        async with stage(options=Options(hidden=frozenset(HIDDEN), visiting=True)) as s:
            s.lab.check = check_visit
            before = s.lab.yours
            for text in (str(toml), "last", str(tmp_path), f"{tmp_path}/no.toml", *_shares(tmp_path)):
                await s.press("i")
                s.app.screen.query_one("Input").value = text  # type: ignore[attr-defined]
                await s.press("enter")
                assert type(s.app.screen).__name__ == "Prompt", text
                await s.press("escape")
            for key in ("r", "s", "e", "z"):
                await s.press(key)
                assert s.app.screen is s.app.explore
            for page, key in (("p", "n"), ("d", "enter")):  # measure an engine, open a file
                await s.press(page, key)
                assert type(s.app.screen).__name__ in ("ProfileScreen", "DiagnoseScreen")
                await s.press("escape")
            assert s.app.measuring is None
            assert s.lab.yours == before
            await s.press("i")
            s.app.screen.query_one("Input").value = to_share(find_scenario("raw_tis"))  # type: ignore[attr-defined]
            await s.press("enter")
            assert s.lab.yours.trainer.correction.weight == "token_tis"
    finally:
        looking.clear()
    assert not seen


def _shares(folder: Path) -> list[str]:
    """Share strings of scenarios that name a path."""
    profile = {"skew.noise": "profile", "skew.profile": str(folder / "profile.json")}
    return [to_share(Scenario().with_values(values)) for values in ({"policy": str(folder)}, profile)]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's folders, with a last state and a keymap of their own."""
    folder = tmp_path_factory.mktemp("owner")
    (folder / "last").write_text(to_share(Scenario().with_values({"engine.temperature": 1.75})))
    (folder / "skewsim").mkdir()
    (folder / "skewsim" / "keymap.toml").write_text('[keys]\npause = "p,p"\n')  # a mistake: the app would not start
    return folder


@pytest.fixture(scope="module")
def server(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real `skewsim serve`, and its link."""
    with starting(state) as started:
        yield started


class starting:
    """`skewsim serve` in a process of its own, with a key in its environment."""

    def __init__(self, state: Path) -> None:
        environment = {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "SKEWSIM_STATE": str(state),
            "XDG_CONFIG_HOME": str(state),
            "TMPDIR": str(state),
            "SKEWSIM_API_KEY": KEY,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skewsim", "serve", "--port", str(free_port())],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=state,
        )

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        assert self.process.stdout is not None
        return self.process, self.process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


class Terminal:
    """A visitor's websocket to the real app."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.heard = socket, ""

    async def wait_for(self, pattern: str) -> None:
        """Until that has been drawn since the last wait, styles and positions left out."""
        async with asyncio.timeout(60):
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?<>=]*[a-zA-Z]", "", self.heard)):
                message = await self.socket.receive()
                assert message.type is aiohttp.WSMsgType.BINARY, message
                self.heard += message.data.decode(errors="replace")

    async def type(self, *keys: str) -> None:
        self.heard = ""
        for key in keys:
            await self.socket.send_json(["stdin", key])


@asynccontextmanager
async def entering(link: str) -> AsyncIterator[Terminal]:
    url = link.partition("/?")[0]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(link) as page:
            assert KEY not in await page.text()
        size = {"width": "120", "height": "40"}
        async with session.ws_connect(f"{url}/ws", origin=url, params=size) as socket:
            yield Terminal(socket)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@on_stage
async def _visit(server: tuple[subprocess.Popen[str], str], state: Path) -> None:
    process, link = server
    before = sorted(path.name for path in state.iterdir())
    async with entering(link) as terminal:
        await terminal.wait_for(_DOTS)
        heard = terminal.heard
        for child in children(process):
            assert KEY not in repr(child.environ())
        await terminal.type("1")
        await terminal.wait_for("processed on: from step")
        await terminal.type("\x1b[48;99999999;99999999;0;0t", "x")  # a size beyond all measure
        await terminal.wait_for("Every setting")
        at = [control.id for control in all_controls()].index("skew.profile")
        await terminal.type(*["\x1b[B"] * at, "\r")
        await terminal.wait_for("enter: accept")
        await terminal.type("/etc/passwd", "\r")
        await terminal.wait_for("profile is set, but noise")
        heard += terminal.heard
    assert KEY not in heard
    async with asyncio.timeout(30):
        while children(process):
            await asyncio.sleep(0.05)
    assert sorted(path.name for path in state.iterdir()) == before


def test_a_visit_sees_curves_and_leaves_the_owners_state_as_it_was_and_no_process(
    server: tuple[subprocess.Popen[str], str], state: Path
) -> None:
    _visit(server, state)


async def _leave_behind(link: str, process: subprocess.Popen[str], number: int) -> list[psutil.Process]:
    """Visit, then end the server by a signal; the processes that the visit had."""
    async with entering(link) as terminal:
        await terminal.wait_for(_DOTS)
        found = children(process)
        assert len(found) == 2
        os.kill(process.pid, number)
        with suppress(AssertionError, TimeoutError):
            await terminal.wait_for("never")
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_server_that_ends_takes_its_visitors_processes_along(state: Path, number: int) -> None:
    with starting(state) as (process, link):
        found = asyncio.run(_leave_behind(link, process, number))
        began = time.monotonic()
        _, alive = psutil.wait_procs(found, timeout=20)
        assert not alive
        assert time.monotonic() - began < 5
        assert process.wait(20) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    assert not list(state.glob("skewsim-visitor-*"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@on_stage
async def test_in_a_real_browser_it_opens_a_key_toggles_a_fix_and_the_curve_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    async with serving(visitor_command()) as served:
        browser, process = await Browser.open(f"{served.url}/?token={TOKEN}", tmp_path / "chromium")
        try:
            await browser.wait_for(_DOTS)
            before = await browser.picture()
            await browser.type("1")
            await browser.wait_for("processed on: from step")
            await browser.wait_for(_DOTS)
            assert await browser.picture() != before
        finally:
            await browser.close()
            process.terminate()
            await process.wait()
        await served.empty()
