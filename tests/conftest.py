"""One thread, before torch is loaded: two threads on a busy machine are slower, and sums would change their order."""

from __future__ import annotations

import os

from hypothesis import settings

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# No deadline, because a busy machine is no mistake; the same examples each time, so that a failure can be repeated.
settings.register_profile("skewsim", deadline=None, derandomize=True, database=None)
settings.load_profile("skewsim")
