"""Running a sweep: which members are still to be computed, in which chunks, and what to do when one is done.

The sweep goes in rounds. The first has every cell's seeds; if it is adaptive, each further one has what the cells ask
for: as many seeds again, or a cell between two (`adaptive.py`). What a round has follows from the curves of those
before it, so that a sweep that was killed and resumed computes the same members as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skewsim.errors import UserError
from skewsim.machine import free_memory, size
from skewsim.settings import Scenario
from skewsim.sweeps.adaptive import members_of
from skewsim.sweeps.chunk import Chunk, Columns, largest
from skewsim.sweeps.folder import Curves, SweepFolder, read_curves
from skewsim.sweeps.plan import Member, Sweep
from skewsim.sweeps.processes import in_processes, in_this_process

Compute = Callable[[Sequence[Chunk]], Iterator[tuple[Chunk, Columns]]]
"""Computes chunks: yields each with its curves as it is done."""


@dataclass(frozen=True)
class Progress:
    """How far a sweep is."""

    done: int
    """Members times steps, of those that were not there when it began; a member that stopped early counts whole."""
    total: int
    """The same, of all that is known to be computed; an adaptive sweep may find more."""
    members: int
    """Members whose curves are there, those of earlier tries too."""
    computed: int
    """Members computed by this command."""


def local(workers: int) -> Compute:
    """Compute chunks on this machine: in this process, or in several."""
    return in_this_process if workers == 1 else lambda chunks: in_processes(chunks, workers)


def run_sweep(sweep: Sweep, path: Path, compute: Compute, *, resume: bool = False) -> Iterator[Progress]:
    """Compute every member of a sweep that its folder does not have, and yield the progress after each chunk."""
    folder = SweepFolder(path, sweep, resume=resume)
    folder.check_room(sum(c.work for c in chunks_of(members_of(sweep, {}), {}, sweep)))
    with folder.writing():
        curves = read_curves(path, ("reward/mean",))
        done = total = computed = 0
        while chunks := chunks_of(members_of(sweep, curves), curves, sweep):
            total += sum(chunk.work for chunk in chunks)
            yield Progress(done, total, len(curves), computed)
            for chunk, found in compute(chunks):
                folder.append(chunk, found)
                curves |= _rewards(found)
                done, computed = done + chunk.work, computed + len(chunk.seeds)
                yield Progress(done, total, len(curves), computed)


def chunks_of(members: Sequence[Member], there: Mapping[str, Curves], sweep: Sweep) -> list[Chunk]:
    """The members that are not there yet, each once, in chunks of equal settings."""
    groups: dict[str, tuple[Scenario, dict[str, int]]] = {}
    for member in members:
        if member.key in there:
            continue
        settings = member.scenario.model_copy(update={"name": "sweep", "seed": 0})
        _, seeds = groups.setdefault(settings.model_dump_json(), (settings, {}))
        seeds[member.key] = member.seed
    chunks = []
    for scenario, found in groups.values():
        ordered = sorted(found.values())
        size = largest(scenario)
        parts = range(0, len(ordered), size)
        chunks += [Chunk(scenario, tuple(ordered[n : n + size]), sweep.stop) for n in parts]
    return chunks


def check_start(sweep: Sweep, workers: int) -> None:
    """UserError if a policy, a device or a profile of the sweep is missing, or if its processes need more memory than
    is free."""
    from skewsim.learn.base_policy import starting_policy
    from skewsim.learn.memory import StepSize
    from skewsim.skew.profile import load_profile
    from skewsim.task import Task

    for profile in {c.scenario.skew.profile for c in sweep.cells} - {None}:
        load_profile(str(profile))
    sizes: dict[str, int] = {}
    for cell in sweep.cells:
        scenario = cell.scenario
        kind = f"{scenario.policy} {scenario.device} {scenario.task} {scenario.trainer} {scenario.engine.lag}"
        if kind not in sizes:
            members = max(2, min(largest(scenario), sweep.most_seeds))
            config = starting_policy(scenario).config
            sizes[kind] = StepSize.of(scenario, config, Task(scenario.task), members=members).bytes
    free, need = free_memory(), workers * max(sizes.values())
    if free is not None and need > free:
        raise UserError(f"--workers {workers}: they take about {size(need)} of memory, and {size(free)} are free")


def _rewards(found: Columns) -> dict[str, Curves]:
    """What the rounds need to know of a chunk's members."""
    begins: dict[str, list[int]] = {}
    for index, key in enumerate(found["member"]):
        begins.setdefault(key, []).append(index)
    return {key: {name: found[name][rows] for name in ("reward/mean", "diverged")} for key, rows in begins.items()}
