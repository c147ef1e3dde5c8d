"""Thresholds on the mismatch ratio, read from a configuration and put to healthy skew of the configured length.

verl bounds -log rho, so its `low_high` of a k1 rule keeps ratios from 1/high to 1/low
(`verl/trainer/ppo/rollout_corr_helper.py`); the others bound the ratio itself. The noise is what is published for the
engine's dtype (`skewsim.skew.published`); a geometric mean over fewer tokens is noisier, so that a bound that rejects
healthy sequences of the greatest length rejects more of the shorter ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from harness.configs.frameworks import Configuration
from harness.configs.settings import Setting
from skewsim.skew.advise import effect, fires, not_reached
from skewsim.skew.effect import Action, Fold, Of
from skewsim.skew.healthy import ClosedForm
from skewsim.skew.published import published_runs
from skewsim.skew.rules import Rule, Units, number

_LONGEST = 1_000_000
LENGTH_IF_UNKNOWN = 1506
"""Mean response length of the published figures (AknA13/train-infer-mismatch), where the file names none."""


@dataclass(frozen=True)
class Bound:
    """One threshold of a configuration."""

    rule: Rule
    low: float | None
    """Of the ratio, like `high`; of the number itself where the rule is not on the ratio."""
    high: float | None
    setting: Setting
    field: str
    """The field whose line is to be changed."""


def bounds(config: Configuration) -> Iterator[Bound]:
    """Every threshold on the mismatch ratio that is on in a configuration."""
    reader = {
        "verl": _verl,
        "TRL": _trl,
        "NeMo-RL": _nemo_rl,
        "OpenRLHF": _openrlhf,
        "slime": _slime,
        "Miles": _slime,
    }.get(config.framework)
    if reader is not None:
        yield from reader(config)


def _rule(config: Configuration, name: str, fold: Fold, action: Action, of: Of = "d", units: Units = "ratio") -> Rule:
    return Rule(config.framework, name, "{low}_{high}", fold, action, of=of, units=units)


def _verl(config: Configuration) -> Iterator[Bound]:
    weights, threshold = config.text("weights"), config.get("weights_threshold")
    applied = not (config.flag("bypass") and config.text("loss_type") == "ppo_clip")
    if weights in ("token", "sequence") and threshold is not None and applied and threshold.text:
        low, high = _pair(threshold.text)
        action: Action = "truncate" if low is None else "mask"
        fold: Fold = "sum" if weights == "sequence" else "token"
        yield Bound(_rule(config, f"rollout_is={weights}", fold, action), low, high, threshold, "weights_threshold")
    yield from _verl_rejections(config)


def _verl_rejections(config: Configuration) -> Iterator[Bound]:
    options = [each.strip() for each in config.text("rejection").split(",") if each.strip()]
    said = config.get("rejection_threshold")
    if said is None or not said.text:
        return
    parts = [each.strip() for each in said.text.split(",") if each.strip()]
    for at, option in enumerate(options):
        level, _, kind = option.rpartition("_")
        fold = _VERL_FOLDS.get(level)
        part = parts[at] if len(parts) == len(options) else parts[0]
        if fold is None or kind not in ("k1", "k2", "k3"):
            continue
        low, high = _pair(part)
        if kind != "k1":
            of: Of = "k2" if kind == "k2" else "k3"
            rule = _rule(config, option, fold, "reject", of, "plain")
            yield Bound(rule, None, high, said, "rejection_threshold")
        elif high is not None:
            low = 1 / high if low is None else low
            rule = _rule(config, option, fold, "reject", units="inverse")
            yield Bound(rule, 1 / high, 1 / low, said, "rejection_threshold")


_VERL_FOLDS: dict[str, Fold] = {"token": "token", "seq_sum": "sum", "seq_mean": "mean", "seq_max": "max"}


def _trl(config: Configuration) -> Iterator[Bound]:
    mode, high = config.text("correction_mode"), config.get("correction_high")
    level, _, kind = mode.partition("_")
    if not config.flag("use_vllm") or not config.flag("correction") or kind not in ("mask", "truncate") or high is None:
        return
    action: Action = "mask" if kind == "mask" else "truncate"
    fold: Fold = "sum" if level == "sequence" else "token"
    rule = _rule(config, f"vllm_importance_sampling_mode={mode}", fold, action)
    yield Bound(rule, config.number("correction_low"), high.number, high, "correction_mode")


def _nemo_rl(config: Configuration) -> Iterator[Bound]:
    yield from _three_kinds(config, config.number("correction_low"), config.get("correction_high"), "correction_high")


def _openrlhf(config: Configuration) -> Iterator[Bound]:
    said = config.get("correction_bounds")
    if said is None or not isinstance(said.value, list) or len(said.value) != 2:
        return
    low, high = (Setting("", each).number for each in said.value)
    yield from _three_kinds(config, low, replace(said, value=high), "correction_bounds")


def _three_kinds(config: Configuration, low: float | None, high: Setting | None, field: str) -> Iterator[Bound]:
    """tis, icepop, seq-mask-tis: what NeMo-RL and OpenRLHF both have."""
    kind = config.text("correction_mode")
    kinds: dict[str, tuple[Fold, Action]] = {
        "tis": ("token", "truncate"),
        "icepop": ("token", "mask"),
        "seq-mask-tis": ("mean", "reject"),
    }
    if not config.flag("correction") or kind not in kinds or high is None or high.number is None:
        return
    yield Bound(_rule(config, kind, *kinds[kind]), low, high.number, high, field)


def _slime(config: Configuration) -> Iterator[Bound]:
    if config.flag("mis_rejects"):
        yield from _mis(config, "rs", "mis_rejection_level", "reject", "mis_rejection_low", "mis_rejection_high")
    if config.flag("mis_weights"):
        action: Action = "mask" if config.text("mis_mode") == "mask" else "truncate"
        yield from _mis(config, "tis", "mis_level", action, "mis_low", "mis_high")


def _mis(config: Configuration, name: str, level: str, action: Action, low: str, high: str) -> Iterator[Bound]:
    """mis.yaml of slime and Miles; a bound that is null is the other rule's."""
    folds: dict[str, Fold] = {"token": "token", "sequence": "sum", "geometric": "mean"}
    said, fold = config.get(high), folds.get(config.text(level))
    top = config.number(high) if config.number(high) is not None else config.number("mis_high")
    bottom = config.number(low) if config.number(low) is not None else config.number("mis_low")
    if fold is not None and said is not None and top is not None:
        yield Bound(_rule(config, f"{name}_level={config.text(level)}", fold, action), bottom, top, said, high)


def _pair(text: str) -> tuple[float | None, float | None]:
    """`low_high` or `high`; (None, None) if it is neither, or not positive."""
    parts = [Setting("", part).number for part in text.split("_", 1)]
    if any(part is None or part <= 0 for part in parts):
        return None, None
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


# -------------------------------------------------------------------------------------- what they do


def noise_of(config: Configuration) -> tuple[float, str]:
    """(rms skew in nats, of what) published for the engine's dtype; bfloat16's where it says none."""
    dtype = {"float16": "float16", "half": "float16", "fp16": "float16", "float32": "float32", "fp32": "float32"}
    wanted = dtype.get(config.text("dtype").lower(), "bfloat16")
    run = next(each for each in published_runs() if each.yardstick == wanted)
    rms = run.values["rms"]
    return rms, f"{wanted} noise (rms {rms:g}, {run.source.title.partition(',')[0]})"


def length_of(config: Configuration) -> tuple[int, Setting | None]:
    """The greatest response length, and the setting that says it; a usual length where none does."""
    said = config.get("length")
    length = None if said is None else said.number
    if said is None or length is None or not 1 <= length <= _LONGEST:
        return LENGTH_IF_UNKNOWN, None
    return int(length), said


@lru_cache(maxsize=64)
def healthy(rms: float, length: int) -> ClosedForm:
    return ClosedForm(rms, length)


def touched(bound: Bound, rms: float, length: int) -> float:
    """The share of healthy tokens or sequences that fall outside."""
    return fires(bound.rule, healthy(rms, length), (bound.low, bound.high))


def turned(bound: Bound) -> Bound:
    """The same numbers, meant for the inverse ratio."""
    low, high = bound.low, bound.high
    return replace(bound, low=None if high is None else 1 / high, high=None if not low else 1 / low)


def bias(bound: Bound, rms: float, length: int) -> tuple[float, float]:
    """(mean weight, E |w - exact|) that a weight makes of healthy data."""
    found = effect(bound.rule, healthy(rms, length), (bound.low, bound.high))
    return found.mean, min(found.bias, 1.0)


def not_firing(bound: Bound, rms: float, length: int) -> str:
    """Bounds that healthy data of this length hardly reaches, as the framework's own `low_high`."""
    known = replace(bound.rule, low=bound.low, high=bound.high)
    low, high = not_reached(known, healthy(rms, length), 1e-3)
    if bound.rule.of != "d":
        return number(high)
    return known.text(low, high).strip("_")


def holds_one(bound: Bound) -> bool:
    """Whether equal probabilities, a ratio of 1, lie inside."""
    if bound.rule.of != "d":
        return True
    return (bound.low or 0.0) <= 1 <= (math.inf if bound.high is None else bound.high)
