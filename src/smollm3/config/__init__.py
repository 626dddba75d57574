"""What comes from outside: strict models, YAML with line numbers, and the one line for a mistake.

Recipes, server settings, tool arguments and request bodies are all read with this.
"""

from smollm3.config.document import Document, check, read_document
from smollm3.config.problems import Path, Problem, problems, suggestion
from smollm3.config.strict import StrictModel

__all__ = [
    "Document",
    "Path",
    "Problem",
    "StrictModel",
    "check",
    "problems",
    "read_document",
    "suggestion",
]
