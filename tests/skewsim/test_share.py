"""A scenario survives TOML, share string and command line, and what is not one is refused in one line."""

from __future__ import annotations

import json
import zlib
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skewsim.errors import FileFormatError, UserError
from skewsim.settings import _IN_WORDS, Scenario, changes, with_changes
from skewsim.share import (
    SHARE_PREFIX,
    from_share,
    from_toml,
    is_share,
    load_toml,
    parse_assignments,
    to_share,
    to_toml,
)

CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9_.+-]{1,20}", fullmatch=True),
    "steps": st.integers(1, 10_000),
    "policy": st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
    "engine.temperature": st.floats(0.01, 10),
    "engine.update_at_token": st.none() | st.integers(1, 64),
    "engine.quantization": st.sampled_from([None, "int8", "fp8"]),
    "engine.enable_prefix_caching": st.booleans(),
    "engine.weight_sync": st.sampled_from(["full", "none", "base_only", "partial"]),
    "engine.replicas": st.integers(1, 64),
    "engine.logits_soft_cap": st.none() | st.floats(1e-3, 1e3),
    "trainer.packing": st.sampled_from(["none", "isolated", "leaking"]),
    "skew.sequence_scale": st.floats(0, 100),
    "skew.drift": st.floats(-1, 10),
    "trainer.epsilon": st.none() | st.floats(1e-300, 10),
    "trainer.correction.weight": st.sampled_from(["none", "token_tis", "sequence_mis"]),
    "trainer.correction.veto": st.none() | st.floats(1e-9, 0.9),
}
scenarios = st.fixed_dictionaries({}, optional=CHANGES).map(Scenario().with_values)


@given(scenarios)
def test_toml_gives_the_same_scenario_back(scenario: Scenario) -> None:
    assert from_toml(to_toml(scenario)) == scenario


@given(scenarios)
def test_a_share_string_gives_the_same_scenario_back_and_is_one_word(scenario: Scenario) -> None:
    text = to_share(scenario)
    assert from_share(text) == scenario
    assert is_share(text)
    assert text.isascii()
    assert text == text.split()[0]


@given(scenarios, scenarios)
def test_the_words_for_a_toggle_lead_from_one_scenario_to_the_other(before: Scenario, after: Scenario) -> None:
    after = after.with_values({"policy": before.policy})  # which cannot change while a run goes on
    name = {"name": "x"}
    assert with_changes(before, changes(before, after)).with_values(name) == after.with_values(name)
    assert with_changes(before, ["something was said"]) == before


def test_only_differences_from_the_defaults_are_shared() -> None:
    assert len(to_share(Scenario())) < 24
    assert len(to_share(Scenario().with_values({"engine.lag": 8}))) < 60


def test_optional_settings_that_are_off_read_none_in_toml() -> None:
    off = Scenario().with_values({"engine.update_at_token": None})
    assert 'update_at_token = "none"' in to_toml(off)
    assert "quantization" not in to_toml(off)


@given(st.text())
def test_a_string_that_is_no_share_string_is_one_line(text: str) -> None:
    for broken in (text, SHARE_PREFIX + text):
        with pytest.raises(FileFormatError) as caught:
            from_share(broken)
        assert "\n" not in str(caught.value)


def test_a_share_string_cut_off_anywhere_is_refused() -> None:
    whole = to_share(Scenario().with_values({"engine.lag": 8, "trainer.objective": "gspo"}))
    for length in range(len(whole)):
        with pytest.raises(FileFormatError):
            from_share(whole[:length])


def packed(text: bytes) -> str:
    return SHARE_PREFIX + urlsafe_b64encode(zlib.compress(text)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("skew2-eNqrrgUAAXUA-Q", "is not known; this program reads skew1-"),
        (packed(json.dumps({"schema_version": 99}).encode()), "schema_version=99 is not known"),
        (packed(json.dumps({"engine": {"speed": 1}}).encode()), "unknown setting engine.speed"),
        (packed(b"[" * 60_000), "cut off or mistyped"),
        (packed(b" " * 10_000_000 + b"{}"), "cut off or mistyped"),
    ],
)
def test_share_strings_of_the_future_and_hostile_ones_are_refused(text: str, says: str) -> None:
    with pytest.raises(FileFormatError, match=says):
        from_share(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"steps = 5\n[engine\n", "is not a TOML file"),
        (b"\x80\x04\x95\x0f\x00.", "is not a TOML file"),
        (b"schema_version = 2\nspeed = 3\n", "schema_version=2 is not known; this program reads 1"),
        (b"speed = 3\n", "unknown setting speed"),
        (b"[engine]\ntemperature = -1\n", "engine.temperature=-1: Input should be greater than 0"),
        (b"steps = nan\n", "steps"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        load_toml(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_on_the_command_line_are_toml_scalars_bare_words_or_none() -> None:
    given_values = [
        "engine.temperature=1.0",
        "engine.lag=8",
        "engine.enable_prefix_caching=true",
        "engine.dtype=bfloat16",
        'engine.head_dtype="float32"',
        "engine.update_at_token=none",
        "engine.quantization=null",
        "skew.noise=none",
        "trainer.learning_rate=1e-3",
    ]
    assert parse_assignments(given_values) == {
        "engine.temperature": 1.0,
        "engine.lag": 8,
        "engine.enable_prefix_caching": True,
        "engine.dtype": "bfloat16",
        "engine.head_dtype": "float32",
        "engine.update_at_token": None,
        "engine.quantization": None,
        "skew.noise": "none",
        "trainer.learning_rate": 0.001,
    }


def _patterns(schema: object) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set[str]()
        return own.union(*map(_patterns, schema.values()))
    return set[str]().union(*map(_patterns, schema)) if isinstance(schema, list) else set()


def test_what_a_setting_may_be_is_said_in_words_and_never_as_a_regular_expression() -> None:
    with pytest.raises(UserError) as caught:
        Scenario().with_values({"name": "run[1]"})
    assert str(caught.value) == "name='run[1]': allowed: letters, digits and _ . + -, without spaces"
    with pytest.raises(UserError, match="allowed: cpu, cuda, or cuda:0, cuda:1 and so on"):
        Scenario().with_values({"device": "gpu"})
    assert _patterns(Scenario.model_json_schema()) <= set(_IN_WORDS)


@pytest.mark.parametrize("words", [["engine.lag"], ["=3"], ["engine.lag=1", "engine.lag=2"]])
def test_an_assignment_without_a_path_or_given_twice_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_assignments(words)


@given(st.text(max_size=30))
def test_a_value_never_sets_more_than_its_own_path(text: str) -> None:
    assert set(parse_assignments([f"engine.dtype={text}"])) == {"engine.dtype"}
