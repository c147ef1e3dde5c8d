"""The named scenarios: the reference, the four-fix ladder of the vLLM V0-to-V1 migration, counter-lessons, and faults.

The ladder follows the order in which the migration was repaired (ServiceNow-AI, "vLLM V0 to V1: correctness before
corrections in RL", 2026; PipelineRL pull request 137). Each rung changes only what its fix changes; with all four, the
settings are the reference's again.

`initial_v1` is vLLM V1 with its default settings, in a trainer written for V0. The engine reports raw logprobs. Prefix
caching and async scheduling are on, and the trainer does not reset the cache. Requests are drained before weights are
loaded, so that the engine falls eight versions behind. lm_head is in bfloat16 while the trainer's is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skewsim.errors import UserError
from skewsim.settings import Scenario, SkewSettings

Values = dict[str, Any]

INITIAL_V1: Values = {
    "engine.logprobs_mode": "raw_logprobs",
    "engine.enable_prefix_caching": True,
    "engine.async_scheduling": True,
    "engine.mode": "wait",
    "engine.lag": 8,
    "engine.head_dtype": "bfloat16",
}
FIXES: dict[str, Values] = {
    "plus_processed": {"engine.logprobs_mode": "processed_logprobs"},
    "plus_defaults": {"engine.enable_prefix_caching": False, "engine.async_scheduling": False},
    "plus_inflight": {"engine.mode": "keep", "engine.clear_cache": False, "engine.lag": 1},
    "plus_fp32_head": {"engine.head_dtype": "float32"},
}
"""The four fixes in order: rung name -> what it sets."""

LADDER = ("v0_reference", "initial_v1", *FIXES)

_FAULTS_ALONE = {
    "only_raw": ("plus_processed", "Without fix 1 alone: raw logprobs, and all else as in the reference."),
    "only_stale_prefix": (
        "plus_defaults",
        "Without fix 2 alone: a prefix cache that outlives updates, steps scheduled ahead.",
    ),
    "only_lag": (
        "plus_inflight",
        "Without fix 3 alone: requests are drained first, so the engine is eight versions behind.",
    ),
    "only_bf16_head": ("plus_fp32_head", "Without fix 4 alone: lm_head in bfloat16 on the engine only."),
}
ALONE = tuple(_FAULTS_ALONE)
"""The rungs with one of the four faults each: the reference, without one fix."""

ONE_SIDED: Values = {"engine.head_dtype": "float32", "trainer.head_dtype": "bfloat16"}
_HEADS: Values = {"trainer.objective": "gspo", "trainer.gspo_form": "paper", "engine.temperature": 1.0}
_RAW: Values = {"engine.temperature": 0.7, "engine.logprobs_mode": "raw_logprobs"}


@dataclass(frozen=True)
class Named:
    """A named scenario: what it shows, and how it differs from the reference."""

    about: str
    values: Values

    def scenario(self, name: str) -> Scenario:
        return Scenario().with_values({"name": name, **self.values})


def _ladder() -> dict[str, Named]:
    about = {
        "plus_processed": "Fix 1: logprobs of the distribution that is sampled from.",
        "plus_defaults": "Fix 2: no prefix cache that outlives an update, no step scheduled ahead.",
        "plus_inflight": "Fix 3: requests go on through a weight update, so the engine is one version behind, not eight.",
        "plus_fp32_head": "Fix 4: lm_head in float32 on the engine too; the settings are the reference's again.",
    }
    rungs = {
        "v0_reference": Named("The run that works: vLLM V0's behaviour.", {}),
        "initial_v1": Named("V1 as it comes out of the box: all four causes at once.", INITIAL_V1),
    }
    values = dict(INITIAL_V1)
    for name, fix in FIXES.items():
        values |= fix
        rungs[name] = Named(about[name], dict(values))
    return rungs


def _alone() -> dict[str, Named]:
    """The reference with what initial V1 has where one fix acts, and nothing else of it."""
    return {
        name: Named(about, {path: value for path, value in INITIAL_V1.items() if path in FIXES[fix]})
        for name, (fix, about) in _FAULTS_ALONE.items()
    }


COUNTER_LESSONS: dict[str, Named] = {
    "raw_bypass": Named(
        "Raw logprobs at temperature 0.7, taken at their word: the update ratio is wrong at every token.", _RAW
    ),
    "raw_tis": Named(
        "The same with a correction on top: token TIS over recomputed old logprobs trusts the wrong number.",
        _RAW | {"trainer.old_logprobs": "recompute", "trainer.correction.weight": "token_tis"},
    ),
    "raw_recompute": Named(
        "The same, but old logprobs are recomputed and the engine's are not used at all.",
        _RAW | {"trainer.old_logprobs": "recompute"},
    ),
    "raw_fixed": Named("The fix itself: processed logprobs at temperature 0.7.", {"engine.temperature": 0.7}),
    "heads_fp32": Named("lm_head in float32 on both sides, under GSPO's tiny clip (3e-4/4e-4).", _HEADS),
    "heads_bf16": Named(
        "lm_head in bfloat16 on both sides: the rounding is the same, so it cancels.",
        _HEADS | {"engine.head_dtype": "bfloat16", "trainer.head_dtype": "bfloat16"},
    ),
    "heads_one_sided": Named(
        "lm_head in float32 on the engine only: the trainer's rounding no longer cancels.", _HEADS | ONE_SIDED
    ),
}
"""Scenarios in which the objective or a correction is changed instead of the cause of the skew."""

_NO_LAG: Values = {"engine.lag": 0, "engine.update_at_token": None}


def _fault(about: str, **values: Any) -> Named:
    """A fault on an engine without lag, so that it is all the skew there is."""
    return Named(about, _NO_LAG | {path.replace("__", "."): value for path, value in values.items()})


FAULTS: dict[str, Named] = {
    "placeholder_logprobs": _fault(
        "The end token's logprob is filled in with 0.0 and trained on.",
        task__name="reverse_until_zero",
        engine__placeholder_logprobs="eos",
    ),
    "different_context": _fault(
        "Two turns; the trainer's chat template drops the first one's thinking before it scores the second.",
        task__name="two_turns",
        task__response_length=6,
        trainer__chat_template="drop_thinking",
    ),
    "one_sided_processor": _fault(
        "The engine samples with a repetition penalty that the trainer knows nothing of.",
        engine__repetition_penalty=1.2,
    ),
    "packed_rows": _fault(
        "Four sequences in each row of the trainer's batch, and they see each other.", trainer__packing="leaking"
    ),
    "stochastic_trainer": _fault(
        "Dropout is left on while the trainer scores: no two of its passes agree.", trainer__dropout=0.005
    ),
    "stale_replica": _fault(
        "One engine of eight never loads new weights, and counts their versions all the same.",
        engine__replicas=8,
        engine__stale_replicas=1,
    ),
    "moe_routing": _fault(
        "A mixture of experts whose router the engine computes in bfloat16: near a tie, tokens go to other experts.",
        policy="base_moe",
        engine__moe_router_dtype="bfloat16",
        engine__enable_return_routed_experts=True,
        trainer__num_prompts=24,
    ),
    "weights_not_delivered": _fault(
        "No update ever reaches the engine, which counts their versions: the skew grows with the step.",
        task__pool_size=100_000,
        engine__weight_sync="none",
    ),
}
"""Faults that people report, each under the name that a diagnosis gives it."""

_LARGE_STEPS: Values = {
    "logit_offset": 12,
    "engine.temperature": 0.7,
    "task.pool_size": 16,
    "trainer.num_prompts": 16,
    "trainer.learning_rate": 7e-4,
    "trainer.adam_beta2": 0.99,
}
POINTS: dict[str, Values] = {
    "grpo": _LARGE_STEPS,
    "gspo": _LARGE_STEPS,
    "ppo": _LARGE_STEPS,
    "reinforce": {"trainer.learning_rate": 3.5e-4, "trainer.adam_beta2": 0.95, "trainer.beta": 5e-5},
}
"""Objective -> the settings that its ladder's rungs share: there faults are seen in the reward (docs/ladder.md)."""

SCENARIOS: dict[str, Named] = _ladder() | _alone() | COUNTER_LESSONS | FAULTS


def find_scenario(name: str) -> Scenario:
    """The scenario of that name. Raises UserError with the known names."""
    if name not in SCENARIOS:
        raise UserError(
            f"scenario={name!r} is not known; allowed: {', '.join(SCENARIOS)}, a .toml file, a share string"
        )
    return SCENARIOS[name].scenario(name)


def ladder_scenarios(
    *,
    objective: str = "grpo",
    steps: int = 100,
    profile: str | None = None,
    values: Values | None = None,
    names: tuple[str, ...] = LADDER,
) -> list[Scenario]:
    """The rungs with one objective, at its point; a profile adds its noise to every rung's engine, the reference's too.

    Counter-lessons, and objectives without a point, have the settings that a scenario has by default.
    """
    shared: Values = {"steps": steps, "trainer.objective": objective}
    if not COUNTER_LESSONS.keys() & set(names):
        shared |= POINTS.get(objective, {})
    if profile is not None:
        shared |= {"skew": SkewSettings(noise="profile", profile=profile).model_dump()}
    return [find_scenario(name).with_values({**shared, **(values or {})}) for name in names]
