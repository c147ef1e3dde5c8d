"""YAML and TOML as settings: nested keys become dotted names, and every value has its line.

YAML is composed and never constructed, so no tag in it makes an object. OmegaConf's references (`${a.b}`, relative
`${.b}`) are followed where the file has what they point to; other interpolations are unknown values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.configs.settings import MOST_SETTINGS, Setting, Settings, Unknown
from skewsim.border import DEEPEST, parse_toml, read_small
from skewsim.errors import FileFormatError, shown

LARGEST = 1 << 18
"""Bytes of a configuration file."""
_MOST_PARENTS = 8
_MOST_BRACKETS = 200
_REFERENCE = re.compile(r"\$\{(\.*)([A-Za-z_][\w.]*)\}")


def read_text(path: Path) -> str:
    """A configuration file's text. FileFormatError if it is no text, too large or no regular file."""
    try:
        return read_small(path, limit=LARGEST).decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{path}: is no configuration: not UTF-8 text") from None


def read_yaml(text: str, path: Path) -> Settings:
    """The settings of a YAML file, and of the files that its `defaults` name where they lie beside it."""
    settings = Settings("yaml")
    for setting in _yaml_rows(text, path):
        settings.add(setting)
    _add_parents(settings, path)
    _resolve(settings)
    return settings


def _add_parents(settings: Settings, path: Path) -> None:
    """NeMo-RL's recipes: `defaults: ../base.yaml` (nemo_rl/utils/config.py), the base below the recipe."""
    here, said = path, settings.found.get("defaults")
    for _ in range(_MOST_PARENTS):
        if said is None or not said.text.endswith((".yaml", ".yml")):
            return
        here = here.parent / said.text
        if not here.is_file():
            settings.notes.append(f"not read: {here.name}, which {path.name} is based on")
            return
        rows = list(_yaml_rows(read_text(here), here))
        said = next((row for row in rows if row.name == "defaults"), None)
        settings.under(rows)


def _yaml_rows(text: str, path: Path) -> Iterator[Setting]:
    """Every value of a YAML file. FileFormatError if it is none."""
    import yaml

    _check_brackets(text, path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        yield from _walk(root, str(path))
    except yaml.YAMLError as error:
        raise FileFormatError(f"{path}: is no YAML file: {shown(_reason(error), 200)}") from None
    except RecursionError:
        raise FileFormatError(f"{path}: nested more than {DEEPEST} deep") from None


def _reason(error: Exception) -> str:
    """A mistake in YAML with its place; the parser's own words quote the text and name it `<unicode string>`."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return str(error)
    begun = getattr(error, "context_mark", None)
    context = "" if begun is None else f" ({error.context}, which begins in line {begun.line + 1})"  # type: ignore[attr-defined]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{context}"


def _check_brackets(text: str, path: Path) -> None:
    """FileFormatError if brackets are open within each other by the hundred: composing takes time as their square."""
    depth = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if depth > _MOST_BRACKETS:
            raise FileFormatError(f"{path}: nested more than {_MOST_BRACKETS} deep")


def _walk(root: Any, file: str) -> Iterator[Setting]:
    """Leaves of a composed YAML tree, without recursion: aliases can make a small file endless."""
    import yaml

    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    seen = 0
    while todo:
        name, node, depth = todo.pop()
        seen += 1
        if seen > MOST_SETTINGS or depth > DEEPEST:
            raise FileFormatError(f"{file}: more than {MOST_SETTINGS} values, or nested more than {DEEPEST} deep")
        if isinstance(node, yaml.MappingNode):
            todo += [(_below(name, _scalar(key)), value, depth + 1) for key, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            values = [_scalar(each) for each in node.value if isinstance(each, yaml.ScalarNode)]
            yield Setting(name, values, node.start_mark.line + 1, file)
        elif isinstance(node, yaml.ScalarNode):
            yield Setting(name, _scalar(node), node.start_mark.line + 1, file)


def _below(name: str, key: Any) -> str:
    if key == "<<":
        return name
    return f"{name}.{shown(key, 100)}" if name else shown(key, 100)


def _scalar(node: Any) -> Any:
    """A scalar's value as YAML 1.1 reads it; what it cannot read stays a string."""
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        return ""
    makers = {"int": "construct_yaml_int", "float": "construct_yaml_float", "bool": "construct_yaml_bool"}
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind not in makers or len(node.value) > 100:
        return node.value
    try:
        return getattr(yaml.constructor.SafeConstructor(), makers[kind])(node)
    except (ValueError, KeyError, IndexError, AttributeError):
        return node.value


def _resolve(settings: Settings) -> None:
    """Follows references, a few links far."""
    for _ in range(5):
        for setting in list(settings):
            if isinstance(setting.value, str) and "${" in setting.value:
                settings.found[setting.name] = _followed(setting, settings)
    for setting in list(settings):
        if isinstance(setting.value, str) and "${" in setting.value:
            settings.found[setting.name] = _with(setting, Unknown(setting.value))


def _followed(setting: Setting, settings: Settings) -> Setting:
    match = _REFERENCE.fullmatch(setting.value)
    if match is None:
        return setting
    levels = setting.name.split(".")
    base = levels[: len(levels) - len(match[1])] if match[1] else []
    target = settings.found.get(".".join([*base, match[2]]))
    return setting if target is None else _with(setting, target.value)


def _with(setting: Setting, value: Any) -> Setting:
    return Setting(setting.name, value, setting.line, setting.file, setting.conditional)


# ------------------------------------------------------------------------------------------------ TOML


def read_toml(text: str, path: Path) -> Settings:
    """The settings of a TOML file. An array of tables counts by its first entry that has a key."""
    settings = Settings("toml")
    lines = _toml_lines(text)
    for name, value in _toml_leaves(parse_toml(text, str(path))):
        if name not in settings.found:
            settings.add(Setting(name, value, _nearest(name, lines), str(path)))
    return settings


def _toml_leaves(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    todo: list[tuple[str, Any]] = [("", data)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, dict):
            todo += [(_below(name, key), each) for key, each in reversed(value.items())]
            if name:
                yield name, {}  # the table itself: that it is there can be a setting
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            todo += [(name, each) for each in reversed(value)]
        else:
            yield name, value


def _toml_lines(text: str) -> dict[str, int]:
    """Dotted name -> line, as far as headers and keys are plain."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[{1,2}\s*([\w.\-\" ]+?)\s*\]{1,2}", line)
        key = re.match(r"\s*([\w.\-\"]+)\s*=", line)
        if header:
            table = header[1].replace('"', "")
            lines.setdefault(table, number)
        elif key:
            lines.setdefault(_below(table, key[1].replace('"', "")), number)
    return lines


def _nearest(name: str, lines: dict[str, int]) -> int:
    """The line of a name, or of the table that it is in."""
    while name:
        if name in lines:
            return lines[name]
        name = name.rpartition(".")[0]
    return 1
