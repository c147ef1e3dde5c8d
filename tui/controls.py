"""The controls of Explore as data: what each is called, what it sets, and what vLLM, TRL and verl call it.

A control is a row of choices, each a set of dotted settings paths with values: a switch has two of them, a knob a
grid of numbers, a selector some names. `position` finds the choice that a scenario is at, `moved` gives the scenario
some choices on. The four fixes are those of `skewsim.scenarios`. Whatever is not on the first screen is in
`all_controls`, one control for each field of the settings with the field's own help sentence. Nothing here imports
torch: the first frame must not wait for it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from skewsim import scenarios
from skewsim.catalogue import CORRECTIONS, OBJECTIVES, objective_names, short
from skewsim.settings import Scenario

Kind = Literal["switch", "knob", "selector"]
Values = dict[str, Any]


def value_at(scenario: Scenario, path: str) -> Any:
    """The value under a dotted path."""
    node: Any = scenario
    for part in path.split("."):
        node = getattr(node, part)
    return node


@dataclass(frozen=True)
class Choice:
    """One position of a control."""

    label: str
    values: Values


@dataclass(frozen=True)
class Control:
    """A switch, knob or selector: `names` says in a line what it is called elsewhere, `help` explains it."""

    id: str
    kind: Kind
    label: str
    letter: str
    names: str
    help: str
    choices: tuple[Choice, ...]
    loose: frozenset[str] = frozenset()
    """Paths that a choice sets but that do not enter the comparison: another control moves them too."""

    def position(self, scenario: Scenario) -> int | None:
        """Index of the choice that the scenario is at, or None when it is at none of them."""
        for index, choice in enumerate(self.choices):
            fixed = ((path, value) for path, value in choice.values.items() if path not in self.loose)
            if all(value_at(scenario, path) == value for path, value in fixed):
                return index
        return None

    def text(self, scenario: Scenario) -> str:
        """The value as shown."""
        at = self.position(scenario)
        if at is not None:
            return self.choices[at].label
        if self.kind == "knob":
            return number(value_at(scenario, next(iter(self.choices[0].values))))
        return "mixed"

    def moved(self, scenario: Scenario, by: int) -> Scenario:
        """The scenario `by` choices on. A switch and a selector go round, a knob stops at its ends."""
        at = self.position(scenario)
        if self.kind == "knob":
            target = self._nearest(scenario, by) if at is None else at + by
            target = min(max(target, 0), len(self.choices) - 1)
        else:
            target = (len(self.choices) - 1 if at is None else at + by) % len(self.choices)
        return scenario.with_values(self.choices[target].values)

    def _nearest(self, scenario: Scenario, by: int) -> int:
        path = next(iter(self.choices[0].values))
        grid = [float(choice.values[path]) for choice in self.choices]
        at = bisect_left(grid, float(value_at(scenario, path)))
        return at - 1 + by if by > 0 else at + by

    def is_on(self, scenario: Scenario) -> bool:
        """For a switch: whether the last choice, which is the fix, holds."""
        return self.position(scenario) == len(self.choices) - 1


class NoiseControl(Control):
    """The amount of injected noise: a scale in nats for invented noise, a multiplier for a measured profile."""

    def _grid(self, scenario: Scenario) -> Control:
        skew = scenario.skew
        if skew.noise == "profile":
            return knob_of(self, "skew.multiplier", (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), prefix="x")
        shape = "student_t" if skew.noise == "student_t" else "normal"
        off = Choice("0", {"skew.scale": 0.0, "skew.noise": "none"})
        some = tuple(Choice(number(s), {"skew.scale": s, "skew.noise": shape}) for s in NOISE_SCALES)
        return Control(self.id, self.kind, self.label, self.letter, self.names, self.help, (off, *some))

    def position(self, scenario: Scenario) -> int | None:
        return self._grid(scenario).position(scenario)

    def text(self, scenario: Scenario) -> str:
        return self._grid(scenario).text(scenario)

    def moved(self, scenario: Scenario, by: int) -> Scenario:
        return self._grid(scenario).moved(scenario, by)


NOISE_SCALES = (0.01, 0.02, 0.05, 0.1, 0.155, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


def number(value: Any) -> str:
    """A short number: 0.8, 3e-4, 1e-06 as 1e-6."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    text = (
        f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else np.format_float_scientific(value, trim="-", precision=3)
    )
    return text.replace("e-0", "e-").replace("e+0", "e+")


def profile_label(name: str) -> str:
    """A profile's name without its folder, or its measurement's; a version's dots are part of it."""
    path = Path(name)
    return path.parent.name if path.name == "profile.json" else path.name.removesuffix(".json")


def knob_of(like: Control, path: str, grid: Sequence[float], prefix: str = "") -> Control:
    """A knob over a grid of numbers, with the names of another control."""
    choices = tuple(Choice(prefix + number(value), {path: value}) for value in grid)
    return Control(like.id, "knob", like.label, like.letter, like.names, like.help, choices)


def _selector(id: str, label: str, letter: str, names: str, help: str, choices: Sequence[Choice]) -> Control:
    return Control(id, "selector", label, letter, names, help, tuple(choices))


def _fix(rung: str, label: str, letter: str, names: str, help: str, *, loose: frozenset[str] = frozenset()) -> Control:
    """A switch between what a rung of the ladder sets and what initial V1 has there."""
    on = scenarios.FIXES[rung]
    off = {path: scenarios.INITIAL_V1.get(path, value_at(Scenario(), path)) for path in on}
    choices = (Choice("off", off), Choice("on", on))
    return Control(rung.removeprefix("plus_"), "switch", label, letter, names, help, choices, loose)


FIXES: tuple[Control, ...] = (
    _fix(
        "plus_processed",
        "processed",
        "P",
        "vLLM logprobs_mode=processed_logprobs",
        "Fix 1, semantic layer. Off: the engine reports log-probabilities from before temperature and top-p, which are "
        "not those of the distribution it sampled from. No importance weight can correct a wrong number. "
        "Moves: the mean mismatch ratio and the bias return to 1 and 0. Raw equals processed only at temperature 1 without "
        "top-p, top-k or min-p.",
    ),
    _fix(
        "plus_defaults",
        "defaults",
        "D",
        "vLLM enable_prefix_caching, async_scheduling=False",
        "Fix 2, inference path. Off (V1's defaults): keys and values of a prompt are kept across weight updates, so new "
        "tokens attend to what old weights computed, and an update takes effect a token late. "
        "Moves: skew that starts at the first response token of repeated prompts.",
    ),
    _fix(
        "plus_inflight",
        "in-flight",
        "I",
        "vLLM pause_generation(mode=keep, clear_cache=False)",
        "Fix 3, staleness. Off: requests are drained before new weights are loaded, and the engine falls eight versions "
        "behind. On: the update arrives in mid-rollout, requests go on with new weights, and the lag is back to one "
        "version. Moves: lag, then clip rate and k3.",
        loose=frozenset({"engine.lag"}),
    ),
    _fix(
        "plus_fp32_head",
        "fp32 head",
        "H",
        "vLLM hf_overrides={head_dtype: float32}",
        "Fix 4, precision. Off: the engine multiplies lm_head in bfloat16, whose steps are 0.125 for logits in [16, 32), "
        "while the trainer's head is float32. Moves: the gap that is left after the other three. An fp32 head on one "
        "side only widens it.",
    ),
)

_TEMPERATURE = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)
_LAGS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_RATES = (0.0, 3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3)

KNOBS: tuple[Control, ...] = (
    Control(
        "temperature",
        "knob",
        "temperature",
        "t",
        "vLLM SamplingParams.temperature, TRL temperature",
        "Sampling temperature of the engine; the trainer's softmax uses the same one unless trainer.temperature says "
        "otherwise. The further from 1, the more raw logprobs lie.",
        tuple(Choice(number(v), {"engine.temperature": v}) for v in _TEMPERATURE),
    ),
    NoiseControl(
        "noise",
        "knob",
        "noise",
        "n",
        "per-logit noise; bf16 against bf16 is about 0.155",
        "Injected skew: the standard deviation of noise on each logit (invented), or a factor on a measured profile. "
        "sigma 0.155 per logit reproduces the published bf16 table. k3 grows as sigma squared over two.",
        (),
    ),
    Control(
        "lag",
        "knob",
        "lag",
        "l",
        "AReaL max_head_offpolicyness, PipelineRL max_lag",
        "How many weight versions the engine is behind the trainer when a rollout starts.",
        tuple(Choice(number(v), {"engine.lag": v}) for v in _LAGS),
    ),
    Control(
        "learning_rate",
        "knob",
        "learn rate",
        "r",
        "TRL learning_rate, verl actor.optim.lr",
        "Adam's step size. A larger one makes the same lag worth more skew: each version moves further.",
        tuple(Choice(number(v), {"trainer.learning_rate": v}) for v in _RATES),
    ),
)

_NO_NOISE: Values = {"skew.noise": "none", "skew.profile": None, "skew.scale": 0.0, "skew.bias": 0.0}
_CORRECTION_OFF: Values = {
    "trainer.correction.weight": "none",
    "trainer.correction.reject": "none",
    "trainer.correction.veto": None,
    "trainer.correction.off_policy_mask": None,
}


def _correction(label: str, **values: Any) -> Choice:
    return Choice(label, {**_CORRECTION_OFF, **{f"trainer.correction.{k}": v for k, v in values.items()}})


def noise_sources(profiles: Sequence[str]) -> Control:
    """Where the injected noise comes from; the shipped measured profiles are choices of their own."""
    choices = [
        Choice("computed", _NO_NOISE),
        Choice("invented", {"skew.profile": None, "skew.noise": "normal", "skew.scale": 0.155}),
        Choice("heavy tail", {"skew.profile": None, "skew.noise": "student_t", "skew.scale": 0.155}),
        *(
            Choice(profile_label(name), {**_NO_NOISE, "skew.noise": "profile", "skew.profile": name})
            for name in profiles
        ),
    ]
    return Control(
        "source",
        "selector",
        "source",
        "s",
        "computed by the engine, invented, or measured",
        "Where skew comes from. Computed: only what the engine's arithmetic makes. Invented: normal or Student-t noise "
        "on each logit. Measured: drawn from a profile of a real engine; the noise knob is then its multiplier.",
        tuple(choices),
        frozenset({"skew.scale"}),
    )


def selectors(profiles: Sequence[str] = ()) -> tuple[Control, ...]:
    """The selectors of the first screen."""
    return (
        noise_sources(profiles),
        _selector(
            "objective",
            "loss",
            "o",
            "TRL loss_type, verl loss_mode",
            "The loss. The clip bounds of its update ratio decide how much skew it forgives: "
            f"GRPO's are {short(OBJECTIVES['grpo'].epsilon)}, GSPO's {short(OBJECTIVES['gspo/paper'].epsilon)} (paper). "
            "While only fixes were switched, another loss starts at its own opening point; key o goes through four.",
            [Choice(name, {"trainer.objective": name}) for name in objective_names()],
        ),
        _selector(
            "old_logprobs",
            "old logp",
            "b",
            "verl bypass_mode, slime --use-rollout-logprobs",
            "rollout (bypass): the engine's logprobs are the update ratio's denominator, so skew enters it and its clip. "
            "recompute (decoupled): the trainer computes them itself, and skew is left to a separate weight.",
            [Choice(name, {"trainer.old_logprobs": name}) for name in ("rollout", "recompute")],
        ),
        _selector(
            "correction",
            "correction",
            "c",
            "verl rollout_is, TRL vllm_importance_sampling_mode",
            "What the trainer does about skew after the fact. It can correct sampler skew (another distribution, "
            "reported truthfully). It cannot correct a number that is wrong: fix logprobs_mode first.",
            [
                _correction("none"),
                _correction("token TIS", weight="token_tis"),
                _correction("token MIS", weight="token_mis"),
                _correction("seq TIS", weight="sequence_tis"),
                _correction("seq MIS", weight="sequence_mis"),
                _correction("geometric", reject="geometric"),
                _correction("k3 reject", reject="k3"),
                _correction("TIS+veto", weight="token_tis", veto=CORRECTIONS["veto"].bounds.low),
            ],
        ),
    )


def explore_controls(profiles: Sequence[str] = ()) -> tuple[Control, ...]:
    """Everything on the first screen: at most 8 switches and selectors, and 4 knobs."""
    return (*FIXES, *KNOBS, *selectors(profiles))


FAULTS: tuple[str, ...] = (
    "engine.placeholder_logprobs",
    "engine.placeholder_value",
    "engine.placeholder_share",
    "engine.repetition_penalty",
    "engine.presence_penalty",
    "engine.frequency_penalty",
    "engine.logits_soft_cap",
    "engine.weight_sync",
    "engine.replicas",
    "engine.stale_replicas",
    "engine.routed_experts_fault",
    "trainer.replay_old_logprobs",
    "trainer.packing",
    "trainer.pack_size",
    "trainer.chat_template",
    "trainer.dropout",
)
"""Settings that make the faults which people report; the settings page has them in a group of their own."""


def all_controls() -> Iterator[Control]:
    """One control for every engine, skew, trainer and correction field, from the settings themselves; faults last."""
    scenario, faults = Scenario(), dict[str, Control]()
    for section in ("engine", "skew", "trainer", "trainer.correction"):
        model = type(value_at(scenario, section))
        for name, field in model.model_fields.items():
            path = f"{section}.{name}"
            if path in FAULTS:
                faults[path] = _field_control(path, field)
            elif not _is_section(field):
                yield _field_control(path, field)
    yield from (faults[path] for path in FAULTS)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _field_control(path: str, field: FieldInfo) -> Control:
    values = _field_values(field)
    choices = tuple(Choice(number(value), {path: value}) for value in values)
    numeric = bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    text = " ".join((field.description or "").split())
    return Control(path, "knob" if numeric else "selector", path, "*", path, text, choices)


def _field_values(field: FieldInfo) -> list[Any]:
    """The values that left and right go through: a field's literals, false and true, or a grid within its bounds."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    values: list[Any] = [None] if type(None) in kinds else []
    for kind in kinds:
        if get_origin(kind) is Literal:
            values += get_args(kind)
        elif kind is bool:
            values += [False, True]
        elif kind in (int, float):
            values += _number_grid(field, whole=kind is int)
    return values


def _number_grid(field: FieldInfo, *, whole: bool) -> list[Any]:
    """The default and a 1-2-5 grid around it, within the field's bounds."""
    base = [0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64] if whole else _one_two_five(-4, 1)
    default = field.default
    extra = [default] if isinstance(default, int | float) and not isinstance(default, bool) else []
    return [v for v in sorted({*base, *extra}) if all(_within(v, m) for m in field.metadata)]


def _one_two_five(low: int, high: int) -> list[float]:
    return [0.0, *(float(f"{m}e{e}") for e in range(low, high + 1) for m in (1, 2, 5))]


def _within(value: float, bound: object) -> bool:
    match bound:
        case Ge(ge=low):
            return value >= low  # type: ignore[operator]
        case Gt(gt=low):
            return value > low  # type: ignore[operator]
        case Le(le=high):
            return value <= high  # type: ignore[operator]
        case Lt(lt=high):
            return value < high  # type: ignore[operator]
    return math.isfinite(value)
