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

import numpy as np

from skewsim.diagnose.causes import FIX, LAYER_OF, LAYERS, Cause, Diagnosis, found, ranked
from skewsim.diagnose.judge import Findings, clean, judge
from skewsim.diagnose.predict import Config, Models, Scorer, prepare
from skewsim.diagnose.rivals import compare
from skewsim.diagnose.rows import Rows
from skewsim.errors import UserError
from skewsim.moved import CalledByItsName
from skewsim.skew.sequences import SequenceLog, load_sequences
from skewsim.skew.tokens import TokenTable

__all__ = [
    "FIX",
    "LAYERS",
    "LAYER_OF",
    "Cause",
    "Diagnosis",
    "Scorer",
    "diagnose",
    "diagnose_path",
    "load_models",
    "load_source",
]

sys.modules[__name__].__class__ = CalledByItsName

FEWEST = 50


def diagnose(source: TokenTable | SequenceLog, *, models: Sequence[Scorer] = ()) -> Diagnosis:
    """The causes of the skew in a table or in whole sequences.

    `models`, newest first, score the tokens themselves, the newest also in the trainer's place where its logprobs
    are missing; they need a SequenceLog (a table has no prompts). UserError if there is nothing to compare.
    """
    if isinstance(source, SequenceLog):
        source = replace(source, records=tuple(record for record in source.records if record.sampled.any()))
    scored: Models | None = None
    notes: list[str] = []
    if models:
        if not isinstance(source, SequenceLog):
            raise UserError(
                "models can score sequences only: give JSON lines with prompt_token_ids instead of a token table"
            )
        scored, used = prepare(models, source.records)
        if used < len(source.records):
            notes.append(f"scored the first {used} of {len(source.records)} sequences")
            source = replace(source, records=source.records[:used])
    rows = Rows.from_log(source) if isinstance(source, SequenceLog) else Rows.from_table(source)
    if scored is not None and len(rows):
        rows = replace(rows, trainer=np.where(np.isfinite(rows.trainer), rows.trainer, scored.predict(Config(), rows)))
    return _diagnose(rows, scored, notes)


def _diagnose(rows: Rows, scored: Models | None, notes: list[str]) -> Diagnosis:
    whole, rows = rows, rows.usable()
    if len(rows) < len(whole):
        notes.append(f"{len(whole) - len(rows)} rows without two finite logprobs left out")
    if len(whole) and not len(rows):
        raise UserError("no row has both logprobs: give trainer_logprobs, or --model to score the tokens")
    skew = rows.skew
    rms = float(np.sqrt((skew**2).mean())) if len(rows) else 0.0
    if len(rows) < FEWEST:
        few = found("unknown", 0.0, f"{len(rows)} tokens are too few; at least {FEWEST} are needed")
        return Diagnosis((few,), len(rows), rows.sequences, rms, tuple(notes))
    findings = clean(rows)
    if scored is None:
        judge(findings)
    else:
        compare(findings, scored)
        if findings.has("misaligned_tokens"):  # where one token hardly differs from the next, chance may look like it
            aligned = clean(rows, align=False)
            compare(aligned, scored)
            findings = findings if findings.unexplained < aligned.unexplained / 2 else aligned
    causes = findings.causes or [_healthy(rows, findings, rms)]
    return Diagnosis(ranked(causes), len(rows), rows.sequences, rms, tuple(notes + findings.notes))


def _healthy(rows: Rows, findings: Findings, rms: float) -> Cause:
    skew = rows.skew
    bias = float(skew.mean())
    return found(
        "healthy", 1.0, f"rms {rms:.3g}, bias {bias:+.2g}, worst {np.abs(skew).max():.3g}: within this dtype's noise"
    )


def load_source(path: Path | str) -> TokenTable | SequenceLog:
    """A token table (.npz, .parquet) or sequences (.jsonl, .json)."""
    path = Path(path)
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return load_sequences(path)
    return TokenTable.load(path)


def load_models(folders: Sequence[Path | str]) -> list[Scorer]:
    """Hugging Face folders, newest first, as scorers."""
    if not folders:
        return []
    from skewsim.diagnose.models import ModelScorer

    scorers: list[Scorer] = [ModelScorer.from_folder(folder) for folder in folders]  # type: ignore[misc]
    if len({scorer.vocab_size for scorer in scorers}) > 1:
        raise UserError("--model: the folders have different vocabularies")
    return scorers


def diagnose_path(path: Path | str, *, models: Sequence[Path | str] = ()) -> Diagnosis:
    """`diagnose` of a file, with model folders, newest first."""
    return diagnose(load_source(path), models=load_models(models))
