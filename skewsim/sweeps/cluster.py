"""Chunks computed on Ray: on a cluster of this machine, or on the one that RAY_ADDRESS names.

A task is a function of its chunk alone, so that Ray may begin it again where a worker or a machine is lost; its curves
come to the driver, which writes them, once each. Ray asks for no file of the driver: skewsim has to be installed on
every machine of a cluster, in the same version. Chunks and curves travel between the processes of the cluster as Ray
sends them, which is by pickle: a cluster has to be one's own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from skewsim.errors import SkewsimError
from skewsim.sweeps.chunk import Chunk, Columns, train_chunk
from skewsim.sweeps.processes import TRIES

PATIENCE = 10
"""Seconds that a cluster has to answer."""
VARIABLE = "RAY_ADDRESS"
"""The environment variable that names a cluster; Ray's own."""

HERE = {"worker_niceness": 0}
"""How a cluster of this machine differs from Ray's defaults: its workers have the priority that our own processes have,
where Ray's come after everything else on the machine (niceness 15), and so are slower beside any other load."""


def on_ray(chunks: Sequence[Chunk], workers: int) -> Iterator[tuple[Chunk, Columns]]:
    """Every chunk with its curves, in the order in which they are done; ``workers``: of a cluster of this machine."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    with connected(workers):
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(train_chunk)
        waiting = {task.remote(chunk): chunk for chunk in chunks}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            chunk = waiting.pop(done)
            try:
                found = ray.get(done)
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, SkewsimError) else error from None
            except RayError as error:
                raise SkewsimError(
                    f"Ray lost the {len(chunk.seeds)} members of a chunk {TRIES} times: {error}"
                ) from None
            yield chunk, found


@contextmanager
def connected(workers: int) -> Iterator[None]:
    """Ray, started here or reached at RAY_ADDRESS, and left again at the end; as it is, if it is there already.

    SkewsimError if it cannot be reached.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    address = os.environ.get(VARIABLE)
    here: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False, "_system_config": HERE}
    mine = not ray.is_initialized()
    try:
        if mine:
            _knock(address)
            ray.init(**({} if address else here), log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise SkewsimError(f"Ray at {address or 'this machine'} cannot be reached: {error}") from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _knock(address: str | None) -> None:
    """OSError if nothing answers at host:port; Ray itself waits for minutes before it says so."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
