"""The state of the laboratory: which curves there are, their numbers so far, and the toggles marked on them.

Pure state: no Textual, no thread of its own, no clock. The screen calls its verbs (`set_yours`, `undo`, `reset`,
`toggle_twin` ...), has it take in what the driver computed (`tick`) and draws it. `yours` is one scenario; the
reference and initial V1 share its task, seed and trainer, so that the three curves differ by the engine's settings
alone (and by what yours changes).

Curves are live or recorded. With an `archive` all of them are recorded, and no trainer is needed; without one, `replay`
shows recorded runs until `reset` brings the live ones back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from skewsim.errors import UserError
from skewsim.scenarios import INITIAL_V1, POINTS
from skewsim.settings import Scenario, changes, with_changes
from tui.controls import FAULTS, FIXES, Control, explore_controls
from tui.driver import SPEEDS, TrackSpec, TrackUpdate
from tui.playback import Playback, Track
from tui.recordings import LIVE, Archive, RecordedRun
from tui.series import Series

REFERENCE, V1, YOURS, TWIN, WAS = "reference", "initial_v1", "yours", "twin", "was"
"""`WAS` is yours as it was before it went back to an earlier step."""
LETTERS = {REFERENCE: "r", V1: "v", YOURS: "y", TWIN: "t", WAS: "w"}
DASHES = {REFERENCE: 0, V1: 6, YOURS: 0, TWIN: 2, WAS: 2}
KEPT = (YOURS, REFERENCE, V1)
"""The curves that are kept in run folders, where any are."""
BAND = 5
HORIZON = 300
SMOOTH = 5
_MARKS = 200
_STUCK = 10
_FURTHEST = 20
"""How many choices away a recorded one is looked for."""
_NOT_SHARED = {
    "old_logprobs",
    "correction",
    "dtype",
    "head_dtype",
    "moe_router_dtype",
    "router_replay",
    "temperature",
} | {path.removeprefix("trainer.") for path in FAULTS if path.startswith("trainer.")}
"""Trainer settings that are an answer to the engine's, or faults: yours may differ in them; all others are shared."""

BACK_KEY = "j"
OPENING = "grpo"
"""The objective of the first screen: see docs/findings.md."""


@dataclass(frozen=True)
class Mark:
    """A toggle on the curve of yours: the first step that it acted on, its letter and what it was."""

    step: int
    letter: str
    text: str


def reference_for(yours: Scenario) -> Scenario:
    """Yours' task, seed and trainer, with all four fixes on and no injected noise: a run whose engine adds no skew."""
    plain = Scenario(name=REFERENCE, steps=yours.steps, seed=yours.seed, policy=yours.policy, task=yours.task)
    values = {"engine.temperature": yours.engine.temperature, "device": yours.device}
    plain = plain.with_values({**values, "logit_offset": yours.logit_offset})
    shared = set(type(yours.trainer).model_fields) - _NOT_SHARED
    return plain.with_values({f"trainer.{name}": getattr(yours.trainer, name) for name in shared})


def initial_v1_for(yours: Scenario) -> Scenario:
    """The reference with all four fixes off."""
    return reference_for(yours).with_values({"name": V1, **INITIAL_V1})


def compared(yours: Scenario) -> tuple[Scenario, Scenario, Scenario]:
    """The reference, initial V1 and yours."""
    return reference_for(yours), initial_v1_for(yours), yours


def opening(objective: str = OPENING) -> Scenario:
    """What yours is when the app opens: initial V1's settings, so that each fix is one key away.

    Each objective opens at its own point, at which faults are seen in the reward; one that has none opens at GRPO's.
    """
    point = {"trainer.objective": objective, **POINTS.get(objective, POINTS[OPENING])}
    return initial_v1_for(Scenario(steps=HORIZON).with_values(point)).with_values({"name": YOURS})


def _opening_like(yours: Scenario, objective: str) -> Scenario:
    """An objective's opening with the seed of yours, and its fixes on or off."""
    found = opening(objective).with_values({"seed": yours.seed, "steps": yours.steps, "device": yours.device})
    for fix in FIXES:
        found = fix.moved(found, int(fix.is_on(yours)))
    return found


def _is_opening(yours: Scenario) -> bool:
    """Whether only the fixes and the seed were changed since the app opened, and the objective with its point."""
    return yours == _opening_like(yours, yours.trainer.objective)


def _turned(before: Scenario, after: Scenario) -> Scenario:
    """What a control makes of yours: another objective comes with its own opening while yours still is an opening."""
    objective = after.trainer.objective
    anew = objective != before.trainer.objective and _is_opening(before)
    return _opening_like(before, objective) if anew else after


@dataclass
class Lab(Playback):
    """Everything that Explore shows, and the verbs of its keys."""

    yours: Scenario = field(default_factory=opening)
    archive: Archive | None = None
    """Recorded runs to show instead of live ones, for want of torch; None: curves are live."""
    band: bool = False
    smooth: int = SMOOTH
    pause_at: int | None = None
    """The step at which the first run pauses by itself, to leave time for a prediction; not after a toggle."""
    marks: list[Mark] = field(default_factory=list)
    twin: Control | None = None
    heard: str = ""
    replaying: str | None = None
    """What is replayed, in a few words; None where the curves are live."""
    chosen: int | None = None
    """The step of a live run that was stepped back to, from which `go_back` goes on; None: the newest one."""
    check: Callable[[Scenario], None] = lambda scenario: None
    """Raises UserError for settings that may not be run here."""
    _rested: int = -1
    """The step at which it was last said that the driver rests."""
    _pending: list[tuple[int, Mark]] = field(default_factory=list)
    _history: list[Scenario] = field(default_factory=list)
    _replayed: list[TrackSpec] = field(default_factory=list)
    """The recorded curves that are shown."""

    def __post_init__(self) -> None:
        self._began = self.yours

    @property
    def seeds(self) -> tuple[int, ...]:
        first = self.yours.seed
        return tuple(range(first, first + BAND)) if self.band else (first,)

    @property
    def reversible(self) -> bool:
        return self.replaying is not None

    @property
    def now(self) -> int:
        """The step that yours is at, or was stepped back to; that of all curves where yours has ended."""
        yours = self.tracks.get(YOURS)
        at = yours.series.step if yours is not None and not self._stopped and not self.replaying else self.step
        return at if self.chosen is None else self.chosen

    @property
    def stuck(self) -> bool:
        """Whether yours once had a reward and now has almost none, so that it has nothing to learn from."""
        if self.main is None or self.replaying:
            return False
        rewards = self.main.series.mean("reward/mean")
        rewards = rewards[np.isfinite(rewards)]
        return bool(len(rewards) >= _STUCK and rewards[-_STUCK:].max() < 0.05 < rewards.max())

    @property
    def _stopped(self) -> bool:
        """Whether the curve of yours has diverged or failed, so that a toggle has to begin another."""
        yours = self.tracks.get(YOURS)
        return yours is not None and bool(yours.ended or yours.failed)

    @property
    def main(self) -> Track | None:
        """The curve that the other screens are about: yours, or the first one of a replay."""
        return self.tracks.get(YOURS) or next(iter(self.tracks.values()), None)

    @property
    def shown(self) -> Scenario:
        """The settings on the controls: those of yours, or in a replay those that the recorded run had at this step."""
        return self.main.scenario if self.replaying and self.main else self.yours

    @property
    def _run(self) -> RecordedRun | None:
        """The run that a recorded curve of yours plays, where its toggles are recorded too."""
        yours = next((spec.train for spec in self._replayed if spec.name == YOURS), None)
        return yours if self.replaying and isinstance(yours, RecordedRun) else None

    @property
    def live(self) -> str:
        """How to come to live curves, in a few words."""
        return "0 is live again" if self.archive is None else LIVE

    def _recorded(self) -> bool:
        """Whether nothing can be changed; the answer to a key that would."""
        if self.replaying:
            self.heard = f"recorded: {self.live}"
        return self.replaying is not None

    def visible(self) -> list[Track]:
        return [track for track in self.tracks.values() if not track.hidden]

    def reset(self) -> None:
        """All curves from step 0: live with the settings as they are now, or as they were recorded."""
        if self.archive is not None:
            self.yours = self._began
            specs = [replace(spec, taped=True, train=self.archive.run(spec.scenario)) for spec in self._specs()]
            self._show(specs, "recorded")
        else:
            self._show(self._specs(), None)

    def _show(self, specs: list[TrackSpec], replaying: str | None) -> None:
        """Begin other curves. Those that were hidden stay hidden."""
        hidden = {name for name, track in self.tracks.items() if track.hidden}
        self.tracks = {spec.name: _track(spec, i, hidden=spec.name in hidden) for i, spec in enumerate(specs)}
        self.marks, self._pending, self.replaying, self._rested, self.chosen = [], [], replaying, -1, None
        self._replayed = specs if replaying else []
        self.stay()
        self.driver.restart(specs)

    def _specs(self) -> list[TrackSpec]:
        reference, v1, yours = compared(self.yours)
        specs = [TrackSpec(each.name, each, self.seeds, taped=True) for each in (reference, v1)]
        if self.twin is not None:
            specs.append(TrackSpec(TWIN, self._twin_of(self.twin), self.seeds))
        return [*specs, TrackSpec(YOURS, yours, self.seeds)]

    def set_yours(self, scenario: Scenario, *, letter: str = "*", text: str = "") -> None:
        """A toggle: it takes effect at the next step and is marked there."""
        if self.replaying:
            self._choose(scenario, text)
            return
        if scenario == self.yours:
            self.heard = f"{text}: no further"
            return
        self.check(scenario)
        self._history.append(self.yours)
        del self._history[:-200]
        self._apply(scenario, letter=letter, text=text)

    def _apply(self, scenario: Scenario, *, letter: str, text: str) -> None:
        self.pause_at = None
        anew = _needs_restart(self.yours, scenario) or (self._stopped and self.chosen is None)
        self.yours = scenario
        self.heard = f"{text}: from step {0 if anew else self.now + 1}"
        if anew:
            playing = self.driver.playing or self.driver.resting or self._stopped
            self.reset()
            self.driver.play(playing)
            return
        if self.chosen is not None:
            self.heard = f"{text}: {BACK_KEY} for step {self.chosen}"
        if self.driver.resting:
            self.driver.play(True)
        self._pending.append((self.driver.toggle(YOURS, scenario), Mark(-1, letter, text)))
        if self.twin is not None:
            self.driver.toggle(TWIN, self._twin_of(self.twin))

    def _choose(self, wanted: Scenario, text: str) -> None:
        """A toggle in a replay: to the recorded run that has it, at the step at which it was made there."""
        run = self._run
        if run is None:
            self._recorded()
        elif (found := run.toggled(wanted, self.position)) is None:
            self.heard = f"{text}: not recorded"
        else:
            self._follow(found)
            self.heard = f"{text}: from step {found.start}"

    def _follow(self, run: RecordedRun) -> None:
        """Let yours play another recorded run, from where it parts from the one before."""
        position, over = run.start + 1 if run.parent is not None else self.position, self.over
        self._replayed = [replace(spec, train=run) if spec.name == YOURS else spec for spec in self._replayed]
        self.pause_at = None
        if self.archive is not None:
            self.yours = run.scenario.with_values({"name": YOURS})
        self.driver.restart(self._replayed)
        self.seek(position)
        if over:  # it stood at its end: show what the toggle does
            self.driver.play(True)

    def _settings(self) -> Scenario:
        """The settings that a key changes: those of yours, or in a replay those of the step that is shown or sought."""
        return self._run.at(self.position - 1) if self._run is not None else self.yours

    def move(self, control: Control, by: int) -> None:
        """Turn a control of yours by some choices; in a replay, to the next choice that was recorded."""
        now, scenario = self._settings(), control.moved(self._settings(), by)
        if self._run is not None:
            further = (control.moved(now, far if by > 0 else -far) for far in range(1, _FURTHEST))
            recorded = (each for each in further if each != now and self._run.toggled(each, self.position))
            scenario = next(recorded, scenario)
        elif not self.replaying:
            scenario = _turned(now, scenario)
        self.set_yours(scenario, letter=control.letter, text=f"{control.label} {control.text(scenario)}")

    def next_objective(self) -> None:
        """The next of the objectives that have an opening point; from another objective, the first of them."""
        names, control = tuple(POINTS), next(each for each in explore_controls() if each.id == "objective")
        now = self._settings().trainer.objective
        wanted = names[(names.index(now) + 1) % len(names)] if now in names else names[0]
        known = [choice.label for choice in control.choices]
        self.move(control, known.index(wanted) - known.index(now))

    def move_fixes(self) -> None:
        """All four fixes on; all four off where they are on."""
        scenario = self._settings()
        on = not all(fix.is_on(scenario) for fix in FIXES)
        for fix in FIXES:
            scenario = scenario.with_values(fix.choices[-1 if on else 0].values)
        self.set_yours(scenario, letter="A", text=f"all four {'on' if on else 'off'}")

    def look_back(self, steps: int) -> None:
        """Choose an earlier step of a live run, or a later one again, and pause there."""
        yours = self.tracks.get(YOURS)
        if yours is None or yours.series.step < 0:
            self.heard = "no step has been done yet"
            return
        self.driver.play(False)
        newest = yours.series.step
        self.chosen = min(max((newest if self.chosen is None else self.chosen) + steps, 0), newest)
        self.heard = "stepped back"

    def look_ahead(self) -> None:
        """Forget the step that was chosen."""
        self.chosen = None

    def go_back(self) -> bool:
        """Yours goes on from the chosen step with the settings as they are; the curve that it was stays beside it.

        False, and nothing done, without a chosen step, in a replay, or where the run has failed.
        """
        yours = self.tracks.get(YOURS)
        if self._recorded() or yours is None:
            return False
        if self.chosen is None or yours.failed:
            self.heard = f"{yours.failed}: 0 starts another" if yours.failed else "first step back with , or ["
            return False
        serial = self.driver.go_back(YOURS, self.chosen, self.yours)
        self._pending.append((serial, Mark(-1, "J", "back to this step")))
        self.heard, self.chosen = f"back to step {self.chosen} ...", None
        self.driver.play(True)
        return True

    def _went_back(self, track: Track, step: int) -> None:
        """Yours goes on from a step that it had before: what it was is another curve now."""
        was = Track(WAS, LETTERS[WAS], DASHES[WAS], track.scenario, track.series, ended=True)
        others = {name: each for name, each in self.tracks.items() if name not in (WAS, YOURS)}
        track.series, track.ended = track.series.before(step), False
        self.tracks = {**others, WAS: was, YOURS: track}
        self.marks = [mark for mark in self.marks if mark.step < step]
        self.heard = f"again from step {step}"

    def undo(self) -> bool:
        """Back to the settings before the last toggle; False when there is none."""
        if self._run is not None and self._run.parent is not None:
            self._follow(self._run.parent)
            self.heard = "undo: the run as it was before"
            return True
        if self._run is None and self._recorded():
            return False
        if self._run is not None or not self._history:
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
        self.heard = f"{BAND} seeds, mean and range: from step 0" if self.band else "one seed: from step 0"
        self.reset()
        return True

    def toggle_twin(self, control: Control) -> bool:
        """Twin off, or a twin that differs from yours in one control; both run from step 0. False in a replay."""
        if self._recorded():
            return False
        if self.twin is not None:
            self.twin, self.heard = None, "twin off: from step 0"
        else:
            self.twin = control
            self.heard = f"twin, {control.label} {control.text(self._twin_of(control))}: from step 0"
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
        """Take over a scenario from a share string, a preset or a file, and run it from step 0.

        Raises UserError, and changes nothing, where they may not be run, or runs are recorded and none is of them.
        """
        scenario = scenario.with_values({"name": YOURS})
        self.check(scenario)
        if self.archive is not None:
            self.archive.run(scenario)
        self._history.append(self.yours)
        self.yours = self._began = scenario
        self.pause_at, self.heard = None, "from step 0"
        self.reset()

    def replay(self, title: str, runs: Sequence[TrackSpec]) -> None:
        """Show recorded runs instead of live ones; the driver reads their records in place of training."""
        self.twin, self.pause_at = None, None
        self._show(list(runs), title)

    def forget(self) -> None:
        super().forget()
        self.marks = []

    def tick(self) -> bool:
        """Take in what the driver has computed; True if anything is new."""
        news = super().tick()
        if self.driver.playing:
            self.look_ahead()
        if self.pause_at is not None and self.step >= self.pause_at:
            self.driver.play(False)
            self.pause_at, self.heard = None, "predict, switch, then space"
        if self.driver.resting and self._rested != self.now and (self.now + 1) % self.yours.steps == 0:
            self._rested, self.heard = self.now, "steps done: space goes on"
            news = True
        return news

    def take(self, track: Track, update: TrackUpdate) -> None:
        if self.replaying is None and update.records and update.records[0].step <= track.series.step:
            self._went_back(track, update.records[0].step)
        super().take(track, update)
        if not update.records:
            return
        first = update.records[0]
        if track.name == YOURS and self.replaying is None:
            self.marks += [replace(mark, step=first.step) for serial, mark in self._pending if serial <= update.toggled]
            self._pending = [(serial, mark) for serial, mark in self._pending if serial > update.toggled]
            del self.marks[:-_MARKS]
        elif self.replaying is not None and first.events:
            before = track.scenario
            with suppress(UserError):  # another version's settings: they cannot be shown, only quoted
                track.scenario = with_changes(before, first.events)
            self.marks += _marks(first.step, before, track.scenario, first.events)


def _track(spec: TrackSpec, at: int, *, hidden: bool = False) -> Track:
    """An empty curve; one without a letter and a dash pattern of its own gets them by its place."""
    letter, dash = LETTERS.get(spec.name, "abcdefghij"[at % 10]), DASHES.get(spec.name, (0, 6, 2, 4)[at % 4])
    return Track(spec.name, letter, dash, spec.scenario, Series(spec.seeds), hidden)


def _moved(before: Scenario, after: Scenario) -> list[Control]:
    """The controls of the first screen whose text differs, without those that a moved fix sets as well."""
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
    """A recorded toggle's marks: a letter for each control that was turned, as on the live curve."""
    moved, words = _moved(before, after), "; ".join(events)
    letters = "A" if all(fix in moved for fix in FIXES) else "".join(control.letter for control in moved) or "*"
    return [Mark(step, letter, words) for letter in letters]


def _needs_restart(before: Scenario, after: Scenario) -> bool:
    """Whether a change begins at step 0: another opening, task, seed, policy, or another shape of the batch."""
    shape = ("num_prompts", "num_generations")
    fixed = ("seed", "policy", "logit_offset", "device", "steps")
    return (
        before.task != after.task
        or (before.trainer.objective != after.trainer.objective and _is_opening(before) and _is_opening(after))
        or any(getattr(before, name) != getattr(after, name) for name in fixed)
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
