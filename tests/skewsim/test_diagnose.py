"""Diagnosis: each cause is named from its own mechanism, healthy data is left alone, and what cannot be told is said.

The signatures are checked on a language model made of random logits, in float64 and without the simulator, so that the
rules are not tested on the simulator that they were developed with. Rescoring is checked on a policy saved as a Hugging
Face folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.diagnosis_cases import PAIRS, make_case
from skewsim.cli.main import main
from skewsim.diagnose import LAYER_OF, Diagnosis, diagnose, diagnose_path, load_models
from skewsim.diagnose.noise import lattice
from skewsim.diagnose.policies import policy_scorers
from skewsim.diagnose.predict import Scorer
from skewsim.diagnose.rows import Rows
from skewsim.diagnose.signatures import context_slope, truth
from skewsim.errors import FileFormatError, UserError
from skewsim.learn.base_policy import shipped_folder
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import TaskSettings
from skewsim.skew.sequences import SequenceLog, SequenceRecord, write_sequences
from skewsim.skew.tokens import TokenTable

PROMPTS, GROUP, LENGTH, VOCAB = 24, 8, 12, 60


@dataclass(frozen=True)
class World:
    """Logits of every position of every sequence, equal for all sequences of a prompt, as their contexts are equal."""

    logits: np.ndarray
    rng: np.random.Generator

    @classmethod
    def make(cls, seed: int) -> World:
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 2.5, (PROMPTS, LENGTH, VOCAB)) + rng.normal(0, 1, VOCAB)
        return cls(np.repeat(logits, GROUP, axis=0), rng)

    def moved(self, scale: float) -> np.ndarray:
        """The logits of other weights."""
        return self.logits + np.repeat(self.rng.normal(0, scale, (PROMPTS, LENGTH, VOCAB)), GROUP, axis=0)

    def sample(self, logprobs: np.ndarray) -> np.ndarray:
        uniform = self.rng.random((*logprobs.shape[:2], 1))
        return (np.cumsum(np.exp(logprobs), axis=2) < uniform).sum(axis=2).clip(max=VOCAB - 1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def pick(logprobs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logprobs, tokens[..., None], axis=2)[..., 0]


def table(tokens: np.ndarray, engine: np.ndarray, trainer: np.ndarray, **columns: np.ndarray | dict) -> TokenTable:  # type: ignore[type-arg]
    prompts = np.repeat(np.arange(PROMPTS), GROUP)
    given = {"prompt_ids": prompts} | columns
    return TokenTable.from_rollouts(
        tokens=tokens, mask=np.ones(tokens.shape), engine_logprobs=engine, trainer_logprobs=trainer, **given  # type: ignore[arg-type]
    )  # fmt: skip


def names(found: Diagnosis) -> set[str]:
    return {cause.name for cause in found.causes}


def truthful(
    world: World, engine_logits: np.ndarray, trainer_logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, engine, trainer) of an engine that samples from what it reports."""
    engine = log_softmax(engine_logits)
    tokens = world.sample(engine)
    return tokens, pick(engine, tokens), pick(log_softmax(trainer_logits), tokens)


@pytest.mark.parametrize("seed", range(4))
def test_float32_rounding_is_healthy(seed: int) -> None:
    world = World.make(seed)
    noise = world.rng.normal(0, 1e-6, world.logits.shape)
    found = diagnose(table(*truthful(world, world.logits + noise, world.logits)))
    assert found.verdict == "healthy"
    assert found.layer is None


def test_bfloat16_noise_is_healthy_where_bfloat16_was_declared_and_named_where_not() -> None:
    world = World.make(1)
    noisy = world.logits + world.rng.normal(0, 0.06, world.logits.shape)
    rows = table(*truthful(world, noisy, world.logits))
    assert names(diagnose(rows)) == {"compute_dtype"}
    assert names(diagnose(rows.with_meta(dtype="bfloat16", trainer_dtype="bfloat16"))) == {"healthy"}


@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.3])
def test_raw_logprobs_and_a_wrong_temperature_are_told_apart_by_who_was_sampled(temperature: float) -> None:
    """The same two columns of numbers; only the distribution that the tokens came from differs."""
    world = World.make(2)
    plain, heated = log_softmax(world.logits), log_softmax(world.logits / temperature)
    tokens = world.sample(heated)  # sampled at the temperature, reported at 1
    raw = diagnose(table(tokens, pick(plain, tokens), pick(heated, tokens), meta={"temperature": temperature}))
    assert names(raw) == {"raw_logprobs"}
    assert raw.first.explained > 0.9
    tokens = world.sample(plain)  # sampled at 1 and reported at 1; the trainer divides
    wrong = diagnose(table(tokens, pick(plain, tokens), pick(heated, tokens)))
    assert names(wrong) == {"wrong_temperature"}
    assert raw.layer == wrong.layer == "semantic"


def test_the_temperature_is_estimated_within_contexts_exactly() -> None:
    world = World.make(3)
    tokens = world.sample(log_softmax(world.logits / 0.7))
    rows = Rows.from_table(
        table(tokens, pick(log_softmax(world.logits), tokens), pick(log_softmax(world.logits / 0.7), tokens))
    )
    slope = context_slope(rows)
    assert slope is not None
    assert slope.k.value == pytest.approx(0.7, abs=1e-6)
    assert slope.explained == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("keep", [3, 6])
def test_lost_mass_is_named_and_its_size_is_the_mean_ratio(keep: int) -> None:
    world = World.make(4)
    full = log_softmax(world.logits)
    edge = np.sort(full, axis=2)[..., -keep : VOCAB - keep + 1]
    cut = np.where(full >= edge, full, -np.inf)
    mass = np.exp(cut).sum(-1)
    tokens = world.sample(log_softmax(np.where(np.isfinite(cut), cut, -1e9)))
    found = diagnose(table(tokens, pick(full, tokens) - np.log(mass), pick(full, tokens)))
    assert names(found) == {"truncation_mass"}
    assert f"{mass.mean():.2f}" in found.first.evidence


def test_older_weights_are_named_where_versions_are_logged() -> None:
    world = World.make(5)
    tokens, engine, trainer = truthful(world, world.logits, world.logits)
    old = log_softmax(world.moved(0.4))
    tokens[:, :5] = world.sample(old)[:, :5]
    engine[:, :5], trainer[:, :5] = pick(old, tokens)[:, :5], pick(log_softmax(world.logits), tokens)[:, :5]
    versions = np.broadcast_to(np.where(np.arange(LENGTH) < 5, 6, 7), tokens.shape)
    found = diagnose(table(tokens, engine, trainer, weight_versions=versions))
    assert names(found) == {"stale_weights"}
    assert "take over at token 5" in found.first.evidence


def test_a_stale_prefix_is_named_by_the_prompts_that_come_again() -> None:
    world = World.make(6)
    prompts = np.repeat(np.concatenate([np.arange(PROMPTS // 2), np.arange(PROMPTS // 2)]), GROUP)
    again = np.arange(len(prompts)) >= len(prompts) // 2
    again &= prompts < 8
    shifted = np.where(again[:, None, None], world.moved(0.5), world.logits)
    found = diagnose(table(*truthful(world, shifted, world.logits), prompt_ids=prompts))
    assert names(found) == {"stale_kv"}
    assert found.layer == "inference path"


def test_a_bfloat16_head_shows_on_the_grid_of_its_logits_and_which_side_it_is_on() -> None:
    world = World.make(7)
    logits = world.logits * 2 + 3
    rounded = torch.from_numpy(logits).bfloat16().double().numpy()
    engine_side = diagnose(table(*truthful(world, rounded, logits)))
    assert names(engine_side) == {"head_dtype"}
    trainer_side = diagnose(table(*truthful(world, logits, rounded)))
    assert names(trainer_side) == {"one_sided_fp32_head"}
    rows = Rows.from_table(table(*truthful(world, rounded, logits)))
    assert lattice(rows.engine, rows, 1.0).coarse
    assert not lattice(rows.trainer, rows, 1.0).coarse


def test_a_rounded_head_over_a_rounded_body_is_not_given_the_bodys_part() -> None:
    """What a float32 head would leave is the noise of the body, which is known by construction."""
    world = World.make(7)
    logits = world.logits * 2 + 3
    body = logits + world.moved(0.06) - world.logits  # the same for all responses to a prompt, whose contexts are equal
    found = diagnose(table(*truthful(world, torch.from_numpy(body).bfloat16().double().numpy(), logits)))
    _, engine, trainer = truthful(world, body, logits)
    assert found.verdict == "compute_dtype"
    head = {cause.name: cause.explained for cause in found.causes}.pop("head_dtype")
    assert 1 - ((trainer - engine) ** 2).mean() / found.rms**2 < head < 0.5


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("every", [1, 4])
def test_shifted_logprobs_are_named_and_mended_before_anything_else(shift: int, every: int) -> None:
    world = World.make(8)
    tokens, engine, trainer = truthful(world, world.logits, world.logits)
    engine[::every] = np.roll(engine[::every], shift, axis=1)
    found = diagnose(table(tokens, engine, trainer))
    assert names(found) == {"misaligned_tokens"}


def test_a_text_tokenised_again_is_misaligned_by_another_number_of_places_in_every_sequence() -> None:
    world = World.make(8)
    tokens, engine, trainer = truthful(
        world, world.logits, world.logits + world.rng.normal(0, 0.02, world.logits.shape)
    )
    for number, shift in zip(range(0, len(engine), 12), [1, -1, 2, -2] * 4, strict=True):
        engine[number] = np.roll(engine[number], shift)
    found = diagnose(table(tokens, engine, trainer))
    assert found.verdict == "misaligned_tokens"
    assert "tokenised again" in found.first.evidence


def test_a_handful_of_broken_sequences_is_named_and_listed() -> None:
    world = World.make(9)
    tokens, engine, trainer = truthful(world, world.logits, world.logits)
    engine[[3, 50]] = -world.rng.exponential(3, (2, LENGTH))
    found = diagnose(table(tokens, engine, trainer))
    assert names(found) == {"outlier_sequences"}
    assert "3, 50" in found.first.evidence


def test_several_causes_at_once_come_apart_and_the_first_layer_is_the_verdict() -> None:
    world = World.make(10)
    tokens = world.sample(log_softmax(world.logits / 0.7))
    engine, trainer = pick(log_softmax(world.logits), tokens), pick(log_softmax(world.logits / 0.7), tokens)
    engine[:3] = -world.rng.exponential(9, (3, LENGTH))
    found = diagnose(table(tokens, engine, trainer))
    assert {"raw_logprobs", "outlier_sequences"} <= names(found)
    assert found.verdict == "raw_logprobs"


def test_skew_too_large_for_rounding_and_without_versions_is_unknown_and_says_what_to_measure() -> None:
    world = World.make(11)
    moved = world.moved(0.6)
    found = diagnose(table(*truthful(world, moved, world.logits)))
    assert found.verdict == "unknown"
    assert found.layer is None
    assert "measure next" in found.first.evidence
    assert "weight version" in found.first.evidence


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"asked": {"kv_cache_dtype": "auto"}, "actual": {"kv_cache_dtype": "fp8"}}, "compute_dtype"),
        ({"asked": {"quantization": "int8"}, "actual": {}}, "compute_dtype"),
        (
            {"asked": {"quantization": None, "kv_cache_dtype": "auto"}, "actual": {"kv_cache_dtype": "bfloat16"}},
            "unknown",
        ),
        ("garbled", "unknown"),
    ],
)
def test_noise_too_large_for_16_bits_is_rounding_where_the_measurement_says_that_the_engine_had_8(
    settings: dict[str, dict[str, str | None]] | str, named: str
) -> None:
    world = World.make(9)
    trainer, engine = (log_softmax(x) for x in (world.logits, world.moved(0.4)))
    tokens = world.sample(engine)
    rows = table(tokens, pick(engine, tokens), pick(trainer, tokens), meta={"settings": settings})
    assert diagnose(rows).verdict == named


def test_a_truthful_engine_has_mean_ratio_one_and_raw_logprobs_mean_inverse_ratio_one() -> None:
    world = World.make(12)
    plain, heated = log_softmax(world.logits), log_softmax(world.logits / 0.7)
    tokens = world.sample(heated)
    raw = truth(Rows.from_table(table(tokens, pick(plain, tokens), pick(heated, tokens))))
    assert abs(raw.inverse.z) < 4
    assert raw.bias.z > 4
    noisy = truth(
        Rows.from_table(table(*truthful(world, world.logits + world.rng.normal(0, 0.1, plain.shape), world.logits)))
    )
    assert abs(noisy.ratio.z) < 4
    assert noisy.lean == pytest.approx(-1, abs=0.5)


def test_json_has_exactly_the_promised_keys_and_names() -> None:
    world = World.make(13)
    found = diagnose(table(*truthful(world, world.logits, world.logits))).to_json()
    assert list(json.loads(json.dumps(found))) == [
        *(
            "verdict",
            "layer",
            "causes",
            "kind",
            "kind_text",
            "normal",
            "usual",
            "like",
            "odd_one_out",
            "agreement",
            "values",
        ),
        *("where", "notes"),
    ]
    assert list(found["causes"][0]) == ["name", "layer", "explained", "evidence", "fix"]
    assert set(LAYER_OF) == {
        *("raw_logprobs", "wrong_temperature", "truncation_mass", "stale_weights", "stale_kv", "head_dtype"),
        *("compute_dtype", "one_sided_fp32_head", "misaligned_tokens", "outlier_sequences", "healthy", "unknown"),
        *("placeholder_logprobs", "not_the_sampled_token", "different_context", "packed_rows", "position_dependent"),
        *("stale_replica", "weights_not_delivered", "stochastic_trainer", "one_sided_processor", "moe_routing"),
    }


def test_every_fix_names_the_setting_of_every_framework() -> None:
    from skewsim.diagnose import FIX

    for name, fix in FIX.items():
        if name not in ("healthy", "unknown"):
            for framework in ("vLLM", "PipelineRL", "verl", "TRL", "prime-rl", "slime"):
                assert framework in fix, (name, framework)


# ------------------------------------------------------------------------------------------ with models at hand


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A random policy and, as its older self, the same with every weight moved a little."""
    new = Policy.random(PolicyConfig(num_hidden_layers=1), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(new.flat.shape, generator=torch.Generator().manual_seed(1))
    old = Policy(new.config, new.flat + 0.02 * noise)
    root = tmp_path_factory.mktemp("models")
    for name, policy in (("new", new), ("old", old)):
        policy.save(root / name)
    return [root / "new", root / "old"]


def rollouts(folder: Path, *, temperature: float = 0.8, seed: int = 0) -> list[SequenceRecord]:
    """Sampled with transformers, token by token, at a temperature; processed logprobs."""
    model = load_models([folder])[0].model  # type: ignore[attr-defined]
    stream = torch.Generator().manual_seed(seed)
    prompts = torch.randint(0, 64, (10, 6), generator=stream).repeat_interleave(4, 0)
    ids = prompts
    reported = []
    with torch.inference_mode():
        for _ in range(8):
            logprobs = (model(ids).logits[:, -1] / temperature).log_softmax(-1)
            token = torch.multinomial(logprobs.exp(), 1, generator=stream)
            reported.append(logprobs.gather(1, token))
            ids = torch.cat([ids, token], 1)
    engine = torch.cat(reported, 1).double().numpy()
    return [
        SequenceRecord(
            ids[n, 6:].numpy(), engine[n], prompt_tokens=ids[n, :6].numpy(), settings={"temperature": temperature}
        )
        for n in range(len(ids))
    ]


def test_a_model_in_the_trainers_place_finds_its_own_rollouts_healthy(folders: list[Path], tmp_path: Path) -> None:
    write_sequences(rollouts(folders[0]), tmp_path / "log.jsonl")
    assert diagnose_path(tmp_path / "log.jsonl", models=folders).verdict == "healthy"


def test_older_weights_are_found_by_scoring_under_them(folders: list[Path], tmp_path: Path) -> None:
    write_sequences(rollouts(folders[1]), tmp_path / "log.jsonl")
    found = diagnose_path(tmp_path / "log.jsonl", models=folders)
    assert names(found) == {"stale_weights"}
    assert "old" in found.first.evidence
    assert found.first.explained > 0.99


def test_a_wrong_temperature_is_estimated_with_a_model(folders: list[Path], tmp_path: Path) -> None:
    records = [replace(record, settings={"temperature": 1.0}) for record in rollouts(folders[0], temperature=0.8)]
    write_sequences(records, tmp_path / "log.jsonl")
    found = diagnose_path(tmp_path / "log.jsonl", models=folders[:1])
    assert names(found) == {"wrong_temperature"}
    assert "temperature 0.8," in found.first.evidence


@pytest.mark.parametrize(("dtype", "cache"), [("float32", "fp8"), ("bfloat16", "fp8"), ("float32", "fp8_truncated")])
def test_keys_and_values_in_fp8_are_found_by_rounding_them(tmp_path: Path, dtype: str, cache: str) -> None:
    """The engine's numbers are the simulator's, over its own fp8 cache; the models are transformers'."""
    folder = shipped_folder(TaskSettings())
    policy = Policy.load(folder)
    (engine,) = policy_scorers(policy.config, {0: policy.flat})
    sampled = rollouts(folder)
    logits = torch.from_numpy(engine.logits(sampled, dtype=dtype, kv_cache_dtype=cache)).reshape(len(sampled), -1, 64)
    logprobs = (logits.double() / 0.8).log_softmax(-1).numpy()
    rounded = pick(logprobs, np.stack([record.tokens for record in sampled]))
    records = [
        replace(r, engine_logprobs=e, trainer_logprobs=r.engine_logprobs) for r, e in zip(sampled, rounded, strict=True)
    ]
    found = diagnose(SequenceLog(tuple(records)), models=load_models([folder]))
    assert found.verdict == "compute_dtype"
    assert "keys and values in fp8" in found.first.evidence
    assert ("cut off" in found.first.evidence) == (cache == "fp8_truncated")
    assert found.first.explained > 0.7


def test_a_pair_of_the_simulators_causes_is_named_both() -> None:
    """One of the cases of benchmarks/diagnosis_confusion.py, which runs hundreds."""
    case = make_case(PAIRS[0], 1)
    assert set(PAIRS[0]) <= names(diagnose(case.log, models=case.models))


def test_a_shipped_policy_scores_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = SequenceRecord(np.arange(5), np.full(5, -2.0), prompt_tokens=np.arange(4))
    write_sequences([few], tmp_path / "log.jsonl")
    assert main(["diagnose", str(tmp_path / "log.jsonl"), "--model", "base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "unknown", "five tokens are too few"


def test_users_mistakes_are_one_line(folders: list[Path], tmp_path: Path) -> None:
    log = SequenceLog(tuple(rollouts(folders[0])))
    with pytest.raises(UserError, match="trainer_logprobs"):
        diagnose(log)
    with pytest.raises(UserError, match="prompt_token_ids"):
        diagnose(log.table(), models=load_models(folders[:1]))
    with pytest.raises(FileFormatError, match=r"config\.json"):
        load_models([tmp_path])
    (tmp_path / "bad.jsonl").write_text('{"token_ids": [1]}\n')
    with pytest.raises(FileFormatError, match="line 1"):
        diagnose_path(tmp_path / "bad.jsonl")


def test_too_few_tokens_are_unknown_and_no_rows_no_crash() -> None:
    few = TokenTable.from_rollouts(
        tokens=np.zeros((1, 5)),
        mask=np.ones((1, 5)),
        engine_logprobs=np.full((1, 5), -1.0),
        trainer_logprobs=np.full((1, 5), -1.1),
    )
    assert diagnose(few).verdict == "unknown"
    assert diagnose(TokenTable.empty()).verdict == "unknown"


@pytest.mark.parametrize(
    ("dtype", "head", "cache"),
    [
        ("float32", "float32", "auto"),
        ("float32", "bfloat16", "auto"),
        ("bfloat16", "float32", "auto"),
        ("float32", "float32", "fp8"),
        ("float32", "float32", "fp8_truncated"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_the_simulators_own_weights_score_as_the_same_model_in_a_folder_does(
    tmp_path: Path, dtype: str, head: str, cache: str, old: bool
) -> None:
    """transformers as the oracle, also over keys and values of older weights that end at different tokens."""
    config = PolicyConfig()
    rng = np.random.default_rng(0)
    policies = [Policy.random(config, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    ours = policy_scorers(config, {version: policy.flat for version, policy in zip((7, 4), policies, strict=True)})
    for number, policy in enumerate(policies):
        policy.save(tmp_path / str(number))
    theirs = load_models([tmp_path / "0", tmp_path / "1"])
    records = [
        SequenceRecord(
            tokens=rng.integers(64, size=length),
            engine_logprobs=np.zeros(length),
            mask=rng.random(length) < 0.8,
            prompt_tokens=rng.integers(64, size=6),
        )
        for length in (5, 9, 9, 12)
    ]
    more = {"dtype": dtype, "head_dtype": head, "kv_cache_dtype": cache}
    cuts = [5, 5, 8, 11]
    found, expected = (
        models[0].logits(records, **more, **({"older": models[1], "old_tokens": cuts} if old else {}))
        for models in (ours, theirs)
    )
    kept = np.concatenate([(np.flatnonzero(r.mask) + 6 - 1 >= cut * old) for r, cut in zip(records, cuts, strict=True)])
    assert found.shape == expected.shape
    exact = dtype == "float32" == head and cache == "auto"
    np.testing.assert_allclose(found[kept], expected[kept], atol=1e-4 if exact else 0.15)
    if cache != "auto":
        plain = theirs[0].logits(records, **({"older": theirs[1], "old_tokens": cuts} if old else {}))
        error, effect = (np.abs(found - other)[kept].mean() for other in (expected, plain))
        assert error < 0.1 * effect
    assert [scorer.name for scorer in ours] == ["version 7", "version 4"]


@pytest.mark.parametrize("head", ["float32", "bfloat16"])
def test_prompts_cached_under_several_weights_are_one_cause_with_all_of_its_share(head: str) -> None:
    """Each prompt's keys and values are those of the version that saw it first."""
    config = PolicyConfig()
    torch.manual_seed(0)
    base = Policy.random(config, generator=torch.Generator().manual_seed(1))
    flats = {version: base.flat + 0.01 * version * torch.randn_like(base.flat) for version in (0, 2, 4)}
    scorers = policy_scorers(config, flats)
    rng = np.random.default_rng(1)
    records = []
    for number in range(48):
        record = SequenceRecord(
            tokens=rng.integers(64, size=8),
            engine_logprobs=np.zeros(8),
            weight_versions=np.full(8, 4),
            prompt_tokens=rng.integers(64, size=10),
            settings={"temperature": 1.0, "top_p": 1.0, "top_k": 0.0},
        )
        older = {} if number % 3 == 0 else {"older": scorers[number % 3], "old_tokens": [9]}
        engine, trainer = (
            pick(log_softmax(scorers[0].logits([record], **more)[None].astype(float)), record.tokens[None])[0]
            for more in (older | {"head_dtype": head}, {})
        )
        records.append(replace(record, engine_logprobs=engine, trainer_logprobs=trainer))
    found = diagnose(SequenceLog(tuple(records)), models=scorers)
    shares = {cause.name: cause for cause in found.causes}
    assert set(shares) == {"stale_kv"} | ({"head_dtype"} if head == "bfloat16" else set())
    assert shares["stale_kv"].explained > 0.95
    assert shares["stale_kv"].evidence.count("keys and values of version") == 2
    if head == "bfloat16":
        assert float(shares["head_dtype"].evidence.split()[-1]) < 1e-5, "whatever the prompt was cached under"


def drawn(scorers: list[Scorer], older: list[Scorer | None], *, temperature: float, length: int = 8) -> SequenceLog:
    """Sequences whose prompts were cached under older weights; the engine draws at a temperature and reports raw."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(older), length), np.int64)
    engine, trainer = np.zeros(tokens.shape), np.zeros(tokens.shape)
    settings = {"temperature": temperature, "top_p": 1.0, "top_k": 0.0}
    empty = SequenceRecord(tokens[0], engine[0], weight_versions=np.full(length, 4), settings=settings)
    records = [replace(empty, prompt_tokens=rng.integers(64, size=10)) for _ in older]
    for t in range(length):
        for old in dict.fromkeys(older):
            rows = [row for row, each in enumerate(older) if each is old]
            few = [replace(records[row], tokens=tokens[row]) for row in rows]
            more = {} if old is None else {"older": old, "old_tokens": [9] * len(few)}
            logits, ours = (
                scorers[0].logits(few, **kept).reshape(len(few), length, -1)[:, t].astype(float) for kept in (more, {})
            )
            for row, z, new in zip(rows, logits, ours, strict=True):
                drawn = rng.choice(len(z), p=np.exp(log_softmax(z / temperature)))
                tokens[row, t], engine[row, t] = drawn, log_softmax(z)[drawn]
                trainer[row, t] = log_softmax(new / temperature)[drawn]
    rows = zip(records, tokens, engine, trainer, strict=True)
    return SequenceLog(tuple(replace(r, tokens=t, engine_logprobs=e, trainer_logprobs=n) for r, t, e, n in rows))


def test_beside_prompts_cached_under_several_weights_small_causes_are_not_misnamed() -> None:
    """Raw is told from a wrong temperature by whose tokens they are, each sequence under its own cached prompt. What
    weights leave that nobody kept, version 3's here, is no rounding."""
    config = PolicyConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, head_dim=16)
    torch.manual_seed(0)
    base = Policy.random(config, generator=torch.Generator().manual_seed(1))
    flats = {version: base.flat + 0.05 * version * torch.randn_like(base.flat) for version in (0, 1, 2, 4)}
    flats[3] = flats[2] + 0.001 * torch.randn_like(base.flat)
    scorers = policy_scorers(config, flats)
    log = drawn(scorers, [scorers[number % 4 + 1] for number in range(48)], temperature=0.7, length=6)
    known = [scorer for scorer in scorers if scorer.name != "version 3"]
    assert names(diagnose(log, models=known)) == {"stale_kv", "raw_logprobs"}


@dataclass
class Table:
    """A scorer whose logits stand in a table, (sequences, T, V)."""

    name: str
    table: np.ndarray
    vocab_size: int = VOCAB

    def logits(self, records: list[SequenceRecord], **_: object) -> np.ndarray:
        return self.table.reshape(-1, VOCAB).astype(np.float32)


def test_what_looks_like_a_shift_is_not_called_one_where_older_weights_explain_it() -> None:
    """In every tenth sequence the older weights give each token the probability that the newer give the next token."""
    world = World.make(0)
    new, tokens = world.logits, world.sample(log_softmax(world.logits))
    old = world.moved(0.3)
    for row in range(0, len(new), 10):
        for t in range(LENGTH - 1):
            old[row, t] = new[row, t + 1]
            here, there = tokens[row, t], tokens[row, t + 1]
            old[row, t, [here, there]] = old[row, t, [there, here]]
    trainer, engine = (pick(log_softmax(logits), tokens) for logits in (new, old))

    def log(engine: np.ndarray) -> SequenceLog:
        prompt, settings = np.arange(1, 4), {"temperature": 1.0, "top_p": 1.0, "top_k": 0.0}
        rows = zip(tokens, engine, trainer, strict=True)
        return SequenceLog(
            tuple(SequenceRecord(t, e, trainer_logprobs=n, prompt_tokens=prompt, settings=settings) for t, e, n in rows)
        )

    models = [Table("new", new), Table("old", old)]
    assert "misaligned_tokens" in names(diagnose(log(engine))), "by the logprobs alone"
    assert names(diagnose(log(engine), models=models)) == {"stale_weights"}  # type: ignore[arg-type]
    for every in (3, 12, 24):  # few enough to be taken for broken ones
        shifted = trainer.copy()
        shifted[::every] = np.roll(trainer[::every], 1, axis=1)
        assert names(diagnose(log(shifted), models=models)) == {"misaligned_tokens"}  # type: ignore[arg-type]


def test_a_diagnosis_survives_json() -> None:
    found = diagnose(make_case(("raw_logprobs",), 3).log)
    assert Diagnosis.from_plain(json.loads(json.dumps(found.to_plain()))) == found
