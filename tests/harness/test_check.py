"""`skewsim check`: each kind of input gets its verdict, in each form of output, however long the log is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skewsim.check import Checkup, Evidence, check, of_records, of_table
from skewsim.check.moments import Moments
from skewsim.check.page import WIDTH, markdown, text
from skewsim.check.sample import Sample
from skewsim.cli.main import main
from skewsim.diagnose import FIX, diagnose, normal
from skewsim.diagnose.causes import fix_for
from skewsim.errors import UserError
from skewsim.skew.metrics import skew_metrics
from skewsim.skew.noise_level import TELLING, levels_of, noise_of
from skewsim.skew.profile import SHIPPED
from skewsim.skew.sequences import SequenceLog, SequenceRecord, build_table
from skewsim.skew.tokens import TokenTable
from skewsim.skew.trends import trend

ROOT = Path(__file__).resolve().parents[2]


def records(
    count: int = 48, length: int = 60, *, sigma: float = 0.05, seed: int = 0, **shared: Any
) -> Iterator[SequenceRecord]:
    """Truthful sequences with healthy noise, four to a prompt, eight to a step."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        engine = -rng.exponential(0.8, length) - 1e-3
        noise = rng.normal(0, sigma, length) * np.sqrt(1.5) * (1 - np.exp(engine))
        yield SequenceRecord(
            tokens=rng.integers(0, 500, length),
            engine_logprobs=engine,
            trainer_logprobs=np.minimum(engine + noise - noise.var() / 2, -1e-6),
            prompt_key=f"p{number // 4}",
            places={"step": number // 8},
            **shared,
        )


def verl(path: Path, rows: Iterator[SequenceRecord], **changed: Callable[[SequenceRecord], Any]) -> Path:
    """A log with verl's field names; `changed` makes a field from a record."""
    lines = []
    for row in rows:
        assert row.trainer_logprobs is not None
        line = {
            "responses": row.tokens.tolist(),
            "rollout_log_probs": row.engine_logprobs.tolist(),
            "old_log_probs": row.trainer_logprobs.tolist(),
            "response_mask": [1] * len(row.tokens),
            "uid": row.prompt_key,
            "step": row.places["step"],
        }
        lines.append(json.dumps(line | {name: make(row) for name, make in changed.items()}))
    path.write_text("\n".join(lines) + "\n")
    return path


def metrics(path: Path, rows: list[dict[str, float]]) -> Path:
    path.write_text("".join(json.dumps({"step": step, **row}) + "\n" for step, row in enumerate(rows)))
    return path


def checked(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any]]:
    """(exit code, JSON) of the command."""
    code = main(["check", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def judged(rows: Iterator[SequenceRecord], **declared: Any) -> Checkup:
    return check(Evidence((), of_records(rows, {})), **declared)


# ---------------------------------------------------------------------------------------------------- the document

PAGE = (ROOT / "docs" / "check.md").read_text()


@pytest.mark.parametrize(
    "example", re.findall(r"```\n\$ skewsim (.*?)\n(.*?)\n```", PAGE, flags=re.DOTALL), ids=lambda found: found[0]
)
def test_the_examples_of_the_page_are_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, example: tuple[str, str]
) -> None:
    words, printed = example
    monkeypatch.chdir(ROOT)
    assert main(words.split()) == 1
    assert capsys.readouterr().out.rstrip("\n") == printed


def test_the_page_lists_every_key_of_the_json() -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE.partition("## For programs")[2].partition("In Python")[0]))
    assert set(judged(records()).to_json()) <= listed


# ------------------------------------------------------------------------------------------------- with a model


class AsTheTrainer:
    """A model that gives each token the probability that its trainer logged, or would have."""

    name, vocab_size = "model", 500

    def __init__(self, rows: list[SequenceRecord]) -> None:
        self.logprobs = {row.tokens.tobytes(): row.trainer_logprobs for row in rows}

    def logits(self, records: list[SequenceRecord], **_: object) -> Any:
        found = []
        for record in records:
            probability = np.exp(np.minimum(self.logprobs[record.tokens.tobytes()], -1e-6))
            logits = np.zeros((len(record.tokens), self.vocab_size), np.float32)
            others = np.log(self.vocab_size - 1)
            logits[np.arange(len(record.tokens)), record.tokens] = np.log(probability / (1 - probability)) + others
            found.append(logits)
        return np.concatenate(found)


def with_prompts() -> list[SequenceRecord]:
    return [replace(row, prompt_tokens=np.array([1, 2])) for row in records(12, 20, sigma=0.3)]


def test_with_a_model_the_engine_is_the_odd_one_out_where_trainer_and_model_agree() -> None:
    rows = with_prompts()
    found = check(Evidence((), of_records(iter(rows), {})), models=[AsTheTrainer(rows)])  # type: ignore[list-item]
    assert found.to_json()["odd_one_out"] == "engine"
    assert "the engine's: the other two agree" in text(found)


def test_a_model_stands_in_for_a_trainer_that_logged_nothing() -> None:
    rows = with_prompts()
    alone = [replace(row, trainer_logprobs=None) for row in rows]
    found = check(Evidence((), of_records(iter(alone), {})), models=[AsTheTrainer(rows)])  # type: ignore[list-item]
    skew = SequenceLog(tuple(rows)).table().skew
    assert found.rms == pytest.approx(np.sqrt((skew**2).mean()), rel=1e-3)


def test_a_model_without_a_log_of_tokens_is_one_line() -> None:
    with pytest.raises(UserError, match="nothing here has tokens"):
        check(Evidence(()), models=[AsTheTrainer([])])  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------- each kind of input


def test_a_healthy_log_is_normal_and_exits_with_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = checked(capsys, verl(tmp_path / "r.jsonl", records()), "--dtype", "bfloat16")
    assert (code, found["status"], found["normal"], found["problems"]) == (0, "normal", True, [])
    assert (found["framework"], found["kind"], found["trend"]["shape"]) == ("verl", "noise", "flat")
    assert found["thresholds"]["rows"], "verl's own rules at that level"
    assert {row["framework"] for row in found["thresholds"]["rows"]} == {"verl"}


def test_a_broken_log_is_wrong_exits_with_1_and_names_the_cause_with_the_framework_s_setting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    eos = {"rollout_log_probs": lambda row: [*row.engine_logprobs[:-1].tolist(), 0.0]}
    code, found = checked(capsys, verl(tmp_path / "r.jsonl", records(), **eos))
    assert (code, found["problems"][0]["name"]) == (1, "placeholder_logprobs")
    assert "verl: response_mask" in found["causes"][0]["fix"]
    assert "TRL" not in found["causes"][0]["fix"]


def test_a_log_without_a_mask_whose_zeros_give_it_away_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def engine(row: SequenceRecord) -> list[float]:
        return [*row.engine_logprobs[:20].tolist(), *[0.0] * 10, *row.engine_logprobs[30:].tolist()]

    path = verl(tmp_path / "r.jsonl", records(), rollout_log_probs=engine, response_mask=lambda row: None)
    code, found = checked(capsys, path)
    assert (code, found["problems"][0]["name"]) == (1, "mask_missing")


def test_a_log_of_the_engine_alone_cannot_be_told_and_says_what_to_switch_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = checked(capsys, verl(tmp_path / "r.jsonl", records(), old_log_probs=lambda row: None))
    assert (code, found["status"]) == (2, "unknown")
    assert any("calculate_log_probs" in line for line in found["more"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("rollout_corr/k3_kl", 1e-3), ("mismatch_kl/all/mean", 1e-3), ("token_mult_prob_error", 1.0149)],
)
def test_metrics_of_healthy_size_are_normal_under_every_framework_s_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, value: float
) -> None:
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", [{name: value}] * 8))
    assert (code, found["normal"], found["trend"]["shape"]) == (0, True, "flat")
    assert found["level"]["rms"] == pytest.approx(0.0447, rel=0.03)


def test_an_engine_that_stopped_taking_weights_is_a_jump_at_its_step(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mean = "sampling/sampling_logp_difference/mean"
    rows = [{mean: 0.012 if step < 5 else 0.3} for step in range(12)]
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", rows))
    assert (code, found["framework"], found["problems"][0]["name"], found["trend"]["at"]) == (1, "TRL", "jump", 5)
    assert "weights_not_delivered" in [cause["name"] for cause in found["candidates"]]


def test_a_summed_weight_that_has_collapsed_over_healthy_skew_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    row = {"train/sampling_importance_ratio": 0.0596, "gen_kl_error": 0.0027, "token_mult_prob_error": 1.024}
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", [row]))
    assert (code, found["normal"], [p["name"] for p in found["problems"]]) == (1, True, ["weight_collapsed"])


def test_a_k1_that_is_not_the_k3_is_a_report_of_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [{"rollout_corr/kl": -0.05, "rollout_corr/k3_kl": 0.004 + 1e-5 * step} for step in range(8)]
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", rows))
    assert (code, found["kind"]) == (1, "misreported")
    assert "raw_logprobs" in [cause["name"] for cause in found["candidates"]]


def test_a_k1_below_0_is_no_divergence_and_so_a_report_of_something_else(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", [{"vllm_kl": -0.1}] * 4))
    assert (code, found["kind"], found["problems"][0]["name"]) == (1, "misreported", "misreported")


def test_metrics_that_are_no_numbers_are_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"mismatch_kl/all/mean": 1e-3}] * 4 + [{"mismatch_kl/all/mean": float("nan")}]
    code, found = checked(capsys, metrics(tmp_path / "m.jsonl", rows))
    assert (code, [problem["name"] for problem in found["problems"]]) == (1, ["nonfinite"])


def test_a_folder_of_a_log_and_metrics_gives_one_verdict_on_both(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    verl(tmp_path / "rollouts.jsonl", records())
    metrics(tmp_path / "metrics.jsonl", [{"rollout_corr/k3_kl": 1.2e-3, "response_length/mean": 60}] * 6)
    code, found = checked(capsys, tmp_path)
    assert code == 0
    assert sorted(read["kind"] for read in found["read"]) == ["metrics", "token log"]
    apart = metrics(tmp_path / "metrics.jsonl", [{"rollout_corr/k3_kl": 8e-3}] * 6)
    assert any("different levels" in line for line in checked(capsys, tmp_path / "rollouts.jsonl", apart)[1]["watch"])
    jumped = checked(capsys, tmp_path / "rollouts.jsonl", ROOT / "docs/examples/trl-metrics.jsonl")[1]
    assert [cause["name"] for cause in jumped["candidates"]] == ["weights_not_delivered", "stale_replica"]


def test_of_several_frameworks_curves_each_is_told_by_its_file_and_in_its_framework_s_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [ROOT / "docs/examples/nemo-rl-metrics.json", ROOT / "docs/examples/trl-metrics.jsonl"]
    found = checked(capsys, *files)[1]
    words = {problem["name"]: problem["words"] for problem in found["problems"]}
    assert words["weight_collapsed"].startswith("nemo-rl-metrics.json: ")
    assert words["jump"].startswith("trl-metrics.jsonl: the skew jumps at step 3")
    fixes = {cause["name"]: cause["fix"] for cause in found["candidates"]}
    assert "TRL: " in fixes["weights_not_delivered"]
    assert "NeMo-RL: " not in fixes["weights_not_delivered"]
    assert any("0.0735 in nemo-rl-metrics.json, 1.2 in trl-metrics.jsonl" in line for line in found["watch"])
    main(["check", *map(str, files)])
    assert "normal?    in nemo-rl-metrics.json: yes: rms 0.0735" in capsys.readouterr().out
    asked = checked(capsys, *files, "--framework", "verl")[1]
    assert all("TRL: " not in cause["fix"] for cause in asked["candidates"])


def test_a_level_above_the_published_ones_says_up_to_which_it_is_usual() -> None:
    for dtype in (None, "bfloat16"):
        assert "to 0.0511; up to 0.12 is usual)" in normal.usual(0.07, dtype, None)
        assert "to 0.0511)" in normal.usual(0.05, dtype, None)
        assert normal.usual(0.2, dtype, None).endswith("to 0.0511)")


def test_a_profile_of_ours_is_compared_with_what_is_published(capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted(SHIPPED.glob("*.json"))[0]
    code, found = checked(capsys, path)
    assert [read["kind"] for read in found["read"]] == ["profile"]
    assert code == (1 if found["normal"] is False else 0)


def test_a_run_folder_of_ours_is_judged_by_its_steps_and_sequences(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "scenario.toml").write_text("")
    row = {"scenario": "initial_v1", "seed": 0, "schema_version": 1, "skew/kl_k3": 1e-3, "skew/bias": -1e-3}
    metrics(tmp_path / "steps.jsonl", [row] * 6)
    build = SequenceLog(tuple(records())).save(tmp_path / "sequences.jsonl")
    code, found = checked(capsys, tmp_path)
    assert (build, code) == (48, 0)
    assert sorted(read["kind"] for read in found["read"]) == ["metrics", "token log"]


def test_a_token_table_is_read_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build_table(records()).save(tmp_path / "t.npz")
    assert checked(capsys, tmp_path / "t.npz")[0] == 0


# --------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("rollout_log_probs", "rollout_logs"),
        lambda text: text.replace('"responses": [', '"responses": ["a", ', 1),
        lambda text: text.replace("[1, ", "[1, 1, ", 1).replace('"response_mask": [1', '"response_mask": [[1]', 1),
        lambda text: "",
        lambda text: "{",
    ],
)
def test_a_mutated_file_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: Callable[[str], str]
) -> None:
    path = verl(tmp_path / "r.jsonl", records(4))
    path.write_text(damage(path.read_text()))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert str(path) in said.err


@pytest.mark.parametrize("words", [[], ["nowhere.jsonl"], ["README.md"], ["docs/images"]])
def test_what_cannot_be_judged_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["check", *words]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_refusal_names_its_file_and_the_command_that_would_read_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, log = tmp_path / "verl.yaml", tmp_path / "log.jsonl"
    config.write_text("actor_rollout_ref: {rollout: {temperature: 1.0}}\n")
    log.write_text('{"ids": [1, 2], "lps": [-0.1, -0.2]}\n')
    for path, command in ((config, f"skewsim check --config {config}"), (log, f"skewsim import {log} --column ")):
        assert main(["check", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"skewsim: {path}: ")
        assert command in said


# ------------------------------------------------------------------------------------------------------ the page


def test_the_page_fits_80_columns_and_markdown_has_the_same_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    eos = {"rollout_log_probs": lambda row: [*row.engine_logprobs[:-1].tolist(), 0.0]}
    path = verl(tmp_path / "r.jsonl", records(), **eos)
    assert main(["check", str(path)]) == main(["check", str(path), "--markdown"]) == 1
    page, _, marked = capsys.readouterr().out.partition("### ")
    assert all(len(line) <= WIDTH for line in page.splitlines() if str(tmp_path) not in line)
    assert page.startswith("WRONG: placeholder_logprobs")
    assert marked.startswith("skewsim check: WRONG: placeholder_logprobs")
    assert "**cause**" in marked


def test_the_places_of_a_skew_are_a_table_in_both_forms() -> None:
    rows = (replace(r, trainer_logprobs=r.trainer_logprobs - np.where(np.arange(60) > 30, 0.5, 0)) for r in records())  # type: ignore[operator]
    found = judged(rows)
    assert "| place (counted from 0) | share | rms in | rms out | tokens |" in markdown(found)
    assert any(line.startswith("where      place") for line in text(found).splitlines())
    assert all(len(line) <= WIDTH for line in text(found).splitlines())


def test_markdown_escapes_what_it_would_take_for_its_own() -> None:
    found = judged(records())
    named = replace(found, watch=("rollout_is_mean <b> *x*",))
    assert r"rollout\_is\_mean \<b\> \*x\*" in markdown(named)
    assert "rollout_is_mean <b> *x*" in text(named)


# -------------------------------------------------------------------------------------------------- what is counted


def test_the_moments_of_chunks_are_the_metrics_of_the_whole() -> None:
    rows = list(records(20, 40))
    whole, parts = build_table(rows), Moments()
    for start in range(0, 20, 5):
        parts.add(build_table(rows[start : start + 5], numbers=range(start, start + 5)))
    shape = (20, 40)
    oracle = skew_metrics(
        whole.trainer_logprob.reshape(shape), whole.engine_logprob.reshape(shape), np.ones(shape, dtype=bool)
    )
    found = parts.to_json()
    for ours, theirs in (
        ("mean_abs", "logprob_diff_mean"),
        ("k3", "kl_k3"),
        ("bias", "bias"),
        ("worst", "logprob_diff_max"),
    ):
        assert found[ours] == pytest.approx(oracle[theirs], rel=1e-9)
    assert (parts.tokens, parts.sequences) == (800, 20)
    steps, rms, _ = parts.curve()
    assert steps.tolist() == [0, 1, 2]
    assert rms[0] == pytest.approx(np.sqrt((whole.skew[:320] ** 2).mean()))


def test_one_value_that_is_no_number_is_found_in_a_sequence_that_the_sample_leaves_out() -> None:
    rows = list(records(400, 30))
    kept = {number for _, number, _ in sample(rows, 3000).kept}
    lost = next(number for number in range(400) if number not in kept)
    engine = rows[lost].engine_logprobs.copy()
    engine[7] = np.nan
    rows[lost] = replace(rows[lost], engine_logprobs=engine)
    tokens = of_records(iter(rows), {}, most=3000)
    assert (tokens.moments.impossible, tokens.sampled) == (1, True)
    found = check(Evidence((), tokens), dtype="bfloat16")
    assert [problem.name for problem in found.problems] == ["placeholder_logprobs"]
    assert "1 of the engine's 12,000 values is missing" in found.problems[0].words


def test_a_value_that_is_no_number_has_no_share_of_the_square_and_zeros_are_told_with_their_limit() -> None:
    rows = list(records())
    engine = rows[3].engine_logprobs.copy()
    engine[7] = np.nan
    nan = judged(iter([*rows[:3], replace(rows[3], engine_logprobs=engine), *rows[4:]]))
    assert "placeholder_logprobs (no share: " in " ".join(text(nan).split())
    assert "1 engine value is no number" in text(nan)
    ends = (replace(row, engine_logprobs=np.append(row.engine_logprobs[:-1], 0.0)) for row in rows)
    zeros = judged(ends)
    assert "of the mean square): values that are no" in " ".join(text(zeros).split())
    assert any("exactly 0 where the other side is below -0.02" in line for line in zeros.values)


def test_a_broken_sequence_that_the_sample_leaves_out_is_told_with_its_number() -> None:
    rows = list(records(400, 30))
    kept = {number for _, number, _ in sample(rows, 3000).kept}
    lost = next(number for number in range(400) if number not in kept)
    rows[lost] = replace(rows[lost], trainer_logprobs=rows[lost].trainer_logprobs - 3)  # type: ignore[operator]
    found = check(Evidence((), of_records(iter(rows), {}, most=3000)), dtype="bfloat16")
    assert [problem.name for problem in found.problems] == ["rare"]
    assert f"of sequence {lost}" in found.problems[0].words
    assert "of 400 sequences" in found.sample


def sample(rows: list[SequenceRecord], most: int) -> Sample:
    found = Sample(most)
    for row in rows:
        found.add(row)
    return found


def test_a_sample_is_bounded_keeps_prompts_together_and_depends_on_the_log_alone() -> None:
    rows = list(records(400, 30))
    found = sample(rows, 3000)
    assert 1000 <= found.tokens <= 3000
    assert found.tokens == sum(len(record.tokens) for _, _, record in found.kept)
    prompts = [record.prompt_key for _, _, record in found.kept]
    assert all(prompts.count(key) == 4 for key in set(prompts))
    assert [n for _, n, _ in found.kept] == [n for _, n, _ in sample(rows, 3000).kept]
    longer = sample([*rows, *records(400, 30, seed=1)], 3000)
    assert longer.tokens <= 3000


def test_a_sample_knows_the_numbers_that_its_sequences_have_in_the_log() -> None:
    """One replica of three is off: in a sample, too, it is told by the number modulo 3."""
    rows = [
        replace(row, trainer_logprobs=row.trainer_logprobs - 0.4) if number % 3 == 1 else row  # type: ignore[operator]
        for number, row in enumerate(records(300, 30, sigma=0.01))
    ]
    log = sample(rows, 4500).log({})
    assert log.meta["sampled_from"] == 300
    found = diagnose(log)
    assert any((p.column, p.value) == ("sequence modulo", "1 mod 3") for p in found.where)


def test_a_sampled_table_keeps_whole_sequences_and_their_numbers() -> None:
    from skewsim.check.sample import sample_of

    table = build_table(records(100, 30))
    kept = sample_of(table, 900)
    assert len(kept) <= 900
    assert np.unique(kept.sequence, return_counts=True)[1].tolist() == [30] * (len(kept) // 30)
    first = int(kept.sequence[0])
    assert kept.engine_logprob[0] == table.engine_logprob[table.sequence == first][0]
    assert isinstance(of_table(table).source, TokenTable)


# ---------------------------------------------------------------------------------------------------------- trends


STEPS = np.arange(40)


def noisy(values: Any, seed: int = 0) -> Any:
    return np.asarray(values) * np.exp(np.random.default_rng(seed).normal(0, 0.08, 40))


@pytest.mark.parametrize("seed", range(5))
def test_a_trend_is_told_by_its_shape(seed: int) -> None:
    lag = np.random.default_rng(seed + 50).integers(0, 8, 40)
    assert trend(STEPS, noisy(np.full(40, 0.05), seed)).shape == "flat"
    assert trend(STEPS, noisy(0.02 + 0.004 * STEPS, seed)).shape == "growing"
    assert trend(STEPS, noisy(0.2 / (1 + STEPS), seed)).shape == "falling"
    jump = trend(STEPS, noisy(np.where(STEPS < 17, 0.05, 0.2), seed))
    assert (jump.shape, jump.at) == ("jump", 17)
    assert jump.factor == pytest.approx(4, rel=0.1)
    assert trend(STEPS, noisy(0.03 + 0.02 * lag, seed), lag=lag).shape == "follows_lag"
    assert trend(STEPS, noisy(0.03 + 0.004 * STEPS, seed), lag=lag).shape == "growing"


def test_scatter_is_no_trend() -> None:
    rng = np.random.default_rng(3)
    shapes = [trend(STEPS[:n], 0.05 * np.exp(rng.normal(0, 0.25, n))).shape for n in (4, 8, 40) for _ in range(40)]
    assert sum(shape != "flat" for shape in shapes) <= 3
    assert trend([1, 2], [0.1, 0.2]).shape == "too_short"


def test_the_order_of_steps_and_values_that_are_no_numbers_change_no_trend() -> None:
    values = noisy(np.where(STEPS < 17, 0.05, 0.2))
    order = np.random.default_rng(1).permutation(40)
    assert trend(STEPS[order], values[order]) == trend(STEPS, values)
    assert trend([*STEPS, 41], [*values, np.nan]) == trend(STEPS, values)


@pytest.mark.parametrize("metric", TELLING)
def test_levels_of_many_values_are_the_level_of_each(metric: str) -> None:
    zero = 1.0 if metric in ("mult_prob_error", "ess") else 0.0
    small = np.array([3e-4, 1e-3, 4e-3, 1e-2])
    values = zero - small if metric == "ess" else zero + small
    each = [noise_of(10, metric=f"{metric}={value!r}").noise for value in values.tolist()]
    assert levels_of(metric, values) == pytest.approx(each, rel=0.02)


def test_a_fix_for_one_framework_has_no_leftover_of_another_s_name() -> None:
    names = ("vLLM", "PipelineRL", "verl", "TRL", "prime-rl", "slime", "Miles", "NeMo-RL", "SkyRL")
    for cause, fix in FIX.items():
        for framework in names:
            others = [name for name in names if name not in ("vLLM", framework)]
            told = fix_for(fix, framework)
            assert not told.endswith(tuple(f"{name}," for name in others)), (cause, framework)


def test_check_needs_no_torch(tmp_path: Path) -> None:
    path = verl(tmp_path / "r.jsonl", records(8))
    blocked = "import sys; sys.modules['torch'] = None; from skewsim.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "check", str(path), "--dtype", "bfloat16"], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
