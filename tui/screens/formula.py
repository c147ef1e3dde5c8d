"""Formula: the objective with this step's numbers in it, for the token that skew moved most, and where the code is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from skewsim.learn.clipping import clip_bounds
from tui.screens.page import LensPage
from tui.snapshot import Snapshot
from tui.views import Look

FORMULAS = {
    "score": "loss = -A * lp_t",
    "clipped_ratio": "loss = -min(r A, clip(r, lo, hi) A)     r = exp(lp_t - lp_o)",
    "sequence_mean_ratio": "loss = -min(s A, clip(s, lo, hi) A)     s = exp(mean_t(lp_t - lp_o))",
    "sequence_sum_ratio": "loss = -min(s A, clip(s, lo, hi) A)     s = exp(sum_t(lp_t - lp_o))",
    "capped_weight": "loss = -stop_gradient(min(r, hi)) A lp_t     r = exp(lp_t - lp_o)",
    "trust_region": "loss = -r A unless A (p_t - p_r) has left the bound, + 1e-3 d^2     r = exp(lp_t - lp_r)",
}


@dataclass(frozen=True)
class Worked:
    """The formula's numbers for one token (or, for sequence objectives, its sequence)."""

    ratio: float
    low: float
    high: float
    advantage: float
    loss: float
    bound: bool


def worked(
    family: str, *, trainer: float, old: float, engine: float, advantage: float, low: float, high: float
) -> Worked:
    """One token's loss, written out; for a sequence objective the log-probabilities are the sequence's means or sums."""
    if family == "score":
        return Worked(math.exp(trainer - old), low, high, advantage, -advantage * trainer, False)
    if family == "trust_region":
        moved, r = math.exp(trainer) - math.exp(engine), math.exp(trainer - engine)
        bound = (moved < low - 1 and advantage < 0) or (moved > high - 1 and advantage > 0)
        loss = (0.0 if bound else -r * advantage) + 1e-3 * (trainer - engine) ** 2
        return Worked(r, low, high, advantage, loss, bound)
    r = math.exp(trainer - old)
    if family == "capped_weight":
        return Worked(r, 0.0, high, advantage, -min(r, high) * advantage * trainer, r > high)
    clipped = min(max(r, low), high)
    return Worked(r, low, high, advantage, -min(r * advantage, clipped * advantage), clipped != r)


def explain(snapshot: Snapshot, look: Look) -> Text:
    """The page's text."""
    scenario = snapshot.scenario
    family = snapshot.loss.name
    row, t = np.unravel_index(int(np.abs(snapshot.skew).argmax()), snapshot.skew.shape)
    whole = family.startswith("sequence")
    mask = snapshot.mask[row]

    def pick(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        if not whole:
            return float(values[row, t])
        total = float(values[row][mask].sum())
        return total / max(int(mask.sum()), 1) if family == "sequence_mean_ratio" else total

    lp_t, lp_r, lp_o = (pick(v) for v in (snapshot.trainer_logprobs, snapshot.engine_logprobs, snapshot.old_logprobs))
    low, high = clip_bounds(scenario.trainer)
    numbers = worked(
        family, trainer=lp_t, old=lp_o, engine=lp_r, advantage=float(snapshot.advantages[row]), low=low, high=high
    )
    bypass = scenario.trainer.old_logprobs == "rollout"
    text = Text()
    text.append(f"{scenario.trainer.objective}   {FORMULAS[family]}\n\n", style="bold")
    text.append(f"The token with the largest skew of this step: sequence {row}, position {t}")
    text.append(" (its whole sequence enters)\n" if whole else "\n")
    text.append(f"  lp_t  the trainer now             {lp_t:+.4f}\n")
    text.append(f"  lp_r  the engine reported         {lp_r:+.4f}\n")
    text.append(f"  lp_o  old: {'the engine (bypass)   ' if bypass else 'recomputed by trainer '} {lp_o:+.4f}\n")
    text.append(f"  d     skew = lp_t - lp_r          {lp_t - lp_r:+.4f}\n", style=look.strong)
    text.append(f"  A     advantage                   {numbers.advantage:+.4f}\n")
    if family != "score":
        text.append(
            f"  ratio                             {numbers.ratio:.4f}   bounds {numbers.low:g} to {numbers.high:g}   "
        )
        text.append(
            "clipped\n" if numbers.bound else "inside\n",
            style=f"bold {look.colour('v' if numbers.bound else 'r')}",
        )
    text.append(f"  loss                              {numbers.loss:+.4f}\n\n", style="bold")
    if family == "score":
        text.append(
            "No ratio and no clip enter this loss: skew acts through the samples, and a correction through its weight.\n"
        )
    elif bypass:
        text.append(
            "Before any update the ratio should be 1: all of its distance from 1 is skew, and the clip spends itself on it.\n"
        )
    else:
        text.append("Old is recomputed: the ratio starts at 1, and skew is left to the correction's weight.\n")
    text.append(f"\nWhere it stands: {snapshot.loss.where}\n", style="bold")
    text.append(snapshot.loss.code, style=look.muted)
    return text


class FormulaScreen(LensPage):
    """Follows the newest step while the run plays."""

    heading = "Formula"
    about = "The loss of the chosen objective, with the numbers of the token that skew moved most, and its source code."

    def content(self, width: int, look: Look) -> Text:
        snapshot = self.snapshot
        if snapshot is None or not snapshot.mask.any():
            return self.waiting()
        return explain(snapshot, look)
