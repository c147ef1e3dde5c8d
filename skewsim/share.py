"""A scenario as text: a TOML file, a short share string, and ``path=value`` on the command line.

TOML has no null, so an optional setting that is off is written ``"none"``, and only where off is not the default. A
share string holds the differences from the defaults as JSON, deflated, in base64url (RFC 4648, section 5) after a
version prefix; it contains no character that chats, shells or URLs change. Nothing here imports torch, and nothing that
is read is ever executed.
"""

from __future__ import annotations

import base64
import binascii
import json
import tomllib
import types
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel

from skewsim.border import load_toml_data, parse_json, parse_toml
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.settings import SCHEMA_VERSION, Scenario, parse_scenario

SHARE_PREFIX = "skew1-"
_SHARE_LIMIT = 65_536
"""Largest size in bytes that a share string may inflate to; a scenario with every setting changed takes under 2,000."""
LONGEST_VALUE = 4096
"""Characters of a setting's value, at most; the longest is a path."""


def to_toml(scenario: Scenario) -> str:
    """Every setting as TOML; ``from_toml`` gives an equal scenario."""
    return tomli_w.dumps(_without_null(scenario))


def from_toml(text: str, *, source: str = "scenario") -> Scenario:
    """A scenario from TOML text; settings left out have their defaults. ``source`` names the text in errors."""
    return _parse_foreign(parse_toml(text, source), source)


def load_toml(path: Path) -> Scenario:
    """A scenario from a TOML file."""
    return _parse_foreign(load_toml_data(path), str(path))


def to_share(scenario: Scenario) -> str:
    """The scenario's share string, without spaces."""
    text = json.dumps(_differences(scenario.model_dump(), Scenario().model_dump()), separators=(",", ":"))
    return SHARE_PREFIX + base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).rstrip(b"=").decode()


def from_share(text: str) -> Scenario:
    """The scenario of a share string. Raises FileFormatError with one line if it is cut off or of a later version."""
    text = text.strip()
    if not text.startswith(SHARE_PREFIX):
        raise FileFormatError(f"share string {text[:12]!r} is not known; this program reads {SHARE_PREFIX}...")
    body = text.removeprefix(SHARE_PREFIX)
    try:
        packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        inflate = zlib.decompressobj()
        data = parse_json(inflate.decompress(packed, _SHARE_LIMIT), "share string")
        complete = inflate.eof and isinstance(data, dict)
    except (binascii.Error, zlib.error, ValueError, FileFormatError):
        complete = False
    if not complete:
        raise FileFormatError(f"share string {text[:12]!r}... is cut off or mistyped")
    return _parse_foreign(data, "share string")


def is_share(text: str) -> bool:
    """Whether the text looks like a share string, of this version or another."""
    head, dash, _ = text.partition("-")
    return bool(dash) and head.startswith("skew") and head[4:].isdigit()


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["engine.lag=8", "engine.update_at_token=none"]`` as the values of ``Scenario.with_values``.

    A value is read as a TOML scalar, or as plain text if it is not one; none and null switch an optional setting off.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path:
            raise UserError(f"--set {shown(assignment, 80)}: allowed is path=value, as in engine.temperature=1.0")
        if path in values:
            raise UserError(f"--set {shown(path, 80)} is given twice")
        if len(text) > LONGEST_VALUE:
            raise UserError(
                f"{shown(path, 80)}={shown(text, 40)}: has {len(text)} characters; allowed are {LONGEST_VALUE}"
            )
        values[path] = _scalar(path, text.strip())
    return values


def is_optional(path: str) -> bool:
    """Whether the setting at a dotted path may be none."""
    return types.NoneType in kinds_of(path)


def kinds_of(path: str) -> tuple[Any, ...]:
    """The types of which the setting at a dotted path may be; empty if there is no such setting."""
    model: type[BaseModel] = Scenario
    *parents, leaf = path.split(".")
    for name in parents:
        child = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(child, type) and issubclass(child, BaseModel)):
            return ()
        model = child
    if leaf not in model.model_fields:
        return ()
    kind = model.model_fields[leaf].annotation
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _scalar(path: str, text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None if is_optional(path) else text.lower()
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _parse_foreign(data: dict[str, Any], source: str) -> Scenario:
    """Parse data from a file or share string; the version is checked first, as a later layout may break any rule."""
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise FileFormatError(f"{source}: schema_version={version!r} is not known; this program reads {SCHEMA_VERSION}")
    try:
        return parse_scenario(_with_null(data, ""))
    except UserError as error:
        raise FileFormatError(f"{source}: {error}") from None


def _with_null(data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """``"none"`` becomes None where the setting is optional."""
    return {
        key: _with_null(value, f"{prefix}{key}.")
        if isinstance(value, dict)
        else None
        if value == "none" and is_optional(prefix + key)
        else value
        for key, value in data.items()
    }


def _without_null(model: BaseModel) -> dict[str, Any]:
    """A model as TOML data: None is left out where it is the default, and ``"none"`` where it is not."""
    data: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            data[name] = _without_null(value)
        elif value is not None:
            data[name] = value
        elif field.default is not None:
            data[name] = "none"
    return data


def _differences(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``data`` that differ from ``defaults``, nested in the same way."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            if inner := _differences(value, defaults[key]):
                found[key] = inner
        elif value != defaults[key]:
            found[key] = value
    return found
