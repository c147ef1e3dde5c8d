"""The web pages of `skewsim serve`: who is let in, and what a browser is told about them.

A request has to name a host that is this server, or another site's name could be pointed at this machine (DNS
rebinding). The page needs the token of the printed link. It leaves the token as a cookie that no other site's page can
send, and the websocket needs that cookie, and its Origin has to be this page's.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import textual_serve.server
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from aiohttp.typedefs import Handler

from skewsim.errors import UserError, shown
from tui.serve_visit import LONGEST_MESSAGE, Visit, terminal_size

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_STATIC = Path(textual_serve.server.__file__).parent / "static"
_FULL = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>skewsim</title>
<h1>Full</h1>
<p>All {limit} places are taken. Please try again when somebody has left (each visitor is a process of its own).</p>"""
_RATE, _BURST = 300.0, 600.0
"""Messages a second of one visitor, and how many may come at once. A message counts as one more for each KiB."""
_FONT_SIZES = range(8, 41)

Tell = Callable[[str], None]


class Pace:
    """Makes whoever sends more than `rate` on average, after `burst` at once, wait."""

    def __init__(self, rate: float, burst: float, now: Callable[[], float]) -> None:
        self._rate, self._burst, self._now = rate, burst, now
        self._left, self._at = burst, now()

    def wait(self, cost: float) -> float:
        """Seconds to wait before something of this cost is done."""
        now = self._now()
        self._left = min(self._left + (now - self._at) * self._rate, self._burst) - cost
        self._at = now
        return max(-self._left / self._rate, 0.0)


def host_name(netloc: str) -> str:
    """The name in a Host header, in lower case, without port; an address in its usual form. Empty for no name."""
    try:
        name = "" if "@" in netloc else urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.rstrip(".")


def policy(host: str) -> str:
    """The Content-Security-Policy of every page: nothing that is not from this server (`host`, with its port)."""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self' 'unsafe-inline'",  # xterm.js makes its style sheets itself
        "font-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": f"'self' ws://{host} wss://{host}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


class Room:
    """The visitors' pages and websockets. `inside` counts the visitors' processes."""

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        hosts: Iterable[str],
        token: str,
        cookie: str = "skewsim",
        visitors: int,
        tell: Tell = lambda line: None,
    ) -> None:
        self.inside = 0
        self._command, self._token, self._cookie, self._visitors, self._tell = command, token, cookie, visitors, tell
        self._hosts = {*LOOPBACK, *map(host_name, hosts)}
        self._visits: dict[web.WebSocketResponse, Visit] = {}
        self._page = Template((resources.files("tui") / "page" / "page.html").read_text(encoding="utf-8"))

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 10)
        app.add_routes(
            [
                web.get("/", self.index),
                web.get("/ws", self.websocket),
                web.static("/static", _STATIC),
                web.static("/page", str(resources.files("tui") / "page")),
            ]
        )
        app.on_response_prepare.append(self._protect)
        app.on_shutdown.append(self._say_goodbye)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._is_here(request):
            name = shown(host_name(request.headers.get("Host", "")) or "(none)", 80)
            raise web.HTTPMisdirectedRequest(text=f"host {name} is not known here; --allow-host lets a name in")
        return await handler(request)

    def _is_here(self, request: web.Request) -> bool:
        """Whether the request's Host is a name that is allowed, or the very address that it has arrived at."""
        arrived = (request.transport.get_extra_info("sockname") if request.transport else None) or ("",)
        name = host_name(request.headers.get("Host", ""))
        return bool(name) and name in {*self._hosts, host_name(_bracketed(arrived[0]))}

    async def _protect(self, request: web.Request, response: web.StreamResponse) -> None:
        """What a browser is told about every answer."""
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Frame-Options"] = "DENY"
        if self._is_here(request):
            response.headers["Content-Security-Policy"] = policy(request.headers["Host"])

    def _knows(self, given: str | None) -> bool:
        return hmac.compare_digest((given or "").encode(errors="replace"), self._token.encode())

    async def index(self, request: web.Request) -> web.Response:
        """The page with the terminal, for whoever has the token."""
        if not (self._knows(request.query.get("token")) or self._knows(request.cookies.get(self._cookie))):
            raise web.HTTPForbidden(text="this page needs the whole link that skewsim serve printed at its start")
        if self.inside >= self._visitors:
            return web.Response(text=_FULL.format(limit=self._visitors), content_type="text/html", status=503)
        asked = request.query.get("fontsize", "")
        size = int(asked) if asked in map(str, _FONT_SIZES) else 16
        page = web.Response(text=self._page.substitute(font_size=size), content_type="text/html")
        page.headers["Cache-Control"] = "no-store"
        page.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict", secure=request.secure)
        return page

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        """A visitor's terminal, from their coming to their going."""
        if urlsplit(request.headers.get("Origin", "")).netloc != request.headers["Host"]:
            raise web.HTTPForbidden(text="only the page of this server may open a terminal here")
        if not self._knows(request.cookies.get(self._cookie)):
            raise web.HTTPForbidden(text="a terminal needs the cookie of this server's page")
        if self.inside >= self._visitors:
            raise web.HTTPServiceUnavailable(text=f"all {self._visitors} places are taken")
        self.inside += 1
        try:
            return await self._attend(request)
        finally:
            self.inside -= 1

    async def _attend(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=15, max_msg_size=LONGEST_MESSAGE)
        await socket.prepare(request)
        visit = self._visits[socket] = Visit(self._command, socket)
        try:
            await visit.start(*terminal_size(request.query.get("width"), request.query.get("height")))
            await self._listen(socket, visit)
        except OSError as error:
            self._tell(f"a visitor's app could not be started: {error.strerror}")
        finally:
            await visit.end(self._tell)
            del self._visits[socket]
            await socket.close()
        return socket

    async def _listen(self, socket: web.WebSocketResponse, visit: Visit) -> None:
        """Pass a visitor's messages on; one that is malformed ends the visit."""
        pace = Pace(_RATE, _BURST, asyncio.get_running_loop().time)
        try:
            async for message in socket:
                text = _text_of(message)
                await asyncio.sleep(pace.wait(1 + len(text) / 1024))
                await visit.heed(text)
        except UserError as error:
            self._tell(f"a visitor was sent away: {error}")
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"malformed message")

    async def _say_goodbye(self, app: web.Application) -> None:
        await asyncio.gather(*(visit.end(self._tell) for visit in self._visits.values()))
        closing = (s.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for s in self._visits)
        with suppress(TimeoutError):  # some do not answer
            await asyncio.wait_for(asyncio.gather(*closing), 1)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _text_of(message: WSMessage) -> str:
    """A message's text. Raises UserError for another kind of message, such as one that is too long."""
    if message.type is not WSMsgType.TEXT:
        raise UserError(f"message: {shown(message.data, 80) if message.type is WSMsgType.ERROR else 'is no text'}")
    return str(message.data)
