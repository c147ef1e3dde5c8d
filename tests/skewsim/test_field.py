"""Faults that people report: each is named from its mechanism, its place is found, and values come before laws.

The oracle is the way in which a log was made; the logs are those of a small language model in numpy, which shares no
code with the diagnosis.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.diagnosis_cases import make_case
from benchmarks.field_cases import MAKERS, draw, finish, make_field_case, make_world
from skewsim.check.sample import Sample
from skewsim.cli.main import main
from skewsim.diagnose import FIX, Diagnosis, diagnose, where
from skewsim.diagnose.causes import LAYER_OF, Cause, fix_for, in_words
from skewsim.diagnose.fixes import FIXES, REPOSITORIES
from skewsim.diagnose.page import page
from skewsim.diagnose.parties import compare_three
from skewsim.diagnose.rows import Rows
from skewsim.diagnose.values import inspect
from skewsim.errors import UserError
from skewsim.skew.sequences import SequenceLog, SequenceRecord, write_sequences
from skewsim.skew.tokens import TokenTable

NEW = [
    label
    for label in MAKERS
    if label not in ("healthy", "healthy_declared", "wrong_temperature", "raw_logprobs", "unnamed")
]


def quiet_log(seed: int, *, noise: float = 0.08, sequences: int = 48, length: int = 60) -> SequenceLog:
    """A healthy log whose engine errs by `noise` on each logit."""
    world = make_world(np.random.default_rng(seed), sequences=sequences, length=length, noise=noise, tail=0.0, group=4)
    world.lengths = np.full(sequences, length)
    return finish(world, draw(world))


def changed(log: SequenceLog, change: object, **columns: object) -> SequenceLog:
    """The log with `change(number, engine values)` as each sequence's engine values."""
    records = []
    for number, record in enumerate(log.records):
        values = change(number, record.engine_logprobs.copy())  # type: ignore[operator]
        records.append(replace(record, engine_logprobs=values))
    return SequenceLog(tuple(records), log.meta)


@pytest.mark.parametrize("label", NEW)
def test_a_fault_of_the_field_is_named(label: str) -> None:
    case = make_field_case(label, 1)
    found = diagnose(case.log)
    assert found.verdict in case.accepted
    assert found.first.explained > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_the_noise_of_a_16_bit_engine_is_normal_and_healthy_once_its_dtype_is_declared(seed: int) -> None:
    log = quiet_log(seed)
    found = diagnose(log)
    assert (found.verdict, found.kind, found.normal) == ("compute_dtype", "noise", True)
    assert "usual for bfloat16 on a dense model" in found.usual
    declared = diagnose(log, dtype="bfloat16")
    assert (declared.verdict, declared.normal) == ("healthy", True)
    with pytest.raises(UserError, match="dtype='int3'"):
        diagnose(log, dtype="int3")


def test_one_missing_value_is_the_verdict_and_the_other_tokens_are_judged_beside_it() -> None:
    def fill(number: int, values: np.ndarray) -> np.ndarray:
        values[3] = np.nan if number == 0 else values[3]
        return values

    found = diagnose(changed(quiet_log(5), fill))
    assert (found.verdict, found.kind) == ("placeholder_logprobs", "misreported")
    assert "the other 2879 tokens: noise" in found.kind_text


def test_noise_at_one_place_is_not_called_usual() -> None:
    place = np.arange(60)

    def far(number: int, values: np.ndarray) -> np.ndarray:
        chance = np.random.default_rng(number).normal(0, 0.6, 60)
        return np.minimum(values + np.where((place >= 32) & (values < -0.1), chance, 0), 0)

    found = diagnose(changed(quiet_log(5), far))
    assert found.verdict == "position_dependent"
    assert found.kind != "noise" or "a weight corrects it" not in found.kind_text


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "exactly 0"), (-9999.0, "exactly -9999"), (1.0, "above 0"), (np.nan, "no number")]
)
def test_filled_in_values_are_counted_placed_and_in_no_other_figure(value: float, words: str) -> None:
    clean = quiet_log(5)

    def fill(number: int, values: np.ndarray) -> np.ndarray:
        values[-1] = value
        return values

    found = diagnose(changed(clean, fill))
    assert found.verdict == "placeholder_logprobs"
    assert f"48 engine values are {words}" in found.values[0]
    assert "the last token, in 48 of 48 sequences" in found.values[0]
    assert found.kind == "misreported"
    assert all(place.tokens <= 48 * 59 for place in found.where)
    rest = diagnose(SequenceLog(tuple(replace(r, mask=np.arange(60) < 59) for r in clean.records)))
    assert [(p.column, p.rms_inside) for p in found.where] == [(p.column, p.rms_inside) for p in rest.where]


def test_a_few_responses_that_differ_by_rounding_at_their_beginning_read_no_other_prompt() -> None:
    """In this float32 log the first tokens of 3 of 72 responses happen to be off by .0036."""
    assert diagnose(make_case(("healthy",), 10_026).log).verdict == "healthy"


def test_ids_as_large_as_they_may_be_are_told_apart_as_small_ones_are() -> None:
    log = quiet_log(8, sequences=24)
    largest = max(int(record.tokens.max()) for record in log.records)
    above = 2**63 - 1 - largest
    moved = SequenceLog(tuple(replace(record, tokens=record.tokens + above) for record in log.records), log.meta)
    assert np.array_equal(Rows.from_log(moved).context, Rows.from_log(log).context)
    assert diagnose(moved).verdict == diagnose(log).verdict


def test_zeros_of_certain_tokens_are_no_placeholders() -> None:
    log = quiet_log(6)
    rounded = changed(log, lambda _, values: np.round(values, 2))
    assert any((record.engine_logprobs == 0).any() for record in rounded.records)
    assert not inspect(Rows.from_log(rounded)).oddities


def test_zeros_among_values_near_0_that_are_contradicted_as_often_are_no_placeholders() -> None:
    """A few responses scored after another prompt: certain tokens of one side are improbable on the other."""
    case = make_field_case("different_context", 50_007)
    odd = inspect(Rows.from_log(case.log))
    assert not odd.oddities
    assert diagnose(case.log).verdict == "different_context"
    filled = changed(case.log, lambda number, values: np.where(np.arange(len(values)) % 9 == 0, 0.0, values))
    assert "exactly 0" in str(inspect(Rows.from_log(filled)).oddities[0])


def test_the_place_in_a_pack_the_replica_and_the_step_are_found_by_their_columns() -> None:
    """One replica of 16, ten sequences of 64, the second half: any share of the sequences."""
    log = quiet_log(7, sequences=64)
    rng = np.random.default_rng(0)
    for share, column in ((4, "replica"), (10, "rank"), (32, "step")):
        chosen = rng.permutation(64)[:share]

        def louder(number: int, values: np.ndarray, chosen: np.ndarray = chosen) -> np.ndarray:
            return np.minimum(values + (number in chosen) * rng.normal(0, 0.4, len(values)), -1e-6)

        noisy = changed(log, louder)
        records = tuple(replace(r, places={column: int(n in chosen)}) for n, r in enumerate(noisy.records))
        place = diagnose(SequenceLog(records)).where[0]
        assert place.column == column
        assert place.sequences == share
        assert place.rms_inside > 2 * place.rms_outside
        inside = np.concatenate(
            [(r.trainer_logprobs - r.engine_logprobs) for n, r in enumerate(records) if n in chosen]
        )
        assert place.rms_inside == pytest.approx(math.sqrt((inside**2).mean()))
        assert place.bias_inside == pytest.approx(inside.mean())


def half_of(log: SequenceLog) -> SequenceLog:
    """About half of the sequences, as `skewsim check` samples a log that is too long to diagnose whole."""
    sample = Sample(sum(len(record.tokens) for record in log.records) * 2 // 3)
    for record in log.records:
        sample.add(record)
    return sample.log(log.meta)


@pytest.mark.parametrize("sequences", [240, 480])
def test_a_sampled_log_tells_one_replica_of_16_by_the_numbers_of_the_whole_log(sequences: int) -> None:
    rng = np.random.default_rng(0)

    def stale(number: int, values: np.ndarray) -> np.ndarray:
        return np.minimum(values + (number % 16 == 5) * rng.normal(0, 0.3, len(values)), -1e-6)

    log = half_of(changed(quiet_log(3, noise=0.02, sequences=sequences, length=30), stale))
    assert len(log.records) < sequences * 3 / 4
    found = diagnose(log)
    assert found.verdict == "stale_replica"
    assert "sequence number mod 16 5" in found.causes[0].evidence


@pytest.mark.parametrize(("pack", "sequences"), [(3, 32), (5, 32), (3, 48), (5, 480)])
def test_a_sampled_log_tells_packs_by_the_numbers_of_the_whole_log(pack: int, sequences: int) -> None:
    """The beginnings of all sequences but the first of each pack are off; too few sequences for a z are enough."""
    rng = np.random.default_rng(0)

    def leaking(number: int, values: np.ndarray) -> np.ndarray:
        values[:4] += (number % pack > 0) * rng.normal(0, 0.5, 4) * np.exp(-np.arange(4) / 3)
        return np.minimum(values, -1e-6)

    log = half_of(changed(quiet_log(0, noise=0.02, sequences=sequences, length=30), leaking))
    assert len(log.records) < sequences * 3 / 4
    found = diagnose(log)
    assert found.verdict == "packed_rows"
    assert f"sequence number mod {pack} not 0" in found.causes[0].evidence


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_places_of_pure_chance_hardly_ever_survive_the_number_of_looks(seed: int) -> None:
    """Skew of one law everywhere: the strongest of some hundred looks stays below what counts as sure."""
    rng = np.random.default_rng(seed)
    table = TokenTable.from_rollouts(
        tokens=rng.integers(0, 50, (40, 30)),
        mask=np.ones((40, 30)),
        engine_logprobs=np.full((40, 30), -3.0) - rng.exponential(1, (40, 30)),
        trainer_logprobs=np.full((40, 30), -3.0),
        prompt_ids=np.arange(40) // 4,
    )
    shape = len(table)
    table.trainer_logprob[:] = table.engine_logprob + 0.1 * rng.normal(0, 1, shape)
    assert all(place.z < 4 for place in diagnose(table).where)


@pytest.mark.parametrize(("z", "looks"), [(3.0, 1), (4.0, 50), (6.0, 1000), (12.0, 100)])
def test_the_z_that_survives_is_sidaks(z: float, looks: int) -> None:
    tail = 2 * stats.norm.sf(z)
    expected = stats.norm.isf(-np.expm1(looks * np.log1p(-tail)) / 2)
    assert where.survived(z, looks) == pytest.approx(expected, rel=1e-3)


def test_two_that_agree_make_the_third_the_odd_one_out() -> None:
    rng = np.random.default_rng(0)
    one = -rng.exponential(1, 500)
    none = np.zeros(500, dtype=bool)
    off = one + rng.normal(0, 0.3, 500)
    for odd, columns in (("engine", (off, one, one)), ("trainer", (one, off, one)), ("model", (one, one, off))):
        parties = compare_three(*columns, none, None)
        assert parties.odd == odd
        assert min(parties.agreement.values()) == 0
    assert compare_three(one, one + 1e-6, one - 1e-6, none, None).odd is None
    assert compare_three(one, off, one + rng.normal(0, 0.3, 500), none, None).odd is None


def test_the_verdict_is_what_hurts_most_and_never_what_explains_less_than_a_hundredth() -> None:
    def verdict(*shares: tuple[str, float], error: float = 0.1) -> str:
        causes = tuple(Cause(name, share, "", "") for name, share in shares)
        return Diagnosis(causes, 100, 10, 1.0, error=error).verdict

    assert verdict(("raw_logprobs", 0.005), ("stale_weights", 0.3)) == "stale_weights"
    assert verdict(("raw_logprobs", 0.3), ("stale_weights", 0.6)) == "stale_weights"
    assert verdict(("raw_logprobs", 0.45), ("stale_weights", 0.5)) == "raw_logprobs", "the same size: by layer"


def test_every_cause_has_a_fix_with_a_source_for_every_setting() -> None:
    assert set(FIXES) == set(LAYER_OF)
    for name, fix in FIXES.items():
        if name in ("healthy", "unknown"):
            continue
        assert fix.general.endswith("."), name
        assert {framework for framework, _, _ in fix.settings} >= {"vLLM", "verl", "TRL", "prime-rl", "slime"}, name
        assert len({framework for framework, _, _ in fix.settings}) == len(fix.settings), name
        for framework, text, source in fix.settings:
            assert framework in REPOSITORIES, framework
            assert not text.endswith("."), (name, framework)
            assert re.search(r"(\.(py|yaml|md|sh)|/)$", source), (name, framework, source)


@pytest.mark.parametrize("label", ["stale_replica", "packed_rows", "placeholder_logprobs", "one_sided_processor"])
def test_the_page_fits_its_columns_and_shows_no_place_that_accounts_for_nothing(label: str) -> None:
    found = diagnose(make_field_case(label, 1).log)
    assert all(place.explained >= 0.01 for place in found.where)
    for width in (60, 80, 120):
        text = "\n".join(page(found, width))
        assert all(len(line) <= max(width, 80) for line in text.split("\n") if "://" not in line), text
        assert "- verl: " in text
    if not found.where:
        assert "no column stands out" in text


def test_a_healthy_logs_page_has_no_place_and_says_so() -> None:
    text = "\n".join(page(diagnose(quiet_log(3), dtype="bfloat16")))
    assert text.startswith("verdict: healthy")
    assert "normal: yes" in text
    assert "where it lives: no column stands out" in text


def test_a_place_is_put_in_words() -> None:
    assert in_words("sequence modulo", "not 0 mod 4") == "sequence number mod 4 not 0"
    assert in_words("seen before in the output", "no") == "not seen before in the output"
    assert in_words("turn", "from 1 on") == "turn from 1 on"


def test_a_framework_leaves_its_own_settings_in_the_fix_and_vllms() -> None:
    fix = fix_for(FIX["different_context"], "verl")
    assert "verl: actor_rollout_ref.rollout.multi_turn" in fix
    assert "vLLM: return_token_ids" in fix
    assert "slime:" not in fix
    assert "PipelineRL:" not in fix
    with pytest.raises(UserError, match="framework='Nope'"):
        fix_for(fix, "Nope")
    for name, text in FIX.items():
        if name not in ("healthy", "unknown"):
            for framework in ("verl", "TRL", "prime-rl", "slime", "PipelineRL"):
                assert framework in fix_for(text, framework), (name, framework)


def test_the_command_says_where_normal_or_not_and_bias_or_noise(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"{tmp_path}/log.jsonl"
    write_sequences(make_field_case("stale_replica", 1).log.records, path)
    assert main(["diagnose", path, "--framework", "verl"]) == 0
    text = capsys.readouterr().out
    for words in ("verdict: stale_replica", "normal: no", "kind: another distribution", "where it lives", "#"):
        assert words in text
    assert main(["diagnose", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["where"][0]) == {
        *("column", "value", "tokens", "sequences", "rms_inside", "rms_outside", "bias_inside", "explained", "z"),
    }


def test_a_slope_is_no_temperature_where_the_two_sides_hardly_go_together() -> None:
    """Gross disagreement: the columns are unrelated, so that k is near 0 and would explain nearly everything."""
    rng = np.random.default_rng(2)
    records = tuple(
        SequenceRecord(
            rng.integers(0, 90, 30),
            -rng.exponential(1, 30),
            trainer_logprobs=-rng.exponential(2, 30),
            prompt_tokens=np.array([n // 4]),
        )
        for n in range(40)
    )
    assert "wrong_temperature" not in {cause.name for cause in diagnose(SequenceLog(records)).causes}


def test_an_update_in_mid_generation_that_made_keys_and_values_again_is_told_from_the_log_alone() -> None:
    """Lengths as on a real engine: short sequences end before the update, and so stand apart."""
    rng, records = np.random.default_rng(0), []
    for length in (45, 64, 15, 64, 33, 64, 33, 64):
        trainer = rng.normal(0, 2, (length, 50))
        engine = trainer + rng.normal(0, 0.3, (length, 50)) * (np.arange(length) < 32)[:, None]
        logprobs = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (engine, trainer)]
        tokens = np.array([rng.choice(50, p=np.exp(row)) for row in logprobs[0]])
        picked = [x[np.arange(length), tokens] for x in logprobs]
        records.append(SequenceRecord(tokens, picked[0], picked[1], prompt_tokens=rng.integers(50, size=9)))
    found = diagnose(SequenceLog(tuple(records)))
    assert found.verdict == "stale_weights"
    assert found.first.explained > 0.99
    assert "positions below 32" in found.first.evidence
