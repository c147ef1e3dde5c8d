"""The main claim: the ladder of the four fixes, over seeds under common random numbers, computed, nothing drawn.

Each objective's rungs are at its own point, daily with half its prompts. Every claim is checked on four seeds and fifty
steps among the slow tests; those that a short run of one seed shows as well, which is all but those of the reward,
also daily.
"""

from __future__ import annotations

import numpy as np
import pytest

from skewsim.cli.display import print_ladder
from skewsim.records import StepRecord, last_tenth, tenth
from skewsim.runs.ladder import Ladder, LadderResult, Rung
from skewsim.runs.recording import summarise
from skewsim.scenarios import ALONE, COUNTER_LESSONS, FIXES, LADDER, POINTS, find_scenario, ladder_scenarios
from skewsim.skew.metric_table import METRICS

DAILY, WHOLE = (1, 18), (4, 50)
"""Seeds and steps."""
in_full = pytest.mark.parametrize("size", [pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)], indirect=True)
"""For what only the longer run shows."""
GSPO = ("v0_reference", "initial_v1", "plus_inflight", "plus_fp32_head")
GRPO = (*LADDER, "only_raw", "only_stale_prefix", "only_lag")
"""All but the last fault alone, which is `plus_inflight`."""


def _climb(objective: str, names: tuple[str, ...] = LADDER, *, seeds: int, steps: int) -> LadderResult:
    values = {"trainer.num_prompts": 8} if steps == DAILY[1] else {}
    ladder = Ladder(objective=objective, seeds=seeds, steps=steps, names=names, values=values)
    ensemble, records = ladder.ensemble(), []
    while ensemble.alive:
        records += ensemble.step()
    return ladder.result(records)


@pytest.fixture(
    scope="module",
    params=[pytest.param(DAILY, id="daily"), pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)],
)
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def grpo(size: tuple[int, int]) -> LadderResult:
    return _climb("grpo", GRPO, seeds=size[0], steps=size[1])


@pytest.fixture(scope="module")
def gspo(size: tuple[int, int]) -> LadderResult:
    return _climb("gspo", GSPO, seeds=size[0], steps=size[1])


@pytest.fixture(params=["grpo", "gspo"])
def result(request: pytest.FixtureRequest, grpo: LadderResult, gspo: LadderResult) -> LadderResult:
    return grpo if request.param == "grpo" else gspo


def _rung(result: LadderResult, name: str) -> Rung:
    return next(r for r in result.rungs if r.name == name)


def _mean(result: LadderResult, name: str, key: str) -> float:
    """Mean over seeds and the second half of the steps."""
    half = result.steps // 2
    values = [r.metrics[key] for r in result.records[name] if r.step >= half]
    return float(np.mean([v for v in values if v is not None]))


def _smooth(result: LadderResult, name: str, key: str, width: int = 15) -> np.ndarray:
    """(seeds, steps - width + 1) running means."""
    by_seed: dict[int, list[float]] = {}
    for r in result.records[name]:
        by_seed.setdefault(r.seed, []).append(r.metrics[key] or 0.0)
    return np.array([np.convolve(v, np.full(width, 1 / width), "valid") for v in by_seed.values()])


@in_full
def test_initial_v1_leaves_the_references_seed_band_and_never_returns(result: LadderResult) -> None:
    lowest = _smooth(result, "v0_reference", "reward/mean").min(0)
    v1 = _smooth(result, "initial_v1", "reward/mean").mean(0)
    outside = v1 < lowest
    assert outside[len(outside) // 2 :].all()
    assert not _rung(result, "initial_v1").inside_reference_band


def test_all_four_fixes_equal_the_reference_bit_for_bit(result: LadderResult) -> None:
    assert _rung(result, "plus_fp32_head").identical_to_reference
    assert not any(r.identical_to_reference for r in result.rungs if r.name not in ("v0_reference", "plus_fp32_head"))


@in_full
def test_the_first_three_fixes_bring_most_of_the_reward_back(result: LadderResult) -> None:
    reference, v1, fixed = (_mean(result, n, "reward/mean") for n in ("v0_reference", "initial_v1", "plus_inflight"))
    assert abs(fixed - reference) < 0.5 * (reference - v1)


def test_fix_1_makes_the_gradient_truthful_and_lets_the_entropy_fall(grpo: LadderResult) -> None:
    before, after = (_mean(grpo, n, "optim/grad_cosine") for n in ("initial_v1", "plus_processed"))
    assert before < 0.97
    assert after == 1
    assert _mean(grpo, "plus_processed", "policy/entropy") < _mean(grpo, "initial_v1", "policy/entropy") - 0.01


def test_fix_2_removes_the_stale_prefix_from_the_skew(grpo: LadderResult) -> None:
    """Where it is the only fault: at a lag of eight versions the lag's own skew hides it."""
    key = "skew/logprob_diff_mean"
    assert _mean(grpo, "only_stale_prefix", key) > 2 * _mean(grpo, "v0_reference", key)


def test_fix_3_brings_lag_and_with_it_clip_rate_and_k3_back(grpo: LadderResult) -> None:
    assert _mean(grpo, "plus_defaults", "lag/mean") > 7
    assert _mean(grpo, "plus_inflight", "lag/mean") == pytest.approx(0.5)
    for key in ("update/clip_rate", "skew/kl_k3"):
        assert _mean(grpo, "plus_inflight", key) < 0.3 * _mean(grpo, "plus_defaults", key), key


def test_fix_4_closes_the_remaining_gap(grpo: LadderResult) -> None:
    assert _mean(grpo, "plus_fp32_head", "skew/logprob_diff_mean") < _mean(
        grpo, "plus_inflight", "skew/logprob_diff_mean"
    )


def test_clip_rate_is_the_clearest_signal(grpo: LadderResult) -> None:
    """The migration's own observation: the clip rate is off tenfold where the reward is off by a third."""
    assert _mean(grpo, "initial_v1", "update/clip_rate") > 5 * _mean(grpo, "v0_reference", "update/clip_rate")
    assert _mean(grpo, "initial_v1", "policy/entropy") > _mean(grpo, "v0_reference", "policy/entropy")


def test_gspos_clip_is_hit_harder_than_grpos(grpo: LadderResult, gspo: LadderResult) -> None:
    assert _mean(gspo, "initial_v1", "update/clip_rate") > 2 * _mean(grpo, "initial_v1", "update/clip_rate")


@pytest.fixture(
    scope="module",
    params=[pytest.param(size, id=f"{size[1]}", marks=pytest.mark.slow) for size in ((1, 14), (3, 40))],
)
def counter_lesson(request: pytest.FixtureRequest) -> LadderResult:
    seeds, steps = request.param
    return _climb("grpo", ("raw_fixed", "raw_bypass", "raw_tis", "raw_recompute"), seeds=seeds, steps=steps)


def test_a_correction_over_raw_logprobs_leaves_the_gradient_wrong_and_the_fix_does_not(
    counter_lesson: LadderResult,
) -> None:
    cosine = {n: _mean(counter_lesson, n, "optim/grad_cosine") for n in counter_lesson.records}
    assert cosine["raw_fixed"] == 1
    assert cosine["raw_recompute"] == pytest.approx(1, abs=1e-4)  # it does not use the engine's number at all
    assert cosine["raw_tis"] < 0.98
    assert cosine["raw_bypass"] < 0.98
    # truthful weights average to one; these do not, and a truncation cannot know
    assert abs(_mean(counter_lesson, "raw_tis", "correction/weight_mean") - 1) > 0.01


def test_recompute_keeps_the_clip_quiet_where_bypass_does_not(counter_lesson: LadderResult) -> None:
    for key, factor in (("update/clip_rate", 4), ("policy/entropy", 1)):
        assert _mean(counter_lesson, "raw_bypass", key) > factor * _mean(counter_lesson, "raw_recompute", key), key


@in_full
@pytest.mark.parametrize("fault", ["only_raw", "only_stale_prefix", "only_lag"])
def test_each_of_three_faults_alone_costs_reward_in_every_seed(grpo: LadderResult, fault: str) -> None:
    reference, hurt = (_smooth(grpo, name, "reward/mean")[:, -1] for name in ("v0_reference", fault))
    assert (hurt < reference).all()


@pytest.mark.parametrize(
    ("fault", "factors"),
    [
        ("only_raw", {"update/clip_rate": 3, "skew/kl_k3": 3}),
        ("only_stale_prefix", {"update/clip_rate": 3, "skew/kl_k3": 3}),
        ("only_lag", {"update/clip_rate": 3, "skew/kl_k3": 3}),
        ("plus_inflight", {"update/clip_rate": 1, "skew/kl_k3": 1}),
    ],
)
def test_each_fault_alone_raises_clip_rate_and_k3(grpo: LadderResult, fault: str, factors: dict[str, float]) -> None:
    """The head's rounding in twelve tokens, which is what `plus_inflight` has left, does so the least."""
    for key, factor in factors.items():
        assert _mean(grpo, fault, key) > factor * _mean(grpo, "v0_reference", key), key


@pytest.mark.parametrize(("fault", "fix"), list(zip(ALONE, FIXES, strict=True)))
def test_a_fault_alone_is_the_reference_but_for_what_its_fix_sets(fault: str, fix: str) -> None:
    mended = find_scenario(fault).with_values({"name": "v0_reference", **FIXES[fix]})
    assert mended == find_scenario("v0_reference") != find_scenario(fault)


@pytest.mark.parametrize("objective", POINTS)
def test_a_ladder_is_at_its_objectives_point_where_explicit_values_win(objective: str) -> None:
    path, own = next(iter(POINTS[objective].items()))
    found = ladder_scenarios(objective=objective)
    assert len({rung.with_values({"name": "x", "engine": find_scenario("v0_reference").engine}) for rung in found}) == 1
    assert found[0] == found[0].with_values({path: own})
    changed = ladder_scenarios(objective=objective, values={path: own * 2})
    assert all(rung == rung.with_values({path: own * 2}) for rung in changed)


@pytest.mark.parametrize("name", COUNTER_LESSONS)
def test_a_counter_lesson_has_its_own_settings_whatever_the_objectives_point(name: str) -> None:
    (rung,) = ladder_scenarios(objective=find_scenario(name).trainer.objective, names=(name,))
    assert rung == find_scenario(name).with_values({"trainer.objective": rung.trainer.objective})


def test_json_has_the_published_keys(grpo: LadderResult) -> None:
    found = grpo.to_json()
    assert set(found) == {"objective", "seeds", "steps", "rungs"}
    assert [r["name"] for r in found["rungs"]] == list(GRPO)
    assert set(found["rungs"][0]) == {
        "name", "reward_final", "reward_band", "entropy_final", "clip_rate", "kl_k3", "logprob_diff_mean", "lag",
        "inside_reference_band", "identical_to_reference", "diverged",
    }  # fmt: skip


def test_one_seed_has_no_band_so_nothing_is_called_inside_or_outside(capsys: pytest.CaptureFixture[str]) -> None:
    rewards = {"v0_reference": [0.1, 0.9], "initial_v1": [0.5, 0.5]}
    records = [
        StepRecord(18 + i, name, 0, dict.fromkeys(METRICS, value) | {"reward/mean": value})
        for name, values in rewards.items()
        for i, value in enumerate(values)
    ]
    result = Ladder(seeds=1, steps=20, names=tuple(rewards)).result(records)
    assert [rung.verdict for rung in result.rungs] == ["identical", "one seed"]
    assert result.to_json()["rungs"][1]["inside_reference_band"] is None
    print_ladder(result, plain=True)
    said = capsys.readouterr().out
    assert "GRPO, one seed, 20 steps" in said
    assert "one seed has no band" in said
    assert "inside\n" not in said


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (9, 1), (10, 1), (15, 1), (19, 1), (20, 2), (80, 8), (100, 10)])
def test_the_last_tenth_is_rounded_down_but_never_empty(steps: int, last: int) -> None:
    rows = [StepRecord(k, "s", seed, {}) for k in range(steps) for seed in (0, 1)]
    assert tenth(steps) == last
    assert [(row.step, row.seed) for row in last_tenth(rows)] == [
        (k, seed) for k in range(steps - last, steps) for seed in (0, 1)
    ]


def test_a_member_that_diverged_early_has_nothing_in_a_longer_runs_last_tenth() -> None:
    rows = [StepRecord(k, "s", 0, {}) for k in range(5)]
    assert last_tenth(rows, 100) == []
    assert last_tenth(rows) == rows[-1:]
    assert last_tenth([], 100) == last_tenth([]) == []


def test_a_run_of_fifteen_steps_ends_alike_in_its_summary_and_on_its_ladder() -> None:
    ladder = Ladder(seeds=1, steps=15, names=("v0_reference", "initial_v1"))
    metrics = ("reward/mean", "policy/entropy", "update/clip_rate", "skew/kl_k3", "skew/logprob_diff_mean", "lag/mean")
    rows = [
        StepRecord(k, scenario.name, 0, {key: number + k**2 for number, key in enumerate(metrics)})
        for k in range(15)
        for scenario in ladder.scenarios
    ]
    for rung, member in zip(ladder.result(rows).rungs, summarise(rows)["members"], strict=True):
        assert rung.reward_final == member["last_tenth"]["reward/mean"] == 14**2
        assert rung.kl_k3 == member["last_tenth"]["skew/kl_k3"]


@pytest.mark.slow
def test_with_a_wide_clip_initial_v1_learns_nothing_and_stale_weights_alone_end_below_where_they_began() -> None:
    values = {"engine.temperature": 0.6, "trainer.epsilon": 0.875, "trainer.epsilon_high": 7.0}
    ladder = Ladder(
        objective="grpo", seeds=2, steps=56, names=("v0_reference", "initial_v1", "plus_defaults"), values=values
    )
    ensemble, records = ladder.ensemble(), []
    while ensemble.alive:
        records += ensemble.step()
    result = ladder.result(records)
    first, last = (
        {
            name: np.mean([r.metrics["reward/mean"] for r in records if r.step in steps])
            for name, records in result.records.items()
        }
        for steps in (range(7), range(46, 56))
    )
    assert last["v0_reference"] > first["v0_reference"] + 0.2
    assert last["initial_v1"] < first["initial_v1"] + 0.1
    assert last["plus_defaults"] < first["plus_defaults"] - 0.1
