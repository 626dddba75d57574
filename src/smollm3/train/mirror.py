"""Training checkpoints at a URL that fsspec knows, as copies of those in the run's folder.

A checkpoint is there once its trainer_state.json is, which is written last and deleted first:
stores of objects know no rename, and of one object a reader sees all or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from smollm3.data.remote import again, in_one_line
from smollm3.errors import UserError
from smollm3.files import new_folder
from smollm3.train.training_checkpoint import DESCRIPTION, checksums, folder_of, kept, steps_in

AT_ONCE = 8  # files under way


class _Damaged(Exception):
    """A copy that is not what was written."""


class Mirror:
    """The checkpoints of one stage below `url`. warn: is told of what fails and ends nothing."""

    def __init__(self, url: str, warn: Callable[[str], None]) -> None:
        self.url, self.warn = url.rstrip("/"), warn
        self._failed: list[str] = []  # in the thread of `put`, until `tell`
        with in_one_line(f"states: {self.url}: cannot be opened"):
            import fsspec

            self._system, self._base = fsspec.url_to_fs(self.url)

    def put(self, folder: Path, keep_every: int | None) -> None:
        """Copy a finished checkpoint, then delete old ones. Where that fails after some attempts
        `tell` says so, and the older copies stay: training has its own checkpoints and goes on."""
        there = f"{self._base}/{folder.name}"
        try:
            with in_one_line(f"states: {self.url}/{folder.name}: cannot be written"):
                again(lambda: self._system.makedirs(there, exist_ok=True))
                tensors = [path for path in folder.iterdir() if path.name != DESCRIPTION]
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(lambda path: self._upload(path, there), tensors))
                self._upload(folder / DESCRIPTION, there)
                whole = again(self._whole)
                for step in again(self._steps) - kept(whole, keep_every):
                    self._delete(step)
        except UserError as e:
            self._failed.append(str(e))

    def tell(self) -> None:
        """Warn of what failed since it was last called."""
        while self._failed:
            self.warn(self._failed.pop(0))

    def get(self, checkpoints: Path, job: str) -> None:
        """Fetch the newest good checkpoint into a folder that has none so new. A damaged one is
        told, and the one before it taken; one of another job (its digest) is a UserError."""
        newest = max(steps_in(checkpoints), default=-1)
        with in_one_line(f"states: {self.url}: cannot be read"):
            there = again(self._whole)
            for step in sorted(there, reverse=True):
                if step <= newest:
                    return
                folder = folder_of(checkpoints, step)
                try:
                    self._fetch(step, folder, job)
                    return
                except (_Damaged, FileNotFoundError) as e:
                    where = f"states: {self.url}/{folder.name}"
                    self.warn(f"{where}: damaged ({e}); taking the one before it")

    def forget(self) -> None:
        """Delete all of them."""
        for step in again(self._steps):
            self._delete(step)

    def _fetch(self, step: int, folder: Path, job: str) -> None:
        there = f"{self._base}/{folder.name}"
        text = again(lambda: self._system.cat_file(self._description(step)))
        try:
            content = json.loads(text)
            files, of = dict(content["files"]), content["job"]
        except (ValueError, KeyError, TypeError) as e:
            raise _Damaged(str(e)) from None
        if any(Path(name).name != name or name == ".." for name in files):
            raise _Damaged("a file outside of its folder")
        if of != job:
            raise UserError(
                f"states: {self.url}/{folder.name}: the checkpoint of another job (other settings "
                "or inputs); delete it, or give states another place"
            )
        with new_folder(folder) as partial, ThreadPoolExecutor(AT_ONCE) as pool:
            names = [*files, DESCRIPTION]
            list(pool.map(lambda name: self._download(f"{there}/{name}", partial / name), names))
            if checksums(partial / name for name in files) != files:
                raise _Damaged("checksums differ")

    def _steps(self) -> set[int]:
        """All that are there, those too that a kill left in parts."""
        self._system.invalidate_cache()
        if not self._system.exists(self._base):
            return set()
        paths = (path.rstrip("/") for path in self._system.ls(self._base, detail=False))
        numbers = (path.rpartition("/step-")[2] for path in paths)
        return {int(number) for number in numbers if number.isdigit()}

    def _whole(self) -> set[int]:
        return {step for step in self._steps() if self._system.exists(self._description(step))}

    def _description(self, step: int) -> str:
        return f"{self._base}/step-{step}/{DESCRIPTION}"

    def _delete(self, step: int) -> None:
        description = self._description(step)
        if again(lambda: self._system.exists(description)):
            again(lambda: self._system.rm_file(description))
        with suppress(FileNotFoundError):  # a store of objects has no empty folders
            again(lambda: self._system.rm(f"{self._base}/step-{step}", recursive=True))

    def _upload(self, path: Path, there: str) -> None:
        again(lambda: self._system.put_file(str(path), f"{there}/{path.name}"))

    def _download(self, there: str, path: Path) -> None:
        again(lambda: self._system.get_file(there, str(path)))
