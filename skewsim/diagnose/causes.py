"""The causes a diagnosis can name, the layer each belongs to, and a diagnosis with its causes.

Layers are put right in this order: semantic (the number reported is not the log-probability of what was sampled),
inference path (the engine computed it from the wrong state), precision, staleness, objective. A correction in the
objective hides the others, so it comes last.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from skewsim.diagnose.fixes import FIX, REPOSITORIES
from skewsim.errors import UserError
from skewsim.html import bar, heading, paragraph, table

LAYERS = ("semantic", "inference path", "precision", "staleness", "objective")

LAYER_OF: dict[str, str | None] = {
    "placeholder_logprobs": "semantic",
    "not_the_sampled_token": "semantic",
    "misaligned_tokens": "semantic",
    "different_context": "semantic",
    "raw_logprobs": "semantic",
    "wrong_temperature": "semantic",
    "truncation_mass": "semantic",
    "one_sided_processor": "semantic",
    "outlier_sequences": "inference path",
    "stale_kv": "inference path",
    "packed_rows": "inference path",
    "position_dependent": "inference path",
    "stochastic_trainer": "inference path",
    "head_dtype": "precision",
    "one_sided_fp32_head": "precision",
    "compute_dtype": "precision",
    "moe_routing": "precision",
    "stale_weights": "staleness",
    "stale_replica": "staleness",
    "weights_not_delivered": "staleness",
    "healthy": None,
    "unknown": None,
}


@dataclass(frozen=True)
class Cause:
    """One thing found, with the share of the mean square skew it explains and the figures that speak for it."""

    name: str
    explained: float
    evidence: str
    fix: str
    sized: bool = True
    """Whether its share was measured: values that are no number have no size, and `explained` is 1 for them."""

    @property
    def layer(self) -> str | None:
        return LAYER_OF[self.name]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "layer": self.layer,
            "explained": round(min(max(self.explained, 0.0), 1.0), 4),
            "evidence": self.evidence,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Place:
    """One column and the value of it at which the skew differs."""

    column: str
    value: str
    tokens: int
    sequences: int
    rms_inside: float
    rms_outside: float
    bias_inside: float
    explained: float
    """Share of the mean square above the level outside."""
    z: float
    """How sure the difference is, with the sequence as the unit and all columns that were looked at counted."""

    @property
    def words(self) -> str:
        return in_words(self.column, self.value)

    def to_json(self) -> dict[str, Any]:
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Diagnosis:
    """Causes by share explained; `verdict` is the one that hurts most."""

    causes: tuple[Cause, ...]
    tokens: int
    sequences: int
    rms: float
    notes: tuple[str, ...] = ()
    """What was looked at and ruled out, and what could not be looked at."""
    where: tuple[Place, ...] = ()
    """Where the skew is larger or biased, the strongest first, whatever the cause."""
    kind: str = "none"
    """misreported, other_distribution, noise or none."""
    kind_text: str = ""
    values: tuple[str, ...] = ()
    """Values that are no log-probabilities, in words."""
    odd_one_out: str | None = None
    """engine, trainer or model, where the other two agree."""
    agreement: dict[str, float] | None = None
    """rms distance of each pair of engine, trainer and model, nats."""
    normal: bool | None = None
    """Whether this is usual for the dtype and the kind of model; None if there is nothing to compare with."""
    usual: str = ""
    """The same in words, beside published figures."""
    like: dict[str, Any] | None = None
    """Where the rms stands among published runs of the same dtype and kind: `skewsim.skew.placing.Placing.to_json`."""
    error: float = 0.25
    """By how much the shares of two causes may differ by chance: two standard errors over sequences."""

    @property
    def to_mend(self) -> tuple[Cause, ...]:
        """What hurts most first; shares that differ by less than their error, in the order of layers."""
        top = max((cause.explained for cause in self.causes), default=0.0)
        near = [cause for cause in self.causes if cause.explained >= top - self.error and cause.explained >= 0.01]
        first = tuple(sorted(near or self.causes, key=lambda cause: (_rank(cause), -cause.explained)))
        return first + tuple(cause for cause in self.causes if cause not in first)

    @property
    def placed(self) -> str:
        """Where the rms stands among published runs, in one sentence; empty if it was not compared."""
        return self.like["sentence"] if self.like else ""

    def _repr_html_(self) -> str:
        rows = [(c.name, f"{c.explained:.0%}", bar(c.explained), c.evidence, c.fix) for c in self.to_mend]
        places = [
            (f"{p.column} {p.value}", f"{p.explained:.0%}", bar(p.explained), p.rms_inside, p.rms_outside, p.z)
            for p in self.where
        ]
        said = heading(
            f"{self.verdict}: rms skew {self.rms:.3g} nats, {self.tokens} tokens, {self.sequences} sequences"
        )
        said += "".join(
            map(paragraph, filter(None, (self.usual, self.placed, self.kind_text, *self.values, *self.notes)))
        )
        said += table(("cause", "explains", "", "evidence", "fix"), rows)
        if places:
            said += table(("where it lives", "share", "", "rms inside", "rms outside", "z"), places)
        return said

    @property
    def first(self) -> Cause:
        return self.to_mend[0]

    @property
    def verdict(self) -> str:
        return self.first.name

    @property
    def layer(self) -> str | None:
        return self.first.layer

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "layer": self.layer,
            "causes": [cause.to_json() for cause in self.causes],
            "kind": self.kind,
            "kind_text": self.kind_text,
            "normal": self.normal,
            "usual": self.usual,
            "like": self.like,
            "odd_one_out": self.odd_one_out,
            "agreement": self.agreement,
            "values": list(self.values),
            "where": [place.to_json() for place in self.where],
            "notes": list(self.notes),
        }

    def to_plain(self) -> dict[str, Any]:
        """All of it, for `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Diagnosis:
        parts: dict[str, Any] = {
            "causes": tuple(Cause(**cause) for cause in data["causes"]),
            "where": tuple(Place(**place) for place in data.get("where", ())),
            "notes": tuple(data["notes"]),
            "values": tuple(data.get("values", ())),
        }
        return cls(**data | parts)


def found(name: str, explained: float, evidence: str, *, fix: str | None = None) -> Cause:
    """A cause with its standard fix."""
    return Cause(name, explained, evidence, FIX[name] if fix is None else fix)


def in_words(column: str, value: str) -> str:
    """A place as a person would say it."""
    if column == "sequence modulo":
        rest, _, every = value.removeprefix("not ").partition(" mod ")
        return f"sequence number mod {every} {'not ' if value.startswith('not ') else ''}{rest}"
    if column.startswith("seen before"):
        return column if value == "yes" else f"not {column}"
    return f"{column} {value}"


def ranked(causes: list[Cause]) -> tuple[Cause, ...]:
    """By share explained, the largest first."""
    return tuple(sorted(causes, key=lambda cause: -cause.explained))


def _rank(cause: Cause) -> int:
    return len(LAYERS) if cause.layer is None else LAYERS.index(cause.layer)


_FRAMEWORKS = tuple(REPOSITORIES)


def fix_for(fix: str, framework: str) -> str:
    """What a fix says in general, to vLLM and to one framework. UserError if that is none it knows."""
    known = {name.lower(): name for name in _FRAMEWORKS}
    wanted = known.get(framework.lower())
    if wanted is None:
        raise UserError(f"framework={framework!r} is not known; allowed: {', '.join(_FRAMEWORKS)}")
    general, *settings = fix_parts(fix)
    return " ".join([general, *(part for part in settings if part.partition(": ")[0] in ("vLLM", wanted))])


def fix_parts(fix: str) -> list[str]:
    """What a fix says in general, then what it says to each framework."""
    names = "|".join(map(re.escape, _FRAMEWORKS))
    return [part.strip() for part in re.split(rf"\s(?=(?:{names}): )", fix)]
