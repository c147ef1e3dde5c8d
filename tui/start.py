"""Where the training process begins, and soon: it holds up the first curve.

Imports make objects to keep, and to look through them again and again would be a tenth of the start. PyTorch's import
also tells its compiler what every operator does to tensors without data: a quarter of the import, for something that
training never asks for. It is left out where that has been tried; elsewhere the process starts a little later.
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
    """Import torch without its compiler's registrations; False, and nothing done, with a version not tried."""
    if "torch" in sys.modules or not importlib.metadata.version("torch").startswith(_TRIED_WITH):
        return False
    sys.modules[_NOT_ASKED_FOR] = ModuleType(_NOT_ASKED_FOR)
    import torch
    from torch._opaque_base import OpaqueBaseMeta

    torch._C._set_generator_metaclass(OpaqueBaseMeta)  # which they bring torch.Generator
    return True


def main() -> None:
    """Answer the app's requests. Whatever prints does not speak for the worker: it goes where errors go."""
    gc.disable()
    answers = os.dup(1)
    os.dup2(2, 1)
    lean()
    from tui.worker import main as answer

    answer(answers)
