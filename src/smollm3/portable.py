"""What only some systems have, and what stands in for it elsewhere.

Linux, macOS and Windows run everything but the sandbox for the model's own Python, which has its
own ways. Locks are the package filelock's.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import BinaryIO


def usable_cpus() -> int:
    """CPUs that this process may use: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        count = os.process_cpu_count()
    elif hasattr(os, "sched_getaffinity"):  # Linux
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count()
    return count or 1


def reserve(file: BinaryIO, size: int) -> None:
    """Make a new file `size` bytes long, all of them there: a full disk is an OSError here instead
    of a signal when a page of a memory map is written."""
    if hasattr(os, "posix_fallocate"):  # Linux
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])
    file.flush()


def hold(path: Path) -> int | None:
    """A descriptor that holds a file or folder until it is closed, or its process ends in any way;
    None where there is no such lock."""
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_own(stat: os.stat_result) -> bool:
    """Whether the file is this user's. Windows keeps a user's caches from others by itself."""
    return not hasattr(os, "getuid") or stat.st_uid == os.getuid()


def others_can_read(stat: os.stat_result) -> bool:
    """Whether the mode lets other users read or write a file. On Windows modes say nothing."""
    return os.name == "posix" and bool(stat.st_mode & 0o077)


def peak_memory() -> int | None:
    """Bytes: the largest resident set of this process so far; None where nobody counts it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available_memory() -> int:
    """Bytes that programs can take now; where the system does not say, half of what it has."""
    if sys.platform == "win32":
        # MEMORYSTATUSEX, 64 bytes: its length and the load in the first 8, all memory in the next,
        # then what is available.
        status = (ctypes.c_uint64 * 8)(64)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # macOS
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def read_ahead(file: BinaryIO, length: int) -> None:
    """Ask the system for the first bytes of a file that is not empty, without waiting; on Windows,
    which has no such call, nothing."""
    if hasattr(mmap, "MADV_WILLNEED"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            m.madvise(mmap.MADV_WILLNEED, 0, min(len(m), length))


def read_at(file: int, length: int, offset: int) -> bytes:
    """os.pread, which Windows has not; it moves the file's position."""
    os.lseek(file, offset, os.SEEK_SET)
    parts = []
    while length and (part := os.read(file, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
