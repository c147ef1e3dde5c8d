"""What each kind of evidence says for itself: a token log, metrics by step, a profile.

Nothing is judged anew here: causes are those of `skewsim.diagnose`, sizes those of `diagnose.normal`, trends those of
`skewsim.skew.trends`. What this adds is which of them counts as wrong. A trend that stays within what is usual is told,
and is not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from skewsim.check.by_step import ByStep
from skewsim.check.evidence import Tokens
from skewsim.check.words import SAYS, WEIGH_TOKENS
from skewsim.diagnose import Diagnosis, Scorer, diagnose, normal
from skewsim.skew.noise_level import LARGEST
from skewsim.skew.rules import RULES
from skewsim.skew.trends import Trend, trend

if TYPE_CHECKING:
    from skewsim.skew.profile import SkewProfile

TWICE = 2.0
"""A trend by this factor is told."""
LOUDER = 1.5
"""A log whose rms is this much larger than its sample's has something rare in it."""
REJECTED = 0.5
"""Share of the data that a correction may throw away."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    name: str
    """One of `words.SAYS`."""
    words: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "says": SAYS[self.name], "words": self.words}


@dataclass(frozen=True)
class Part:
    """What one piece of evidence says."""

    rms: float | None = None
    level: dict[str, Any] = field(default_factory=dict)
    normal: bool | None = None
    usual: str = ""
    kind: str | None = None
    kind_text: str = ""
    trend: Trend | None = None
    problems: tuple[Problem, ...] = ()
    watch: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    """Keys of `words.REMIND_OF`."""
    values: tuple[str, ...] = ()
    diagnosis: Diagnosis | None = None
    length: int | None = None
    """Tokens of a response."""
    source: str = ""
    """The file, or what stands for it in a sentence."""
    framework: str | None = None
    """Who wrote it."""
    missing: tuple[str, ...] = ()
    """Columns that a token log lacks: keys of `words.LOG_COLUMNS`."""


def place_among_published(rms: float, dtype: str | None, model_kind: str | None) -> tuple[bool, str]:
    """(whether this rms is usual, the same in words beside published figures)."""
    return rms <= normal.most(dtype or "bfloat16", model_kind), normal.usual(rms, dtype, model_kind)


# ------------------------------------------------------------------------------------------------------- token logs


def of_tokens(tokens: Tokens, dtype: str | None, model_kind: str | None, models: Sequence[Scorer] = ()) -> Part:
    """The diagnosis of a log, and what was counted over all of it; a model stands in for a trainer without numbers."""
    moments = tokens.moments
    values = tuple(moments.values())
    length = max(1, round(moments.tokens / max(moments.sequences, 1)))
    measured = moments.trainer_known and moments.measured > 0
    if not measured and not models:
        return Part(values=values, length=length, problems=_impossible(tokens, None))
    found = diagnose(tokens.source, models=models, dtype=dtype, model_kind=model_kind)
    steps, rms, lag = moments.curve()
    moved = trend(steps, rms, lag=lag) if measured and len(steps) else None
    problems = [] if found.normal else [Problem(found.verdict, found.first.evidence)]
    problems += [*_impossible(tokens, found), *_unmasked(tokens)]
    if measured and tokens.sampled and moments.rms > LOUDER * tokens.rms_of_sample:
        number, position = moments.worst_at
        problems.append(
            Problem(
                "rare",
                f"rms {moments.rms:.3g} over all tokens, {tokens.rms_of_sample:.3g} in the sample; the largest skew, "
                f"{moments.worst:.3g} nats, is at token {position} of sequence {number}",
            )
        )
    wrong, watch, hints = _of_trend(moved, usual=found.normal is not False)
    return Part(
        rms=moments.rms if measured else found.rms,
        level=moments.to_json() | {"from": "tokens"} if measured else {"from": "tokens, the model for the trainer"},
        normal=found.normal,
        usual=found.usual,
        kind=found.kind,
        kind_text=found.kind_text,
        trend=moved,
        problems=tuple(problems) or wrong,
        watch=watch,
        hints=hints,
        values=values,
        diagnosis=found,
        length=length,
        missing=_missing(tokens),
    )


def _impossible(tokens: Tokens, found: Diagnosis | None) -> tuple[Problem, ...]:
    """Values that no computation gives, as `gate` refuses them, unless the diagnosis has named them."""
    named = found is not None and (found.verdict == "placeholder_logprobs" or not tokens.moments.impossible)
    if named or not tokens.moments.impossible:
        return ()
    return (Problem("placeholder_logprobs", "; ".join(tokens.moments.values())),)


def _unmasked(tokens: Tokens) -> list[Problem]:
    if not tokens.unmasked:
        return []
    words = (
        f"{tokens.unmasked:,} tokens in runs of exact zeros of the engine, which the trainer finds improbable, were left out of all "
        "figures. See that the loss has a mask there (0 on a tool's answer), and log it"
    )
    return [Problem("mask_missing", words)]


def _missing(tokens: Tokens) -> tuple[str, ...]:
    table = tokens.table
    known = {
        "prompt": table.prompt is not None and bool((table.prompt >= 0).any()),
        "step": table.step is not None,
        "weight_version": bool((table.weight_version >= 0).any()),
        "replica": table.replica is not None or table.rank is not None,
    }
    return tuple(name for name, there in known.items() if not there)


def _of_trend(moved: Trend | None, *, usual: bool) -> tuple[tuple[Problem, ...], tuple[str, ...], tuple[str, ...]]:
    """(problems, what to watch, hints) of a trend: what rises beyond what is usual is wrong, what falls is not."""
    if moved is None or moved.shape in ("flat", "falling", "too_short") or moved.factor < TWICE:
        return (), (), ()
    if moved.shape == "follows_lag":
        return (), (f"the skew {moved}",), ("follows_lag",)
    if usual:
        return (), (f"the skew {moved}; still within what is usual",), (moved.shape,)
    return (Problem(moved.shape, f"the skew {moved}"),), (), (moved.shape,)


# ---------------------------------------------------------------------------------------------------- metrics by step


def of_curves(found: ByStep, dtype: str | None, model_kind: str | None) -> Part:
    """What one file of metrics says."""
    length = found.recent("response/length")
    problems = list(_of_numbers(found))
    if found.collapsed and (found.level is None or found.level.now <= normal.most(dtype or "bfloat16", model_kind)):
        problems.append(Problem("weight_collapsed", _weight(found)))
    if found.level is None:
        kind, kind_text, hints = _kind(found, usual=False)
        if kind == "misreported":
            problems.insert(0, Problem("misreported", kind_text))
        said = kind_text if kind else ""
        return Part(kind=kind, kind_text=said, problems=tuple(problems), hints=hints, length=_whole(length))
    rms = found.level.now
    usual, words = place_among_published(rms, dtype, model_kind)
    wrong, watch, hints = _of_trend(found.level.trend, usual=usual)
    if not usual and not wrong:
        wrong = (Problem("too_large", f"{_logged(found)}: {words}"),)
    kind, kind_text, more = _kind(found, usual=usual)
    if kind == "misreported":
        wrong = (*wrong, Problem("misreported", kind_text))
    level = {"rms": rms, "from": found.level.curve.name, "by_metric": found.others}
    return Part(
        rms=rms,
        level=level,
        normal=usual,
        usual=words,
        kind=kind,
        kind_text=kind_text,
        trend=found.level.trend,
        problems=(*wrong, *problems),
        watch=watch + tuple(_watch(found, usual=usual)),
        hints=hints + more,
        length=_whole(length),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else max(1, round(value))


def _logged(found: ByStep) -> str:
    assert found.level is not None
    curve = found.level.curve
    at_least = "at least " if found.level.now >= LARGEST else ""
    return f"{curve.name} {np.nanmedian(curve.values[-1:]):.3g} at the end is an rms of {at_least}{found.level.now:.3g}"


def _of_numbers(found: ByStep) -> list[Problem]:
    """What the metrics beside the skew's size say: values that are no numbers, a correction that rejects."""
    problems = []
    if found.missing:
        problems.append(Problem("nonfinite", f"NaN or infinite values in metrics of the skew: {found.missing}"))
    kept = found.recent("correction/kept")
    if kept is not None and kept < REJECTED:
        problems.append(Problem("rejects", f"{1 - kept:.0%} of the data is masked or rejected"))
    return problems


def _weight(found: ByStep) -> str:
    assert found.weight is not None
    curve, value = found.weight
    how = weigh_tokens(found.source.framework)
    return (
        f"{curve.name} is {value:.3g}; of single tokens it would be near 1. Use a weight per token"
        + (f" ({how})" if how else "")
        + ", or a mean over the sequence instead of its sum"
    )


def weigh_tokens(framework: str | None) -> str:
    """The setting with which a framework weighs tokens instead of sequences; empty where none is known."""
    sums = (rule for rule in RULES if rule.framework == framework and rule.fold == "sum" and rule.action != "reject")
    return next((rule.instead for rule in sums), WEIGH_TOKENS.get(framework or "", ""))


def _kind(found: ByStep, *, usual: bool) -> tuple[str | None, str, tuple[str, ...]]:
    """(kind, words, hints): from E exp(d) where k1 and k3 tell it."""
    if found.ratio is None and found.untruthful and found.k1 is not None:
        words = f"bias: k1 = {found.k1[0]:.2g} ± {found.k1[1]:.1g}, and not below 0 if the engine reports what it samples from"
        return "misreported", words, ("misreported",)
    if found.ratio is None:
        words = (
            "not told by these metrics: with both estimates of the KL logged, k1 and k3, their difference is E exp(d) - 1, "
            "which is 0 if the engine reports what it samples from"
        )
        return None, words, ("heavy",) if found.heavy else ()
    off, error = found.ratio
    said = f"E exp(d) - 1 = k3 - k1 = {off:+.2g} ± {error:.1g}"
    if found.untruthful:
        words = f"bias: {said}, and 0 if the engine reports what it samples from"
        return "misreported", words, ("misreported",) if off > 0 else ("lost_mass",)
    words = f"noise: {said}, as of an engine that reports what it samples from"
    return "noise" if usual else "other_distribution", words, ("heavy",) if found.heavy else ()


def _watch(found: ByStep, *, usual: bool) -> list[str]:
    said = []
    if found.collapsed and not usual and found.weight is not None:
        said.append(f"the weight went with it: {found.weight[0].name} is {found.weight[1]:.3g}")
    if not found.heavy:
        return said
    return [
        *said,
        f"a few tokens are far off: k3 is that of an rms of {found.others['kl_k3']:.3g}, the mean size that of "
        f"{found.others['logprob_diff_mean']:.3g}",
    ]


# ----------------------------------------------------------------------------------------------------------- profiles


def of_profile(profile: SkewProfile) -> Part:
    """How a measured profile compares with what is published."""
    rms, verdict = profile.fit.rms.value, profile.verdict
    above = verdict.verdict == "above"
    metrics = {name: each.value for name, each in profile.metrics.items()}
    return Part(
        rms=rms,
        level={"rms": rms, "from": profile.name, "by_metric": metrics},
        normal=None if verdict.published is None else not above,
        usual=str(verdict),
        problems=(Problem("too_large", str(verdict)),) if above else (),
    )


def rms_of(value: float | None) -> float | None:
    """A level that thresholds can be judged at; None beyond those that they can."""
    return value if value is not None and 0 < value <= LARGEST else None
