"""The frameworks' rules once more, in float64 numpy, each in the order of its own code, from the setting as it is
typed.

``touched(framework, setting, old, engine, advantages)`` says which tokens ``(N, T)`` or sequences ``(N,)`` a setting
clips, masks or rejects, and which weights it leaves; every token is sampled. Nothing here is shared with the package.

verl      https://github.com/verl-project/verl/blob/main/verl/trainer/ppo/rollout_corr_helper.py
slime     https://github.com/THUDM/slime/blob/main/slime/backends/megatron_utils/loss.py (vanilla_tis_function),
          slime/utils/ppo_utils.py (compute_opsm_mask), examples/train_infer_mismatch_helper/mis.py
Miles     https://github.com/radixark/miles/blob/main/miles/backends/training_utils/loss_hub/corrections.py
SkyRL     https://github.com/NovaSky-AI/SkyRL/blob/main/skyrl/backends/skyrl_train/utils/off_policy_correction_utils.py
NeMo-RL   https://github.com/NVIDIA-NeMo/RL/blob/main/nemo_rl/algorithms/loss/loss_functions.py, grpo.py
OpenRLHF  https://github.com/OpenRLHF/OpenRLHF/blob/main/openrlhf/models/loss.py
TRL       https://github.com/huggingface/trl/blob/main/trl/trainer/grpo_trainer.py
prime-rl  https://github.com/PrimeIntellect-ai/prime-rl/blob/main/src/prime_rl/trainer/rl/loss.py
PipelineRL https://github.com/ServiceNow/PipelineRL/blob/main/pipelinerl/finetune/rl/__init__.py
"""

import math

import numpy as np


def touched(framework, setting, old, engine, advantages):
    """(touched, weights): weights are (N, T) or (N, 1), ones where the rule only rejects."""
    return _FRAMEWORKS[framework](_arguments(setting), old, engine, advantages)


def _arguments(setting):
    """``a=1 --b 2 3 --flag`` as a dictionary of texts; ``mis.yaml:`` and the like are words of their own."""
    found, flag = {}, None
    for word in setting.split():
        if "=" in word:
            key, _, value = word.partition("=")
            found[key] = value
            flag = None
        elif word.startswith("--"):
            flag = word
            found[flag] = ""
        elif flag is not None:
            found[flag] = f"{found[flag]} {word}".strip()
    return found


def _only(rejected):
    return rejected, np.where(rejected if rejected.ndim == 2 else rejected[:, None], 0.0, 1.0)


def _verl(args, old, engine, _):
    log_ratio = old - engine
    weights = np.ones((len(old), 1))
    hit = None
    if "rollout_is" in args:
        of = log_ratio if args["rollout_is"] == "token" else log_ratio.sum(axis=1, keepdims=True)
        raw = np.exp(np.clip(of, -20, 20))
        parts = [float(part) for part in args["rollout_is_threshold"].split("_")]
        weights = np.minimum(raw, parts[0]) if len(parts) == 1 else raw * ((raw >= parts[0]) & (raw <= parts[1]))
        hit = weights != raw
        hit = hit if args["rollout_is"] == "token" else hit[:, 0]
    if "rollout_rs" in args:
        rejected = _verl_rejects(args["rollout_rs"], args["rollout_rs_threshold"], log_ratio)
        weights = weights * _only(rejected)[1]
        hit = rejected if hit is None else hit | rejected
    return hit, weights


def _verl_rejects(option, threshold, log_ratio):
    safe = np.clip(log_ratio, -20, 20)
    level, kind = option.rsplit("_", 1)
    number = {"k1": -safe, "k2": 0.5 * safe**2, "k3": np.exp(safe) - 1.0 - safe}[kind]
    fold = {"token": lambda x: x, "seq_sum": lambda x: x.sum(1), "seq_mean": lambda x: x.mean(1)}
    number = fold.get(level, lambda x: x.max(1))(number)
    if kind != "k1":
        return ~(number <= float(threshold))
    low, high = (float(part) for part in threshold.split("_"))
    return ~((number >= math.log(low)) & (number <= math.log(high)))


def _slime(args, old, engine, advantages):
    log_ratio = old - engine
    if "--use-tis" in args:
        raw = np.exp(log_ratio)
        weights = np.clip(raw, 0, float(args["--tis-clip"]))
        return weights != raw, weights
    if "--use-opsm" in args:
        assert "--use-rollout-logprobs" in args
        drift = (engine - old).sum(1) / old.shape[1]
        return _only((advantages < 0) & (drift > float(args["--opsm-delta"])))
    levels = {
        "token": log_ratio,
        "sequence": np.broadcast_to(log_ratio.sum(1, keepdims=True), log_ratio.shape),
        "geometric": np.broadcast_to(log_ratio.mean(1, keepdims=True), log_ratio.shape),
    }
    if "tis_level" in args:
        raw = np.exp(np.clip(levels[args["tis_level"]], -20, 20))
        weights = np.clip(raw, 0, float(args["tis_upper_bound"]))
        return (weights != raw)[:, 0], weights[:, :1]
    if "rs_veto_threshold" in args:
        return _only((log_ratio < math.log(float(args["rs_veto_threshold"]))).any(1))
    ratio = np.exp(np.clip(levels[args["rs_level"]], -20, 20))
    rejected = (ratio < float(args["rs_lower_bound"])) | (ratio > float(args["rs_upper_bound"]))
    return _only(rejected if args["rs_level"] == "token" else rejected[:, 0])


def _skyrl(args, old, engine, _):
    log_ratio = old - engine
    total = log_ratio.sum(1, keepdims=True)
    if args.get("tis_ratio_type") == "token":
        raw, cap = np.exp(np.clip(log_ratio, -20, 20)), float(args["token_tis_ratio_clip_high"])
        return raw > cap, np.minimum(raw, cap)
    if args.get("tis_ratio_type") == "sequence":
        raw, cap = np.exp(np.clip(total, -20, 20)), float(args["sequence_tis_ratio_clip_high"])
        return (raw > cap)[:, 0], np.minimum(raw, cap)
    if args.get("sequence_mask_metric") == "geometric":
        ratio, which = np.exp(np.clip(total / old.shape[1], -20, 20))[:, 0], "geo"
    elif args.get("sequence_mask_metric") == "product":
        ratio, which = np.exp(np.clip(total, -20, 20))[:, 0], "product"
    else:
        ratio = np.exp(np.clip(log_ratio, -20, 20))
        high, low = (float(args[f"outlier_token_is_threshold_{side}"]) for side in ("high", "low"))
        return _only((ratio > high).any(1) | (ratio < low).any(1))
    return _only((ratio > float(args[f"{which}_mask_high"])) | (ratio < float(args[f"{which}_mask_low"])))


def _nemo_rl(args, old, engine, _):
    if "grpo.seq_logprob_error_threshold" in args:
        error = np.exp(np.abs(engine - old)).sum(1) / old.shape[1]
        return _only(~(error <= float(args["grpo.seq_logprob_error_threshold"])))
    ratio, high = np.exp(old - engine), float(args["truncated_importance_sampling_ratio"])
    low = float(args.get("truncated_importance_sampling_ratio_min", 0.0))
    if args["truncated_importance_sampling_type"] == "tis":
        return (ratio > high) | (ratio < low), np.clip(ratio, low, high)
    if args["truncated_importance_sampling_type"] == "icepop":
        kept = (ratio >= low) & (ratio <= high)
        return ~kept, np.where(kept, ratio, 0.0)
    geometric = np.exp((old - engine).mean(1))
    return _only(~((geometric >= low) & (geometric <= high)))


def _openrlhf(args, old, engine, _):
    low, high = (float(part) for part in args["--algo.advantage.is_correction_threshold"].split())
    kind, ratio = args["--algo.advantage.is_correction_type"], np.exp(old - engine)
    inside = (ratio >= low) & (ratio <= high)
    if kind == "tis":
        return ~inside, np.clip(ratio, low, high)
    if kind == "icepop":
        return ~inside, ratio * inside
    geometric = np.exp((old - engine).mean(1))
    return _only(~((geometric >= low) & (geometric <= high)))


def _trl(args, old, engine, advantages):
    log_ratio = old - engine
    mode = args.get("vllm_importance_sampling_mode")
    if mode is not None:
        raw = np.exp(log_ratio if mode.startswith("token") else log_ratio.sum(1, keepdims=True))
        cap = float(args["vllm_importance_sampling_clip_max"])
        weights = np.minimum(raw, cap) if mode.endswith("truncate") else np.where(raw > cap, 0.0, raw)
        return (weights != raw) if mode.startswith("token") else (weights != raw)[:, 0], weights
    if "off_policy_mask_threshold" in args:
        kept = (advantages >= 0) | ((engine - old).mean(1) <= float(args["off_policy_mask_threshold"]))
        return _only(~kept)
    return _clip(args.get("epsilon"), args["epsilon_high"], log_ratio)


def _clip(low, high, log_ratio):
    """PPO's clip in bypass; without a lower epsilon the upper is CISPO's cap itself."""
    ratio = np.exp(log_ratio)
    if low is None:
        return ratio > float(high), np.minimum(ratio, float(high))
    inside = np.clip(ratio, 1 - float(low), 1 + float(high)) == ratio
    return ~inside, ratio * inside


def _gspo(args, old, engine, _):
    log_ratio = (old - engine).mean(1, keepdims=True)
    low, high = args.get("epsilon_low", args.get("epsilon")), args["epsilon_high"]
    outside, weights = _clip(low, high, log_ratio)
    return outside[:, 0], weights


def _prime_rl(args, old, engine, advantages):
    moved = np.exp(old) - np.exp(engine)
    if "ipo_threshold" in args:
        outside = np.abs(moved) > float(args["ipo_threshold"])
    else:
        up = moved > float(args["dppo_mask_high"])
        down = moved < -float(args["dppo_mask_low"])
        outside = np.where(advantages[:, None] > 0, up, down)
    return outside, np.exp(old - engine) * ~outside


def _icepop(args, old, engine, _):
    ratio = np.exp(old - engine)
    kept = (ratio >= float(args["low"])) & (ratio <= float(args["high"]))
    return ~kept, ratio * kept


_FRAMEWORKS = {
    "verl": _verl,
    "slime": _slime,
    "Miles": _slime,
    "SkyRL": _skyrl,
    "NeMo-RL": _nemo_rl,
    "OpenRLHF": _openrlhf,
    "TRL": _trl,
    "DAPO": _trl,
    "GSPO": _gspo,
    "PipelineRL": _gspo,
    "prime-rl": _prime_rl,
    "IcePop": _icepop,
}
