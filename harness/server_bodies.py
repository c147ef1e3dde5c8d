"""The bodies of a server's answers, read piece by piece and up to a limit, whatever the server sends.

The limits are on decoded bytes, so that a small compressed body that becomes gigabytes is given up like a large one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx2

from harness.server_answers import Answer, parse
from skewsim.errors import EngineError, shown

LARGEST = 1 << 25
"""Decoded bytes of a body, of a line of a stream, and of what a stream says between two tokens."""
ENCODINGS = ("", "identity", "gzip", "deflate")
"""Of these a piece of the network becomes a thousand times larger at most."""


async def read_body(response: httpx2.Response) -> bytes:
    """The whole body. EngineError if it is larger than `LARGEST`."""
    body = bytearray()
    async for piece in _pieces(response):
        body += piece
        if len(body) > LARGEST:
            raise EngineError(f"sent an answer of more than {LARGEST >> 20} MiB")
    return bytes(body)


async def read_into(answer: Answer, response: httpx2.Response, *, version: Callable[[], int]) -> AsyncIterator[int]:
    """Add a body's parts to an answer: server-sent events, or the whole at once. Yields the number of tokens so far,
    whenever there are more. `version` is asked at each part: which weights are loaded when it comes."""
    if "event-stream" not in response.headers.get("content-type", ""):
        answer.take(parse(await read_body(response)), version=version())
        yield len(answer.tokens)
        return
    idle, known = 0, 0
    async for line in _lines(response):
        idle += len(line)
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            answer.take(parse(data), version=version())
        if len(answer.tokens) > known or answer.finish is not None:
            idle, known = 0, len(answer.tokens)
            yield known
        if idle > LARGEST:
            raise EngineError(f"sent more than {LARGEST >> 20} MiB without a token in it")


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    rest = bytearray()
    async for piece in _pieces(response):
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield bytes(rest) + line
            rest.clear()
        rest += last
        if len(rest) > LARGEST:
            raise EngineError(f"sent a line of more than {LARGEST >> 20} MiB")
    if rest:
        yield bytes(rest)


async def _pieces(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The decoded body as it comes. EngineError if its encoding is none that was asked for, or is not what it says."""
    encoding = shown(response.headers.get("content-encoding", "").lower(), 40)
    if encoding not in ENCODINGS:
        raise EngineError(f"answered in the encoding {encoding!r}, which nobody asked for")
    try:
        async for piece in response.aiter_bytes():
            yield piece
    except httpx2.DecodingError:
        raise EngineError(f"answered with bytes that are not {encoding}") from None
