"""What the machine has: free memory, control groups included, room in a folder, and what the processor has."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from skewsim.errors import UserError

LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group with its limit and what it uses, in versions 2 and 1
(https://docs.kernel.org/admin-guide/cgroup-v2.html)."""

CPU_FEATURES = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "bf16"),
)
"""Flags in /proc/cpuinfo that decide which kernels run, and so how sums are rounded; the last two are Arm's."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in glibc's malloc.h (mallopt(3))."""


def cpu_features(root: Path = Path("/")) -> list[str]:
    """Those of `CPU_FEATURES` that the processor has; [] where the system does not say."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    return [name for name in CPU_FEATURES if name in words]


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that a process can still get without swapping; None where the system does not say.

    That is MemAvailable, or what is left within the control groups that this process is in, if that is less.
    """
    found = [free for free in (_available(root), *map(_left, _groups(root))) if free is not None]
    return min(found, default=None)


def check_room(folder: Path, need: int, what: str) -> None:
    """UserError unless a file can be written into a folder, or where it will be made, and `need` bytes are free there.

    The file that is tried has no name, or is removed.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as probe:
            probe.write(bytes(4096))
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"{what} {folder} cannot be written: {error.strerror or error}") from None
    if need > free:
        raise UserError(f"{what} {folder}: about {size(need)} will be written, and {size(free)} are free there")


def size(count: int) -> str:
    """A number of bytes in words."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count} bytes"


def keep_freed(count: int) -> None:
    """Let this process keep up to `count` bytes that it has freed, so that its next step finds them where they were.

    Otherwise glibc gives the memory of a large step back to the system after each step, and the system has to clear
    every page of it again for the next one. An allocator without these two settings stays as it is.
    """
    with suppress(OSError, TypeError, AttributeError):
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(threshold, min(count, 2**31 - 1))


def _available(root: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    return None


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups and of those around them, as far as they are there."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            within = PurePosixPath(name.lstrip("/"))
            found += [top / within, *(top / parent for parent in within.parents)]
    return found


def _left(group: Path) -> int | None:
    """Bytes up to a control group's limit, its file cache not counted; None if it has none."""
    for limit, used in LIMITS:
        with suppress(OSError, ValueError):
            most = int((group / limit).read_text())
            words = (group / "memory.stat").read_text().split()
            cache = int(dict(zip(words[::2], words[1::2], strict=True)).get("inactive_file", 0))
            return max(0, most - int((group / used).read_text()) + cache)
    return None
