"""The wheel, installed with the light core alone into an empty environment, outside the checkout, does what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uv

from skewsim import __version__
from skewsim.cli.main import COMMANDS
from skewsim.extras import EXTRA_OF

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200), pytest.mark.xdist_group("wheel")]
ROOT = Path(__file__).resolve().parents[2]
PYTHON_FILES = ("*.py", "*.pyi", "py.typed")
DATA = ("skewsim/data/**/*.*", "tui/*.tcss", "tui/*.toml", "tui/lessons/*.toml", "harness/plugin/**/*.*")
"""What an installed skewsim reads beside its code."""


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with nothing of this checkout or environment in the variables."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def succeed(*command: str | Path, folder: Path) -> str:
    done = run(*command, folder=folder)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither leftovers of an earlier build get in nor new ones stay here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("skewsim", "harness", "tui"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    succeed(sys.executable, "-m", "build", "--wheel", "--outdir", "dist", ".", folder=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel and what it asks for, in the versions of constraints.txt."""
    folder = tmp_path_factory.mktemp("light")
    installer = os.fsdecode(uv.find_uv_bin())
    succeed(installer, "venv", "-q", "--python", sys.executable, folder / "env", folder=folder)
    install = (installer, "pip", "install", "-q", "--python", folder / "env/bin/python")
    succeed(*install, "--constraint", ROOT / "constraints.txt", wheel, folder=folder)
    return folder / "env"


@pytest.fixture
def skewsim(environment: Path, tmp_path: Path) -> Any:
    """The installed command, run in an empty folder."""
    return lambda *arguments: run(environment / "bin/skewsim", *arguments, folder=tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A healthy log with TRL's field names: 12 responses of 60 tokens."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(12):
        engine = np.log(rng.uniform(0.1, 0.95, 60))
        row = {"prompt_ids": [1, 2, 3], "completion_ids": rng.integers(0, 50, 60).tolist(), "completion_mask": [1] * 60}
        row |= {"sampling_per_token_logps": engine.tolist()}
        rows.append(row | {"old_per_token_logps": (engine + rng.normal(0, 0.01, 60)).tolist()})
    path = tmp_path / "completions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def test_every_file_that_the_packages_have_is_installed(environment: Path) -> None:
    wanted = {
        path.relative_to(ROOT)
        for room in ("skewsim", "harness", "tui")
        for pattern in PYTHON_FILES
        for path in (ROOT / room).rglob(pattern)
    }
    wanted |= {path.relative_to(ROOT) for pattern in DATA for path in ROOT.glob(pattern) if path.is_file()}
    assert len(wanted) > 120
    absent = [str(path) for path in wanted if not (packages(environment) / path).is_file()]
    assert [path for path in absent if "__pycache__" not in path] == []


def test_nothing_of_the_extras_and_nothing_else_of_the_project_is_installed(environment: Path) -> None:
    installed = {path.name for path in packages(environment).iterdir()}
    assert not installed & {*EXTRA_OF, "tests", "benchmarks", "docs"}


def test_the_command_and_the_module_print_the_version_and_help(skewsim: Any, environment: Path, tmp_path: Path) -> None:
    assert skewsim("--version").stdout == f"{__version__}\n"
    assert succeed(environment / "bin/python", "-m", "skewsim", "--version", folder=tmp_path) == f"{__version__}\n"
    for name in COMMANDS:
        assert f"skewsim {name}" in skewsim(name, "--help").stdout


def test_first_aid_says_what_is_missing(skewsim: Any) -> None:
    found = json.loads(skewsim("--version", "--json").stdout)
    assert found["not installed"] == sorted(EXTRA_OF)
    assert found["gpus"] == "unknown without torch"


def test_profiles_and_scenarios_are_there(skewsim: Any) -> None:
    shipped = {path.stem for path in (ROOT / "skewsim/data/profiles").glob("*.json")}
    assert {line.split()[0] for line in skewsim("profile", "list").stdout.splitlines()} == shipped
    shown = skewsim("profile", "show", sorted(shipped)[0])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "initial_v1" in skewsim("scenarios").stdout


def test_advise_gives_the_published_figure(skewsim: Any) -> None:
    found = json.loads(skewsim("advise", "--sigma", ".0449", "--length", "1506", "--json").stdout)
    (verl,) = [row for row in found["rows"] if (row["framework"], row["rule"]) == ("verl", "geometric rejection")]
    assert verl["kept"] == pytest.approx(0.46, abs=0.01)


def test_a_frameworks_log_is_imported_diagnosed_and_gated(skewsim: Any, log: Path) -> None:
    assert skewsim("import", log.name, "--out", "table.npz").stdout == "table.npz: 720 tokens\n"
    assert skewsim("import", log.name, "--out", "table.parquet").stdout == "table.parquet: 720 tokens\n"
    found = json.loads(skewsim("diagnose", "table.npz", "--json").stdout)
    assert found["verdict"] == "healthy"
    assert json.loads(skewsim("diagnose", log.name, "--json").stdout)["verdict"] == "healthy"  # without import
    assert skewsim("gate", "table.parquet", "--max", "logprob_diff_mean=0.02").returncode == 0
    assert skewsim("gate", "table.parquet", "--max", "logprob_diff_mean=0.002").returncode == 1


@pytest.mark.parametrize(("command", "extra"), [("run initial_v1", "sim"), ("measure --engine vllm", "engines")])
def test_what_needs_more_says_in_one_line_what_to_install(
    skewsim: Any, command: str, extra: str, tmp_path: Path
) -> None:
    done = skewsim(*command.split())
    name = command.split()[0]
    line = f"skewsim: {name} needs torch, which is not installed; install it with: pip install 'skewsim[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []


def test_the_library_names_what_is_missing_and_type_checkers_see_its_types(environment: Path, tmp_path: Path) -> None:
    code = "import skewsim; print(skewsim.load_profile('vllm-cpu-0.32.0-bfloat16').kind); skewsim.train"
    done = run(environment / "bin/python", "-c", code, folder=tmp_path)
    assert done.stdout == "measured\n"
    assert done.stderr.splitlines()[-1].endswith("install it with: pip install 'skewsim[sim]'")
    assert all((packages(environment) / room / "py.typed").is_file() for room in ("skewsim", "harness", "tui"))
