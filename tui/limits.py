"""What a visitor of `skewsim serve` may do in the app: no files, no processes, and runs of a bounded size."""

from __future__ import annotations

from skewsim.errors import UserError, shown
from skewsim.settings import Scenario

HIDDEN = ("measure", "screenshot", "export", "runs", "restore", "open")
"""Actions that read or write files or start processes."""
POLICIES = ("base", "base_moe", "random")
MOST_STEPS, MOST_SEQUENCES, MOST_UPDATES, LARGEST_POOL = 1000, 256, 64, 100_000


def check_visit(scenario: Scenario) -> None:
    """UserError for a scenario that a visitor may not run: one that names a path or another device, or is too large."""
    from skewsim.skew.profile import shipped_profiles

    trainer, named = scenario.trainer, scenario.skew.profile
    for path, value, allowed in (
        ("policy", scenario.policy, POLICIES),
        ("skew.profile", named or "none", ("none", *shipped_profiles())),
        ("device", scenario.device, ("cpu",)),
    ):
        if value not in allowed:
            raise UserError(f"{path}={shown(value, 40)}: a visitor is allowed {', '.join(allowed)}")
    for path, size, most in (
        ("steps", scenario.steps, MOST_STEPS),
        ("trainer.num_prompts x num_generations", trainer.num_prompts * trainer.num_generations, MOST_SEQUENCES),
        ("trainer.num_iterations x num_minibatches", trainer.num_iterations * trainer.num_minibatches, MOST_UPDATES),
        ("task.pool_size", scenario.task.pool_size, LARGEST_POOL),
    ):
        if size > most:
            raise UserError(f"{path}={size}: a visitor is allowed at most {most}")
