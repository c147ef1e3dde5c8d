"""Where the training process begins. It starts as fast as it can, because the first curve waits for it.

Two things are left out. Garbage collection during the imports would take a tenth of the start and find nothing. And
PyTorch's import registers, for its compiler, how every operator treats tensors without data: a quarter of the import,
which training never needs. This registration is skipped with the versions of PyTorch that it was tried with.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import sys
from types import ModuleType

_NOT_ASKED_FOR = "torch._meta_registrations"
_TRIED_WITH = ("2.13.",)


def lean() -> bool:
    """Import torch without its compiler's registrations. Returns False, and does nothing, for a version not tried."""
    if "torch" in sys.modules or not importlib.metadata.version("torch").startswith(_TRIED_WITH):
        return False
    sys.modules[_NOT_ASKED_FOR] = ModuleType(_NOT_ASKED_FOR)
    import torch
    from torch._opaque_base import OpaqueBaseMeta

    torch._C._set_generator_metaclass(OpaqueBaseMeta)  # the skipped module would have done this
    return True


def main() -> None:
    """Answer the app's requests on standard output; whatever else is printed goes to standard error."""
    gc.disable()
    answers = os.dup(1)
    os.dup2(2, 1)
    lean()
    from tui.worker import main as answer

    answer(answers)
