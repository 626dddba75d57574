"""The files of a data set on the Hub."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from smollm3.data.places import named_kind
from smollm3.data.spec import HubSource
from smollm3.errors import UserError, first_line

# Words in the names of files and folders that are not for training.
_HELD_BACK = {"test", "tests", "testing", "validation", "valid", "val", "dev", "eval", "heldout"}


def hub_files(source: HubSource) -> tuple[str, list[tuple[str, int]]]:
    """(commit, [(path or hf:// URL, bytes)]) of a Hub data set: what is in the cache is read there,
    the rest is streamed at that commit. Without the network, what the cache holds."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
    except (HfHubHTTPError, OSError, ValueError) as e:
        reached = isinstance(e, HfHubHTTPError) and not isinstance(e, ConnectionError)
        reason = first_line(e) if reached else "it cannot be reached"
        return _snapshot(source, reason)
    files = []
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    for name in wanted(sorted(siblings), source.files):
        here = try_to_load_from_cache(
            source.repo, name, repo_type="dataset", revision=str(info.sha)
        )
        url = f"hf://datasets/{source.repo}@{info.sha}/{name}"
        files.append((here if isinstance(here, str) else url, siblings[name].size or 0))
    if not files:
        patterns = ", ".join(source.files) or "is data for training; name them with `files`"
        raise UserError(f"{source.repo}@{source.revision}: no file {patterns}")
    return str(info.sha), files


def _snapshot(source: HubSource, reason: str) -> tuple[str, list[tuple[str, int]]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source.repo, repo_type="dataset", revision=source.revision, local_files_only=True
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(
            f"{source.repo}@{source.revision}: cannot be had from the Hub ({reason}); "
            "check the name, the revision and the connection"
        ) from None
    folder = Path(found)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    chosen = wanted(names, source.files)
    # the folder is named by the commit
    return str(folder), [(str(folder / n), (folder / n).stat().st_size) for n in chosen]


def wanted(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that a pattern matches, as the Hub matches: `*` crosses `/`; `**/` may also be
    nothing. Without patterns the data files that are not called after a split for testing: of
    Parquet, if there is any, as data sets also keep the files that it was made of."""
    if patterns:
        return [name for name in names if any(_matches(name, p) for p in patterns)]
    found = [n for n in names if named_kind(n) and not _HELD_BACK & set(_words(n))]
    parquet = [name for name in found if named_kind(name) == "parquet"]
    return parquet or [name for name in found if named_kind(name) in ("jsonl", "csv")]


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, pattern.removeprefix("**/"))
