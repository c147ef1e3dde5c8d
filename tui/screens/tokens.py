"""Tokens: this step's sequences as strips marked by skew, the update ratios' histogram, skew by probability and lag."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from rich.text import Text

from skewsim.catalogue import find_form
from skewsim.learn.clipping import clip_bounds
from skewsim.learn.look import Floats
from skewsim.skew.published import MEAN_ABS_BY_PROBABILITY, find_run
from tui.chart import bars
from tui.screens.page import LensPage
from tui.snapshot import Snapshot
from tui.views import Look

_EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0001)
_MARKS = ((0.02, "·", "."), (0.1, "░", ":"), (0.3, "▒", "+"), (1.0, "▓", "*"), (np.inf, "█", "#"))
_FIRST_ANSWER, _SYNONYMS = 14, 4
_LAGS = 6
_PUBLISHED_BY_LAG = {0: ("mimo-lag-0-least", "mimo-lag-0-most"), 9: ("mimo-lag-9",)}
"""A public run's figures by lag: see docs/published.md."""
_OF_SEQUENCES = ("sequence_mean", "sequence_sum")


def strips(snapshot: Snapshot, look: Look, *, rows: int, width: int) -> Text:
    """A sequence a row: each token's digit and synonym, then a mark for the size of its skew."""
    text = Text(no_wrap=True)
    text.append("skew, nats: ")
    low = 0.0
    for limit, fancy, plain in _MARKS:
        name = f"{low:g}-{limit:g}" if np.isfinite(limit) else f"over {low:g}"
        text.append(f"{look.glyph(fancy, plain)} {name}  ", style=_style(low, look))
        low = float(limit)
    text.append("worst first\n")
    text.append(_legend(snapshot, width) + "\n", style=look.muted)
    order = np.argsort(-np.abs(snapshot.skew).max(axis=1))
    for row in order[:rows]:
        text.append(
            f"{row:>4} reward {snapshot.rewards[row]:.0f} A {snapshot.advantages[row]:+.1f}  ", style=look.muted
        )
        for t in range(snapshot.tokens.shape[1]):
            if not snapshot.mask[row, t]:
                text.append("  - ", style=look.muted)
                continue
            skew = float(snapshot.skew[row, t])
            text.append(f"{_name(int(snapshot.tokens[row, t]))}{_mark(skew, look)} ", style=_style(abs(skew), look))
        versions = snapshot.weight_versions[row][snapshot.mask[row]]
        if len(versions) and width > 100:
            first, last = versions.min(), versions.max()
            text.append(f" weights {first}{f'-{last}' if last > first else ''}", style=look.muted)
        text.append("\n")
    return text


def _legend(snapshot: Snapshot, width: int) -> str:
    """What a row says."""
    parts = ["6b: the digit 6 in its 2nd of 4 spellings", "A: advantage"]
    if width > 100:
        parts.append("weights: those that sampled it, as of which step")
    return "; ".join(parts)


def _name(token: int) -> str:
    if token < _FIRST_ANSWER:
        return "$." if token == 2 else "?."
    digit, synonym = divmod(token - _FIRST_ANSWER, _SYNONYMS)
    return f"{digit}{'abcd'[synonym]}" if digit < 10 else "?."


def _mark(skew: float, look: Look) -> str:
    return next(look.glyph(fancy, plain) for limit, fancy, plain in _MARKS if abs(skew) <= limit)


def _style(size: float, look: Look) -> str:
    if size < 0.1:
        return ""
    return look.strong if size < 0.3 else f"bold {look.colour('v')}"


def histogram(snapshot: Snapshot, look: Look, *, width: int, height: int = 6) -> Text:
    """The update ratios that the loss sees, on a logarithmic axis, with the clip bounds drawn in."""
    ratios = _clipped_quantity(snapshot)
    low, high = clip_bounds(snapshot.scenario.trainer)
    logs = np.log(np.clip(ratios, 1e-6, 1e6))
    edges = [np.log(b) for b in (low, high) if 0 < b < np.inf]
    reach = max([float(np.abs(logs).max()) if logs.size else 0.0, *(1.3 * abs(e) for e in edges), 1e-4])
    bins = max(min(width - 4, 96), 20)
    counts, grid = np.histogram(logs, bins=bins, range=(-reach, reach))
    text = Text()
    outside = float(((ratios < low) | (ratios > high)).mean()) if ratios.size else 0.0
    of_sequences = find_form(snapshot.scenario.trainer).clip in _OF_SEQUENCES
    what = "sequences" if of_sequences else "tokens"
    text.append(f"Update ratios of {what}, log axis; outside the clip bounds: {outside:.1%}\n", style="bold")
    columns = {int(np.clip(np.searchsorted(grid, e) - 1, 0, bins - 1)) for e in edges}
    for line in bars(counts.astype(np.float64), height, ascii_only=look.ascii_only):
        text.append("  ")
        for i, glyph in enumerate(line):
            bound = i in columns
            text.append(
                look.glyph("┊", "|") if bound and glyph == " " else glyph,
                style=look.strong if bound else look.colour("y"),
            )
        text.append("\n")
    text.append("  " + look.glyph("─", "-") * bins + "\n", style=look.muted)
    left, right = f"{np.exp(-reach):.3g}", f"{np.exp(reach):.3g}"
    text.append(f"  {left}{'1'.center(bins - len(left) - len(right))}{right}\n", style=look.muted)
    shown = [f"{b:g}" for b in (low, high) if 0 < b < np.inf]
    text.append(
        f"  clip bounds {' and '.join(shown)}\n" if shown else "  this objective has no clip\n", style=look.muted
    )
    return text


def _clipped_quantity(snapshot: Snapshot) -> Floats:
    """What the clip looks at: each token's update ratio, or the geometric mean or the product of each sequence's."""
    clip = find_form(snapshot.scenario.trainer).clip
    if clip not in _OF_SEQUENCES:
        return snapshot.ratios[snapshot.mask]
    total = np.where(snapshot.mask, np.log(snapshot.ratios), 0.0).sum(axis=1)
    count = np.maximum(snapshot.mask.sum(axis=1), 1) if clip == "sequence_mean" else 1
    return np.asarray(np.exp(total / count))


def by_probability(snapshot: Snapshot, look: Look) -> Text:
    """Mean abs skew by the token's probability, beside the published bf16 table."""
    skew = np.abs(snapshot.skew[snapshot.mask])
    p = np.exp(snapshot.trainer_logprobs[snapshot.mask])
    text = Text()
    text.append("Skew by probability        tokens   here    published bf16 (Qwen3-1.7B)\n", style="bold")
    for (low, high), published in zip(pairwise(_EDGES), MEAN_ABS_BY_PROBABILITY, strict=True):
        inside = skew[(p >= low) & (p < high)]
        here = f"{inside.mean():.4f}" if len(inside) else "-"
        text.append(f"  p {low:>4g} to {min(high, 1):<4g}      {len(inside):>9}   {here:>6}   {published:.4f}\n")
    text.append("Noise on the logits falls on improbable tokens; a shift of all of them is bias.\n", style=look.muted)
    return text


def by_lag(snapshot: Snapshot, look: Look) -> Text:
    """k1 and k3 by the lag of the token; of at most `_LAGS` lags, the least ones."""
    lag, d = (snapshot.step - snapshot.weight_versions)[snapshot.mask], snapshot.skew[snapshot.mask]
    published = {each: " to ".join(_k1(id) for id in ids) for each, ids in _PUBLISHED_BY_LAG.items()}
    text = Text()
    text.append("Skew by lag    tokens       k1       k3    a public run's k1 (MiMo-V2.6)\n", style="bold")
    for each in np.unique(lag)[:_LAGS]:
        of = d[lag == each]
        k1, k3 = -float(of.mean()), float((np.expm1(of) - of).mean())
        text.append(f"  lag {each:>3}    {len(of):>8}  {k1:>7.4f}  {k3:>7.4f}    {published.get(int(each), '-')}\n")
    missing = [f"lag {each} {figure}" for each, figure in published.items() if each not in lag]
    if missing:
        text.append(f"There, other lags had: {', '.join(missing)}.\n", style=look.muted)
    return text


def _k1(run: str) -> str:
    """A published run's k1."""
    return next(f"{figure.value:g}" for figure in find_run(run).figures if figure.metric == "kl_k1")


class TokensScreen(LensPage):
    """Live while the run plays; `up` and `down` scroll through the sequences."""

    heading = "Tokens"
    about = (
        "The sequences of the newest step, worst first. A token is a digit and one of its four synonyms (a to d). "
        "Skew is the trainer's log-probability minus the engine's. The histogram shows what the objective's clip looks "
        "at. The tables compare with a published measurement of bf16 engines, and with a public run's dashboard by lag."
    )

    def content(self, width: int, look: Look) -> Text:
        snapshot = self.snapshot
        if snapshot is None:
            return self.waiting()
        rows = 6 if self.size.height < 36 else 16
        parts = (
            strips(snapshot, look, rows=rows, width=width),
            histogram(snapshot, look, width=width),
            by_probability(snapshot, look),
            by_lag(snapshot, look),
        )
        return Text("\n").join(parts)
