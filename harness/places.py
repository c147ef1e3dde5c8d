"""Where engines are installed, whether they are, and the environment variables that they run under.

Each engine lives in a virtual environment of its own under the user's data folder; SKEWSIM_ENGINES chooses another
place.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.specs import EngineSpec
from harness.versions import at_least
from skewsim.errors import EngineNotInstalled
from skewsim.settings import EngineSettings

MARKER = "skewsim-engine.json"
"""The file that says an engine is installed; writing it is the last act of an installation."""
PLUGIN = Path(__file__).with_name("plugin")

COMMON_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # max_model_len leaves room for one token more than the model has positions for. That token is sampled and reported,
    # but the model never computes anything after it, so the position is never used.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    # The engine runs inside the worker's own process, so that a weight update falls on an exact token boundary and
    # equal seeds give equal tokens.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables for every engine, where the user has not set them."""
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # quickest on a small machine
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
"""More of them for CPU builds."""


def engines_root(root: Path | str | None = None) -> Path:
    """The folder that engines are installed in."""
    chosen = root or os.environ.get("SKEWSIM_ENGINES")
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_data_path("skewsim") / "engines"


@dataclass(frozen=True)
class EngineStatus:
    """An engine, where it is or would be, and whether it is installed."""

    spec: EngineSpec
    folder: Path
    state: Literal["installed", "incomplete", "not installed"]
    facts: dict[str, Any] = field(default_factory=dict)
    """What its marker file says: versions, how long the installation took, its date."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def python(self) -> Path:
        return self.spec.python or self.folder / "bin" / "python"


def status(spec: EngineSpec, *, root: Path | str | None = None) -> EngineStatus:
    """Whether an engine is installed."""
    if spec.python:
        return EngineStatus(spec, spec.python.parent.parent, "installed")
    folder = engines_root(root) / spec.requirement.replace("==", "-")
    try:
        facts = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return EngineStatus(spec, folder, "incomplete" if folder.exists() else "not installed")
    whole = isinstance(facts, dict) and (folder / "bin" / "python").exists()
    return EngineStatus(spec, folder, "installed" if whole else "incomplete", facts if whole else {})


def require(spec: EngineSpec, *, root: Path | str | None = None) -> EngineStatus:
    """The installed engine, or EngineNotInstalled with the command that installs it."""
    found = status(spec, root=root)
    if found.state != "installed":
        state = "only half installed" if found.state == "incomplete" else "not installed"
        raise EngineNotInstalled(
            f"engine={found.name} is {state}; install it with: skewsim engines install {found.spec.requirement}"
        )
    return found


def worker_environment(
    spec: EngineSpec, settings: EngineSettings | None = None, *, root: Path | str | None = None
) -> dict[str, str]:
    """The variables that a worker runs under: the user's, skewsim's where the user set none, and the version's own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    found = dict(COMMON_ENVIRONMENT)
    if spec.device == "cpu":
        bind = "nobind" if at_least(spec.version, "0.12") else "all"  # an older word for the same
        found |= CPU_ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": bind}
        if settings is None or settings.enforce_eager:
            found |= {
                "TORCH_COMPILE_DISABLE": "1"
            }  # an eager engine compiles nothing, but looking costs a third of its start
    path = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH") if spec.python else None])]
    own = {"PYTHONPATH": os.pathsep.join(path)}
    if not at_least(spec.version, "0.11"):
        own["VLLM_USE_V1"] = spec.generation.removeprefix("v")
    if settings and settings.head_dtype != settings.dtype and "head_dtype" not in spec.features:
        own["SKEWSIM_HEAD_DTYPE"] = settings.head_dtype
    if spec.preload:
        own |= _preloaded(spec, status(spec, root=root).python, inherited.get("LD_PRELOAD", ""))
    return {**found, **inherited, **own}


def _preloaded(spec: EngineSpec, python: Path, given: str) -> dict[str, str]:
    """LD_PRELOAD with the libraries that the version looks for, from the engine's environment or the system.

    Some versions only look whether a name is in LD_PRELOAD. Libraries that are nowhere are therefore handed to the
    worker by name in SKEWSIM_PRELOAD_MISSING; the worker adds them once it runs, since the linker would complain about
    them.
    """
    lib = python.parent.parent / "lib"
    paths, missing = [part for part in re.split("[: ]", given) if part], list[str]()
    for name in spec.preload:
        if any(name in part for part in paths):
            continue
        found = next((str(path) for path in lib.glob(f"{name}.so*")), None) or ctypes.util.find_library(
            {"libtcmalloc": "tcmalloc_minimal"}.get(name, name.removeprefix("lib"))
        )
        (paths if found else missing).append(found or name)
    variables = {"LD_PRELOAD": ":".join(paths)} if paths else {}
    return variables | ({"SKEWSIM_PRELOAD_MISSING": ":".join(missing)} if missing else {})
