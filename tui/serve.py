"""`skewsim serve`: the app in a browser, a process for each visitor, through textual-serve.

It listens on the loopback address unless told otherwise. A visitor past the limit gets a page that says so. A
websocket is refused when its Origin is another host's page, so that no web site can drive the app of somebody who
happens to serve it; what would write files or start processes on the serving machine is hidden.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any
from urllib.parse import urlsplit

from skewsim.errors import UserError

HIDDEN = ("measure", "screenshot", "export", "runs", "paste", "restore", "open")
_FULL = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>skewsim</title>
<body style="font-family: sans-serif; margin: 4em"><h1>Full</h1>
<p>All {limit} places are taken. Please try again when somebody has left (each visitor is a process of its own).</p>"""


def serve(*, host: str = "127.0.0.1", port: int = 8000, visitors: int = 8, lesson: str = "", preset: str = "") -> int:
    """Serve the terminal UI to browsers.

    Parameters
    ----------
    host
        The address to listen on; 0.0.0.0 lets others in.
    port
        The port.
    visitors
        How many may be in at once.
    lesson
        The lesson that everybody starts with.
    preset
        The classroom preset that everybody starts with.
    """
    from tui.lesson import load_lesson
    from tui.presets import check_hidden, find_preset

    if not 0 < port < 65536:
        raise UserError(f"port={port}: allowed are 1 to 65535")
    if visitors < 1:
        raise UserError(f"visitors={visitors}: must be at least 1")
    hidden = check_hidden({*HIDDEN, *(find_preset(preset).hide if preset else ())})
    if lesson:
        load_lesson(lesson).check_visible(hidden)
    import textual_serve  # noqa: F401  (before aiohttp, which comes with it)

    make_server(app_command(lesson=lesson, preset=preset), host=host, port=port, visitors=visitors).serve()
    return 0


def app_command(*, lesson: str = "", preset: str = "") -> str:
    """The command that each visitor's process runs."""
    words = [sys.executable, "-m", "skewsim.cli", "tui"]
    for name in HIDDEN:
        words += ["--hide", name]
    words += ["--lesson", lesson] if lesson else []
    words += ["--preset", preset] if preset else []
    return shlex.join(words)


def make_server(command: str, *, host: str, port: int, visitors: int) -> Any:
    """A textual-serve server with a limit and a check of where a websocket comes from."""
    from aiohttp import web
    from textual_serve.server import Server

    class LimitedServer(Server):
        """Counts the websockets that are open."""

        inside = 0

        async def handle_index(self, request: web.Request) -> Any:
            if self.inside >= visitors:
                return web.Response(text=_FULL.format(limit=visitors), content_type="text/html", status=503)
            self.public_url = f"{request.scheme}://{request.host}"  # under whatever name the visitor knows this machine
            return await super().handle_index(request)

        async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
            origin = request.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != request.host:
                raise web.HTTPForbidden(text="this page may not open a terminal here")
            if self.inside >= visitors:
                raise web.HTTPServiceUnavailable(text=f"all {visitors} places are taken")
            self.inside += 1
            try:
                return await super().handle_websocket(request)
            finally:
                self.inside -= 1

    return LimitedServer(command, host=host, port=port, title="skewsim", public_url=None)
