"""Advise: what every framework's default threshold does to healthy data, live as noise level and length move."""

from __future__ import annotations

import math
from typing import ClassVar

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

SIGMAS = (0.001, 0.002, 0.0057, 0.01, 0.02, 0.031, 0.0449, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
LENGTHS = (1, 4, 12, 32, 64, 128, 256, 512, 1024, 1506, 2048, 4096, 8192, 16384, 32768)
_DRAWS = 300_000


def share_outside(scenario: Scenario, sigma: float, length: int) -> float:
    """Share of healthy tokens (or sequences, by what the clip looks at) that this scenario's own clip would touch.

    A lognormal's two tails: the log-ratio of a token is normal, and so are a sequence's mean and sum of them.
    """
    from scipy.stats import norm

    low, high = clip_bounds(scenario.trainer)
    clip = find_form(scenario.trainer).clip
    spread = {"sequence_mean": sigma / math.sqrt(length), "sequence_sum": sigma * math.sqrt(length)}.get(clip, sigma)
    middle = -(sigma**2) / 2 * (length if clip == "sequence_sum" else 1)
    below = norm.cdf((math.log(low) - middle) / spread) if low > 0 else 0.0
    above = norm.sf((math.log(high) - middle) / spread) if math.isfinite(high) else 0.0
    return float(below + above)


class AdviseScreen(Page):
    """Left and right: noise. Up and down: length. Enter: a measured profile instead of a sigma."""

    heading = "Advise"
    about = (
        "Healthy data: the engine samples from a slightly different distribution and reports it truthfully. Its "
        "skew per token has rms sigma. Each row is one framework's default and what it does to such data: the share "
        "it clips, masks or rejects, and the effective sample size of the weights it leaves. A row that fires on "
        "healthy data is followed by the setting that would not. Published rms: bf16 0.0449, fp16 0.0057, fp32 "
        "0.0024."
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
            f"would clip {mine:.1%} of healthy data before any update" if clips else "clips nothing, whatever the noise"
        )
        text.append(f"Yours: {objective} {verdict}.\n", style="bold")
        text.append(
            f"rms skew {number(report.sigma)}; {report.source}; "
            f"sequence ESS without any bound {_unbounded(report.sigma, length):.3f}\n\n"
        )
        text.append(f"{'framework':<12}{'rule':<49}{'touched':>8}{'ESS':>7}  \n", style="bold")
        for row in report.rows:
            name = row.rule if len(row.rule) <= 48 else row.rule[:47] + look.glyph("…", ".")
            fires = row.fired > 0.001
            mark = "!" if row.fired > 0.1 else " "
            text.append(
                f"{mark}{row.framework:<11}{name:<49}{row.fired:>8.1%}{row.ess:>7.3f}",
                style=look.colour("v") if mark == "!" else "",
            )
            text.append("\n")
            if fires and row.healthy:
                text.append(f"    {look.glyph('→', '>')} {row.healthy}\n", style=look.muted)
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


def _unbounded(sigma: float, length: int) -> float:
    """Effective sample size of whole sequences: exp(-T sigma^2)."""
    return math.exp(-length * sigma**2)
