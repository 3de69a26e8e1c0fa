"""Recipes as clients see them."""

from typing import Any, Literal

from service.api.schemas.lists import Read
from service.usecases.recipes import Recipe


class RecipeRead(Read):
    """How a base model is tuned: each key of `config` with meaning, default and bounds, and a job to begin with."""

    object: Literal["recipe"] = "recipe"
    base_model: str
    """Name of the base model."""
    description: str
    """What it is."""
    available: bool
    """Whether this server has the model's weights."""
    config_schema: dict[str, Any]
    """JSON Schema of a job's `config`."""
    defaults: dict[str, Any]
    """Every value of `config` where nothing is given."""
    limits: dict[str, int]
    """What this server takes: `max_upload_bytes`, `max_json_bytes`."""
    template: dict[str, Any]
    """A body for `POST /jobs`, complete but for the dataset's id."""


class RecipeList(Read):
    object: Literal["list"] = "list"
    data: list[RecipeRead]
    """One recipe for each base model."""


def recipe_read(recipe: Recipe) -> RecipeRead:
    return RecipeRead(**vars(recipe))
