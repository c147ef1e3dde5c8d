"""How fast a sweep trains: its step against its matrix products and against TRL, processes, members, and overheads.

    python benchmarks/sweep_speed.py [PART ...] [--repeats N] [--write]      (needs the `oracle` extra: trl; `ray`)

PART is one or several of step, members, processes, overhead, ray; by default all. ``--write`` puts the table into
`benchmarks/README.md`. A rollout is 8 prompts of 14 tokens with 8 responses of 12 tokens each, of the shipped base
policy (width 64, 2 layers); one optimiser step a rollout; float32; one thread in each process. Contenders of a ratio
are measured in turn, in one run, so that other load slows them equally; all figures are medians.

step       a whole step (rollout, rewards, scoring, learning, records) of a stack of 16 members, every matrix product of
           that step alone (the rollout's included), and a step of TRL's `GRPOTrainer.train()` with its own generation
           on the same policy, prompts and sizes, from its callback `on_step_begin` to `on_step_end`
members    the cost of a member and step in a stack of 1 to 32, and in sweeps of 16, 64 and 256 members, which are
           chunks of at most 16: a member's cost there is that of a stack of 16, however many chunks there are
processes  members times steps a second in one process and in two, once each of them has begun; and from that how long
           320 members of 100 steps take
overhead   a sweep's time in one process (chunks, early stopping, columns, Parquet, the folder) against the time of its
           ensembles' own steps within it
ray        Ray with two workers against two processes of ours: the rates once all of them have begun, the seconds before
           that, and from both how long a sweep has to be for Ray to take 10 % more
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from step_time import MatrixProducts

from skewsim.learn.base_policy import starting_policy
from skewsim.learn.trainer import Trainer
from skewsim.scenarios import find_scenario
from skewsim.settings import Scenario
from skewsim.sweeps.chunk import LARGEST, Chunk, Columns
from skewsim.sweeps.plan import SweepSettings, make_sweep
from skewsim.sweeps.processes import in_processes, in_this_process
from skewsim.sweeps.runner import run_sweep

BEGIN, END = "<!-- sweep speed: begin -->", "<!-- sweep speed: end -->"
README = Path(__file__).with_name("README.md")
Compute = Callable[[Sequence[Chunk]], Iterator[tuple[Chunk, Columns]]]
Row = tuple[str, str, str]
"""What was measured, the figure, and the aim."""


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast a sweep trains.")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in given.parts or PARTS:
        for row in PARTS[name](given.repeats):
            print(f"{row[0]}: {row[1]} (aim: {row[2]})", flush=True)
            rows.append(row)
    if given.write:
        table = ["| measured | figure | aim |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
        text = README.read_text()
        before, rest = text.split(BEGIN)
        README.write_text("\n".join([before + BEGIN, *table, END + rest.split(END)[1]]))


def setting(**values: Any) -> Scenario:
    return find_scenario("v0_reference").with_values({"trainer.num_minibatches": 1, **values})


@dataclass
class Clock:
    """Processor and wall times of contenders, in seconds."""

    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], object]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        self.note(name, time.process_time() - cpu, time.perf_counter() - wall)

    def note(self, name: str, cpu: float, wall: float) -> None:
        self.times.setdefault(name, []).append((cpu, wall))

    def cpu(self, name: str) -> float:
        return statistics.median(cpu for cpu, _ in self.times[name])

    def ratio(self, name: str, other: str, times: float = 1.0) -> str:
        """The ratio of two contenders, each turn's own, by processor time; in brackets by wall time."""
        cpu, wall = (
            statistics.median(times * a[n] / b[n] for a, b in zip(self.times[name], self.times[other], strict=True))
            for n in (0, 1)
        )
        return f"{cpu:.2f} ({wall:.2f} by the wall)"


# ------------------------------------------------------------------------------------------------------------- step


def step_part(repeats: int) -> list[Row]:
    """A whole step against its products and against TRL."""
    clock, trainer = Clock(), Trainer(setting(), seeds=range(LARGEST))
    trainer.step()
    products = MatrixProducts(trainer.step)

    def turn() -> None:
        clock.time("ours", trainer.step)
        clock.time("products", products)

    with tempfile.TemporaryDirectory() as folder:
        train_with_trl(setting(), Path(folder), repeats + 3, clock, turn)
    clock.times = {name: found[3:] for name, found in clock.times.items()}  # the first ones also allocate memory
    each = {name: clock.cpu(name) * 1e3 / (1 if name == "TRL" else LARGEST) for name in clock.times}
    figures = f"{each['ours']:.1f} ms a member, products {each['products']:.1f}, TRL {each['TRL']:.1f}"
    return [
        (
            f"a whole step in a stack of {LARGEST} / all its matrix products",
            f"{clock.ratio('ours', 'products')}; {figures} (processor time)",
            "at most 1.5",
        ),
        (
            "TRL's `train()` with its own generation / a member's whole step",
            clock.ratio("TRL", "ours", LARGEST),
            "at least 5",
        ),
        ("the same / the matrix products alone", clock.ratio("TRL", "products", LARGEST), "(what 1.0 would allow)"),
    ]


def train_with_trl(scenario: Scenario, folder: Path, steps: int, clock: Clock, after: Callable[[], None]) -> None:
    """TRL's own training loop on the scenario's policy and prompts; ``after`` is called after each step."""
    warnings.simplefilter("ignore")
    import transformers
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    transformers.logging.set_verbosity_error()
    trainer = Trainer(scenario)
    starting_policy(scenario).save(folder)
    settings, pool = scenario.trainer, trainer.task.pool
    size = settings.num_prompts * settings.num_generations
    tokens = trainer.task.max_tokens

    class Timed(transformers.TrainerCallback):
        began = (0.0, 0.0)

        def on_step_begin(self, *given: Any, **named: Any) -> None:
            self.began = (time.process_time(), time.perf_counter())

        def on_step_end(self, *given: Any, **named: Any) -> None:
            cpu, wall = self.began
            clock.note("TRL", time.process_time() - cpu, time.perf_counter() - wall)
            after()

    trl = GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [float(sum(ids) % 2) for ids in completion_ids],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=size,
            num_generations=settings.num_generations,
            steps_per_generation=1,
            num_iterations=1,
            max_completion_length=tokens,
            generation_kwargs={"min_new_tokens": tokens},
            temperature=scenario.engine.temperature,
            learning_rate=settings.learning_rate,
            max_grad_norm=settings.max_grad_norm,
            loss_type="grpo",
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(f"w{t}" for t in row) for row in pool.tolist()]}),
        processing_class=word_tokenizer(trainer.policy.config.vocab_size),
        callbacks=[Timed()],
    )
    trl.remove_callback(transformers.PrinterCallback)  # stdout is for the figures
    trl.train()


def word_tokenizer(size: int) -> Any:
    """A tokenizer that has a word for each token: w0, w1 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(size)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")


# ---------------------------------------------------------------------------------------------------------- members


def members_part(repeats: int) -> list[Row]:
    """What a member costs, by how many there are."""
    clock, turns = Clock(), max(3, repeats // 5)
    sizes = (1, 2, 4, 8, 16, 32)
    stacks = {size: Trainer(setting(), seeds=range(size)) for size in sizes}
    for trainer in stacks.values():
        trainer.step()
    for _ in range(turns):
        for size, trainer in stacks.items():
            clock.time(f"stack {size}", trainer.step)
    stacks.clear()
    counts = (16, 64, 256)
    scenario = setting(steps=2)
    for _ in range(turns):
        for count in counts:
            parts = [Chunk(scenario, tuple(range(n, n + LARGEST)), ()) for n in range(0, count, LARGEST)]
            clock.time(f"sweep {count}", lambda parts=parts: list(in_this_process(parts)))
    stacked = {size: clock.cpu(f"stack {size}") / size * 1e3 for size in sizes}
    swept = {count: clock.cpu(f"sweep {count}") / count / scenario.steps * 1e3 for count in counts}
    return [
        (
            "a member's step in a stack of " + ", ".join(map(str, sizes)),
            ", ".join(f"{x:.1f}" for x in stacked.values()) + f" ms (a sweep's stacks have at most {LARGEST})",
            "",
        ),
        (
            "a member's step in a sweep of " + ", ".join(map(str, counts)) + " members, its start included",
            ", ".join(f"{x:.1f}" for x in swept.values())
            + f" ms: {max(swept.values()) / min(swept.values()) - 1:.0%} apart",
            "at most 10 % apart",
        ),
    ]


# -------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Pace:
    """How fast chunks are computed: seconds before the first begins, and members times steps a second from then on."""

    start: float
    rate: float

    @classmethod
    def of(cls, compute: Compute, workers: int, *, seconds: float) -> Pace:
        """Of about `seconds` of chunks that are all alike, where a member's step takes 25 ms.

        The first two chunks of each worker are not counted, for they may wait for another one that is still starting;
        nor are the last ones, beside which a worker has nothing left to do.
        """
        scenario = setting(steps=4)
        rounds = max(4, round(seconds / (LARGEST * scenario.steps * 0.025)))
        firsts = range(0, LARGEST * workers * rounds, LARGEST)
        chunks = [Chunk(scenario, tuple(range(n, n + LARGEST)), ()) for n in firsts]
        began = time.perf_counter()
        done = [time.perf_counter() - began for _ in compute(chunks)]
        early = 2 * workers
        work = chunks[0].work
        counted = done[early - 1 : -workers]
        rate = work * (len(counted) - 1) / (counted[-1] - counted[0])
        return cls(done[early - 1] - early * work / rate, rate)


def processes_part(repeats: int) -> list[Row]:
    """Two processes against one."""
    found = [
        tuple(Pace.of(lambda chunks, n=n: in_processes(chunks, n), n, seconds=12).rate for n in (1, 2))
        for _ in range(max(1, repeats // 5))
    ]
    ratios = [two / one for one, two in found]
    two = statistics.median(two for _, two in found)
    return [
        ("two processes / one", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", "1.85"),
        (
            "320 members of 100 steps on two cores, from that rate",
            f"{320 * 100 / two / 60:.1f} min ({two:.0f} members times steps a second)",
            "under 6 min",
        ),
    ]


# ---------------------------------------------------------------------------------------------- overhead and Ray


def overhead_part(repeats: int) -> list[Row]:
    """A sweep against its ensembles' own time."""
    overhead(steps=1, seeds=2)  # what is imported at the first use is not a sweep's time
    found = [overhead(steps=20, seeds=LARGEST) for _ in range(max(1, repeats // 5))]
    return [("a sweep's time above its ensembles' own steps", f"{statistics.median(found):.1%}", "at most 3 %")]


def overhead(*, steps: int, seeds: int) -> float:
    """How much longer a sweep of two cells in this process takes than its trainers' steps, by processor time."""
    axis = {"path": "trainer.learning_rate", "values": [1e-4, 1e-3]}
    settings = {"axis": [axis], "seeds": seeds, "steps": steps, "stop": ["collapsed", "settled"]}
    sweep = make_sweep(SweepSettings.model_validate(settings | {"set": {"trainer.num_minibatches": 1}}))
    own, step = [0.0], Trainer.step

    def timed(trainer: Trainer) -> Any:
        began = time.process_time()
        found = step(trainer)
        own[0] += time.process_time() - began
        return found

    Trainer.step = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            for _ in run_sweep(sweep, Path(folder) / "sweep", in_this_process):
                pass
            whole = time.process_time() - began
    finally:
        Trainer.step = step
    return whole / own[0] - 1


def ray_part(repeats: int) -> list[Row]:
    """Ray against our own processes."""
    from skewsim.sweeps.cluster import on_ray

    found = [
        (
            Pace.of(lambda chunks: in_processes(chunks, 2), 2, seconds=24),
            Pace.of(lambda chunks: on_ray(chunks, 2), 2, seconds=24),
        )
        for _ in range(max(1, repeats // 5))
    ]
    slower = [ours.rate / ray.rate for ours, ray in found]
    ours, ray = (statistics.median(pair[n].start for pair in found) for n in (0, 1))
    slope = statistics.median(slower)
    within = max(0.0, (ray - 1.1 * ours) / (1.1 - slope)) if slope < 1.1 else float("inf")
    return [
        (
            "Ray with two workers: its time above that of two processes, once both have begun",
            f"{slope - 1:.0%} ({min(slower) - 1:.0%} to {max(slower) - 1:.0%})",
            "at most 10 %",
        ),
        (
            "seconds before two processes begin, and Ray",
            f"{ours:.1f} and {ray:.1f}: with them Ray takes at most 10 % more from {within / 60:.1f} min on",
            "",
        ),
    ]


PARTS = {
    "step": step_part,
    "members": members_part,
    "processes": processes_part,
    "overhead": overhead_part,
    "ray": ray_part,
}


if __name__ == "__main__":
    main()
