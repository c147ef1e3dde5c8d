"""Measuring a real engine from inside the app: `skewsim measure` as a child process.

The child is started with asyncio, because starting one with multiprocessing fails inside a running Textual app. Its
last line of output is shown as its progress, and as the reason if it fails. It is ended together with the app.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from skewsim.errors import UserError, shown
from tui.process import environment


class Measuring:
    """One child process; `line` says how it is doing, `profile` is the file it made."""

    def __init__(self, arguments: str, out: Path, *, command: tuple[str, ...] = ()) -> None:
        try:
            self._arguments = shlex.split(arguments)
        except ValueError as error:
            raise UserError(f"measure {arguments!r}: {error}") from None
        self._command = command or (sys.executable, "-P", "-m", "skewsim.cli", "measure")
        self._out = out
        self._process: asyncio.subprocess.Process | None = None
        self.line = "measuring: starting"
        self.profile: Path | None = None
        self.running = True

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the child to its end; `changed` is called whenever there is a new line to show."""
        command = [*self._command, *self._arguments, "--out", str(self._out)]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=environment(),
            )
            await self._follow(changed)
        except OSError as error:
            self.line = f"measuring failed: {error.strerror}"
        finally:
            self.running = False
        changed()

    async def _follow(self, changed: Callable[[], None]) -> None:
        process = self._process
        assert process is not None
        assert process.stderr is not None
        tail = ""
        while chunk := await process.stderr.read(4096):
            tail = (tail + chunk.decode(errors="replace").replace("\r", "\n"))[-4000:]
            lines = [line.strip() for line in tail.splitlines() if line.strip()]
            if lines:
                self.line = f"measuring: {shown(lines[-1], 400)}"
                changed()
        code = await process.wait()
        made = self._out / "profile.json"
        if code == 0 and made.is_file():
            self.profile, self.line = made, f"measured: {made}"
        else:
            self.line = self.line.replace("measuring:", f"measuring failed (exit code {code}):")

    def stop(self) -> None:
        """End the child and whatever it started."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGTERM)
