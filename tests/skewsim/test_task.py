"""The checker's verdicts against a plain-Python oracle."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from skewsim.settings import TaskSettings
from skewsim.task import ANSWER, DIGIT, EOS, SYNONYMS, Task, written

SETTINGS = {
    name: TaskSettings(name=name, response_length=6, pool_size=40) for name in ("reverse", "reverse_until_zero")
}


def _oracle(prompt: list[int], response: list[int], *, variable: bool) -> tuple[bool, float]:
    digits = [t - DIGIT for t in prompt[1:-1]][::-1]
    want: list[int | str] = list(digits)
    if variable:
        want = [*(digits[: digits.index(0)] if 0 in digits else digits), "eos"]
    said: list[int | str] = [
        "eos" if t == EOS else (t - ANSWER) // SYNONYMS if ANSWER <= t < ANSWER + 40 else "junk" for t in response
    ]
    right = sum(a == b for a, b in zip(want, said, strict=False))
    return said == want, right / len(want)


@given(st.sampled_from(sorted(SETTINGS)), st.integers(0, 39), st.integers(0, 10**9), st.floats(0, 0.5))
def test_rewards_equal_a_plain_python_checker(name: str, which: int, seed: int, noise: float) -> None:
    task = Task(SETTINGS[name])
    stream = torch.Generator().manual_seed(seed)
    answer = task.answers[which]
    synonyms = torch.randint(SYNONYMS, answer.shape, generator=stream)
    tokens = torch.where(answer == 10, EOS, ANSWER + SYNONYMS * answer.clamp_min(0) + synonyms)
    junk = torch.randint(64, tokens.shape, generator=stream)
    tokens = torch.where(torch.rand(tokens.shape, generator=stream) < noise, junk, tokens)
    stop = int((tokens == EOS).nonzero()[0]) + 1 if task.variable and (tokens == EOS).any() else len(tokens)
    mask = (torch.arange(len(tokens)) < stop).float()
    scores = task.score(torch.tensor([[which]]), tokens.view(1, 1, -1), mask.view(1, 1, -1))
    exact, partial = _oracle(task.pool[which].tolist(), tokens[:stop].tolist(), variable=task.variable)
    assert bool(scores.exact) == exact
    assert abs(float(scores.partial) - partial) < 1e-6


def test_every_synonym_of_the_right_digit_is_right() -> None:
    assert written(torch.arange(ANSWER, ANSWER + 40)).tolist() == [d for d in range(10) for _ in range(4)]


def test_answers_of_the_second_task_vary_in_length_and_end_with_eos() -> None:
    answers = Task(SETTINGS["reverse_until_zero"]).answers
    lengths = (answers >= 0).sum(-1)
    assert len(lengths.unique()) > 3
    assert all(row[n - 1] == 10 for row, n in zip(answers.tolist(), lengths.tolist(), strict=True))


def test_a_members_prompts_do_not_depend_on_the_others() -> None:
    task = Task(SETTINGS["reverse"])
    among = task.sample_prompts((3, 7, 3), step=5, num_prompts=8)
    assert torch.equal(among[0], among[2])
    assert torch.equal(task.sample_prompts((7,), step=5, num_prompts=8)[0], among[1])
    assert not torch.equal(among[0], among[1])
