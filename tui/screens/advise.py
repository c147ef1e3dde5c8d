"""Advise: what every framework's default threshold does to healthy data, live as noise level and length move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import BindingType

from skewsim.catalogue import find_form
from skewsim.learn.clipping import clip_bounds
from skewsim.settings import Scenario
from tui.actions import bindings
from tui.controls import number
from tui.lab import Lab
from tui.screens.page import Page
from tui.views import Look

if TYPE_CHECKING:
    from skewsim.skew.advise import AdviseRow
    from skewsim.skew.effect import Fold

SIGMAS = (0.001, 0.002, 0.0057, 0.01, 0.02, 0.031, 0.0449, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
LENGTHS = (1, 4, 12, 32, 64, 128, 256, 512, 1024, 1506, 2048, 4096, 8192, 16384, 32768)
_DRAWS = 300_000
_MUCH = 0.1
"""Harm from which a row is marked."""


def share_outside(scenario: Scenario, sigma: float, length: int) -> float:
    """Share of healthy tokens (or sequences, by what the clip looks at) that this scenario's own clip would touch.

    Of a clip on probabilities: at most, for a probability changes by no more than its ratio's distance from one.
    """
    from skewsim.skew.healthy import ClosedForm

    low, high = clip_bounds(scenario.trainer)
    folds: dict[str, Fold] = {"sequence_mean": "mean", "sequence_sum": "sum"}
    fold = folds.get(find_form(scenario.trainer).clip, "token")
    return 1 - ClosedForm(sigma, length).inside(fold, "d", math.log(low) if low > 0 else -math.inf, math.log(high))


class AdviseScreen(Page):
    """Left and right: noise. Up and down: length. Enter: a measured profile instead of a sigma."""

    heading = "Advise"
    about = (
        "Healthy data: the engine samples from a slightly different distribution and reports it truthfully. Its skew "
        "per token has rms sigma. Each row is one framework's default and what it does to such data: the share it clips, "
        "masks or rejects; the mean weight it leaves (1: the whole gradient); the bias, by how much the expected "
        "gradient can be off; and the effective sample size. A row that does harm is followed by the setting that does "
        "least, or by what to use instead where no bound helps. Published rms: bf16 0.0449, fp16 0.0057, fp32 0.0024."
    )
    BINDINGS: ClassVar[list[BindingType]] = bindings("page") + bindings("advise")
    where: ClassVar[str] = "advise"

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._lab = lab
        self._sigma = SIGMAS.index(0.0449)
        self._length = LENGTHS.index(1506)
        self._profile: str | None = None

    def subtitle(self) -> str:
        noise = self._profile or f"sigma {SIGMAS[self._sigma]:g} nats"
        return f"{noise}, {LENGTHS[self._length]} tokens a response"

    def content(self, width: int, look: Look) -> Text:
        from skewsim.skew.advise import advise
        from skewsim.skew.profile import load_profile

        length = LENGTHS[self._length]
        noise = load_profile(self._profile) if self._profile else SIGMAS[self._sigma]
        report = advise(noise, length, draws=_DRAWS)
        text = Text()
        mine = share_outside(self._lab.shown, report.sigma, length)
        objective = self._lab.shown.trainer.objective
        clips = clip_bounds(self._lab.shown.trainer) != (0.0, math.inf)
        verdict = (
            f"would clip {mine:.1%} of healthy data before any update"
            if clips
            else "bounds no ratio, whatever the noise"
        )
        text.append(f"Yours: {objective} {verdict}.\n", style="bold")
        text.append(
            f"rms skew {number(report.sigma)}; {report.source}; "
            f"sequence ESS without any bound {_unbounded(report.sigma, length):.3f}\n\n"
        )
        text.append(f"{'framework':<12}{'rule':<33}{'touched':>8}{'weight':>8}{'bias':>8}{'ESS':>7}\n", style="bold")
        for row in report.rows:
            text.append(_row(row, look))
        return text

    def do_sigma_up(self) -> None:
        self._profile = None
        self._sigma = min(self._sigma + 1, len(SIGMAS) - 1)

    def do_sigma_down(self) -> None:
        self._profile = None
        self._sigma = max(self._sigma - 1, 0)

    def do_length_up(self) -> None:
        self._length = min(self._length + 1, len(LENGTHS) - 1)

    def do_length_down(self) -> None:
        self._length = max(self._length - 1, 0)

    def do_advise_profile(self) -> None:
        names = self.shell.profiles
        if not names:
            self.shell.say("no measured profile is there yet: press p, then n to measure one")
            return
        at = names.index(self._profile) + 1 if self._profile in names else 0
        self._profile = names[at] if at < len(names) else None


def _row(row: AdviseRow, look: Look) -> Text:
    """A rule's line, marked where the default does much harm, and a second one where another setting does less."""
    name = row.rule if len(row.rule) <= 32 else row.rule[:31] + look.glyph("…", ".")
    bad = row.effect.harm > _MUCH
    text = Text(
        f"{'!' if bad else ' '}{row.framework:<11}{name:<33}{row.fired:>8.1%}{row.mean_weight:>8.4f}{row.bias:>8.1%}"
        f"{row.ess:>7.3f}\n",
        style=look.colour("v") if bad else "",
    )
    if row.advice != "as it is":
        text.append(f"    {look.glyph('→', '>')} {row.advice}\n", style=look.muted)
    return text


def _unbounded(sigma: float, length: int) -> float:
    """Effective sample size of whole sequences: exp(-T sigma^2)."""
    return math.exp(-length * sigma**2)
