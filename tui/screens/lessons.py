"""Choose a lesson."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Label, OptionList
from textual.widgets.option_list import Option

from skewsim.errors import UserError
from tui.lesson import lesson_names, load_lesson
from tui.screens.dialog import Dialog


class LessonsScreen(Dialog):
    """Up and down choose, enter starts, escape closes."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,l,q", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        lessons = [load_lesson(name) for name in lesson_names()]
        with Vertical(id="lessons"):
            yield Label("Lessons: enter starts one, escape closes")
            yield OptionList(
                *(Option(f"{i}. {lesson.title}  ({lesson.minutes} min)") for i, lesson in enumerate(lessons, 1))
            )

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        if not self.on_top:
            return
        self.dismiss()
        try:
            self.shell.start_lesson(lesson_names()[event.option_index])
        except UserError as error:
            self.shell.say(str(error))
