"""The studies that ship: their files are sweeps, their stored results are of those files, and their directions hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skewsim.runs.outcome import judge
from skewsim.sweeps.chunk import Chunk, train_chunk
from skewsim.sweeps.plan import Sweep, load_sweep

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "skewsim/data/studies").glob("*.toml"))
RESULTS = ROOT / "docs/studies"
PAGE = (ROOT / "docs/studies.md").read_text()


def results(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def cell(name: str, *labels: str) -> dict[str, Any]:
    return next(dict(each) for each in results(name)["cells"] if tuple(each["labels"]) == labels)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_studys_results_are_of_its_file_and_it_has_its_place_on_the_page(file: Path) -> None:
    sweep, found = load_sweep(file), results(file.stem)
    assert [axis["values"] for axis in found["axes"]] == [[point.label for point in axis] for axis in sweep.axes]
    assert [tuple(each["labels"]) for each in found["cells"]] == [each.labels for each in sweep.cells]
    assert f"skewsim/data/studies/{file.name}" in PAGE
    figures = re.findall(rf"\]\(studies/({file.stem}-[a-z_]+\.png)\)", PAGE)
    assert figures
    assert all((RESULTS / name).is_file() for name in figures)


@pytest.mark.parametrize("objective", ["grpo", "gspo", "ppo"])
def test_in_the_stored_results_raw_logprobs_collapse_more_the_lower_the_temperature(objective: str) -> None:
    raw = [cell("raw-temperature", t, objective, "raw_logprobs")["probability"] for t in ("0.5", "0.7", "0.85", "1")]
    assert raw == sorted(raw, reverse=True)
    assert raw[0] == 1
    assert raw[-1] < 0.5
    assert raw[1] > cell("raw-temperature", "0.7", objective, "processed_logprobs")["probability"]


def curves(
    sweep: Sweep,
    labels: tuple[str, ...],
    seeds: tuple[int, ...],
    steps: int,
    *metrics: str,
) -> list[dict[str, Any]]:
    """A cell's first steps, by seed."""
    scenario = next(each.scenario for each in sweep.cells if each.labels == labels).with_values({"steps": steps})
    chunk = Chunk(scenario, seeds, ())
    found = train_chunk(chunk)
    rows = [[n for n, key in enumerate(found["member"]) if key == member] for member in chunk.keys]
    return [{name: found[name][own] for name in ("reward/mean", "skew/kl_k3", *metrics)} for own in rows]


@pytest.mark.slow
def test_raw_logprobs_collapse_at_a_low_temperature_and_k3_says_so_before_the_reward_falls() -> None:
    """The directions of both studies at a small scale: GSPO, temperature 0.7, three seeds, 26 steps."""
    sweep = load_sweep(ROOT / "skewsim/data/studies/raw-temperature.toml")
    raw, processed = (curves(sweep, ("0.7", "gspo", which), (0, 1, 2), 26) for which in ("raw_logprobs", "processed_logprobs"))  # fmt: skip
    assert all(judge(each["reward/mean"], steps=26).collapsed is not None for each in raw)
    assert all(judge(each["reward/mean"], steps=26).collapsed is None for each in processed)
    highest = max(each["skew/kl_k3"].max() for each in processed)
    assert all(each["skew/kl_k3"][0] > highest for each in raw), "from the first step on"


@pytest.mark.parametrize("clip", ["0.0004", "0.02", "0.2"])
def test_in_the_stored_results_strong_noise_breaks_grpo_at_every_clip_range_and_never_gspo(clip: str) -> None:
    healthy, strong = (cell("noise-clip", noise, clip, "grpo") for noise in ("0", "1"))
    assert strong["final_reward"] < healthy["final_reward"] / 3
    assert strong["collapsed"] >= 7
    healthy, strong = (cell("noise-clip", noise, clip, "gspo") for noise in ("0", "1"))
    assert strong["final_reward"] > healthy["final_reward"] - 0.1
    assert strong["collapsed"] == 0


def test_noise_alone_fills_a_narrow_clip_under_grpo_and_under_gspo() -> None:
    """One step of the study's own cells: the share of ratios outside of the clip, before and with noise."""
    sweep = load_sweep(ROOT / "skewsim/data/studies/noise-clip.toml")
    for objective in ("grpo", "gspo"):
        quiet, noisy = (
            curves(sweep, (noise, "0.0004", objective), (0, 1), 1, "update/clip_rate") for noise in ("0", "0.5")
        )
        assert all(each["update/clip_rate"][0] < 0.6 for each in quiet)
        assert all(each["update/clip_rate"][0] > 0.95 for each in noisy)


LENGTHS = ("4", "8", "16", "32", "64")
BOUNDS = ("0.999 to 1.001 (verl)", "0.99 to 1.01 (SkyRL)")


@pytest.mark.parametrize("noise", ["0.025", "0.05", "0.1", "0.2", "0.4"])
def test_in_the_stored_results_sequence_weights_die_with_length_and_geometric_rejection_starves_without_it(
    noise: str,
) -> None:
    wide = [cell("length", length, noise, BOUNDS[1])["means"] for length in LENGTHS]
    left = [each["ratio/ess_seq"] for each in wide]
    assert left == sorted(left, reverse=True)
    assert wide[-1]["correction/kept"] > wide[0]["correction/kept"]
    narrow = [cell("length", length, noise, BOUNDS[0])["means"]["correction/kept"] for length in LENGTHS]
    assert all(few < many["correction/kept"] for few, many in zip(narrow, wide, strict=True))


def test_longer_responses_leave_less_to_sequence_weights_and_more_to_geometric_rejection() -> None:
    """One step of the study's own cells."""
    sweep = load_sweep(ROOT / "skewsim/data/studies/length.toml")
    names = ("ratio/ess_seq", "correction/kept")
    short, long = (curves(sweep, (length, "0.1", BOUNDS[1]), (0, 1), 1, *names) for length in ("4", "32"))
    for few, many in zip(short, long, strict=True):
        assert few["ratio/ess_seq"][0] > many["ratio/ess_seq"][0] + 0.05
        assert few["correction/kept"][0] < many["correction/kept"][0] - 0.1


def test_in_the_stored_results_sequence_weights_help_against_lag_alone_and_geometric_rejection_against_nothing() -> (
    None
):
    reward = {tuple(each["labels"]): each["final_reward"] for each in results("corrections")["cells"]}
    for correction in ("none", "token TIS", "token MIS"):
        assert reward["lag 8", "sequence TIS"] > reward["lag 8", correction] + 0.2
        assert reward["lag 8", "engine's old"] > reward["lag 8", correction] + 0.2
    for skew in ("noise", "stale prefix"):
        assert all(reward[skew, "none"] > reward[skew, c] + 0.2 for c in ("sequence TIS", "sequence MIS", "geometric"))
    for skew in ("raw logprobs", "noise", "lag 8", "stale prefix"):
        others = [value for (where, what), value in reward.items() if where == skew and what != "geometric"]
        assert reward[skew, "geometric"] < max(others) - 0.2


@pytest.mark.slow
def test_a_lag_of_eight_hurts_less_with_weights_of_whole_sequences_and_noise_hurts_more() -> None:
    """The direction of the study of corrections at a small scale: two seeds, 24 steps."""
    sweep = load_sweep(ROOT / "skewsim/data/studies/corrections.toml")

    def reward(skew: str, correction: str) -> float:
        return float(np.mean([each["reward/mean"][-6:] for each in curves(sweep, (skew, correction), (0, 1), 24)]))

    assert reward("lag 8", "sequence TIS") > reward("lag 8", "none")
    assert reward("noise", "sequence TIS") < reward("noise", "none")


@pytest.mark.parametrize("lag", ["1", "8"])
@pytest.mark.parametrize("updates", ["1", "4", "8"])
def test_in_the_stored_results_abort_costs_reward_at_every_lag_and_lag_fills_the_clip(lag: str, updates: str) -> None:
    keep, wait, abort = (cell("lag-updates", lag, updates, mode) for mode in ("keep", "wait", "abort"))
    assert abort["final_reward"] < min(keep["final_reward"], wait["final_reward"]) - 0.08
    assert abs(keep["final_reward"] - wait["final_reward"]) < 0.08
    fresh = cell("lag-updates", "1", updates, "keep")["means"]["update/clip_rate"]
    assert cell("lag-updates", "8", updates, "keep")["means"]["update/clip_rate"] > 3 * fresh


def test_under_abort_half_of_the_responses_are_cut_off_and_earn_nothing() -> None:
    """Three steps of the study's own cells; the first has no update."""
    sweep = load_sweep(ROOT / "skewsim/data/studies/lag-updates.toml")
    keep, abort = (curves(sweep, ("1", "1", mode), (0, 1), 3, "response/aborted") for mode in ("keep", "abort"))
    for whole, cut in zip(keep, abort, strict=True):
        assert not whole["response/aborted"].any()
        assert cut["response/aborted"][0] == 0
        assert (cut["response/aborted"][1:] > 0.1).all()
        assert cut["reward/mean"][1:].mean() < whole["reward/mean"][1:].mean()
