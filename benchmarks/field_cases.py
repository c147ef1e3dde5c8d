"""Labelled cases of the faults that people report: logs of a small language model in numpy, long and of any shape.

The tiny simulator's sequences are short and its vocabulary is small. Here a recurrent model (its state is a decaying
sum of token embeddings, so that another context is forgotten again) samples up to 400 tokens from up to 800 words, most
of them probable, as real ones are. The engine samples from what it reports, so E exp(d) = 1 unless the fault says
otherwise, and a fault is put where it happens: into the state, the weights, the logits or the finished log. Every case
lies over the skew of a healthy 16-bit engine, or of none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.skew.sequences import SequenceLog, SequenceRecord

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Rng = np.random.Generator

WIDTH = 24


@dataclass(frozen=True)
class FieldCase:
    """A log and what a diagnosis should say of it."""

    label: str
    """The fault; "healthy"; or "unnamed", where only the place can be told."""
    seed: int
    log: SequenceLog
    accepted: tuple[str, ...]
    """Verdicts that are right."""
    where: tuple[str, ...] = ()
    """Columns that may stand first in `where`; empty: any."""
    detail: str = ""


@dataclass
class World:
    """One case's model, prompts and dice; fields are per sequence where not said otherwise."""

    rng: Rng
    sequences: int
    length: int
    vocab: int
    group: int
    sharpness: float
    memory: float
    """What of the state is left after a token."""
    noise: float
    """Standard deviation of the engine's error on each logit: a healthy engine's."""
    tail: float
    """Degrees of freedom of that error's size from token to token; 0: always the same."""
    decimals: int
    lengths: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    settings: dict[str, float] = field(default_factory=dict)
    turns: list[tuple[int, int]] = field(default_factory=list)
    """Spans of tokens that a tool wrote, the same in every sequence."""
    masked: bool = True
    """Whether the log says so."""
    versions: Ints | None = None
    columns: dict[str, Ints] = field(default_factory=dict)
    """Columns that the log has for every sequence: step, rank, pack_index."""
    engine_weights: Floats | None = None
    """Distance of each sequence's engine weights from the trainer's, in units of `drift`."""
    trainer_weights: Floats | None = None
    engine_state: Floats | None = None
    """(N, WIDTH): what is added to the engine's first state."""
    trainer_state: Floats | None = None
    later_state: dict[int, Floats] = field(default_factory=dict)
    """Token -> (N, WIDTH) added to the trainer's state there."""
    extra_noise: Floats | None = None
    """(N, T): more error on the engine's logits."""
    dropout: float = 0.0
    """Spread of each state's error in the trainer: what dropout sums up to over thousands of units."""
    penalty: Callable[[Floats, npt.NDArray[Any]], Floats] | None = None
    softcap: tuple[str, float] | None = None
    """(side, cap)."""
    temperature: float = 1.0
    trainer_temperature: float = 1.0
    report_raw: bool = False
    experts: float = 0.0
    """Size of the difference between two experts; which one is chosen flips with `flip`."""
    flip: float = 0.02
    by_prompt: Floats | None = None
    """Error on the logits that is the same every time, by sequence (its prompt's)."""

    @property
    def prompts(self) -> Ints:
        return np.arange(self.sequences) // self.group


@dataclass
class Sampled:
    """(N, T) arrays of what was drawn."""

    tokens: Ints
    engine: Floats
    trainer: Floats
    top: Floats
    """The engine's largest log-probability, whichever token it belongs to."""
    prompts: Ints


def make_world(rng: Rng, **fixed: Any) -> World:
    """Dice for shape and health."""
    group = int(rng.choice([1, 2, 4, 8]))
    sequences = int(rng.choice([16, 32, 64, 64, 96, 128, 256]))
    length = int(rng.choice([20, 40, 64, 100, 160, 300, 420]))
    if sequences * length > 16_000:
        sequences = max(32, 16_000 // length // 8 * 8)
    while sequences * length < 1500:
        length *= 2
    noise, tail = [(0.0, 0.0), (0.003, 0.0), (0.06, 5.0), (0.08, 0.0), (0.1, 4.0), (0.14, 6.0)][int(rng.integers(6))]
    given: dict[str, Any] = {
        "sequences": sequences,
        "length": length,
        "vocab": int(rng.choice([200, 400, 800])),
        "group": min(group, sequences // 8),
        "sharpness": float(rng.uniform(7, 14)),
        "memory": float(rng.uniform(0.7, 0.93)),
        "noise": noise,
        "tail": tail,
        "decimals": int(rng.choice([6, 6, 9, 4])),
        "settings": {"temperature": 1.0, "top_p": 1.0, "top_k": -1.0} if rng.random() < 0.6 else {},
    } | fixed
    world = World(rng=rng, **given)
    if not len(world.lengths):
        least = world.length if rng.random() < 0.4 else max(16, world.length // 2)
        world.lengths = rng.integers(least, world.length + 1, world.sequences)
    return world


def draw(world: World) -> Sampled:
    """Sample every sequence, token by token, and score it on both sides."""
    rng, n, steps = world.rng, world.sequences, world.length
    embedding = rng.normal(0, 1, (world.vocab, WIDTH)) / np.sqrt(WIDTH)
    head = rng.normal(0, 1, (WIDTH, world.vocab))
    drift = rng.normal(0, 1, (WIDTH, world.vocab))
    expert = rng.normal(0, 1, (WIDTH, world.vocab))
    router = rng.normal(0, 1, WIDTH)
    temper = rng.normal(0, 1, WIDTH)
    popular = rng.normal(0, 1.0, world.vocab)
    prompts = rng.integers(0, world.vocab, (world.sequences // world.group + 1, 12))[world.prompts]
    own = np.zeros((n, WIDTH))
    for column in prompts.T:
        own = world.memory * own + embedding[column]
    engine_state, trainer_state = own.copy(), own.copy()
    if world.engine_state is not None:
        engine_state += world.engine_state
    if world.trainer_state is not None:
        trainer_state += world.trainer_state
    fixed = np.random.default_rng(int(rng.integers(2**31)))
    seen = np.zeros((n, world.vocab), dtype=bool)
    np.put_along_axis(seen, prompts, True, axis=1)
    tokens = np.zeros((n, steps), dtype=np.int64)
    engine_lp, trainer_lp, top = (np.zeros((n, steps)) for _ in range(3))
    written = np.zeros(steps, dtype=bool)
    for start, end in world.turns:
        written[start:end] = True

    def logits(state: Floats, weights: Floats | None, flips: Floats | None) -> Floats:
        scale = np.sqrt((state**2).sum(1, keepdims=True) + 1e-9)
        unit = state / scale
        values = unit @ head
        if weights is not None:
            values = values + weights[:, None] * (unit @ drift)
        if world.experts:
            side = unit @ router + (0.0 if flips is None else flips)
            values = values + world.experts * (side > 0)[:, None] * (unit @ expert)
        sharp = world.sharpness * np.exp(0.7 * np.tanh(unit @ temper))
        result: Floats = sharp[:, None] * (values + 0.3 * popular)
        return result

    for t in range(steps):
        if t in world.later_state:
            trainer_state = trainer_state + world.later_state[t]
        flips = rng.normal(0, world.flip, n) if world.experts else None
        engine = logits(engine_state, world.engine_weights, flips)
        dropped = trainer_state
        if world.dropout:
            dropped = trainer_state * (1 + world.dropout * rng.normal(0, 1, (n, WIDTH)))
        trainer = logits(dropped, world.trainer_weights, None)
        if world.noise:
            size = (
                world.noise if not world.tail else world.noise / np.sqrt(rng.chisquare(world.tail, (n, 1)) / world.tail)
            )
            engine = engine + size * rng.normal(0, 1, engine.shape)
        if world.extra_noise is not None:
            engine = engine + world.extra_noise[:, t : t + 1] * rng.normal(0, 1, engine.shape)
        if world.by_prompt is not None:
            engine = engine + world.by_prompt[:, None] * np.sin(engine * fixed.uniform(3, 9, (1, world.vocab)))
        if world.softcap is not None:
            side, cap = world.softcap
            engine, trainer = (
                cap * np.tanh(values / cap) if side == name else values
                for name, values in (("engine", engine), ("trainer", trainer))
            )
        sampled = engine if world.penalty is None else world.penalty(engine, seen)
        reported = log_softmax(engine if world.report_raw else sampled / world.temperature)
        behaviour = log_softmax(sampled / world.temperature)
        token = choose(behaviour, rng)
        if written[t]:
            token = rng.integers(0, world.vocab, n)
        tokens[:, t] = token
        engine_lp[:, t] = pick(reported, token)
        top[:, t] = reported.max(1)
        trainer_lp[:, t] = pick(log_softmax(trainer / world.trainer_temperature), token)
        np.put_along_axis(seen, token[:, None], True, axis=1)
        engine_state = world.memory * engine_state + embedding[token]
        trainer_state = world.memory * trainer_state + embedding[token]
    return Sampled(tokens, engine_lp, trainer_lp, top, prompts)


def log_softmax(values: Floats) -> Floats:
    shifted = values - values.max(1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def choose(logprobs: Floats, rng: Rng) -> Ints:
    """One token of each row, by the Gumbel trick."""
    return np.argmax(logprobs + rng.gumbel(size=logprobs.shape), axis=1).astype(np.int64)


def pick(logprobs: Floats, token: Ints) -> Floats:
    return np.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]


def finish(world: World, made: Sampled, meta: dict[str, Any] | None = None) -> SequenceLog:
    """The log as a framework would write it."""
    mask = np.ones(world.length, dtype=bool)
    for start, end in world.turns:
        mask[start:end] = False
    records = []
    for n in range(world.sequences):
        cut = int(world.lengths[n])
        records.append(
            SequenceRecord(
                tokens=made.tokens[n, :cut],
                engine_logprobs=np.round(made.engine[n, :cut], world.decimals),
                trainer_logprobs=np.round(made.trainer[n, :cut], world.decimals),
                weight_versions=None if world.versions is None else np.full(cut, world.versions[n]),
                mask=mask[:cut] if world.turns and world.masked else None,
                prompt_tokens=made.prompts[n],
                settings=world.settings,
                places={name: int(values[n]) for name, values in world.columns.items()},
            )
        )
    return SequenceLog(tuple(records), meta or {})


# ---------------------------------------------------------------------------------------------------- the faults

Maker = Callable[[Rng, int], FieldCase]


def case_of(label: str, world: World, made: Sampled, **more: Any) -> FieldCase:
    accepted = more.pop("accepted", (label,))
    return FieldCase(label, 0, finish(world, made, more.pop("meta", None)), accepted, **more)


def healthy(rng: Rng, seed: int) -> FieldCase:
    """float32, float16 or bfloat16 on both sides; one in three says so."""
    world = make_world(rng)
    declared = {"dtype": "bfloat16", "trainer_dtype": "bfloat16"} if rng.random() < 0.33 else {}
    if rng.random() < 0.3 and world.length >= 60:
        world.turns = [(world.length // 3, world.length // 3 + 8)]
    if rng.random() < 0.3:
        world.columns["rank"] = np.arange(world.sequences) % 4
    accepted = ("healthy",) if declared or world.noise < 0.01 else ("healthy", "compute_dtype")
    return case_of("healthy", world, draw(world), accepted=accepted, meta=declared, detail=f"noise {world.noise}")


USUAL = {"float32": (0.0, 0.004), "float16": (0.003, 0.01), "bfloat16": (0.04, 0.12), "fp8": (0.12, 0.3)}
"""Noise on each logit that the dtypes have, least and most."""


def healthy_declared(rng: Rng, seed: int) -> FieldCase:
    """Any dtype, dense or a mixture of experts whose router is now and then near a tie, and the log says which."""
    dtype, kind = str(rng.choice(list(USUAL))), str(rng.choice(["dense", "moe"]))
    world = make_world(rng, noise=float(rng.uniform(*USUAL[dtype])), tail=float(rng.choice([0.0, 5.0])))
    if kind == "moe" and dtype in ("bfloat16", "fp8"):
        world.experts, world.flip = float(rng.choice([0.05, 0.1])), float(rng.choice([0.003, 0.01]))
    meta = {"dtype": dtype, "trainer_dtype": dtype, "model_kind": kind}
    return case_of("healthy_declared", world, draw(world), accepted=("healthy",), meta=meta, detail=f"{dtype} {kind}")


def placeholder_logprobs(rng: Rng, seed: int) -> FieldCase:
    """Zeros at the last token, missing values filled, sentinels, NaN, tool tokens without a mask, positive values."""
    world = make_world(rng)
    kind = str(rng.choice(["eos", "tool", "filled", "sentinel", "nan", "positive", "constant", "whole", "trainer_eos"]))
    n, steps = world.sequences, world.length
    if kind == "tool":
        size = int(rng.integers(3, 11))
        world.turns = [(steps // 3, steps // 3 + size), (2 * steps // 3, 2 * steps // 3 + size)]
        world.turns = world.turns[: int(rng.integers(1, 3))]
        world.masked = False
        world.lengths = np.maximum(world.lengths, world.turns[-1][1] + 2).clip(max=steps)
    made = draw(world)
    last = np.arange(steps) == world.lengths[:, None] - 1
    some = rng.random((n, steps)) < rng.choice([0.003, 0.01, 0.05])
    if some.sum() < 12:
        some.flat[rng.choice(n * steps, 12, replace=False)] = True
    if kind in ("eos", "trainer_eos"):
        column = made.engine if kind == "eos" else made.trainer
        column[last & (rng.random((n, 1)) < rng.choice([0.6, 1.0]))] = 0.0
    elif kind == "tool":
        for start, end in world.turns:
            made.engine[:, start:end] = 0.0
    elif kind == "filled":
        made.engine[some] = 0.0
    elif kind == "sentinel":
        made.engine[some] = float(rng.choice([-9999.0, -100.0, -1e9]))
    elif kind == "nan":
        made.engine[some] = float(rng.choice([np.nan, -np.inf]))
    elif kind == "positive":
        made.engine[some] = 1.0
    elif kind == "constant":
        made.engine[some] = -1.0
    else:
        made.engine[rng.permutation(n)[: max(2, n // 10)]] = 0.0
    return case_of("placeholder_logprobs", world, made, detail=kind)


def not_the_sampled_token(rng: Rng, seed: int) -> FieldCase:
    world = make_world(rng)
    made = draw(world)
    made.engine = made.top.copy()
    return case_of("not_the_sampled_token", world, made)


def different_context(rng: Rng, seed: int) -> FieldCase:
    """Some or all responses scored after another prompt; or later turns after another history."""
    if rng.random() < 0.5:
        world = make_world(rng)
        share = float(rng.choice([0.06, 0.15, 0.3, 0.6, 1.0]))
        wrong = rng.permutation(world.sequences)[: max(2, int(share * world.sequences))]
        world.memory = float(rng.uniform(0.8, 0.93))
        state = np.zeros((world.sequences, WIDTH))
        state[wrong] = rng.normal(0, 1, (len(wrong), WIDTH)) * 0.5
        world.trainer_state = state
        return case_of("different_context", world, draw(world), detail=f"prompt {share}")
    world = make_world(rng, length=int(rng.choice([100, 160, 300])), sequences=int(rng.choice([24, 48, 64])))
    world.lengths = np.full(world.sequences, world.length)
    world.memory = float(rng.uniform(0.85, 0.96))
    size = int(rng.integers(3, 12))
    world.turns = [(world.length // 3, world.length // 3 + size), (2 * world.length // 3, 2 * world.length // 3 + size)]
    first = int(rng.choice([1, 1, 2]))
    for start, _ in world.turns[first - 1 :]:
        world.later_state[start] = rng.normal(0, 1, (world.sequences, WIDTH)) * rng.choice([0.3, 0.6])
    if rng.random() < 0.4:
        world.turns = [(s + size - 1, s + size) for s, _ in world.turns]
        world.later_state = {t + size - 1: v for t, v in world.later_state.items()}
    return case_of(
        "different_context",
        world,
        draw(world),
        detail=f"turn {first + 1}",
        where=("turn", "position in its turn", "position"),
    )


def packed_rows(rng: Rng, seed: int) -> FieldCase:
    """All but the first sequence of a pack see the one before them for some tokens."""
    world = make_world(rng, memory=float(rng.uniform(0.8, 0.93)))
    size = int(rng.choice([2, 3, 4, 8]))
    place = np.arange(world.sequences) % size
    declared = rng.random() < 0.4
    if declared:
        place = np.concatenate([np.arange(int(k)) for k in rng.integers(2, 6, world.sequences)])[: world.sequences]
        world.columns["pack_index"] = place
    state = np.zeros((world.sequences, WIDTH))
    state[place > 0] = rng.normal(0, 1, (int((place > 0).sum()), WIDTH)) * rng.choice([0.3, 0.6])
    world.trainer_state = state
    return case_of("packed_rows", world, draw(world), detail=f"{size} a pack")


def position_dependent(rng: Rng, seed: int) -> FieldCase:
    """Error that grows along the sequence, or sets in at a block."""
    world = make_world(rng, length=int(rng.choice([100, 160, 300, 420])))
    kind = str(rng.choice(["onset", "growth", "half"]))
    place = np.arange(world.length)
    size = float(rng.choice([0.12, 0.25, 0.6])) * (1 if world.noise < 0.05 else 2)
    if kind == "onset":
        at = int(rng.choice([32, 48, 64]))
        level = np.where(place >= at, size, 0.0)
    elif kind == "growth":
        level = 2 * size * (place / world.length) ** float(rng.choice([1, 2]))
    else:
        level = np.where(place >= world.length // 2, size, 0.0)
        world.lengths = np.full(world.sequences, world.length)
    world.extra_noise = np.broadcast_to(level, (world.sequences, world.length)).copy()
    return case_of("position_dependent", world, draw(world), detail=kind, where=("position", "from the end"))


def stale_replica(rng: Rng, seed: int) -> FieldCase:
    """One or several replicas sample from older weights, and report so truthfully."""
    world = make_world(rng)
    world.group = min(world.group, world.sequences // 8)
    replicas = int(rng.choice([2, 4, 8, 16]))
    while world.sequences / replicas < 3 or world.sequences / replicas <= world.group:
        replicas //= 2
    how = str(rng.choice(["modulo", "blocks", "replica"]))
    of = np.arange(world.sequences) % replicas
    if how == "blocks":
        of = np.arange(world.sequences) * replicas // world.sequences
    if how == "replica":
        of = rng.permutation(of)
        world.columns["replica"] = of
    stale = of == int(rng.integers(replicas))
    world.engine_weights = np.where(stale, float(rng.choice([0.03, 0.06, 0.12, 0.25])), 0.0)
    if rng.random() < 0.5:
        world.versions = np.full(world.sequences, 12)
    columns = {
        "modulo": ("sequence modulo",),
        "blocks": ("sequence", "prompt", "sequence modulo"),
        "replica": ("replica",),
    }
    return case_of("stale_replica", world, draw(world), detail=f"{how} {replicas}", where=columns[how])


def weights_not_delivered(rng: Rng, seed: int) -> FieldCase:
    """The engine stays where it was while the trainer moves; the log claims a small lag."""
    world = make_world(rng, sequences=int(rng.choice([64, 96, 128])), length=int(rng.choice([40, 64, 100])))
    steps = int(rng.choice([4, 6, 8, 16]))
    step = np.arange(world.sequences) * steps // world.sequences
    world.trainer_weights = step * float(rng.choice([0.01, 0.03])) * 8 / steps
    lag = rng.integers(0, 3, world.sequences)
    if rng.random() < 0.7:
        world.columns["step"] = step
        world.versions = np.maximum(step - lag, 0) if rng.random() < 0.6 else None
    else:
        world.versions = step
    return case_of("weights_not_delivered", world, draw(world), detail=f"{steps} steps", where=("step", "version"))


def stochastic_trainer(rng: Rng, seed: int) -> FieldCase:
    world = make_world(rng, dropout=float(rng.choice([0.04, 0.1, 0.3])))
    return case_of("stochastic_trainer", world, draw(world))


def one_sided_processor(rng: Rng, seed: int) -> FieldCase:
    """A repetition penalty as vLLM applies it, or a frequency-like one, on the engine's side; or a softcap."""
    world = make_world(rng, length=int(rng.choice([100, 160, 300])))
    kind = str(rng.choice(["repetition", "presence", "softcap"]))
    if kind == "softcap":
        world.softcap = (str(rng.choice(["engine", "trainer"])), float(rng.choice([50.0, 80.0, 120.0])))
    else:
        amount = (
            float(rng.choice([1.05, 1.1, 1.2, 1.3])) if kind == "repetition" else float(rng.choice([0.3, 0.8, 1.5]))
        )

        def penalty(values: Floats, seen: npt.NDArray[Any]) -> Floats:
            if kind == "presence":
                return values - amount * seen
            return np.where(seen, np.where(values > 0, values / amount, values * amount), values)

        world.penalty = penalty
    made = draw(world)
    quiet = np.sqrt(((made.trainer - made.engine) ** 2).mean()) < 0.12  # of a 16-bit type's size
    accepted = ("one_sided_processor", "compute_dtype")[: 1 + quiet]
    return case_of("one_sided_processor", world, made, accepted=accepted, detail=kind)


def moe_routing(rng: Rng, seed: int) -> FieldCase:
    """Experts chosen otherwise where the router is near a tie; or prompts that are off, the same every time."""
    if rng.random() < 0.6:
        world = make_world(rng, experts=float(rng.choice([0.1, 0.2, 0.35])), flip=float(rng.choice([0.01, 0.03])))
        world.noise = max(world.noise, 0.03)
        made = draw(world)
        quiet = (
            np.sqrt(((made.trainer - made.engine) ** 2).mean()) < 0.12
        )  # of a 16-bit type's size: usual, whatever it is
        return case_of(
            "moe_routing", world, made, accepted=("moe_routing", "compute_dtype")[: 1 + quiet], detail="flips"
        )
    world = make_world(rng, group=int(rng.choice([4, 8])), sequences=int(rng.choice([64, 128])))
    prompts = world.sequences // world.group
    off = rng.permutation(prompts)[: max(2, int(prompts * float(rng.choice([0.15, 0.3, 0.65]))))]
    world.by_prompt = np.where(np.isin(world.prompts, off), float(rng.choice([0.5, 1.0])), 0.0)
    return case_of("moe_routing", world, draw(world), detail="prompts")


def wrong_temperature(rng: Rng, seed: int) -> FieldCase:
    """The known fault on long sequences."""
    world = make_world(rng)
    world.trainer_temperature = float(rng.choice([0.6, 0.7, 1.3, 1.5]))
    world.settings = {}
    return case_of("wrong_temperature", world, draw(world))


def raw_logprobs(rng: Rng, seed: int) -> FieldCase:
    world = make_world(rng)
    world.temperature = world.trainer_temperature = float(rng.choice([0.6, 0.7, 1.3]))
    world.settings = {"temperature": world.temperature, "top_p": 1.0, "top_k": -1.0}
    world.report_raw = True
    return case_of("raw_logprobs", world, draw(world))


def unnamed(rng: Rng, seed: int) -> FieldCase:
    """More error in a place that no mechanism goes with."""
    world = make_world(rng)
    kind = str(rng.choice(["prompt", "token", "last", "modulo"]))
    made = draw(world)
    n, steps = made.engine.shape
    inside = np.zeros((n, steps), dtype=bool)
    if kind == "prompt":
        inside[world.prompts == int(rng.integers(world.prompts.max() + 1))] = True
    elif kind == "token":
        values, counts = np.unique(made.tokens, return_counts=True)
        inside = made.tokens == values[np.argsort(-counts)[int(rng.integers(6))]]
    elif kind == "last":
        inside = np.arange(steps) >= world.lengths[:, None] - int(rng.integers(1, 4))
    else:
        m = int(rng.choice([3, 5, 7]))
        inside[np.arange(n) % m == int(rng.integers(m))] = True
    made.engine[inside] = np.minimum(made.engine[inside] + rng.normal(0, 0.8, int(inside.sum())), -1e-6)
    names = {
        "prompt": ("prompt", "sequence"),
        "token": ("token",),
        "last": ("from the end", "position"),
        "modulo": ("sequence modulo",),
    }
    return case_of("unnamed", world, made, detail=kind, where=names[kind], accepted=())


MAKERS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        healthy,
        healthy_declared,
        placeholder_logprobs,
        not_the_sampled_token,
        different_context,
        packed_rows,
        position_dependent,
        stale_replica,
        weights_not_delivered,
        stochastic_trainer,
        one_sided_processor,
        moe_routing,
        wrong_temperature,
        raw_logprobs,
        unnamed,
    )
}


def make_field_case(label: str, seed: int) -> FieldCase:
    """The case of this label and seed."""
    rng = np.random.default_rng((seed, sum(label.encode())))
    return replace(MAKERS[label](rng, seed), seed=seed)
