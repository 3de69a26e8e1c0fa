"""Recipes: what can be trained here and how."""

from typing import Annotated

from fastapi import APIRouter, Path

from service.api.deps import AppServices
from service.api.errors import problem_responses
from service.api.schemas.recipes import RecipeList, RecipeRead, recipe_read
from service.usecases import recipes

router = APIRouter(prefix="/recipes", tags=["recipes"])


@router.get("")
def list_recipes(found: AppServices) -> RecipeList:
    """Recipes of all base models."""
    return RecipeList(data=[recipe_read(recipe) for recipe in recipes.recipes(found.settings)])


@router.get("/{base_model}", responses=problem_responses(404))
def get_recipe(
    found: AppServices,
    base_model: Annotated[str, Path(max_length=64, description="Name of the base model.", examples=["sam3-tiny"])],
) -> RecipeRead:
    """The recipe of a base model: schema and defaults of `config`, limits, and a job to begin with."""
    return recipe_read(recipes.find_recipe(found.settings, base_model))
