"""One self-contained HTML file: no script, nothing fetched, legible on a screen and on paper.

Text from outside comes in through `skewsim.html` or `escape` alone. A policy in the file's head forbids the browser to
load or run anything, whatever got past that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from skewsim import __version__
from skewsim.html import Markup, heading, paragraph, table

if TYPE_CHECKING:
    from skewsim.runs.figures import Picture

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.about { color: #555; margin-top: 0; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0 1rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere; }
th, td:first-child { overflow-wrap: normal; }
pre { background: #f5f5f5; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; }
figure { margin: .5rem 0; } figure svg { width: 100%; height: auto; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print { :root { font-size: 12px; } body { margin: 0; max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass
class Document:
    """A report, put together from its top to its bottom."""

    title: str
    about: str
    parts: list[str] = field(default_factory=list)

    def section(self, title: str, *parts: str) -> None:
        """A heading and what is below it; ``parts`` are HTML."""
        self.parts += [f"<h2>{escape(title)}</h2>", *parts]

    def to_html(self) -> str:
        """The whole file."""
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
            f'<h1>{escape(self.title)}</h1><p class="about">{escape(self.about)}</p>'
            + "\n".join(self.parts)
            + f'<p class="about">Made by skewsim {escape(__version__)}.</p></body></html>\n'
        )


def picture(found: Picture, label: str) -> str:
    """A figure as inline SVG; ``label`` is read out to who does not see it."""
    return f'<figure role="img" aria-label="{escape(label)}">{found.svg()}</figure>'


def text_block(text: str) -> str:
    """Text as it is: a file, a command."""
    return f"<pre>{escape(text)}</pre>"


def own_html(thing: object) -> str:
    """What an object shows of itself in a notebook."""
    return str(thing._repr_html_())  # type: ignore[attr-defined]


def pairs(values: Mapping[str, object], names: tuple[str, str] = ("", "")) -> str:
    """A table of names and values."""
    return table(names, list(values.items()))


def rows(columns: Sequence[str], found: Iterable[Sequence[object]]) -> str:
    """A table."""
    return table(columns, found)


__all__ = ["Document", "Markup", "heading", "own_html", "pairs", "paragraph", "picture", "rows", "text_block"]
