"""The benchmarks are run as their pages say: as scripts, from a checkout, without a PYTHONPATH."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", [s for s in SCRIPTS if "__main__" in s.read_text()], ids=lambda s: s.stem)
def test_a_script_that_imports_another_or_a_test_puts_the_checkout_on_the_path_first(script: Path) -> None:
    """A script's own folder is on the path, its parent is not, and only installed packages are found anywhere."""
    body = ast.parse(script.read_text()).body
    imports = [n.lineno for n in body if isinstance(n, ast.ImportFrom) and n.module and _beside(n.module)]
    if imports:
        assert [n.lineno for n in body if "sys.path.insert" in ast.unparse(n) and n.lineno < min(imports)]


def _beside(module: str) -> bool:
    return module.partition(".")[0] in ("benchmarks", "tests")
