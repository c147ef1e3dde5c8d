"""Diagnose: the ranked causes of a skew with the step that proves each, of yours' newest rollout or of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from rich.text import Text
from textual.binding import BindingType

from skewsim.errors import SkewsimError
from tui.actions import bindings
from tui.screens.page import Page
from tui.snapshot import Snapshot
from tui.views import Look

if TYPE_CHECKING:
    from skewsim.diagnose import Diagnosis
    from skewsim.tokens import TokenTable


def token_table(snapshot: Snapshot) -> TokenTable:
    """A rollout as the table that `skewsim diagnose` reads."""
    from skewsim.tokens import TokenTable

    engine = snapshot.scenario.engine
    _, prompt = np.unique(snapshot.prompts, axis=0, return_inverse=True)
    return TokenTable.from_rollouts(
        tokens=snapshot.tokens,
        mask=snapshot.mask,
        engine_logprobs=snapshot.engine_logprobs,
        trainer_logprobs=snapshot.trainer_logprobs,
        weight_versions=snapshot.versions,
        prompt_ids=np.asarray(prompt).reshape(-1),
        meta={"temperature": engine.temperature, "top_p": engine.top_p, "top_k": engine.top_k},
    )


def report(found: Diagnosis, look: Look) -> Text:
    """The verdict, then every cause with its share, its proof and what mends it."""
    layer = f" ({found.layer} layer)" if found.layer else ""
    text = Text()
    text.append(f"Verdict: {found.verdict}{layer}\n", style=f"bold {look.strong}")
    text.append(
        f"rms skew {found.rms:.3g} nats, {found.tokens} tokens in {found.sequences} sequences\n", style=look.muted
    )
    for cause in found.causes:
        filled = round(cause.explained * 20)
        bar = look.glyph("█", "#") * filled + look.glyph("░", ".") * (20 - filled)
        text.append(f"\n{cause.name}  {bar} explains {cause.explained:.0%}\n", style="bold")
        text.append(f"  Proof: {cause.evidence}\n")
        if cause.fix:
            text.append(f"  Fix: {cause.fix}\n", style=look.muted)
    for note in found.notes:
        text.append(f"\nNote: {note}\n", style=look.muted)
    return text


class DiagnoseScreen(Page):
    """Enter opens a file; n looks at the newest step again."""

    heading = "Diagnose"
    about = (
        "Rival explanations of the skew, each with its own signature, ranked by how much of it they explain. Layers are put "
        "right in this order: semantic, inference path, precision, staleness, objective. One step of the simulator is "
        "a few hundred tokens, so small effects may stay unnamed; a file may hold millions."
    )
    BINDINGS: ClassVar[list[BindingType]] = bindings("page") + bindings("diagnose")
    where: ClassVar[str] = "diagnose"

    def __init__(self) -> None:
        super().__init__()
        self._source = ""
        self._found: Diagnosis | None = None
        self._problem = ""
        self._busy = False

    def on_mount(self) -> None:
        self.skewsim.lens.wanted = True
        super().on_mount()

    def on_unmount(self) -> None:
        self.skewsim.lens.wanted = False

    def subtitle(self) -> str:
        return self._source or "waiting for the next step (. makes one)"

    def redraw(self) -> None:
        snapshot = self.skewsim.lens.latest
        if not self._source and snapshot is not None:
            self._examine_step(snapshot)
        super().redraw()

    def content(self, width: int, look: Look) -> Text:
        if self._busy:
            return Text("examining ...")
        if self._problem:
            return Text(self._problem)
        if self._found is None:
            return Text("The newest step of yours is examined as soon as there is one. Enter opens a file instead.")
        return report(self._found, look)

    def _examine_step(self, snapshot: Snapshot) -> None:
        from skewsim.diagnose import diagnose

        self._start(f"step {snapshot.step} of yours", lambda: diagnose(token_table(snapshot)))

    def _examine_file(self, text: str) -> None:
        from skewsim.diagnose import diagnose_path

        path = Path(text.strip()).expanduser()
        self._start(str(path), lambda: diagnose_path(path))

    def _start(self, source: str, examine: Callable[[], Diagnosis]) -> None:
        """Examine in a thread; the answer comes back through the app's loop."""
        self._source, self._busy, self._problem = source, True, ""

        def work() -> None:
            found, problem = None, ""
            try:
                found = examine()
            except SkewsimError as error:
                problem = str(error)
            self.app.call_from_thread(self._answer, source, found, problem)

        self.run_worker(work, thread=True, exclusive=True, exit_on_error=False)

    def _answer(self, source: str, found: Diagnosis | None, problem: str) -> None:
        if source == self._source:
            self._busy, self._found, self._problem = False, found, problem
            self.redraw()

    def do_again(self) -> None:
        self._source = ""

    def do_open(self) -> None:
        from tui.screens.prompt import Prompt

        title = "A token table (.npz, .parquet), or JSON lines with a sequence a line"
        self.app.push_screen(Prompt(title, self._examine_file))
