"""What each part loads when it is imported, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skewsim.cli.main import COMMANDS, TERMINAL_UI

ROOMS = {"skewsim", "harness", "tui"}
ROOT = Path(__file__).resolve().parents[2]


def loaded(code: str) -> set[str]:
    """The top-level modules, and those of ours, that a fresh interpreter has loaded after running ``code``."""
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name if name.partition(".")[0] in ROOMS else name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "module",
    ["catalogue", "settings", "scenarios", "share", "errors", "cli.main", "skew.tokens", "records", "learn.clipping"],
)
def test_settings_scenarios_and_tables_load_no_torch(module: str) -> None:
    assert "torch" not in loaded(f"import skewsim.{module}")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_loads_neither_torch_nor_pydantic_nor_the_parser(arguments: list[str]) -> None:
    modules = loaded(f"from skewsim.cli.main import main; main({arguments})")
    assert not modules & {"torch", "pydantic", "numpy", "cyclopts", "rich", "textual"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_loads_no_torch(name: str) -> None:
    assert "torch" not in loaded(f"from skewsim.cli.main import main; main([{name!r}, '--help'])")


@pytest.mark.parametrize(
    ("module", "other_rooms"),
    [
        ("skewsim.cli.simulate, skewsim.cli.analyse, skewsim.learn.trainer, skewsim.runs.ensemble", {"harness", "tui"}),
        ("harness.commands, harness.engines, harness.measure", {"tui"}),
        ("tui.launch", {"harness"}),
    ],
)
def test_a_room_loads_no_room_that_it_must_not_know(module: str, other_rooms: set[str]) -> None:
    assert not {name.partition(".")[0] for name in loaded(f"import {module}")} & other_rooms


def test_the_first_step_waits_neither_for_scipy_nor_for_torchs_compiler() -> None:
    code = "from skewsim.settings import Scenario; from skewsim.learn.trainer import train; next(train(Scenario()))"
    script = f"import sys; {code}; print({{'scipy', 'sympy', 'torch._dynamo'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_terminal_ui_starts_its_training_process_before_it_loads_anything_large() -> None:
    assert not loaded("import tui.launch") & {"torch", "pydantic", "numpy", "cyclopts", "rich", "textual"}


def test_no_screen_of_the_terminal_ui_loads_torch() -> None:
    modules = sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for path in (ROOT / "tui").rglob("*.py")
        if path.name not in ("__init__.py", "worker.py")
    )
    assert len(modules) > 30
    lazily = "skewsim.skew.advise, skewsim.diagnose, skewsim.runs.recording, skewsim.skew.profile, skewsim.runs.figures"
    assert "torch" not in loaded(f"import {', '.join(modules)}, {lazily}")


def test_the_terminal_ui_is_named_by_an_import_string_that_exists() -> None:
    from skewsim.cli.main import resolve

    assert callable(resolve(TERMINAL_UI))


def test_the_table_of_objectives_needs_nothing_but_python() -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'skewsim' / 'catalogue.py')!r}, run_name='catalogue')"
    assert loaded(code) - loaded("") <= set(sys.stdlib_module_names)
