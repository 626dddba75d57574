"""From sources to batches: read, prepare, mix, pack, load."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3.data.batch import Batch
    from smollm3.data.loader import Loader
    from smollm3.data.mixture import Mixture
    from smollm3.data.preparation import prepare
    from smollm3.data.shards import Shard
    from smollm3.data.sources import Document, documents

_HOMES = {
    "Batch": "batch",
    "Document": "sources",
    "Loader": "loader",
    "Mixture": "mixture",
    "Shard": "shards",
    "documents": "sources",
    "prepare": "preparation",
}
__all__ = ["Batch", "Document", "Loader", "Mixture", "Shard", "documents", "prepare"]


def __getattr__(name: str) -> Any:
    """Workers that prepare data need no torch, which takes a second and 200 MB to import."""
    if name not in _HOMES:
        raise AttributeError(f"module 'smollm3.data' has no attribute {name!r}")
    value = getattr(import_module(f"smollm3.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
