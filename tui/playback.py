"""Curves that a driver advances, and the verbs that move through them: to a step, backward, and on.

Pure state: no Textual, no thread of its own, no clock. Explore's lab and the ladder are both played this way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skewsim.settings import Scenario
from tui.driver import Driver, TrackUpdate
from tui.series import Series


@dataclass
class Track:
    """One curve's scenario and numbers."""

    name: str
    letter: str
    dash: int
    scenario: Scenario
    series: Series
    hidden: bool = False
    ended: bool = False
    failed: str | None = None

    def __post_init__(self) -> None:
        self.start = self.scenario

    @property
    def note(self) -> str | None:
        """What there is to say about a curve that does not go on."""
        if self.failed:
            return f"stopped: {self.failed}"
        if self.series.diverged:
            step, reason = next(iter(self.series.diverged.values()))
            count = len(self.series.diverged)
            return f"diverged at step {step}: {reason}" + (f" ({count} seeds)" if count > 1 else "")
        return None

    @property
    def short_note(self) -> str | None:
        """The same in a word or two."""
        if self.failed:
            return "stopped"
        return f"diverged at {min(s for s, _ in self.series.diverged.values())}" if self.series.diverged else None


@dataclass
class Playback:
    """Curves side by side, and where in them the screen is."""

    driver: Driver
    tracks: dict[str, Track] = field(default_factory=dict)
    backward: bool = False
    """Whether it plays backward: whoever has a clock then calls `rewind`."""
    _owed: float = field(default=0.0, init=False)
    """The part of a step that `rewind` has not gone back yet."""
    _sought: int | None = field(default=None, init=False)
    """How many steps the last `seek` asked for, until they are on the screen."""
    _arriving: bool = field(default=False, init=False)

    @property
    def reversible(self) -> bool:
        """Whether it can go back: everything shown is recorded or kept."""
        return True

    @property
    def step(self) -> int:
        """The newest step of any curve, or -1."""
        return max((t.series.step for t in self.tracks.values()), default=-1)

    @property
    def over(self) -> bool:
        """Whether no curve goes on: all have reached their last step, diverged or failed."""
        return bool(self.tracks) and all(track.ended or track.failed for track in self.tracks.values())

    @property
    def position(self) -> int:
        """How many steps are shown, or are about to be shown after a `seek`."""
        return self.step + 1 if self._sought is None else self._sought

    def seek(self, step: int) -> None:
        """To the state after so many steps, backward or forward. What is on screen stays until that is computed."""
        self._sought, self._arriving = max(step, 0), False
        self.driver.seek(self._sought)
        if self._sought == 0:
            self.forget()
            self._sought = None

    def rewind(self, seconds: float) -> None:
        """Play backward for so long, at the driver's speed."""
        self._owed += min(self.driver.speed, 200.0) * seconds
        if self._sought is not None:  # the driver has not yet reached the step that the last call asked for
            return
        steps, self._owed = int(self._owed), self._owed % 1
        if steps:
            self.backward = self.position > steps
            self.seek(self.position - steps)

    def stay(self) -> None:
        """Forget where the last `seek` was going: something else is played now."""
        self._sought, self._arriving, self.backward = None, False, False

    def forget(self) -> None:
        """Empty all curves: they are at step 0 again."""
        for track in self.tracks.values():
            track.series, track.ended, track.scenario = Series(track.series.seeds), False, track.start

    def tick(self) -> bool:
        """Take in what the driver has computed; True if anything is new."""
        updates = self.driver.drain()
        if updates and self._sought is not None and not self._arriving:
            self.forget()
            self._arriving = True
        for update in updates:
            track = self.tracks.get(update.track)
            if track is not None:
                self.take(track, update)
        if self._sought is not None and self._arriving and (self.step + 1 >= self._sought or self.over):
            self._sought, self._arriving = None, False
        return bool(updates)

    def take(self, track: Track, update: TrackUpdate) -> None:
        """One step of one curve, or its end."""
        track.ended |= update.ended
        track.failed = update.failed or track.failed
        if update.records:
            track.series.append(update.records)
