"""The base of the dialogs: small screens over another one, to choose or type something."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen

from tui.shell import ShellScreen


class Dialog(ModalScreen[None], ShellScreen):
    """Closes once: a second key or click may arrive while the first one is being served.

    (Textual's `dismiss` takes whatever screen is on top, so a second one would take the screen below.)
    """

    @property
    def on_top(self) -> bool:
        """Whether it is this that keys and clicks are meant for."""
        return self.app.screen is self

    def dismiss(self, result: None = None) -> AwaitComplete:
        return super().dismiss(result) if self.on_top else AwaitComplete()
