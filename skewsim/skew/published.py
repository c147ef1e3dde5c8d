"""Published runs of train-inference skew, with their public sources, and how a measured profile compares.

The runs are data: `skewsim/data/published.toml`, one entry for each run that somebody published (or that was measured
here), each with the figures that its source prints. What a source does not say is left out. A run's role says what it
is good for: only `usual` ones are what a number is compared with (`skewsim.skew.placing`).

A published figure is of one model on one pair of programs, so only a large factor means something. A profile whose rms
is within a factor of `USUAL` of the published rms of the same precision is *usual*, else *below* or *above*. Below is
no fault: a small model, or a trainer in float32, differs less. Above needs a cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skewsim.border import load_toml_data
from skewsim.errors import FileFormatError, UserError, shown
from skewsim.skew.curves import find_name
from skewsim.skew.metric_table import METRICS, SKEW_KEYS

DATA = Path(__file__).parents[1] / "data" / "published.toml"
DTYPES = ("float32", "float16", "bfloat16", "fp8")
"""The most precise first."""
KINDS = ("dense", "moe")
ROLES = {
    "usual": "a setup that works",
    "fault": "something was known to be broken",
    "bound": "not measured: a limit or a range that a project states",
    "aligned": "both sides made equal on purpose",
    "part": "not a whole trainer against a whole engine",
}
"""What a run is; figures of the first alone say what is normal."""
OTHER_METRICS = {
    "probs_diff_mean": ("1", "mean |p trainer - p engine|, of probabilities"),
    "first_token_ratio": ("1", "rho of the first token"),
    "kl": ("nats", "a KL divergence whose estimator is not said"),
}
"""Published metrics that are none of ours and cannot be converted: name -> (unit, formula)."""
UNITS = {
    "rms": "nats",
    **{name: METRICS[key].unit for name, key in SKEW_KEYS.items()},
    **{name: unit for name, (unit, _) in OTHER_METRICS.items()},
}
"""Every metric that a published figure may have, and its unit."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rms", "logprob_diff_mean", "logprob_diff_std", "kl_k3", "kl"), (0.0, 20.0)),
    **dict.fromkeys(("bias", "kl_k1"), (-20.0, 20.0)),
    "logprob_diff_max": (0.0, 1000.0),
    "mult_prob_error": (1.0, 100.0),
    **dict.fromkeys(("ratio_mean", "first_token_ratio", "ppl_ratio"), (0.0, 100.0)),
    **dict.fromkeys(("chi2_token", "chi2_seq"), (-1.0, float("inf"))),
    **dict.fromkeys(("ess", "ess_seq", "probs_diff_mean"), (0.0, 1.0)),
    "pearson": (-1.0, 1.0),
}
"""Metric -> least and greatest value that it can have, or that a published figure may plausibly have."""
USUAL = 2.0
"""A measured rms is usual if it is at most this factor above or below the published one."""
MEAN_ABS_BY_PROBABILITY = (0.1236, 0.1082, 0.0780, 0.0306, 0.0010)
"""Mean absolute skew of bfloat16 on both sides, nats, for p below .01, .1, .5, .9 and above (Qwen3-1.7B in `DATA`)."""

Dtype = Literal["float32", "float16", "bfloat16", "fp8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Part):
    """Where a figure is published."""

    title: str = Field(min_length=1)
    url: str = ""
    """A public address, or a document of this project; empty if only the name is known."""
    date: str = ""


class Figure(_Part):
    """One published number, as the source prints it."""

    metric: str
    """A key of `UNITS`."""
    value: float

    @property
    def unit(self) -> str:
        return UNITS[self.metric]

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.metric not in UNITS:
            raise ValueError(f"{self.metric} is no metric that is known; allowed: {', '.join(UNITS)}")
        low, high = RANGES[self.metric]
        if not low <= self.value <= high:
            raise ValueError(f"{self.metric} = {self.value:g} is outside {low:g} to {high:g}")
        return self


class PublishedRun(_Part):
    """One trainer against one engine, and what was measured of them. None and empty: the source does not say."""

    id: str = Field(pattern=r"^[a-z0-9.-]+$")
    source: Source
    model: str = Field(min_length=1)
    size: float | None = Field(None, gt=0, le=5000)
    """Parameters, billions."""
    active: float | None = Field(None, gt=0, le=5000)
    """Parameters used for one token, billions; of a mixture of experts."""
    kind: Literal["dense", "moe"] | None = None
    setting: str = ""
    """What sets this run apart from the others of its source, in a few words."""
    engine: str = ""
    """With its version where the source gives one."""
    engine_dtype: Dtype | None = None
    trainer: str = ""
    trainer_dtype: Dtype | None = None
    framework: str = ""
    length: int | None = Field(None, gt=0)
    """Mean response length, tokens."""
    role: Literal["usual", "fault", "bound", "aligned", "part"] = "usual"
    named: str = ""
    """What the source calls its metrics, where it has names of its own."""
    yardstick: str = ""
    """The precision (`SkewProfile.precision`) whose profiles are compared with this run's rms."""
    note: str = ""
    figures: tuple[Figure, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.active is not None and (self.kind != "moe" or self.size is None or self.active >= self.size):
            raise ValueError(f"{self.id}: active parameters are given, but it is no mixture of more experts")
        if self.yardstick and "rms" not in self.values:
            raise ValueError(f"{self.id}: a yardstick without an rms")
        return self

    @property
    def dtype(self) -> str | None:
        """The less precise of the two sides' dtypes; None if it is not known."""
        both = (self.engine_dtype, self.trainer_dtype)
        if DTYPES[-1] in both:  # nothing is less precise, whatever the other side is
            return DTYPES[-1]
        return None if None in both else max(filter(None, both), key=DTYPES.index)

    @property
    def name(self) -> str:
        """The model and what sets the run apart."""
        here = " here" if self.source.title.startswith("measured here") else ""
        return f"{self.model}{here}" + (f", {self.setting}" if self.setting else "")

    @property
    def values(self) -> dict[str, float]:
        """The figures by their metric."""
        return {figure.metric: figure.value for figure in self.figures}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat record for each figure."""
        run = self.model_dump(exclude={"figures", "source", "yardstick"})
        where = {"source": self.source.title, "url": self.source.url, "date": self.source.date}
        for figure in self.figures:
            yield {**run, "metric": figure.metric, "value": figure.value, "unit": figure.unit, **where}


@cache
def published_runs() -> tuple[PublishedRun, ...]:
    """Every published run, in the order of the file. FileFormatError if the file is not what it should be."""
    return read_runs(DATA)


def read_runs(path: Path) -> tuple[PublishedRun, ...]:
    """The runs of a file like `DATA`."""
    document = load_toml_data(path)
    try:
        sources = {key: Source.model_validate(value) for key, value in document["sources"].items()}
        runs = tuple(_run(entry, sources) for entry in document["runs"])
    except ValidationError as error:
        from skewsim.settings import one_line  # imported here: it is needed for a damaged file only

        raise FileFormatError(f"{path}: {one_line(error)}") from None
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path}: an entry is incomplete ({shown(error, 80)})") from None
    if len({run.id for run in runs}) < len(runs):
        raise FileFormatError(f"{path}: two runs have the same id")
    return runs


def _run(entry: dict[str, Any], sources: dict[str, Source]) -> PublishedRun:
    figures = [{"metric": metric, "value": value} for metric, value in entry["figures"].items()]
    return PublishedRun.model_validate(entry | {"source": sources[entry["source"]], "figures": figures})


def find_run(run_id: str) -> PublishedRun:
    """The published run of this id."""
    return next(run for run in published_runs() if run.id == run_id)


def check_kind(dtype: str | None, model_kind: str | None) -> None:
    """UserError for a dtype or kind of model that is not known."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; allowed: {', '.join(DTYPES)}")
    if model_kind is not None and model_kind not in KINDS:
        raise UserError(f"model-kind={model_kind!r} is not known; allowed: {', '.join(KINDS)}")


def own_metric(name: str) -> tuple[str, str]:
    """(our short name of a metric, the conversion of `curves.CONVERSIONS`) from ours or any framework's name."""
    wanted = name.strip()
    short = wanted.removeprefix("skew/").removeprefix("ratio/")
    if short in UNITS:
        return short, ""
    row = find_name(wanted)
    if row is not None and row.key in SKEW_KEYS.values():
        return row.key.partition("/")[2], row.convert
    raise UserError(f"metric {shown(wanted, 80)} is not known; allowed: {', '.join(UNITS)}, or a framework's name")


def select_runs(
    *,
    model_kind: str | None = None,
    dtype: str | None = None,
    metric: str | None = None,
    framework: str | None = None,
    search: str | None = None,
    runs: Iterable[PublishedRun] | None = None,
) -> list[PublishedRun]:
    """The published runs that are all of what is given; with a metric, only its figures. UserError: an unknown name.

    `framework` is a framework, an engine or a trainer without its version; `search` is looked for in every text.
    """
    check_kind(dtype, model_kind)
    chosen = list(published_runs() if runs is None else runs)
    if model_kind is not None:
        chosen = [run for run in chosen if run.kind == model_kind]
    if dtype is not None:
        chosen = [run for run in chosen if run.dtype == dtype]
    if framework is not None:
        chosen = [run for run in chosen if _program(framework) in _programs(run)]
    if search is not None:
        chosen = [run for run in chosen if search.lower() in _text(run)]
    if metric is not None:
        key, _ = own_metric(metric)
        kept = ((run, tuple(f for f in run.figures if f.metric == key)) for run in chosen)
        chosen = [run.model_copy(update={"figures": figures}) for run, figures in kept if figures]
    return chosen


def _programs(run: PublishedRun) -> set[str]:
    """Framework, engine and trainer of a run, without versions and in small letters."""
    return {name.split(" ")[0].strip(",").lower() for name in (run.framework, run.engine, run.trainer) if name}


def _program(name: str) -> str:
    known = set().union(*map(_programs, published_runs()))
    if name.lower() not in known:
        raise UserError(f"framework={shown(name, 80)!r} is not known; allowed: {', '.join(sorted(known))}")
    return name.lower()


def _text(run: PublishedRun) -> str:
    words = (run.id, run.model, run.setting, run.engine, run.trainer, run.framework, run.named, run.note)
    return " ".join((*words, run.source.title, run.source.url)).lower()


@dataclass(frozen=True)
class Verdict:
    """A profile compared with the published run of its precision; `published` is None if there is none."""

    precision: str
    rms: float | None
    published: PublishedRun | None
    verdict: Literal["below", "usual", "above", "nothing published"]
    advice: str

    def __str__(self) -> str:
        if self.published is None or self.rms is None:
            return f"nothing published for {self.precision} to compare with"
        run = self.published
        return (
            f"rms {self.rms:.3g} against {run.values['rms']:.3g} published for {self.precision} ({run.name}; "
            f"{run.source.title.partition(',')[0]}): {self.verdict}; {self.advice}"
        )

    def to_json(self) -> dict[str, Any]:
        found = None if self.published is None else next(self.published.rows())
        return {
            "precision": self.precision,
            "rms": self.rms,
            "published": found,
            "verdict": self.verdict,
            "advice": self.advice,
        }


def judge(precision: str, rms: float | None) -> Verdict:
    """Compare the profile's rms skew with the published one of the same precision."""
    run = next((run for run in published_runs() if run.yardstick == precision), None)
    if run is None or rms is None:
        return Verdict(precision, rms, None, "nothing published", "compare with another engine: skewsim replay")
    yardstick = run.values["rms"]
    if rms < yardstick / USUAL:
        return Verdict(precision, rms, run, "below", "nothing to look at")
    if rms <= yardstick * USUAL:
        return Verdict(
            precision, rms, run, "usual", "the noise of this dtype; skewsim advise says which thresholds bear it"
        )
    return Verdict(precision, rms, run, "above", "look at its cause: skewsim diagnose, and skewsim measure --legs")
