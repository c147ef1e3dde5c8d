"""Every framework's log in the shape that its own code writes, and what is made of one that is damaged.

A shape is a function that writes the same two sequences as a framework would; its docstring names the code that does.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from harness.logs import Report, import_rollouts, import_sequences
from skewsim.border import LONGEST_LINE
from skewsim.cli.main import main
from skewsim.errors import FileFormatError, UserError
from skewsim.skew.sequences import load_sequences
from skewsim.skew.tokens import TokenTable

PROMPT = [5, 6, 7]
TOKENS = [[10, 11, 12], [13, 14]]
ENGINE = [[-0.1, -0.2, -0.3], [-0.4, -0.5]]
TRAINER = [[-0.15, -0.2, -0.25], [-0.4, -0.6]]
ROWS = list(zip(TOKENS, ENGINE, TRAINER, strict=True))
Rows = list[Any]


def full(values: Rows, filler: Any, width: int = 6) -> Rows:
    """Behind a prompt's fillers, in front of padding up to the batch's width."""
    return ([filler] * len(PROMPT) + values + [filler] * width)[:width]


def left(values: Rows, width: int, filler: Any = 0) -> Rows:
    return [filler] * (width - len(values)) + values


def nemo_rl() -> Rows:
    """nemo_rl/algorithms/grpo.py (log_data) through make_microbatch_iterator(1) in nemo_rl/utils/logger.py."""
    return [
        {
            "content": ["..."],
            "rewards": [1.0],
            "input_lengths": [len(PROMPT) + len(tokens)],
            "token_ids": [full([], 0)[:0] + PROMPT + tokens + [0] * (3 - len(tokens))],
            "token_loss_mask": [full([1] * len(tokens), 0)],
            "sample_loss_mask": [1.0],
            "generation_logprobs": [full(engine, 0.0)],
            "prev_logprobs": [full(trainer, 0.0)],
            "idx": number,
        }
        for number, (tokens, engine, trainer) in enumerate(ROWS)
    ]


def prime_rl_export() -> Rows:
    """prime_rl/trainer/rl/token_export.py."""
    return [
        {
            "schema_version": 1,
            "step": 3,
            "rank": 0,
            "micro_step": 0,
            "micro_sequence_idx": number,
            "export_sequence_idx": number,
            "env_name": "math",
            "token_ids": PROMPT + tokens,
            "position_ids": list(range(len(PROMPT + tokens))),
            "loss_mask": [False] * len(PROMPT) + [True] * len(tokens),
            "inference_logprobs": [0.0] * len(PROMPT) + engine,
            "trainer_logprobs": [-1.0] * len(PROMPT) + trainer,
            "rl_weights": [None] * len(PROMPT + tokens),
            "ref_kl_weights": [None] * len(PROMPT + tokens),
        }
        for number, (tokens, engine, trainer) in enumerate(ROWS)
    ]


def prime_rl_episode() -> Rows:
    """prime_rl/monitors/file.py: Episode.to_record of verifiers."""
    return [
        {
            "id": f"e{number}",
            "env": {"id": "math"},
            "group": {"id": "0"},
            "run": {"type": "train", "work": {"type": "train", "step": 3, "policy": {"start": 2, "end": 2}}},
            "traces": [
                {
                    "nodes": [
                        {"sampled": False, "token_ids": PROMPT, "mask": [False] * 3, "logprobs": []},
                        {"parent": 0, "token_ids": tokens, "mask": [True] * len(tokens), "logprobs": engine},
                    ]
                }
            ],
        }
        for number, (tokens, engine, _) in enumerate(ROWS)
    ]


def open_instruct() -> Rows:
    """open_instruct/rl_utils.py: RolloutRecord."""
    return [
        {
            "step": 3,
            "sample_idx": number,
            "prompt_idx": 0,
            "prompt_tokens": PROMPT,
            "response_tokens": tokens,
            "reward": 1.0,
            "finish_reason": "stop",
            "logprobs": engine,
        }
        for number, (tokens, engine, _) in enumerate(ROWS)
    ]


def vllm_chat() -> Rows:
    """vllm/entrypoints/openai: ChatCompletionResponse with logprobs and return_tokens_as_token_ids."""
    return [
        {
            "id": "c",
            "object": "chat.completion",
            "prompt_token_ids": PROMPT,
            "choices": [
                {
                    "index": number,
                    "message": {"role": "assistant", "content": "..."},
                    "logprobs": {
                        "content": [
                            {"token": f"token_id:{token}", "logprob": value, "top_logprobs": []}
                            for token, value in zip(tokens, engine, strict=True)
                        ]
                    },
                }
                for number, (tokens, engine, _) in enumerate(ROWS)
            ],
        }
    ]


def vllm_completion() -> Rows:
    """vllm/entrypoints/openai: CompletionResponse with return_token_ids, beside its request."""
    return [
        {
            "request": {"temperature": 0.7},
            "response": {
                "choices": [
                    {
                        "token_ids": tokens,
                        "prompt_token_ids": PROMPT,
                        "logprobs": {"tokens": ["a"] * len(tokens), "token_logprobs": engine},
                    }
                ]
            },
        }
        for tokens, engine, _ in ROWS
    ]


def pipelinerl() -> Rows:
    """pipelinerl/rollouts.py: TrainingText; a group is a line."""
    group = [
        {
            "text": "...",
            "n_predicted": 4,
            "input_ids": PROMPT + tokens,
            "labels": [-100] * len(PROMPT) + tokens,
            "logprobs": engine,
            "group_id": "7",
            "metadata": {"model_version": 4},
        }
        for tokens, engine, _ in ROWS
    ]
    return [group]


LINES: dict[str, tuple[str, Callable[[], Rows], str, bool]] = {
    "nemo-rl": ("train_data_step3.jsonl", nemo_rl, "nemo-rl", True),
    "prime-rl": ("token_exports/step_3/rank_0.jsonl", prime_rl_export, "prime-rl", True),
    "prime-rl traces": ("rollouts/step_3/train/effective/traces.jsonl", prime_rl_episode, "prime-rl", False),
    "open-instruct": ("run_rollouts_000000.jsonl", open_instruct, "open-instruct", False),
    "vllm chat": ("answers.jsonl", vllm_chat, "vllm", False),
    "vllm completion": ("answers.jsonl", vllm_completion, "vllm", False),
    "pipelinerl": ("0.jsonl", pipelinerl, "pipelinerl", False),
}


def slime_rollout() -> dict[str, Any]:
    """slime/observability/rollout_data_utils.py: Sample.to_dict (slime/utils/types.py)."""
    samples = [
        {
            "group_index": 9,
            "index": 20 + number,
            "rollout_id": None,
            "tokens": PROMPT + tokens,
            "response": "...",
            "response_length": len(tokens),
            "loss_mask": [1] * len(tokens),
            "weight_versions": ["4"],
            "rollout_log_probs": engine,
        }
        for number, (tokens, engine, _) in enumerate(ROWS)
    ]
    return {"rollout_id": 5, "samples": samples}


def slime_train() -> dict[str, Any]:
    """slime/observability/train_data_utils.py: _build_dump_payload, format_version 2."""
    samples = [
        {
            "data_parallel_rank": number,
            "sample_index": 20 + number,
            "rollout_position": number,
            "tokens": torch.tensor(PROMPT + tokens),
            "total_lengths": len(PROMPT + tokens),
            "response_lengths": len(tokens),
            "loss_masks": torch.ones(len(tokens), dtype=torch.int32),
            "rollout_log_probs": torch.tensor(engine, dtype=torch.float64),
            "log_probs": torch.tensor(trainer, dtype=torch.float64),
        }
        for number, (tokens, engine, trainer) in enumerate(ROWS)
    ]
    return {
        "format_version": 2,
        "rollout_id": 5,
        "rank": 0,
        "samples": samples,
        "dp_shards": [],
        "raw_reward": [1.0, 0.0],
    }


def miles_train(rank: int = 0, cp_size: int = 1) -> dict[str, Any]:
    """miles/utils/train_dump_utils.py; the shares of context parallelism by chunks, counted token by token here."""

    def share(values: Rows) -> torch.Tensor:
        total = len(PROMPT) + len(values)
        chunk = -(-total // (2 * cp_size))
        mine = (rank, 2 * cp_size - 1 - rank)
        kept = [value for at, value in enumerate(values, start=len(PROMPT) - 1) if at // chunk in mine]
        return torch.tensor(kept, dtype=torch.float64)

    return {
        "rollout_id": 5,
        "rank": rank,
        "cp_rank": rank,
        "cp_size": cp_size,
        "qkv_format": "thd",
        "rollout_data": {
            "sample_indices": [20, 21],
            "tokens": [torch.tensor(PROMPT + tokens) for tokens in TOKENS],
            "total_lengths": [len(PROMPT + tokens) for tokens in TOKENS],
            "response_lengths": [len(tokens) for tokens in TOKENS],
            "loss_masks": [torch.ones(len(tokens), dtype=torch.int32) for tokens in TOKENS],
            "rollout_log_probs": [share(engine) for engine in ENGINE],
            "log_probs": [share(trainer) for trainer in TRAINER],
            "raw_reward": [1.0, 0.0, 1.0, 0.0],
        },
    }


def skyrl() -> dict[str, Any]:
    """skyrl/backends/skyrl_train/training_batch.py: TrainingInput, everything padded on the left."""
    return {
        "sequences": torch.tensor([left(PROMPT + tokens, 8) for tokens in TOKENS]),
        "attention_mask": torch.tensor([left([1] * len(PROMPT + tokens), 8) for tokens in TOKENS]),
        "response_mask": torch.tensor([left([1] * len(tokens), 4) for tokens in TOKENS]),
        "loss_mask": torch.tensor([left([1.0] * len(tokens), 4, 0.0) for tokens in TOKENS]),
        "rollout_logprobs": torch.tensor([left(engine, 4, 0.0) for engine in ENGINE], dtype=torch.float64),
        "action_log_probs": torch.tensor([left(trainer, 4, 0.0) for trainer in TRAINER], dtype=torch.float64),
    }


def openrlhf() -> dict[str, Any]:
    """openrlhf/trainer/ppo_utils/experience.py: Experience; the action columns lack the first token."""
    return {
        "sequences": torch.tensor([PROMPT + tokens + [0] * (3 - len(tokens)) for tokens in TOKENS]),
        "attention_mask": torch.tensor([full([1] * len(tokens), 0) for tokens in TOKENS]).clamp(min=0) | torch.tensor([1, 1, 1, 0, 0, 0]),
        "action_mask": torch.tensor([full([1] * len(tokens), 0)[1:] for tokens in TOKENS]).bool(),
        "rollout_log_probs": torch.tensor([full(engine, 0.0)[1:] for engine in ENGINE], dtype=torch.float64),
        "action_log_probs": torch.tensor([full(trainer, 0.0)[1:] for trainer in TRAINER], dtype=torch.float64),
    }  # fmt: skip


def verl() -> dict[str, Any]:
    """verl/trainer/ppo/ray_trainer.py: batch.batch, as torch.save({k: batch.batch[k] ...}) keeps it."""
    return {
        "prompts": torch.tensor([left(PROMPT, 4)] * 2),
        "responses": torch.tensor([tokens + [0] * (3 - len(tokens)) for tokens in TOKENS]),
        "attention_mask": torch.tensor([left([1] * 3, 4) + [1] * len(tokens) + [0] * (3 - len(tokens)) for tokens in TOKENS]),
        "response_mask": torch.tensor([[1] * len(tokens) + [0] * (3 - len(tokens)) for tokens in TOKENS]),
        "rollout_log_probs": torch.tensor([[*e, *[0.0] * (3 - len(e))] for e in ENGINE], dtype=torch.float64),
        "old_log_probs": torch.tensor([[*t, *[0.0] * (3 - len(t))] for t in TRAINER], dtype=torch.float64),
    }  # fmt: skip


DUMPS: dict[str, tuple[Callable[[], dict[str, Any]], str, bool]] = {
    "slime rollout": (slime_rollout, "slime", False),
    "slime train": (slime_train, "slime", True),
    "miles train": (miles_train, "miles", True),
    "skyrl": (skyrl, "skyrl", True),
    "openrlhf": (openrlhf, "openrlhf", True),
    "verl": (verl, "verl", True),
}


def written(folder: Path, shape: str, rows: Rows | None = None) -> Path:
    name, make, _, _ = LINES[shape]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in (make() if rows is None else rows)))
    return path


def saved(path: Path, dump: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dump, path)
    return path


def assert_the_two_sequences(path: Path, framework: str, *, trainer: bool) -> TokenTable:
    table = import_rollouts(path)
    assert table.meta["imported_from"] == framework
    assert table.token.tolist() == [*TOKENS[0], *TOKENS[1]]
    assert table.position.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(table.engine_logprob, [*ENGINE[0], *ENGINE[1]])
    np.testing.assert_array_equal(table.trainer_logprob, [*TRAINER[0], *TRAINER[1]] if trainer else [np.nan] * 5)
    assert table.prompt is not None
    assert len(set(table.prompt.tolist())) == 1
    assert all(record.prompt_tokens.tolist() == PROMPT for record in import_sequences(path))
    return table


@pytest.mark.parametrize("shape", LINES)
def test_lines_of_a_frameworks_own_shape_are_read_token_by_token(shape: str, tmp_path: Path) -> None:
    table = assert_the_two_sequences(written(tmp_path, shape), LINES[shape][2], trainer=LINES[shape][3])
    if shape in ("nemo-rl", "prime-rl", "prime-rl traces", "open-instruct"):
        assert table.step.tolist() == [3] * 5
    if shape == "prime-rl":
        assert table.rank.tolist() == [0] * 5
        assert table.pack_index.tolist() == [0, 0, 0, 1, 1]
    if shape == "prime-rl traces":
        assert table.weight_version.tolist() == [2] * 5
    if shape == "vllm completion":
        assert table.meta["temperature"] == 0.7


@pytest.mark.parametrize("shape", DUMPS)
def test_dumps_of_a_frameworks_own_shape_are_read_token_by_token(shape: str, tmp_path: Path) -> None:
    make, framework, trainer = DUMPS[shape]
    table = assert_the_two_sequences(saved(tmp_path / "5.pt", make()), framework, trainer=trainer)
    if shape == "slime train":
        assert table.rank.tolist() == [0, 0, 0, 1, 1]


def test_a_placeholder_of_zeros_is_not_taken_for_the_trainers_numbers(tmp_path: Path) -> None:
    rows = [row | {"prev_logprobs": [[0.0] * 6]} for row in nemo_rl()]
    report = Report()
    table = import_rollouts(written(tmp_path, "nemo-rl", rows), report=report)
    assert np.isnan(table.trainer_logprob).all()
    assert any("placeholder of zeros" in line and "(2 times)" in line for line in report.lines())


def test_the_two_dumps_of_a_rollout_are_one_log_with_what_each_knows(tmp_path: Path) -> None:
    saved(tmp_path / "rollout_data" / "5.pt", slime_rollout())
    saved(tmp_path / "rollout_data" / "eval_5.pt", slime_rollout())
    saved(tmp_path / "train_data" / "5.pt", slime_train())
    table = assert_the_two_sequences(tmp_path, "slime", trainer=True)
    assert table.weight_version.tolist() == [4] * 5
    assert table.rank.tolist() == [0, 0, 0, 1, 1]
    assert table.step.tolist() == [5] * 5


def test_the_engines_routes_of_a_rollout_dump_are_kept_with_what_the_train_dump_says(tmp_path: Path) -> None:
    """slime with --use-rollout-routing-replay: (tokens - 1, layers, k) for each sample."""
    dump, routes = slime_rollout(), []
    for sample in dump["samples"]:
        routes.append(torch.randint(8, (len(sample["tokens"]) - 1, 3, 2), dtype=torch.int32))
        sample["rollout_routed_experts"] = routes[-1]
    saved(tmp_path / "rollout_data" / "5.pt", dump)
    saved(tmp_path / "train_data" / "5.pt", slime_train())
    for record, given in zip(import_sequences(tmp_path), routes, strict=True):
        np.testing.assert_array_equal(record.engine_routes, given[-len(record.tokens) :])


def test_dumps_that_disagree_on_a_sequence_are_one_line(tmp_path: Path) -> None:
    other = slime_rollout()
    other["samples"][1]["tokens"][-1] = 99
    saved(tmp_path / "rollout_data" / "5.pt", other)
    saved(tmp_path / "train_data" / "5.pt", slime_train())
    with pytest.raises(FileFormatError, match="hold other tokens"):
        import_rollouts(tmp_path)


@pytest.mark.parametrize("cp_size", [2, 3, 4])
def test_shares_of_context_parallelism_are_put_together_and_a_missing_rank_is_one_line(
    cp_size: int, tmp_path: Path
) -> None:
    for rank in range(cp_size):
        saved(tmp_path / f"5_{rank}.pt", miles_train(rank, cp_size))
    saved(tmp_path / f"5_{cp_size}.pt", miles_train(0, cp_size))  # a peer of tensor parallelism says the same again
    assert_the_two_sequences(tmp_path, "miles", trainer=True)
    (tmp_path / f"5_{cp_size - 1}.pt").unlink()
    with pytest.raises(FileFormatError, match=f"cp_rank {cp_size - 1} is missing"):
        import_rollouts(tmp_path)


def test_miles_dashboard_has_the_engines_numbers_and_is_not_counted_beside_a_dump(tmp_path: Path) -> None:
    rows = slime_rollout()["samples"]
    columns = {"sample_index": [20, 21], "response_length": [3, 2], "total_length": [6, 5]}
    columns |= {name: [row[name] for row in rows] for name in ("tokens", "loss_mask", "rollout_log_probs")}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rollout_5.parquet")
    assert_the_two_sequences(tmp_path / "rollout_5.parquet", "miles", trainer=False)
    saved(tmp_path / "train_data" / "5_0.pt", miles_train())
    assert_the_two_sequences(tmp_path, "miles", trainer=True)


def test_a_whole_prime_rl_run_folder_is_its_export_and_a_lost_rank_is_one_line(tmp_path: Path) -> None:
    written(tmp_path, "prime-rl")
    written(tmp_path, "prime-rl traces")
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "mismatch_kl/all/mean": 0.001}\n')
    assert_the_two_sequences(tmp_path, "prime-rl", trainer=True)
    step = tmp_path / "token_exports" / "step_3"
    for rank in (2, 4):  # every second rank exports under context parallelism
        (step / f"rank_{rank}.jsonl").write_text((step / "rank_0.jsonl").read_text())
    assert len(import_rollouts(tmp_path)) == 15
    (step / "rank_5.jsonl").write_text((step / "rank_0.jsonl").read_text())
    with pytest.raises(FileFormatError, match=r"rank_1\.jsonl is missing"):
        import_rollouts(tmp_path)


def test_an_episode_that_is_in_two_of_prime_rls_folders_counts_once(tmp_path: Path) -> None:
    rows = written(tmp_path, "prime-rl traces").read_text()
    for folder in ("train/all", "eval/all", "eval/effective"):
        other = tmp_path / "rollouts" / "step_3" / folder / "traces.jsonl"
        other.parent.mkdir(parents=True)
        other.write_text(rows)
    assert_the_two_sequences(tmp_path, "prime-rl", trainer=False)


def test_a_log_of_metrics_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1, "sampling/sampling_logp_difference/mean": 0.01}\n')
    (tmp_path / "m.csv").write_text("Step,rollout_corr/kl\n1,0.1\n")
    for name in ("m.jsonl", "m.csv"):
        with pytest.raises(FileFormatError, match="metrics by step"):
            import_rollouts(tmp_path / name)


def test_a_folder_of_several_programs_logs_is_not_guessed_at(tmp_path: Path) -> None:
    written(tmp_path, "nemo-rl")
    written(tmp_path, "open-instruct")
    with pytest.raises(FileFormatError, match="several kinds: nemo-rl"):
        import_rollouts(tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input": "a", "output": "b", "gts": "", "score": 1, "step": 3}, "calculate_log_probs=True"),
        ({"step": 1, "prompt": "a", "completion": "b", "reward": 1.0, "advantage": 0.1}, "RolloutCallback"),
        ({"task_id": 1, "seqlen": 9, "prompt_len": 3, "head_version": 1, "tail_version": 2}, "dump_to_file"),
        ({"prompt": ["a"], "completion": ["b"], "reward": [1.0]}, "log_completions"),
    ],
)
def test_a_log_of_text_is_refused_with_what_to_switch_on(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(FileFormatError, match=words) as caught:
        import_rollouts(tmp_path / "log.jsonl")
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_opened_and_the_answer_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "global_step_1_training_input.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for path in (tmp_path, tmp_path / "global_step_1_training_input.pkl"):
        with pytest.raises(FileFormatError, match=r"SkyRL.*torch\.save"):
            import_rollouts(path)


def test_a_dump_without_torch_says_what_to_install(tmp_path: Path) -> None:
    path = saved(tmp_path / "5.pt", slime_train())
    code = f"import sys; sys.modules['torch'] = None\nfrom harness.logs import import_rollouts\nimport_rollouts({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'skewsim[sim]'" in done.stderr.splitlines()[-1]


def test_everything_but_dumps_is_read_without_torch(tmp_path: Path) -> None:
    paths = [str(written(tmp_path / str(number), shape)) for number, shape in enumerate(LINES)]
    code = f"import sys; sys.modules['torch'] = None\nfrom harness.logs import import_rollouts\nfor p in {paths}: import_rollouts(p)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- values and masks


def sequences(path: Path, engine: Rows, trainer: Rows | None, mask: Rows | None = None) -> Path:
    row = {"token_ids": list(range(len(engine))), "engine_logprobs": engine}
    row |= {} if trainer is None else {"trainer_logprobs": trainer}
    row |= {} if mask is None else {"mask": mask}
    path.write_text(json.dumps(row) + "\n")
    return path


def test_values_that_are_no_logprobs_are_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sequences(tmp_path / "s.jsonl", [-1.0, 0.5, None, -9999.0, 1.0, 0.0], [-1.0, float("-inf"), -1, -1, -1, -1])
    table = import_rollouts(path)
    assert table.meta["values"] == {
        "engine": {"NaN or null": 1, "above 0": 2, "exactly 0": 1, "exactly -9999": 1, "exactly 1": 1},
        "trainer": {"infinite": 1},
    }
    assert main(["import", str(path), "--out", str(tmp_path / "t.npz")]) == 0
    said = capsys.readouterr().err
    assert (
        "values of 6 sampled tokens: engine: 1 NaN or null, 2 above 0, 1 exactly -9999, 1 exactly 0, 1 exactly 1"
        in said
    )
    assert TokenTable.load(tmp_path / "t.npz").meta["values"] == table.meta["values"]


def test_zeros_that_give_a_missing_mask_away_are_left_out_and_said(tmp_path: Path) -> None:
    engine, trainer = [-1.0, -0.5, 0.0, 0.0, 0.0, -0.5, 0.0], [-1.0, -0.5, -3.0, -2.0, -4.0, -0.5, -2.0]
    report = Report()
    table = import_rollouts(sequences(tmp_path / "s.jsonl", engine, trainer), report=report)
    assert table.position.tolist() == [0, 1, 5, 6]  # one zero alone is a value of its own, not a tool's answer
    assert table.turn.tolist() == [0, 0, 1, 1]
    assert "3 tokens left out" in table.meta["mask"]
    assert any("no loss mask" in line and "3 tokens" in line for line in report.lines())
    kept = import_rollouts(sequences(tmp_path / "certain.jsonl", engine, [-1.0, -0.5, -1e-4, 0, 0, -0.5, -2.0]))
    assert len(kept) == 7  # the trainer is as certain there: the policy is, and sampled them
    masked = import_rollouts(sequences(tmp_path / "mask.jsonl", engine, trainer, [1] * 7))
    assert len(masked) == 7


def test_the_turn_of_a_token_is_the_sampled_span_that_it_is_in(tmp_path: Path) -> None:
    values = [-0.1] * 7
    table = import_rollouts(sequences(tmp_path / "s.jsonl", values, values, [1, 1, 0, 1, 0, 0, 1]))
    assert table.turn.tolist() == [0, 0, 1, 2]
    assert import_rollouts(sequences(tmp_path / "one.jsonl", values, values, [1] * 7)).turn is None
    out = tmp_path / "again.jsonl"
    assert main(["import", str(tmp_path / "s.jsonl"), "--out", str(out)]) == 0
    assert load_sequences(out).table().turn.tolist() == [0, 0, 1, 2]


# ------------------------------------------------------------------------------------------------------ damaged logs

TOKEN_FIELDS = ("token_ids", "engine_logprobs", "trainer_logprobs", "loss_mask", "mask", "logprobs", "inference_logprobs", "token_loss_mask", "generation_logprobs", "prev_logprobs", "response_tokens", "input_ids", "labels", "nodes", "choices", "parent", "input_lengths", "tokens", "response_length", "response_lengths", "rollout_log_probs", "log_probs", "rollout_data", "samples", "content", "traces", "group_id", "group_index", "id", "step", "rank", "weight_versions", "temperature", "metadata", "model_version", "group", "run", "work", "policy", "start", "idx", "data_parallel_rank", "sample_index", "rollout_position", "rollout_id", "cp_rank", "cp_size", "sample_indices", "total_lengths", "loss_masks", "rl_weights", "micro_sequence_idx", "request", "response", "prompt_token_ids")  # fmt: skip


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all fields of the names above, at any depth."""
    inside = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    found = [(*path, key) for key, _ in inside if key in TOKEN_FIELDS]
    return found + [deeper for key, each in inside for deeper in places_of(each, (*path, key))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy in which one field is another; `change` returning KeyError takes it away."""
    result = copy.deepcopy(value)
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    new = change(parent[path[-1]])
    if new is KeyError:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return result


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "missing": lambda v: KeyError,
    "null": lambda v: None,
    "empty": lambda v: [],
    "longer": lambda v: [*v, v[-1]] if isinstance(v, list) and v else [1],
    "shorter": lambda v: v[:-1] if isinstance(v, list) else -1,
    "text": lambda v: ["x"] * len(v) if isinstance(v, list) else "x",
    "digits": lambda v: [str(each) for each in v] if isinstance(v, list) else "3",
    "nested": lambda v: [v],
    "a list in it": lambda v: [v, *v[1:]] if isinstance(v, list) and v else [[1]],
    "nulls": lambda v: [None] * len(v) if isinstance(v, list) else None,
    "NaN": lambda v: [float("nan")] * len(v) if isinstance(v, list) else float("nan"),
    "huge": lambda v: [10**400] * len(v) if isinstance(v, list) else 10**15,
    "fractions": lambda v: [0.5] * len(v) if isinstance(v, list) else 0.5,
    "negative": lambda v: [-1] * len(v) if isinstance(v, list) else -1,
    "a mapping": lambda v: {"a": 1},
    "a number": lambda v: 7,
    "deep": lambda v: nested(200),
}


def assert_one_line_or_read(path: Path) -> None:
    """Reading ends in a table or in one clear line that names the file."""
    problem = None
    try:
        import_rollouts(path)
    except UserError as error:
        problem = str(error)
    assert problem is None or ("\n" not in problem and path.name in problem)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", LINES)
def test_a_damaged_line_is_one_clear_line_or_is_read(shape: str, change: str, tmp_path: Path) -> None:
    rows = LINES[shape][1]()
    for path in places_of(rows):
        assert_one_line_or_read(written(tmp_path, shape, changed(rows, path, CHANGES[change])))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", ["slime rollout", "slime train", "miles train"])
def test_a_damaged_dump_is_one_clear_line_or_is_read(shape: str, change: str, tmp_path: Path) -> None:
    if change == "huge":
        pytest.skip("torch's own reader stops at whole numbers of that length")
    dump = DUMPS[shape][0]()
    for path in places_of(dump):
        assert_one_line_or_read(saved(tmp_path / "5.pt", changed(dump, path, CHANGES[change])))


@pytest.mark.parametrize("field", ["token_ids", "loss_mask", "inference_logprobs", "trainer_logprobs"])
def test_a_field_that_is_missing_or_of_another_length_is_named(field: str, tmp_path: Path) -> None:
    for change in ("missing", "shorter"):
        rows = prime_rl_export()
        path = written(tmp_path, "prime-rl", [rows[0], changed(rows[1], (field,), CHANGES[change])])
        with pytest.raises(FileFormatError, match=r"rank_0\.jsonl, row 2"):
            import_rollouts(path)


@pytest.mark.parametrize("parent", [1, 2, -1, "0", 0.5, True])
def test_a_message_that_is_its_own_parent_or_nobodys_is_one_line(parent: Any, tmp_path: Path) -> None:
    rows = prime_rl_episode()
    rows[0]["traces"][0]["nodes"][1]["parent"] = parent
    with pytest.raises(FileFormatError, match="row 1: node 1: parent="):
        import_rollouts(written(tmp_path, "prime-rl traces", rows))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{\x00}\x00", b'{"token_ids": [1], "engine_logprobs": [' + b"\xe9" + b"]}", b"[" * 100_000, b'{"a":' * 100_000, b"\x00" * 4096, b"", b"\n\n", b"null", b"7", b'"text"', b"[]", b"{}"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".pt"])
def test_a_file_of_rubbish_is_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"log{suffix}"
    path.write_bytes(content)
    with pytest.raises(FileFormatError) as caught:
        import_rollouts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("shape", [*LINES, *DUMPS])
def test_a_log_that_is_cut_off_is_one_line(shape: str, share: float, tmp_path: Path) -> None:
    path = written(tmp_path, shape) if shape in LINES else saved(tmp_path / "5.pt", DUMPS[shape][0]())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FileFormatError) as caught:
        import_rollouts(path)
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open(path, "wb") as handle:
        handle.truncate(3 * LONGEST_LINE)  # a sparse file of zeros
    with pytest.raises(FileFormatError, match="line 1: longer than 256 MiB"):
        import_rollouts(path)
