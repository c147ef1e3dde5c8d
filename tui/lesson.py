"""Lessons as data: a lesson is a TOML file of cards, and a `Player` goes through them.

A card (`[[step]]` in the file) says something. It may change the settings of yours (`set`), ask for a prediction
(`ask`), and tell the learner to do something (`do`) and wait until that is done (`check`). The last card names the
setting to type in vLLM, TRL or verl (`type`). The player is pure state, so that a test can play a lesson without a
screen. A `claim` says what the curves will do; benchmarks/tui_lessons.py checks it with fresh runs.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from skewsim.errors import FileFormatError, UserError
from skewsim.settings import Scenario, one_line
from skewsim.share import is_optional
from tui.controls import explore_controls
from tui.lab import HORIZON, Lab


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardCheck(_Part):
    """What the learner has to do: turn a control to a value, open a screen, or let the run reach a step."""

    control: str | None = None
    value: str | None = None
    screen: str | None = None
    steps: int | None = None

    def met(self, lab: Lab, screen: str) -> bool:
        """Whether it has been done."""
        if self.screen is not None:
            return screen == self.screen
        if self.steps is not None:
            return lab.step >= self.steps
        control = next(c for c in explore_controls() if c.id == self.control)
        return control.text(lab.yours) == self.value


class Ask(_Part):
    """A prediction: options, the index of the right one, and why."""

    question: str
    options: list[str] = Field(min_length=2, max_length=4)
    answer: int = Field(ge=0)
    because: str

    @model_validator(mode="after")
    def _answerable(self) -> Ask:
        if self.answer >= len(self.options):
            raise ValueError(f"answer={self.answer} is not one of {len(self.options)} options")
        return self


class Card(_Part):
    """A card of a lesson."""

    say: str
    highlight: str | None = None
    """The control to look at."""
    watch: str | None = None
    """The metric to look at; its chart stays until another card names one."""
    set: dict[str, Any] = {}
    ask: Ask | None = None
    do: str | None = None
    check: CardCheck | None = None
    type: str | None = None
    hold: bool = False
    """Whether the curves wait on this card, because the next one asks what they will do."""

    @field_validator("set")
    @classmethod
    def _with_none(cls, values: dict[str, Any]) -> dict[str, Any]:
        """TOML has no null: an optional setting that is off reads "none"."""
        return {path: None if value == "none" and is_optional(path) else value for path, value in values.items()}

    @model_validator(mode="after")
    def _complete(self) -> Card:
        if (self.do is None) != (self.check is None):
            raise ValueError("do and check go together: what to do, and how to see that it was done")
        return self


class Claim(_Part):
    """A statement about two runs: over their last tenth, `left`'s metric is above `right`'s by at least `by`."""

    says: str
    metric: str
    left: dict[str, Any]
    right: dict[str, Any] = {}
    by: float = 0.0
    steps: int = 100


class Lesson(_Part):
    """One lesson: its cards and its claims."""

    name: str
    title: str
    minutes: int = 5
    step: list[Card] = Field(min_length=3)
    claim: list[Claim] = []

    def check_visible(self, hidden: frozenset[str]) -> None:
        """Raises UserError if a card asks for a control or a screen that is hidden."""
        asked = (name for step in self.step if step.check for name in (step.check.control, step.check.screen))
        if missing := sorted({name for name in asked if name in hidden}):
            raise UserError(f"lesson {self.name} needs what is hidden: {', '.join(missing)}")


def lesson_names() -> list[str]:
    """The lessons in their order."""
    folder = resources.files("tui") / "lessons"
    names = [entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return sorted(names, key=lambda name: int(name.partition("-")[0]))


def load_lesson(name: str) -> Lesson:
    """A lesson by its name, or by the part of it that tells it apart. Raises UserError with the names there are."""
    names = lesson_names()
    found = [n for n in names if n == name] or [n for n in names if name and name in n]
    if len(found) > 1:
        raise UserError(f"lesson {name!r} may be any of: {', '.join(found)}")
    if not found:
        raise UserError(f"lesson {name!r} is not known; allowed: {', '.join(names)}")
    text = (resources.files("tui") / "lessons" / f"{found[0]}.toml").read_text(encoding="utf-8")
    return parse_lesson(text, found[0])


def parse_lesson(text: str, name: str) -> Lesson:
    """A lesson from TOML. Raises FileFormatError with one line."""
    try:
        return Lesson.model_validate({"name": name, **tomllib.loads(text)})
    except ValidationError as error:
        raise FileFormatError(f"lesson {name}: {one_line(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise FileFormatError(f"lesson {name}: {error}") from None


Phase = Literal["say", "ask", "revealed", "do", "done", "over"]


@dataclass
class Player:
    """A lesson that is being played: the card it is at, and what it waits for (`phase`)."""

    lesson: Lesson
    at: int = 0
    phase: Phase = "say"
    chosen: int | None = None
    right: int = 0
    asked: int = 0

    @property
    def step(self) -> Card:
        return self.lesson.step[min(self.at, len(self.lesson.step) - 1)]

    @property
    def watched(self) -> str | None:
        """The metric that this card, or the last one that named any, points at."""
        return next((step.watch for step in reversed(self.lesson.step[: self.at + 1]) if step.watch), None)

    @property
    def score(self) -> str:
        return f"{self.lesson.title}: {self.right} of {self.asked} predictions right" if self.asked else ""

    @property
    def marks(self) -> str:
        """The score in two words."""
        return f"{self.right}/{self.asked} right" if self.asked else ""

    @property
    def waits(self) -> bool:
        """Whether the curves wait: for a prediction that is asked for, or that the next card asks for."""
        return self.phase == "ask" or (self.step.hold and self.phase != "over")

    def begin(self, lab: Lab) -> None:
        """Show the first card. A lesson starts from the default settings, whatever was on the screen before."""
        lab.load(Scenario(steps=HORIZON, seed=lab.yours.seed).with_values(self.step.set))
        self._show()
        lab.driver.play(not self.waits)

    def leave(self, lab: Lab) -> None:
        """Let curves go on that wait for a prediction which will not come."""
        if self.waits:
            lab.driver.play(True)

    def _enter(self, lab: Lab) -> None:
        waited = self.waits
        self.at += 1
        if self.step.set:
            lab.load(lab.yours.with_values(self.step.set))
        self._show()
        if self.waits or waited or self.step.set:
            lab.driver.play(not self.waits)

    def _show(self) -> None:
        self.chosen = None
        self.phase = "ask" if self.step.ask else "do" if self.step.check else "say"

    def answer(self, index: int, lab: Lab) -> bool:
        """Give a prediction, whereupon the curves go on; True if it is right. It counts once."""
        ask = self.step.ask
        if self.phase != "ask" or ask is None:
            return False
        self.chosen, self.phase = index, "revealed"
        lab.driver.play(not self.waits)
        self.asked += 1
        correct = index == ask.answer
        self.right += correct
        return correct

    def proceed(self, lab: Lab) -> bool:
        """Go on to the next card; False while the card waits for an answer, or for something to be done."""
        if self.phase in ("ask", "do", "over"):
            return False
        if self.phase == "revealed" and self.step.check is not None:
            self.phase = "do"
            return True
        if self.at + 1 >= len(self.lesson.step):
            self.phase = "over"
            return True
        self._enter(lab)
        return True

    def observe(self, lab: Lab, screen: str) -> bool:
        """Check whether the learner has done what the card asks; True once, when it is first seen to be done."""
        check = self.step.check
        if self.phase == "do" and check is not None and check.met(lab, screen):
            self.phase = "done"
            return True
        return False
