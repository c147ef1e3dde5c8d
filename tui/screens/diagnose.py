"""Diagnose: the ranked causes of a skew with the step that proves each, of yours' newest rollout or of a file."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import BindingType

from skewsim.errors import SkewsimError, shown
from tui.actions import bindings
from tui.controls import FIXES
from tui.screens.page import LensPage
from tui.views import Look

if TYPE_CHECKING:
    from skewsim.diagnose.causes import Cause, Diagnosis
    from skewsim.settings import Scenario


_FIX_OF = {"raw_logprobs": 0, "stale_kv": 1, "stale_weights": 2, "head_dtype": 3, "one_sided_fp32_head": 3}


def here(cause: str, scenario: Scenario) -> str:
    """The key of Explore that mends a cause, in words; empty if there is none."""
    fix = FIXES[_FIX_OF[cause]] if cause in _FIX_OF else None
    if fix is not None and not fix.is_on(scenario):
        return f"press {FIXES.index(fix) + 1} in the charts: {fix.label} on"
    if cause == "stale_weights":
        lag = scenario.engine.lag
        return f"turn lag down; it is {lag}" if lag > 1 else "a lag of one version, which updates in flight leave"
    return "turn noise down: it is injected" if cause in ("unknown", "compute_dtype") and scenario.skew.active else ""


def report(found: Diagnosis, look: Look, scenario: Scenario | None = None) -> Text:
    """The verdict, then every cause with its share, its proof and what mends it; of a run of the app also here."""
    layer = f" ({found.layer} layer)" if found.layer else ""
    text = Text()
    text.append(f"Verdict: {found.verdict}{layer}\n", style=f"bold {look.strong}")
    text.append(
        f"rms skew {found.rms:.3g} nats, {found.tokens} tokens in {found.sequences} sequences\n", style=look.muted
    )
    if found.placed:
        text.append(f"Published: {found.placed}\n", style=look.muted)
    if len(found.causes) > 1:
        text.append(
            "what explains most first; of about the same size, in the order in which to mend them\n", style=look.muted
        )
    for cause in found.to_mend:
        text.append(f"\n{cause.name}  {_share(cause, look)}\n", style="bold")
        text.append(f"  Proof: {cause.evidence}\n")
        if scenario is not None and (key := here(cause.name, scenario)):
            text.append(f"  Here: {key}\n", style=look.strong)
        if cause.fix:
            text.append(f"  Fix: {cause.fix}\n", style=look.muted)
    text.append_text(_where(found, look))
    left = 1 - sum(cause.explained for cause in found.causes if cause.sized)
    if left > 0.05:
        text.append(f"\n{left:.0%} of the mean square skew is explained by none of this.\n", style=look.muted)
    for note in found.notes:
        text.append(f"\nNote: {note}\n", style=look.muted)
    return text


def _share(cause: Cause, look: Look) -> str:
    """A bar and a percentage; words for what is there and hardly moves the skew."""
    explained = cause.explained
    if not cause.sized:
        return "no share: what is no number has no size"
    if explained < 0.01:
        return "is there too, and hardly adds to the skew"
    filled = round(explained * 20)
    return f"{look.glyph('█', '#') * filled}{look.glyph('░', '.') * (20 - filled)} explains {explained:.0%}"


def _where(found: Diagnosis, look: Look) -> Text:
    """Where the skew lives: a bar for the share of the mean square that a place has above the rest."""
    text = Text()
    if not found.where:
        return text
    text.append("\nWhere it lives\n", style="bold")
    wide = max(len(f"{place.column} {place.value}") for place in found.where)
    for place in found.where:
        filled = round(min(place.explained, 1.0) * 20)
        bar = look.glyph("█", "#") * filled + look.glyph("░", ".") * (20 - filled)
        text.append(f"  {f'{place.column} {place.value}':{wide}}  {bar} {place.explained:4.0%}")
        text.append(
            f"  rms {place.rms_inside:.3g} inside, {place.rms_outside:.3g} outside, z {place.z:.1f}\n", style=look.muted
        )
    return text


class DiagnoseScreen(LensPage):
    """Enter opens a file; n looks at the newest step again."""

    heading = "Diagnose"
    about = (
        "Rival explanations of the skew, each with its own signature, ranked by how much of it they explain. Layers "
        "are put right in this order: semantic, inference path, precision, staleness, objective. One step of the "
        "simulator is a few hundred tokens, so small effects may stay unnamed; a file may hold millions. A step of "
        "the simulator is scored again under the weights of now and of before, as `skewsim diagnose --model NEW "
        "--model OLD` does with folders."
    )
    BINDINGS: ClassVar[list[BindingType]] = bindings("page") + bindings("diagnose")
    where: ClassVar[str] = "diagnose"

    def __init__(self) -> None:
        super().__init__()
        self._source = ""
        self._scenario: Scenario | None = None
        self._found: Diagnosis | None = None
        self._problem = ""
        self._busy = False
        self._answers: queue.SimpleQueue[tuple[str, str, Diagnosis | None, str]] = queue.SimpleQueue()

    def subtitle(self) -> str:
        return self._source or super().subtitle()

    def redraw(self) -> None:
        seen = self.snapshot
        if not self._source and seen is not None:
            self._start("the newest step of yours", self._examine_step, seen.scenario)
        super().redraw()

    def content(self, width: int, look: Look) -> Text:
        if self._busy:
            return Text("examining ...")
        if self._problem:
            return Text(self._problem)
        if self._found is None:
            return Text(f"{self.waiting().plain} Enter opens a file instead.")
        return report(self._found, look, self._scenario)

    def _examine_step(self) -> tuple[str, Diagnosis]:
        step, found = self.shell.lens.diagnose()
        return f"step {step} of yours", found

    def _examine_file(self, text: str) -> None:
        from skewsim.diagnose import diagnose_path

        path = Path(text.strip()).expanduser()
        self._start(str(path), lambda: (str(path), diagnose_path(path)))

    def _start(
        self, source: str, examine: Callable[[], tuple[str, Diagnosis]], scenario: Scenario | None = None
    ) -> None:
        """Examine in a thread of its own; `tick` takes its answer from a queue."""
        self._source, self._scenario, self._busy, self._problem = source, scenario, True, ""

        def work() -> None:
            name, found, problem = source, None, ""
            try:
                name, found = examine()
            except SkewsimError as error:
                problem = shown(error)
            except Exception as error:  # whatever it is, the page says it
                problem = shown(f"{type(error).__name__}: {error}")
            self._answers.put((source, name, found, problem))

        threading.Thread(target=work, name="skewsim-diagnose", daemon=True).start()

    def tick(self) -> bool:
        """Take the answer, if it is to the question asked last; True if it is, or if there are new tokens."""
        seen = super().tick()
        try:
            source, name, found, problem = self._answers.get_nowait()
        except queue.Empty:
            return seen
        if source != self._source:
            return seen
        self._source, self._busy, self._found, self._problem = name, False, found, problem
        return True

    def do_again(self) -> None:
        self._source = ""

    def do_open(self) -> None:
        from tui.screens.prompt import Prompt

        title = "A token table (.npz, .parquet), or JSON lines with a sequence a line"
        self.app.push_screen(Prompt(title, self._examine_file))
