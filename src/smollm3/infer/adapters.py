"""Adapters beside a model that stays as it is: what a backend adds to the products of its matrices.

out features O, in features I, rank K of an adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from smollm3.checkpoint.adapter import read_adapter
from smollm3.errors import UserError
from smollm3.model import ModelConfig

if TYPE_CHECKING:
    from smollm3.infer.worker import Worker


@dataclass(frozen=True)
class Addition:
    """A matrix's product with x becomes (W·x + b·(a·x)) * lengths, all float32; lengths [O] only
    of DoRA. b has its factor."""

    a_KI: Tensor
    b_OK: Tensor
    lengths_O: Tensor | None = None


Additions = Mapping[str, Addition]  # by our names of the matrices, as `blocks.3.attention.q`


@dataclass(eq=False)
class LoadedAdapter:
    """number: what the backend calls it. key: fixed by its weights; keeps prefixes apart.
    users: sequences that the engine has; gone: unloaded, its memory is free when none is left."""

    name: str
    folder: Path
    key: str
    number: int = -1
    users: int = 0
    gone: bool = False


def read_additions(
    folder: Path, config: ModelConfig, base: Callable[[], Callable[[str], Tensor]] | None
) -> tuple[Additions, str]:
    """What the adapter in `folder` (in PEFT's format) adds, and a key of its content.

    base: opens the model's own weights by our names, which DoRA's lengths are of.
    Raises UserError for what cannot be applied without merging, naming `smollm3 merge`.
    """
    found = read_adapter(folder)
    unmerged = f"`smollm3 merge {folder} OUT` makes a model of it"
    if found.whole:
        raise UserError(
            f"{folder}: has embeddings of its own, which no two adapters can share; {unmerged}"
        )
    found.check(config)
    if found.kind == "dora" and base is None:
        raise UserError(f"{folder}: DoRA needs the files of the model; {unmerged}")
    read = base() if base is not None and found.kind == "dora" else None
    digest = hashlib.blake2b(f"{found.kind} {found.scale}".encode(), digest_size=16)
    additions = {}
    for name, layer in sorted(found.layers.items()):
        a_KI, b_OK = layer.a.float(), layer.b.float() * found.scale
        lengths_O = None if read is None else layer.lengths(read(f"{name}.weight"), found.scale)
        for part in (a_KI, b_OK, lengths_O):
            if part is not None:
                digest.update(name.encode() + part.contiguous().numpy().tobytes())
        additions[name] = Addition(a_KI, b_OK, lengths_O)
    return additions, digest.hexdigest()


class Adapters:
    """Those of an engine. `default`: the name of what requests have which name none."""

    def __init__(
        self,
        worker: Worker,
        config: ModelConfig,
        weights: Callable[[], Callable[[str], Tensor]] | None,
    ) -> None:
        self._worker = worker
        self._config = config
        self._weights = weights
        self._loaded: dict[str, LoadedAdapter] = {}
        self.default: str | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """By the names that requests may give."""
        return {name: adapter.folder for name, adapter in self._loaded.items()}

    def load(self, name: str, folder: str | Path) -> None:
        """Let requests name the adapter in `folder` (PEFT's format), which stays unmerged. Raises
        UserError for a name that is taken and for an adapter that does not fit."""
        additions, key = read_additions(Path(folder), self._config, self._weights)
        adapter = LoadedAdapter(name, Path(folder), key)
        if self._loaded.setdefault(name, adapter) is not adapter:
            raise UserError(f"adapter: {name!r:.100} is loaded already; unload it first")
        try:
            self._worker.add_adapter(adapter, additions)
        except BaseException:
            del self._loaded[name]
            raise

    def unload(self, name: str) -> None:
        """New requests cannot name it; those that run end as they would have."""
        adapter = self._loaded.pop(name, None)
        if adapter is None:
            raise self._missing(name)
        self._worker.remove_adapter(adapter)

    def named(self, name: str | None) -> LoadedAdapter | None:
        """Raises UserError for one that is not loaded."""
        name = name or self.default
        if name is None:
            return None
        if name not in self._loaded:
            raise self._missing(name)
        return self._loaded[name]

    def _missing(self, name: str) -> UserError:
        there = ", ".join(self._loaded) or "none"
        return UserError(f"adapter: {name!r:.100} is not loaded; there is {there}")
