"""What a version of vLLM has, from its number, generation and device, so that a version nobody tried is known too.

Sources: vLLM's own ``EngineArgs`` of each version, and for CPU builds what was seen to run on 0.8.5.post2, 0.9.2.post2,
0.18.1, 0.26.0 and 0.32.0 (docs/engines.md).
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
    """A setting, and since when each device has it; None: not in any version so far."""

    name: str
    cpu: str | None
    cuda: str | None
    generations: tuple[Generation, ...] = ("v0", "v1")

    def there(self, version: Version, generation: Generation, device: Device) -> bool:
        since = self.cpu if device == "cpu" else self.cuda
        return since is not None and generation in self.generations and version >= Version(since)


V1: tuple[Generation, ...] = ("v1",)
FEATURES = (
    Feature("logprobs_mode", "0.10.0", "0.10.0", V1),
    Feature("head_dtype", "0.26.0", "0.26.0", V1),
    Feature("enable_prefix_caching", "0.9.0", "0.8.5", V1),
    Feature("async_scheduling", "0.10.0", "0.10.0", V1),
    Feature("cache_salt", "0.9.0", "0.9.0", V1),
    Feature("reset_running_requests", "0.12.0", "0.12.0", V1),
    Feature("weight_versions", "0.32.0", "0.32.0", V1),
    Feature("float16", "0.9.0", "0.8.5"),
    Feature("fp8_kv", "0.22.0", "0.8.5"),
    Feature("int8", "0.10.0", "0.8.5", V1),
    Feature("fp8", None, "0.8.5"),
)


def features(version: str, *, generation: Generation, device: Device) -> frozenset[str]:
    """Names of the features that the version has."""
    number = Version(Version(version).base_version)  # 0.9.2.post2 and 0.26.0rc1 have what 0.9.2 and 0.26.0 have
    return frozenset(f.name for f in FEATURES if f.there(number, generation, device))


def logprobs_modes(found: frozenset[str], generation: Generation) -> Iterator[str]:
    """What logprobs may mean: V0 reports processed ones and nothing else, V1 before 0.10 raw ones."""
    if generation == "v1":
        yield "raw_logprobs"
    if generation == "v0" or "logprobs_mode" in found:
        yield "processed_logprobs"
