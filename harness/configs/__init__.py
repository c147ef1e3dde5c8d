"""Which known traps a training configuration is in, read from its files alone: no log, nothing run.

Readers: YAML and TOML (`markup`), shell scripts and Python files (`scripts`). They make one table of settings
(`settings`), which a framework's names make sense of (`frameworks`). `traps` looks at it; `bounds` puts its thresholds
to healthy noise; `versions` knows what a version of vLLM does where nothing is set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.configs.findings import ConfigReport, Finding
from harness.configs.frameworks import FRAMEWORKS, Configuration, Framework, framework_named, recognise
from harness.configs.markup import read_text, read_toml, read_yaml
from harness.configs.scripts import read_python, read_shell
from harness.configs.settings import Setting, Settings, Syntax
from harness.configs.traps import TRAPS, Case, look
from harness.configs.versions import checked, defaults
from skewsim.errors import UserError

__all__ = ["FRAMEWORKS", "ConfigReport", "Finding", "check_config", "read_configuration"]

_READERS = {"yaml": read_yaml, "toml": read_toml, "shell": read_shell, "python": read_python}
_SUFFIXES: dict[str, Syntax] = {
    **dict.fromkeys((".yaml", ".yml", ".json"), "yaml"),
    ".toml": "toml",
    ".py": "python",
    **dict.fromkeys((".sh", ".bash", ".slurm", ".sbatch", ".txt", ""), "shell"),
}


def check_config(paths: Iterable[Path | str], *, vllm: str | None = None, framework: str | None = None) -> ConfigReport:
    """The traps that one run's configuration is in.

    ``paths`` are the files of one run: usually one; prime-rl's trainer, orchestrator and inference files; slime's
    script and its mis.yaml. ``vllm`` is the version that makes the rollouts; without it, what depends on the version
    "may be".
    UserError: no file, an unreadable file, an unknown framework, a version that is none.
    """
    version = checked(vllm)
    config = read_configuration(paths, framework=framework)
    case = Case(config, version)
    shown = defaults(version) if version is not None and case.on_vllm else ()
    return ConfigReport(config.framework, config.files, version, look(case), tuple(TRAPS), shown, _notes(config))


def read_configuration(paths: Iterable[Path | str], *, framework: str | None = None) -> Configuration:
    """One run's files as one configuration. UserError as in `check_config`."""
    files = [Path(path) for path in paths]
    if not files:
        raise UserError("no configuration file; an example: --config verl.yaml")
    forced = _framework(files, framework)
    read = [_read(path, forced) for path in files]
    known: Framework = next(found for found, _ in read)
    others = {found for found, _ in read} - {known}
    if others:
        raise UserError(f"{files[0].name} is {known}'s, and another file is {', '.join(sorted(others))}'s")
    merged = Settings(read[0][1].syntax, notes=[note for _, settings in read for note in settings.notes])
    for _, settings in read:
        for setting in settings:
            merged.add(setting)
    return Configuration(known, merged, tuple(map(str, files)))


def _framework(files: list[Path], named: str | None) -> Framework | None:
    """The framework that is named, or that one of several files shows: a part alone may have no mark."""
    if named is not None:
        return framework_named(named)
    found = {recognise(read_text(path), _syntax(path)) for path in files} - {None}
    return next(iter(found)) if len(files) > 1 and len(found) == 1 else None


def _syntax(path: Path) -> Syntax:
    return _SUFFIXES.get(path.suffix.lower(), "shell")


def _read(path: Path, forced: Framework | None) -> tuple[Framework, Settings]:
    """One file's framework and settings."""
    text, syntax = read_text(path), _syntax(path)
    found = forced or recognise(text, syntax)
    if found is None and syntax == "yaml":
        found, syntax = recognise(text, "shell"), "shell"  # a job's file with the command in it
    if found is None:
        known = ", ".join(FRAMEWORKS)
        raise UserError(f"{path}: the configuration of no framework that is known ({known}); name it with --framework")
    settings = _READERS[syntax](text, path)
    _refuse_other_work(found, settings, text, path)
    if found == "prime-rl":
        settings = _whole(settings, path)
    if found == "vLLM":
        _mark_server(settings, text, path)
    return found, settings


def _refuse_other_work(found: Framework, settings: Settings, text: str, path: Path) -> None:
    """UserError if the file is for supervised training, distillation or generation: there is no skew to correct."""
    names = {setting.name.partition(".")[0] for setting in settings}
    kinds = {"sft", "dpo", "rm", "distillation"}
    other = {
        "verl": "main_generation" in text and "main_ppo" not in text,
        "slime": "sft_loss" in text,
        "Miles": "sft_loss" in text,
        "NeMo-RL": bool(names & kinds) and not names & {"grpo", "ppo"},
    }
    if other.get(found):
        raise UserError(f"{path}: is for {found}, and not for reinforcement learning with rollouts")


_PARTS = ("orchestrator", "inference", "trainer")
_PART_KEYS = {
    "orchestrator": ("train.sampling", "train.source", "sampling", "group_size"),
    "inference": ("vllm", "server"),
}


def _whole(settings: Settings, path: Path) -> Settings:
    """prime-rl's file for one part, with the names of the file for all: `sampling` is `orchestrator.sampling`."""
    if any(setting.name.partition(".")[0] in _PARTS for setting in settings):
        return settings
    part = next((part for part in _PARTS if part[:5] in path.stem.lower()), None) or next(
        (part for part, keys in _PART_KEYS.items() if any(key in settings.found for key in keys)), "trainer"
    )
    whole = Settings(settings.syntax, notes=settings.notes)
    for each in settings:
        whole.add(Setting(f"{part}.{each.name}", each.value, each.line, each.file))
    return whole


def _mark_server(settings: Settings, text: str, path: Path) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\bvllm\s+serve\b|vllm\.entrypoints", line):
            settings.add(Setting("call.serve", True, number, str(path)))
            return


def _notes(config: Configuration) -> tuple[str, ...]:
    """What was not read, and which settings are left to variables or code."""
    from harness.configs.frameworks import FIELDS

    asked = (config.get(name) for name in FIELDS[config.framework])
    unknown = sorted(
        {f"{each.name} (line {each.line}: {each.value})" for each in asked if each is not None and not each.known}
    )
    notes = list(config.settings.notes)
    if config.framework == "TRL" and not Case(config).on_vllm:
        notes.append("use_vllm is not on in this file: its rollouts come from the trainer's own model")
    if misspelt := sorted(_misspelt(config)):
        notes.append(f"misspelt? {', '.join(misspelt)}")
    if unknown:
        notes.append(f"not known from the file alone: {', '.join(unknown)}")
    return tuple(notes)


_ALIKE = 0.85
"""Least likeness of two words that may be meant to be one: `logprob` and `logprobs` have .93, `dp` and `fp32` .33."""


def _misspelt(config: Configuration) -> Iterator[str]:
    """Settings of the file that are nearly one that is looked for, which the file does not have."""
    from harness.configs.frameworks import FIELDS

    asked = {name for field in FIELDS[config.framework].values() for name in field.names}
    for each in config.settings:
        parent, _, last = each.name.rpartition(".")
        beside = {name.rpartition(".")[2]: name for name in asked if name.rpartition(".")[0] == parent}
        meant = None if last in beside else next((name for name in beside if _nearly(last, name)), None)
        if meant is not None and beside[meant] not in config.settings.found:
            yield f"{each.name} (line {each.line}) for {beside[meant]}"


def _nearly(name: str, known: str) -> bool:
    """Whether two names differ in nothing but the spelling of their words, or in what stands between these."""
    words, others = (re.split("[-_]", each.lower()) for each in (name, known))
    if "".join(words) == "".join(others):
        return True
    return len(words) == len(others) and all(
        one == other or (len(one) > 3 and difflib.SequenceMatcher(None, one, other).ratio() >= _ALIKE)
        for one, other in zip(words, others, strict=True)
    )
