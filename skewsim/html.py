"""Small pieces of HTML for notebooks: tables and bars, legible on light and dark pages, with all text escaped.

The objects that a notebook shows as HTML (a ladder, a profile, a diagnosis, advice) build their ``_repr_html_`` from
these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def heading(text: str) -> str:
    """A bold line."""
    return f"<p><b>{escape(text)}</b></p>"


def paragraph(text: str) -> str:
    """A line of text."""
    return f"<p>{escape(text)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are escaped unless they are `Markup`."""
    head = "".join(f"<th style='text-align:left'>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Markup(str):
    """HTML made by this module, which `table` does not escape again."""


def bar(share: float, *, width: int = 120) -> Markup:
    """A bar whose length is a share from 0 to 1, with the share as a label for screen readers."""
    share = min(max(share, 0.0), 1.0)
    return Markup(
        f"<span role='img' aria-label='{share:.0%}' style='display:inline-block;width:{width}px;"
        f"background:rgba(127,127,127,.25)'><span style='display:inline-block;height:.8em;width:{share * width:.0f}px;"
        "background:#0072B2'></span></span>"
    )


_SHORT = 12


def _cell(value: object) -> str:
    """A cell; a number or a word is not broken, however narrow the page is."""
    text = value if isinstance(value, Markup) else _words(value)
    style = "text-align:left;white-space:nowrap" if len(text) <= _SHORT else "text-align:left"
    return f"<td style={style}>{text if isinstance(text, Markup) else escape(text)}</td>"


def _words(value: object) -> str:
    """A value as a person would write it; tables within tables in brackets."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case Mapping():
            return ", ".join(
                f"{key} ({_words(each)})" if isinstance(each, Mapping) else f"{key}={_words(each)}"
                for key, each in value.items()
            )
        case list() | tuple():
            return ", ".join(map(_words, value))
    return str(value)
