"""The known traps, as a table of small functions: each looks at a configuration and says whether it is in the trap.

A trap is found only where its ground is in the file or in the framework's own code; what depends on a default, on the
model or on noise "may be". Settings that a framework makes by itself are no traps: verl, NeMo-RL's base, prime-rl, TRL
and OpenRLHF ask vLLM for processed logprobs themselves; verl, TRL and OpenRLHF reset the prefix cache with an update
(`vllm_async_server.py`, `vllm_generation.py`, `ppo_actor.py`), prime-rl salts it by version (`dispatcher.py`), slime
flushes it; NeMo-RL and slime (top-p) renormalise on the trainer's side too (`dtensor_policy_worker.py`, `loss.py`).
"""

from __future__ import annotations

# isort: off
from harness.configs import reported, computed, rejections  # the order in which traps are listed

# isort: on
from harness.configs.findings import Finding
from harness.configs.trap import TRAPS, Case

__all__ = ["TRAPS", "Case", "computed", "look", "rejections", "reported"]


def look(case: Case) -> tuple[Finding, ...]:
    """Every trap that a configuration is in; the sure ones first."""
    found = [finding for trap in TRAPS.values() for finding in trap.look(case)]
    return tuple(sorted(found, key=lambda each: each.certainty != "is"))
