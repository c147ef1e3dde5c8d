"""A diagnosis as a page for a person: is it normal, bias or noise, the causes with what mends them, where it lives."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from skewsim.diagnose.causes import Cause, Diagnosis, fix_parts

NARROW, WIDE = 60, 120
"""Columns between which lines are folded."""
BAR = 6


def page(found: Diagnosis, width: int = 80) -> Iterator[str]:
    """The page's lines, folded to this many columns."""
    width = min(max(width, NARROW), WIDE)
    for line in _head(found):
        yield _folded(line, width)
    for cause in found.to_mend:
        yield from _told(cause, width)
    yield ""
    yield from _where(found, width)


def _folded(line: str, width: int, first: str = "", later: str = "  ") -> str:
    return textwrap.fill(
        line, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _head(found: Diagnosis) -> Iterator[str]:
    layer = f" ({found.layer} layer)" if found.layer else ""
    yield f"verdict: {found.verdict}{layer}; rms skew {found.rms:.3g} nats, {found.tokens} tokens in {found.sequences} sequences"
    if found.usual:
        yield f"normal: {_normal(found)}{found.usual}"
    if found.placed:
        yield f"published: {found.placed}"
    if found.kind_text:
        yield f"kind: {found.kind_text}"
    if found.agreement is not None:
        apart = ", ".join(f"{pair} {rms:.3g}" for pair, rms in found.agreement.items())
        yield f"odd one out: {found.odd_one_out or 'none'} (rms apart: {apart})"


def _normal(found: Diagnosis) -> str:
    """Whether it is; where the size is usual though something is wrong, what the size is of."""
    if found.normal or "above what is usual" in found.usual:
        return "yes; " if found.normal else "no; "
    return "no; without those values " if found.verdict == "placeholder_logprobs" else "no, though its size would be; "


def _told(cause: Cause, width: int) -> Iterator[str]:
    share = f"explains {_percent(cause.explained)}" if cause.sized else "no share: what is no number has no size"
    yield f"\n{cause.name}: {share}"
    yield _folded(cause.evidence, width, "  ", "  ")
    if cause.fix:
        general, *settings = fix_parts(cause.fix)
        yield _folded(f"fix: {general}", width, "  ", "  ")
        yield from (_folded(f"- {setting.removesuffix('.')}", width, "    ", "      ") for setting in settings)


def _percent(share: float) -> str:
    return "less than 1 %" if 0 < share < 0.01 else f"{share:.0%}"


def _where(found: Diagnosis, width: int) -> Iterator[str]:
    if not found.where:
        yield "where it lives: no column stands out"
        return
    names = [place.words for place in found.where]
    wide = min(max(map(len, names)), max(width, 80) - 50)
    yield _folded(
        "where it lives (share of the mean square; rms inside, outside and bias inside; z; sequences):", width
    )
    for name, p in zip(names, found.where, strict=True):
        yield (
            f"  {name:{wide}} {bar(p.explained, BAR)} {p.explained:4.0%} {p.rms_inside:7.3g} {p.rms_outside:7.3g} "
            f"{p.bias_inside:+8.2g} {p.z:5.1f} {p.sequences:4}"
        )


def bar(share: float, width: int = 12) -> str:
    """A share as a bar of plain characters."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)
