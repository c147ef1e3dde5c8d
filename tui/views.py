"""How the screen looks without Textual: colours, glyphs, and the metrics that a chart can show.

Colours are Okabe and Ito's (readable with any colour vision), in a dark and a light choice; each curve also has a
letter and a dash pattern, and each state a word, so nothing is said by colour alone.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

_DARK = {"r": "#00b386", "v": "#e8743b", "y": "#56b4e9", "t": "#d896be", "w": "#8a8f98"}
_LIGHT = {"r": "#007a5a", "v": "#b34a00", "y": "#0062a3", "t": "#9c4a7c", "w": "#5c6370"}
_OTHERS_DARK = ("#f0e442", "#e69f00", "#bbbbbb", "#8fd3ff")
_OTHERS_LIGHT = ("#7a6f00", "#9a5b00", "#555555", "#004c80")


@dataclass(frozen=True)
class Look:
    """Colours and characters to draw with."""

    dark: bool = True
    ascii_only: bool = False

    def colour(self, letter: str) -> str:
        table = _DARK if self.dark else _LIGHT
        others = _OTHERS_DARK if self.dark else _OTHERS_LIGHT
        return table.get(letter) or others[ord(letter[0]) % len(others)]

    @property
    def muted(self) -> str:
        return "#8a8f98" if self.dark else "#5c6370"

    @property
    def strong(self) -> str:
        return "#f0e442" if self.dark else "#7a4a00"

    def glyph(self, fancy: str, plain: str) -> str:
        return plain if self.ascii_only else fancy

    def line(self, dash: int) -> str:
        """A sample of a curve's dash pattern, for the legend."""
        if self.ascii_only:
            return {0: "--", 6: "- -", 2: "..."}.get(dash, "-.-")
        return {0: "━━━", 6: "━ ━", 2: "┅┅┅"}.get(dash, "╍╍╍")


def ascii_wanted() -> bool:
    """Whether the terminal probably has no braille: a Linux console, a dumb terminal, or not UTF-8."""
    if "TEXTUAL_DRIVER" in os.environ:
        return False  # a browser has every glyph
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    return os.environ.get("TERM") in ("linux", "dumb", "vt100") or "utf" not in encoding


@dataclass(frozen=True)
class View:
    """A metric as a chart: its record key, title, and the ends of its axis where they are known."""

    key: str
    title: str
    floor: float | None = None
    ceiling: float | None = None
    log: bool = False
    smooth: bool = True
    help: str = ""


REWARD = View(
    "reward/mean",
    "reward",
    0.0,
    1.0,
    help="Share of responses that are exactly right: the prompt's digits, written backwards.",
)

# The first two move with every fix and under every objective; the clip rate is nothing where there is no clip.
VIEWS: tuple[View, ...] = (
    View(
        "skew/kl_k3",
        "KL (k3)",
        log=True,
        help="mean(exp(d) - d - 1) with d = trainer minus engine logprob: never negative, about sigma^2/2 for noise. "
        "verl k3_kl, NeMo-RL gen_kl_error, prime-rl mismatch_kl. Logarithmic axis.",
    ),
    View(
        "lag/mean",
        "lag",
        0.0,
        smooth=False,
        help="Trainer's version minus the version that sampled the token, mean over tokens.",
    ),
    View("policy/entropy", "entropy", help="Mean entropy of the trainer's distribution in nats. Rising: it unlearns."),
    View(
        "update/clip_rate",
        "clip rate",
        0.0,
        help="Share of tokens (GSPO: sequences) whose update ratio the clip changes. The clearest alarm of the case study: "
        "PipelineRL clamp_log_ratio_new_old_indicator, TRL clip_ratio.",
    ),
    View(
        "optim/grad_norm",
        "gradient norm",
        0.0,
        help="Norm of the gradient before clipping. A jump is often a stale cache or a few broken sequences.",
    ),
    View(
        "ratio/ess",
        "ESS",
        0.0,
        1.0,
        help="Effective sample size as a fraction: 1 / mean((w / mean w)^2) with w = exp(d), the mismatch ratio. "
        "1: no skew; 0.5: half of the tokens carry no weight.",
    ),
    View("skew/logprob_diff_mean", "mean abs skew", 0.0, help="Mean |trainer - engine| logprob in nats."),
    View("skew/bias", "bias", help="Mean skew in nats. Noise has none; raw logprobs and lost top-p mass do."),
    View(
        "update/ratio_mean",
        "update ratio",
        help="Mean of trainer / old, the ratio that enters the loss and its clip: 1 when old is truthful. The mismatch "
        "ratio is another, trainer / engine: its mean is 1 as long as the skew is noise.",
    ),
    View(
        "optim/grad_cosine",
        "gradient cosine",
        ceiling=1.0,
        help="Cosine between the gradient used and the one that truthful logprobs would give. 1: skew does no harm.",
    ),
    View("reward/partial", "partial reward", 0.0, 1.0, help="Share of positions that are right."),
    View(
        "routing/tokens_differ",
        "routed otherwise",
        0.0,
        help="Mixture of experts: share of tokens that trainer and engine send to different experts in some layer.",
    ),
    View(
        "routing/skew_share",
        "routing's share",
        0.0,
        1.0,
        help="Mixture of experts: share of the mean square skew that tokens routed otherwise carry.",
    ),
    View(
        "correction/ess",
        "ESS of the weights",
        0.0,
        1.0,
        help="Effective sample size of the correction's weights, rejected tokens included: what they leave of the batch.",
    ),
    View(
        "correction/weight_mean",
        "mean weight",
        0.0,
        help="Mean of the correction's weights. An exact one has mean 1; what a cap takes from the mean is bias.",
    ),
    View("correction/kept", "kept", 0.0, 1.0, help="Share of tokens that no correction rejects."),
    View(
        "ratio/ess_seq",
        "ESS, sequences",
        0.0,
        1.0,
        help="Effective sample size that exact weights of whole sequences would have, whatever correction is used.",
    ),
    View(
        "skew/kl_k3_lag0",
        "KL (k3), lag 0",
        log=True,
        help="k3 of the tokens that were sampled with the trainer's own version: what is left without staleness. "
        "Empty where every token has a lag. Logarithmic axis, as KL (k3).",
    ),
)
