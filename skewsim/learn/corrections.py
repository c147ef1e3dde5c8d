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

``masking="remove"`` takes a rejected token out of numerator and denominator (verl, slime), ``"zero"`` only zeroes its
weight (TRL). ``keep_sampling_mask`` acts on the trainer's softmax, before there are logprobs: not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skewsim.learn.clipping import has_update_ratio
from skewsim.settings import CorrectionSettings, TrainerSettings

if TYPE_CHECKING:
    from skewsim.learn.losses import LossInputs

SEQUENCE_EXPONENT = 20.0  # verl's bound on the exponent of a sequence ratio: e^20 is beyond any use of it


def compute_weights(inputs: LossInputs, settings: CorrectionSettings | TrainerSettings) -> tuple[Tensor, Tensor]:
    """Weight of each token's loss and the mask of tokens that count, each ``(..., N, T)``, detached.

    A weight is 0 where a token is rejected or padding. With ``CorrectionSettings`` alone the ratio is
    ``old / engine``; ``TrainerSettings`` add the bypass rule of this module.
    """
    correction = settings if isinstance(settings, CorrectionSettings) else settings.correction
    with torch.no_grad():
        mask = inputs.mask > 0
        if not is_active(correction):
            dense = mask.to(inputs.trainer_logprobs.dtype)
            return dense, dense
        bypass = isinstance(settings, TrainerSettings) and is_bypass(inputs, settings)
        numerator = inputs.trainer_logprobs if bypass else inputs.old_logprobs
        d = torch.where(mask, numerator - inputs.engine_logprobs, 0.0)
        weights = WEIGHTS[correction.weight](d, mask, correction)
        weights = torch.where(mask & _sequences_kept(d, mask, inputs, correction), weights, 0.0)
        if isinstance(settings, TrainerSettings) and _ratio_carries_skew(settings, bypass=bypass):
            weights = (weights != 0).to(d.dtype)
        counted = mask & (weights != 0) if correction.masking == "remove" else mask
        if correction.batch_normalize:
            weights = weights / _mean_weight(weights, counted, per_sequence=correction.weight.startswith("sequence"))
        return weights, counted.to(d.dtype)


def is_active(correction: CorrectionSettings) -> bool:
    """Whether any weight or rejection is asked for."""
    return (correction.weight, correction.reject, correction.veto, correction.off_policy_mask) != (
        "none",
        "none",
        None,
        None,
    )


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
    return settings.objective == "dppo" or (bypass and has_update_ratio(settings))


# Weights: (d, mask, settings) -> (..., N, T)


def no_weight(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    return torch.ones_like(d)


def token_tis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """``clamp(rho, low, C)``; C 2 in verl, slime and SkyRL, [0.5, 5] in OpenRLHF."""
    return _truncate(d.exp(), settings, high=2.0)


def token_mis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """``rho`` inside [0.5, 5], else 0: IcePop."""
    return _keep_inside(d.exp(), settings, low=0.5, high=5.0)


def sequence_tis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """The sequence's ratio, truncated at 2 (verl; SkyRL 5)."""
    return _truncate(sequence_ratio(d).expand_as(d), settings, high=2.0)


def sequence_mis(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """The sequence's ratio up to 2, else 0 (TRL's ``sequence_mask``: 3)."""
    return _keep_inside(sequence_ratio(d).expand_as(d), settings, low=0.0, high=2.0)


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


def _truncate(ratio: Tensor, settings: CorrectionSettings, *, high: float) -> Tensor:
    return ratio.clamp(settings.weight_low, high if settings.weight_high is None else settings.weight_high)


def _keep_inside(ratio: Tensor, settings: CorrectionSettings, *, low: float, high: float) -> Tensor:
    low = low if settings.weight_low is None else settings.weight_low
    high = high if settings.weight_high is None else settings.weight_high
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)


# Rejection: which sequences stay, (..., N, 1)


def geometric(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """Keep while the geometric mean ratio is inside its bounds (verl [0.999, 1.001])."""
    ratio = _sequence_mean(d, mask).exp()
    low = 0.999 if settings.reject_low is None else settings.reject_low
    high = 1.001 if settings.reject_high is None else settings.reject_high
    return (ratio >= low) & (ratio <= high)


def k3(d: Tensor, mask: Tensor, settings: CorrectionSettings) -> Tensor:
    """Keep while the mean of ``exp(d) - d - 1`` is at most its bound (verl 0.01)."""
    high = 0.01 if settings.reject_high is None else settings.reject_high
    return _sequence_mean(torch.expm1(d) - d, mask) <= high


REJECTIONS: dict[str, Callable[[Tensor, Tensor, CorrectionSettings], Tensor]] = {"geometric": geometric, "k3": k3}


def veto(d: Tensor, threshold: float) -> Tensor:
    """Keep unless one token's ratio is below the threshold (slime 1e-4)."""
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
