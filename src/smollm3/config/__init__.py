"""What comes from outside: strict models, YAML with line numbers, one-line errors."""

from smollm3.config.strict import StrictModel

__all__ = ["StrictModel"]
