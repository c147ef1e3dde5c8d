"""What a trap is: a name, what it does, where that is said, and a function that finds it in a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.configs.findings import Certainty, Finding
from harness.configs.frameworks import FIELDS, Configuration, Field
from harness.configs.settings import Setting

GITHUB = "https://github.com/"
VLLM = GITHUB + "vllm-project/vllm/"
VERL = GITHUB + "verl-project/verl/"


@dataclass(frozen=True)
class Case:
    """One configuration under one version of vLLM; None: not said."""

    config: Configuration
    version: str | None = None

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM makes the rollouts."""
        framework = self.config.framework
        if framework in ("slime", "Miles"):
            return False
        if framework == "TRL":
            return self.is_async_trl or bool(self.config.flag("use_vllm"))
        return self.config.text("engine") in ("", "vllm")

    @property
    def is_async_trl(self) -> bool:
        """Whether it is TRL's asynchronous trainer, whose vLLM server is started apart."""
        return "call.AsyncGRPOConfig" in self.config.settings.found


Look = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Trap:
    """One trap: what it does, where that is said, and what a log with it would be diagnosed as."""

    what: str
    source: str
    causes: tuple[str, ...]
    look: Look


TRAPS: dict[str, Trap] = {}


def trap(name: str, what: str, source: str, *causes: str) -> Callable[[Look], Look]:
    def register(look: Look) -> Look:
        TRAPS[name] = Trap(what, source, causes, look)
        return look

    return register


def finding(
    name: str, setting: Setting, what: str, change: str, *, sure: bool = True, source: str | None = None
) -> Finding:
    """A finding about one setting; of a conditional one it only may be."""
    certainty: Certainty = "is" if sure and not setting.conditional else "may be"
    if setting.conditional:
        what += " It stands under a condition of the script."
    trap = TRAPS[name]
    return Finding(
        name,
        certainty,
        what,
        change,
        setting.name,
        setting.value,
        setting.line,
        setting.file,
        source or trap.source,
        trap.causes,
    )


def fields_of(config: Configuration) -> dict[str, Field]:
    return FIELDS[config.framework]


def json_of(found: Setting | None) -> dict[str, object]:
    try:
        data = json.loads(found.text) if found is not None and found.text else {}
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def corrected(config: Configuration) -> bool | None:
    """Whether anything of the trainer's corrects the skew; None: not known."""
    if config.framework == "verl":
        bypass = config.get("bypass")
        if config.get("asynchronous") is not None and bypass is not None and not bypass.given:
            return True  # fully_async_ppo_trainer.yaml turns bypass_mode on
        return bool(config.text("weights") or config.text("rejection") or config.flag("bypass"))
    if config.framework in ("slime", "Miles"):
        return any(config.flag(name) for name in ("correction", "bypass", "mis_weights", "mis_rejects")) or bool(
            config.text("custom_correction")
        )
    if config.framework in ("TRL", "NeMo-RL", "OpenRLHF"):
        return config.flag("correction")
    return True if config.framework == "prime-rl" else None
