"""The trainer's side of a measurement: how probable a Hugging Face model itself finds given tokens.

`transformers` computes the logits, at a chosen dtype, head dtype and attention implementation. What the sampler does to
logits (temperature, min-p, top-k, top-p) is done by the simulator's code, so it means the same on both sides. A trainer
that does not renormalise after truncation takes the plain log-softmax at the temperature (`renormalize` false). Only
safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from skewsim.engine.sampling import process
from skewsim.errors import UserError
from skewsim.model.folder import check_folder
from skewsim.model.huggingface import load_model
from skewsim.settings import DType, EngineSettings

Attention = Literal["eager", "sdpa", "flash_attention_2"]
LOGITS_AT_ONCE = 2**24
"""float32 logits that are held at once: 64 MB."""
SOFTMAX_AT_ONCE = 2**20
"""Logits whose float64 softmax is computed at once: 8 MB, which stay in a processor's cache (3 times as fast)."""


@dataclass(frozen=True)
class TrainerSide:
    """How `transformers` computes the trainer's logprobs."""

    dtype: DType = "float32"
    head_dtype: DType | None = None
    """None: the body's."""
    attention: Attention = "sdpa"
    device: str = "cpu"
    renormalize: bool = True
    """Restrict the softmax to the tokens that top-p, top-k and min-p leave."""


@dataclass(frozen=True)
class Processing:
    """What the trainer does to logits before it takes a log-softmax."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    renormalize: bool = True
    """Restrict the softmax to the tokens that top-p, top-k and min-p leave."""

    @classmethod
    def of(cls, settings: EngineSettings, *, renormalize: bool = True) -> Processing:
        """The same as the engine's."""
        return cls(settings.temperature, settings.top_p, settings.top_k, settings.min_p, renormalize)

    def settings(self) -> EngineSettings:
        return EngineSettings(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p)


@dataclass(frozen=True)
class TokenScores:
    """The trainer's numbers for the T tokens of one response; all (T,) float64."""

    logprobs: npt.NDArray[np.float64]
    """nats; -inf for a token that top-p, top-k or min-p cut off."""
    square_mass: npt.NDArray[np.float64]
    """Sum of the squared probabilities of all tokens: what noise on logits does to a logprob depends on it."""
    kept_mass: npt.NDArray[np.float64]
    """Probability of all tokens that top-p, top-k and min-p leave; 1 without them."""
    routes: npt.NDArray[np.int64] | None = None
    """(T, L, k) the experts that the row before each token went to; None if the model has no routers."""


class TrainerScorer:
    """One model at one precision. Raises UserError for a folder that is no model, or a device that is not there."""

    def __init__(
        self,
        folder: Path | str,
        *,
        dtype: DType = "float32",
        head_dtype: DType | None = None,
        attention: Attention = "sdpa",
        device: str = "cpu",
        batch_tokens: int | None = None,
    ) -> None:
        _check_device(device, attention=attention, dtype=dtype)
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens={batch_tokens}; allowed: at least 1")
        self.folder, self.device, self.attention = Path(folder), device, attention
        self.dtype, self.head_dtype = dtype, head_dtype or dtype
        self._batch_tokens = batch_tokens
        self.model = _load(self.folder, dtype=dtype, attention=attention).to(device).eval()
        _set_head(self.model, getattr(torch, self.head_dtype))
        self._wanted = torch.ones(0, 0, dtype=torch.bool)
        """(sequences, positions) of the pass at hand: those whose logits are wanted. The head computes no others."""
        self.model.get_output_embeddings().register_forward_pre_hook(lambda head, given: (given[0][self._wanted],))
        self._chosen: list[Tensor] = []
        """Of the last pass, the experts (rows, k) that each layer's router chose."""
        for module in self.model.modules():
            if type(module).__name__.endswith("TopKRouter"):  # as transformers calls those of all its mixtures
                module.register_forward_hook(lambda module, given, found: self._chosen.append(found[-1]))

    @classmethod
    def of(cls, folder: Path | str, side: TrainerSide, *, batch_tokens: int | None = None) -> TrainerScorer:
        """The model as this trainer computes it; `batch_tokens` bounds the tokens of a batch."""
        return cls(
            folder,
            dtype=side.dtype,
            head_dtype=side.head_dtype,
            attention=side.attention,
            device=side.device,
            batch_tokens=batch_tokens,
        )

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], processing: Processing | None = None
    ) -> list[TokenScores]:
        """One `TokenScores` for each response, in order; prompts and responses may differ in length."""
        processing = processing or Processing()
        pairs = list(zip(prompts, responses, strict=True))
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        found: dict[int, TokenScores] = {}
        limit = min(LOGITS_AT_ONCE // self.vocab_size, self._batch_tokens or LOGITS_AT_ONCE)
        for batch in _batches(order, [len(p) + len(r) for p, r in pairs], limit=limit):
            try:
                found |= zip(batch, self._batch([pairs[i] for i in batch], processing), strict=True)
            except torch.OutOfMemoryError:
                tokens = sum(len(pairs[i][0]) + len(pairs[i][1]) for i in batch)
                raise UserError(
                    f"batch_tokens={self._batch_tokens or limit}: {tokens} tokens at once are more than "
                    f"{self.device} has memory for; allowed: fewer"
                ) from None
        return [found[i] for i in range(len(pairs))]

    def _batch(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], processing: Processing
    ) -> Iterator[TokenScores]:
        """The scores of one batch. Its tokens are taken together, in pieces that fit into memory: a call for each
        sequence would take longer than what it computes."""
        lengths = [len(response) for _, response in pairs]
        self._chosen.clear()
        logits = self._logits(pairs)
        routes = self._routes(pairs)
        tokens = torch.tensor([t for _, response in pairs for t in response], device=self.device)
        rows = max(SOFTMAX_AT_ONCE // self.vocab_size, 1)
        pieces = [_scores(*part, processing) for part in zip(logits.split(rows), tokens.split(rows), strict=True)]
        columns = [np.concatenate(column) for column in zip(*pieces, strict=True)]
        split = zip(*(np.split(column, np.cumsum(lengths)[:-1]) for column in columns), strict=True)
        for parts, route in zip(split, routes, strict=True):
            yield replace(TokenScores(*parts), routes=route)

    def _routes(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[npt.NDArray[np.int64] | None]:
        """The experts (T, L, k) of the rows before each response's tokens, of the pass just done."""
        if not self._chosen:
            return [None] * len(pairs)
        each = torch.stack(self._chosen, 1).view(len(pairs), -1, len(self._chosen), self._chosen[0].shape[-1])
        return [one[len(p) - 1 : len(p) + len(r) - 1].cpu().numpy() for one, (p, r) in zip(each, pairs, strict=True)]

    def _logits(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
        """float32 logits before each response token, one sequence after another: (tokens of all responses, V)."""
        lengths = [len(p) + len(r) for p, r in pairs]
        ids = torch.zeros(len(pairs), max(lengths), dtype=torch.int64)
        mask, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, response) in enumerate(pairs):
            ids[row, : lengths[row]] = torch.tensor([*prompt, *response])
            mask[row, : lengths[row]] = 1
            wanted[row, len(prompt) - 1 : lengths[row] - 1] = True
        self._wanted = wanted.to(self.device)
        # causal attention never sees the padding on the right; the mask is only for models that want one
        padded = {} if min(lengths) == max(lengths) else {"attention_mask": mask.to(self.device)}
        logits: Tensor = self.model(input_ids=ids.to(self.device), use_cache=False, **padded).logits
        return logits.float()


def _scores(logits: Tensor, tokens: Tensor, processing: Processing) -> list[npt.NDArray[np.float64]]:
    """The columns of `TokenScores`, without routes, of logits (L, V) and tokens (L,)."""
    processed = process(logits.double(), processing.settings())
    logprobs = processed.logprobs
    if processed.kept_mass is not None and not processing.renormalize:
        logprobs = (logits.double() / processing.temperature).log_softmax(-1)
    picked = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    kept = processed.kept_mass if processed.kept_mass is not None else torch.ones_like(picked)
    probs = logprobs.exp()
    parts = (picked, torch.linalg.vecdot(probs, probs), kept)
    return [part.cpu().numpy().astype(np.float64) for part in parts]


def _batches(order: list[int], lengths: list[int], *, limit: int) -> list[list[int]]:
    """Consecutive sequences, shortest first, with at most `limit` padded tokens in a batch (at least one sequence)."""
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def read_model_config(folder: Path | str) -> dict[str, Any]:
    """The folder's config.json. Raises UserError if the folder is not a model with safetensors, or not whole."""
    return check_folder(folder)


def stop_tokens(folder: Path | str) -> list[int]:
    """The model's end-of-text tokens, as its generation_config.json or config.json says."""
    folder = Path(folder)
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text()).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        if found is not None:
            return [int(t) for t in found] if isinstance(found, list) else [int(found)]
    return []


def _check_device(device: str, *, attention: str, dtype: str) -> None:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device={device!r}; allowed: cpu, cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: this torch sees no CUDA device; allowed: cpu")
    if attention == "flash_attention_2" and (kind != "cuda" or dtype == "float32"):
        raise UserError(
            f"attention={attention!r} with device={device!r} and dtype={dtype!r}: it needs cuda and a dtype of "
            "16 bits; allowed elsewhere: eager, sdpa"
        )


def _load(folder: Path, *, dtype: str, attention: str) -> Any:
    return load_model(folder, dtype=getattr(torch, dtype), attn_implementation=attention)


def _set_head(model: Any, dtype: torch.dtype) -> None:
    """Compute the head at a dtype of its own; its weight becomes a copy, since the embedding may share it."""
    head = model.get_output_embeddings()
    if head.weight.dtype == dtype:
        return
    head.weight = torch.nn.Parameter(head.weight.detach().to(dtype), requires_grad=False)
    if getattr(head, "bias", None) is not None:
        head.bias = torch.nn.Parameter(head.bias.detach().to(dtype), requires_grad=False)
    head.register_forward_pre_hook(lambda module, args: (args[0].to(dtype), *args[1:]))
