from __future__ import annotations

import pytest

from sam3_lora.config import JobConfig, parse
from tests.service.conftest import Api, add_dataset


@pytest.mark.parametrize("base_model", ["sam3", "sam3-tiny"])
def test_a_recipe_describes_every_key_and_its_template_is_valid(api: Api, base_model: str) -> None:
    recipe = api.client.get(f"/v1/recipes/{base_model}").json()
    assert recipe["available"] is (base_model == "sam3-tiny")
    assert parse(JobConfig, recipe["template"]["config"]) != JobConfig()
    assert parse(JobConfig, recipe["defaults"]) == JobConfig()
    sections = [recipe["config_schema"]["$defs"][name] for name in ("LoraConfig", "TrainingConfig", "DatasetOptions")]
    assert all(field["description"] for section in sections for field in section["properties"].values())


def test_the_template_becomes_a_job(api: Api) -> None:
    template = api.client.get("/v1/recipes/sam3-tiny").json()["template"]
    created = api.client.post("/v1/jobs", json={**template, "dataset_id": add_dataset(api.database)})
    assert created.status_code == 201, created.text
    assert created.json()["resolved"]["config"]["lora"]["rank"] == 16


def test_recipes_are_listed_and_an_unknown_model_is_named(api: Api) -> None:
    assert [recipe["base_model"] for recipe in api.client.get("/recipes").json()["data"]] == ["sam3", "sam3-tiny"]
    unknown = api.client.get("/v1/recipes/sam2")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert "sam3-tiny" in unknown.json()["detail"]
