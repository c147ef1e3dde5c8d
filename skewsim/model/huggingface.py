"""A Hugging Face model by transformers: from a folder that was checked, whole, without pickle and without its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skewsim.errors import FileFormatError, shown
from skewsim.model.folder import check_folder


def load_model(folder: Path | str, **given: Any) -> Any:
    """The causal language model of a local folder with safetensors; `given` goes to `from_pretrained`.

    FileFormatError if it is none, or if it lacks a tensor, which transformers would fill with random numbers.
    """
    check_folder(folder)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    load: Any = AutoModelForCausalLM.from_pretrained
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what is missing is told below, in one line
    try:
        model, found = load(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **given,
        )
    except Exception as error:  # any of transformers' models may stumble in its own way over a configuration
        reason = shown(error, 200) or type(error).__name__
        raise FileFormatError(f"model={str(folder)!r} cannot be loaded: {reason}") from None
    finally:
        logging.set_verbosity(said)
    if missing := sorted(found["missing_keys"]):
        raise FileFormatError(f"model={str(folder)!r}: {shown(missing[0], 80)} and {len(missing) - 1} more are missing")
    return model
