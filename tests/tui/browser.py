"""A headless Chromium driven through its DevTools protocol: open a page, type a key, read what the websocket said."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Browser:
    """One page. `heard` collects the text of every websocket frame that the page received."""

    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._session, self._socket = session, socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())
        self.heard = ""

    @classmethod
    async def open(cls, url: str, profile: Path) -> tuple[Browser, asyncio.subprocess.Process]:
        """Start Chromium on a page."""
        assert CHROMIUM is not None
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--window-size=1300,800",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        port_file = profile / "DevToolsActivePort"
        async with asyncio.timeout(120):
            while not port_file.is_file() or not port_file.read_text().strip():
                await asyncio.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        session = aiohttp.ClientSession()
        async with session.get(f"http://127.0.0.1:{port}/json") as response:
            pages = await response.json()
        target = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        browser = cls(session, await session.ws_connect(target, max_msg_size=0))
        await browser.call("Network.enable")
        await browser.call("Page.enable")
        await browser.call("Page.navigate", url=url)
        return browser, process

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if "id" in data:
                self._answers.pop(data["id"]).set_result(data.get("result", {}))
            elif data["method"] == "Network.webSocketFrameReceived":
                frame = data["params"]["response"]
                payload = frame["payloadData"]
                self.heard += base64.b64decode(payload).decode(errors="replace") if frame["opcode"] == 2 else payload

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        return await asyncio.wait_for(answer, 60)

    async def type(self, key: str) -> None:
        """Press and let go of a printable key in the terminal."""
        await self.call("Runtime.evaluate", expression="document.querySelector('.xterm-helper-textarea').focus()")
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=key, key=key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def wait_for(self, pattern: str, *, seconds: float = 240) -> None:
        """Until text that matches has come through the websocket since the last wait, styles left out."""
        async with asyncio.timeout(seconds):
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?<>=]*[a-zA-Z]", "", self.heard[-400_000:])):
                await asyncio.sleep(0.5)
        self.heard = ""

    async def picture(self) -> bytes:
        """The page as a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()
        await self._session.close()
