"""RULER: thirteen questions about long texts, made to any length by a model's own tokenizer."""

from smollm3.eval.ruler.generate import Files, Item, generate
from smollm3.eval.ruler.tasks import OFFLINE, TASKS

__all__ = ["OFFLINE", "TASKS", "Files", "Item", "generate"]
