"""What the README tells a reader to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from skewsim.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
TYPED = re.findall(r"^(?:\$ )?((?:make|skewsim)\b.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_readme_starts_with_two_commands_of_the_makefile() -> None:
    assert [line.split()[1] for line in TYPED[:2]] == ["demo", "test"]


@pytest.mark.parametrize("line", sorted({line for line in TYPED if line.startswith("make ")}))
def test_every_make_target_named_exists(line: str) -> None:
    words = line.partition("#")[0].split()[1:]
    assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize("line", sorted({line for line in TYPED if line.startswith("skewsim")}))
def test_every_command_and_option_named_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.partition("#")[0].split()[1:]
    if not words or words[0].startswith("-"):
        return
    assert words[0] in COMMANDS
    path = [words[0], *([words[1]] if words[0] in ("engines", "profile") else [])]
    assert main([*path, "--help"]) == 0
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", ".ci/run"])
def test_the_project_has_the_files_that_readers_look_for(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_demo_runs_on_a_profile_that_was_measured_and_ships() -> None:
    from skewsim.skew.profile import load_profile

    (name,) = re.findall(r"^DEMO .*--profile (\S+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert load_profile(name).kind == "measured"
