"""What the pages under docs/ say about the code is true."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest

from skewsim import catalogue
from skewsim.learn.objectives import OBJECTIVES
from skewsim.runs.ladder import Rung
from skewsim.scenarios import SCENARIOS, Named
from skewsim.settings import CorrectionSettings, Scenario
from skewsim.share import from_toml
from skewsim.skew.metric_table import METRICS, Metric

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SCIENCE, SCENARIO_PAGE, ARCHITECTURE = (
    (DOCS / f"{n}.md").read_text() for n in ("science", "scenarios", "architecture")
)


def table_row(metric: Metric) -> str:
    """A metric's row in the science page: key, formula, unit, meaning, other names; bars escaped as Markdown wants."""

    def quoted(name: str) -> str:
        word, _, remark = name.partition(" (")
        return f"`{word}`" + (f" ({remark}" if remark else "")

    names = "; ".join(f"{who} {quoted(name)}" for who, name in metric.aliases.items())
    cells = [f"`{metric.key}`", f"`{metric.formula}`", metric.unit, metric.description, names]
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def differences(named: Named) -> dict[str, object]:
    """The dotted settings in which a named scenario is not the reference."""
    return {path: value for path, value in named.values.items() if value_at(Scenario(), path) != value}


def value_at(scenario: Scenario, path: str) -> object:
    return reduce(getattr, path.split("."), scenario)


def setting_tables() -> list[tuple[str, str, str]]:
    """(setting, scenario, value as written) from every table whose first column is headed `setting`."""
    found, names = [], []
    for line in SCENARIO_PAGE.splitlines():
        cells = [cell.strip(" `*") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            names = []
        elif cells[0] == "setting" and set(cells[1:]) <= set(SCENARIOS):
            names = cells[1:]
        elif names and not set(cells[0]) <= set("-: "):
            found += [(cells[0], name, value) for name, value in zip(names, cells[1:], strict=True)]
    return found


@pytest.mark.parametrize("key", METRICS)
def test_every_metric_has_its_row_as_the_code_has_it(key: str) -> None:
    assert table_row(METRICS[key]) in SCIENCE.splitlines(), f"docs/science.md needs: {table_row(METRICS[key])}"


@pytest.mark.parametrize("name", sorted({name.partition("/")[0] for name in OBJECTIVES}))
def test_every_objective_is_explained(name: str) -> None:
    assert f"| `{name}`" in SCIENCE


@pytest.mark.parametrize("key", catalogue.OBJECTIVES)
def test_every_objective_has_its_default_clip_as_the_table_has_it(key: str) -> None:
    """The fifth column: ``0.2 / 0.28``, a dash for no bound, remarks in brackets."""
    name, _, form = key.partition("/")
    rows = [row for row in SCIENCE.splitlines() if row.startswith(f"| `{name}`")]
    row = next((row for row in rows if f"form `{form}`" in row), rows[0])
    objective, cell = catalogue.OBJECTIVES[key], row.split(" | ")[4].partition(" (")[0]
    shown = [math.nan if text == "-" else float(text) for text in cell.split(" / ")]
    defaults = [math.nan if x is None else x for x in (objective.epsilon, objective.epsilon_high)]
    assert shown == pytest.approx(defaults[: len(shown)], nan_ok=True)


@pytest.mark.parametrize("name", catalogue.CORRECTIONS)
def test_every_correction_is_explained_with_the_default_bounds_of_the_table(name: str) -> None:
    (row,) = (row for row in SCIENCE.splitlines() if re.match(rf'\| `(\w+ = "{name}"|{name})`', row))
    for bounds in catalogue.CORRECTIONS[name].defaults.values():
        for value in (bounds.low, bounds.high):
            assert value is None or catalogue.short(value) in row


@pytest.mark.parametrize("name", CorrectionSettings.model_fields)
def test_every_correction_setting_is_explained(name: str) -> None:
    assert f"`{name}" in SCIENCE


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_named_scenario_is_on_its_page_with_the_settings_that_make_it(name: str) -> None:
    assert f"| `{name}` | " in SCENARIO_PAGE
    shown = {setting for setting, other, _ in setting_tables() if other == name}
    assert set(differences(SCENARIOS[name])) <= shown


@pytest.mark.parametrize(("setting", "name", "value"), setting_tables())
def test_every_setting_shown_of_a_scenario_is_its_own(setting: str, name: str, value: str) -> None:
    assert str(value_at(SCENARIOS[name].scenario(name), setting)).lower() == value


@pytest.mark.parametrize("name", [field.name for field in fields(Rung)])
def test_every_key_of_a_rung_is_explained(name: str) -> None:
    assert f"| `{name}` |" in SCENARIO_PAGE


def test_the_toml_on_the_page_is_a_scenario() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", SCENARIO_PAGE, flags=re.DOTALL)
    assert from_toml(text).skew.noise == "student_t"


def test_the_python_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SCENARIO_PAGE, flags=re.DOTALL)
    exec(compile(code, "docs/scenarios.md", "exec"), {})
    k3, loss, kept = map(float, capsys.readouterr().out.split())
    assert 0 < k3 < 0.1
    assert abs(loss) < 1
    assert kept == 1


def rooms() -> list[str]:
    """The files that the architecture page lists, with their folders."""
    text = ARCHITECTURE.partition("## Rooms")[2].partition("## ")[0]
    found, folders = [], [""]
    for line in text.splitlines():
        if entry := re.match(r"((?:  )*)([\w.-]+/?) ", line):
            depth, name = len(entry[1]) // 2, entry[2]
            folders = folders[: depth + 1]
            if name.endswith("/"):
                folders.append(folders[depth] + name)
            else:
                found.append(folders[depth] + name)
    return found


def test_the_architecture_lists_every_room_and_no_other() -> None:
    files = [path for part in ("skewsim", "harness", "tui") for path in (ROOT / part).rglob("*.py")]
    there = {path.relative_to(ROOT).as_posix() for path in files if _has_code(path)}
    named = {name for name in rooms() if name.endswith(".py")}
    assert there - named == set(), "rooms that docs/architecture.md does not list"
    assert named - there == set(), "rooms that docs/architecture.md lists and that are gone"


def _has_code(path: Path) -> bool:
    """False for a package's ``__init__.py`` that has only a docstring."""
    return path.name != "__init__.py" or len(path.read_text().strip().splitlines()) > 3


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_link_to_a_file_of_the_project_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def prose(page: Path) -> list[str]:
    """The lines of a page that are neither code, nor tables, nor pictures; addresses of links are left out."""
    found, code = [], False
    for line in page.read_text().splitlines():
        code ^= line.startswith("```")
        if not code and not line.lstrip().startswith(("|", "![", "```")):
            found.append(re.sub(r"\]\(\S+\)", "]", line))
    return found


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    assert not [line for line in prose(page) if len(line) > 120]
