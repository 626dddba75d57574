"""GGUF, llama.cpp's file format: models and their tokenizers, read and written."""

from smollm3.checkpoint.gguf.load import load_config, load_tokenizer, open_weights
from smollm3.checkpoint.gguf.write import KINDS, export_gguf

__all__ = ["KINDS", "export_gguf", "load_config", "load_tokenizer", "open_weights"]
