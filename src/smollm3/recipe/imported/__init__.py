"""Configurations of other trainers as recipes: nanotron's, and alignment-handbook's for trl."""

from smollm3.recipe.imported.differences import Difference, differences
from smollm3.recipe.imported.files import Imported, import_recipe, recipe_text

__all__ = ["Difference", "Imported", "differences", "import_recipe", "recipe_text"]
