"""What is recorded and ships with the app: the opening, the ladder, and each lesson as it is meant to be played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skewsim.scenarios import ladder_scenarios
from skewsim.settings import Scenario
from tui.controls import FIXES, explore_controls
from tui.driver import TrackSpec
from tui.lab import HORIZON, YOURS, compared, opening
from tui.lesson import Lesson, lesson_names, load_lesson
from tui.recordings import Archive

Toggles = tuple[tuple[int, Scenario], ...]
"""The toggles of one run, in their order: the first step that each acts on, and the settings from there on."""
LADDER_STEPS, LESSON_STEPS, OPENING_STEPS = 100, 100, 120
"""How many steps of a run are recorded."""
OBJECTIVES = ("grpo", "reinforce")
"""The objectives that the ladder is recorded with: the opening's, and one without a clip."""
_FIRST, _LATER, _APART = 20, 50, 30
_IN_A_LESSON = 40


@dataclass(frozen=True)
class Show:
    """Curves to watch, and the toggles of the last one that are recorded: each sequence is a run of its own."""

    title: str
    scenarios: tuple[Scenario, ...]
    steps: int
    toggles: tuple[Toggles, ...] = ()

    def tracks(self, archive: Archive) -> list[TrackSpec]:
        """The curves as they were recorded. Raises UserError if one is not."""
        return [TrackSpec(s.name, s, (s.seed,), taped=True, train=archive.run(s)) for s in self.scenarios]


def shows() -> list[Show]:
    """Everything that is recorded."""
    lessons = (show for name in lesson_names() for show in lesson_shows(load_lesson(name)))
    return [opening_show(), *map(ladder_show, OBJECTIVES), *lessons]


def opening_show() -> Show:
    """The first screen: all fixes at once, early and late; each of them alone; and one after the other."""
    yours = opening()
    alone = [fix.moved(yours, 1) for fix in FIXES]
    steadily = [yours]
    for fix in FIXES:
        steadily.append(fix.moved(steadily[-1], 1))
    steps = range(_FIRST, OPENING_STEPS, _APART)
    at_once = [((step, steadily[-1]),) for step in (_FIRST, _LATER)]
    one_by_one = tuple(zip(steps, steadily[1:], strict=False))
    return Show(
        "the opening", compared(yours), OPENING_STEPS, (*at_once, *(((_FIRST, each),) for each in alone), one_by_one)
    )


def ladder_show(objective: str) -> Show:
    """The six rungs, as Explore can replay them."""
    return Show(f"the ladder, {objective}", tuple(spec.scenario for spec in rungs(objective, (0,))), LADDER_STEPS)


def rungs(objective: str, seeds: Sequence[int]) -> list[TrackSpec]:
    """The ladder's curves. Their scenarios have names of their own, so that no run folder is made for them."""
    return [
        TrackSpec(s.name, s.with_values({"seed": seeds[0], "name": f"ladder_{s.name}"}), tuple(seeds), taped=True)
        for s in ladder_scenarios(objective=objective, steps=LADDER_STEPS)
    ]


def lesson_shows(lesson: Lesson) -> list[Show]:
    """The runs of a lesson whose learner does what the cards ask: a new run wherever a card sets yours anew."""
    controls = {control.id: control for control in explore_controls()}
    found: list[Show] = []
    yours = Scenario(name=YOURS, steps=HORIZON)
    toggles: Toggles = ()
    for card in lesson.step:
        if card.set or not found:
            yours, toggles = yours.with_values(card.set), ()
            part = f", part {len(found) + 1}" if found else ""
            found.append(Show(f"lesson: {lesson.title}{part}", compared(yours), LESSON_STEPS))
        if card.check is not None and card.check.control is not None:
            control = controls[card.check.control]
            choices = (control.moved(yours, by) for by in range(1, 20))
            yours = next(each for each in choices if control.text(each) == card.check.value)
            toggles = (*toggles, (_IN_A_LESSON + _APART * len(toggles), yours))
            found[-1] = replace(found[-1], toggles=(toggles,))
    return found
