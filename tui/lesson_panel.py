"""The panel of a lesson: what it says, what it asks, and the answer to choose. Enter goes on, escape leaves.

Its frame has the lesson's title and the keys of the moment, so that the charts get two more rows.
"""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from tui.lesson import Player
from tui.views import Look


def card(player: Player, pointed: int, look: Look) -> Text:
    """The current card as text."""
    step = player.step
    text = Text()
    if player.phase == "over":
        text.append(f"The lesson is over. {player.score}. Escape closes, l chooses another.")
        return text
    if player.chosen is None:  # a revealed answer takes its place
        text.append(" ".join(step.say.split()) + "\n")
    if step.ask is not None:
        text.append(step.ask.question + "\n", style="bold")
        for i, option in enumerate(step.ask.options):
            pointer = look.glyph("▶", ">") if player.phase == "ask" and i == pointed else " "
            mark = ""
            if player.chosen is not None:
                mark = "  right" if i == step.ask.answer else "  your guess" if i == player.chosen else ""
            text.append(f" {pointer} {option}{mark}\n", style="bold" if i == pointed or mark else "")
        if player.chosen is not None:
            said = "Right. " if player.chosen == step.ask.answer else "Not so. "
            text.append(
                said + " ".join(step.ask.because.split()) + "\n", style=look.colour("r" if said == "Right. " else "v")
            )
    if step.do is not None and player.phase in ("do", "done"):
        text.append(
            f"{look.glyph('✓', 'done:') if player.phase == 'done' else 'Do:'} {step.do}\n",
            style=f"bold {look.strong}",
        )
    if step.type is not None and player.phase in ("say", "revealed", "done"):
        text.append(f"Type: {step.type}\n", style="bold")
    text.rstrip()
    return text


def _title(player: Player) -> str:
    """The lesson, how far it is, and how many predictions were right."""
    return "  ".join(
        filter(None, (player.lesson.title, f"card {player.at + 1}/{len(player.lesson.step)}", player.marks))
    )


def _how(phase: str, *, waits: bool) -> str:
    """What the keys do."""
    if phase == "over":
        return ""
    if phase == "ask":
        return "the curves wait: up and down choose, enter answers, escape leaves"
    if waits:
        return "the curves wait: enter goes on, escape leaves"
    return "the lesson goes on when it is done; escape leaves it" if phase == "do" else "enter goes on, escape leaves"


class LessonPanel(Widget, can_focus=True):
    """Shown while a lesson runs."""

    DEFAULT_CSS = """
    LessonPanel {
        height: auto; max-height: 14; padding: 0 1; overflow-y: auto;
        background: $surface; border: round $primary;
    }
    LessonPanel:focus { border: round $accent; }
    """

    class Answered(Message):
        """The learner chose an answer."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    class Proceeded(Message):
        """Enter was pressed on a card that asks nothing."""

    class Left(Message):
        """The learner wants to leave the lesson."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._player: Player | None = None
        self._look = Look()
        self._pointed = 0

    def show(self, player: Player | None, look: Look) -> None:
        """Draw another state."""
        if player is not None and player.phase != "ask":
            self._pointed = 0
        self._player, self._look = player, look
        if player is not None:
            self.border_title = Text(_title(player), style=f"bold {look.strong}")
            self.border_subtitle = Text(_how(player.phase, waits=player.waits), style=look.muted)
        self.refresh(layout=True)

    def render(self) -> Text:
        return card(self._player, self._pointed, self._look) if self._player else Text()

    def on_key(self, event: events.Key) -> None:
        player = self._player
        if player is None:
            return
        if event.key in ("up", "down") and player.phase == "ask" and player.step.ask:
            count = len(player.step.ask.options)
            self._pointed = (self._pointed + (1 if event.key == "down" else -1)) % count
            self.refresh()
        elif event.key == "enter":
            self.post_message(self.Answered(self._pointed) if player.phase == "ask" else self.Proceeded())
        elif event.key == "escape":
            self.post_message(self.Left())
        else:
            return
        event.stop()

    def on_click(self, event: events.Click) -> None:
        player = self._player
        if player is None or player.phase == "do":
            return
        if player.phase != "ask" or player.step.ask is None:
            self.post_message(self.Proceeded())
            return
        line = card(player, self._pointed, self._look).wrap(self.app.console, max(self.size.width, 1))
        row = event.y - self.styles.gutter.top + int(self.scroll_offset.y)
        shown = line[row].plain.strip() if 0 <= row < len(line) else ""
        options = player.step.ask.options
        hit = next(
            (i for i, option in enumerate(options) if shown and option.startswith(shown.strip("▶> ")[:20])), None
        )
        if hit is not None:
            self.post_message(self.Answered(hit))
