"""Routing proven: the log says which tokens trainer and engine sent to different experts, and the skew lives in them.

Rounding moves every token a little; another expert moves one token a lot. Without routes the two are told apart by the
tail (`precision`); with them no tail is needed, and where the routes are the same, a tail is no routing.

Where the log has the engine's routes only, a model's own choices stand for the trainer's.

Without routes, but with the model, the model's own near ties take their place (`ties`). Whether there is routing in the
skew is asked of the tokens that the model itself sends to other experts when it is rounded: they stand out if the
engine did so too. How much there is, is counted over all near ties, as an engine rounds otherwise than the model does
here: what these have above the level of the tokens that no rounding can send elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from skewsim.diagnose.findings import Findings
from skewsim.diagnose.predict import Models
from skewsim.diagnose.rows import Bools, Floats, Rows
from skewsim.diagnose.where import Sizes

FEWEST = 5
"""Tokens on either side without which nothing is said."""
LEAST_RATIO = 1.5
"""Level of tokens routed otherwise over that of the others, both divided by what rounding makes of the probability."""
LEAST_Z = 3.0
LEAST_Z_OF_TIES = 5.0
"""Of how skew goes with the model's own flips. Logs without routing have 2.4 at most (20 simulated ones, a real one),
those of bfloat16 and float16 engines 9 and more (docs/mixture.md)."""
NEAR = 4.0
"""Gaps up to this many times what rounding does to them are near ties. Of the tokens that a bfloat16 or a float16
engine routed otherwise 91 to 100 % are among them (docs/mixture.md)."""
SETTLED = 0.05
"""Share of the tokens that are taken for no near ties at least, those furthest from one: in a mixture of many layers
all tokens are near a tie in some layer."""
NO_ROUTES = 0.7
"""Share of router decisions that differ, above which the engine's routes are taken for something else. Rounding turns
about a tenth of them round in a large model, though nearly every token meets one (94 %: arXiv 2510.11370)."""


def known(rows: Rows) -> bool:
    """Whether the log says of its tokens whether both sides chose the same experts."""
    differ = rows.places.get("routes_differ")
    return differ is not None and bool((differ >= 0).mean() > 0.5)


def with_routes_of(models: Models, rows: Rows, notes: list[str]) -> Rows:
    """The rows with what the engine's routes in the log differ from the newest model's own, where the log does not say
    what they differ from the trainer's."""
    if known(rows) or (differ := models.routes_differ(rows)) is None:
        return rows
    name = models.scorers[0].name
    differ = np.where(rows.places.get("routes_differ", -1) >= 0, rows.places.get("routes_differ", -1), differ)
    made = replace(rows, places=rows.places | {"routes_differ": differ}, meta=rows.meta | {ROUTES_OF: name})
    if known(made):
        return made
    notes.append(
        f"the engine's routes in the log are not compared with those of {name}: they have another number of layers or "
        "of experts for a token, or are there for fewer than half of the tokens"
    )
    return rows


ROUTES_OF = "routes_of"
"""Entry of the rows' meta: the model whose routes stand for the trainer's."""


def name_routing(findings: Findings) -> None:
    """`moe_routing` for the skew of tokens routed otherwise above the others' level; they are taken out."""
    rows, rest = findings.rows, findings.rest
    if not known(rows) or not len(rows):
        return
    differ = rows.places["routes_differ"]
    other, alike = differ > 0, differ == 0
    if differ[differ >= 0].mean() > NO_ROUTES * max(differ.max(), 1):
        _no_routes(findings, other)
        return
    if min(other.sum(), alike.sum()) < FEWEST:
        return
    ratio, z = _apart(rows, rest, other, alike)
    inside, outside = (float(np.sqrt((rest[part] ** 2).mean())) for part in (other, alike))
    share = float((rest[other] ** 2 - outside**2).sum()) / max(findings.total, 1e-30)
    if ratio < LEAST_RATIO or z < LEAST_Z or share <= 0:
        return
    count = int((differ >= 0).sum())
    findings.add(
        "moe_routing",
        share,
        f"proven by the routes in the log: {int(other.sum())} of {count} tokens ({other.sum() / count:.2%}) went to other "
        f"experts in {rows.meta.get(ROUTES_OF, 'the trainer')} than in the engine: rms {inside:.3g} in them, {outside:.3g} in the "
        f"others, {ratio:.1f} times as much at equal probability (z {z:.1f}); what both sides route alike is not routing",
    )
    findings.placed.append(rest[other])
    findings.rows, findings.rest = rows.select(~other), rest[~other]


@dataclass(frozen=True)
class NearTies:
    """The skew beside the model's own near ties in one rounded dtype."""

    dtype: str
    flipped: Bools
    near: Bools
    limit: float
    """Distance to a tie up to which a token is near one, as in `ties.Ties.distance`."""
    ratio: float
    """Mean size of the skew of flipped tokens over that of the others, at equal probability."""
    z: float
    """How surely the skew's size goes with the number of layers that flip: their correlation in standard errors."""

    @property
    def bound(self) -> str:
        return "" if self.limit == NEAR else ", of which some are near one too, so that the share is a lower bound"


def name_near_ties(findings: Findings, models: Models, weights: int, dtypes: Sequence[str], skew: Floats) -> float:
    """`moe_routing` for what near ties have of the skew above the others' level; they are taken out.

    `skew` is that of `findings.rows` with all explained but what rounding the body makes. Returns the share of the
    rows that are left.
    """
    rows, rest = findings.rows, findings.rest
    tried = [_near_ties(models, weights, dtype, rows, skew) for dtype in dtypes]
    best = max((each for each in tried if each is not None), key=lambda each: each.z, default=None)
    if best is None or not best.z >= LEAST_Z_OF_TIES:  # NaN where all tokens are off alike
        return 1.0
    near = best.near
    inside, outside = (float(np.sqrt((skew[part] ** 2).mean())) for part in (near, ~near))
    share = float((skew[near] ** 2 - outside**2).sum()) / max(findings.total, 1e-30)
    if share <= 0:
        return 1.0
    findings.add(
        "moe_routing",
        share,
        f"by the model's own near ties: {int(best.flipped.sum())} of {len(rows)} tokens go to other experts when "
        f"{models.scorers[weights].name} is scored in {best.dtype} instead of float32, and are {best.ratio:.1f} times "
        f"as far off as the others at equal probability (z {best.z:.1f}); {int(near.sum())} tokens ({near.mean():.0%}) "
        f"are near a tie (a router's gap below {best.limit:.2g} times what {best.dtype} does to it): rms {inside:.3g} in them, "
        f"{outside:.3g} in the others{best.bound}; routes in the log would prove it",
    )
    findings.cap("compute_dtype", len(rows) * outside**2 / max(findings.total, 1e-30))
    findings.placed.append(rest[near])
    findings.rows, findings.rest = rows.select(~near), rest[~near]
    return float((~near).mean())


def _near_ties(models: Models, weights: int, dtype: str, rows: Rows, skew: Floats) -> NearTies | None:
    """None where there are no ties, or too few tokens on a side to compare."""
    ties = models.ties(weights, dtype, rows)
    if ties is None:
        return None
    distance = ties.distance
    limit = float(min(NEAR, np.quantile(distance, 1 - SETTLED)))
    flipped, near = ties.flips > 0, distance < limit
    if min(flipped.sum(), near.sum(), (~near).sum()) < FEWEST or flipped.all():
        return None
    size = np.abs(Sizes.of(rows, skew).scaled)
    ratio = float(size[flipped].mean() / max(float(size[~flipped].mean()), 1e-30))
    z = float(np.corrcoef(ties.flips, size)[0, 1]) * np.sqrt(len(size))
    return NearTies(dtype, flipped, near, limit, ratio, float(z))


def _no_routes(findings: Findings, other: Bools) -> None:
    share = float((findings.rest[other] ** 2).sum()) / max(findings.total, 1e-30)
    count = (findings.rows.places["routes_differ"] >= 0).sum()
    findings.notes.append(
        f"{other.sum() / count:.0%} of the tokens have other experts, in most layers, in {findings.rows.meta.get(ROUTES_OF, 'the trainer')} than the engine "
        "returned, which no rounding does: the "
        f"engine's routes are zeros, those of padding, or shifted; replaying them would explain {share:.0%} of the skew"
    )
    rms = float(np.sqrt((findings.rest**2).mean()))
    if rms > LARGEST:
        findings.add("moe_routing", share, findings.notes.pop() + f" (rms {rms:.3g})")


LARGEST = 0.3
"""rms, nats: above what flips near ties make in a healthy run."""


def _apart(rows: Rows, rest: Floats, other: Bools, alike: Bools) -> tuple[float, float]:
    """How far the two groups' sizes are apart: their ratio, and its z, of the mean log size in units of the law."""
    level = Sizes.of(rows, rest).level
    inside, outside = level[other], level[alike]
    error = np.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    gap = float(inside.mean() - outside.mean())
    return float(np.exp(gap)), gap / max(float(error), 1e-12)
