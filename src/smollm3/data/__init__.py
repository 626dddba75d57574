"""From sources to batches: read, prepare, mix, pack, load."""

from smollm3.data.batch import Batch
from smollm3.data.loader import Loader
from smollm3.data.mixture import Mixture
from smollm3.data.prepare import prepare
from smollm3.data.shards import Shard
from smollm3.data.sources import Document, documents

__all__ = ["Batch", "Document", "Loader", "Mixture", "Shard", "documents", "prepare"]
