"""The time of one optimiser step: skewsim's, TRL's `GRPOTrainer`'s on the same batch, and matrix products alone.

    python benchmarks/step_time.py [REPEATS]        (needs the `oracle` extra: trl)

The batch is a rollout of the shipped base policy (width 64, 2 layers): 8 prompts of 14 tokens, 8 responses of 12 tokens
each. One thread, float32, eager. The following are timed in turn, in one process:

ours      `Trainer._optimise`: forward, loss, metrics, backward, clipping, Adam; for one member, and for an ensemble of
          MEMBERS
TRL       `GRPOTrainer.training_step` (forward, loss, metrics, backward) on the same tokens, advantages and old
          logprobs, then `clip_grad_norm_`, `optimizer.step()` (fused AdamW), `zero_grad()` as its training loop does;
          generation, logging and the data loader are left out; gradient checkpointing (TRL's default) and bfloat16
          are off
products  every matrix product of our step, with the shapes and strides it has there (those inside the fused attention
          included), and nothing else

First, both losses and gradient norms are compared, which shows that ours and TRL's are the same step.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from skewsim.learn.base_policy import starting_policy
from skewsim.learn.batch import Batch
from skewsim.learn.objectives import compute_advantages
from skewsim.learn.trainer import Trainer
from skewsim.scenarios import find_scenario
from skewsim.settings import Scenario

MEMBERS = 5
Step = Callable[[], object]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    torch.set_num_threads(1)
    scenario = find_scenario("v0_reference").with_values({"trainer.num_minibatches": 1})
    alone, together = our_step(scenario, members=1), our_step(scenario, members=MEMBERS)
    with tempfile.TemporaryDirectory() as folder:
        trl = TrlStep(scenario, Path(folder))
        ours = Trainer(scenario)._optimise(our_batch(scenario, 1)[1], first=False)
        loss, norm = trl()
        print(
            f"loss {ours['optim/loss'].item():.6f} (TRL {loss:.6f}), gradient norm {ours['optim/grad_norm'].item():.6f} (TRL {norm:.6f})"
        )
        times = interleaved(
            {"ours": alone, "ensemble": together, "products": MatrixProducts(alone), "TRL": trl}, repeats=repeats
        )
    for clock in ("cpu", "wall"):
        median = {name: statistics.median(t[clock] for t in found) * 1e3 for name, found in times.items()}
        member = median["ensemble"] / MEMBERS
        print(
            f"{clock:4}  median ms: ours {median['ours']:.2f}, per member of {MEMBERS} {member:.2f}, "
            f"matrix products {median['products']:.2f}, TRL {median['TRL']:.1f}\n"
            f"      TRL / ours {median['TRL'] / median['ours']:.1f}, TRL / member {median['TRL'] / member:.1f}, "
            f"ours / products {median['ours'] / median['products']:.2f}"
        )


def our_batch(scenario: Scenario, members: int) -> tuple[Trainer, Batch]:
    """A trainer at its start and one rollout of its engine, ready to learn from."""
    trainer = Trainer(scenario, seeds=range(members))
    rollouts = trainer.engine.generate(trainer._request(0))
    rewards = trainer.task.score(rollouts.prompt_ids, rollouts.tokens, rollouts.mask)
    group_ids = torch.arange(rollouts.tokens.shape[1]) // scenario.trainer.num_generations
    advantages = compute_advantages(rewards.exact, group_ids, scenario.trainer)
    return trainer, Batch(rollouts, rollouts.engine_logprobs, advantages, group_ids, rollouts.mask)


def our_step(scenario: Scenario, *, members: int) -> Step:
    trainer, batch = our_batch(scenario, members)
    return lambda: trainer._optimise(batch, first=False)


class TrlStep:
    """A step of TRL's trainer on the same weights and batch."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        batch = our_batch(scenario, 1)[1]
        starting_policy(scenario).save(folder)
        settings, r = scenario.trainer, batch.rollouts
        self.trainer = GRPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=str(folder / "trl"),
                per_device_train_batch_size=r.tokens.shape[1],
                num_generations=settings.num_generations,
                num_iterations=10**9,  # so that TRL never generates a new batch
                max_completion_length=r.tokens.shape[2],
                temperature=scenario.engine.temperature,
                learning_rate=settings.learning_rate,
                max_grad_norm=settings.max_grad_norm,
                loss_type="grpo",
                epsilon=0.2,
                beta=0.0,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["a"]}),
            processing_class=_tokenizer(),
        )
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer._step = 1
        ones = torch.ones_like(r.prompts[0])
        self.trainer._buffered_inputs = [
            {
                "prompt_ids": r.prompts[0],
                "prompt_mask": ones,
                "completion_ids": r.tokens[0],
                "completion_mask": r.mask[0].long(),
                "advantages": batch.advantages[0],
                "old_per_token_logps": batch.old[0],
                "num_items_in_batch": r.mask[0].sum(),
            }
        ]

    def __call__(self) -> tuple[float, float]:
        """Do one step; returns its loss and gradient norm."""
        trainer = self.trainer
        loss = trainer.training_step(trainer.model, None, None)
        norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        return loss.item(), norm.item()


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


class MatrixProducts:
    """Computes every matrix product of a step, one by one, on random tensors of the same shapes and strides."""

    def __init__(self, step: Step) -> None:
        self.calls: list[tuple[Callable[..., Tensor], list[Any]]] = []
        recorder = _Recorder(self.calls)
        with recorder:
            step()

    def __call__(self) -> None:
        for product, arguments in self.calls:
            product(*arguments)


class _Recorder(TorchDispatchMode):
    """Records the matrix products that torch computes, with random tensors of the same layout as arguments."""

    PRODUCTS = ("aten.mm.", "aten.bmm.", "aten.addmm.", "aten.baddbmm.")
    FORWARD = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    BACKWARD = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"

    def __init__(self, calls: list[tuple[Callable[..., Tensor], list[Any]]]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(self.PRODUCTS):
            self.calls.append((func, [_like(a) if isinstance(a, Tensor) else a for a in args]))
        elif str(func) == self.FORWARD:  # the scores, and their product with v
            self._note("ld,ds->ls", "ls,sd->ld", q=args[0])
        elif str(func) == self.BACKWARD:  # gradients of v, the weights, q and k; recomputing the scores is not counted
            self._note("sl,ld->sd", "ld,ds->ls", "ls,sd->ld", "sl,ld->sd", q=args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, *products: str, q: Tensor) -> None:
        """The products inside a fused attention over as many keys as queries, q (batch, heads, l, d)."""
        batch, (length, width) = q.shape[:2].numel(), q.shape[2:]
        size = {"l": length, "s": length, "d": width}
        for product in products:
            left, right = product.partition("->")[0].split(",")
            a, b = (torch.randn(batch, *(size[axis] for axis in axes)) for axes in (left, right))
            self.calls.append((torch.bmm, [a, b]))


def _like(x: Tensor) -> Tensor:
    room = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return torch.randn(room).as_strided(x.shape, x.stride())


def interleaved(contenders: dict[str, Step], *, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Times of each contender, measured in turn, so that other load on the machine slows all of them equally."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(repeats + 3):
        for name, step in contenders.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step()
            if turn >= 3:  # the first turns also allocate memory
                times[name].append({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall})
    return times


if __name__ == "__main__":
    main()
