"""Models on disk: Hugging Face folders, the Hub, and the names users give to models."""

from smollm3.checkpoint.hf import (
    digest,
    load_config,
    load_model,
    load_tokenizer,
    open_weights,
    published_name,
    save_model,
    save_settings,
    stored_dtypes,
)
from smollm3.checkpoint.locate import NAMES, SHORT_NAMES, locate, locate_adapter

__all__ = [
    "NAMES",
    "SHORT_NAMES",
    "digest",
    "load_config",
    "load_model",
    "load_tokenizer",
    "locate",
    "locate_adapter",
    "open_weights",
    "published_name",
    "save_model",
    "save_settings",
    "stored_dtypes",
]
