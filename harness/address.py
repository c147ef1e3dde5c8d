"""A server's address, as it is typed: ``http://host:port/v1``, or ``http://host:port/v1#MODEL``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from skewsim.errors import UserError

KEYS = ("SKEWSIM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that a server's key is taken from; the first that is set."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and which model to ask there if it has more than one."""

    name: str
    """``http://host:port/v1``."""
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.name}#{self.model}" if self.model else self.name


def split_address(url: str) -> Address:
    """The parts of ``http://host:port/v1#MODEL``. Raises UserError."""
    parts = urlsplit(url.strip())
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if parts.username or parts.password or parts.query:
        raise UserError(f"engine: nothing secret belongs into an address; the key comes from {' or '.join(KEYS)}")
    if not good or not parts.path.rstrip("/").endswith("/v1"):
        raise UserError(f"engine={url!r}: allowed is http://host:port/v1, or http://host:port/v1#MODEL")
    return Address(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment or None)
