"""Functions that the YAML files here name: the harness finds them only beside those."""

from smollm3.eval.code import humaneval, livecodebench, mbpp

__all__ = ["humaneval", "livecodebench", "mbpp"]
