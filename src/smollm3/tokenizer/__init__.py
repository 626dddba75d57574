"""Byte-level BPE with control tokens: trained, loaded, saved, or rebuilt as SmolLM3's own."""

from smollm3.tokenizer.bpe import CONTROL, CONTROL_SPLIT, SPLIT
from smollm3.tokenizer.tokenizer import Rendered, Tokenizer

__all__ = ["CONTROL", "CONTROL_SPLIT", "SPLIT", "Rendered", "Tokenizer"]
