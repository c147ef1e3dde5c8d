"""The app in a browser: loopback, a limit on visitors, no foreign page, and a real headless Chromium."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skewsim.errors import UserError
from tui.serve import HIDDEN, app_command, make_server, serve

from .stagecraft import on_stage

pytest.importorskip("textual_serve", reason="the optional extra `serve` is not installed")

import aiohttp
from aiohttp import web

from .browser import CHROMIUM, Browser

_DOTS = "[\u2801-\u28ff]{4}"
"""Braille dots of a curve."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@asynccontextmanager
async def serving(command: str, *, visitors: int) -> AsyncIterator[tuple[Any, str]]:
    port = free_port()
    server = make_server(command, host="127.0.0.1", port=port, visitors=visitors)
    runner = web.AppRunner(await server._make_app())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield server, f"http://127.0.0.1:{port}"
        async with asyncio.timeout(120):
            while server.inside:  # a visitor's process is ended after its page
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
    finally:
        await runner.cleanup()


def test_a_visitor_can_write_no_file_and_start_no_process_of_the_server() -> None:
    command = app_command(lesson="1-what")
    for name in HIDDEN:
        assert f"--hide {name}" in command
    assert command.endswith("--lesson 1-what")


@pytest.mark.parametrize(("options", "what"), [({"port": 0}, "port=0"), ({"visitors": 0}, "visitors=0")])
def test_a_wrong_option_is_one_line(options: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=what):
        serve(**options)  # type: ignore[arg-type]


@on_stage
async def test_a_page_of_another_host_may_not_open_a_terminal_and_the_limit_says_so() -> None:
    quiet = f"{sys.executable} -c 'import time; time.sleep(60)'"
    async with serving(quiet, visitors=1) as (server, url), aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"{url}/ws", origin="http://evil.example")
        assert refused.value.status == 403
        server.inside = 1
        async with session.get(url) as full:
            assert full.status == 503
            assert "All 1 places are taken" in await full.text()
        with pytest.raises(aiohttp.WSServerHandshakeError) as late:
            await session.ws_connect(f"{url}/ws")
        assert late.value.status == 503
        server.inside = 0
        async with session.get(url) as room:
            assert room.status == 200


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@on_stage
async def test_in_a_real_browser_it_opens_a_key_toggles_a_fix_and_the_curve_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    async with serving(app_command(), visitors=2) as (_, url):
        browser, process = await Browser.open(url, tmp_path / "chromium")
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
