"""One registry of actions: no key twice, none needs ctrl, none is dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from skewsim.errors import UserError
from tui.actions import ACTIONS, load_keymap
from tui.app import SkewsimApp
from tui.screens.explore import Explore


def test_no_key_means_two_things_and_none_needs_ctrl() -> None:
    keys = [key for action in ACTIONS for key in action.keys.split(",")]
    assert len(keys) == len(set(keys))
    assert not any("ctrl" in key for key in keys)


def test_every_action_is_carried_out_by_somebody_and_explained() -> None:
    for action in ACTIONS:
        owner = Explore if action.where == "explore" else SkewsimApp
        assert action.argument or callable(getattr(owner, f"do_{action.id}", None)), action.id
        assert action.help.endswith(".")


def test_the_keymap_file_moves_an_action_to_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "keymap.toml"
    assert load_keymap(path) == {}
    path.write_text('[keys]\npause = "p,f5"\n')
    assert load_keymap(path) == {"pause": "p,f5"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[keys]\nfly = "p"\n', "unknown action fly"),
        ('[keys]\npause = "q"\n', "key q means both"),
        ("[keys]\npause = 3\n", "pause=3"),
        ("[keys\n", "not a keymap"),
    ],
)
def test_a_mistake_in_the_keymap_is_one_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=what) as caught:
        load_keymap(path)
    assert "\n" not in str(caught.value)
