"""Published runs: every row is possible and has a source, conversions follow from simulated noise, places bracket."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import skewsim
from skewsim.cli.main import main
from skewsim.cli.published import as_markdown
from skewsim.diagnose import normal
from skewsim.errors import FileFormatError, UserError
from skewsim.skew import published
from skewsim.skew.mixture import SCALES, SHARES, sigma_of
from skewsim.skew.placing import CONVERSIONS, SPREAD, place, rms_of
from skewsim.skew.published import DTYPES, KINDS, RANGES, UNITS, PublishedRun, judge, published_runs, read_runs

ROOT = Path(__file__).parents[2]
RUNS = published_runs()
ROWS = [(run, figure) for run in RUNS for figure in run.figures]
NATS = ("rms", "logprob_diff_mean", "logprob_diff_std", "logprob_diff_max", "bias", "kl_k1", "kl_k3", "kl")


# ------------------------------------------------------------------------------------------------ the data


@pytest.mark.parametrize(("run", "figure"), ROWS, ids=[f"{run.id}-{figure.metric}" for run, figure in ROWS])
def test_every_figure_has_its_unit_and_a_possible_value(run: PublishedRun, figure: published.Figure) -> None:
    low, high = RANGES[figure.metric]
    assert low <= figure.value <= high
    assert figure.unit == ("nats" if figure.metric in NATS else "1")
    if figure.metric in ("kl_k3", "rms", "logprob_diff_mean"):
        assert figure.value >= 0  # a mean of what cannot be negative
    if figure.metric == "rms":
        assert figure.value < 20


@pytest.mark.parametrize("run", RUNS, ids=[run.id for run in RUNS])
def test_every_run_says_what_it_is_of_and_where_it_is_published(run: PublishedRun) -> None:
    assert run.size is None or 0.01 < run.size < 2000  # billions
    assert run.active is None or (run.kind == "moe" and 0 < run.active < (run.size or 0))
    assert {run.engine_dtype, run.trainer_dtype, run.dtype} <= {*DTYPES, None}
    url = run.source.url
    assert (
        re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[\w./#-]*)?", url)
        or (ROOT / (url or run.source.title)).is_file()
        or (not url and run.source.title == "MiMo-V2.6, its public dashboard")
    )
    named = re.search(r"(\d+(?:\.\d+)?)B(?:-A(\d+)B)?", run.model)  # a size in a model's name is its size
    if named:
        assert (run.size, run.active) == (float(named[1]), float(named[2]) if named[2] else None)


@pytest.mark.parametrize("run", RUNS, ids=[run.id for run in RUNS])
def test_figures_of_one_run_agree_with_each_other(run: PublishedRun) -> None:
    """Where a run has several figures, they are of one noise: a slip of a decimal place would show."""
    size, mean, worst = (run.values.get(key) for key in ("rms", "logprob_diff_mean", "logprob_diff_max"))
    if size is not None and mean is not None:
        assert mean <= size
    if worst is not None:
        assert worst >= (size or mean or 0)
    k3, probabilities = run.values.get("kl_k3"), run.values.get("probs_diff_mean")
    if size is not None and k3 is not None:
        assert k3 == pytest.approx(size**2 / 2, rel=0.1)
    if probabilities and k3:
        assert probabilities**2 / 8 < k3  # Pinsker's inequality, for the sampled token alone


def test_there_are_many_and_no_run_is_there_twice() -> None:
    assert len(ROWS) >= 100
    assert len({run.id for run in RUNS}) == len(RUNS)
    assert len({(run.source, run.name, run.engine, run.trainer, *run.figures) for run in RUNS}) == len(RUNS)
    assert {run.kind for run in RUNS} >= set(KINDS)


def test_every_row_is_in_the_document() -> None:
    page = (ROOT / "docs" / "published.md").read_text()
    table = page.partition("<!-- published: begin -->\n")[2].partition("\n<!-- published: end -->")[0]
    assert table == as_markdown(RUNS), "make it anew: skewsim published --markdown"


def test_what_was_measured_here_stands_in_the_document_that_says_how() -> None:
    page = (ROOT / "docs" / "measuring.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| float32,", "| bfloat16,"))]
    here = [run for run in RUNS if run.source.url == "docs/measuring.md"]
    assert len(rows) == len(here)
    for line, run in zip(rows, here, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert [float(cells[2]), float(cells[3])] == [run.values["rms"], run.values["kl_k3"]]


BROKEN = {
    "a negative divergence": ("figures = { kl_k3 = -0.1 }", "kl_k3 = -0.1 is outside 0 to 20"),
    "an rms that is none": ("figures = { rms = 21.0 }", "rms = 21 is outside"),
    "an unknown metric": ("figures = { surprise = 1.0 }", "surprise is no metric"),
    "no figure": ("figures = { }", "figures"),
    "a dtype that is not known": ('engine_dtype = "bf16"\nfigures = { rms = 0.1 }', "engine_dtype"),
    "a size in millions": ("size = 135000000\nfigures = { rms = 0.1 }", "size"),
    "experts in a dense model": ('kind = "dense"\nsize = 30\nactive = 3\nfigures = { rms = 0.1 }', "no mixture"),
    "a field that is none": ('colour = "red"\nfigures = { rms = 0.1 }', "colour"),
    "no figures at all": ("", "figures"),
}


@pytest.mark.parametrize(("entry", "words"), BROKEN.values(), ids=BROKEN)
def test_a_file_with_a_mistake_is_one_line(entry: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.toml"
    path.write_text(f'[sources.s]\ntitle = "S"\n[[runs]]\nid = "a"\nsource = "s"\nmodel = "M"\n{entry}\n')
    with pytest.raises(FileFormatError, match=words) as caught:
        read_runs(path)
    assert "\n" not in str(caught.value)


def test_a_source_that_is_missing_and_an_id_twice_are_named(tmp_path: Path) -> None:
    path, run = tmp_path / "runs.toml", '[[runs]]\nid = "a"\nsource = "s"\nmodel = "M"\nfigures = { rms = 0.1 }\n'
    path.write_text(run.replace('"s"', '"t"') + '[sources.s]\ntitle = "S"\n')
    with pytest.raises(FileFormatError, match="incomplete"):
        read_runs(path)
    path.write_text(run * 2 + '[sources.s]\ntitle = "S"\n')
    with pytest.raises(FileFormatError, match="same id"):
        read_runs(path)


def test_the_runs_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RUNS[0].model = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("precision", "rms"),
    [("bfloat16", 0.0449), ("bfloat16 with a float32 head", 0.031), ("float16", 0.0057), ("float32", 0.0024),
     ("fp8 keys and values", 0.178)],
)  # fmt: skip
def test_each_precision_has_the_yardstick_it_always_had(precision: str, rms: float) -> None:
    found = judge(precision, rms)
    assert (found.verdict, found.published and found.published.values["rms"]) == ("usual", rms)
    assert json.loads(json.dumps(found.to_json()))["published"]["value"] == rms
    assert str(judge("int4", rms)).startswith("nothing published for int4")


# ------------------------------------------------------------------------------------------------ conversions


def simulated(sigma: float) -> np.ndarray:
    """The skew of many tokens in the published shares and scales by probability, truthful: E exp(d) = 1."""
    rng = np.random.default_rng(5)
    scale = SCALES[rng.choice(len(SHARES), 1_000_000, p=SHARES / SHARES.sum())] * sigma
    return rng.standard_normal(len(scale)) * scale - scale**2 / 2


OF = {
    "rms": lambda d: np.sqrt((d**2).mean()),
    "kl_k3": lambda d: (np.expm1(d) - d).mean(),
    "kl_k1": lambda d: -d.mean(),
    "chi2_token": lambda d: np.expm1(2 * d).mean(),
    "ess": lambda d: np.exp(d).mean() ** 2 / np.exp(2 * d).mean(),
    "logprob_diff_std": lambda d: np.abs(d).std(),
    "logprob_diff_mean": lambda d: np.abs(d).mean(),
    "mult_prob_error": lambda d: np.exp(np.abs(d)).mean(),
}


@pytest.mark.parametrize("sigma", [0.02, 0.045, 0.15])
def test_every_conversion_gives_the_rms_of_simulated_noise(sigma: float) -> None:
    d = simulated(sigma)
    assert set(OF) == set(CONVERSIONS)
    for metric, formula in OF.items():
        found = rms_of(metric, float(formula(d)))
        noisy = metric == "kl_k1" and sigma < 0.03  # a mean of both signs, of which little is left
        assert found == pytest.approx(sigma, rel=0.2 if noisy else 0.12 if sigma > 0.1 else 0.05), metric


@pytest.mark.parametrize("metric", sorted(set(CONVERSIONS) - {"rms", "logprob_diff_std"}))
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.15])
def test_conversions_agree_with_what_advise_takes_a_metric_for(metric: str, sigma: float) -> None:
    assert sigma_of(metric, CONVERSIONS[metric].from_rms(sigma)) == pytest.approx(
        sigma, rel=0.12 if sigma > 0.1 else 0.05
    )


@given(st.sampled_from(sorted(CONVERSIONS)), st.floats(1e-4, 1.0))
def test_a_conversion_and_its_inverse_cancel(metric: str, sigma: float) -> None:
    assert rms_of(metric, CONVERSIONS[metric].from_rms(sigma)) == pytest.approx(sigma, rel=1e-5)


def test_the_spread_of_mean_and_rms_is_the_published_one() -> None:
    values = published.find_run("qwen3-1.7b-bf16").values
    assert values["rms"] / values["logprob_diff_mean"] == SPREAD


@pytest.mark.parametrize(
    ("metric", "value"), [("kl_k3", -1.0), ("kl_k1", -0.1), ("ess", 1.1), ("mult_prob_error", 0.5), ("pearson", 0.9)]
)
def test_a_value_that_no_noise_has_stands_for_no_rms(metric: str, value: float) -> None:
    assert rms_of(metric, value) is None


# ------------------------------------------------------------------------------------------------ placing


@given(
    st.sampled_from(sorted(UNITS)),
    st.floats(-1, 30) | st.sampled_from([figure.value for _, figure in ROWS]),
    st.sampled_from([None, *DTYPES]),
    st.sampled_from([None, *KINDS]),
)
def test_neighbours_bracket_the_value_and_are_of_its_like(
    metric: str, value: float, dtype: str | None, kind: str | None
) -> None:
    found = place(metric, value, dtype=dtype, model_kind=kind)
    assert (found.low is None) == (found.runs == 0)
    for side in filter(None, (found.below, found.above)):
        assert found.low <= side.value <= found.high
        assert side.run.role == "usual"
        assert dtype in (None, side.run.dtype)
        assert kind in (None, side.run.kind)
        assert metric in side.run.values or side.converted_from in CONVERSIONS
    if found.below is not None:
        assert found.below.value <= value
    if found.above is not None:
        assert value <= found.above.value
    if found.runs:
        assert (found.below is None) == (value < found.low)
        assert (found.above is None) == (value > found.high)
    sentence = found.sentence
    assert re.match(r"\w+ [-\d.e+]+: (between|as|below|above|nothing)", sentence)
    assert not any(slip in sentence for slip in ("None", "nan", "  "))
    assert json.loads(json.dumps(found.to_json()))["sentence"] == sentence


@given(st.floats(1e-3, 0.3), st.floats(1e-3, 0.3))
def test_a_larger_value_is_placed_no_lower(a: float, b: float) -> None:
    low, high = sorted((a, b))
    first, second = (place("rms", v, dtype="bfloat16", model_kind="dense") for v in (low, high))
    if first.below is not None:
        assert second.below is not None
        assert second.below.value >= first.below.value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rms", 0.046, "bfloat16", "dense"), "rms 0.046: between Qwen3-1.7B (0.0449) and SmolLM2-135M-Instruct here (0.047), among"),
        (("rms", 0.0449, "bfloat16", "dense"), "rms 0.0449: as Qwen3-1.7B (0.0449), among"),
        (("rms", 9, "bfloat16", "dense"), "rms 9: above all"),
        (("rms", 1e-9, "float32", "dense"), "rms 1e-09: below all"),
        (("rms", 0.1, "float16", "moe"), "nothing is published in float16 for mixtures of experts to compare it with"),
        (("kl_k3", 0.001, "bfloat16", "moe"), "kl_k3 0.001: between DeepSeek-V4-Flash, math (0.00087) and"),
        (("rms", 0.04, "bfloat16", "moe"), "(~0.0257)"),
        (("ppl_ratio", 1.0, None, None), "below DeepSeek-V4 (1), the only published run"),
    ],
)  # fmt: skip
def test_the_sentence_reads_well(arguments: tuple[str, float, str | None, str | None], words: str) -> None:
    metric, value, dtype, kind = arguments
    assert words in place(metric, value, dtype=dtype, model_kind=kind).sentence


def test_a_metric_goes_by_any_of_its_names_and_is_turned_round_where_its_name_means_the_opposite() -> None:
    names = ("kl_k3", "skew/kl_k3", "mismatch_kl/all/mean", "rollout_corr/k3_kl", "train/gen_kl_error")
    assert len({place(name, 0.001).sentence for name in names}) == 1
    assert skewsim.place("rms", 0.05) == place("rms", 0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_usual_is_said_beside_the_published_range(dtype: str, kind: str) -> None:
    most = normal.most(dtype, kind)
    usual, above = (normal.usual(rms, dtype, kind) for rms in (most, most * 1.01))
    low, high = map(float, re.findall(r"published ([-\d.e]+) to ([-\d.e]+)[;)]", usual)[0])
    assert low <= high
    assert high <= most  # the limit leaves room above what is published
    assert ("usual for" in usual, "above what is usual for" in above) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("surprise", 1.0), {}, "metric surprise is not known; allowed: rms"),
        (("reward", 1.0), {}, "metric reward is not known"),
        (("rms", math.nan), {}, "rms=nan"),
        (("rms", 1.0), {"dtype": "bf16"}, "dtype='bf16' is not known; allowed: float32"),
        (("rms", 1.0), {"model_kind": "mixture"}, "model-kind='mixture' is not known; allowed: dense, moe"),
    ],
)
def test_a_mistake_in_a_placing_is_one_line(arguments: tuple[str, float], options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        place(*arguments, **options)


# ------------------------------------------------------------------------------------------------ the command


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["published", *arguments]) == 0
    return capfd.readouterr().out


def test_the_table_fits_80_columns_and_every_source_stands_below_it(capfd: pytest.CaptureFixture[str]) -> None:
    text = printed(capfd)
    assert max(map(len, text.splitlines())) <= 80
    cited = {int(number) for number in re.findall(r" \[(\d+)\]$", text, flags=re.MULTILINE)}
    listed = [int(number) for number in re.findall(r"^\[(\d+)\] ", text, flags=re.MULTILINE)]
    assert listed == sorted(cited) == list(range(1, len(listed) + 1))
    assert sum(bool(re.match(r" *[-\d.e]+ +.* \[\d+\]$", line)) for line in text.splitlines()) == len(ROWS)


def test_csv_and_json_have_a_row_for_every_figure(capfd: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capfd, "--csv"))))
    found = json.loads(printed(capfd, "--json"))
    assert len(rows) == len(found["figures"]) == len(ROWS)
    assert [float(row["value"]) for row in rows] == [row["value"] for row in found["figures"]]
    assert found["placed"] is None
    assert {row["converted_by"] for row in rows} >= {"", "kl_k3 = sigma^2 / 2"}


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (["--dtype", "bfloat16", "--model-kind", "moe"], lambda row: row["kind"] == "moe"),
        (["--metric", "gen_kl_error"], lambda row: row["metric"] == "kl_k3"),
        (["--framework", "TRL"], lambda row: row["framework"] == "TRL"),
        (["--framework", "vllm"], lambda row: "vllm" in (row["engine"] + row["trainer"]).lower()),
        (["--search", "rOpE"], lambda row: "RoPE" in row["setting"]),
    ],
)
def test_options_choose(options: list[str], holds: object, capfd: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capfd, *options, "--json"))["figures"]
    assert rows
    assert all(map(holds, rows))  # type: ignore[arg-type]


def test_a_number_of_ones_own_is_placed_first(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--metric", "rms", "--value", "0.046", "--dtype", "bfloat16", "--model-kind", "dense"]
    assert printed(capfd, *options).startswith("rms 0.046: between Qwen3-1.7B (0.0449)")
    assert json.loads(printed(capfd, *options, "--json"))["placed"]["below"]["id"] == "qwen3-1.7b-bf16"


def test_a_profile_has_its_place_in_text_json_and_html(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "vllm-cpu-0.32.0-bfloat16-fp8-kv", "--json"]) == 0
    like = json.loads(capfd.readouterr().out)["like"]
    assert like["below"]["value"] <= like["value"] <= like["above"]["value"]
    assert like["like"] == "in fp8"
    profile = skewsim.load_profile("vllm-cpu-0.32.0-bfloat16-fp8-kv")
    assert like["sentence"] in profile.describe()
    assert like["sentence"] in profile._repr_html_()


def test_nothing_found_is_said_and_is_no_mistake(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["published", "--search", "no such words"]) == 0
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "bf16"], "dtype='bf16' is not known; allowed: float32"),
        (["--model-kind", "mixture"], "allowed: dense, moe"),
        (["--metric", "surprise"], "metric surprise is not known; allowed: rms"),
        (["--framework", "vrl"], "framework='vrl' is not known; allowed: deepspeed"),
        (["--value", "3"], "--value needs --metric"),
        (["--json", "--csv"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["published", *options]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
