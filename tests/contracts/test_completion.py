"""Tab completion knows every command and option, and the shell needs no Python to complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from skewsim.cli.completion import SHELLS, script
from skewsim.cli.main import COMMANDS, SWITCHES, main

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "skewsim.bash"
    path.write_text(script("bash"))
    return path


def complete(completion: Path, *words: str) -> list[str]:
    """What bash offers when Tab is pressed at the end of the last word."""
    assert BASH is not None
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _skewsim; printf "%s\\n" "${COMPREPLY[@]}"'
    command = [BASH, "--norc", "-c", code, "bash", str(completion), "skewsim", *words]
    nothing_else = {"PATH": "/nowhere"}  # no Python is started
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=nothing_else)
    assert done.stderr == ""
    return done.stdout.split()


def test_every_shells_script_has_every_command() -> None:
    for shell in SHELLS:
        text = script(shell)
        assert [name for name in (*COMMANDS, *SWITCHES) if name.removeprefix("--") not in text] == []


@needs_bash
def test_bash_completes_a_commands_name(bash_script: Path) -> None:
    assert complete(bash_script, "di") == ["diagnose"]
    assert complete(bash_script, "") == list(COMMANDS)
    assert complete(bash_script, "--inst") == ["--install-completion"]


@needs_bash
def test_bash_completes_a_subcommand_an_option_and_a_choice(bash_script: Path) -> None:
    assert complete(bash_script, "engines", "ins") == ["install"]
    assert complete(bash_script, "profile", "show", "--j") == ["--json"]
    assert complete(bash_script, "ladder", "--objective", "gs") == ["gspo"]


@needs_bash
def test_bash_completes_a_files_name(bash_script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollouts.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(bash_script, "diagnose", "roll") == ["rollouts.jsonl"]


@needs_bash
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("engines", "models", "profile", "sweep")])
def test_bash_completes_every_option_that_the_help_of_a_command_lists(
    name: str, bash_script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    listed = set(re.findall(r"^[│|]? *\*? *(?:[A-Z-]+ )?(--[a-z0-9-]+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert listed <= set(complete(bash_script, name, "--"))


def test_the_script_is_made_without_torch() -> None:
    code = "import sys; from skewsim.cli.main import main; main(['--show-completion', 'bash']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_to_install_it_writes_the_script_and_one_line_in_the_shells_start_up_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        assert main(["--install-completion", "bash"]) == 0
    written = Path(capsys.readouterr().out.splitlines()[0])
    assert tmp_path in written.parents
    assert written.read_text() == script("bash")
    loads = [line for line in (tmp_path / ".bashrc").read_text().splitlines() if str(written) in line]
    assert len(loads) == 1


def test_another_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--install-completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
