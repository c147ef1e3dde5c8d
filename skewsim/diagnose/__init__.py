"""Why do trainer and engine disagree? Rival explanations, ranked by the share of the skew each explains.

`diagnose` takes a TokenTable or whole sequences. From the two logprobs of each token alone it reads signatures
(`signatures`, `judge`); given models it computes each rival's own logprobs (`rivals`). Verdicts are named after
causes (`causes.LAYER_OF`), the first layer found is what to mend first, and "unknown" says what to measure next.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skewsim.diagnose import normal, routes, values, where
from skewsim.diagnose.causes import LAYER_OF, LAYERS, Cause, Diagnosis, Place, fix_for, found, ranked
from skewsim.diagnose.findings import Findings, clean
from skewsim.diagnose.fixes import FIX
from skewsim.diagnose.judge import judge
from skewsim.diagnose.kinds import kind_of
from skewsim.diagnose.parties import compare_three
from skewsim.diagnose.predict import Config, Models, Progress, Scorer, prepare
from skewsim.diagnose.rivals import compare
from skewsim.diagnose.rows import Bools, Rows
from skewsim.errors import UserError
from skewsim.moved import CalledByItsName
from skewsim.skew.placing import place
from skewsim.skew.sequences import SequenceLog, load_source
from skewsim.skew.tokens import TokenTable

__all__ = [
    "FIX",
    "LAYERS",
    "LAYER_OF",
    "Cause",
    "Diagnosis",
    "Place",
    "Scorer",
    "diagnose",
    "diagnose_path",
    "load_models",
    "load_source",
]

sys.modules[__name__].__class__ = CalledByItsName

FEWEST = 50


def diagnose(
    source: TokenTable | SequenceLog,
    *,
    models: Sequence[Scorer] = (),
    dtype: str | None = None,
    model_kind: str | None = None,
    framework: str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """The causes of the skew in a table or in whole sequences, and where it lives.

    `models`, newest first, score the tokens themselves, the newest also in the trainer's place where its logprobs
    are missing; they need a SequenceLog (a table has no prompts). `dtype` and `model_kind` (dense, moe) say what the
    two sides compute in, so that what is usual for it is called healthy; `framework` shortens the fixes to its own
    settings. `progress` is told of passes of a model that take long. UserError if there is nothing to compare.
    """
    normal.check(dtype, model_kind)
    if isinstance(source, SequenceLog):
        source = source.where(bool(record.sampled.any()) for record in source.records)
    scored: Models | None = None
    notes: list[str] = []
    if models:
        if not isinstance(source, SequenceLog):
            raise UserError(
                "models can score sequences only: give JSON lines with prompt_token_ids instead of a token table"
            )
        scored = prepare(models, source, progress)
    rows = Rows.from_log(source) if isinstance(source, SequenceLog) else Rows.from_table(source)
    declared: dict[str, Any] = {} if dtype is None else {"dtype": dtype, "trainer_dtype": dtype}
    declared |= {} if model_kind is None else {"model_kind": model_kind}
    rows = replace(rows, meta=rows.meta | declared)
    found = _diagnose(rows, scored, notes)
    if framework is None:
        return found
    return replace(found, causes=tuple(replace(c, fix=fix_for(c.fix, framework)) for c in found.causes))


def _diagnose(rows: Rows, scored: Models | None, notes: list[str]) -> Diagnosis:
    odd = values.inspect(rows)
    model = None
    if scored is not None and len(rows):
        model = scored.predict(Config(), rows)
        replaced = np.isfinite(rows.trainer)
        if not replaced.any():
            rows, model = replace(rows, trainer=model), None
        else:
            rows = replace(rows, trainer=np.where(replaced | odd.bad, rows.trainer, model))
        rows = routes.with_routes_of(scored, rows, notes)
    kept = ~odd.bad & np.isfinite(rows.skew)
    left_out = int((~kept & ~odd.bad).sum())
    if left_out:
        notes.append(f"{left_out} rows without two finite logprobs left out")
    if len(rows) and not kept.any() and not odd.bad.any():
        raise UserError("no row has both logprobs: give trainer_logprobs, or --model to score the tokens")
    whole, rows = rows, rows.select(kept)
    found = _causes_of(rows, scored, odd, whole, notes)
    if model is not None:
        parties = compare_three(whole.engine, whole.trainer, model, ~kept, _culprit(odd, found))
        found = replace(found, odd_one_out=parties.odd, agreement=parties.agreement)
        found = replace(found, notes=(str(parties), *found.notes))
    return found


def _culprit(odd: values.Values, found: Diagnosis) -> str | None:
    """Whose values are no log-probabilities, if that is the verdict."""
    sides = {each.side for each in odd.oddities}
    return sides.pop() if found.verdict == "placeholder_logprobs" and len(sides) == 1 else None


def _causes_of(rows: Rows, scored: Models | None, odd: values.Values, whole: Rows, notes: list[str]) -> Diagnosis:
    finite = np.isfinite(whole.skew)
    total = float((whole.skew[finite] ** 2).sum())
    rms = float(np.sqrt(total / finite.sum())) if finite.any() else 0.0
    said = tuple(map(str, odd.oddities))
    causes = [_placeholder(odd, whole, total, said)] if odd.oddities else []
    if len(rows) < FEWEST:
        few = found("unknown", 0.0, f"{len(rows)} tokens are too few; at least {FEWEST} are needed")
        text = "too few tokens"
        return Diagnosis(
            (*causes, few)[:1], len(whole), whole.sequences, rms, tuple(notes), kind_text=text, values=said
        )
    contrasts = where.scan(rows)
    findings = _judged(rows, scored, contrasts)
    own = float((rows.skew**2).sum())
    share = own / total if total > 0 else 1.0
    real = findings.causes
    if causes:
        aside = ("unknown", "compute_dtype") if causes[0].explained >= 0.01 else ()
        real = [replace(c, explained=c.explained * share) for c in real if c.name not in aside]
    causes += real
    healthy = not causes
    causes = causes or [_healthy(rows, findings)]
    ordered = ranked(causes)
    quiet = float(np.sqrt(own / len(rows)))
    result = Diagnosis(ordered, len(whole), whole.sequences, rms, tuple(notes + findings.notes), values=said)
    kind, kind_text = kind_of(result.verdict, rows)
    model_kind = _model_kind(rows, scored)
    usual = normal.usual(quiet, _dtype(rows), model_kind)
    rounding = ("compute_dtype", "moe_routing") if model_kind == "moe" else ("compute_dtype",)
    return replace(
        result,
        where=where.places(contrasts),
        kind=kind,
        kind_text=kind_text,
        normal=healthy or (result.verdict in rounding and "above what is usual" not in usual),
        usual=usual,
        like=_like(quiet, rows, model_kind),
        error=_error(rows),
    )


def _model_kind(rows: Rows, scored: Models | None) -> str | None:
    """What is declared; else a mixture where the log has routes or a model that scores has routers."""
    declared: str | None = rows.meta.get("model_kind")
    return declared or ("moe" if routes.known(rows) or (scored is not None and scored.routed) else None)


def _like(rms: float, rows: Rows, model_kind: str | None) -> dict[str, Any] | None:
    """Where the rms stands among published runs; None where both sides say the same to the bit."""
    return place("rms", rms, dtype=_dtype(rows), model_kind=model_kind).to_json() if rms else None


def _dtype(rows: Rows) -> str | None:
    """The least precise dtype that the log or the user declares."""
    declared = {str(rows.meta[key]) for key in ("dtype", "trainer_dtype") if rows.meta.get(key) in normal.DTYPES}
    return max(declared, key=normal.DTYPES.index, default=None)


def _error(rows: Rows) -> float:
    """Two standard errors of a share of the square, from how few sequences it comes."""
    each = np.bincount(rows.sequence, weights=rows.skew**2)
    return float(min(np.sqrt((each**2).sum()) / max(each.sum(), 1e-30), 0.5))


def _placeholder(odd: values.Values, whole: Rows, total: float, said: tuple[str, ...]) -> Cause:
    inside = odd.bad & np.isfinite(whole.skew)
    share = 1.0 if odd.nonfinite else float((whole.skew[inside] ** 2).sum()) / max(total, 1e-30)
    return replace(found("placeholder_logprobs", min(share, 1.0), "; ".join(said)), sized=not odd.nonfinite)


def _judged(rows: Rows, scored: Models | None, contrasts: list[where.Contrast]) -> Findings:
    findings = clean(rows)
    if findings.rows is rows and not findings.causes:
        findings.scanned, findings.scanned_rest = (rows, contrasts), findings.rest
    if scored is None:
        judge(findings)
        return findings
    compare(findings, scored)
    if findings.has("misaligned_tokens"):  # where one token hardly differs from the next, chance may look like it
        aligned = clean(rows, align=False)
        compare(aligned, scored)
        findings = findings if findings.unexplained < aligned.unexplained / 2 else aligned
    return findings


def _healthy(rows: Rows, findings: Findings) -> Cause:
    skew = rows.skew
    rms, bias = float(np.sqrt((skew**2).mean())), float(skew.mean())
    words = normal.usual(rms, _dtype(rows), rows.meta.get("model_kind"))
    return found(
        "healthy", 1.0, f"{words}; bias {bias:+.2g}, worst {np.abs(skew).max():.3g}: within this dtype's noise"
    )


def count_values(source: TokenTable | SequenceLog) -> tuple[TokenTable, Bools]:
    """(the table, its rows whose values are finite and no log-probabilities), for `skewsim.skew.gate`."""
    table = source if isinstance(source, TokenTable) else source.table()
    rows = Rows.from_table(table)
    bad = np.zeros(len(table), dtype=bool)
    bad[rows.index] = values.inspect(rows).bad
    return table, bad & np.isfinite(table.skew)


def load_models(folders: Sequence[Path | str], *, batch_tokens: int | None = None) -> list[Scorer]:
    """Hugging Face folders, newest first, as scorers; `batch_tokens` bounds the padded tokens of a batch."""
    if not folders:
        return []
    from skewsim.diagnose.models import ModelScorer

    loaded = [ModelScorer.from_folder(folder, batch_tokens=batch_tokens) for folder in folders]
    scorers: list[Scorer] = loaded  # type: ignore[assignment]
    if len({scorer.vocab_size for scorer in scorers}) > 1:
        raise UserError("--model: the folders have different vocabularies")
    return scorers


def diagnose_path(
    path: Path | str,
    *,
    models: Sequence[Path | str] = (),
    dtype: str | None = None,
    model_kind: str | None = None,
    framework: str | None = None,
) -> Diagnosis:
    """`diagnose` of a file, with model folders, newest first."""
    return diagnose(
        load_source(path), models=load_models(models), dtype=dtype, model_kind=model_kind, framework=framework
    )
