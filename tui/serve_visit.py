"""The server's side of one visitor: a process of their own, and what passes between it and their websocket."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

from skewsim.errors import FileFormatError, shown
from tui.process import environment

_KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The server's environment variables that a visitor's process has too; all others may hold a secret."""
SMALLEST, LARGEST = (20, 5), (400, 150)
"""Columns and rows that a visitor's terminal may have."""
LONGEST_MESSAGE = 1 << 16
"""Bytes of a message from a visitor's browser."""
_PATIENCE_S = 1.0
"""How long a process may take to end by itself."""
_READY = b"__GANGLION__\n"
"""The first line of a Textual app under textual-serve."""


def visitor_command(*, lesson: str = "", preset: str = "") -> tuple[str, ...]:
    """The command that a visitor's process runs."""
    return (sys.executable, "-P", "-c", "from tui.visitor import main; main()", lesson, preset)


def terminal_size(width: object, height: object) -> tuple[int, int]:
    """Columns and rows within what is allowed; what is no number is a terminal's usual size."""
    sizes = []
    for given, usual, low, high in zip((width, height), (80, 24), SMALLEST, LARGEST, strict=True):
        text = str(given)
        number = int(text[:9]) if text.isdecimal() else usual
        sizes.append(min(max(number, low), high))
    return sizes[0], sizes[1]


class Visit(AppService):
    """One visitor: a process in a temporary folder of its own, with none of the owner's environment."""

    def __init__(self, command: tuple[str, ...], socket: web.WebSocketResponse) -> None:
        super().__init__(
            "",
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=self._hang_up,
            download_manager=DownloadManager(),
        )
        self._words = command
        self._socket = socket
        self._folder = tempfile.mkdtemp(prefix="skewsim-visitor-")
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (read and closed when the process has ended)

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        kept = {name: value for name, value in environment().items() if name in (*_KEPT, "PYTHONPATH")}
        folders = dict.fromkeys(("HOME", "TMPDIR", "SKEWSIM_STATE", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), self._folder)
        return {
            **kept,
            **folders,
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",
            "TEXTUAL_FPS": "60",
            "TEXTUAL_COLOR_SYSTEM": "truecolor",
            "TERM_PROGRAM": "textual",
            "COLUMNS": str(width),
            "ROWS": str(height),
        }

    async def _open_app_process(self, width: int = 80, height: int = 24) -> asyncio.subprocess.Process:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._said,
            env=self._build_environment(width, height),
            cwd=self._folder,
            start_new_session=True,  # a signal from the keyboard is for the server
        )
        self._stdin = process.stdin
        return process

    async def run(self) -> None:
        """Pass on what the process draws until it ends, then close the websocket."""
        assert self._process is not None
        out = self._process.stdout
        assert out is not None
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await out.readuntil(_READY)
            while True:
                kind, size = await out.readexactly(1), await out.readexactly(4)
                payload = await out.readexactly(int.from_bytes(size, "big"))
                await (self.on_data(payload) if kind == b"D" else self.on_meta(payload))
        await self.remote_close()

    async def _hang_up(self) -> None:
        await self._socket.close()

    async def heed(self, text: str) -> None:
        """Do what a message of the browser asks for. Raises FileFormatError if it is none."""
        from skewsim.border import parse_json

        match parse_json(text, "message"):
            case ["stdin", str(data)]:
                await self.send_bytes(data.encode(errors="replace"))
            case ["resize", {"width": int(width), "height": int(height)}]:
                await self.set_terminal_size(*terminal_size(width, height))
            case ["ping", str(data)] if len(data) <= 40:
                await self._socket.send_json(["pong", data])
            case ["focus"]:
                await self.focus()
            case ["blur"]:
                await self.blur()
            case _:
                raise FileFormatError("message: none that a terminal sends")

    async def end(self, tell: Callable[[str], None]) -> None:
        """End the process, remove its folder, and tell what it said last, if it failed. May be called again."""
        process, pump = self._process, self._task
        if process is not None and pump is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), _PATIENCE_S)
            except TimeoutError:
                process.kill()
                await process.wait()
            pump.cancel()
            if process.returncode and process.returncode > 0 and not self._said.closed:
                tell(f"a visitor's app ended with exit code {process.returncode}: {self._last_words()}")
        self._said.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(size - 2000, 0))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return shown(lines[-1]) if lines else "nothing was said"
