"""What a trainer can do about skew after the fact: importance weights and rejection.

The token ratio is ``rho = exp(d)``, the sequence ratio ``exp(sum d)`` with its exponent held inside +-20, the
geometric ratio ``exp(mean d)``. A weight method turns the ratio into a detached weight on each token's loss
(truncated: TIS, https://fengyao.notion.site/off-policy-rl; masked: MIS, which per token is IcePop,
arXiv 2510.18855), and any number of rejections drop whole sequences: verl's ``rollout_is`` and ``rollout_rs``
(docs/algo/rollout_corr.md), slime's veto, DeepSeek-V3.2's off-policy sequence mask (arXiv 2512.02556).

Which ``d``: decoupled, ``old - engine``: what the objective's own ratio ``trainer / old`` leaves over. In bypass the
engine's logprobs are old, so ``d = trainer - engine``; an objective with a ratio then carries that factor itself, and
multiplying by a weight would square it. As in verl's bypass mode, such an objective takes from a correction only what
is kept (MIS and every rejection), never the size of a weight: TIS changes nothing there. REINFORCE and RLOO have no
ratio and take the weight as well. DPPO's ratio is to the engine in either mode, so it never takes a size.

In verl that is ``rollout_rs``; its IcePop (``rollout_is_threshold`` with two bounds) is a weight and does nothing in
bypass, so that MIS here is verl's ``rollout_rs=token_k1`` or ``seq_sum_k1`` there.

Default bounds are in `skewsim.catalogue`. ``masking="remove"`` takes a rejected token out of numerator and denominator:
verl's decoupled mode, which rejects before the batch's tokens are counted. ``"zero"`` only zeroes its weight: TRL,
slime
(its denominators are the masks as they were before rejection), Miles, NeMo-RL, OpenRLHF, SkyRL, and verl's bypass mode.
``keep_sampling_mask`` acts on the trainer's softmax, before there are logprobs: not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skewsim.catalogue import CORRECTIONS, SEQUENCE_EXPONENT, find_form
from skewsim.settings import CorrectionSettings, TrainerSettings

if TYPE_CHECKING:
    from skewsim.learn.losses import LossInputs


def compute_weights(inputs: LossInputs, settings: CorrectionSettings | TrainerSettings) -> tuple[Tensor, Tensor]:
    """Weight of each token's loss and the mask of tokens that count, each ``(..., N, T)``, detached.

    A weight is 0 where a token is rejected or padding. With ``CorrectionSettings`` alone the ratio is
    ``old / engine``; ``TrainerSettings`` add the bypass rule of this module.
    """
    correction = settings if isinstance(settings, CorrectionSettings) else settings.correction
    with torch.no_grad():
        mask = inputs.mask > 0
        if not correction.active:
            dense = mask.to(inputs.trainer_logprobs.dtype)
            return dense, dense
        bypass = isinstance(settings, TrainerSettings) and is_bypass(inputs, settings)
        numerator = inputs.trainer_logprobs if bypass else inputs.old_logprobs
        d = torch.where(mask, numerator - inputs.engine_logprobs, 0.0)
        weights = WEIGHTS[correction.weight](d, mask, correction)
        if isinstance(settings, TrainerSettings) and _ratio_carries_skew(settings, bypass=bypass):
            weights = (weights != 0).to(d.dtype)
        elif correction.batch_normalize:  # over all sampled tokens, before any is rejected: verl, slime
            weights = weights / _mean_weight(weights, mask, per_sequence=correction.weight.startswith("sequence"))
        weights = torch.where(mask & _sequences_kept(d, mask, inputs, correction), weights, 0.0)
        counted = mask & (weights != 0) if correction.masking == "remove" else mask
        return weights, counted.to(d.dtype)


def is_bypass(inputs: LossInputs, settings: TrainerSettings) -> bool:
    """Bypass is asked for and is what the inputs are; other old logprobs make the loss decoupled whatever is asked."""
    if settings.old_logprobs != "rollout" or inputs.old_logprobs is inputs.engine_logprobs:
        return settings.old_logprobs == "rollout"
    # padding is never read, and a token that the engine could not score (NaN) is the same on both sides
    old, engine = (
        torch.where(inputs.mask > 0, x, 0.0).nan_to_num() for x in (inputs.old_logprobs, inputs.engine_logprobs)
    )
    return torch.equal(old, engine)


def _ratio_carries_skew(settings: TrainerSettings, *, bypass: bool) -> bool:
    """Whether the objective's own ratio is already to the engine, so that a weight would count the skew twice."""
    ratio = find_form(settings).ratio
    return ratio == "engine" or (bypass and ratio == "old")


# Weights: (d, mask, settings) -> (..., N, T)


def no_weight(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    return torch.ones_like(d)


def token_tis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """``clamp(rho, low, C)``."""
    return _truncate(d.exp(), settings)


def token_mis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """``rho`` inside its bounds, else 0: IcePop."""
    return _keep_inside(d.exp(), settings)


def sequence_tis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """The sequence's ratio, truncated at C."""
    return _truncate(sequence_ratio(d).expand_as(d), settings)


def sequence_mis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """The sequence's ratio up to C, else 0."""
    return _keep_inside(sequence_ratio(d).expand_as(d), settings)


WEIGHTS: dict[str, Callable[[Tensor, Tensor, CorrectionSettings], Tensor]] = {
    "none": no_weight,
    "token_tis": token_tis,
    "token_mis": token_mis,
    "sequence_tis": sequence_tis,
    "sequence_mis": sequence_mis,
}


def sequence_ratio(d: Tensor) -> Tensor:
    """``exp(sum d)``, ``(..., N, 1)``; d is 0 at padding."""
    return d.sum(-1, keepdim=True).clamp(-SEQUENCE_EXPONENT, SEQUENCE_EXPONENT).exp()


def _truncate(ratio: Tensor, settings: CorrectionSettings) -> Tensor:
    low, high = _bounds(settings.weight, settings.weight_low, settings.weight_high)
    return ratio.clamp(low, high)


def _keep_inside(ratio: Tensor, settings: CorrectionSettings) -> Tensor:
    low, high = _bounds(settings.weight, settings.weight_low, settings.weight_high)
    return torch.where(_inside(ratio, low, high), ratio, 0.0)


def _bounds(name: str, low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """The bounds that are set, and the method's own default where one is not."""
    default = CORRECTIONS[name].bounds
    return default.low if low is None else low, default.high if high is None else high


def _inside(ratio: Tensor, low: float | None, high: float | None) -> Tensor:
    return (ratio >= (-torch.inf if low is None else low)) & (ratio <= (torch.inf if high is None else high))


# Rejection: which sequences stay, (..., N, 1)


def geometric(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """Keep while the geometric mean ratio is inside its bounds."""
    return _inside(_sequence_mean(d, mask).exp(), *_bounds("geometric", settings.reject_low, settings.reject_high))


def k3(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """Keep while the mean of ``exp(d) - d - 1`` is at most its bound."""
    _, high = _bounds("k3", None, settings.reject_high)
    return _inside(_sequence_mean(torch.expm1(d) - d, mask), None, high)


REJECTIONS: dict[str, Callable[[Tensor, Tensor, CorrectionSettings], Tensor]] = {"geometric": geometric, "k3": k3}


def veto(d: Tensor, threshold: float) -> Tensor:
    """Keep unless one token's ratio is below the threshold."""
    return ~(d.exp() < threshold).any(-1, keepdim=True)


def off_policy_mask(inputs: LossInputs, mask: Tensor, threshold: float) -> Tensor:
    """Keep unless the advantage is negative and ``mean(engine - trainer)`` exceeds the threshold (DeepSeek-V3.2)."""
    drift = torch.where(mask, inputs.engine_logprobs - inputs.trainer_logprobs, 0.0)
    return (inputs.advantages.unsqueeze(-1) >= 0) | (_sequence_mean(drift, mask) <= threshold)


def _sequences_kept(d: Tensor, mask: Tensor, inputs: LossInputs, settings: CorrectionSettings) -> Tensor:
    kept = torch.ones_like(mask[..., :1])
    if settings.reject != "none":
        kept = kept & REJECTIONS[settings.reject](d, mask, settings)
    if settings.veto is not None:
        kept = kept & veto(d, settings.veto)
    if settings.off_policy_mask is not None:
        kept = kept & off_policy_mask(inputs, mask, settings.off_policy_mask)
    return kept


def _sequence_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)


def _mean_weight(weights: Tensor, mask: Tensor, *, per_sequence: bool) -> Tensor:
    """Mean over tokens, or over sequences for sequence weights (as verl has it); 1 where nothing is kept."""
    if per_sequence:
        weights = _sequence_mean(weights * mask, mask)
        mask = mask.any(-1, keepdim=True)
    mean = (weights * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True).clamp(min=1)
    return torch.where(mean > 0, mean, 1.0)
