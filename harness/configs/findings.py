"""What a look at a configuration finds: the traps it is in, each with the line to change; text, JSON and Markdown."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skewsim.errors import shown

Certainty = Literal["is", "may be"]
"""is: the file says so. may be: it depends on a default, a condition, the model, or how noisy the engine is."""
_WIDTH = 80
SPELLING = (
    "A key that is in the wrong place, or nothing like a known one, is not noticed: the default is judged instead."
)


@dataclass(frozen=True)
class Finding:
    """One trap that a configuration is in."""

    trap: str
    """Its name: a key of `harness.configs.traps.TRAPS`."""
    certainty: Certainty
    what: str
    """What happens, with the figures of this file."""
    change: str
    """The line to change to."""
    setting: str
    value: Any
    line: int | None
    """Where the setting stands; None: it does not, and a default holds."""
    file: str
    source: str
    causes: tuple[str, ...] = ()
    """What `skewsim diagnose` would call it in a log."""

    @property
    def where(self) -> str:
        return "not set" if self.line is None else f"{Path(self.file).name}:{self.line}"

    @property
    def said(self) -> str:
        """The setting and its value, as the file has it or by default."""
        if self.line is not None:
            return f"{self.setting} = {shown(self.value, 60)}"
        return self.setting if self.value is None else f"{self.setting} (default: {shown(self.value, 60)})"

    def to_json(self) -> dict[str, Any]:
        return {
            "trap": self.trap,
            "certainty": self.certainty,
            "what": self.what,
            "change": self.change,
            "setting": self.setting,
            "value": self.value if isinstance(self.value, bool | int | float | list | None) else str(self.value),
            "line": self.line,
            "file": self.file,
            "source": self.source,
            "causes": list(self.causes),
        }


@dataclass(frozen=True)
class ConfigReport:
    """All that was found in one configuration."""

    framework: str
    files: tuple[str, ...]
    vllm: str | None
    findings: tuple[Finding, ...]
    looked_at: tuple[str, ...]
    """The traps that were looked for."""
    defaults: tuple[tuple[str, str], ...] = ()
    """What this version of vLLM does where nothing is set: (setting, default)."""
    notes: tuple[str, ...] = ()

    @property
    def trapped(self) -> bool:
        """Whether it surely is in a trap."""
        return any(each.certainty == "is" for each in self.findings)

    @property
    def headline(self) -> str:
        sure = sum(each.certainty == "is" for each in self.findings)
        counted = f"{sure} trap{'s' * (sure != 1)} found, {len(self.findings) - sure} possible"
        return f"{' + '.join(Path(name).name for name in self.files)} ({self.framework}): {counted}"

    def to_json(self) -> dict[str, Any]:
        return {
            "framework": self.framework,
            "files": list(self.files),
            "vllm": self.vllm,
            "traps": [each.to_json() for each in self.findings],
            "looked_at": list(self.looked_at),
            "defaults": dict(self.defaults),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Lines of 80 columns."""
        lines = _wrapped(self.headline)
        for each in self.findings:
            lines += ["", *_wrapped(f"{_SURE[each.certainty]}: {each.trap}")]
            lines += _wrapped(f"{each.where}: {each.said}", "  ")
            lines += _wrapped(each.what, "  ") + _wrapped(f"change to: {each.change}", "  ", "    ", whole=True)
            lines.append(f"  source: {each.source}")
        lines += self._rest()
        return "\n".join(lines)

    def _rest(self) -> list[str]:
        lines = ["", *_wrapped(f"looked for: {', '.join(self.looked_at)}"), *_wrapped(SPELLING)]
        if self.defaults:
            lines += ["", f"vLLM {self.vllm}, where neither the file nor {self.framework} sets it:"]
            lines += [line for name, value in self.defaults for line in _wrapped(f"{name}: {value}", "  ", "    ")]
        return lines + [line for note in self.notes for line in ("", *_wrapped(f"note: {note}"))]

    def to_markdown(self) -> str:
        """A section to paste into an issue."""
        rows = [
            f"| {each.certainty} | `{each.trap}` | {each.where} | `{_cell(each.said)}` "
            f"| {_cell(each.what)} | `{_cell(each.change)}` | {each.source} |"
            for each in self.findings
        ]
        head = ["| | trap | where | setting | what happens | change to | source |", "|---|---|---|---|---|---|---|"]
        table = [*head, *rows] if rows else ["No known trap."]
        rest = [f"Looked for: {', '.join(self.looked_at)}.", SPELLING, *(f"Note: {_cell(note)}" for note in self.notes)]
        return "\n".join([f"### {_cell(self.headline)}", "", *table, "", *rest])


_SURE = {"is": "TRAP", "may be": "possible"}


def _wrapped(text: str, indent: str = "", hanging: str | None = None, *, whole: bool = False) -> list[str]:
    """Lines of `_WIDTH`; `whole`: but no word is broken, so that a line to change can be copied."""
    hanging = indent if hanging is None else hanging
    wrapper = textwrap.TextWrapper(
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=not whole,
        break_on_hyphens=False,
    )
    return wrapper.wrap(shown(text))


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|").replace("`", "'")
