"""The tokenizer that a stage renders with: its model's, told the recipe's identity."""

from __future__ import annotations

from pathlib import Path

from smollm3 import checkpoint
from smollm3.chat import default_template
from smollm3.chat.template import is_ours
from smollm3.errors import UserError
from smollm3.recipe.schema import Recipe
from smollm3.tokenizer import Tokenizer


def load_tokenizer(recipe: Recipe, model: str | Path) -> Tokenizer:
    """The tokenizer of a folder or Hub id. Without a template it gets ours; one that is ours says
    what the recipe's `chat` says; another that was to say it is a UserError."""
    tokenizer = checkpoint.load_tokenizer(model)
    ours = default_template(**recipe.chat.model_dump())
    if not tokenizer.template:
        return tokenizer.with_template(ours)
    if not recipe.chat.model_fields_set or tokenizer.template == ours:
        return tokenizer
    if not is_ours(tokenizer.template):
        raise UserError(
            f"chat: the template of {model} has no place for a name, a maker or a cutoff; leave "
            "`chat` out and say it in system messages"
        )
    return tokenizer.with_template(ours)
