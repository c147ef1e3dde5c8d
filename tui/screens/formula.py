"""Formula: the objective with this step's numbers in it, for the token that skew moved most, and where the code is."""

from __future__ import annotations

import math

from rich.text import Text

from skewsim.catalogue import ObjectiveForm, find_form
from skewsim.learn.look import Floats
from tui.screens.page import LensPage
from tui.snapshot import Snapshot, Worked
from tui.views import Look


def pick(values: Floats, snapshot: Snapshot, form: ObjectiveForm) -> float:
    """The worst token's value; where the clip looks at sequences, its sequence's mean or sum."""
    row, t = snapshot.worst
    if form.clip not in ("sequence_mean", "sequence_sum"):
        return float(values[row, t])
    mask = snapshot.mask[row]
    total = float(values[row][mask].sum())
    return total / max(int(mask.sum()), 1) if form.clip == "sequence_mean" else total


def explain(snapshot: Snapshot, worked: Worked, look: Look) -> Text:
    """The page's text."""
    trainer = snapshot.scenario.trainer
    form, bypass, (row, t) = find_form(trainer), trainer.old_logprobs == "rollout", snapshot.worst
    lp_t, lp_r, lp_o = (
        pick(v, snapshot, form) for v in (snapshot.trainer_logprobs, snapshot.engine_logprobs, snapshot.old_logprobs)
    )
    text = Text()
    text.append(f"{trainer.objective}   {form.formula}\n\n", style="bold")
    text.append(f"The token with the largest skew of this step: sequence {row}, position {t}")
    text.append(" (its whole sequence enters)\n" if form.clip.startswith("sequence") else "\n")
    text.append(f"  lp_t  the trainer now             {lp_t:+.4f}\n")
    text.append(f"  lp_r  the engine reported         {lp_r:+.4f}\n")
    text.append(f"  lp_o  old: {'the engine (bypass)   ' if bypass else 'recomputed by trainer '} {lp_o:+.4f}\n")
    text.append(f"  d     skew = lp_t - lp_r          {lp_t - lp_r:+.4f}\n", style=look.strong)
    text.append(f"  A     advantage                   {snapshot.advantages[row]:+.4f}\n")
    if form.ratio != "none":
        text.append(_ratio_line(math.exp(lp_t - (lp_r if form.ratio == "engine" else lp_o)), form, worked, look))
    text.append(f"  loss                              {worked.loss:+.4f}\n\n", style="bold")
    text.append(_where_skew_acts(form, bypass=bypass) + "\n")
    if form.names:
        text.append("\nElsewhere: " + "; ".join(f"{who} {name}" for who, name in form.names.items()) + "\n")
    text.append(f"\nWhere it stands: {snapshot.loss.where}\n", style="bold")
    text.append(snapshot.loss.code, style=look.muted)
    return text


def _ratio_line(ratio: float, form: ObjectiveForm, worked: Worked, look: Look) -> Text:
    """The ratio by its name, the clip's bounds, and whether what the clip looks at is inside them."""
    text = Text(f"  {_named(form):<34}{ratio:.4f}")
    if worked.clipped is None:
        text.append("   no clip\n")
        return text
    if form.clip == "probability":
        text.append(f"   p_t - p_r {worked.clipped:+.4f}")
    low, high = 0.0 if worked.low is None else worked.low, math.inf if worked.high is None else worked.high
    text.append(f"   bounds {low:g} to {high:g}   ")
    text.append(
        "clipped\n" if worked.outside else "inside\n", style=f"bold {look.colour('v' if worked.outside else 'r')}"
    )
    return text


def _named(form: ObjectiveForm) -> str:
    """Which of the two ratios enters the loss: trainer to old, or trainer to engine."""
    return "mismatch ratio" if form.ratio == "engine" else "update ratio"


def _where_skew_acts(form: ObjectiveForm, *, bypass: bool) -> str:
    if form.ratio == "none":
        return (
            "No ratio and no clip enter this loss: skew acts through the samples, and a correction through its weight."
        )
    if not bypass and form.ratio == "old":
        return "Old is recomputed: the update ratio starts at 1, and skew is left to the correction's weight."
    said = f"Before any update the {_named(form)} should be 1: all of its distance from 1 is skew"
    return f"{said}." if form.clip == "none" else f"{said}, and the clip spends itself on it."


class FormulaScreen(LensPage):
    """Follows the newest step while the run plays."""

    heading = "Formula"
    about = "The loss of the chosen objective, with the numbers of the token that skew moved most, and its source code."

    def content(self, width: int, look: Look) -> Text:
        snapshot = self.snapshot
        if snapshot is None or snapshot.worked is None or not snapshot.mask.any():
            return self.waiting()
        return explain(snapshot, snapshot.worked, look)
