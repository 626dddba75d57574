"""The recipe is the program: its schema, its loading, and the runner of its stages."""

from smollm3.recipe.load import load_recipe, shipped_recipes
from smollm3.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "shipped_recipes"]
