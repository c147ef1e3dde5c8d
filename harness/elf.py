"""One edit to a shared library: a symbol version that it requires of another library becomes optional.

The x86 CPU wheels of vLLM 0.8.5 to 0.10.2 require GLIBCXX_3.4.32, the version of a marker symbol that none of their
code uses. A system with an older libstdc++ (Debian 12 has 3.4.30) therefore refuses to load them. The ELF format has a
flag for an optional version: VER_FLG_WEAK in ``vna_flags`` of the SHT_GNU_verneed section (System V ABI; LSB 3.0,
"Symbol Versioning").
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from skewsim.files import atomic_writer

SHT_GNU_VERNEED = 0x6FFFFFFE
VER_FLG_WEAK = 0x2


def weaken(path: Path, version: str) -> int:
    """Make every requirement of that version optional; returns how many there were. ValueError: no 64-bit ELF file."""
    data = bytearray(path.read_bytes())
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    found = 0
    for at, name in list(_requirements(data)):
        if name == version:
            (flags,) = struct.unpack_from("<H", data, at + 4)
            struct.pack_into("<H", data, at + 4, flags | VER_FLG_WEAK)
            found += 1
    if found:
        mode = path.stat().st_mode
        with atomic_writer(
            path
        ) as handle:  # written as a new file, since the old one may be hard-linked into a package cache
            handle.write(data)
            os.fchmod(handle.fileno(), mode)
    return found


def _requirements(data: bytes | bytearray) -> Iterator[tuple[int, str]]:
    """(offset of the Vernaux entry, version asked for)."""
    (offset,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    for section in sections:
        if section[1] != SHT_GNU_VERNEED:
            continue
        strings, need = sections[section[6]][4], section[4]
        while True:
            _, entries, _, first, following = struct.unpack_from("<HHIII", data, need)
            at = need + first
            for _ in range(entries):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, at)
                start = strings + name
                yield at, bytes(data[start : data.index(0, start)]).decode()
                at += step
            if not following:
                break
            need += following
