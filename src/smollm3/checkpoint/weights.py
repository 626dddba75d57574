"""The safetensors files of a model folder, read and written one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smollm3.errors import UserError
from smollm3.files import disk_errors, read_json, write_json
from smollm3.tensors import write_tensors

INDEX_ENDING = ".safetensors.index.json"
INDEX = f"model{INDEX_ENDING}"
SHARD_BYTES = 5_000_000_000  # 3,075,098,624 parameters in bfloat16 are 6.15 GB: two shards
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by their published names; each is read when it is asked for.

    A file is mapped for the length of one read, so no tensor is in memory twice: not as pages of
    the file either.
    """

    def __init__(self, folder: Path, stem: str = "model") -> None:
        """stem: how the files' names begin. Raises UserError for a folder without safetensors, or
        one whose files are damaged."""
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        listed = _files_of_tensors(folder, stem)
        for path in sorted(set(listed.values())) if listed else [folder / f"{stem}.safetensors"]:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if listed and listed.get(name) != path:
                        continue
                    tensor = file.get_slice(name)
                    if tensor.get_dtype() not in DTYPES:
                        raise UserError(
                            f"{path}: {name}: is {tensor.get_dtype()}; quantised weights are not "
                            "supported, take the original ones"
                        )
                    self.files[name] = path
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = DTYPES[tensor.get_dtype()]
        for name, path in listed.items():
            if name not in self.files:
                raise UserError(f"{path}: {name}: missing, though its index says it is here")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in its own dtype, finite, or a UserError. It lives in the mapped file: copy
        what you keep."""
        with _opened(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.numel() and not all(end.isfinite() for end in torch.aminmax(tensor)):
            raise UserError(
                f"{self.files[name]}: {name}: holds NaN or infinity; fetch the file again, or take "
                "an earlier checkpoint if training went wrong"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a whole safetensors file ({e}); fetch it again") from None


def _files_of_tensors(folder: Path, stem: str) -> dict[str, Path]:
    """File of each tensor as the index says; empty where one `model.safetensors` holds all."""
    if (folder / f"{stem}.safetensors").exists():
        return {}
    index = folder / f"{stem}{INDEX_ENDING}"
    if not index.exists():
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{folder}: only pickled weights ({pickles[0]}), and opening a pickle can run "
                "any code; convert them to safetensors"
            )
        raise UserError(f"{folder}: no {stem}.safetensors here; not a model folder")
    content = read_json(index)
    entries = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{index}: weight_map: missing or empty; fetch the file again")
    for name, file in entries.items():
        plain = isinstance(file, str) and Path(file).name == file and "\\" not in file
        if not plain or not file.endswith(".safetensors"):
            raise UserError(
                f"{index}: weight_map.{name}: {file!r} is not the plain name of a .safetensors file"
            )
    return {name: folder / file for name, file in entries.items()}


def write_weights(
    folder: Path,
    sizes: Mapping[str, int],
    load: Callable[[str], Tensor],
    *,
    stem: str = "model",
    writer: int = 0,
    writers: int = 1,
) -> None:
    """Write the tensors `load(name)` in the order of `sizes` (bytes of each): one file, or shards
    with an index where they come to more than SHARD_BYTES. Old weights in `folder` go away.

    Never more than one shard is in memory beside what `load` itself holds. Of several `writers`,
    each calls this and has every tensor loaded, as that may need all of them; each writes every
    writers-th shard, the first of them the index.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = (
        [f"{stem}.safetensors"]
        if len(shards) == 1
        else [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    if writer == 0:
        with disk_errors(folder):
            for old in (*folder.glob(f"{stem}*.safetensors"), folder / f"{stem}{INDEX_ENDING}"):
                if old.name not in files or writers == 1:
                    old.unlink(missing_ok=True)
    for i, (file, names) in enumerate(zip(files, shards, strict=True)):
        mine = i % writers == writer
        tensors = {}
        for name in names:
            tensor = load(name)
            if mine:
                tensors[name] = tensor
        if mine:
            write_tensors(folder / file, tensors, {"format": "pt"})
    if len(shards) > 1 and writer == 0:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        write_json(
            folder / f"{stem}{INDEX_ENDING}",
            {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map},
        )


def torch_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float16 by name."""
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype: {name!r} is not one of float32, bfloat16, float16")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
