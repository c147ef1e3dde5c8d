"""skewsim: see, measure and fix train-inference skew in online RL for language models.

The public names are listed in ``__init__.pyi``; each is loaded when it is first used, so ``import skewsim`` costs
nothing and needs no torch. docs/notebook.md shows what to do with them.
"""

from typing import Any as _Any

from lazy_loader import attach_stub as _attach_stub

from skewsim.moved import install as _install_old_addresses

__version__ = "0.1.0"
_load, __dir__, __all__ = _attach_stub(__name__, __file__)
_install_old_addresses()


def __getattr__(name: str) -> _Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from skewsim.extras import explain

        raise explain(error, f"skewsim.{name}") or error from None
