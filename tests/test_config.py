import json
import math
from pathlib import Path

import pytest
import yaml

from sam3_lora.config import COMPONENTS, TARGETS, JobConfig, LoraConfig, RunConfig, load, parse, without_paths
from sam3_lora.errors import ConfigError

PATHS = {"train_img_folder": "a", "train_ann_file": "b.json"}
# The sections and keys that users of the public trainers know, as they write them.
KNOWN = """
lora:     {rank: 8, alpha: 16.0, dropout: 0.1, target_modules: [q_proj, k_proj, v_proj, out_proj, linear1, linear2]}
dataset:  {train_img_folder: a, train_ann_file: b, val_img_folder: c, val_ann_file: d, resolution: 1008,
           max_ann_per_img: 200}
training: {max_epochs: 20, batch_size: 2, learning_rate: 1e-4, gradient_accumulation_steps: 1, use_amp: true,
           amp_dtype: bfloat16, enable_segmentation: true, num_workers: 2}
"""


def faults(values: object, schema: type = JobConfig) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(schema, values)
    return {fault["pointer"]: fault["message"] for fault in caught.value.errors}


def test_known_yaml_is_complete(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(KNOWN)
    config = load(tmp_path / "run.yaml")
    assert config.training.learning_rate == 1e-4  # a string to YAML 1.1
    assert config.lora.targets == TARGETS
    assert config.dataset.resolution == 1008


def test_survives_json():
    config = parse(RunConfig, yaml.safe_load(KNOWN))
    assert parse(RunConfig, json.loads(config.model_dump_json())) == config


def test_job_configuration_is_the_run_without_paths():
    assert set(JobConfig.model_fields) == {"lora", "dataset", "training", "evaluation"}
    assert faults({"dataset": PATHS}).keys() == {"/dataset/train_img_folder", "/dataset/train_ann_file"}
    assert faults({"model": {"base": "sam3"}}).keys() == {"/model"}


@pytest.mark.parametrize(
    ("values", "pointer", "suggestion"),
    [
        ({"lora": {"rnk": 8}}, "/lora/rnk", "'rank'"),
        ({"loar": {}}, "/loar", "'lora'"),
        ({"training": {"lr": 1e-4, "epochs": 3}}, "/training/epochs", "'max_epochs'"),
        ({"lora": {"target_modules": ["qproj"]}}, "/lora/target_modules", "'q_proj'"),
        ({"lora": {"a/b~c": 1}}, "/lora/a~1b~0c", "unknown key"),
    ],
)
def test_unknown_keys_name_the_nearest(values: dict, pointer: str, suggestion: str):
    assert suggestion in faults(values)[pointer]


@pytest.mark.parametrize(
    "value",
    [True, "fast", "1e", math.nan, math.inf, -1e-4, 0, None, [1], "nan", "1e400", 2],
    ids=repr,
)
def test_bad_learning_rates(value: object):
    assert "/training/learning_rate" in faults({"training": {"learning_rate": value}})


@pytest.mark.parametrize("value", ["1e-4", "0.0001", 0.0001, "  1E-4 ", 1])
def test_good_learning_rates(value: object):
    parse(JobConfig, {"training": {"learning_rate": value}})


@pytest.mark.parametrize("value", [True, 1.5, "8", 0, -1, 10**30, None])
def test_bad_ranks(value: object):
    assert "/lora/rank" in faults({"lora": {"rank": value}})


@pytest.mark.parametrize("values", [None, [], "lora", 3, {"lora": None}, {"lora": []}, {1: 2}])
def test_anything_else_is_refused_by_name(values: object):
    assert faults(values)


def test_every_fault_is_named_at_once():
    assert faults({"lora": {"rank": 0, "alpha": -1}, "training": {"max_epochs": 0}, "x": 1}).keys() == {
        "/lora/rank",
        "/lora/alpha",
        "/training/max_epochs",
        "/x",
    }


def test_all_switches_off_is_an_error():
    off = {f"apply_to_{component}": False for component in COMPONENTS}
    assert "nothing to train" in faults({"lora": off})["/lora"]


def test_combinations():
    assert "enable_segmentation" in faults({"training": {"enable_segmentation": False}})[""]
    half = {**PATHS, "val_ann_file": "c.json"}
    assert "together" in faults({"dataset": half}, RunConfig)["/dataset"]
    assert "prompt" in faults({"dataset": {"prompts": {"a": []}}})["/dataset/prompts"]


def test_what_is_told_of_a_run_holds_no_paths_and_all_else():
    values = {
        "model": {"base": "sam3", "checkpoint": "/w/sam3.pt", "adapter": "/w/a"},
        "dataset": {
            name: f"/w/{name}" for name in ("train_img_folder", "train_ann_file", "val_img_folder", "val_ann_file")
        },
        "output": {"dir": "/w/run", "feature_cache": "/w/cache", "run_name": "pallets"},
    }
    whole = parse(RunConfig, values).model_dump(mode="json")
    told = without_paths({"config": whole, "base_fingerprint": "f"})
    assert "/w" not in json.dumps(told)
    assert told["base_fingerprint"] == "f"
    for section, named in whole.items():
        left_out = named.keys() - told["config"][section].keys()
        assert left_out == {name for name, value in named.items() if str(value).startswith("/w")}
    assert whole["output"]["dir"] == "/w/run"  # what the run itself goes by is as it was
    for odd in ({}, {"config": "odd"}, {"config": {"model": 1, "new": {"dir": 1}}}):
        assert without_paths(odd) == odd


def test_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        LoraConfig().rank = 3


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"lora: [", "YAML"), (b"\xff\xfe\x00", "YAML"), (b"lora: {rank: 8}", "/dataset"), (b"", "dictionary")],
)
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, named: str):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        load(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "absent.yaml")


def test_every_field_is_described():
    for name, section in JobConfig.model_json_schema()["$defs"].items():
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"component_rank": {"vision_encodr": 4}}, "did you mean 'vision_encoder'"),
        ({"component_alpha": {"text_encoder": 4}}, "apply_to_text_encoder is false"),
        ({"component_rank": {"scoring": 0}}, "greater than or equal to 1"),
    ],
)
def test_component_settings_that_reach_nothing_are_errors(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        parse(LoraConfig, values)
