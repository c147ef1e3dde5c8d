"""A server's address, as it is typed: ``http://host:port/v1``, or ``http://host:port/v1#MODEL``; and the key to it."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from skewsim.errors import UserError, shown

KEYS = ("SKEWSIM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that a server's key is taken from; the first that is set."""
_ALLOWED = "allowed is http://host:port/v1, or http://host:port/v1#MODEL"


@dataclass(frozen=True)
class Address:
    """Where a server is, and which model to ask there if it has more than one."""

    name: str
    """``http://host:port/v1``."""
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.name}#{self.model}" if self.model else self.name

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine, where a proxy has no business."""
        host = urlsplit(self.name).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


class ApiKey:
    """A server's key. It can be sent and looked for, and is never printed: its text is in no representation of it."""

    __slots__ = ("_forms", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._forms = sorted({text, json.dumps(text)[1:-1], repr(text)[1:-1]}, key=len, reverse=True)

    def __repr__(self) -> str:
        return "ApiKey(***)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not copied into files")

    def headers(self) -> dict[str, str]:
        """What proves to the server that the key is here."""
        return {"Authorization": f"Bearer {self._text}"}

    def scrub(self, text: str) -> str:
        """The text without the key, which a server may repeat in an error."""
        for form in self._forms:
            text = text.replace(form, "***")
        return text


def find_key(environment: Mapping[str, str] | None = None) -> ApiKey | None:
    """The key that one of the variables `KEYS` holds, without the blanks around it. Raises UserError."""
    values = os.environ if environment is None else environment
    for name in KEYS:
        text = values.get(name, "").strip()
        if not text:
            continue
        if not text.isascii() or not text.isprintable() or " " in text:
            raise UserError(f"{name}: allowed are printable ASCII characters without blanks (it is not shown here)")
        return ApiKey(text)
    return None


def split_address(url: str) -> Address:
    """The parts of ``http://host:port/v1#MODEL``. Raises UserError."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:  # a bracket that no IPv6 address closes
        raise UserError(f"engine={shown(repr(url), 80)}: {_ALLOWED}") from None
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if parts.username or parts.password or parts.query:
        raise UserError(f"engine: nothing secret belongs into an address; the key comes from {' or '.join(KEYS)}")
    if not good or not parts.path.rstrip("/").endswith("/v1"):
        raise UserError(f"engine={shown(repr(url), 80)}: {_ALLOWED}")
    return Address(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.fragment or None)
