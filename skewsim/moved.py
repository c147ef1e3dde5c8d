"""Keeps version 0.1's module names importable after the modules moved into subpackages.

``from skewsim.objectives import compute_loss`` still works, although the function is now in `skewsim.learn.objectives`.
New programs should use the names of `skewsim` itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "advantages": ("learn.advantages",),
    "advise": ("skew.advise",),
    "base_policy": ("learn.base_policy",),
    "clipping": ("learn.clipping",),
    "corrections": ("learn.corrections",),
    "gate": ("skew.gate",),
    "metrics": ("skew.metrics",),
    "noise": ("engine.noise",),
    "objectives": ("learn.objectives", "learn.losses"),
    "policy": ("model.policy",),
    "prediction": ("runs.prediction",),
    "profile": ("skew.profile", "skew.fitting"),
    "published": ("skew.published", "skew.placing"),
    "recording": ("runs.recording",),
    "report": ("runs.figures",),
    "sampling": ("engine.sampling",),
    "scoring": ("learn.scoring",),
    "sequences": ("skew.sequences",),
    "sweep": ("runs.ladder", "runs.ensemble"),
    "tokens": ("skew.tokens",),
    "trainer": ("learn.trainer",),
}
"""Old module name below ``skewsim`` -> the modules with its contents now, searched in this order for a name."""


class CalledByItsName(ModuleType):
    """A module that can be called for its function of the same name, as in ``skewsim.diagnose(table)``.

    Needed because importing a submodule sets it as an attribute of its package, replacing a function of that name.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


class _OldAddresses(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == "skewsim" and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.rpartition(".")[2]
        homes = [f"skewsim.{home}" for home in MOVED[name]]

        def find(attribute: str) -> Any:
            for home in map(import_module, homes):
                if hasattr(home, attribute):
                    return getattr(home, attribute)
            raise AttributeError(f"module skewsim.{name} has no {attribute}; it is {' and '.join(homes)} now")

        module.__doc__ = f"Moved to {' and '.join(homes)}."
        module.__getattr__ = find  # type: ignore[method-assign]
        module.__class__ = CalledByItsName


def install() -> None:
    """Register the finder of the old names last, so that a real module of the same name is always found first."""
    if not any(isinstance(finder, _OldAddresses) for finder in sys.meta_path):
        sys.meta_path.append(_OldAddresses())
