"""Write every rollout's engine and trainer logprobs from inside a training script, in skewsim's sequence format.

    from skewsim.callbacks import RolloutCallback
    trainer = GRPOTrainer(...)
    trainer.add_callback(RolloutCallback(trainer, "rollouts.jsonl"))

TRL does not pass the logprobs to reward functions or callbacks. They are both in the batch that
`GRPOTrainer._generate_and_score_completions` returns (trl/trainer/grpo_trainer.py), so `RolloutCallback` wraps that
method. Any other trainer that has both logprobs can write them with `RolloutLog`; docs/logs.md has the lines for verl.

Needs only numpy. Logging never ends a training run: the first batch that cannot be written gives a warning, and later
ones give none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skewsim.skew.sequences import SequenceRecord

Rows = npt.NDArray[Any]


class RolloutLog:
    """A file of sequences to which `write` appends one batch at a time; the batch is in the file when it returns."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        *,
        tokens: Any,
        engine_logprobs: Any,
        trainer_logprobs: Any = None,
        mask: Any = None,
        prompts: Any = None,
        prompt_mask: Any = None,
        weight_versions: Any = None,
        prompt_ids: Any = None,
        routed_experts: Any = None,
        temperature: float | None = None,
        **places: int,
    ) -> int:
        """Append a batch; returns the number of sequences.

        `tokens`, both logprobs and `mask` (1 where the engine sampled the token) are tensors or arrays of shape (N, T),
        padded on the right; `prompts` and `prompt_mask` of shape (N, P); `weight_versions` and `prompt_ids` (what tells
        prompts apart) of shape (N,); `routed_experts` of shape (N, P + T, L, k), verl's: the experts that the engine
        sent each token of `prompts` and `tokens` to. `places` are whole numbers: step, rank, replica. ValueError if
        shapes differ.
        """
        columns = {
            "tokens": _rows(tokens),
            "engine_logprobs": _rows(engine_logprobs),
            "trainer_logprobs": _rows(trainer_logprobs),
            "mask": _rows(mask),
        }
        given, allowed, routes = _rows(prompts), _rows(prompt_mask), _rows(routed_experts)
        if routes is not None:
            routes = _predicting(routes, given, columns["tokens"])
        lines = []
        for number, row in _by_sequence(columns):
            prompt = None if given is None else given[number]
            if prompt is not None and allowed is not None:
                prompt = prompt[allowed[number].astype(bool)]
            key = None if prompt_ids is None else prompt_ids[number]
            versions = None if weight_versions is None else np.full(len(row["tokens"]), int(weight_versions[number]))
            record = SequenceRecord(
                **row,
                weight_versions=versions,
                prompt_tokens=prompt,
                prompt_key=key if isinstance(key, str) or key is None else int(key),
                settings={} if temperature is None else {"temperature": float(temperature)},
                places=places,
                engine_routes=None if routes is None else routes[number, : len(row["tokens"])],
            )
            lines.append(json.dumps(record.to_json(), separators=(",", ":")) + "\n")
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(lines)
        return len(lines)


class RolloutCallback:
    """A TRL callback that writes every rollout of a `GRPOTrainer` with the sampler's and the trainer's logprobs.

    Needs `use_vllm=True` (without it there is no second number) and `vllm_importance_sampling_correction=True`, TRL's
    default, with which the trainer scores each rollout before it learns from it. Each process writes a file of its own.
    With `every=k` only every k-th batch of rollouts is written.
    """

    def __init__(self, trainer: Any, path: Path | str = "rollouts.jsonl", *, every: int = 1) -> None:
        self._trainer, self._every, self._batches = trainer, every, 0
        path, rank = Path(path), int(trainer.accelerator.process_index)
        self.log = RolloutLog(path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}"))
        self._rank, self._silenced = rank, False
        trainer._generate_and_score_completions = self._watched(trainer._generate_and_score_completions)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """The event methods of a `TrainerCallback`; all of them do nothing."""
        if name.startswith("on_"):
            return lambda *arguments, **named: None
        raise AttributeError(name)

    def _watched(self, make: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def watched(inputs: Any) -> dict[str, Any]:
            made = make(inputs)
            if self._trainer.model.training:
                self._batches += 1
                if (self._batches - 1) % self._every == 0:
                    self._write(made)
            return made

        return watched

    def _write(self, made: dict[str, Any]) -> None:
        if "sampling_per_token_logps" not in made:
            self._say("the batch has no sampling_per_token_logps; allowed: use_vllm=True. No rollout is written")
            return
        if "old_per_token_logps" not in made:
            self._say("the batch has no old_per_token_logps; set vllm_importance_sampling_correction=True")
        sampled = _rows(made["completion_mask"])
        if "tool_mask" in made and sampled is not None:
            sampled = sampled * _rows(made["tool_mask"])
        try:
            self.log.write(
                tokens=made["completion_ids"],
                engine_logprobs=made["sampling_per_token_logps"],
                trainer_logprobs=made.get("old_per_token_logps"),
                mask=sampled,
                prompts=made["prompt_ids"],
                prompt_mask=made["prompt_mask"],
                temperature=getattr(self._trainer, "temperature", None),
                step=int(self._trainer.state.global_step),
                rank=self._rank,
            )
        except (ValueError, OSError) as error:
            self._say(f"a batch was not written: {error}")

    def _say(self, words: str) -> None:
        if not self._silenced:
            warnings.warn(f"skewsim.callbacks: {words}", stacklevel=2)
        self._silenced = True


def _rows(values: Any) -> Rows | None:
    """A tensor or array of shape (N, ...) as a numpy array; bfloat16 as float32."""
    if values is None:
        return None
    if hasattr(values, "detach"):
        plain = values.detach().cpu()
        return np.asarray((plain.float() if plain.is_floating_point() else plain).numpy())
    return np.asarray(values)


def _predicting(routes: Rows, prompts: Rows | None, tokens: Rows | None) -> Rows:
    """The experts (N, T, L, k) of the row before each token."""
    before = None if prompts is None else prompts.shape[1] - 1
    if before is None or tokens is None or routes.shape[:2] != (len(tokens), before + 1 + tokens.shape[1]):
        raise ValueError(
            f"routed_experts has shape {routes.shape}; allowed: (N, P + T, L, k), with prompts of shape (N, P)"
        )
    return routes[:, before : before + tokens.shape[1]]


def _by_sequence(columns: dict[str, Rows | None]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each sequence's number and columns, cut after its last sampled token; sequences without one are skipped."""
    tokens, mask = columns["tokens"], columns["mask"]
    assert tokens is not None
    for name, column in columns.items():
        if column is not None and column.shape != tokens.shape:
            raise ValueError(f"{name} has shape {column.shape}, tokens {tokens.shape}")
    for number in range(len(tokens)):
        sampled = np.ones(tokens.shape[1], dtype=bool) if mask is None else mask[number].astype(bool)
        length = int(np.flatnonzero(sampled)[-1]) + 1 if sampled.any() else 0
        if length:
            cut = {name: None if column is None else column[number, :length] for name, column in columns.items()}
            yield number, cut
