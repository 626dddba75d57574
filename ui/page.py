"""Puts the chat page into the package: `python ui/page.py`, or `make ui`.

npm builds it where npm is. Without npm, or where npm cannot get its packages, a page that is there
stays, and otherwise the one in the newest wheel in dist/ is copied. If this is killed at any
moment, the page is the one before or the new one, never a part of one.

Exit code 0: there is a page of this source. 1: there is none, or an older one; a line says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

UI = Path(__file__).resolve().parent
STATIC = UI.parent / "src" / "smollm3" / "serve" / "static"
IN_WHEEL = "smollm3/serve/static/"


def is_current(static: Path = STATIC) -> bool:
    """Whether the page was made after its source."""
    index = static / "index.html"
    source = [path for path in UI.iterdir() if path.is_file() and path.suffix != ".py"]
    source += [path for path in (UI / "src").rglob("*") if path.is_file()]
    return index.exists() and index.stat().st_mtime >= max(p.stat().st_mtime for p in source)


def build(npm: str) -> str:
    """Have npm build the page. Returns what went wrong, in a line, or nothing."""
    # npm deletes the old packages first and says nothing if it is killed: a copy of the list of
    # packages, written last, tells that they are all there.
    wanted, installed = UI / "package-lock.json", UI / "node_modules" / ".installed.json"
    if not installed.exists() or installed.read_bytes() != wanted.read_bytes():
        if problem := run(npm, "ci", "--no-audit", "--no-fund"):
            return f"npm cannot get the page's packages: {problem}"
        shutil.copyfile(wanted, installed)
    if problem := run(npm, "run", "build"):
        return f"the page's build failed: {problem}"
    return ""


def run(npm: str, *command: str) -> str:
    done = subprocess.run(
        [npm, *command], cwd=UI, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode == 0:
        return ""
    said = (done.stderr or done.stdout).strip()
    print(said, file=sys.stderr)
    lines = [line for line in said.splitlines() if "error" in line.lower()] or said.splitlines()
    return lines[0].strip() if lines else f"npm {command[0]} ended with {done.returncode}"


def unpack(wheel: Path, static: Path = STATIC) -> bool:
    """Copy a wheel's page. False if it has none."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(IN_WHEEL)]
        index = f"{IN_WHEEL}index.html"
        if index not in names:
            return False
        names.remove(index)
        for name in [*names, index]:  # the index last: it makes the others the page
            place = static / name.removeprefix(IN_WHEEL)
            place.parent.mkdir(parents=True, exist_ok=True)
            part = place.with_name(f".{os.getpid()}.part")
            part.write_bytes(archive.read(name))
            part.replace(place)
    then = wheel.stat().st_mtime  # npm, once it is there, builds what is newer
    os.utime(static / "index.html", (then, then))
    return True


def main() -> int:
    if is_current():
        return 0
    npm = shutil.which("npm")
    problem = build(npm) if npm else "npm is not installed (https://nodejs.org)"
    if not problem:
        return 0
    if (STATIC / "index.html").exists():
        print(f"chat page: stays as it was before, older than ui/: {problem}", file=sys.stderr)
        return 1
    wheels = sorted((UI.parent / "dist").glob("smollm3-*.whl"), key=lambda p: p.stat().st_mtime)
    for wheel in reversed(wheels):
        if unpack(wheel):
            print(f"chat page: taken from dist/{wheel.name}: {problem}", file=sys.stderr)
            return 0
    print(f"chat page: none: {problem}; then `make ui` makes it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
