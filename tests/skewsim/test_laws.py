"""The published laws of train-inference skew hold in what the simulator injects, within stated Monte Carlo error.

Figures: bf16 vLLM against bf16 HF on Qwen3-1.7B (AknA13/train-infer-mismatch: rms 0.0449, mean length 1506) and the
arithmetic of independent Gaussian noise on the logits. Bounds of rejection: verl 0.999-1.001, slime 0.9999-1.0001,
SkyRL 0.99-1.01; clip of the GSPO paper 1 - 3e-4 to 1 + 4e-4 (arXiv 2507.18071).
"""

import numpy as np
import pytest
import torch

from skewsim.engine.noise import NoiseModel
from skewsim.settings import SkewSettings
from skewsim.skew.metrics import skew_metrics

RMS, LENGTH = 0.0449, 1506


def injected_skew(clean: torch.Tensor, scale: float, *, seed: int = 0) -> torch.Tensor:
    """Skew (N, V) of every token under normal logit noise on the clean log-probabilities (N, V)."""
    model = NoiseModel(SkewSettings(noise="normal", scale=scale), clean.shape[-1])
    engine = model.disturb(clean[None], [torch.Generator().manual_seed(seed)], 0)[0]
    return (clean - engine).double()


def one_token_of(probability: float, *, vocab: int = 512, rows: int = 20_000) -> torch.Tensor:
    """Log-probabilities (N, V) with one token of the given probability and the rest spread thin."""
    p = torch.full((vocab,), (1 - probability) / (vocab - 1))
    p[0] = probability
    return p.log().expand(rows, -1)


@pytest.mark.parametrize(("probability", "published"), [(0.005, 0.123), (0.05, 0.118), (0.3, 0.087), (0.7, 0.037)])
def test_a_logit_scale_of_0_155_gives_the_published_mean_skew_at_each_probability(probability, published):
    size = injected_skew(one_token_of(probability), 0.155)[:, 0].abs()
    error = size.std() / len(size) ** 0.5
    assert abs(size.mean() - published) < 4 * error + 0.0005  # four standard errors, and the figure's last digit


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 4.0])
def test_the_variance_of_the_skew_follows_the_logit_noise_law_for_any_distribution(sharpness):
    generator = torch.Generator().manual_seed(1)
    clean = (torch.randn(32, generator=generator) * sharpness).log_softmax(-1)
    p = clean.exp().double()
    law = 0.05**2 * ((1 - p) ** 2 + (p**2).sum() - p**2)
    ratio = injected_skew(clean.expand(20_000, -1), 0.05).var(0) / law
    # the relative standard error of a variance is sqrt(2 / n) = 1 %; the law is of first order in the scale
    assert (ratio - 1).abs().max() < 0.05


def test_k1_and_k3_are_half_the_variance_of_the_skew():
    flat = torch.full((400, 4096), -np.log(4096.0))
    skew = injected_skew(flat, RMS)
    weight = torch.exp(-skew) / torch.exp(-skew).sum(-1, keepdim=True)  # the engine's own distribution
    token = weight.multinomial(500, replacement=True, generator=torch.Generator().manual_seed(2))
    d = skew.gather(-1, token).numpy()
    metrics = skew_metrics(d, np.zeros_like(d), np.ones_like(d))
    assert metrics["kl_k3"] == pytest.approx(RMS**2 / 2, rel=0.02)
    assert metrics["kl_k1"] == pytest.approx(RMS**2 / 2, abs=4 * RMS / np.sqrt(d.size))
    assert metrics["kl_k3"] == pytest.approx(1.00e-3, rel=0.03)  # published, beside the rms of 0.0449
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=4 * RMS / np.sqrt(d.size))


def sequences_of_skew(count: int, length: int, scale: float, *, seed: int) -> np.ndarray:
    """Skew (N, T) of tokens that an engine with normal logit noise sampled from a wide, flat distribution."""
    vocab = 512
    skew = injected_skew(torch.full((count * length // 256, vocab), -np.log(float(vocab))), scale, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    token = torch.exp(-skew).float().multinomial(256, replacement=True, generator=generator)
    # each noise vector serves 256 tokens; shuffled, they land in different sequences
    d = skew.gather(-1, token).flatten()
    return d[torch.randperm(len(d), generator=generator)].reshape(count, length).numpy()


def test_the_effective_share_of_sequences_falls_as_exp_of_minus_length_times_variance():
    for length, scale in ((16, 0.1), (64, 0.06), (256, 0.035)):
        d = sequences_of_skew(4096, length, scale, seed=length)
        measured = skew_metrics(d, np.zeros_like(d), np.ones_like(d))["ess_seq"]
        variance = length * scale**2
        error = np.sqrt(np.expm1(4 * variance) / len(d))  # of the mean squared lognormal weight, relative
        assert measured == pytest.approx(np.exp(-variance), rel=4 * error), (length, scale)
    assert np.exp(-LENGTH * RMS**2) == pytest.approx(0.048, abs=0.0005)
    assert np.exp(-LENGTH * RMS**2) == pytest.approx(0.0496, rel=0.05)  # published


def test_the_geometric_mean_ratio_has_the_laws_mean_and_spread():
    for length, scale in ((64, 0.1), (256, 0.06)):
        mean = sequences_of_skew(4096, length, scale, seed=length).mean(1)
        spread = scale / np.sqrt(length)
        assert mean.mean() == pytest.approx(-(scale**2) / 2, abs=4 * spread / np.sqrt(4096) + 0.02 * scale**2)
        assert mean.std() == pytest.approx(spread, rel=0.04)


@pytest.fixture(scope="module")
def bf16_sequences() -> np.ndarray:
    """2048 sequences of 1506 tokens at the published rms."""
    return sequences_of_skew(2048, LENGTH, RMS, seed=4)


@pytest.mark.parametrize(
    ("who", "low", "high", "kept"),
    [
        ("verl", 0.999, 1.001, 0.46),
        ("slime", 0.9999, 1.0001, 0.05),
        ("SkyRL", 0.99, 1.01, 1.0),
        ("GSPO's paper clip", 1 - 3e-4, 1 + 4e-4, 0.16),
    ],
)
def test_pure_bf16_noise_keeps_the_published_share_of_sequences_of_1506_tokens(bf16_sequences, who, low, high, kept):
    ratio = np.exp(bf16_sequences.mean(1))
    share = ((ratio >= low) & (ratio <= high)).mean()
    error = np.sqrt(kept * (1 - kept) / len(ratio))
    assert abs(share - kept) < 4 * error + 0.005  # four standard errors, and the figure's last digit


@pytest.mark.parametrize(("low", "spacing", "spread"), [(16.0, 0.125, 0.036), (32.0, 0.25, 0.072)])
def test_bfloat16_logits_have_the_published_spacing_and_rounding_spread(low, spacing, spread):
    exact = torch.linspace(low, 2 * low, 100_001)[:-1]
    rounded = exact.bfloat16().float()
    assert rounded.unique().diff().max().item() == rounded.unique().diff().min().item() == spacing
    assert (rounded - exact).std().item() == pytest.approx(spread, abs=0.0005)
