"""A screen that is one text: a headline, lines that a pure function makes from the state, and the keys below."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from skewsim.errors import SkewsimError, UserError
from tui.actions import bindings
from tui.panel import TextLine
from tui.shell import ShellScreen
from tui.views import Look

if TYPE_CHECKING:
    from tui.process import Watch
    from tui.snapshot import Snapshot


class Page(ShellScreen):
    """Subclasses give a `heading` and `content`; escape goes back. `where` names their keys in the registry."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("page")
    heading: ClassVar[str] = ""
    about: ClassVar[str] = ""
    where: ClassVar[str] = "page"

    @property
    def help_title(self) -> str:
        return self.heading

    @property
    def help_text(self) -> str:
        return self.about

    def compose(self) -> ComposeResult:
        yield TextLine("headline")
        with VerticalScroll(id="page", can_focus=False):
            yield Static(id="page-text")
        yield self.shell.footer()

    def on_mount(self) -> None:
        self.redraw()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        if not self.is_mounted or not self.is_current or self.shell.leaving:
            return
        look = self.shell.look
        head = Text(no_wrap=True)
        head.append(f" {self.heading} ", style="bold reverse")
        head.append(f"  {self.subtitle()}")
        if self.shell.lab.heard:
            head.append(f"  {self.shell.lab.heard}", style=f"bold {look.strong}")
        self.query_one("#headline", TextLine).show(head)
        self.query_one("#page-text", Static).update(self.content(max(self.size.width - 3, 20), look))

    def subtitle(self) -> str:
        return ""

    def content(self, width: int, look: Look) -> Text:
        raise AssertionError("a page has content")

    def action_do(self, id: str) -> None:
        try:
            getattr(self, f"do_{id}")()
        except UserError as error:
            self.shell.say(str(error))
        self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "do" and parameters and parameters[0] in self.shell.options.hidden)

    def do_page_down(self) -> None:
        self.query_one("#page").scroll_page_down()

    def do_page_up(self) -> None:
        self.query_one("#page").scroll_page_up()

    def do_back(self) -> None:
        self.shell.lab.heard = ""
        self.shell.close(self)


def _glance(lens: Watch) -> None:
    with suppress(SkewsimError):  # the curve itself says what it failed of
        lens.glance()


class LensPage(Page):
    """A page about the newest step's tokens: while it is open, the trainer is asked to send them.

    When it opens, those of the step just done are fetched, so that a paused run has something to show.
    """

    _drawn: Snapshot | None = None

    def on_mount(self) -> None:
        self.shell.lens.wanted = True
        super().on_mount()
        threading.Thread(target=_glance, args=(self.shell.lens,), name="skewsim-glance", daemon=True).start()

    def tick(self) -> bool:
        """Whether there are tokens that have not been drawn."""
        drawn, self._drawn = self._drawn, self.snapshot
        return self._drawn is not drawn

    def on_unmount(self) -> None:
        self.shell.lens.wanted = False

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest step's tokens; None if the last tokens seen are of an older step."""
        lab, latest = self.shell.lab, self.shell.lens.latest
        fresh = latest is not None and lab.main is not None and latest.step >= lab.main.series.step
        return latest if fresh and not lab.replaying else None

    def subtitle(self) -> str:
        if self.shell.lab.replaying:
            return "a replay has no tokens"
        seen = self.snapshot  # read once: the driver's thread may replace it at any moment
        return f"step {seen.step} of yours" if seen is not None else "waiting for the next step (. makes one)"

    def waiting(self) -> Text:
        """The text of the page while there is no step to show."""
        lab = self.shell.lab
        if lab.archive is not None:
            return Text(f"A recording has no tokens; {lab.live}.")
        if lab.replaying:
            return Text("A run folder has each step's numbers, not its tokens. Escape, then 0, for a live run.")
        if lab.main is not None and (lab.main.ended or lab.main.failed):
            return Text(f"{lab.main.note or 'The run is over'}. Escape, then 0, starts it again.")
        return Text("The next step's tokens appear here. Press . for one step, space to play.")
