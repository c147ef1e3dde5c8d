"""F1: what the focused thing is, then every key, from the registry of actions."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from tui.actions import ACTIONS, is_hidden, key_text
from tui.screens.dialog import Dialog

_INTRO = """A tiny language model learns to write the digits of its prompt backwards. Each digit has four spellings, \
all of them right; \
the reward is the share of responses without a mistake. (So it is with task reverse; x shows and changes the task.)
The curves share prompts, random numbers and seed, so what separates them is a setting.
r  reference: all four fixes on      y  yours: what the controls say
v  initial V1: all four off, as in the well-known move from vLLM's V0 engine to V1 as it comes out of the box

Switch a fix with 1-4 and watch y leave v. Its letter marks the step where it took effect.
To try a fix on the policy as it was before the damage, step back with , or [, turn switches, and press j: y goes on \
from there, and w is what it was.
Skew is the trainer's log-probability of a token minus the engine's. It is computed by the simulated engine's own \
arithmetic, measured (drawn from a profile of a real engine) or invented; the bottom line says which.
"""


class HelpScreen(Dialog):
    """Closed by escape, enter, q or F1 again."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,enter,q,f1,question_mark", "dismiss", "Close")]

    def __init__(self, title: str, text: str, hidden: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._title, self._text, self._hidden = title, text, hidden

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(self._content())

    def _content(self) -> Text:
        text = Text()
        if self._text:
            text.append(self._title + "\n", style="bold reverse")
            text.append(self._text + "\n\n")
        text.append("What you see\n", style="bold")
        text.append(_INTRO + "\n")
        text.append("Keys", style="bold")
        text.append("   (keymap.toml in the configuration folder changes them)\n")
        for action in (a for a in ACTIONS if not is_hidden(a, self._hidden)):
            text.append(f"{key_text(action.keys):>9}  ", style="bold")
            text.append(f"{action.title}: {action.help}\n")
        text.append(
            "   arrows  Turn the focused knob or selector; with shift three at a time. Wheel and click do it too.\n"
        )
        text.append("      tab  Focus the next control or chart.     escape  Close.")
        return text
