"""docs/notebook.md: its code runs as it stands, and what it shows can be shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "notebook.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


pytestmark = pytest.mark.slow  # it trains, climbs a ladder and draws


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The page's names after all of its code."""
    folder, names = tmp_path_factory.mktemp("notebook"), dict[str, object]()
    (folder / "docs").symlink_to(ROOT / "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for code in BLOCKS:
            exec(compile(code, "docs/notebook.md", "exec"), names)
    return names | {"folder": folder}


def test_each_part_is_at_most_ten_lines() -> None:
    assert [
        len([line for line in code.splitlines() if line.strip()]) for code in BLOCKS if len(code.splitlines()) > 12
    ] == []


def test_the_pictures_and_the_log_are_written(shown: dict[str, object]) -> None:
    folder = shown["folder"]
    assert isinstance(folder, Path)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "ladder.png").stat().st_size > 10_000
    assert len((folder / "rollouts.jsonl").read_text().splitlines()) == 128


@pytest.mark.parametrize("name", ["found", "simulated"])
def test_a_log_with_raw_logprobs_is_diagnosed_as_such(shown: dict[str, object], name: str) -> None:
    assert shown[name].verdict == "raw_logprobs"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["result", "found", "profile", "advice"])
def test_what_a_person_would_look_at_shows_itself_as_html(shown: dict[str, object], name: str) -> None:
    html = shown[name]._repr_html_()  # type: ignore[attr-defined]
    assert "<table" in html
    assert html.count("<tr>") > 1


def test_a_picture_shows_itself(shown: dict[str, object]) -> None:
    assert shown["picture"]._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
