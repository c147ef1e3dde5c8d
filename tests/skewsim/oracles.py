"""Oracles: the published formulas once more, in float64 numpy, token by token, sharing nothing with the package.

Arrays: ``(N, T)`` logprobs and 0/1 mask, ``(N,)`` advantages, rewards and group ids. ``problem`` draws random ones.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class Problem:
    trainer: np.ndarray
    old: np.ndarray
    engine: np.ndarray
    mask: np.ndarray
    advantages: np.ndarray
    group_ids: np.ndarray
    rewards: np.ndarray


def problem(seed, *, groups=4, generations=4, tokens=7, drift=0.3, empty_rows=True):
    """Ragged random inputs; with empty_rows the first sequence has no token."""
    rng = np.random.default_rng(seed)
    n = groups * generations
    engine = -rng.exponential(1.0, (n, tokens))
    old = engine + drift * rng.normal(size=(n, tokens))
    trainer = old + drift * rng.normal(size=(n, tokens))
    lengths = rng.integers(1, tokens + 1, n)
    if empty_rows:
        lengths[0] = 0
    mask = (np.arange(tokens) < lengths[:, None]).astype(float)
    rewards = rng.integers(0, 3, n) / 2
    advantages = rng.normal(size=n)
    return Problem(trainer, old, engine, mask, advantages, np.repeat(np.arange(groups), generations), rewards)


def cells(mask):
    """Sampled (sequence, token) pairs."""
    return [(i, t) for i in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[i, t] > 0]


def clip(value, low, high):
    return max(low, min(high, value))


def ppo_token(ratio, advantage, low, high, delta=None):
    """The clipped surrogate of one ratio, with the dual clip written as Ye et al. do (arXiv 1912.09729)."""
    surrogate = min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)
    if delta is not None and advantage < 0:
        surrogate = max(surrogate, delta * advantage)
    return -surrogate


def aggregate(token_loss, mask, how):
    """Mean of tokens, of sequence means, of sequence sums, or of sequences by a constant length."""
    n, length = mask.shape
    sums, means, total, count = 0.0, 0.0, 0.0, 0
    for i in range(n):
        row = [token_loss[i, t] for t in range(length) if mask[i, t] > 0]
        sums += sum(row)
        means += sum(row) / len(row) if row else 0.0
        total, count = total + sum(row), count + len(row)
    return {"token": total / max(count, 1), "sequence": means / n, "sum": sums / n, "constant": sums / (n * length)}[
        how
    ]


def tokenwise(p, mask, how, token, weights=None):
    """A loss given per token by ``token(i, t)``."""
    loss = np.zeros(mask.shape)
    for i, t in cells(mask):
        loss[i, t] = token(i, t) * (1.0 if weights is None else weights[i, t])
    return aggregate(loss, mask, how)


def loss(name, p, weights=None, mask=None, delta=None):
    """The loss of an objective at its default settings."""
    mask = p.mask if mask is None else mask
    a = p.advantages

    def ratio(i, t):
        return math.exp(p.trainer[i, t] - p.old[i, t])

    def sequence_ratio(i):
        drifts = [p.trainer[i, t] - p.old[i, t] for t in range(mask.shape[1]) if mask[i, t] > 0]
        return math.exp(sum(drifts) / len(drifts))

    def clipped(low, high):
        return lambda i, t: ppo_token(ratio(i, t), a[i], low, high, delta)

    def gspo(low, high):
        return lambda i, t: ppo_token(sequence_ratio(i), a[i], low, high, delta)

    def dppo(i, t):
        moved = math.exp(p.trainer[i, t]) - math.exp(p.engine[i, t])
        if (a[i] > 0 and moved > 0.2) or (a[i] < 0 and moved < -0.2):
            return 0.0
        return -math.exp(p.trainer[i, t] - p.engine[i, t]) * a[i]

    def sapo(i, t):
        temperature = 1.0 if a[i] > 0 else 1.05
        return -4 / temperature / (1 + math.exp(-temperature * (ratio(i, t) - 1))) * a[i]

    def ipo(i, t):
        moved = math.exp(p.trainer[i, t]) - math.exp(p.engine[i, t])
        return 0.0 if abs(moved) > 0.1 else -math.exp(p.trainer[i, t] - p.engine[i, t]) * a[i]

    def dppo_kl(i, t):
        new, old = min(math.exp(p.trainer[i, t]), 1.0), min(math.exp(p.old[i, t]), 1.0)
        divergence = old * (p.old[i, t] - p.trainer[i, t]) + (1 - old) * math.log((1 - old + 1e-8) / (1 - new + 1e-8))
        beyond = new > old if a[i] > 0 else new < old
        return 0.0 if divergence > 0.05 and beyond else -min(ratio(i, t), 20.0) * a[i] * p.trainer[i, t]

    def geo_mean(i, _):
        held = [
            min(x, 0.2) if a[i] > 0 else max(x, -0.2)
            for x in (p.trainer[i, t] - p.old[i, t] for t in range(mask.shape[1]) if mask[i, t] > 0)
        ]
        return -math.exp(sum(held) / len(held)) * a[i]

    def covariances():
        sampled = cells(mask)
        mean_a = sum(a[i] for i, _ in sampled) / len(sampled)
        mean_lp = sum(p.trainer[i, t] for i, t in sampled) / len(sampled)
        return {(i, t): (a[i] - mean_a) * (p.trainer[i, t] - mean_lp) for i, t in sampled}

    def few():
        return max(int(2e-4 * len(cells(mask))), 1)

    def clip_cov():
        order = torch.randperm(mask.size, generator=torch.Generator().manual_seed(0)).reshape(mask.shape).tolist()
        unclipped = [c for c in cells(mask) if clipped(0.2, 0.2)(*c) <= -ratio(*c) * a[c[0]]]
        eligible = [c for c in unclipped if 1 < covariances()[c] < 5]
        left_out = set(sorted(eligible, key=lambda c: order[c[0]][c[1]])[: few()])
        return lambda i, t: 0.0 if (i, t) in left_out else clipped(0.2, 0.2)(i, t)

    def kl_cov():
        found = covariances()
        greatest = set(sorted(found, key=lambda c: -found[c])[: few()])
        return lambda i, t: -ratio(i, t) * a[i] + ((i, t) in greatest) * abs(p.trainer[i, t] - p.old[i, t])

    if name == "dapo":
        mask = mask.copy()
        for g in set(p.group_ids):
            members = [i for i in range(len(a)) if p.group_ids[i] == g]
            if all(a[i] == 0 for i in members):
                mask[members] = 0
    if name in ("dppo", "ipo"):
        penalty = tokenwise(p, mask, "token", lambda i, t: 1e-3 * (p.trainer[i, t] - p.engine[i, t]) ** 2)
        return tokenwise(p, mask, "token", dppo if name == "dppo" else ipo, weights) + penalty
    how, token = {
        "reinforce": ("sum", lambda i, t: -a[i] * p.trainer[i, t]),
        "rloo": ("sum", lambda i, t: -a[i] * p.trainer[i, t]),
        "reinforce_pp": ("token", clipped(0.2, 0.2)),
        "ppo": ("token", clipped(0.2, 0.2)),
        "grpo": ("sequence", clipped(0.2, 0.2)),
        "dr_grpo": ("constant", clipped(0.2, 0.2)),
        "dapo": ("token", clipped(0.2, 0.28)),
        "gspo/paper": ("sequence", gspo(3e-4, 4e-4)),
        "gspo/pipelinerl": ("sum", gspo(2e-2, 2e-2)),
        "sapo": ("sequence", sapo),
        "dppo_kl": ("token", dppo_kl),
        "geo_mean": ("sequence", geo_mean),
        "clip_cov": ("token", clip_cov() if name == "clip_cov" else None),
        "kl_cov": ("token", kl_cov() if name == "kl_cov" else None),
        "cispo": ("token", lambda i, t: -min(ratio(i, t), 5.0) * a[i] * p.trainer[i, t]),
    }[name]
    return tokenwise(p, mask, how, token, weights)


def gradient(name, p, weights=None, mask=None, delta=None, step=1e-6):
    """Central differences of ``loss``; of CISPO with its weight held fixed, as the stop-gradient asks."""
    grad = np.zeros_like(p.trainer)
    for i, t in cells(p.mask):
        sides = []
        for sign in (1, -1):
            moved = Problem(**vars(p))
            moved.trainer = p.trainer.copy()
            moved.trainer[i, t] += sign * step
            if name in ("cispo", "dppo_kl"):  # ratio from trainer - old: move old along, so that it stays what it was
                moved.old = p.old.copy()
                moved.old[i, t] += sign * step
            sides.append(loss(name, moved, weights, mask, delta))
        grad[i, t] = (sides[0] - sides[1]) / (2 * step)
    return grad


def advantages(name, rewards, group_ids):
    """Advantages by loops; the unbiased standard deviation plus 1e-4, TRL's convention."""
    rewards = [float(r) for r in rewards]

    def mean(values):
        return sum(values) / len(values)

    def std(values):
        centre = mean(values)
        return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))

    def group(i):
        return [j for j in range(len(rewards)) if group_ids[j] == group_ids[i]]

    def of(i):
        return [rewards[j] for j in group(i)]

    everyone = range(len(rewards))
    if name == "reinforce":
        return np.array([rewards[i] - mean(rewards) for i in everyone])
    if name == "ppo":
        return np.array([(rewards[i] - mean(rewards)) / (std(rewards) + 1e-4) for i in everyone])
    if name in ("dr_grpo", "dppo", "ipo"):
        return np.array([rewards[i] - mean(of(i)) for i in everyone])
    if name in ("rloo", "gspo/pipelinerl"):
        return np.array([rewards[i] - mean([rewards[j] for j in group(i) if j != i]) for i in everyone])
    if name == "reinforce_pp":
        centred = [rewards[i] - mean(of(i)) for i in everyone]
        return np.array([(centred[i] - mean(centred)) / (std(centred) + 1e-4) for i in everyone])
    return np.array([(rewards[i] - mean(of(i))) / (std(of(i)) + 1e-4) for i in everyone])


def token_skew(p, i):
    """The sampled tokens of sequence i with their d = old - engine."""
    return [(t, p.old[i, t] - p.engine[i, t]) for t in range(p.mask.shape[1]) if p.mask[i, t] > 0]


def weights(p, rule):
    """Weights where ``rule(tokens)`` maps the sequence's list of d to one weight per token; 0 at padding."""
    out = np.zeros_like(p.mask)
    for i in range(len(p.mask)):
        tokens = token_skew(p, i)
        for (t, _), w in zip(tokens, rule([d for _, d in tokens]), strict=True):
            out[i, t] = w
    return out


def sequence_weight(ds):
    return math.exp(clip(sum(ds), -20.0, 20.0))


WEIGHT_RULES = {
    "token_tis": lambda ds: [min(math.exp(d), 2.0) for d in ds],
    "token_mis": lambda ds: [math.exp(d) if 0.5 <= math.exp(d) <= 5.0 else 0.0 for d in ds],
    "sequence_tis": lambda ds: [min(sequence_weight(ds), 2.0)] * len(ds),
    "sequence_mis": lambda ds: [sequence_weight(ds) if 0.5 <= sequence_weight(ds) <= 2.0 else 0.0] * len(ds),
}


def kept_if(condition):
    return lambda ds: [1.0 if not ds or condition(ds) else 0.0] * len(ds)


REJECT_RULES = {
    "geometric": kept_if(lambda ds: 0.999 <= math.exp(sum(ds) / len(ds)) <= 1.001),
    "k3": kept_if(lambda ds: sum(math.exp(d) - d - 1 for d in ds) / len(ds) <= 0.01),
}


def skew(trainer, engine, mask):
    """Every skew metric by loops over the finite sampled tokens."""
    rows = []
    for i in range(mask.shape[0]):
        row = [(trainer[i, t], engine[i, t]) for t in range(mask.shape[1]) if mask[i, t] > 0]
        row = [(a, b) for a, b in row if math.isfinite(a) and math.isfinite(b)]
        if row:
            rows.append(row)
    d = [a - b for row in rows for a, b in row]
    sums = [clip(sum(a - b for a, b in row), -20.0, 20.0) for row in rows]
    size = [abs(x) for x in d]

    def mean(values):
        return math.fsum(values) / len(values)

    def effective(w):
        return 1 / mean([(x / mean(w)) ** 2 for x in w])

    p, q = np.exp([a for row in rows for a, _ in row]), np.exp([b for row in rows for _, b in row])
    return {
        "logprob_diff_mean": mean(size),
        "logprob_diff_std": math.sqrt(mean([(x - mean(size)) ** 2 for x in size])),
        "logprob_diff_max": max(size),
        "bias": mean(d),
        "kl_k1": -mean(d),
        "kl_k3": mean([math.exp(x) - x - 1 for x in d]),
        "mult_prob_error": mean([math.exp(x) for x in size]),
        "ratio_mean": mean([math.exp(x) for x in d]),
        "chi2_token": mean([math.exp(x) ** 2 for x in d]) - 1,
        "chi2_seq": mean([math.exp(x) ** 2 for x in sums]) - 1,
        "ess": effective([math.exp(x) for x in d]),
        "ess_seq": effective([math.exp(x) for x in sums]),
        "ppl_ratio": mean([math.exp(mean([b for _, b in row]) - mean([a for a, _ in row])) for row in rows]),
        "pearson": float(np.corrcoef(p, q)[0, 1]),
    }
