"""Named tensors in a safetensors file, with errors that name the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smollm3.errors import UserError
from smollm3.files import disk_errors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write `path`; not atomic, callers write into a folder that is published as a whole."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with disk_errors(path):
            path.touch()
            mode = path.stat().st_mode  # what the user's umask gives; the library's is 0600
            save_file(plain, path, metadata)
            path.chmod(mode)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: cannot be written ({e}); make room") from e


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of `path`, on the CPU; a missing or damaged file is a UserError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: damaged ({e})") from None
