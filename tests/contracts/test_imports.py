"""Which modules each part loads when it is imported, in fresh interpreters.

Loaded modules stay loaded. So one interpreter runs many pieces of code, the lightest first, and reports after each
which modules are loaded: a module that is *not* loaded after the last piece was loaded by none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skewsim.cli.main import COMMANDS, TERMINAL_UI

ROOMS = {"skewsim", "harness", "tui"}
ROOT = Path(__file__).resolve().parents[2]
LARGE = {"torch", "pydantic", "numpy", "cyclopts", "rich", "textual"}

START = {
    **{f"skewsim {' '.join(words)}": f"main({words})" for words in (["--help"], ["--version"], [])},
    "tui.launch": "import tui.launch",
}
"""What has to load fast, without torch."""

MODULES = (
    *("catalogue", "settings", "scenarios", "share", "errors", "cli.main", "skew.tokens", "skew.metrics", "records"),
    *("learn.clipping", "learn.look", "extras"),
)
SCREENS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in (ROOT / "tui").rglob("*.py")
    if path.name not in ("__init__.py", "worker.py")
)
LAZILY = "skewsim.skew.advise, skewsim.diagnose, skewsim.runs.recording, skewsim.skew.profile, skewsim.runs.figures"
WITHOUT_TORCH = {
    **{module: f"import skewsim.{module}" for module in MODULES},
    **{f"skewsim {name} --help": f"main([{name!r}, '--help'])" for name in sorted(COMMANDS)},
    "the screens of the terminal UI": f"import {', '.join(SCREENS)}, {LAZILY}",
}

FIRST_STEP = {
    "the first step of a run": "from skewsim.settings import Scenario; from skewsim.learn.trainer import train; "
    "next(train(Scenario()))"
}
SIMULATOR = {
    "skewsim": "import skewsim.cli.simulate, skewsim.cli.analyse, skewsim.learn.trainer, skewsim.runs.ensemble",
    "harness": "import harness.commands, harness.engines, harness.measure",
}


def loaded(pieces: dict[str, str]) -> dict[str, set[str]]:
    """Runs pieces of code one after the other in one fresh interpreter; by name, all modules loaded after each."""
    script = (
        "import json, sys\n"
        "from skewsim.cli.main import main\n"
        "found = {}\n"
        f"for name, code in {pieces!r}.items():\n"
        "    exec(code)\n"
        "    found[name] = list(sys.modules)\n"
        "json.dump(found, sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: set(modules) for name, modules in json.loads(done.stderr.splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def light() -> dict[str, set[str]]:
    """The modules loaded after each piece of code that must not load torch."""
    return loaded(START | WITHOUT_TORCH)


@pytest.fixture(scope="module")
def simulator() -> dict[str, set[str]]:
    """The modules loaded after each piece of code that loads torch."""
    return loaded(FIRST_STEP | SIMULATOR)


def rooms(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} & ROOMS


@pytest.mark.parametrize("name", START)
def test_the_start_loads_nothing_large(light: dict[str, set[str]], name: str) -> None:
    assert not light[name] & LARGE


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_settings_tables_help_and_screens_load_no_torch(light: dict[str, set[str]], name: str) -> None:
    assert "torch" not in light[name]


def test_there_are_more_than_thirty_screens_and_parts_of_them() -> None:
    assert len(SCREENS) > 30


def test_the_first_step_waits_neither_for_scipy_nor_for_torchs_compiler(simulator: dict[str, set[str]]) -> None:
    assert not simulator["the first step of a run"] & {"scipy", "sympy", "torch._dynamo"}


def test_a_room_loads_no_room_that_it_must_not_know(light: dict[str, set[str]], simulator: dict[str, set[str]]) -> None:
    assert rooms(simulator["skewsim"]) == {"skewsim"}
    assert rooms(simulator["harness"]) == {"skewsim", "harness"}
    assert rooms(light["tui.launch"]) == {"skewsim", "tui"}


def test_the_terminal_ui_is_named_by_an_import_string_that_exists() -> None:
    from skewsim.cli.main import resolve

    assert callable(resolve(TERMINAL_UI))


def test_the_table_of_objectives_needs_nothing_but_python() -> None:
    table = str(ROOT / "skewsim" / "catalogue.py")
    pieces = {"before": "pass", "after": f"import runpy; runpy.run_path({table!r}, run_name='catalogue')"}
    found = loaded(pieces)
    new = {name.partition(".")[0] for name in found["after"] - found["before"]}
    assert new <= set(sys.stdlib_module_names)
