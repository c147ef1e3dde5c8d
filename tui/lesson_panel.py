"""The panel of a lesson: what it says, what it asks, and the answer to choose."""

from __future__ import annotations

from textual.widget import Widget


class LessonPanel(Widget):
    """Shown while a lesson runs."""
