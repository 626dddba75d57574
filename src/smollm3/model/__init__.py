"""The network: configuration, transformer, rotary tables, attention. Knows nobody above it."""

from smollm3.model.attention import Attend, causal, packed
from smollm3.model.config import ModelConfig, Yarn, extend_context, nope_pattern
from smollm3.model.init import initial_weight
from smollm3.model.rope import Rope, rope_tables
from smollm3.model.transformer import Transformer

__all__ = [
    "Attend",
    "ModelConfig",
    "Rope",
    "Transformer",
    "Yarn",
    "causal",
    "extend_context",
    "initial_weight",
    "nope_pattern",
    "packed",
    "rope_tables",
]
