"""The ground of all screens: they keep to the terminal's size."""

from __future__ import annotations

from textual import events
from textual.screen import Screen


class Steady(Screen[None]):
    """A screen that ignores a size which the terminal no longer has.

    Textual (8.2.8) lays a screen out for the size that an event names, and tells the screen that its size has changed
    with another such event. With two sizes under way at once they would chase each other without end.
    """

    def on_resize(self, event: events.Resize) -> None:
        if event.size != self.app.size:
            event.prevent_default()
