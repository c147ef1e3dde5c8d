"""What the makers of the fuzz share: odd values, and ways to spoil data and bytes."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = (
    0, 1, -1, 2, 3, 5, 0.5, -0.5, 1e-9, 1e-45, 5e-324, 1e9, 1e38, 1e39, 1e308, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1,
    2**64, 10**30, float("inf"), float("-inf"), float("nan"), True, False,
)  # fmt: skip
TEXTS = (
    "", " ", "none", "null", "cpu", "cuda", "cuda:7", "normal", "\x1b]52;c;eA==\x07", "a\x00b", "\u202eabc", "\ud800", "é", "x" * 300,
    "/dev/zero", "/", ".", "..", "~", "[bold]", "\r\n", "9" * 4301, "[" * 1000, "{a=" * 300, '"""', "1e999", "0x10", "1979-05-27",
)  # fmt: skip


def leaf(rng: random.Random) -> Any:
    """A value that some reader may not be ready for."""
    return rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), None, [], {}, [1], [[]], {"a": {}}, rng.gauss(0, 3)))


def paths(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within JSON data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [way for key, value in items for way in ((*at, key), *paths(value, (*at, key)))]


def altered(data: Any, rng: random.Random, *, times: int = 2) -> Any:
    """The data with a few values replaced, left out, renamed, or put into lists."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, times)):
        ways = paths(data)
        if not ways:
            break
        *parents, last = rng.choice(ways)
        node = data
        for key in parents:
            node = node[key]
        how = rng.randrange(5)
        if how == 0:
            del node[last]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(TEXTS)[:400]] = node.pop(last)
        elif how == 2:
            node[last] = [node[last]] * rng.randint(0, 3)
        else:
            node[last] = leaf(rng)
    return data


def spoiled(content: bytes, rng: random.Random) -> bytes:
    """The bytes cut off, doubled, or with some of them changed."""
    if not content:
        return content
    at = rng.randrange(len(content))
    how = rng.randrange(5)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[at:] * 2
    if how == 2:
        return content[:at] + rng.randbytes(rng.randint(1, 4)) + content[at + 1 :]
    if how == 3:
        return content[:at] + rng.choice(TEXTS).encode(errors="surrogatepass") + content[at:]
    return rng.randbytes(rng.randint(0, 64))
