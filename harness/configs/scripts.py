"""Shell scripts and Python files as settings. Nothing is run: words are split, literals are read.

In a shell script settings are `--flag value` and Hydra's `a.b=value`, on a command line or in an array such as
`GRPO_ARGS=(...)`. Variables are followed where the script itself sets them or gives a default (`${T:-1.0}`); what is
between `if` and `fi`, or in a loop or a case, is conditional. Of a Python file the keyword arguments of the calls named
in `CALLS` are read, through names that the file binds to literals.
"""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.configs.settings import Setting, Settings, Unknown
from skewsim.errors import FileFormatError

CALLS = ("GRPOConfig", "RLOOConfig", "AsyncGRPOConfig", "LoraConfig", "LLM", "SamplingParams")
"""Calls whose keywords are settings: TRL's trainer configurations, PEFT's adapter, vLLM's engine and request."""
_CONFIGS = ("GRPOConfig", "RLOOConfig", "AsyncGRPOConfig")
_BREAK = ""
"""The end of a command among the words."""
_NO_WORDS = ("\\", ";", "&&", "|", "&")
_OPEN, _CLOSE = ("if", "case", "for", "while", "until"), ("fi", "esac", "done")
_VARIABLE = re.compile(r"\$\{(\w+)(:?[-=])?([^${}]*)\}|\$(\w+)")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
_OVERRIDE = re.compile(r"\+{0,2}([A-Za-z_]\w*(?:\.\w+)+|model_engine)=(.*)", re.DOTALL)
_QUOTED = re.compile(r'"([A-Z][A-Z0-9_]*)"\s*:\s*"?([\w.]+)"?')
_ARRAY = re.compile(r"\$\{\w+\[[@*]\]\}")
_FLAG = re.compile(r"--([A-Za-z][\w.\-]*)(?:=(.*))?", re.DOTALL)


def read_shell(text: str, path: Path) -> Settings:
    """The settings of a shell script."""
    settings = Settings("shell")
    words = list(_words(text))
    variables = _variables(words)
    words = [word for word in words if _judge(word, variables) is not False]
    for setting in _from_words(words, variables, str(path)):
        settings.add(setting)
    return settings


Condition = tuple[str, ...]
"""The words of a condition; empty for one that is not looked into."""


@dataclass
class Word:
    """A word of the script, with its line and the conditions under which it stands."""

    text: str
    line: int
    conditions: tuple[Condition, ...] = ()
    conditional: bool = False
    """Whether one of the conditions is not known to hold."""


def _words(text: str) -> Iterator[Word]:
    """All words; an empty one where a command ends. Arrays lose their brackets and count as commands."""
    conditions: list[Condition] = []
    inside = False
    for number, line in _logical_lines(text):
        words = _split(line)
        _open(conditions, words)
        for word in words:
            opened = re.match(r"[A-Za-z_]\w*\+?=\(", word)
            if opened:
                inside = True
                yield Word(_BREAK, number, tuple(conditions))
            word = word[opened.end() :] if opened else word
            closed = inside and word.endswith(")") and word.count("(") < word.count(")")
            word = word[:-1] if closed else word
            if word and word not in _NO_WORDS and not _ARRAY.fullmatch(word):
                yield Word(word.removesuffix(";"), number, tuple(conditions))
            inside = inside and not closed
        if not line.rstrip().endswith("\\"):
            yield Word(_BREAK, number, tuple(conditions))
        _close(conditions, words)


def _open(conditions: list[Condition], words: list[str]) -> None:
    """A line that begins a condition, or its other branch, which is not looked into."""
    if words and words[0] in _OPEN:
        end = next((at for at, word in enumerate(words) if word in ("then", "]", "]]", "];", "]];")), 0)
        plain = words[0] == "if" and len(words) > 1 and words[1] in ("[", "[[")
        conditions.append(tuple(words[2:end]) if plain and not {"&&", "||"} & set(words) else ())
    elif words and words[0] in ("else", "elif") and conditions:
        conditions[-1] = ()


def _close(conditions: list[Condition], words: list[str]) -> None:
    ends = words and (words[0].rstrip(";") in _CLOSE or (words[0] in _OPEN and words[-1].rstrip(";") in _CLOSE))
    if ends and conditions:
        conditions.pop()


def _judge(word: Word, variables: dict[str, str | None]) -> bool | None:
    """Whether the word's conditions all hold; None, and conditional, if one of them is not known."""
    held = [_holds(each, variables) for each in word.conditions]
    word.conditional = not all(held)
    return False if False in held else None if None in held else True


def _holds(condition: Condition, variables: dict[str, str | None]) -> bool | None:
    """Whether `[ A = B ]`, `[ A != B ]`, `[ -n A ]` or `[ -z A ]` holds; None if not known, or another condition."""
    sides = [_expanded(each, variables) for each in condition]
    if len(sides) == 3 and condition[1] in ("=", "==", "!="):
        left, _, right = sides
        return None if left is None or right is None else (left == right) == (condition[1] != "!=")
    if len(sides) == 2 and condition[0] in ("-n", "-z"):
        return None if sides[1] is None else bool(sides[1]) == (condition[0] == "-n")
    return None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line); a line that opens a quotation is joined with the next ones, as far as it closes soon."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        for end in range(at + 1, min(at + 40, len(lines)) + 1):
            joined = "\n".join(lines[at:end])
            if _closed(joined):
                break
        else:
            joined, end = lines[at], at + 1
        yield at + 1, joined
        at = end


def _closed(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError as error:
        return "escaped" in str(error)  # a backslash at the end
    return True


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line.rstrip().removesuffix("\\"), comments=True)
    except ValueError:
        return line.split()


def _variables(words: list[Word]) -> dict[str, str | None]:
    """What the script sets variables to: `NAME=value`, alone or after export. None where only a condition sets it."""
    found: dict[str, str | None] = {}
    for word in words:
        match = _ASSIGNMENT.fullmatch(word.text)
        if match and not _OVERRIDE.fullmatch(word.text):
            if not word.conditions:
                found[match[1]] = _expanded(match[2], found)
            elif match[1] not in found:
                found[match[1]] = None
    return found


def _expanded(text: str, variables: dict[str, str | None]) -> str | None:
    """The text with its variables filled in; None if one of them is not known."""
    for _ in range(20):
        match = _VARIABLE.search(text)
        if match is None:
            return None if "$(" in text or "`" in text or "${" in text else text
        value = variables.get(match[1] or match[4])
        if value is None and match[2]:
            value = match[3]
        if value is None or len(text) > 10_000:
            return None
        text = text[: match.start()] + value + text[match.end() :]
    return None


def _from_words(words: list[Word], variables: dict[str, str | None], file: str) -> Iterator[Setting]:
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        override = _OVERRIDE.fullmatch(word.text)
        flag = _FLAG.fullmatch(word.text)
        assigned = _ASSIGNMENT.fullmatch(word.text)
        if override:
            yield _setting(override[1], [_unquoted(override[2])], word, variables, file)
        elif flag:
            values, at = ([flag[2]], at) if flag[2] is not None else _values(words, at)
            yield _setting(flag[1].replace("_", "-"), values, word, variables, file)
        elif assigned:
            yield _setting(f"env.{assigned[1]}", [assigned[2]], word, variables, file)
            for name, value in _QUOTED.findall(assigned[2]):  # the JSON of a job's environment
                yield _setting(f"env.{name}", [value], word, variables, file)


def _unquoted(text: str) -> str:
    """Hydra's own quotation marks, inside the shell's."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _values(words: list[Word], at: int) -> tuple[list[str], int]:
    """The words after a flag up to the next flag, and where that is."""
    end = at
    while end < len(words) and _is_value(words[end]):
        end += 1
    return [word.text for word in words[at:end]], end


def _is_value(word: Word) -> bool:
    return word.text != _BREAK and not word.text.startswith("--") and not _OVERRIDE.fullmatch(word.text)


def _setting(name: str, values: list[str], word: Word, variables: dict[str, str | None], file: str) -> Setting:
    filled = [_value(text, variables) for text in values]
    value = True if not filled else filled[0] if len(filled) == 1 else filled
    return Setting(name, value, word.line, file, word.conditional)


def _value(text: str, variables: dict[str, str | None]) -> Any:
    filled = _expanded(text, variables)
    return Unknown(text) if filled is None else filled


# ------------------------------------------------------------------------------------------------ Python


def read_python(text: str, path: Path) -> Settings:
    """The keyword literals of a Python file's calls of `CALLS`. FileFormatError if it is no Python."""
    settings = Settings("python")
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(text)
        known = _literals(tree)
        for setting in _from_calls(tree, known, str(path)):
            settings.add(setting)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"{path}: is no Python file that can be read: {type(error).__name__}") from None
    return settings


def _literals(tree: ast.AST) -> dict[str, ast.expr]:
    """Name -> the expression it is bound to, of names that are bound once."""
    bound: dict[str, ast.expr] = {}
    twice: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            twice |= {name} & bound.keys()
            bound[name] = node.value
    return {name: value for name, value in bound.items() if name not in twice}


def _from_calls(tree: ast.AST, known: dict[str, ast.expr], file: str) -> Iterator[Setting]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _called(node)) in CALLS:
            prefix = "" if name in _CONFIGS else f"{name}."
            yield Setting(f"call.{name}", True, node.lineno, file)
            for keyword in node.keywords:
                if keyword.arg is not None:
                    yield from _from_value(prefix + keyword.arg, keyword.value, known, file, 0)


def _called(call: ast.Call) -> str:
    function = call.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _from_value(name: str, value: ast.expr, known: dict[str, ast.expr], file: str, depth: int) -> Iterator[Setting]:
    """A setting of a keyword; one for each entry of a dictionary, under a dotted name."""
    if isinstance(value, ast.Name) and value.id in known and depth < 5:
        yield from _from_value(name, known[value.id], known, file, depth + 1)
        return
    if isinstance(value, ast.Dict) and depth < 5:
        for key, each in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield from _from_value(f"{name}.{key.value!s}", each, known, file, depth + 1)
        return
    if isinstance(value, ast.Call) and _called(value) == "dict" and depth < 5:
        for keyword in value.keywords:
            if keyword.arg is not None:
                yield from _from_value(f"{name}.{keyword.arg}", keyword.value, known, file, depth + 1)
        return
    yield Setting(name, _literal(value), value.lineno, file)


def _literal(value: ast.expr) -> Any:
    if isinstance(value, ast.Attribute):
        return value.attr  # torch.bfloat16
    try:
        found = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return Unknown(type(value).__name__)
    return found if isinstance(found, bool | int | float | str | type(None) | list) else Unknown(type(value).__name__)
