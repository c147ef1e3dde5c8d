"""One thread that asks for training steps, so that the screen never waits for one.

The thread owns a generator of records for each track (from `tui.process`, or from recorded runs) and advances them in
lock step. Orders go in through a queue and take effect between two steps; records come out through a deque that the
screen empties when it draws. The thread never touches a widget. To stop is to ask for no further record.

Training has no end of its own. When the steps of a scenario are done, the driver rests, and playing on goes on for as
many again; a driver that does not go on (`goes_on`) ends there.

A track may go back to an earlier step (`Back`), from where it is computed anew. The others wait until it has come to
where they are.

The records of a taped track are kept, so that a reset shows them again without computing them. A recorded run is driven
by the same thread: its "training" is reading records, from the beginning whenever that is asked for.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from skewsim.errors import SkewsimError, shown
from skewsim.records import StepRecord
from skewsim.settings import Scenario

Records = Sequence[StepRecord]


@dataclass(frozen=True)
class Back:
    """Go back to the nearest checkpoint at or before a step, and on from there with these settings."""

    step: int
    scenario: Scenario


Training = Generator[Records, Scenario | Back | None, None]
Train = Callable[[Scenario, tuple[int, ...]], Training]
TAPE = 600
"""How many steps of a track are kept for a reset; a longer track is computed again, which bounds the memory."""
SPEEDS: tuple[float, ...] = (1, 2, 5, 10, 20, 50, float("inf"))


@dataclass(frozen=True)
class TrackSpec:
    """A curve to compute: a scenario over some seeds. A taped track is never toggled, so it can be played again."""

    name: str
    scenario: Scenario
    seeds: tuple[int, ...]
    taped: bool = False
    train: Train | None = None
    """Where this track's records come from, when that is not the driver's own training: a recorded run."""


@dataclass(frozen=True)
class TrackUpdate:
    """One step of one track, or why it ended: `ended` for the end of its steps, `failed` for an error's one line.

    `toggled` is the number of the last toggle that had taken effect by this step.
    """

    epoch: int
    track: str
    records: Records
    toggled: int = 0
    ended: bool = False
    failed: str | None = None


class _Track:
    """A track's generator, and for a taped track its records so far. A recorded run needs no tape: it is read again."""

    def __init__(self, spec: TrackSpec, train: Train, *, goes_on: bool, most: float) -> None:
        self.spec, self.goes_on, self.most = spec, goes_on or spec.train is not None, most
        self.over = self.failed = False
        self._train = spec.train or train
        self._training: Training | None = None
        self._recorded = spec.train is not None
        self._taping = spec.taped and not self._recorded
        self._tape: list[Records] = []
        self._at = self.steps = 0
        self._pending: Scenario | Back | None = None
        self.toggled = self._ordered = 0

    def toggle(self, scenario: Scenario, serial: int) -> None:
        back = self._pending
        self._pending = replace(back, scenario=scenario) if isinstance(back, Back) else scenario
        self._ordered = serial

    def go_back(self, back: Back, serial: int) -> None:
        self._pending, self._ordered = back, serial
        self.steps, self.over = min(self.steps, back.step), self.failed

    def rewind(self) -> bool:
        """Back to step 0; False for a track without a tape, or one that failed: it has to be computed again."""
        if self._recorded:
            self._training = None
        elif not self._taping or self.failed:
            return False
        self._at = self.steps = 0
        self.over = False
        return True

    def advance(self) -> Records:
        """The next step's records. Raises StopIteration at the end."""
        if self.steps >= (self.most if self.goes_on else self.spec.scenario.steps):
            raise StopIteration
        records = self._taped()
        self.steps += 1
        return records

    @property
    def done(self) -> bool:
        """Whether the steps of its scenario are done, once or several times over."""
        return not self._recorded and self.steps > 0 and self.steps % self.spec.scenario.steps == 0

    def _taped(self) -> Records:
        if self._at < len(self._tape):
            self._at += 1
            return self._tape[self._at - 1]
        records = self._next()
        if self._taping:
            self._tape.append(records)
            self._at = len(self._tape)
            if self._at > TAPE:
                self._tape, self._taping = [], False
        return records

    def _next(self) -> Records:
        pending, self._pending = self._pending, None
        self.toggled = self._ordered
        if self._training is None:
            begun = pending.scenario if isinstance(pending, Back) else pending
            self._training = self._train(begun or self.spec.scenario, self.spec.seeds)
            records = next(self._training)
        else:
            records = next(self._training) if pending is None else self._training.send(pending)
        if not records:  # the run has ended, and can still go back
            raise StopIteration
        if isinstance(pending, Back):
            self.steps = records[0].step
        return records

    def close(self) -> None:
        if self._training is not None:
            self._training.close()


class Driver:
    """Play, pause, step, speed, toggle and restart for a set of tracks; `drain` gives the screen what is new.

    No track has more than `most` steps.
    """

    def __init__(self, train: Train, *, speed: float = 10, goes_on: bool = True, most: float = math.inf) -> None:
        self.train, self.goes_on, self._most = train, goes_on, most
        self._wake = threading.Condition()
        self._orders: deque[Callable[[], None]] = deque()
        self._updates: deque[TrackUpdate] = deque()
        self._tracks: dict[str, _Track] = {}
        self._stopping = False
        self._steps_wanted = self._serial = 0
        self._times: deque[float] = deque(maxlen=20)
        self.epoch = self._running_epoch = self._said_epoch = 0
        self.playing = True
        self.resting = False
        """Whether it has paused by itself because the steps of the scenario are done."""
        self.speed = speed
        self._thread = threading.Thread(target=self._run, name="skewsim-training", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 0.5) -> bool:
        """Ask the thread to end; True if it did in time. A step under way is not waited for any longer."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def restart(self, specs: Sequence[TrackSpec]) -> int:
        """All tracks from step 0; the updates of this run carry the epoch that is returned."""
        with self._wake:
            self.epoch += 1
            epoch = self.epoch
            self._updates.clear()
            self._order(lambda: self._restart(epoch, tuple(specs)))
        return epoch

    def seek(self, step: int) -> int:
        """All tracks to a step, at once; they have to be taped or recorded. Like a restart, this begins a new epoch."""
        with self._wake:
            self.epoch += 1
            epoch = self.epoch
            self._updates.clear()
            self._order(lambda: self._seek(epoch, step))
        return epoch

    def toggle(self, name: str, scenario: Scenario) -> int:
        """A new scenario for one track from the next step on; the number is found again in `TrackUpdate.toggled`."""
        with self._wake:
            self._serial += 1
            serial = self._serial
            self._order(lambda: self._toggle(name, scenario, serial))
        return serial

    def go_back(self, name: str, step: int, scenario: Scenario) -> int:
        """One track to its nearest checkpoint at or before a step, and on from there with a scenario.

        The other tracks wait until it has come to where they are. The number is one as `toggle` gives.
        """
        with self._wake:
            self._serial += 1
            serial = self._serial
            self._order(lambda: self._go_back(name, Back(step, scenario), serial))
        return serial

    def play(self, playing: bool) -> None:
        with self._wake:
            self.playing, self.resting = playing, False
            self._times.clear()
            self._wake.notify()

    def step(self) -> None:
        """One step, then pause."""
        with self._wake:
            self.playing = self.resting = False
            self._steps_wanted += 1
            self._wake.notify()

    def set_speed(self, speed: float) -> None:
        with self._wake:
            self.speed = speed
            self._times.clear()
            self._wake.notify()

    def drain(self, limit: int = 2000) -> list[TrackUpdate]:
        """What has been computed since the last call, of the current epoch."""
        updates: list[TrackUpdate] = []
        while self._updates and len(updates) < limit:
            update = self._updates.popleft()
            if update.epoch == self.epoch:
                updates.append(update)
        return updates

    @property
    def rate(self) -> float:
        """Steps a second over the last twenty steps, 0 while nothing moves."""
        times = list(self._times)
        if len(times) < 2 or not self.playing or time.monotonic() - times[-1] > 3:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        self._wake.notify()

    def _restart(self, epoch: int, specs: tuple[TrackSpec, ...]) -> None:
        tracks: dict[str, _Track] = {}
        for spec in specs:
            old = self._tracks.pop(spec.name, None)
            if old is not None and old.spec == spec and old.rewind():
                tracks[spec.name] = old
                continue
            if old is not None:
                old.close()
            tracks[spec.name] = _Track(spec, self.train, goes_on=self.goes_on, most=self._most)
        for left in self._tracks.values():
            left.close()
        self._tracks, self._running_epoch = tracks, epoch
        self.resting = False
        self._times.clear()

    def _seek(self, epoch: int, step: int) -> None:
        self._running_epoch = epoch
        for track in self._tracks.values():
            track.rewind()
        for _ in range(step):
            for track in self._tracks.values():
                if not track.over and not self._stopping:
                    self._advance(epoch, track, self._updates)

    def _toggle(self, name: str, scenario: Scenario, serial: int) -> None:
        if name in self._tracks:
            self._tracks[name].toggle(scenario, serial)

    def _go_back(self, name: str, back: Back, serial: int) -> None:
        if name in self._tracks:
            self._tracks[name].go_back(back, serial)

    def _run(self) -> None:
        due = 0.0
        while True:
            with self._wake:
                while not self._ready(due):
                    wait = due - time.monotonic() if self.playing and self._tracks else None
                    self._wake.wait(None if wait is None else max(wait, 0.0))
                if self._stopping:
                    break
                orders = list(self._orders)
                self._orders.clear()
                go = self.playing or self._steps_wanted > 0
                self._steps_wanted = max(0, self._steps_wanted - 1)
                interval = 1 / self.speed
            for order in orders:
                order()
            if go and (time.monotonic() >= due or not self.playing):
                due = max(due + interval, time.monotonic())
                self._lockstep()
        for track in self._tracks.values():
            track.close()

    def _ready(self, due: float) -> bool:
        if self._stopping or self._orders:
            return True
        if not self._tracks:
            return False
        return self._steps_wanted > 0 or (self.playing and time.monotonic() >= due)

    def _lockstep(self) -> None:
        epoch = self._running_epoch
        moved, news = False, list[TrackUpdate]()
        first = epoch != self._said_epoch
        self._said_epoch = epoch
        alive = [track for track in self._tracks.values() if not track.over]
        least = min((track.steps for track in alive), default=0)
        behind = [track for track in alive if track.steps == least]  # all of them, unless one went back
        for track in behind:
            if self._stopping or epoch != self.epoch:
                return
            moved |= self._advance(epoch, track, self._updates if first else news)
        self._updates.extend(news)  # all tracks at once, so that the curves on the screen end at the same step
        if moved:
            self._times.append(time.monotonic())
        with self._wake:
            if epoch != self.epoch:
                return  # somebody has begun other curves meanwhile, and said whether they play
            if not moved:
                self.playing = False
            elif self.goes_on and any(track.done and not track.over for track in behind):
                self.playing, self.resting = False, True

    def _advance(self, epoch: int, track: _Track, news: list[TrackUpdate] | deque[TrackUpdate]) -> bool:
        name = track.spec.name
        try:
            records = track.advance()
        except StopIteration:
            track.over = True
            news.append(TrackUpdate(epoch, name, (), ended=True))
            return False
        except Exception as error:  # the screen shows it as this curve's end; the other curves go on
            track.over = track.failed = True
            reason = str(error) if isinstance(error, SkewsimError) else f"{type(error).__name__}: {error}"
            news.append(TrackUpdate(epoch, name, (), failed=shown(reason.partition("\n")[0], 400) or "failed"))
            return False
        news.append(TrackUpdate(epoch, name, records, toggled=track.toggled))
        return True
