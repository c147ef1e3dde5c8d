"""Profiles: the fit finds what was put in, the file is what was saved, and a bad file is one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from skewsim.errors import FileFormatError, UserError
from skewsim.skew import fitting
from skewsim.skew import profile as profile_module
from skewsim.skew.fitting import fit_profile, student_fit, student_refits
from skewsim.skew.metrics import resampled_skew_metrics, skew_metrics
from skewsim.skew.profile import SkewProfile, load_profile, save_profile, shipped_profiles
from skewsim.skew.tokens import TokenTable

VOCAB = 64


def make_table(
    *, noise: str = "normal", scale: float = 0.1, shared: float = 0.0, shape: tuple[int, int] = (200, 30), seed: int = 0
) -> TokenTable:
    """Tokens of an engine whose logits carry i.i.d. noise, and whose report is off by what each sequence shares."""
    rng = np.random.default_rng(seed)
    sharpness = np.exp(rng.normal(1.0, 1.0, (*shape, 1)))
    trainer = special.log_softmax(rng.normal(size=(*shape, VOCAB)) * sharpness, axis=-1)
    draw = rng.normal if noise == "normal" else (lambda size: rng.standard_t(4, size=size) / np.sqrt(2))
    engine = special.log_softmax(trainer + scale * draw(size=(*shape, VOCAB)), axis=-1)
    uniform = rng.uniform(size=(*shape, 1))
    token = np.minimum((np.exp(engine).cumsum(-1) < uniform).sum(-1), VOCAB - 1)
    pick = lambda values: np.take_along_axis(values, token[..., None], -1)[..., 0]  # noqa: E731
    return TokenTable.from_rollouts(
        tokens=token,
        mask=np.ones(shape),
        engine_logprobs=pick(engine) - shared * rng.normal(size=(shape[0], 1)),
        trainer_logprobs=pick(trainer),
        square_mass=np.exp(2 * trainer).sum(-1),
        meta={"engine": "synthetic", "dtype": "bfloat16"},
    )


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return make_table()


@pytest.fixture(scope="module")
def profile(table) -> SkewProfile:
    return fit_profile(table, name="synthetic", provenance={"model": "random logits"}, bootstrap=100, kind="invented")


def inside(value: float, estimate) -> bool:
    return estimate.low <= value <= estimate.high


def test_the_interval_of_the_logit_scale_holds_the_scale_put_in(profile):
    assert profile.fit.rest == "measured"
    assert inside(0.1, profile.fit.sigma_z)
    assert profile.fit.sigma_z_floor == profile.fit.sigma_z.value
    assert profile.fit.ks_distance < profile_module.BAD_FIT
    assert "describes it well" in " ".join(profile.describe())


def test_without_the_square_mass_the_scale_is_bounded_from_both_sides(table):
    columns = {name: column for name, column in table.columns().items() if name != "square_mass"}
    fit = fit_profile(TokenTable(**columns), name="a", provenance={}, bootstrap=0).fit
    assert fit.rest == "assumed spread thin"
    assert fit.sigma_z_floor < 0.1 < fit.sigma_z.value
    assert fit.sigma_z_floor == pytest.approx(fit.sigma_z.value / np.sqrt(2))


def test_a_heavy_tail_is_told_from_a_normal_one(profile):
    heavy = fit_profile(make_table(noise="student_t"), name="heavy", provenance={}, bootstrap=50)
    assert inside(4.0, heavy.fit.df) or 3.0 < heavy.fit.df.value < 5.5
    assert heavy.fit.df.high < 10 < profile.fit.df.low


def test_what_a_sequence_shares_is_found_and_nothing_where_nothing_is_shared(profile):
    assert profile.fit.sequence_std.low == 0
    assert profile.fit.sequence_std.value < 0.01
    shared = fit_profile(make_table(shared=0.05), name="shared", provenance={}, bootstrap=100)
    assert inside(0.05, shared.fit.sequence_std)
    assert shared.fit.sequence_correlation.low > profile.fit.sequence_correlation.high


def test_the_variance_component_equals_the_textbook_estimator_on_unbalanced_groups():

    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 40)
    sequence = np.repeat(np.arange(40), lengths)
    values = rng.normal(size=40)[sequence] + rng.normal(size=len(sequence))
    ones = np.ones(len(sequence))
    rows = fitting.Rows(values, ones / 2, ones, sequence, sequence, 40, 0, False)
    between, within = fitting._shared(rows, np.ones((1, 40)), values)
    groups = [values[sequence == i] for i in range(40)]
    ms_within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (len(values) - 40)
    ms_between = sum(len(g) * (g.mean() - values.mean()) ** 2 for g in groups) / 39
    n0 = (len(values) - (lengths**2).sum() / len(values)) / 39
    assert within[0] == pytest.approx(ms_within)
    assert between[0] == pytest.approx((ms_between - ms_within) / n0)


def test_every_metric_is_the_one_definition_with_an_interval_around_it(table, profile):
    arrays = [column.reshape(200, 30) for column in (table.trainer_logprob, table.engine_logprob, np.ones(6000))]
    for key, value in skew_metrics(*arrays).items():
        assert profile.metrics[key].value == pytest.approx(value, rel=1e-9), key
    for key in ("kl_k3", "logprob_diff_mean", "bias"):
        assert profile.metrics[key].low < profile.metrics[key].value < profile.metrics[key].high


def test_intervals_resample_sequences_so_that_a_shared_error_widens_them(profile):
    shared = fit_profile(make_table(shared=0.05), name="shared", provenance={}, bootstrap=100)
    width = lambda fit: fit.bias.high - fit.bias.low  # noqa: E731
    assert width(shared.fit) > 1.5 * width(profile.fit)
    assert width(shared.fit) == pytest.approx(2 * 1.96 * np.hypot(0.05, 0.0013 * 14) / np.sqrt(200), rel=0.3)


def test_the_table_by_probability_equals_a_plain_loop(table, profile):
    p, d = np.exp(table.trainer_logprob), table.skew
    for low, high, item in zip((0, 0.01, 0.1, 0.5, 0.9), (0.01, 0.1, 0.5, 0.9, 2), profile.table, strict=True):
        chosen = d[(p >= low) & (p < high)]
        assert item.tokens == len(chosen)
        assert item.mean_abs.value == pytest.approx(np.abs(chosen).mean())
        assert item.rms.value == pytest.approx(np.sqrt((chosen**2).mean()))
    assert sum(item.tokens for item in profile.by_probability) == len(table)


def test_rows_without_two_logprobs_are_left_out_and_counted(table):
    engine = table.engine_logprob.copy()
    engine[:100] = np.nan
    engine[100] = -np.inf
    broken = fit_profile(
        TokenTable(**{**table.columns(), "engine_logprob": engine}), name="a", provenance={}, bootstrap=0
    )
    assert broken.fit.left_out == 101
    assert broken.provenance.tokens == len(table) - 101


def test_a_skew_that_is_no_logit_noise_is_called_a_poor_fit(table):
    raw = TokenTable(**{**table.columns(), "engine_logprob": table.trainer_logprob * 0.6})
    text = " ".join(fit_profile(raw, name="raw", provenance={}, bootstrap=0).describe())
    assert "poorly" in text


def test_an_exact_engine_has_a_profile_of_zeros(table):
    exact = TokenTable(**{**table.columns(), "engine_logprob": table.trainer_logprob})
    profile = fit_profile(exact, name="exact", provenance={}, bootstrap=10)
    assert profile.fit.rms.value == 0
    assert profile.fit.df.value is None
    assert profile.metrics["kl_k3"].value == 0


def test_the_verdict_names_the_published_row_of_the_same_dtype(profile):
    assert profile.describe()[-1].startswith(f"rms {profile.fit.rms.value:.3g} against 0.0449 published for bfloat16")


def test_provenance_says_what_was_measured_and_by_which_version(profile, table):
    assert profile.provenance.engine == "synthetic"
    assert profile.provenance.model == "random logits"
    assert profile.provenance.tokens == len(table)
    assert profile.provenance.sequences == 200
    assert profile.provenance.skewsim_version
    with pytest.raises(UserError, match="provenance"):
        fit_profile(table, name="a", provenance={"model": object()}, bootstrap=0)


@pytest.mark.parametrize("rows", [0, 30])
def test_fewer_than_two_sequences_are_refused(table, rows):
    with pytest.raises(UserError, match="at least 2 sequences"):
        fit_profile(table.select(slice(0, rows)), name="a", provenance={})


def test_a_name_that_is_no_file_name_is_refused(table):
    with pytest.raises(UserError, match="profile name"):
        fit_profile(table, name="../a", provenance={})


def test_a_profile_survives_a_round_trip(profile, tmp_path):
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile
    assert json.loads((tmp_path / "p.json").read_text())["checksum"] == profile.checksum
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_shipped_profile_is_found_by_name_and_an_unknown_name_lists_them(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(profile_module, "SHIPPED", tmp_path)
    save_profile(profile, tmp_path / "synthetic.json")
    assert shipped_profiles() == ["synthetic"]
    assert load_profile("synthetic") == profile
    for name in ("nothing", "../synthetic"):
        with pytest.raises(FileFormatError, match="shipped: synthetic"):
            load_profile(name)


def test_the_real_models_profiles_are_offered_before_the_toys_and_the_default_before_all(
    profile, tmp_path, monkeypatch
):
    monkeypatch.setattr(profile_module, "SHIPPED", tmp_path)
    for name in ("a-toy", "smollm2-a", profile_module.DEFAULT_PROFILE):
        save_profile(profile, tmp_path / f"{name}.json")
    assert shipped_profiles() == [profile_module.DEFAULT_PROFILE, "smollm2-a", "a-toy"]


def test_every_shipped_profile_loads():
    for name in shipped_profiles():
        assert load_profile(name).name == name


def one_line(path: Path) -> str:
    with pytest.raises(FileFormatError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_a_missing_truncated_or_foreign_file_is_one_line(profile, tmp_path):
    path = tmp_path / "p.json"
    assert "no such file" in one_line(path)
    save_profile(profile, path)
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "truncated" in one_line(path)
    for content in (b"[]", b"{}", b"3", b"null", b'{"schema_version": 1}'):
        path.write_bytes(content)
        assert "not a skew profile" in one_line(path)
    for content in (b"\x80\x04\x95", b"[" * 100_000, b"\xff\xfe"):
        path.write_bytes(content)
        one_line(path)


def test_a_profile_from_the_future_is_said_to_be_so(profile, tmp_path):
    path = tmp_path / "p.json"
    save_profile(profile, path)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    assert "later skewsim" in one_line(path)


def test_an_altered_figure_or_checksum_is_caught(profile, tmp_path):
    path = tmp_path / "p.json"
    save_profile(profile, path)
    text = path.read_text()
    path.write_text(text.replace('"synthetic"', '"better"', 1))
    assert "checksum" in one_line(path)
    path.write_text(text.replace(profile.checksum, "0" * 64))
    assert "checksum" in one_line(path)


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "guessed"), ("quantile_levels", [0.5, 1.0]), ("by_probability", []), ("extra", 1)]
)
def test_a_wrong_field_under_a_right_checksum_is_one_line(profile, tmp_path, field, value):
    body = {**profile.model_dump(mode="json"), field: value}
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"format": profile_module.FORMAT, **body, "checksum": profile_module._checksum(body)}))
    assert field in one_line(path)


def test_importing_the_module_loads_no_torch():
    code = "import sys, skewsim.skew.profile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(st.integers(0, 1000), st.integers(2, 12))
def test_metrics_of_resampled_groups_are_the_metrics_of_the_rows_they_hold(seed, sequences):
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(sequences), rng.integers(1, 6, sequences))
    engine = np.log(rng.uniform(0.01, 1, len(index)))
    trainer = engine + rng.normal(0, 0.3, len(index))
    weights = rng.multinomial(sequences, np.full(sequences, 1 / sequences), size=3).astype(float)
    found = resampled_skew_metrics(trainer, engine, sequence=index, group=index, weights=weights)
    for number, weight in enumerate(weights):
        drawn = np.repeat(np.arange(sequences), weight.astype(int))
        padded = np.zeros((3, len(drawn), 6))
        for row, which in enumerate(drawn):
            inside = index == which
            padded[:, row, : inside.sum()] = trainer[inside], engine[inside], np.ones(inside.sum())
        expected = skew_metrics(*padded)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if not (key == "pearson" and not np.isfinite(value)):
                assert found[key][number] == pytest.approx(value, rel=1e-7, abs=1e-9), key


@pytest.mark.parametrize("df", [1.5, 3.0, 8.0, 30.0, np.inf])
def test_the_tail_of_every_resampling_is_what_a_fit_of_its_own_finds(df: float) -> None:
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(size=5000) if np.isinf(df) else rng.standard_t(df, size=5000)) * 0.01
    edges = np.quantile(size, np.linspace(0, 1, 201)[1:-1])
    where = np.searchsorted(edges, size, side="right")
    centre = np.bincount(where, weights=size) / np.bincount(where)
    counts = np.array([np.bincount(rng.choice(where, 5000), minlength=200) for _ in range(12)], dtype=np.float64)
    first = student_fit(centre, np.bincount(where).astype(np.float64))
    found = student_refits(centre, counts, df=first[0], scale=first[1])
    alone = np.array([student_fit(centre, count)[0] for count in counts])
    np.testing.assert_allclose(1 / found, 1 / alone, rtol=1e-3, atol=3e-4)


def test_settings_that_are_no_table_are_refused_by_their_name(table):
    with pytest.raises(UserError, match="provenance: settings: asked is None; allowed: a table"):
        fit_profile(table, name="a", provenance={"settings": {"asked": None}}, bootstrap=0)
