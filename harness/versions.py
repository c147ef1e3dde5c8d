"""What a version of vLLM can do, worked out from its number, generation and device.

So a version that nobody has tried yet is known as well. Sources: vLLM's own ``EngineArgs`` of each version, and for CPU
builds what was seen to run on 0.8.5.post2, 0.9.2.post2, 0.18.1, 0.26.0 and 0.32.0 (docs/engines.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

Generation = Literal["v0", "v1"]
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Feature:
    """A setting or ability, and the first version that has it on each device; None: no version so far."""

    name: str
    cpu: str | None
    cuda: str | None
    generations: tuple[Generation, ...] = ("v0", "v1")

    def there(self, version: str, generation: Generation, device: Device) -> bool:
        since = self.cpu if device == "cpu" else self.cuda
        return since is not None and generation in self.generations and at_least(version, since)


V1: tuple[Generation, ...] = ("v1",)
FEATURES = (
    Feature("logprobs_mode", "0.10.0", "0.10.0", V1),
    Feature("head_dtype", "0.26.0", "0.26.0", V1),
    Feature("enable_prefix_caching", "0.9.0", "0.8.5", V1),
    Feature("async_scheduling", "0.10.0", "0.10.0", V1),
    Feature("cache_salt", "0.9.0", "0.9.0", V1),
    Feature("reset_running_requests", "0.12.0", "0.12.0", V1),
    Feature("weight_versions", "0.32.0", "0.32.0", V1),
    Feature("routed_experts", "0.32.0", "0.32.0", V1),
    Feature("float16", "0.9.0", "0.8.5"),
    Feature("fp8_kv", "0.22.0", "0.8.5"),
    Feature("int8", "0.10.0", "0.8.5", V1),
    Feature("fp8", None, "0.8.5"),
)


def features(version: str, *, generation: Generation, device: Device) -> frozenset[str]:
    """Names of the features that the version has."""
    return frozenset(f.name for f in FEATURES if f.there(version, generation, device))


def at_least(version: str, since: str) -> bool:
    """Whether a version is that release or a later one; 0.9.2.post2 and 0.9.2rc1 count as 0.9.2. ValueError."""
    return Version(Version(version).base_version) >= Version(since)


HIGHEST_TEMPERATURE = 2.0
"""The temperature above which vLLM refuses a request, from the version on that has pull request 44965."""


def refuses_hot(version: str) -> bool:
    """Whether it refuses temperatures above `HIGHEST_TEMPERATURE`: 0.24 and 0.32 do, 0.18.1 does not."""
    return at_least(version, "0.24.0")


def logprobs_modes(found: frozenset[str], generation: Generation) -> Iterator[str]:
    """The values of logprobs_mode that exist: V0 reports processed logprobs only, V1 before 0.10 raw ones only."""
    if generation == "v1":
        yield "raw_logprobs"
    if generation == "v0" or "logprobs_mode" in found:
        yield "processed_logprobs"
