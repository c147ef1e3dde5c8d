"""AdamW for one stacked parameter: torch's own fused kernel and formula, without `torch.optim.Optimizer`.

That class imports torch's compiler at its first use, which takes longer than everything else at the program's start.
Adam is elementwise, so one step over (E, D) is a step of each of the E members. (Kingma and Ba 2015; Loshchilov and
Hutter 2019.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from skewsim.settings import TrainerSettings


class Adam:
    """Adam's moments (E, D) and number of steps; `moments` has them under torch's names and goes into checkpoints."""

    def __init__(self, parameter: Tensor) -> None:
        self.moments = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    @torch.no_grad()
    def step(self, parameter: Tensor, gradient: Tensor, settings: TrainerSettings) -> None:
        """One update of the parameter, in place."""
        moments = self.moments
        adamw(
            [parameter],
            [gradient],
            [moments["exp_avg"]],
            [moments["exp_avg_sq"]],
            [],
            [moments["step"]],
            fused=True,
            amsgrad=False,
            beta1=settings.adam_beta1,
            beta2=settings.adam_beta2,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            eps=settings.adam_epsilon,
            maximize=False,
        )
