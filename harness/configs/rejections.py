"""Traps of corrections: none where one is needed, bounds without effect, upside down, or below the noise."""

from __future__ import annotations

from collections.abc import Iterator

from harness.configs import bounds as limits
from harness.configs.computed import fp8_kv, moe, quantized
from harness.configs.findings import Finding
from harness.configs.frameworks import Configuration
from harness.configs.trap import GITHUB, VERL, Case, corrected, finding, trap

REJECTS = 0.05
"""Share of healthy tokens or sequences from which on a bound counts as below the noise."""
BIAS = 0.5
"""Share of the gradient that a weight on healthy data may lose or shift before it counts as a trap."""


@trap(
    "no_correction",
    "Nothing weighs or rejects by the engine's own probabilities: the trainer takes its recomputed logprobs for the ones "
    "that were sampled from.",
    "https://fengyao.notion.site/off-policy-rl",
)
def _no_correction(case: Case) -> Iterator[Finding]:
    config = case.config
    if corrected(config) is not False or (config.framework == "TRL" and not case.on_vllm):
        return
    name = "weights" if config.framework == "verl" else "correction"
    found = config.get(name)
    if found is None or (found.flag is None and found.text):
        return
    why = _larger_skew(case)
    if why:
        change = config.line(name, "token" if config.framework == "verl" else True)
        what = f"The skew is more than 16-bit noise here: {', '.join(why)}."
        yield finding("no_correction", found, what, change, sure="asynchronous rollouts" in why)


def _larger_skew(case: Case) -> list[str]:
    """What makes the engine differ by more than rounding to 16 bits."""
    said = case.config.get("asynchronous")
    asynchronous = said is not None and (said.flag or (said.number or 0) > 0)
    traps = {"quantised rollouts": quantized, "fp8 keys and values": fp8_kv, "experts without replay": moe}
    found = [name for name, look in traps.items() if any(True for _ in look(case))]
    return ["asynchronous rollouts"] * bool(asynchronous) + found


@trap(
    "weight_without_effect",
    "verl's bypass mode with loss_type ppo_clip computes rollout_is (TIS, IcePop) for its metrics and does not apply it.",
    VERL + "blob/main/verl/trainer/ppo/core_algos.py",
)
def _without_effect(case: Case) -> Iterator[Finding]:
    config = case.config
    found = config.get("weights")
    if config.framework != "verl" or found is None or not found.text:
        return
    if config.flag("bypass") and config.text("loss_type") == "ppo_clip":
        what = "The clip sees the whole ratio, and this weight goes into the metrics alone."
        change = f"{config.written(found.name, None)}, or {config.line('loss_type', 'reinforce')}"
        if not config.text("rejection"):
            change += f", or {config.line('rejection', 'token_k1')} with bounds"
        yield finding("weight_without_effect", found, what, change)


@trap(
    "bounds_exclude_one",
    "A threshold on the ratio that does not hold 1: tokens or sequences on which both sides agree are rejected.",
    VERL + "blob/main/verl/trainer/ppo/rollout_corr_helper.py",
)
def _exclude_one(case: Case) -> Iterator[Finding]:
    for bound in limits.bounds(case.config):
        if not limits.holds_one(bound):
            what = f"{bound.rule.rule} keeps ratios from {bound.low or 0:.4g} to {bound.high or 0:.4g}, and 1 is not among them."
            yield finding("bounds_exclude_one", bound.setting, what, _suggested(case.config, bound))


@trap(
    "bounds_upside_down",
    "verl's k1 thresholds are on -log rho: low_high keeps ratios from 1/high to 1/low. Meant for the ratio itself they "
    "reject what they should keep.",
    VERL + "blob/main/verl/trainer/ppo/rollout_corr_helper.py",
)
def _upside_down(case: Case) -> Iterator[Finding]:
    for bound, rejected, turned in _rejecting(case.config):
        if bound.rule.units == "inverse" and turned < rejected / 2 and turned < REJECTS:
            what = f"{bound.rule.rule} rejects {rejected:.0%} of healthy data; the inverse bounds would reject {turned:.1%}."
            yield finding("bounds_upside_down", bound.setting, what, _suggested(case.config, bound), sure=False)


@trap(
    "bounds_below_noise",
    "A rejection or mask that fires on healthy rounding noise at this length.",
    GITHUB + "AknA13/train-infer-mismatch",
)
def _below_noise(case: Case) -> Iterator[Finding]:
    _, of = limits.noise_of(case.config)
    length, said = limits.length_of(case.config)
    for bound, rejected, turned in _rejecting(case.config):
        if bound.rule.units == "inverse" and turned < rejected / 2 and turned < REJECTS:
            continue  # upside down
        what = f"{bound.rule.rule} {'drops' if bound.rule.per == 'sequences' else 'masks'} {rejected:.0%} of healthy "
        what += f"{bound.rule.per} of {length} tokens{'' if said else ' (no length in the file)'}, at {of}"
        what += ", and more of shorter ones." if bound.rule.fold == "mean" else "."
        yield finding("bounds_below_noise", bound.setting, what, _suggested(case.config, bound), sure=False)


def _rejecting(config: Configuration) -> Iterator[tuple[limits.Bound, float, float]]:
    """(bound, share of healthy data it rejects, the same if it were turned) of those that reject too much."""
    rms, _ = limits.noise_of(config)
    length, _ = limits.length_of(config)
    for bound in limits.bounds(config):
        weight = bound.rule.fold == "sum" and bound.rule.action == "mask"  # judged by what it leaves: `_summed`
        if bound.rule.action not in ("reject", "mask") or weight or not limits.holds_one(bound):
            continue
        rejected = limits.touched(bound, rms, length)
        if rejected > REJECTS:
            yield bound, rejected, limits.touched(limits.turned(bound), rms, length)


@trap(
    "summed_weight",
    "A weight multiplied up over a sequence: on long healthy data most of the gradient is cut off or masked.",
    GITHUB + "huggingface/trl/issues/4772",
)
def _summed(case: Case) -> Iterator[Finding]:
    rms, of = limits.noise_of(case.config)
    length, said = limits.length_of(case.config)
    for bound in limits.bounds(case.config):
        if bound.rule.fold != "sum" or bound.rule.action == "reject" or not limits.holds_one(bound):
            continue
        if said is None or case.config.flag("normalised"):
            continue  # normalised weights have mean one; how few of them count is another matter
        mean, bias = limits.bias(bound, rms, length)
        if bias > BIAS:
            what = f"At {length} tokens and {of} the mean weight is {mean:.2g}."
            yield finding("summed_weight", bound.setting, what, _by_token(case.config), sure=False)


def _suggested(config: Configuration, bound: limits.Bound) -> str:
    """The line that makes a bound bearable, or a rule by token or mean where none does."""
    if bound.rule.fold == "sum":
        return _by_token(config)
    rms, _ = limits.noise_of(config)
    length, _ = limits.length_of(config)
    wide = limits.not_firing(bound, rms, length)
    low, _, high = wide.rpartition("_")
    if config.framework == "verl":
        return config.line(bound.field, wide)
    if config.framework == "OpenRLHF":
        return config.line(bound.field, f"{low or 0} {high}")
    if config.framework == "NeMo-RL":
        return f"{config.line('correction_low', low)}, {config.line('correction_high', high)}"
    if config.framework in ("slime", "Miles"):
        names = (
            ("mis_rejection_low", "mis_rejection_high")
            if bound.field.startswith("mis_rej")
            else ("mis_low", "mis_high")
        )
        return ", ".join(config.line(name, value) for name, value in zip(names, (low, high), strict=True) if value)
    return _by_token(config)


def _by_token(config: Configuration) -> str:
    if config.framework == "verl":
        return config.line("weights", "token")
    if config.framework == "TRL":
        return config.line("correction_mode", "token_truncate")
    return config.line("mis_level", "token") if config.get("mis_level") is not None else "a weight per token"
