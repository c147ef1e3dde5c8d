"""One registry of actions: no key twice, none needs ctrl, none is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from skewsim.errors import UserError
from tui.actions import ACTIONS, SCREENS, load_keymap, valid_on
from tui.app import SkewsimApp
from tui.screens.advise import AdviseScreen
from tui.screens.diagnose import DiagnoseScreen
from tui.screens.explore import Explore
from tui.screens.formula import FormulaScreen
from tui.screens.ladder import LadderScreen
from tui.screens.map import MapScreen
from tui.screens.profile import ProfileScreen
from tui.screens.tokens import TokensScreen


@pytest.mark.parametrize("screen", SCREENS)
def test_no_key_means_two_things_on_a_screen_and_none_needs_ctrl(screen: str) -> None:
    keys = [key for action in valid_on(screen) for key in action.keys.split(",")]
    assert len(keys) == len(set(keys))
    assert all(any("ctrl" not in key for key in action.keys.split(",")) for action in valid_on(screen))


def test_every_action_is_carried_out_by_somebody_and_explained() -> None:
    owners = {
        "app": [SkewsimApp],
        "explore": [Explore],
        "advise": [AdviseScreen],
        "profile": [ProfileScreen],
        "diagnose": [DiagnoseScreen],
        "map": [MapScreen],
    }
    owners["page"] = [TokensScreen, FormulaScreen, AdviseScreen, ProfileScreen, LadderScreen, DiagnoseScreen, MapScreen]
    for action in ACTIONS:
        for owner in owners[action.where]:
            assert action.argument or callable(getattr(owner, f"do_{action.id}", None)), (action.id, owner)
        assert action.help.endswith(".")


def test_the_keymap_file_moves_an_action_to_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    assert load_keymap(path) == {}
    path.write_text('[keys]\npause = "f6,f5"\n')
    assert load_keymap(path) == {"pause": "f6,f5"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[keys]\nfly = "p"\n', "unknown action fly"),
        ('[keys]\npause = "q"\n', "key q means both"),
        ("[keys]\npause = 3\n", "pause=3"),
        ("[keys\n", "not a TOML file"),
    ],
)
def test_a_mistake_in_the_keymap_is_one_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=what) as caught:
        load_keymap(path)
    assert "\n" not in str(caught.value)
