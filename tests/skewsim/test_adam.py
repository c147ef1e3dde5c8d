"""The optimiser's update against torch's own class, bit for bit."""

from __future__ import annotations

import torch

from skewsim.learn.adam import Adam
from skewsim.settings import TrainerSettings


def test_every_update_is_that_of_torchs_adamw_to_the_last_bit() -> None:
    settings = TrainerSettings(learning_rate=3e-3, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, weight_decay=0.1)
    stream = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 50, generator=stream).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    adam = Adam(ours)
    oracle = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, fused=True)
    for _ in range(5):
        gradient = torch.randn(3, 50, generator=stream)
        adam.step(ours, gradient, settings)
        theirs.grad = gradient
        oracle.step()
        assert torch.equal(ours, theirs)
