"""`skewsim serve`: the app in a browser, a process for each visitor.

It listens on the loopback address unless told otherwise, and prints a link with a random token; who does not have the
link is not let in. `tui.serve_app` has the pages, `tui.serve_visit` a visitor's process seen from the server, and
`tui.visitor` that process's own side. textual-serve brings the terminal that runs in the browser.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from skewsim.cli.options import Repeated
from skewsim.errors import UserError, shown

if TYPE_CHECKING:
    from tui.serve_app import Room

_NOWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737): asking for the way to it tells which address of ours is on the way out."""


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    visitors: int = 8,
    allow_host: Repeated = None,
    lesson: str = "",
    preset: str = "",
) -> int:
    """Serve the terminal UI to browsers that have the printed link.

    Parameters
    ----------
    host
        The address to listen on; 0.0.0.0 lets others in.
    port
        The port.
    visitors
        How many may be in at once.
    allow_host
        A further name or address by which browsers reach this server, such as demo.example; may be given several
        times.
    lesson
        The lesson that everybody starts with.
    preset
        The classroom preset that everybody starts with.
    """
    from tui.lesson import load_lesson
    from tui.limits import HIDDEN
    from tui.presets import check_hidden, find_preset

    address = check_address(host)
    if not 0 < port < 65536:
        raise UserError(f"port={port}: allowed are 1 to 65535")
    if visitors < 1:
        raise UserError(f"visitors={visitors}: must be at least 1")
    check_names(allow_host or ())
    hidden = check_hidden({*HIDDEN, *(find_preset(preset).hide if preset else ())})
    if lesson:
        load_lesson(lesson).check_visible(hidden)
    import textual_serve  # noqa: F401  (before aiohttp, which comes with it)

    from tui.serve_app import Room
    from tui.serve_visit import visitor_command

    token, names = secrets.token_urlsafe(24), (*names_here(address), *(allow_host or ()))
    room = Room(
        visitor_command(lesson=lesson, preset=preset),
        hosts=names,
        token=token,
        cookie=f"skewsim-{port}",  # a browser has one set of cookies for all ports of a host
        visitors=visitors,
        tell=tell,
    )
    listening = listen(address, port)
    links = [f"http://{name}:{port}/?token={token}" for name in names]
    asyncio.run(_serve(room, listening, address, links))
    return 0


def check_address(host: str) -> str:
    """An address of this machine to listen on. Raises UserError for a name: it might be any machine's."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        allowed = "allowed is an address of this machine: 127.0.0.1, ::1, or 0.0.0.0 for all of its addresses"
        raise UserError(f"host={shown(host, 80)!r}: {allowed}") from None


def check_names(names: Sequence[str]) -> None:
    """UserError for a name that no Host header could have."""
    from urllib.parse import urlsplit

    for name in names:
        with suppress(ValueError):
            parts = urlsplit(f"//{name}")
            if name.isascii() and name.isprintable() and name.lower() in (parts.hostname, f"[{parts.hostname}]"):
                continue
        raise UserError(f"allow-host={shown(name, 80)!r}: allowed is a name or an address, without scheme or port")


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError if the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        raise UserError(f"port={port}: cannot listen on {address}: {(error.strerror or str(error)).lower()}") from None


def names_here(address: str) -> list[str]:
    """The names for a link: the address; for a wildcard the loopback address, and the one that others see."""
    if not ipaddress.ip_address(address).is_unspecified:
        return [_name(address)]
    names = ["127.0.0.1" if address == "0.0.0.0" else "[::1]"]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((_NOWHERE, 9))  # sends nothing
        names.append(asking.getsockname()[0])
    return names


def tell(line: str) -> None:
    """A line on the console."""
    print(shown(line, 400), file=sys.stderr, flush=True)


class _OneLine(logging.Handler):
    """What aiohttp and asyncio report, each as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        tell(f"skewsim serve: {record.getMessage()}{f': {error!r}' if error else ''}")


async def _serve(room: Room, listening: socket.socket, address: str, links: Sequence[str]) -> None:
    """Serve until a signal asks to stop; then every visitor's process is ended."""
    from aiohttp import web

    for name in ("aiohttp", "asyncio"):
        logger = logging.getLogger(name)
        logger.propagate, logger.handlers = False, [_OneLine()]
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    runner = web.AppRunner(room.application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        if not ipaddress.ip_address(address).is_loopback:
            tell(f"warning: host={address} lets other machines in; whoever has the link uses this machine's processors")
        print("\n".join(links), flush=True)
        tell("open a link in a browser; ctrl-c ends the server and every visitor's session")
        await asked.wait()
    finally:
        await runner.cleanup()


def _name(address: str) -> str:
    return f"[{address}]" if ":" in address else address
