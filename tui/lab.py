"""The state of the laboratory: which curves there are, what they have said, what is marked on them.

Pure state: no Textual, no thread of its own, no clock. The screen calls its verbs (`set_yours`, `undo`, `reset`,
`toggle_twin` ...), feeds it what the driver computed (`tick`) and draws it. `yours` is one scenario; the reference
and initial V1 share its task, seed and trainer, so that what separates the three curves is the engine alone (and
what yours does about it).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from skewsim.errors import UserError
from skewsim.scenarios import INITIAL_V1
from skewsim.settings import Scenario, changes, with_changes
from tui.controls import FIXES, Control, explore_controls
from tui.driver import SPEEDS, Driver, TrackSpec, TrackUpdate
from tui.series import Series

REFERENCE, V1, YOURS, TWIN = "reference", "initial_v1", "yours", "twin"
LETTERS = {REFERENCE: "r", V1: "v", YOURS: "y", TWIN: "t"}
DASHES = {REFERENCE: 0, V1: 6, YOURS: 0, TWIN: 2}
KEPT = (YOURS, REFERENCE, V1)
"""The curves that are kept in run folders, where any are."""
BAND = 5
HORIZON = 300
SMOOTH = 5
_MARKS = 200
_STUCK = 10
_NOT_SHARED = {"old_logprobs", "correction", "dtype", "head_dtype", "temperature"}
"""What a trainer may do about the engine; everything else of it the three curves have in common."""

OPENING = {
    "trainer.objective": "reinforce",
    "trainer.learning_rate": 3.5e-4,
    "trainer.adam_beta2": 0.95,
    "trainer.beta": 5e-5,
}
"""Where initial V1 falls and stays down, and comes back when it is mended: see docs/findings.md."""


@dataclass(frozen=True)
class Mark:
    """A toggle on the curve of yours: the first step that it acted on, its letter and what it was."""

    step: int
    letter: str
    text: str


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


def reference_for(yours: Scenario) -> Scenario:
    """All four fixes on, nothing injected: what the run would be without skew of the engine's making."""
    plain = Scenario(name=REFERENCE, steps=yours.steps, seed=yours.seed, policy=yours.policy, task=yours.task)
    plain = plain.with_values({"engine.temperature": yours.engine.temperature, "device": yours.device})
    shared = set(type(yours.trainer).model_fields) - _NOT_SHARED
    return plain.with_values({f"trainer.{name}": getattr(yours.trainer, name) for name in shared})


def initial_v1_for(yours: Scenario) -> Scenario:
    """The reference with all four fixes off."""
    return reference_for(yours).with_values({"name": V1, **INITIAL_V1})


def opening() -> Scenario:
    """What yours is on arrival: initial V1, one key away from each fix."""
    return initial_v1_for(Scenario(steps=HORIZON).with_values(OPENING)).with_values({"name": YOURS})


@dataclass
class Lab:
    """Everything that Explore shows, and the verbs of its keys."""

    driver: Driver
    yours: Scenario = field(default_factory=opening)
    band: bool = False
    smooth: int = SMOOTH
    pause_at: int | None = None
    """The step at which the first run pauses by itself, unless somebody has toggled something before: time to predict."""
    tracks: dict[str, Track] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    twin: Control | None = None
    heard: str = ""
    replaying: Path | None = None
    backward: bool = False
    _owed: float = 0.0
    _sought: int | None = None
    _arriving: bool = False
    _pending: list[tuple[int, Mark]] = field(default_factory=list)
    _history: list[Scenario] = field(default_factory=list)

    @property
    def seeds(self) -> tuple[int, ...]:
        first = self.yours.seed
        return tuple(range(first, first + BAND)) if self.band else (first,)

    @property
    def step(self) -> int:
        """The newest step of yours, or of whatever is being replayed."""
        return max((t.series.step for t in self.tracks.values()), default=-1)

    @property
    def over(self) -> bool:
        """Whether no curve goes on: all have reached their last step, diverged or failed."""
        return bool(self.tracks) and all(track.ended or track.failed for track in self.tracks.values())

    @property
    def stuck(self) -> bool:
        """Whether yours once had a reward and has had next to none for a while: nothing is left to learn from."""
        if self.main is None or self.replaying:
            return False
        rewards = self.main.series.mean("reward/mean")
        rewards = rewards[np.isfinite(rewards)]
        return bool(len(rewards) >= _STUCK and rewards[-_STUCK:].max() < 0.05 < rewards.max())

    @property
    def main(self) -> Track | None:
        """The curve that the other screens look at: yours, or the first one of a replay."""
        return self.tracks.get(YOURS) or next(iter(self.tracks.values()), None)

    @property
    def shown(self) -> Scenario:
        """The settings on the controls: those of yours, or in a replay those that the recorded run had at this step."""
        return self.main.scenario if self.replaying and self.main else self.yours

    def _recorded(self) -> bool:
        """Whether nothing can be changed; the answer to a key that would."""
        if self.replaying:
            self.heard = "recorded: 0 is live again"
        return self.replaying is not None

    def visible(self) -> list[Track]:
        return [track for track in self.tracks.values() if not track.hidden]

    def reset(self) -> None:
        """All curves from step 0 with the settings as they are now."""
        hidden = {name for name, track in self.tracks.items() if track.hidden}
        specs = self._specs()
        self.tracks = {spec.name: _track(spec, hidden=spec.name in hidden) for spec in specs}
        self.marks, self._pending, self.replaying, self.backward = [], [], None, False
        self._sought, self._arriving = None, False
        self.driver.restart(specs)

    def _specs(self) -> list[TrackSpec]:
        yours, seeds = self.yours, self.seeds
        specs = [
            TrackSpec(REFERENCE, reference_for(yours), seeds, taped=True),
            TrackSpec(V1, initial_v1_for(yours), seeds, taped=True),
        ]
        if self.twin is not None:
            specs.append(TrackSpec(TWIN, self._twin_of(self.twin), seeds))
        return [*specs, TrackSpec(YOURS, yours, seeds)]

    def set_yours(self, scenario: Scenario, *, letter: str = "*", text: str = "") -> None:
        """A toggle: it takes effect at the next step and is marked there."""
        if self._recorded():
            return
        if scenario == self.yours:
            self.heard = f"{text}: no further"
            return
        self._history.append(self.yours)
        del self._history[:-200]
        self._apply(scenario, letter=letter, text=text)

    def _apply(self, scenario: Scenario, *, letter: str, text: str) -> None:
        self.pause_at = None
        anew = _needs_restart(self.yours, scenario) or self.over
        self.yours = scenario
        self.heard = f"{text}: from step 0" if anew else f"{text}: from step {self.step + 1}"
        if anew:
            playing = self.driver.playing or self.over
            self.reset()
            self.driver.play(playing)
            return
        self._pending.append((self.driver.toggle(YOURS, scenario), Mark(-1, letter, text)))
        if self.twin is not None:
            self.driver.toggle(TWIN, self._twin_of(self.twin))

    def move(self, control: Control, by: int) -> None:
        """Turn a control of yours by some choices."""
        scenario = self.yours if self.replaying else control.moved(self.yours, by)
        self.set_yours(scenario, letter=control.letter, text=f"{control.label} {control.text(scenario)}")

    def move_fixes(self) -> None:
        """All four fixes on; all four off where they are on."""
        on = not all(fix.is_on(self.yours) for fix in FIXES)
        scenario = self.yours
        for fix in FIXES:
            scenario = scenario.with_values(fix.choices[-1 if on else 0].values)
        self.set_yours(scenario, letter="A", text=f"all four {'on' if on else 'off'}")

    def undo(self) -> bool:
        """Back to the settings before the last toggle; False when there is none."""
        if self._recorded():
            return False
        if not self._history:
            self.heard = "nothing to undo"
            return False
        before = self._history.pop()
        self._apply(before, letter="u", text=f"undo: {', '.join(_differences(self.yours, before)) or 'as before'}")
        return True

    def new_seed(self) -> bool:
        """Another seed; False in a replay, where nothing is done."""
        if self._recorded():
            return False
        self.yours = self.yours.with_values({"seed": (self.yours.seed + (BAND if self.band else 1)) % 2**31})
        self.heard = f"seed {self.yours.seed}, from step 0"
        self.reset()
        return True

    def toggle_band(self) -> bool:
        """Five seeds instead of one, or one again; False in a replay, where nothing is done."""
        if self._recorded():
            return False
        self.band = not self.band
        self.heard = f"{BAND} seeds: mean and range" if self.band else "one seed"
        self.reset()
        return True

    def toggle_twin(self, control: Control) -> bool:
        """Twin off, or a twin that differs from yours in one control; both run from step 0. False in a replay."""
        if self._recorded():
            return False
        if self.twin is not None:
            self.twin, self.heard = None, "twin off"
        else:
            self.twin = control
            self.heard = f"twin: {control.label} {control.text(self._twin_of(control))}"
        self.reset()
        return True

    def _twin_of(self, control: Control) -> Scenario:
        moved = control.moved(self.yours, 1)
        moved = control.moved(self.yours, -1) if moved == self.yours else moved
        return moved.with_values({"name": TWIN})

    def hide_next(self) -> None:
        """Hide the first visible curve that is not yours; when only yours is left, show all again."""
        others = [t for t in self.tracks.values() if t.name != YOURS and not t.hidden]
        if others:
            others[0].hidden = True
            self.heard = f"{others[0].name} hidden"
        else:
            for track in self.tracks.values():
                track.hidden = False
            self.heard = "all curves shown"

    def load(self, scenario: Scenario) -> None:
        """Take over a scenario from a share string, a preset or a file, and run it from step 0."""
        self._history.append(self.yours)
        self.yours, self.pause_at, self.heard = scenario.with_values({"name": YOURS}), None, ""
        self.reset()

    def replay(self, path: Path, runs: Sequence[TrackSpec]) -> None:
        """Show recorded runs instead of live ones; the driver's training is reading them."""
        self.replaying, self.marks, self._pending, self.twin, self.pause_at = path, [], [], None, None
        self._sought, self._arriving = None, False
        self.tracks = {}
        for i, spec in enumerate(runs):
            letter = LETTERS.get(spec.name, "abcdefghij"[i % 10])
            self.tracks[spec.name] = replace(
                _track(spec), letter=letter, dash=DASHES.get(spec.name, (0, 6, 2, 4)[i % 4])
            )
        self.driver.restart(runs)

    @property
    def position(self) -> int:
        """Steps shown, or about to be shown after a seek."""
        return self.step + 1 if self._sought is None else self._sought

    def seek(self, step: int) -> None:
        """A replay to the state after so many steps, backward or forward. What is on screen stays until it is there."""
        self._sought, self._arriving = max(step, 0), False
        self.driver.seek(self._sought)
        if self._sought == 0:
            self._forget()
            self._sought = None

    def _forget(self) -> None:
        for track in self.tracks.values():
            track.series, track.ended, track.scenario = Series(track.series.seeds), False, track.start
        self.marks = []

    def rewind(self, seconds: float) -> None:
        """Play a replay backward for so long, at the driver's speed."""
        self._owed += min(self.driver.speed, 200.0) * seconds
        if self._sought is not None:  # the driver is still on its way to where the last call sent it
            return
        steps, self._owed = int(self._owed), self._owed % 1
        if steps:
            self.backward = self.position > steps
            self.seek(self.position - steps)

    def tick(self) -> bool:
        """Take in what the driver has computed; True if anything is new."""
        updates = self.driver.drain()
        if updates and self._sought is not None and not self._arriving:
            self._forget()
            self._arriving = True
        for update in updates:
            track = self.tracks.get(update.track)
            if track is not None:
                self._take(track, update)
        if self._sought is not None and self._arriving and (self.step + 1 >= self._sought or self.over):
            self._sought, self._arriving = None, False
        if self.pause_at is not None and self.step >= self.pause_at:
            self.driver.play(False)
            self.pause_at, self.heard = None, "predict, switch, then space"
        return bool(updates)

    def _take(self, track: Track, update: TrackUpdate) -> None:
        track.ended |= update.ended
        track.failed = update.failed or track.failed
        if not update.records:
            return
        first = update.records[0]
        track.series.append(update.records)
        if track.name == YOURS and self.replaying is None:
            self.marks += [replace(mark, step=first.step) for serial, mark in self._pending if serial <= update.toggled]
            self._pending = [(serial, mark) for serial, mark in self._pending if serial > update.toggled]
            del self.marks[:-_MARKS]
        elif self.replaying is not None and first.events:
            before = track.scenario
            with suppress(UserError):  # another version's settings: they cannot be shown, only quoted
                track.scenario = with_changes(before, first.events)
            self.marks += _marks(first.step, before, track.scenario, first.events)


def _track(spec: TrackSpec, *, hidden: bool = False) -> Track:
    letter, dash = LETTERS.get(spec.name, "a"), DASHES.get(spec.name, 0)
    return Track(spec.name, letter, dash, spec.scenario, Series(spec.seeds), hidden)


def _moved(before: Scenario, after: Scenario) -> list[Control]:
    """The controls of the first screen that show something else; a fix stands for what it moves along."""
    moved = [c for c in explore_controls() if c.text(before) != c.text(after)]
    along = {path for control in moved for path in control.loose}
    return [c for c in moved if not c.choices or not set(c.choices[0].values) <= along]


def _differences(before: Scenario, after: Scenario) -> list[str]:
    """What was changed, in a few words."""
    moved = _moved(before, after)
    if all(fix in moved for fix in FIXES):
        return ["all four fixes"]
    return [f"{control.label} {control.text(after)}" for control in moved] or changes(before, after)


def _marks(step: int, before: Scenario, after: Scenario, events: Sequence[str]) -> list[Mark]:
    """The letters of a recorded toggle, as they stood on the live curve."""
    moved, words = _moved(before, after), "; ".join(events)
    letters = "A" if all(fix in moved for fix in FIXES) else "".join(control.letter for control in moved) or "*"
    return [Mark(step, letter, words) for letter in letters]


def _needs_restart(before: Scenario, after: Scenario) -> bool:
    """Whether a change cannot take effect in mid-run: another task, seed, policy, or another shape of the batch."""
    shape = ("num_prompts", "num_generations")
    return (
        before.task != after.task
        or (before.seed, before.policy, before.device, before.steps)
        != (after.seed, after.policy, after.device, after.steps)
        or any(getattr(before.trainer, name) != getattr(after.trainer, name) for name in shape)
    )


def next_speed(speed: float, by: int) -> float:
    """The next of the speeds up or down."""
    at = min(range(len(SPEEDS)), key=lambda i: abs(min(SPEEDS[i], 1e9) - min(speed, 1e9)))
    return SPEEDS[min(max(at + by, 0), len(SPEEDS) - 1)]


def speed_text(speed: float) -> str:
    return "max" if speed == float("inf") else f"{speed:g}/s"


def parse_share(text: str) -> Scenario:
    """A scenario from a share string. Raises UserError."""
    from skewsim.share import from_share

    if not text.strip():
        raise UserError("share string is empty; press y to copy one")
    return from_share(text)
