"""What of the host's files an interpreter needs, and so is all that the jail shows of them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from smollm3.agent.sandbox.run import StartError

# Where shared libraries are; symbolic links among them are made anew.
_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32")
_OLD_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32")
_OTHERS = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_ASK = """
import sys, json, os
for name in ("ctypes", "ssl", "sqlite3", "lzma", "bz2", "zlib", "decimal"):
    try:
        __import__(name)
    except ImportError:
        pass
mapped = set()
if os.path.exists("/proc/self/maps"):
    with open("/proc/self/maps") as file:
        mapped = {line.split(None, 5)[-1].strip() for line in file if ".so" in line}
print(json.dumps([os.path.realpath(sys.executable), sys.path, sorted(mapped)]))
"""


@dataclass(frozen=True)
class Layout:
    """python: the program. mounts: paths shown read-only. links: (target, path) of symbolic links.
    hidden: folders below the mounts that are shown empty."""

    python: str
    mounts: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]


@cache
def layout(python: str) -> Layout:
    """For an interpreter without its installed packages. StartError where it does not run."""
    try:
        asked = subprocess.run(
            [python, "-I", "-S", "-c", _ASK], capture_output=True, check=True, timeout=60, env={}
        )
        program, search, mapped = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as e:
        raise StartError(f"{python} does not run: {e}") from None
    folders = {*search, *(os.path.dirname(path) for path in mapped), *_LIBRARIES, *_OTHERS}
    links = []
    for path in _OLD_LIBRARIES:
        if os.path.islink(path):
            links.append((os.readlink(path), path))
        else:
            folders.add(path)
    linked = tuple(path + "/" for _, path in links)
    real = [p for p in [program, *sorted(folders)] if os.path.exists(p)]
    mounts = _outermost([p for p in real if not (p + "/").startswith(linked)])
    standard = [Path(p) for p in search] + [Path("/usr/lib/python3")]
    hidden = [p / name for p in standard for name in ("site-packages", "dist-packages")]
    return Layout(
        program,
        tuple(mounts),
        tuple(links),
        tuple(str(p) for p in hidden if p.is_dir() and not p.is_symlink()),
    )


def _outermost(paths: list[str]) -> list[str]:
    """Without what lies below another."""
    return [p for p in paths if not any(p.startswith(other.rstrip("/") + "/") for other in paths)]
