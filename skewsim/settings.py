"""A scenario as frozen data: how rollouts are made, which skew is injected, how the trainer learns from them.

Engine settings have vLLM's argument names and values, trainer settings those of TRL and verl, so that a setting tried
here can be typed into those programs unchanged. The sentence under each field is its help text on the command line and
in the terminal UI. Nothing here imports torch.

A scenario is immutable: toggling a setting makes a new scenario (`Scenario.with_values`), and two scenarios with equal
settings are the same experiment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from skewsim import catalogue
from skewsim.catalogue import CORRECTIONS, default_clip, short, truncates
from skewsim.errors import UserError, shown

DType = Literal["float32", "bfloat16", "float16"]
SCHEMA_VERSION = 1
MOST = 1e9
"""Largest bound of a ratio or a norm: far from where float32 ends, and no bound at all long before."""
_ON_ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
"""Of a path: something, without control characters."""
_NAME, _DEVICE = r"^[A-Za-z0-9_.+-]+$", r"^(cpu|cuda(:\d+)?)$"
_IN_WORDS = {
    _ON_ONE_LINE: "one line of text, without control characters",
    _NAME: "letters, digits and _ . + -, without spaces",
    _DEVICE: "cpu, cuda, or cuda:0, cuda:1 and so on",
}
"""What a pattern allows, for people."""

if TYPE_CHECKING:  # a type checker cannot read the table; pydantic refuses what is not in it
    ObjectiveName = str
    WeightName = str
    RejectName = str
else:
    ObjectiveName = Literal[catalogue.objective_names()]
    WeightName = Literal[catalogue.correction_names("weight")]
    RejectName = Literal[catalogue.correction_names("reject")]


def _top_k(value: int) -> int:
    if not -1 <= value < 2**31:
        raise ValueError("must be -1 or 0 (off), or at least 1, and below 2**31")
    return max(value, 0)


class Settings(BaseModel):
    """Base of all settings: immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class TaskSettings(Settings):
    """The verifiable token task and its finite pool of prompts."""

    name: Literal["reverse", "reverse_until_zero", "two_turns"] = "reverse"
    """reverse: write the prompt's digits backwards. reverse_until_zero: the same, but stop with EOS at the first zero, so that lengths vary. two_turns: reverse, then the environment asks for other digits, then reverse those."""  # noqa: W505
    response_length: int = Field(12, ge=4, le=64)
    """Digits in the prompt, and most tokens in the response (reverse_until_zero: one more for EOS; two_turns: in each turn)."""  # noqa: W505
    pool_size: int = Field(64, ge=1, le=1_000_000)
    """Distinct prompts; the smaller, the more often a prefix is reused."""
    pool_seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the prompt pool."""
    reward: Literal["exact", "partial"] = "exact"
    """What the trainer is rewarded for: the exact answer (0 or 1), or the share of right positions."""


class EngineSettings(Settings):
    """How rollouts are made: vLLM's names and values."""

    dtype: DType = "float32"
    """vLLM `dtype`: the precision of the engine's body."""
    head_dtype: DType = "float32"
    """vLLM `hf_overrides={"head_dtype": ...}`: the precision of lm_head; vLLM's own default is the body's dtype."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """vLLM `kv_cache_dtype`: auto keeps the body's dtype, fp8 stores keys and values as e4m3."""
    quantization: Literal["int8", "fp8"] | None = None
    """Weights of the body, rounded per output channel."""
    moe_router_dtype: DType | None = None
    """In which a mixture of experts computes its router's logits (Megatron-LM `--moe-router-dtype`; vLLM `GateLinear(out_dtype=...)`, which the model's code sets); none: the body's dtype. Simulated only."""  # noqa: W505
    enable_return_routed_experts: bool = False
    """vLLM `enable_return_routed_experts`, SGLang `--enable-return-routed-experts`: each answer comes with the experts that its tokens went to, which R3 replays. Simulated; a real engine on a CPU returns them through skewsim's plugin."""  # noqa: W505
    routed_experts_fault: Literal["none", "zeros", "shifted", "padded"] = "none"
    """What is wrong with returned experts. zeros: all are 0; shifted: each token has those of the token before it; padded: rows of padding stand before each sequence's. Simulated only."""  # noqa: W505
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = "processed_logprobs"
    """vLLM `logprobs_mode`: report before or after temperature, top-p, top-k and min-p. V1's default is raw."""
    temperature: float = Field(0.8, gt=0, le=10)
    """vLLM `SamplingParams.temperature`."""
    top_p: float = Field(1.0, gt=0, le=1)
    """vLLM `SamplingParams.top_p`."""
    top_k: Annotated[int, AfterValidator(_top_k)] = 0
    """vLLM `SamplingParams.top_k`; 0 or -1: off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """vLLM `SamplingParams.min_p`."""
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    """vLLM `SamplingParams.repetition_penalty`: logits of tokens of prompt and response are divided by it (multiplied if negative); 1: off. The trainer knows nothing of it."""  # noqa: W505
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """vLLM `SamplingParams.presence_penalty`: taken off the logit of every token that the response has; 0: off."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """vLLM `SamplingParams.frequency_penalty`: the same for each time that the response has it; 0: off."""
    logits_soft_cap: float | None = Field(None, gt=0, le=MOST)
    """The engine's logits go through cap * tanh(logits / cap), the trainer's do not (vLLM `soft_cap`, Hugging Face `final_logit_softcapping`). Simulated only."""  # noqa: W505
    enable_prefix_caching: bool = False
    """vLLM `enable_prefix_caching`: a prompt's keys and values are kept for the next request. V1's default is on."""
    block_size: int = Field(1, ge=1, le=256)
    """vLLM `block_size`: prefixes are kept in whole blocks of so many tokens, the prompt's last token never. vLLM's is 16 or more; 1 lets short prompts be reused."""  # noqa: W505
    async_scheduling: bool = False
    """vLLM `async_scheduling`: the next step is already scheduled when an update arrives, which so takes effect a token later. V1's default is on."""  # noqa: W505
    mode: Literal["keep", "wait", "abort"] = "keep"
    """vLLM `pause_generation(mode=...)`: what a weight update does to requests in flight. vLLM's default is abort."""
    clear_cache: bool = False
    """vLLM `pause_generation(clear_cache=...)`: drop keys and values made under the old weights. vLLM's default is true."""  # noqa: W505
    lag: int = Field(1, ge=0, le=64)
    """How many weight versions the engine is behind the trainer when a rollout starts."""
    update_at_token: int | None = Field(6, ge=1, le=64)
    """The token boundary at which the next weight version arrives in mid-rollout; none: only between rollouts."""
    weight_sync: Literal["full", "none", "base_only", "partial"] = "full"
    """What of an update reaches the engine, which counts its version in any case: all; nothing; base_only: all but the matrices that a LoRA adapter sits on; partial: the first half of the layers. Simulated only."""  # noqa: W505
    replicas: int = Field(1, ge=1, le=64)
    """Copies of the engine, which take the sequences in turn (verl, slime: data-parallel rollout engines). Simulated only."""  # noqa: W505
    stale_replicas: int = Field(0, ge=0, le=63)
    """How many of the replicas get no updates and keep the weights that they have. Simulated only."""
    placeholder_logprobs: Literal["none", "eos", "missing"] = "none"
    """Tokens whose logprob is filled in instead of reported. eos: the last of each response; missing: a share of all. Simulated only."""  # noqa: W505
    placeholder_value: float = Field(0.0, ge=-1e9, le=1e9)
    """What is filled in: 0.0, or a sentinel such as -9999."""
    placeholder_share: float = Field(0.05, ge=0, le=1)
    """Share of the tokens that are missing (placeholder_logprobs=missing)."""
    enforce_eager: bool = True
    """vLLM `enforce_eager`: no compilation, no CUDA graphs; vLLM's default is false. Real engines only."""
    max_num_seqs: int | None = Field(None, ge=1, le=65536)
    """vLLM `max_num_seqs`: sequences in one batch; none: all at once. Real engines only."""
    gpu_memory_utilization: float = Field(0.3, gt=0, le=1)
    """vLLM `gpu_memory_utilization`: share of a GPU's memory for a local engine; vLLM's default is 0.92. Real engines only."""  # noqa: W505

    @property
    def truncates(self) -> bool:
        """Whether top-p, top-k or min-p drop any token."""
        return bool(truncates(self.top_p, self.top_k, self.min_p))

    @property
    def penalizes(self) -> bool:
        """Whether any of the three penalties is on."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stale_replicas >= self.replicas:
            raise ValueError(
                f"stale_replicas={self.stale_replicas} must be below replicas={self.replicas}; a whole engine without "
                'updates is weight_sync="none"'
            )
        return self


class SkewSettings(Settings):
    """Skew injected on top of what the engine computes: invented, or measured on a real engine."""

    noise: Literal["none", "normal", "student_t", "profile"] = "none"
    """Shape of the per-logit noise; profile: drawn from a measured profile."""
    scale: float = Field(0.0, ge=0, le=100)
    """Standard deviation of the noise on each logit (normal, student_t)."""
    df: float = Field(4.0, gt=2, le=1000)
    """Degrees of freedom of student_t."""
    sequence_scale: float = Field(0.0, ge=0, le=100)
    """Standard deviation of a noise on each logit that a whole sequence shares."""
    bias: float = Field(0.0, ge=-100, le=100)
    """A constant added to every reported logprob (target reported only: a distribution has no constant bias)."""
    drift: float = Field(0.0, ge=-1, le=10)
    """Relative growth of all of the above with each training step."""
    profile: str | None = Field(None, max_length=4096, pattern=_ON_ONE_LINE)
    """A shipped profile's name or a path to one."""
    multiplier: float = Field(1.0, ge=0, le=1000)
    """Factor on the profile's noise."""
    target: Literal["sampled", "reported"] = "sampled"
    """sampled: the engine samples from the disturbed distribution and reports it truthfully. reported: only the reported number is wrong."""  # noqa: W505

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.bias != 0 and self.target == "sampled":
            raise ValueError(
                'bias needs target="reported": a sampled distribution sums to one and has no constant bias'
            )
        if self.noise == "profile" and self.profile is None:
            raise ValueError('noise="profile" needs profile: a shipped profile\'s name or a path')
        if self.profile is not None and self.noise != "profile":
            raise ValueError(f'profile is set, but noise is "{self.noise}"; allowed with a profile: noise="profile"')
        if self.noise in ("none", "profile") and self.scale != 0:
            raise ValueError(f'scale is set, but noise is "{self.noise}"; scale goes with normal and student_t')
        return self

    @property
    def active(self) -> bool:
        return self.noise != "none" or self.sequence_scale != 0 or self.bias != 0


def _default_bounds(side: Literal["low", "high"], *names: str) -> str:
    """The default bounds of these corrections on one side, for a help text: ``token_tis 2, token_mis 5``."""
    return ", ".join(f"{name} {short(getattr(CORRECTIONS[name].bounds, side))}" for name in names)


class CorrectionSettings(Settings):
    """What the trainer does about skew after the fact; defaults as published (None: the method's own default)."""

    weight: WeightName = "none"
    """Importance weight: truncated (TIS) or masked (MIS, IcePop), per token or per sequence (verl `rollout_is`)."""
    weight_low: float | None = Field(
        None,
        ge=0,
        le=MOST,
        description=f"Lower bound of the mismatch ratio ({_default_bounds('low', 'token_mis', 'token_tis')}, "
        f"OpenRLHF {short(CORRECTIONS['token_tis'].defaults['OpenRLHF'].low)}).",
    )
    weight_high: float | None = Field(
        None,
        gt=0,
        le=MOST,
        description="Upper bound C of the mismatch ratio "
        f"({_default_bounds('high', 'token_tis', 'token_mis', 'sequence_tis', 'sequence_mis')}; "
        f"TRL {short(CORRECTIONS['sequence_mis'].defaults['TRL'].high)}) (verl `rollout_is_threshold`).",
    )
    reject: RejectName = "none"
    """Rejection of whole sequences by their geometric mean mismatch ratio or mean k3 (verl `rollout_rs`)."""
    reject_low: float | None = Field(
        None,
        ge=0,
        le=MOST,
        description=f"Lower bound of the geometric mean mismatch ratio (verl {short(CORRECTIONS['geometric'].bounds.low)}).",
    )
    reject_high: float | None = Field(
        None,
        ge=0,
        le=MOST,
        description=f"Upper bound of the geometric mean mismatch ratio (verl {short(CORRECTIONS['geometric'].bounds.high)}), "
        f"or of the mean k3 ({short(CORRECTIONS['k3'].bounds.high)}).",
    )
    veto: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Reject a sequence if any token's mismatch ratio is below this "
        f"(slime {short(CORRECTIONS['veto'].defaults['slime'].low)}).",
    )
    off_policy_mask: float | None = Field(
        None,
        ge=0,
        le=MOST,
        description="Drop a sequence with negative advantage whose mean(engine - trainer) logprob exceeds this "
        f"(slime {short(CORRECTIONS['off_policy_mask'].defaults['slime'].high)}; DeepSeek-V3.2).",
    )
    batch_normalize: bool = False
    """Divide the weights by their mean (verl `rollout_is_batch_normalize`; on in slime's mis.yaml)."""
    masking: Literal["remove", "zero"] = "remove"
    """What rejection does: remove from numerator and denominator (verl, decoupled), or only zero the weight (all others)."""  # noqa: W505
    keep_sampling_mask: bool = False
    """The trainer's softmax is restricted to the engine's top-p/top-k support (DeepSeek-V3.2)."""

    @property
    def active(self) -> bool:
        """Whether any weight or rejection is asked for."""
        rules = (self.weight, self.reject, self.veto, self.off_policy_mask)
        return rules != ("none", "none", None, None)


class TrainerSettings(Settings):
    """How rollouts are learned from: TRL's and verl's names."""

    objective: ObjectiveName = "grpo"
    """The loss."""
    epsilon: float | None = Field(None, gt=0, le=MOST)
    """Lower clip bound (TRL `epsilon`); none: the objective's own default."""
    epsilon_high: float | None = Field(None, gt=0, le=MOST)
    """Upper clip bound (TRL `epsilon_high`); none: the objective's own default."""
    delta: float | None = Field(None, gt=1, le=MOST)
    """Dual clip: upper bound of the update ratio where the advantage is negative (TRL `delta`; verl `clip_ratio_c`, 3 unless set)."""  # noqa: W505
    gspo_form: Literal["paper", "pipelinerl"] = Field(
        "pipelinerl",
        description=f"paper: bounds {default_clip('gspo/paper')}; pipelinerl: {default_clip('gspo/pipelinerl')}, "
        "length-proportional weights, leave-one-out baseline.",
    )
    sapo_temperature_pos: float = Field(1.0, gt=0, le=1000)
    """SAPO's temperature where the advantage is positive (TRL's name; verl `tau_pos`)."""
    sapo_temperature_neg: float = Field(1.05, gt=0, le=1000)
    """SAPO's temperature elsewhere (TRL's name; verl `tau_neg`); the higher, the sooner the gate closes."""
    beta: float = Field(0.0, ge=0, le=100)
    """KL penalty towards the policy that training started from (`beta` of TRL's GRPO, verl `kl_loss_coef`); 0: none."""
    use_bias_correction_kl: bool = False
    """Weigh the KL penalty by the update ratio (TRL's name, on there since 1.16; slime `--use-unbiased-kl`)."""
    whiten_over: Literal["sequences", "tokens"] = "sequences"
    """What REINFORCE++ and PPO whiten over: sequences, each counting once, or tokens (verl, slime, OpenRLHF)."""
    old_logprobs: Literal["rollout", "recompute"] = "rollout"
    """rollout (bypass): the engine's logprobs are old. recompute (decoupled): the trainer computes them itself."""
    correction: CorrectionSettings = CorrectionSettings()
    """Importance weights and rejection."""
    dtype: DType = "float32"
    """Precision of the trainer's body (master weights stay float32)."""
    head_dtype: DType = "float32"
    """Precision of the trainer's lm_head."""
    moe_router_dtype: DType | None = None
    """In which the trainer computes the router's logits of a mixture of experts (Megatron-LM `--moe-router-dtype`); none: the body's dtype."""  # noqa: W505
    router_replay: Literal["disabled", "R2", "R3"] = "disabled"
    """verl `router_replay.mode`: experts that the update uses again. R2: those of the trainer's pass before the update (slime `--use-routing-replay`); R3: the engine's (slime `--use-rollout-routing-replay`, NeMo-RL `router_replay.enabled`)."""  # noqa: W505
    replay_old_logprobs: bool = True
    """Whether the pass that computes old logprobs replays the engine's experts too (router_replay=R3), as it has to: otherwise old logprobs and the update's take different paths."""  # noqa: W505
    temperature: float | None = Field(None, gt=0, le=10)
    """Temperature of the trainer's softmax; none: the engine's."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout that is left on in every pass of the trainer (Megatron `attention_dropout` and `hidden_dropout`, whose default is 0.1)."""  # noqa: W505
    packing: Literal["none", "isolated", "leaking"] = "none"
    """Several sequences in one row of the trainer's batch (TRL `packing`, verl `use_remove_padding`). isolated: each sees only itself; leaking: also those before it in the row."""  # noqa: W505
    pack_size: int = Field(4, ge=2, le=64)
    """Sequences in a packed row."""
    chat_template: Literal["keep_thinking", "drop_thinking"] = "keep_thinking"
    """How the trainer renders earlier turns. drop_thinking: without the first turn's thinking, as many chat templates do (task two_turns)."""  # noqa: W505
    learning_rate: float = Field(5e-4, ge=0, le=1)
    """Adam's step size."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's first decay rate."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Adam's second decay rate."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """Adam's denominator offset."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0, le=MOST)
    """Gradient clipping, by the norm over all parameters of a member."""
    num_prompts: int = Field(8, ge=1, le=4096)
    """Prompts per rollout (B)."""
    num_generations: int = Field(8, ge=1, le=1024)
    """Responses per prompt (G), TRL's name."""
    num_minibatches: int = Field(2, ge=1, le=64)
    """Optimiser steps per pass over a rollout."""
    num_iterations: int = Field(1, ge=1, le=64)
    """Passes over each rollout (TRL `num_iterations`)."""
    mask_truncated_completions: bool = False
    """Leave aborted or cut-off responses out of the loss (TRL's name)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_prompts % self.num_minibatches:
            raise ValueError(f"num_minibatches={self.num_minibatches} must divide num_prompts={self.num_prompts}")
        if catalogue.find_form(self).needs_groups and self.num_generations < 2:
            raise ValueError(f"num_generations=1 leaves {self.objective} without a group; allowed: at least 2")
        return self


class Scenario(Settings):
    """One experiment: task, engine, injected skew, trainer, length and seed."""

    schema_version: int = SCHEMA_VERSION
    """Version of this file's layout."""
    name: str = Field("custom", min_length=1, max_length=64, pattern=_NAME)
    """A name for tables and legends; it does not enter the computation."""
    steps: int = Field(100, ge=1, le=10_000_000)
    """Rollouts to train on."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of prompts, sampling and noise."""
    policy: str = Field("base", max_length=4096, pattern=_ON_ONE_LINE)
    """Where training starts: base (shipped for the task), base_moe (a mixture of experts), random, a Hugging Face folder, or an installed model."""  # noqa: W505
    logit_offset: float = Field(0.0, ge=0, le=100)
    """Added to every logit of that policy, by one vector in all rows of lm_head: its probabilities stay as they are, and bfloat16 rounds its logits as coarsely as a real model's (12: to eighths); 0: off."""  # noqa: W505
    device: str = Field("cpu", pattern=_DEVICE)
    """cpu or cuda."""
    task: TaskSettings = TaskSettings()
    """Task."""
    engine: EngineSettings = EngineSettings()
    """Rollout engine."""
    skew: SkewSettings = SkewSettings()
    """Injected skew."""
    trainer: TrainerSettings = TrainerSettings()
    """Trainer."""

    @model_validator(mode="after")
    def _routes_are_there(self) -> Self:
        if self.trainer.router_replay == "R3" and not self.engine.enable_return_routed_experts:
            raise ValueError("trainer.router_replay=R3 needs engine.enable_return_routed_experts=true")
        if self.trainer.router_replay == "R3" and self.trainer.chat_template == "drop_thinking":
            raise ValueError(
                "trainer.router_replay=R3 needs trainer.chat_template=keep_thinking: a conversation that is rendered "
                "anew has tokens without routes"
            )
        return self

    @model_validator(mode="after")
    def _known_schema(self) -> Self:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version={self.schema_version} is not known; this program reads {SCHEMA_VERSION}")
        return self

    def with_values(self, values: dict[str, Any]) -> Scenario:
        """A new scenario with dotted paths replaced: ``{"engine.temperature": 1.0}``. Raises UserError."""
        data = self.model_dump()
        for path, value in values.items():
            *parents, leaf = path.split(".")
            node = data
            for key in parents:
                node = node.get(key) if isinstance(node, dict) else None  # type: ignore[assignment]
            if not isinstance(node, dict) or leaf not in node:
                raise UserError(f"unknown setting {shown(path, 80)}; see `skewsim scenarios --settings`")
            node[leaf] = value
        return parse_scenario(data)


def changes(before: Scenario, after: Scenario) -> list[str]:
    """``path: old -> new`` for every setting that differs; the scenario's name is not compared."""

    def leaves(data: dict[str, Any], at: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in data.items():
            out |= leaves(value, f"{at}{key}.") if isinstance(value, dict) else {at + key: value}
        return out

    old, new = leaves(before.model_dump(exclude={"name"})), leaves(after.model_dump(exclude={"name"}))
    return [f"{path}: {old[path]} -> {new[path]}" for path in old if old[path] != new[path]]


def with_changes(scenario: Scenario, events: Iterable[str]) -> Scenario:
    """Apply the lines that `changes` wrote to a scenario; lines of another form are skipped. Raises UserError."""
    found = (re.fullmatch(r"([\w.]+): .* -> (.*)", event) for event in events)
    return scenario.with_values({m[1]: None if m[2] == "None" else m[2] for m in found if m})


def parse_scenario(data: dict[str, Any]) -> Scenario:
    """A validated scenario from plain data. Raises UserError with one line: setting, value, what is allowed."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise UserError(one_line(error)) from None


def one_line(error: ValidationError) -> str:
    """The first mistake of a pydantic error as one line."""
    first = error.errors(include_url=False)[0]
    where = shown(".".join(str(part) for part in first["loc"]) or "settings", 80)
    message = shown(first["msg"].removeprefix("Value error, "), 400)
    if first["type"] == "string_pattern_mismatch" and (words := _IN_WORDS.get(first["ctx"]["pattern"])):
        message = f"allowed: {words}"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where}"
    if isinstance(first["input"], dict):
        return f"{where}: {message}"
    return f"{where}={_value(first['input'])}: {message}"


def _value(given: Any) -> str:
    """A value that was given, as one short line."""
    try:
        return shown(repr(given), 80)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists within lists
        return f"({type(given).__name__})"
