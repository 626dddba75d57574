"""Options that several commands share."""

from __future__ import annotations

import click

MODEL = click.argument("model", metavar="MODEL")
MODEL_HELP = """
MODEL is a folder (a run's folder means its final model), a .gguf file, a Hub id with an optional
@revision, or a short name (smollm3-3b, smollm2-135m).
"""
CONTEXT = click.option(
    "--context", type=int, metavar="TOKENS", help="Longer than trained: turns on YaRN."
)
